"""Where 2D joints come from: what the caller gives, and MediaPipe Hands."""

from __future__ import annotations

import builtins
import json
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from dhpe_fast.conventions import JOINT_ORDERS
from dhpe_fast.evidence import HandEvidence, evidence_source, given_boxes, given_hands, sources
from dhpe_fast.evidence.mediapipe import MediaPipeEvidence

JOINTS = np.array([(100.0 + 7 * (j % 5), 50.0 + 9 * (j // 5)) for j in range(21)])
"""A hand of 28 x 36 px."""


def with_confidence(confidence: float = 1.0) -> np.ndarray:
    return np.column_stack([JOINTS, np.full(21, confidence)])


# --- Keypoints of the caller -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keypoints",
    [
        JOINTS,
        JOINTS.tolist(),
        JOINTS.astype(np.float32),
        JOINTS.astype(int),
        torch.tensor(JOINTS, requires_grad=True),
        torch.tensor(JOINTS, dtype=torch.bfloat16),  # whole numbers to 255 are exact
        torch.tensor(JOINTS)[:, [1, 0]][:, [1, 0]],
        with_confidence(),
    ],
    ids=["array", "list", "float32", "integers", "tensor with gradient", "bfloat16", "strided", "with confidence"],
)
def test_keypoints_come_as_array_list_or_tensor(keypoints):
    (hand,), single = given_hands(keypoints)
    assert single
    np.testing.assert_allclose(hand.joints2d_px, JOINTS, rtol=1e-6)
    np.testing.assert_array_equal(hand.confidence, np.ones(21))
    assert (hand.side, hand.score) == (None, 1.0)


def test_several_hands_are_a_list_and_none_is_an_empty_one():
    hands, single = given_hands(np.stack([JOINTS, JOINTS + 10]))
    assert not single
    np.testing.assert_array_equal(hands[1].joints2d_px, JOINTS + 10)
    assert given_hands(np.zeros((0, 21, 2))) == ([], False)


@pytest.mark.parametrize("order", sorted(JOINT_ORDERS))
def test_keypoints_in_another_order_are_brought_to_std(order):
    named = np.empty_like(JOINTS)
    for std_joint, place in enumerate(JOINT_ORDERS[order]):
        named[place] = JOINTS[std_joint]
    (hand,), _ = given_hands(named, order=order)
    np.testing.assert_array_equal(hand.joints2d_px, JOINTS)


def test_a_joint_without_confidence_is_absent_whatever_its_coordinates():
    keypoints = with_confidence(0.5)
    keypoints[3] = (np.nan, np.inf, 0)
    keypoints[4] = (-1e6, 1e6, 0)
    (hand,), _ = given_hands(keypoints)
    assert np.isnan(hand.joints2d_px[[3, 4]]).all()
    np.testing.assert_array_equal(hand.confidence[[2, 3, 4]], [0.5, 0, 0])
    assert hand.score == 0.5


def test_without_confidences_a_joint_at_nan_is_absent():
    keypoints = JOINTS.copy()
    keypoints[7] = np.nan
    (hand,), _ = given_hands(keypoints)
    np.testing.assert_array_equal(hand.confidence, [j != 7 for j in range(21)])


def test_the_callers_keypoints_stay_as_they_were():
    keypoints = with_confidence(0.0)
    keypoints[:5, 2] = 1
    before = keypoints.copy()
    (hand,), _ = given_hands(keypoints)
    hand.joints2d_px[:] = 0
    np.testing.assert_array_equal(keypoints, before)


def changed(joint: int, *values: float) -> np.ndarray:
    keypoints = with_confidence() if len(values) == 3 else JOINTS.copy()
    keypoints[joint] = values
    return keypoints


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        (JOINTS[:20], r"keypoints: expected \(21, 2\).*got \(20, 2\)"),
        (JOINTS[:, :1], r"got \(21, 1\)"),
        (np.zeros((1, 1, 21, 2)), r"got \(1, 1, 21, 2\)"),
        ([[1.0, 2.0], [3.0]], "keypoints: expected a regular array"),
        (changed(3, np.nan, 5), r"keypoints: thumb_ip \(joint 3\) is at \[nan, 5.0\]"),
        (changed(0, np.inf, 5), r"wrist \(joint 0\)"),
        (changed(20, np.nan, np.nan, 0.2), r"little_tip \(joint 20\).*confidence 0.2"),
        (changed(5, 1, 1, 2), r"confidence of index_mcp \(joint 5\) is 2, expected \[0, 1\]"),
        (changed(5, 1, 1, np.nan), r"confidence of index_mcp \(joint 5\) is nan"),
        (changed(5, 1, 1, -0.1), r"is -0.1"),
        (with_confidence(0), "0 joints have a confidence above 0, at least 4"),
        (np.full((21, 2), np.nan), "0 joints have a confidence above 0, at least 4"),
        (np.full((21, 2), 7.0), "span no hand"),
        (JOINTS / 640, "not normalised coordinates"),
    ],
)
def test_bad_keypoints_are_refused_by_name(keypoints, message):
    with pytest.raises(ValueError, match=message):
        given_hands(keypoints)


def test_a_hand_may_reach_beyond_the_image_but_not_lie_outside():
    """JOINTS span x from 100 to 128 and y from 50 to 86."""
    for size in ((60, 105), (480, 101), (51, 640)):
        assert given_hands(JOINTS, image_size=size)[1]
    for size, moved in (((480, 100), 0), ((50, 640), 0), ((480, 640), -128), ((480, 640), 700)):
        with pytest.raises(ValueError, match=r"keypoints: all joints lie outside of the image of \d+ x \d+ pixels"):
            given_hands(JOINTS + moved, image_size=size)
    unseen = with_confidence()
    unseen[1:17, 2] = 0
    unseen[1:17, :2] = 0
    with pytest.raises(ValueError, match=r"image of 100 x 480 pixels, x from 100 to 128 and y from 50 to 86; are they"):
        given_hands(unseen, image_size=(480, 100))


def test_an_error_names_the_hand_among_several():
    with pytest.raises(ValueError, match=r"keypoints\[1\]: wrist"):
        given_hands(np.stack([JOINTS, changed(0, np.inf, 0)]))


@pytest.mark.parametrize("keypoints", [None, "hand", JOINTS.astype(complex), np.full((21, 2), None)])
def test_keypoints_which_are_not_numbers_are_a_type_error(keypoints):
    with pytest.raises(TypeError, match="keypoints: expected numbers"):
        given_hands(keypoints)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="unknown joint order 'coco'"):
        given_hands(JOINTS, order="coco")


