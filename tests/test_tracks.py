"""Association of hands from frame to frame."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from dhpe_fast.evidence import HandEvidence
from dhpe_fast.tracks import LastSeen, Tracking, assign, match

HAND = np.array([(10.0 * (j % 5), 10.0 * (j // 5)) for j in range(21)])
"""A hand of size 40 px."""


def moved(joints_px: np.ndarray, x: float) -> np.ndarray:
    return np.column_stack([joints_px[:, 0] + x, joints_px[:, 1]])


def seen(x: float, side: str | None = None) -> LastSeen:
    return LastSeen(moved(HAND, x), side)


def hand(x: float, side: str | None = None) -> HandEvidence:
    return HandEvidence(moved(HAND, x), np.ones(21), side)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 4), (4, 2), (5, 5), (1, 6)])
def test_the_assignment_is_the_cheapest_of_all(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost = rng.integers(0, 12, shape).astype(float)
        found = assign(cost)
        pairs = [(row, column) for row, column in enumerate(found) if column is not None]
        assert len(found) == shape[0]
        assert len({column for _, column in pairs}) == len(pairs) == min(shape)
        wide = cost if shape[0] <= shape[1] else cost.T
        columns = permutations(range(wide.shape[1]), wide.shape[0])
        cheapest = min(sum(wide[row, column] for row, column in enumerate(choice)) for choice in columns)
        assert sum(cost[pair] for pair in pairs) == cheapest


def test_hands_continue_the_nearest_tracks_in_any_order():
    tracks = [seen(0), seen(200), seen(400)]
    assert match(tracks, [hand(395), hand(10), hand(203)], Tracking()) == [2, 0, 1]
    assert match(tracks, [hand(204)], Tracking()) == [1]
    assert match([], [hand(0)], Tracking()) == [None]
    assert match(tracks, [], Tracking()) == []


def test_the_total_distance_counts_not_the_nearest_pair():
    """Both hands moved right by 20: greedily, the first would take the second one's track."""
    assert match([seen(0), seen(26)], [hand(22), hand(46)], Tracking()) == [0, 1]


def test_a_hand_too_far_away_is_a_new_one():
    assert match([seen(0)], [hand(29)], Tracking()) == [0]
    assert match([seen(0)], [hand(31)], Tracking()) == [None]
    assert match([seen(0)], [hand(31)], Tracking(max_distance=0.8)) == [0]


def test_a_far_pair_is_never_taken_for_a_cheaper_total():
    """Of two hands and two tracks only one pair is near: it is taken, whatever the other two would cost."""
    assert match([seen(0), seen(1000)], [hand(3), hand(28)], Tracking()) == [0, None]


def test_the_other_side_counts_as_a_distance():
    """Hands that pass each other keep their sides, and one look at the wrong side breaks no track."""
    crossing = [hand(6, "left"), hand(4, "right")]
    assert match([seen(4, "left"), seen(6, "right")], crossing, Tracking()) == [0, 1]
    assert match([seen(0, "left")], [hand(2, "right")], Tracking()) == [0]
    assert match([seen(0, "left")], [hand(24, "right")], Tracking()) == [None]
    assert match([seen(0, "left")], [hand(24, None)], Tracking()) == [0]


def test_a_part_of_a_hand_is_measured_by_the_whole_track():
    """One finger (20 px long) that moved 24 px: 1.2 of its own sizes, 0.6 of the hand's."""
    finger = np.full((21, 2), np.nan)
    finger[5:10] = [(0.0, 5.0 * j) for j in range(5)]
    moved_finger = HandEvidence(moved(finger, 24), np.isfinite(finger[:, 0]).astype(float))
    track = HAND.copy()
    track[5:10] = finger[5:10]
    assert match([LastSeen(track, None)], [moved_finger], Tracking()) == [0]


def test_a_track_behind_the_camera_is_continued_by_no_hand():
    assert match([LastSeen(np.full((21, 2), np.nan), None)], [hand(0)], Tracking()) == [None]


def test_only_joints_that_both_show_are_compared():
    half = HAND.copy()
    half[10:] = np.nan
    confidence = np.isfinite(half[:, 0]).astype(float)
    partly = HandEvidence(moved(half, 4), confidence)
    assert match([seen(0)], [partly], Tracking()) == [0]
    other = np.where(np.isnan(half), HAND, np.nan)
    assert match([LastSeen(other, None)], [partly], Tracking()) == [None]


@pytest.mark.parametrize("name", ["max_distance", "side_penalty", "resume_s"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"Tracking.{name}: expected a finite number >= 0, got {value}"):
        Tracking(**{name: value})
