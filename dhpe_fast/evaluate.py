"""How good trained networks are on a data set: the paper's measures (Sec. 4), as numbers, plots and pictures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dhpe_fast.atomic_write import write_whole
from dhpe_fast.config import DataSource, TrainConfig
from dhpe_fast.conventions import CROP_SIZE_PX, H_LAYOUT
from dhpe_fast.data import HandBatch, HandCrops, apply_colour, make_loader, open_dataset
from dhpe_fast.hand import HandModel, WeakPerspective
from dhpe_fast.io import save_image
from dhpe_fast.metrics import (
    ALIGNMENTS,
    SegmentationCounts,
    auc,
    epe,
    fingertip_distances_mm,
    joint_distances_mm,
    joint_distances_px,
    mask_iou,
    pck_curve,
)
from dhpe_fast.nets import DHPE
from dhpe_fast.nets.mesh_estimator import initial_hand
from dhpe_fast.plots import Curve, pck_plot
from dhpe_fast.published_results import AUC, SEGMENTATION
from dhpe_fast.refinement.descent import refine
from dhpe_fast.shading import CLAY, shade
from dhpe_fast.train import BEST, joints_in_metres, load_model, open_crops
from dhpe_fast.viz import composite, contact_sheet, draw_skeleton

MEAN_HAND, REGRESSION, REFINED = "mean hand", "regression", "refined"
"""What is measured: the mean of the training skeletons for every image; f_DHPE; and f_DHPE after Eq. 11."""

FINGERTIPS_ONLY = ("dexter_object",)
"""Data sets that know no other joints."""

_BASELINE_CROPS = 1000
_SHEET_ROWS = 8
_CURVE_MM = {False: np.linspace(0, 50, 101), True: np.linspace(0, 100, 101)}


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure, and how."""

    source: DataSource | None = None
    """The data set; None is the first of the configuration's validation sets."""
    refinement: bool = True
    """Whether to measure Eq. 11, too."""
    alignment: str | None = None
    """How estimates are placed before they are compared, see ``metrics.ALIGNMENTS``; None is the root, or for data sets
    that know fingertips only, their absolute position."""
    visible_only: bool = False
    """Whether joints count only where they are annotated as visible, as in Zimmermann and Brox's evaluation."""
    limit: int | None = None
    """Measure only so many samples, spread evenly."""
    checkpoint: str = BEST
    batch_size: int = 16
    workers: int = 1
    device: str | None = None
    """Where to compute; None is a GPU where there is one."""


def evaluate(
    run: str | os.PathLike[str], output: str | os.PathLike[str], options: EvaluationOptions | None = None
) -> dict[str, Any]:
    """Measures the networks of a run.

    Writes into the folder `output`, which is made: ``evaluation.json``, ``pck.png`` and ``hands.png`` (crop, estimate,
    refined estimate, mesh, and its shape in the mean pose: as in the paper's Fig. 6).

    Args:
        run: folder of a training run.
        output: folder for the results.
        options: what to measure.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        CheckpointError, ConfigError: if the run has no such checkpoint, or a file is damaged.
        ValueError: if the data set cannot be read, has no sample, or an option is not accepted.
    """
    options = EvaluationOptions() if options is None else options
    config, model = load_model(run, options.checkpoint)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = options.source or config.data.validation[0]
    options = replace(options, alignment=_alignment(options.alignment, source.format in FINGERTIPS_ONLY))
    dataset = open_dataset(source.format, source.root, source.split, **source.options)
    crops = HandCrops(dataset, config.model.image_size, joint0=config.model.joint0)
    tips_only = source.format in FINGERTIPS_ONLY
    sets = _measure(model.to(device, memory_format=torch.channels_last), crops, config, options, device)
    report = {
        "run": os.fspath(run),
        "dataset": {"format": source.format, "root": str(source.root), "split": source.split},
        "samples": len(sets[REGRESSION].joints_m),
        "without_labels": sets[REGRESSION].n_unlabelled,
        "alignment": options.alignment,
        "joint0": config.model.joint0,
        "refinement": asdict(config.refinement),
        "scores": {name: _scores(found, options, tips_only) for name, found in sets.items()},
        "published": {
            "auc": [row._asdict() for row in AUC if row.dataset == source.format],
            "segmentation": [row._asdict() for row in SEGMENTATION if row.dataset == source.format],
        },
    }
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "evaluation.json", (json.dumps(report, indent=1) + "\n").encode())
    _plot(output / "pck.png", sets, options, source.format, tips_only)
    save_image(output / "hands.png", _sheet(model, sets))
    return report


