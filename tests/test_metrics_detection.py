"""Found boxes against annotated ones, on sets small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dhpe_fast.metrics.detection import Detections, match

HAND = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


def picture(found=(), truth=()) -> Detections:
    """Of (box, score, is_left) found, and (box, is_left, counts) there."""
    return Detections(
        np.array([box for box, _, _ in found]).reshape(-1, 4),
        np.array([score for _, score, _ in found]),
        np.array([left for _, _, left in found], bool),
        np.array([box for box, _, _ in truth]).reshape(-1, 4),
        np.array([left for _, left, _ in truth], bool),
        np.array([counts for _, _, counts in truth], bool),
    )


def test_average_precision_by_hand():
    matches = match(
        [
            picture([(HAND, 0.9, False), (FAR, 0.8, False)], [(HAND, False, True)]),  # one right, one wrong
            picture([(HAND, 0.7, True)], [(HAND, False, True)]),  # right, but for its side
            picture([], [(HAND, True, True)]),  # missed
        ]
    )
    assert matches.average_precision() == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert matches.side_accuracy() == pytest.approx(1 / 2)
    assert matches.recall(0.75) == pytest.approx(1 / 3)
    assert matches.precision(0.75) == pytest.approx(1 / 2)


def test_a_summary_is_of_the_measures_at_its_threshold():
    right, unsure = picture([(HAND, 0.9, False)], [(HAND, False, True)]), picture([(FAR, 0.3, False)])
    assert match([right, unsure]).summary(0.2) == {
        "average_precision": 1.0,
        "threshold": 0.2,
        "precision": 1 / 2,
        "recall": 1.0,
        "side_accuracy": 1.0,
        "false_alarms": 1.0,
    }
    assert match([right, unsure]).summary(0.5)["false_alarms"] == 0


def test_a_hand_is_found_once():
    matches = match([picture([(HAND, 0.5, False), (HAND, 0.9, False)], [(HAND, False, True)])])
    assert matches.is_right.tolist() == [True, False]


def test_hands_that_need_not_be_found_count_neither_way():
    matches = match([picture([(HAND, 0.9, False)], [(HAND, False, False)])])
    assert (len(matches.scores), matches.n_hands, matches.n_empty) == (0, 0, 0)
    assert np.isnan(matches.average_precision())


def test_false_alarms_are_those_in_pictures_without_hands():
    matches = match([picture([(HAND, 0.9, False), (FAR, 0.3, False)]), picture(), picture([(FAR, 0.4, True)])])
    assert matches.false_alarms(0.35) == pytest.approx(2 / 3)


def test_pictures_with_hands_that_have_no_box_are_not_without_hands():
    filled = replace(picture([(HAND, 0.9, False), (FAR, 0.8, False)]), has_unlabelled=True)
    matches = match([filled, picture([(FAR, 0.4, True)]), picture()])
    assert (matches.n_empty, matches.false_alarms(0.35)) == (2, pytest.approx(1 / 2))
    assert np.isnan(match([filled]).side_accuracy())


def test_the_best_threshold_is_the_score_of_the_last_hand_worth_its_false_ones():
    hands = [picture([(HAND, score, False)], [(HAND, False, True)]) for score in (0.9, 0.6)]
    wrong = [picture([(FAR, score, False)]) for score in (0.5, 0.4)]
    assert match(hands + wrong).best_threshold() == 0.6
    late = [picture([(HAND, 0.3, False)], [(HAND, False, True)])]
    # To 0.6: 2 right of 2 found and 3 there, F1 = 4 / 5 and F2 = 10 / 14; to 0.3: 6 / 8 and 15 / 17.
    assert match(hands + wrong + late).best_threshold() == 0.6
    assert match(hands + wrong + late).best_threshold(2.0) == 0.3
    with pytest.raises(ValueError, match="detections"):
        match([picture()]).best_threshold()
