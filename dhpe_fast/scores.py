"""Estimates of many hands beside the truth, and the paper's scores of them (Sec. 4).

Estimates are in the crop frame; they are compared at the true depth of the root, as a crop does not tell it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import CROP_SIZE_PX, STD_TIPS
from dhpe_fast.data import HandBatch
from dhpe_fast.metrics import (
    SegmentationCounts,
    auc,
    epe,
    fingertip_distances_mm,
    joint_distances_mm,
    joint_distances_px,
    mask_iou,
)
from dhpe_fast.train import joints_in_metres

TRUE_DEPTH = "true_depth"
"""The alignment that leaves estimates where they are, at the true depth of the root."""


@dataclass(frozen=True)
class Comparison:
    """How estimates are placed before they are compared, and which joints count."""

    alignment: str = "root"
    """A key of ``metrics.ALIGNMENTS``, or ``TRUE_DEPTH``."""
    tips_only: bool = False
    """Whether the fingertips alone are known."""
    visible_only: bool = False
    """Whether joints count only where they are annotated as visible; in all measures of joints."""


@dataclass(eq=False)
class Measured:
    """Estimates and truths over a set of S hands, on the CPU."""

    joints_m: Tensor
    """(S, 21, 3) estimates, at the true depth of the root; 0 where they are not finite"""
    truth_m: Tensor
    """(S, 21, 3) NaN where not annotated"""
    visible: Tensor
    """(S, 21)"""
    joints2d: Tensor
    """(S, 21, 2) pixels of a 224 crop"""
    truth2d: Tensor
    """(S, 21, 2) the same"""
    finite: Tensor
    """(S,) whether the estimate is; if not, its joints are infinitely far away"""
    pixels: SegmentationCounts | None = None
    """None where no mask is known or estimated"""
    iou: Tensor | None = None
    """(S,) NaN without a mask"""
    n_unlabelled: int = 0
    """hands of which no joint is annotated; they are left out"""
    ms_per_hand: float | None = None
    examples: list[tuple[Tensor, Tensor, Tensor]] | None = None
    """image (3, S, S), h (63,), 2D joints (21, 2) in pixels of the crop, of the first hands"""

    @classmethod
    def of(
        cls,
        batch: HandBatch,
        joints_crop: Tensor,  # (B, 21, 3)
        masks: Tensor | None = None,  # (B, S, S) bool
    ) -> Measured:
        """Estimates for the hands of a batch; joints that are not finite are no estimate."""
        missing = torch.where(batch.valid[..., None], 0.0, torch.nan)
        to_224 = CROP_SIZE_PX / batch.size
        finite = joints_crop.isfinite().all(-1).all(-1)
        joints_crop = torch.where(finite[:, None, None], joints_crop, 0.0)
        found = cls(
            joints_m=joints_in_metres(batch, joints_crop).cpu(),
            truth_m=(batch.joints_m + missing).cpu(),
            visible=batch.visible.cpu(),
            joints2d=((0.5 * joints_crop[..., :2] + 0.5) * CROP_SIZE_PX).cpu(),
            truth2d=(batch.joints2d_px * to_224 + missing).cpu(),
            finite=finite.cpu(),
        )
        if masks is not None:
            has_mask, truth = batch.has_mask, batch.masks > 0.5
            found.pixels = SegmentationCounts.of(masks[has_mask], truth[has_mask])
            found.iou = torch.where(has_mask, mask_iou(masks, truth), torch.nan).cpu()
        return found

    @classmethod
    def joined(cls, rows: Sequence[Measured]) -> Measured:
        """One after the other.

        Raises:
            ValueError: if none of the hands has an annotated joint.
        """
        first = rows[0]
        names = ("joints_m", "truth_m", "visible", "joints2d", "truth2d", "finite")
        joined = cls(*(torch.cat([getattr(row, name) for row in rows]) for name in names))
        labelled = joined.truth_m.isfinite().all(-1).any(-1)
        if not labelled.any():
            raise ValueError(f"none of {len(labelled)} hands has an annotated joint: there is nothing to compare with")
        for name in names:
            setattr(joined, name, getattr(joined, name)[labelled])
        joined.n_unlabelled = int((~labelled).sum())
        if first.pixels is not None:
            joined.pixels = sum((row.pixels for row in rows), SegmentationCounts())
            joined.iou = torch.cat([row.iou for row in rows])[labelled]
        if first.examples is not None:
            joined.examples = [example for row in rows for example in row.examples]
        if first.ms_per_hand is not None:
            # The first call warms up.
            joined.ms_per_hand = float(np.median([row.ms_per_hand for row in rows[1:] or rows]))
        return joined


def distances_mm(found: Measured, how: Comparison, alignment: str | None = None) -> Tensor:  # (S, 21 or 5)
    """Distances of the joints that count, NaN of the others; infinite for estimates that are not finite.

    Args:
        found: the hands.
        how: to compare them.
        alignment: instead of that of `how`.
    """
    wanted = how.alignment if alignment is None else alignment
    place = "none" if wanted == TRUE_DEPTH else wanted
    if how.tips_only:
        distances = fingertip_distances_mm(found.joints_m, found.truth_m, alignment=place)
        return _counted(distances, found, how, list(STD_TIPS))
    return _counted(joint_distances_mm(found.joints_m, found.truth_m, alignment=place), found, how)


def distances_px(found: Measured, how: Comparison) -> Tensor:  # (S, 21)
    """The same in the image, pixels of a 224 crop."""
    return _counted(joint_distances_px(found.joints2d, found.truth2d), found, how)


def scores(found: Measured, how: Comparison, *, form: bool = True) -> dict[str, Any]:
    """All measures of a set by name; `form` is whether the estimates have the form of a hand, to be compared in it."""
    distances = distances_mm(found, how)
    errors = epe(distances)
    presets = ("do_0_100",) if how.tips_only else ("zb2017_20_50", "zb2017_0_50")
    measured: dict[str, Any] = {"epe_mm": errors.mean, "epe_median_mm": errors.median}
    measured |= {f"auc_{name}": auc(distances, name) for name in presets}
    if form and not how.tips_only:
        measured["pa_mpjpe_mm"] = float(distances_mm(found, how, "procrustes").nanmean())
    measured["joints2d_px"] = float(distances_px(found, how).nanmean())
    if found.pixels is not None and found.pixels.true_positive + found.pixels.false_negative:
        pixels = found.pixels
        measured |= {"iou": pixels.iou, "precision": pixels.precision, "recall": pixels.recall, "f1": pixels.f1}
        measured["mean_iou"] = float(found.iou.nanmean())
    if found.ms_per_hand is not None:
        measured["ms_per_hand"] = found.ms_per_hand
    return measured


def _counted(
    distances: Tensor,  # (S, N)
    found: Measured,
    how: Comparison,
    joints: list[int] | slice = slice(None),
) -> Tensor:
    """NaN for joints that are not to count; infinite for those of estimates that are not finite."""
    counts = found.truth_m.isfinite().all(-1)
    if how.visible_only:
        counts = counts & found.visible
    counts = counts[:, joints]
    distances = torch.where(found.finite[:, None], distances, torch.inf)
    return torch.where(counts, distances, torch.nan)
