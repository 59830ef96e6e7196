"""Found boxes against annotated ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dhpe_fast.boxes import box_iou


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one picture, and what is there."""

    boxes: np.ndarray
    """(N, 4) left, top, right, bottom"""
    scores: np.ndarray
    """(N,) the higher, the surer"""
    is_left: np.ndarray
    """(N,) bool"""
    boxes_gt: np.ndarray
    """(M, 4)"""
    is_left_gt: np.ndarray
    """(M,) bool"""
    counts_gt: np.ndarray
    """(M,) bool: whether it is to be found; finding another one is neither right nor wrong"""
    has_unlabelled: bool = False
    """Whether there are hands beside these, so that without a box it is still no picture without hands"""


@dataclass(frozen=True, eq=False)
class Matches:
    """The detections of a set, the surest first."""

    scores: np.ndarray
    """(D,)"""
    is_right: np.ndarray
    """(D,) bool: it is a hand that is to be found, and was not found by a surer one"""
    side_is_right: np.ndarray
    """(D,) bool: and the side, too"""
    in_empty: np.ndarray
    """(D,) bool: it is in a picture without any hand"""
    n_hands: int
    """to be found"""
    n_empty: int
    """pictures without any hand"""

    def average_precision(self) -> float:
        """The mean over the hands of the precision at which each is found; NaN without hands."""
        if self.n_hands == 0:
            return float("nan")
        right = np.cumsum(self.is_right)
        precision = right / np.arange(1, len(right) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float(best[self.is_right].sum() / self.n_hands)

    def side_accuracy(self, least_score: float = -np.inf) -> float:
        """Share of the hands found whose side is right; NaN if there are none."""
        found = self.is_right & (self.scores >= least_score)
        return float(self.side_is_right[found].mean()) if found.any() else float("nan")

    def recall(self, least_score: float) -> float:
        """Share of the hands that are found."""
        return float((self.is_right & (self.scores >= least_score)).sum() / max(self.n_hands, 1))

    def precision(self, least_score: float) -> float:
        """Share of what is found that is a hand; NaN if nothing is found."""
        found = self.scores >= least_score
        return float(self.is_right[found].mean()) if found.any() else float("nan")

    def false_alarms(self, least_score: float) -> float:
        """Boxes found in each picture without hands."""
        return float((self.in_empty & (self.scores >= least_score)).sum() / max(self.n_empty, 1))

    def summary(self, threshold: float) -> dict[str, float]:
        """Average precision, and the other measures at a threshold, by name."""
        return {
            "average_precision": self.average_precision(),
            "threshold": threshold,
            "precision": self.precision(threshold),
            "recall": self.recall(threshold),
            "side_accuracy": self.side_accuracy(threshold),
            "false_alarms": self.false_alarms(threshold),
        }

    def best_threshold(self, recall_weight: float = 1.0) -> float:
        """The score from which on the F-measure is highest (van Rijsbergen 1979).

        Args:
            recall_weight: recall counts so many times as much as precision; 1 is their harmonic mean.

        Raises:
            ValueError: if nothing is found.
        """
        if len(self.scores) == 0:
            raise ValueError("matches: expected detections to choose a threshold from, got none")
        weight = recall_weight**2
        right, found = np.cumsum(self.is_right), np.arange(1, len(self.is_right) + 1)
        f_measure = (1 + weight) * right / (found + weight * self.n_hands)
        return float(self.scores[f_measure.argmax()])


def match(pictures: Sequence[Detections], least_iou: float = 0.5) -> Matches:
    """Which detections are right: the surest first, each takes the free hand which it overlaps most."""
    found: list[tuple[float, bool, bool, bool]] = []
    for picture in pictures:
        overlap = box_iou(picture.boxes[:, None], picture.boxes_gt)
        taken = np.zeros(len(picture.boxes_gt), bool)
        empty = _is_empty(picture)
        for k in np.argsort(-picture.scores, kind="stable"):
            free = np.where(taken | ~picture.counts_gt, -1.0, overlap[k])
            best = int(free.argmax()) if len(free) else -1
            if best >= 0 and free[best] >= least_iou:
                taken[best] = True
                found.append((picture.scores[k], True, bool(picture.is_left[k] == picture.is_left_gt[best]), False))
            elif not (~picture.counts_gt & (overlap[k] >= least_iou)).any():
                found.append((picture.scores[k], False, False, empty))
    columns = [np.array(column) for column in zip(*found, strict=True)] or [np.empty(0)] * 4
    order = np.argsort(-columns[0], kind="stable")
    n_hands = sum(int(picture.counts_gt.sum()) for picture in pictures)
    n_empty = sum(map(_is_empty, pictures))
    return Matches(columns[0][order], *(column[order].astype(bool) for column in columns[1:]), n_hands, n_empty)


def _is_empty(picture: Detections) -> bool:
    """Whether no hand is in it, labelled or not."""
    return len(picture.boxes_gt) == 0 and not picture.has_unlabelled
