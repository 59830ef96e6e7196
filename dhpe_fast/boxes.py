"""Boxes beside each other: left, top, right, bottom, in any one unit; leading dimensions broadcast as in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_LEAST_AREA = 1e-12
"""Of a union or a smaller box: boxes of no area have nothing in common, instead of 0 / 0."""


def box_iou(
    boxes: ArrayLike,  # (..., 4)
    others: ArrayLike,  # (..., 4)
) -> np.ndarray:
    """Intersection over union (...), float64; 0 for boxes of no area.

    Each of N boxes with each of M others is ``box_iou(boxes[:, None], others)``, (N, M).
    """
    common, area, other_area = _areas(boxes, others)
    return common / np.maximum(area + other_area - common, _LEAST_AREA)


def box_containment(
    boxes: ArrayLike,  # (..., 4)
    others: ArrayLike,  # (..., 4)
) -> np.ndarray:
    """Share of the smaller box that lies in the other (...), float64; 0 for boxes of no area."""
    common, area, other_area = _areas(boxes, others)
    return common / np.maximum(np.minimum(area, other_area), _LEAST_AREA)


def _areas(boxes: ArrayLike, others: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of what both have in common, of the boxes and of the others."""
    boxes, others = np.asarray(boxes, float), np.asarray(others, float)
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    return _area(low, high), _area(boxes[..., :2], boxes[..., 2:]), _area(others[..., :2], others[..., 2:])


def _area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.clip(high - low, 0, None).prod(-1)