# --- Boxes of the caller ---------------------------------------------------------------------------------------------


def test_boxes_may_reach_beyond_the_image_and_one_may_come_alone():
    boxes = given_boxes(torch.tensor([-5, 10, 300, 200]), (240, 320))
    np.testing.assert_array_equal(boxes, [[-5.0, 10, 300, 200]])
    assert boxes.dtype == np.float64
    assert given_boxes(np.zeros((0, 4)), (240, 320)).shape == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 5]], r"expected \(N, 4\)"),
        ([[0, 0, 5, 5], [0, 0, np.nan, 5]], r"boxes\[1\].*not finite"),
        ([[200, 100, 50, 150]], r"boxes\[0\]: \(200, 100, 50, 150\) is empty"),
        ([[10, 10, 10, 20]], "is empty"),
        ([[320, 0, 400, 50]], "outside of the image of 320 x 240"),
        ([[-9, -9, 0, 5]], "outside of the image"),
    ],
)
def test_bad_boxes_are_refused_by_name(boxes, message):
    with pytest.raises(ValueError, match=message):
        given_boxes(boxes, (240, 320))


# --- Sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"side": "Left"}, "side: expected 'right', 'left' or None"),
        ({"score": 1.5}, "score: expected a number in"),
        ({"score": float("nan")}, "score: expected a number in"),
        ({"noise_px": -1}, "noise_px: expected pixels >= 0 or None, got -1"),
        ({"noise_px": float("inf")}, "noise_px: expected pixels >= 0"),
        ({"confidence": np.ones(20)}, r"got \(21, 2\) and \(20,\)"),
    ],
)
def test_evidence_checks_itself(fields, message):
    with pytest.raises(ValueError, match=message):
        HandEvidence(**{"joints2d_px": JOINTS, "confidence": np.ones(21), **fields})