def as_text(report: dict[str, Any]) -> str:
    """The scores of ``evaluate`` as a table."""
    scores = report["scores"]
    names = list(dict.fromkeys(key for found in scores.values() for key in found))
    lines = [f"{report['samples']} hands of {report['dataset']['root']}, alignment: {report['alignment']}"]
    lines.append(f"{'':20}" + "".join(f"{name:>14}" for name in scores))
    for key in names:
        cells = (f"{found[key]:14.3f}" if key in found else f"{'-':>14}" for found in scores.values())
        lines.append(f"{key:20}" + "".join(cells))
    return "\n".join(lines)


# --- Measuring ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Measured:
    """Estimates and truths over a set of S hands, on the CPU."""

    joints_m: Tensor
    """(S, 21, 3) estimates, at the true depth of the root"""
    truth_m: Tensor
    """(S, 21, 3) NaN where not annotated"""
    visible: Tensor
    """(S, 21)"""
    joints2d: Tensor
    """(S, 21, 2) pixels of a 224 crop"""
    truth2d: Tensor
    """(S, 21, 2) the same"""
    pixels: SegmentationCounts | None = None
    """None where no mask is known or estimated"""
    iou: Tensor | None = None
    """(S,) NaN without a mask"""
    n_unlabelled: int = 0
    """hands of which no joint is annotated; they are left out"""
    ms_per_hand: float | None = None
    examples: list[tuple[Tensor, Tensor, Tensor]] | None = None
    """image (3, S, S), h (63,), 2D joints (21, 2) in pixels of the crop, of the first hands"""


def _measure(
    model: DHPE, crops: HandCrops, config: TrainConfig, options: EvaluationOptions, device: torch.device
) -> dict[str, Measured]:
    mean_joints = _mean_hand(config)
    parts: dict[str, list[Measured]] = {MEAN_HAND: [], REGRESSION: []} | ({REFINED: []} if options.refinement else {})
    for batch in _batches(crops, options, device):
        constant = mean_joints.to(device).expand(len(batch), -1, -1)
        parts[MEAN_HAND].append(_measured(batch, constant))
        (h, joints2d_px), ms = _timed(lambda batch=batch: _regressed(model, batch), device, len(batch))
        parts[REGRESSION].append(_of_params(model, batch, h, ms))
        if options.refinement:
            steps = vars(config.refinement)
            refined, more_ms = _timed(
                lambda batch=batch, h=h, joints2d_px=joints2d_px, steps=steps: refine(
                    model, batch.images, h, joints2d_px, **steps
                ),
                device,
                len(batch),
            )
            found = refined.h
            parts[REFINED].append(_of_params(model, batch, found, ms + more_ms))
    return {name: _joined(rows) for name, rows in parts.items()}


def _batches(crops: HandCrops, options: EvaluationOptions, device: torch.device) -> Iterator[HandBatch]:
    chosen = np.arange(len(crops))
    if options.limit is not None:
        if options.limit < 1:
            raise ValueError(f"limit: expected a number of samples >= 1, got {options.limit}")
        chosen = np.unique(np.linspace(0, len(crops) - 1, min(options.limit, len(crops))).round().astype(int))
    pieces = [chosen[k : k + options.batch_size] for k in range(0, len(chosen), options.batch_size)]
    keys = [[(0, int(index)) for index in piece] for piece in pieces]
    for batch in tqdm(make_loader(crops, keys, options.workers), "evaluating", disable=None):
        yield apply_colour(batch.to(device))


