"""Finds the hands in a photograph of any size: the locator over a pyramid, and a closer look at what it finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dhpe_fast.boxes import box_containment, box_iou
from dhpe_fast.nets.locator import MULTIPLE, Locator, LocatorMaps

LEVELS_PX = (160, 320, 640)
"""Longer sides of the pyramid's pictures."""
THRESHOLD = 0.45
"""Score from which on a candidate is called a hand: on held-out generated photographs, where the F-measure with twice
the weight on recall is highest (bench/locator.py), to 0.05. Who reads the joints sees which are none."""

_CANDIDATE_SCORE = 0.1
"""What the first look gives a closer one."""
_MAX_CANDIDATES = 12
_CLOSER_PX = 160
_CLOSER_SPAN = 0.5
"""Longer side of the box by the side of the closer look's picture."""
_CLOSER_REACH = 0.25
"""How far from the middle, by that side, what the closer look finds is still the same hand."""
_SAME_IOU = 0.4
_SAME_WITHIN = 0.55
"""What the share of a box that lies in another counts, beside that of their union."""
_MIN_SIDE_PX = 8
"""Of photographs and boxes: less is too little to know a hand."""


@dataclass(frozen=True, eq=False)
class LocatedHand:
    """A hand in a photograph."""

    box_px: np.ndarray
    """(4,) float64: left, top, right, bottom around the hand's 21 joints, pixels of the image"""
    side: Literal["right", "left"]
    score: float
    """How sure it is that this is a hand, in [0, 1]"""
    side_score: float = 1.0
    """How sure it is of the side, in [0.5, 1]"""


@dataclass(frozen=True, eq=False)
class Candidates:
    """What one picture's maps propose, the surest first."""

    boxes_px: np.ndarray
    """(N, 4)"""
    scores: np.ndarray
    """(N,) chance of a hand, in [0, 1]"""
    left: np.ndarray
    """(N,) chance of a left one, in [0, 1]"""


def locate(
    network: Locator,
    image_rgb: np.ndarray,  # (H, W, 3) uint8
    *,
    max_hands: int = 2,
    threshold: float = THRESHOLD,
) -> list[LocatedHand]:
    """The hands in a photograph, the surest first; none is an empty list.

    Pictures and their mirror images give mirrored hands, up to rounding: every look is one at both.

    Args:
        network: in evaluation mode, on any device.
        image_rgb: the photograph; of less than 8 pixels a side it shows no hand.
        max_hands: at most so many.
        threshold: least score.

    Raises:
        TypeError: if the image is no array of uint8.
        ValueError: if its shape is another, or `max_hands` is no count.
    """
    if not isinstance(image_rgb, np.ndarray) or image_rgb.dtype != np.uint8:
        given = image_rgb.dtype if isinstance(image_rgb, np.ndarray) else type(image_rgb).__name__
        raise TypeError(f"image_rgb: expected an array of uint8, got {given}")
    if image_rgb.ndim != 3 or image_rgb.shape[2] != 3:
        raise ValueError(f"image_rgb: expected (H, W, 3), got {image_rgb.shape}")
    if max_hands < 0:
        raise ValueError(f"max_hands: expected a count, got {max_hands}")
    if min(image_rgb.shape[:2]) < _MIN_SIDE_PX or max_hands == 0:
        return []
    with torch.no_grad():
        first = _first_look(network, image_rgb)
        second = _closer_look(network, image_rgb, first)
    hands = [
        LocatedHand(box, "left" if left > 0.5 else "right", float(score), float(max(left, 1 - left)))
        for box, score, left in zip(second.boxes_px, second.scores, second.left, strict=True)
        if score >= threshold
    ]
    return hands[:max_hands]


def candidates(maps: LocatorMaps, least_score: float = 0.05, most: int = 20) -> list[Candidates]:
    """The peaks of the heat map, of each picture of the batch."""
    chances = maps.hand.float().sigmoid()
    is_peak = functional.max_pool2d(chances, 3, 1, 1) == chances
    boxes = maps.boxes_px()
    found = []
    for score, peak, left, box in zip(chances[:, 0], is_peak[:, 0], maps.left[:, 0].sigmoid(), boxes, strict=True):
        row, column = torch.nonzero(peak & (score >= least_score), as_tuple=True)
        order = score[row, column].argsort(descending=True, stable=True)[:most]
        row, column = row[order], column[order]
        found.append(Candidates(*(_array(v) for v in (box[:, row, column].T, score[row, column], left[row, column]))))
    return found


def without_doubles(found: Candidates, same_iou: float = _SAME_IOU) -> Candidates:
    """Of boxes that overlap, or of which one holds most of the other, the surest."""
    one, other = found.boxes_px[:, None], found.boxes_px
    overlaps = np.maximum(box_iou(one, other), _SAME_WITHIN * box_containment(one, other))
    kept: list[int] = []
    for k in np.argsort(-found.scores, kind="stable").tolist():
        if (overlaps[k, kept] < same_iou).all():
            kept.append(k)
    return _chosen(found, kept)