def test_a_source_of_the_callers_own_gets_checked_boxes():
    seen = []

    def source(image_rgb, boxes):
        seen.append(boxes)
        return [HandEvidence(JOINTS, np.ones(21), side="left")]

    image = np.zeros((240, 320, 3), np.uint8)
    (hand,) = evidence_source(source)(image, [[0, 0, 50, 50]])
    assert hand.side == "left"
    np.testing.assert_array_equal(seen[0], [[0.0, 0, 50, 50]])
    with pytest.raises(ValueError, match="is empty"):
        evidence_source(source)(image, [[50, 50, 0, 0]])


def test_a_source_must_answer_with_evidence():
    with pytest.raises(TypeError, match="answered with a ndarray, expected HandEvidence"):
        evidence_source(lambda image, boxes: [JOINTS])(np.zeros((9, 9, 3), np.uint8))


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="got 'openpose'"):
        evidence_source("openpose")
    with pytest.raises(TypeError, match="got int"):
        evidence_source(3)


def test_without_mediapipe_one_sentence_says_how_to_get_it(monkeypatch):
    real_import = builtins.__import__

    def no_mediapipe(module, *args, **kwargs):
        if module == "mediapipe":
            raise ModuleNotFoundError("No module named 'mediapipe'")
        return real_import(module, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "mediapipe", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_mediapipe)
    sources._shared_mediapipe.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "dhpe-fast\[mediapipe\]".*or pass evidence="networks"'):
        evidence_source("mediapipe")


# --- MediaPipe, with a stand-in that takes coloured rectangles for hands ---------------------------------------------

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
"""What the stand-in calls "Left"; "Right"; and a phantom, which it sees elsewhere in every crop."""
SMALLEST = 0.1
"""The stand-in overlooks rectangles smaller than this part of the picture, as MediaPipe overlooks small hands."""


class RectangleHands:
    """Speaks as `mediapipe.solutions.hands.Hands` does."""

    def __init__(self, **options):
        assert options["static_image_mode"], "photographs are not a video"
        self.looks = 0

    def process(self, image):
        self.looks += 1
        assert image.dtype == np.uint8
        assert image.shape[0] == image.shape[1]
        landmarks, handedness = [], []
        for channel, label in ((0, "Left"), (1, "Right"), (2, "Right")):
            count, _, boxes, _ = cv2.connectedComponentsWithStats((image[..., channel] > 127).astype(np.uint8))
            for x, y, width, height, _area in boxes[1:count]:
                if max(width, height) < SMALLEST * len(image):
                    continue
                drift = 0.3 * self.looks * width if channel == 2 else 0.0
                points = np.column_stack([x + drift + width * GRID[:, 0], y + height * GRID[:, 1]]) / len(image)
                landmarks.append(SimpleNamespace(landmark=[SimpleNamespace(x=p[0], y=p[1]) for p in points]))
                handedness.append(SimpleNamespace(classification=[SimpleNamespace(label=label, score=0.98)]))
        # As MediaPipe, it says None and not an empty list.
        return SimpleNamespace(multi_hand_landmarks=landmarks or None, multi_handedness=handedness or None)