@torch.no_grad()
def _regressed(model: DHPE, batch: HandBatch) -> tuple[Tensor, Tensor]:
    estimate = model.estimate_mesh(model.estimate_evidence(batch.images))
    return estimate.h, estimate.joints2d_px


def _mean_hand(config: TrainConfig) -> Tensor:
    """The mean skeleton (1, 21, 3) of the training crops, crop frame: the best that one answer for all can do."""
    crops = open_crops(config, training=True, augmented=False)
    chosen = np.unique(np.linspace(0, len(crops) - 1, min(_BASELINE_CROPS, len(crops))).round().astype(int))
    skeletons = np.stack([crops[0, int(index)].joints_crop for index in chosen])
    return torch.from_numpy(np.nanmean(skeletons, axis=0)).float()[None]


def _of_params(model: DHPE, batch: HandBatch, h: Tensor, ms: float) -> Measured:
    with torch.no_grad():
        projection = model.project(h)
    found = _measured(batch, projection.joints)
    has_mask = batch.has_mask
    mask, truth = projection.mask > 0.5, batch.masks > 0.5
    found.pixels = SegmentationCounts.of(mask[has_mask], truth[has_mask])
    found.iou = torch.where(has_mask, mask_iou(mask, truth), torch.nan).cpu()
    found.ms_per_hand = ms
    joints2d_px = (0.5 * projection.joints[..., :2] + 0.5) * batch.size
    found.examples = [
        (image.cpu(), own_h.cpu(), joints.cpu())
        for image, own_h, joints in zip(batch.images, h, joints2d_px, strict=True)
    ][:_SHEET_ROWS]
    return found


def _measured(batch: HandBatch, joints_crop: Tensor) -> Measured:
    missing = torch.where(batch.valid[..., None], 0.0, torch.nan)
    to_224 = CROP_SIZE_PX / batch.size
    return Measured(
        joints_m=joints_in_metres(batch, joints_crop).cpu(),
        truth_m=(batch.joints_m + missing).cpu(),
        visible=batch.visible.cpu(),
        joints2d=((0.5 * joints_crop[..., :2] + 0.5) * CROP_SIZE_PX).cpu(),
        truth2d=(batch.joints2d_px * to_224 + missing).cpu(),
    )


def _joined(rows: list[Measured]) -> Measured:
    first = rows[0]
    names = ("joints_m", "truth_m", "visible", "joints2d", "truth2d")
    joined = Measured(*(torch.cat([getattr(row, name) for row in rows]) for name in names))
    labelled = joined.truth_m.isfinite().all(-1).any(-1)
    if not labelled.any():
        raise ValueError(f"none of {len(labelled)} hands has an annotated joint: there is nothing to compare with")
    for name in names:
        setattr(joined, name, getattr(joined, name)[labelled])
    joined.n_unlabelled = int((~labelled).sum())
    if first.pixels is not None:
        joined.pixels = sum((row.pixels for row in rows), SegmentationCounts())
        joined.iou = torch.cat([row.iou for row in rows])[labelled]
        # The first call warms up.
        joined.ms_per_hand = float(np.median([row.ms_per_hand for row in rows[1:] or rows]))
        joined.examples = [example for row in rows for example in row.examples][:_SHEET_ROWS]
    return joined


