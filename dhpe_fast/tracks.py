"""Which hand of this frame is which hand of the last one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dhpe_fast.evidence import HandEvidence

Side = Literal["right", "left"]


@dataclass(frozen=True)
class Tracking:
    """When two frames show the same hand."""

    max_distance: float = 0.75
    """A hand is another one if its joints are farther than this from the track's, on average, in hand sizes (the longer
    side of the bounding box of the track's joints)."""
    side_penalty: float = 0.25
    """What counts as a distance, in hand sizes, between a track and a hand that its source calls the other side."""
    resume_s: float = 0.5
    """A hand that was away for no longer than this goes on as the track it was, if it is near where it left; after
    that it is a new one."""

    def __post_init__(self) -> None:
        for name in ("max_distance", "side_penalty", "resume_s"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"Tracking.{name}: expected a finite number >= 0, got {getattr(self, name)!r}")


@dataclass(frozen=True, eq=False)
class LastSeen:
    """What association knows of a track."""

    joints_px: np.ndarray
    """(21, 2) of the last fit: where joints are that were hidden is known, too. NaN for joints behind the camera."""
    side: Side | None


def match(
    tracks: list[LastSeen],
    hands: list[HandEvidence],
    tracking: Tracking,
) -> list[int | None]:
    """For each hand the track which it continues, or None; each track is continued by one hand at most.

    As many hands as possible are matched, and of all ways to do so the one of least total distance is taken.
    """
    if not tracks or not hands:
        return [None] * len(hands)
    distance = np.array([[_distance(track, hand, tracking) for track in tracks] for hand in hands])
    far = ~(distance <= tracking.max_distance)
    # A forbidden pair costs more than all allowed ones together.
    cost = np.where(far, 1.0 + 2 * tracking.max_distance * (len(hands) + len(tracks)), distance)
    return [None if j is None or far[i, j] else j for i, j in enumerate(assign(cost))]


def assign(
    cost: np.ndarray,  # (N, M)
) -> list[int | None]:
    """For each row a column of its own, so that the sum of their costs is least; None for rows beyond the columns.

    Shortest augmenting paths with prices (Crouse, "On implementing 2D rectangular assignment algorithms", 2016).
    """
    n, m = cost.shape
    if n > m:
        row_of = assign(cost.T)
        return [row_of.index(row) if row in row_of else None for row in range(n)]
    row_price, column_price = np.zeros(n), np.zeros(m)
    column_of, row_of = [-1] * n, [-1] * m
    for first in range(n):
        reached, before = np.full(m, np.inf), np.full(m, -1)
        settled = np.zeros(m, dtype=bool)
        row, length, column = first, 0.0, -1
        while row >= 0:  # Dijkstra over reduced costs, until a free column is reached
            through = length + cost[row] - row_price[row] - column_price
            nearer = ~settled & (through < reached)
            reached[nearer], before[nearer] = through[nearer], row
            column = int(np.where(settled, np.inf, reached).argmin())
            length, row = reached[column], row_of[column]
            settled[column] = True
        row_price[first] += length
        for j in np.flatnonzero(settled):
            if row_of[j] >= 0:
                row_price[row_of[j]] += length - reached[j]
            column_price[j] -= length - reached[j]
        while row != first:  # the rows along the path move on by one column
            row = int(before[column])
            row_of[column] = row
            column, column_of[row] = column_of[row], column
    return list(column_of)


def _distance(track: LastSeen, hand: HandEvidence, tracking: Tracking) -> float:
    """Mean distance of the joints that both have, in sizes of the track's hand, and what another side costs."""
    offset = np.linalg.norm(track.joints_px - hand.joints2d_px, axis=1)
    both = np.isfinite(offset)
    size = size_px(track.joints_px)
    if not both.any() or not size > 0:
        return math.inf
    other_side = None not in (track.side, hand.side) and track.side != hand.side
    return float(offset[both].mean()) / size + tracking.side_penalty * other_side


def size_px(
    joints_px: np.ndarray,  # (21, 2)
) -> float:
    """The longer side of the bounding box of a hand's joints; 0 where none is finite."""
    finite = joints_px[np.isfinite(joints_px).all(axis=1)]
    return float(np.ptp(finite, axis=0).max()) if len(finite) else 0.0