GRID = np.array([((j % 5) / 4, (j // 5) / 4) for j in range(21)])
"""Joints spread over the rectangle from border to border."""


@pytest.fixture
def mediapipe(monkeypatch) -> MediaPipeEvidence:
    hands = SimpleNamespace(Hands=RectangleHands)
    monkeypatch.setitem(sys.modules, "mediapipe", SimpleNamespace(solutions=SimpleNamespace(hands=hands)))
    return MediaPipeEvidence()


def picture(*rectangles, size=(480, 640)) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    for (left, top, right, bottom), colour in rectangles:
        image[top:bottom, left:right] = colour
    return image


def assert_joints_fill(hand: HandEvidence, rectangle, atol_px: float) -> None:
    left, top, right, bottom = rectangle
    expected = (left, top) + GRID * (right - left, bottom - top)
    np.testing.assert_allclose(hand.joints2d_px, expected, atol=atol_px)


def test_mediapipes_left_is_a_right_hand_of_an_ordinary_photograph(mediapipe):
    red, green = (100, 150, 200, 300), (400, 100, 540, 220)
    hands = {hand.side: hand for hand in mediapipe(picture((red, RED), (green, GREEN)))}
    assert set(hands) == {"right", "left"}
    # The last look shrinks a square of twice the hand to 384 px: a pixel of it is at most 0.8 px of the image.
    assert_joints_fill(hands["right"], red, atol_px=1.2)
    assert_joints_fill(hands["left"], green, atol_px=1.2)
    assert hands["right"].score == 0.98
    np.testing.assert_array_equal(hands["right"].confidence, np.ones(21))


def test_a_small_hand_is_found_in_tiles(mediapipe):
    small = (610, 90, 640, 125)
    image = picture((small, RED), size=(480, 1000))
    (hand,) = mediapipe(image)
    assert_joints_fill(hand, small, atol_px=0.5)
    mediapipe._search_tiles = False
    assert mediapipe(image) == []


def test_a_hand_in_many_tiles_counts_once(mediapipe):
    first, second = (300, 200, 335, 240), (345, 200, 380, 240)
    hands = mediapipe(picture((first, RED), (second, RED), size=(480, 1000)))
    assert sorted(round(hand.joints2d_px[0, 0]) for hand in hands) == [300, 345]


def test_a_find_that_moves_from_look_to_look_is_no_hand(mediapipe):
    assert mediapipe(picture(((100, 150, 200, 300), BLUE))) == []


def test_a_picture_without_hands_gives_an_empty_list(mediapipe):
    assert mediapipe(picture()) == []


def test_boxes_say_where_to_look_and_give_the_order(mediapipe):
    left_one, right_one = (100, 150, 150, 210), (400, 100, 450, 160)
    image = picture((left_one, RED), (right_one, GREEN))
    boxes = np.array([right_one, (10, 400, 60, 460), left_one])
    first, second = mediapipe(image, boxes)
    assert_joints_fill(first, right_one, atol_px=0.5)
    assert_joints_fill(second, left_one, atol_px=0.5)


def test_a_box_picks_its_own_hand_of_two_neighbours(mediapipe):
    first, second = (200, 200, 240, 250), (245, 200, 285, 250)
    image = picture((first, RED), (second, RED))
    for rectangle in (first, second):
        (hand,) = mediapipe(image, np.array([rectangle]))
        assert_joints_fill(hand, rectangle, atol_px=0.5)


def test_a_box_at_the_border_may_reach_beyond_the_image(mediapipe):
    (hand,) = mediapipe(picture(((0, 0, 60, 60), RED)), np.array([[-20, -20, 60, 60]]))
    assert_joints_fill(hand, (0, 0, 60, 60), atol_px=0.5)


@pytest.mark.parametrize(("options", "message"), [({"max_hands": 0}, "max_hands"), ({"min_score": 1.5}, "min_score")])
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MediaPipeEvidence(**options)


# --- MediaPipe itself ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_real_mediapipe_finds_the_hands_of_the_photographs(hand_photographs, capfd):
    pytest.importorskip("mediapipe", reason='needs the extra: pip install "dhpe-fast[mediapipe]"')
    source = MediaPipeEvidence()
    photographs = json.loads((hand_photographs / "annotations.json").read_text())["images"]
    for photograph in photographs:
        image = cv2.cvtColor(cv2.imread(str(hand_photographs / photograph["file"])), cv2.COLOR_BGR2RGB)
        expected = np.array(photograph["keypoints"])[:, :2]
        extent = np.ptp(expected, axis=0).max()
        box = np.concatenate([expected.min(axis=0), expected.max(axis=0)])
        for boxes in (None, box[None]):
            (hand,) = source(image, boxes)
            assert hand.side == photograph.get("hand", "right")
            error = np.linalg.norm(hand.joints2d_px - expected, axis=1).mean() / extent
            # Measured: 0.02 to 0.04, and 0.10 where the hand holds a tool (freihand).
            assert error < 0.12, photograph["file"]
    assert capfd.readouterr().err == "", "MediaPipe's log reached the terminal"
