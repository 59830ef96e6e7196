"""Whole generated pictures, end to end: the locator first, then 2D joints and the fit. Nothing is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accuracy_hands import box_of, fit_in_crop, held_out_hands
from torch import Tensor
from tqdm import tqdm

import dhpe_fast
from dhpe_fast.boxes import box_iou
from dhpe_fast.data import Dataset, HandCrops, Sample
from dhpe_fast.data.loader import collate
from dhpe_fast.data.normalize import Square
from dhpe_fast.hand_fit import HandFit
from dhpe_fast.metrics import SegmentationCounts
from dhpe_fast.scores import Comparison, Measured, distances_mm, distances_px

END_TO_END = "fit, end to end"
FOUND = 0.5
"""Overlap, intersection over union, of the boxes around fitted and true 2D joints from which a hand is found."""
ANOTHER = 0.2
"""Overlap with any true hand of the picture below which a fit is of none of them."""


@dataclass
class WholePictures:
    """What was found in each of S pictures with a labelled hand; that hand's estimate, or none."""

    found: Measured
    overlap: np.ndarray
    """(S,) of the boxes; below ``FOUND`` the hand counts as missed"""
    side_right: np.ndarray
    """(S,) bool, of found hands"""
    false_finds: np.ndarray
    """(S,) fits that are of no hand of the picture"""

    @property
    def is_found(self) -> np.ndarray:  # (S,) bool
        """Whether the labelled hand is among the fits."""
        return self.overlap >= FOUND

    def summary(self) -> dict[str, Any]:
        """Rates over the pictures."""
        is_found = self.is_found
        rates = {
            "pictures": len(is_found),
            "found": float(is_found.mean()),
            "false_finds_per_picture": float(self.false_finds.mean()),
        }
        if not is_found.any():
            return rates
        return rates | {
            "side_right": float(self.side_right[is_found].mean()),
            "epe_of_found_mm": float(distances_mm(self.found, Comparison())[is_found].nanmean()),
            "joints2d_of_found_px": float(distances_px(self.found, Comparison())[is_found].nanmean()),
        }


def measure_whole(root: Path, crops: HandCrops, count: int) -> WholePictures:
    """Fits the first pictures of a drawn set as a user would, without a word about what is in them.

    The labelled hand is the one that the crops are of, of two the one that is seen better; the other is no false find.
    """
    both = [held_out_hands(root, hand=side) for side in ("left", "right")]
    rows, overlaps, sides, false_finds = [], [], [], []
    for index in tqdm(range(count), "whole pictures", disable=None):
        sample = crops.sample(index)
        image = sample.read_image()
        fits = dhpe_fast.fit(image, evidence="networks")
        best, overlap = best_fit(fits, box_of(sample.joints2d_px))
        hands = [box_of(hand.joints2d_px) for hand in in_picture(both, index)]
        false_finds.append(sum(_overlap_with_any(fit, hands) < ANOTHER for fit in fits))
        overlaps.append(overlap)
        sides.append(best is not None and best.side == sample.side)
        rows.append(_measured(crops, index, best if overlap >= FOUND else None, image.shape[1]))
    found = Measured.joined(rows)
    return WholePictures(found, np.array(overlaps), np.array(sides), np.array(false_finds))


def best_fit(fits: list[HandFit], box: np.ndarray) -> tuple[HandFit | None, float]:
    """The fit whose 2D joints overlap a box best, and by how much; None and 0 of none."""
    if not fits:
        return None, 0.0
    overlaps = box_iou([box_of(fit.joints2d_px.double().numpy()) for fit in fits], box)
    best = int(np.argmax(overlaps))
    return fits[best], float(overlaps[best])


def _measured(crops: HandCrops, index: int, fit: HandFit | None, width: int) -> Measured:
    """The fit beside the labels of its hand; the mask is compared over the whole picture."""
    batch = collate([crops[0, index]])
    joints = torch.full((1, 21, 3), torch.nan)
    if fit is not None:
        square = Square(batch.center_px[0], batch.size_px[0], batch.angle[0])
        mirrored_width = width if bool(batch.mirrored[0]) else None
        joints[0] = torch.from_numpy(fit_in_crop(fit, square, batch.joint0, mirrored_width)).float()
    found = Measured.of(batch, joints)
    truth = torch.from_numpy(crops.sample(index).read_mask())
    mask: Tensor = torch.zeros_like(truth) if fit is None else fit.mask
    found.pixels = SegmentationCounts.of(mask, truth)
    union = int((mask | truth).sum())
    found.iou = torch.tensor([float((mask & truth).sum()) / union if union else 1.0], dtype=torch.float64)
    return found


def in_picture(both: list[Dataset], index: int) -> list[Sample]:
    """The labelled hands, left and right, that have pixels in a picture."""
    samples = [hands[index] for hands in both]
    ids = cv2.imread(str(samples[0].mask_file), cv2.IMREAD_GRAYSCALE)
    low_high = [sample.mask_ids for sample in samples]
    return [s for s, (low, high) in zip(samples, low_high, strict=True) if ((ids >= low) & (ids <= high)).any()]


def _overlap_with_any(fit: HandFit, boxes: list[np.ndarray]) -> float:
    box = box_of(fit.joints2d_px.double().numpy())
    return max((float(box_iou(box, other)) for other in boxes), default=0.0)
