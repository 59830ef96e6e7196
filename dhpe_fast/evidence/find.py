"""A hand that a network claims to see, and whether two such claims are about one hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dhpe_fast.boxes import box_iou
from dhpe_fast.evidence.hand_evidence import HandEvidence

SAME_DISTANCE = 0.5
"""Joints of one hand come out within half a hand, whichever crop they were seen in ..."""
SAME_OVERLAP = 0.6
"""... or their boxes overlap by more than this, intersection over union."""


@dataclass(frozen=True, eq=False)
class Find:
    """A hand in pixels of the image, joints in STD order."""

    joints_px: np.ndarray  # (21, 2)
    confidence: np.ndarray  # (21,)
    side: Literal["right", "left"]
    score: float

    @property
    def box_px(self) -> np.ndarray:
        """(4,) left, top, right, bottom of the joints."""
        return np.concatenate([self.joints_px.min(axis=0), self.joints_px.max(axis=0)])

    @property
    def center_px(self) -> np.ndarray:
        """(2,) of that box."""
        return 0.5 * (self.joints_px.min(axis=0) + self.joints_px.max(axis=0))

    @property
    def extent_px(self) -> float:
        """Its longer side."""
        return float(np.ptp(self.joints_px, axis=0).max())

    def distance(self, other: Find) -> float:
        """Mean distance of the joints, by the longer side of the box of `other`."""
        return float(np.linalg.norm(self.joints_px - other.joints_px, axis=1).mean()) / other.extent_px

    def nearest(self, finds: Iterable[Find]) -> Find | None:
        """The one of `finds` at the place of this one, or None."""
        near = [find for find in finds if find.is_same_hand(self)]
        return min(near, key=lambda find: find.distance(self), default=None)

    def is_same_hand(self, other: Find) -> bool:
        """Whether both are about one hand."""
        return self.distance(other) < SAME_DISTANCE or bool(box_iou(self.box_px, other.box_px) > SAME_OVERLAP)

    def evidence(self) -> HandEvidence:
        """As the fit takes it."""
        return HandEvidence(self.joints_px, self.confidence, self.side, self.score)


def distinct(finds: Iterable[Find]) -> list[Find]:
    """Each hand once, by its best find; best first."""
    kept: list[Find] = []
    for find in sorted(finds, key=lambda one: -one.score):
        if not any(find.is_same_hand(other) for other in kept):
            kept.append(find)
    return kept
