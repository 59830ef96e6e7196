"""Measures of masks: of one pair, and over the pixels of a set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dhpe_fast.metrics._arguments import Points, as_given, as_tensor


def mask_iou(
    predicted: Points,  # (*batch, H, W) bool
    truth: Points,  # (*batch, H, W) bool
) -> Points:
    """Intersection over union of two masks, (*batch,); 1 where both are empty.

    Raises:
        TypeError: if an argument is neither a tensor nor an array, or is not bool.
        ValueError: if the shapes differ or have fewer than two axes.
    """
    a, b = _mask_pair(predicted, truth)
    shared = (a & b).sum((-2, -1)).double()
    united = (a | b).sum((-2, -1)).double()
    return as_given(predicted, torch.where(united > 0, shared / united.clamp(min=1), torch.ones_like(shared)))


@dataclass(frozen=True)
class SegmentationCounts:
    """Pixels of a set of masks, told apart: counts of several sets add up (``+``).

    The scores are those of all pixels together (micro-averaged), as in the paper's Table 2: its numbers satisfy
    IoU = P R / (P + R - P R). A score of nothing (0 / 0) is NaN.
    """

    true_positive: int = 0
    """Hand, and predicted as hand."""
    false_positive: int = 0
    """Background, but predicted as hand."""
    false_negative: int = 0
    """Hand, but predicted as background."""

    @classmethod
    def of(
        cls,
        predicted: Points,  # (*batch, H, W) bool
        truth: Points,  # (*batch, H, W) bool
    ) -> SegmentationCounts:
        """Counts the pixels of all masks of a batch.

        Raises:
            TypeError, ValueError: as for ``mask_iou``.
        """
        a, b = _mask_pair(predicted, truth)
        return cls(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()))

    def __add__(self, other: SegmentationCounts) -> SegmentationCounts:
        return SegmentationCounts(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
        )

    @property
    def iou(self) -> float:
        """Intersection over union."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def precision(self) -> float:
        """Share of what is predicted as hand that is."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of the hand that is predicted as such."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mask_pair(predicted: Points, truth: Points) -> tuple[Tensor, Tensor]:
    a, b = as_tensor("predicted", predicted), as_tensor("truth", truth)
    for name, mask in (("predicted", a), ("truth", b)):
        if mask.dtype != torch.bool:
            raise TypeError(f"{name}: expected a bool mask, got {mask.dtype}; compare with a threshold first")
    if a.shape != b.shape or a.dim() < 2:
        raise ValueError(f"predicted {tuple(a.shape)} and truth {tuple(b.shape)}: expected one shape (*batch, H, W)")
    return a, b.to(a.device)