def pyramid_sizes(height: int, width: int, levels_px: Sequence[int] = LEVELS_PX) -> list[tuple[int, int]]:
    """Heights and widths of the scaled photographs: not larger than it is, and at least one."""
    longer = max(height, width)
    levels = [level for level in levels_px if level <= longer] or [min(longer, levels_px[0])]
    # Even, so that the padding is the same on both sides and the mirrored photograph is the mirrored picture.
    return [tuple(max(2, 2 * round(side * level / longer / 2)) for side in (height, width)) for level in levels]


def _first_look(network: Locator, image_rgb: np.ndarray) -> Candidates:
    height, width = image_rgb.shape[:2]
    parts = []
    for rows, columns in pyramid_sizes(height, width):
        picture = cv2.resize(image_rgb, (columns, rows), interpolation=cv2.INTER_AREA)
        top, left = (-side % MULTIPLE // 2 for side in (rows, columns))
        padded = np.zeros((rows + 2 * top, columns + 2 * left, 3), np.uint8)
        padded[top : top + rows, left : left + columns] = picture
        found = candidates(_maps(network, padded[None]), _CANDIDATE_SCORE)[0]
        shift, scale = np.array((left, top, left, top)), np.array((width / columns, height / rows) * 2)
        parts.append(Candidates((found.boxes_px - shift) * scale, found.scores, found.left))
    together = without_doubles(_joined(parts))
    return _chosen(together, range(min(_MAX_CANDIDATES, len(together.scores))))


def _closer_look(network: Locator, image_rgb: np.ndarray, first: Candidates) -> Candidates:
    """Box, side and score of each candidate from a square in which it fills about half."""
    sides = (first.boxes_px[:, 2:] - first.boxes_px[:, :2]).max(1, initial=0)
    squares = [
        _square(box, side / _CLOSER_SPAN)
        for box, side in zip(first.boxes_px, sides, strict=True)
        if side >= _MIN_SIDE_PX / 2
    ]
    if not squares:
        return _chosen(first, [])
    pictures = np.stack([_cut(image_rgb, *square) for square in squares])
    parts = []
    for found, (corner, side) in zip(candidates(_maps(network, pictures)), squares, strict=True):
        centres = (found.boxes_px[:, :2] + found.boxes_px[:, 2:]) / 2
        near = np.abs(centres - _CLOSER_PX / 2).max(1, initial=0) < _CLOSER_REACH * _CLOSER_PX
        best = _chosen(found, np.flatnonzero(near)[:1])
        boxes = best.boxes_px * (side / _CLOSER_PX) + np.tile(corner, 2)
        parts.append(Candidates(boxes, best.scores, best.left))
    return without_doubles(_joined(parts))


def _square(box_px: np.ndarray, side_px: float) -> tuple[np.ndarray, float]:
    """The top left corner and the side of a square around a box."""
    return (box_px[:2] + box_px[2:]) / 2 - side_px / 2, float(side_px)


def _cut(image_rgb: np.ndarray, corner_px: np.ndarray, side_px: float) -> np.ndarray:
    """A square of the photograph as the closer look's picture; black outside of the photograph."""
    scale = _CLOSER_PX / side_px
    averaged = scale < 0.5  # first: sampling alone would flicker
    # What is interpolated from, and of averaged pixels a few more.
    margin = math.ceil(2 / scale) if averaged else 2
    low = np.maximum(np.floor(corner_px).astype(int) - margin, 0)
    high = np.minimum(np.ceil(corner_px + side_px).astype(int) + margin, image_rgb.shape[1::-1])
    if (low >= high).any():
        return np.zeros((_CLOSER_PX, _CLOSER_PX, 3), np.uint8)
    image_rgb, corner_px = np.ascontiguousarray(image_rgb[low[1] : high[1], low[0] : high[0]]), corner_px - low
    linear = np.array((scale, scale))
    if averaged:
        height, width = (max(1, round(2 * scale * side)) for side in image_rgb.shape[:2])
        shrunk = np.array((width, height)) / image_rgb.shape[1::-1]
        image_rgb = cv2.resize(image_rgb, (width, height), interpolation=cv2.INTER_AREA)
        linear, corner_px = scale / shrunk, corner_px * shrunk
    # OpenCV has pixel centres at whole numbers.
    offset = linear * (0.5 - corner_px) - 0.5
    affine = np.array(((linear[0], 0, offset[0]), (0, linear[1], offset[1])))
    return cv2.warpAffine(image_rgb, affine, (_CLOSER_PX, _CLOSER_PX), flags=cv2.INTER_LINEAR)


def _maps(network: Locator, pictures: np.ndarray) -> LocatorMaps:  # (B, H, W, 3) uint8
    """The mean of what the network says of the pictures and of their mirror images."""
    device = next(network.parameters()).device
    images = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div(255)
    straight, back = network(images), network(images.flip(3)).mirrored()
    mean = [(getattr(straight, name) + getattr(back, name)) / 2 for name in ("hand", "left", "offset", "log_size")]
    return LocatorMaps(*mean)


def _joined(parts: Sequence[Candidates]) -> Candidates:
    return Candidates(
        np.concatenate([part.boxes_px.reshape(-1, 4) for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.left for part in parts]),
    )


def _chosen(found: Candidates, which: Sequence[int] | range | np.ndarray) -> Candidates:
    which = np.asarray(which, dtype=int)
    return Candidates(found.boxes_px[which], found.scores[which], found.left[which])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
