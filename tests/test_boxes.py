"""Boxes beside each other, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dhpe_fast.boxes import box_containment, box_iou

BOX = (0, 0, 10, 10)
OTHERS = {
    "half beside it": ((5, 0, 15, 10), 50 / 150, 50 / 100),
    "half of it": ((0, 0, 10, 5), 50 / 100, 50 / 50),
    "apart in both directions": ((20, 20, 30, 30), 0, 0),
    "no area": ((3, 3, 3, 9), 0, 0),
    "itself": (BOX, 1, 1),
    "larger": ((-10, -10, 10, 10), 100 / 400, 100 / 100),
    "at a corner": ((9, 8, 12, 12), 2 / 110, 2 / 12),
}


@pytest.mark.parametrize(("other", "iou", "containment"), OTHERS.values(), ids=OTHERS)
def test_two_boxes_in_either_order(other, iou, containment):
    assert box_iou(BOX, other) == pytest.approx(iou) == box_iou(other, BOX)
    assert box_containment(BOX, other) == pytest.approx(containment) == box_containment(other, BOX)


def test_two_boxes_of_no_area_have_nothing_in_common():
    assert box_iou((3, 3, 3, 9), (3, 3, 3, 9)) == box_containment((3, 3, 3, 9), (3, 3, 3, 9)) == 0


def test_boxes_broadcast():
    boxes, others = np.array([BOX, (5, 5, 20, 20)]), np.array([other for other, *_ in OTHERS.values()])
    for measure in (box_iou, box_containment):
        each = measure(boxes[:, None], others)
        assert each.tolist() == [[measure(box, other) for other in others] for box in boxes]
        assert measure(boxes[:0, None], others).shape == (0, len(others))