def _timed(function: Callable[[], Any], device: torch.device, n: int) -> tuple[Any, float]:
    """The result, and milliseconds for each of n hands."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = function()
    wait()
    return result, 1000 * (time.perf_counter() - start) / n


# --- Reporting ------------------------------------------------------------------------------------------------


def _distances_mm(found: Measured, options: EvaluationOptions, tips_only: bool) -> Tensor:  # (S, 21) or (S, 5)
    if tips_only:
        return fingertip_distances_mm(found.joints_m, found.truth_m, alignment=options.alignment)
    visible = found.visible if options.visible_only else None
    return joint_distances_mm(found.joints_m, found.truth_m, alignment=options.alignment, visible=visible)


def _alignment(wish: str | None, tips_only: bool) -> str:
    if wish is None:
        return "none" if tips_only else "root"
    accepted = [name for name in ALIGNMENTS if not tips_only or name in ("none", "centroid_scale", "procrustes")]
    if wish not in accepted:
        what = "of fingertips alone " if tips_only else ""
        raise ValueError(f"alignment {what}is one of {', '.join(accepted)}, got {wish!r}")
    return wish


def _scores(found: Measured, options: EvaluationOptions, tips_only: bool) -> dict[str, Any]:
    distances = _distances_mm(found, options, tips_only)
    errors = epe(distances)
    presets = ("do_0_100",) if tips_only else ("zb2017_20_50", "zb2017_0_50")
    scores: dict[str, Any] = {"epe_mm": errors.mean, "epe_median_mm": errors.median}
    scores |= {f"auc_{name}": auc(distances, name) for name in presets}
    if not tips_only:
        aligned = joint_distances_mm(found.joints_m, found.truth_m, alignment="procrustes")
        scores["pa_mpjpe_mm"] = float(aligned.nanmean())
    scores["joints2d_px"] = float(joint_distances_px(found.joints2d, found.truth2d).nanmean())
    if found.pixels is not None and found.pixels.true_positive + found.pixels.false_negative:
        pixels = found.pixels
        scores |= {"iou": pixels.iou, "precision": pixels.precision, "recall": pixels.recall, "f1": pixels.f1}
        scores["mean_iou"] = float(found.iou.nanmean())
    if found.ms_per_hand is not None:
        scores["ms_per_hand"] = found.ms_per_hand
    return scores


def _plot(path: Path, sets: dict[str, Measured], options: EvaluationOptions, name: str, tips_only: bool) -> None:
    limits = _CURVE_MM[tips_only]
    curves = [
        Curve(label, limits, pck_curve(_distances_mm(found, options, tips_only), limits))
        for label, found in sets.items()
    ]
    what = "fingertips" if tips_only else "joints"
    published = [row for row in AUC if row.dataset == name]
    pck_plot(path, curves, title=f"{what} of {name}, alignment: {options.alignment}", published=published)


def _sheet(model: DHPE, sets: dict[str, Measured]) -> np.ndarray:
    """A row for each of the first hands: crop, estimate, refined, mesh, and its shape in the mean pose."""
    hand, tiles = model.hand.cpu(), []
    last = sets.get(REFINED, sets[REGRESSION])
    for row, (image, h, joints2d_px) in enumerate(sets[REGRESSION].examples):
        picture = (image * 255).round().byte().permute(1, 2, 0).numpy()
        tiles += [picture, _overlay(hand, picture, h, joints2d_px)]
        if last is not sets[REGRESSION]:
            _, h, joints2d_px = last.examples[row]
            tiles.append(_overlay(hand, picture, h, joints2d_px))
        white = np.full_like(picture, 255)
        tiles += [_with_mesh(hand, white, h), _with_mesh(hand, white, _in_mean_pose(hand, h))]
    return contact_sheet(tiles, columns=len(tiles) // len(sets[REGRESSION].examples), gap_px=4)


def _overlay(hand: HandModel, picture: np.ndarray, h: Tensor, joints2d_px: Tensor) -> np.ndarray:
    return draw_skeleton(_with_mesh(hand, picture, h, alpha=0.6), joints2d_px.double().numpy())


def _with_mesh(hand: HandModel, picture: np.ndarray, h: Tensor, alpha: float = 1.0) -> np.ndarray:
    size = picture.shape[0]
    verts = hand.decode(h[None]).verts_m[0]
    layer = shade(verts, hand.faces, WeakPerspective(size / 2, (size / 2, size / 2)), (size, size), material=CLAY)
    return composite(picture, layer, alpha)


def _in_mean_pose(hand: HandModel, h: Tensor) -> Tensor:
    """The shape alone, upright, seen from the palm."""
    params = initial_hand(hand).packed()[0]
    params[H_LAYOUT["shape"]] = h[H_LAYOUT["shape"]]
    return params
