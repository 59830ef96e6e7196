"""2D joints from the package's own networks, with stand-ins that take coloured rectangles for hands."""

from __future__ import annotations

import hashlib
import json
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import dhpe_fast
from dhpe_fast import pretrained
from dhpe_fast.conventions import BORDER_GREY, MIDDLE_MCP
from dhpe_fast.evidence import HandEvidence, evidence_source, networks, sources
from dhpe_fast.evidence.networks import LEAST_NOISE, NetworkEvidence
from dhpe_fast.nets.heatmaps import SIGMA

RED, GREEN = (255, 0, 0), (0, 255, 0)
"""A right hand and a left one."""
GRID = np.array([((j % 5) / 4, (j // 5) / 4) for j in range(21)])
"""Joints of a right hand, spread over its rectangle from border to border; the middle MCP is near its right border."""
CELLS = 96


def locate(network, image_rgb: np.ndarray, max_hands: int, threshold: float) -> list[SimpleNamespace]:
    """As ``dhpe_fast.nets.locate.locate``: the rectangles, the larger ones being surer; boxes somewhat off."""
    hands = []
    for channel, side in ((0, "right"), (1, "left")):
        count, _, boxes, _ = cv2.connectedComponentsWithStats((image_rgb[..., channel] > 200).astype(np.uint8))
        for x, y, width, height, area in boxes[1:count]:
            box = np.array([x + 0.1 * width, y, x + 1.1 * width, y + height], dtype=float)
            hands.append(SimpleNamespace(box_px=box, side=side, score=min(1.0, area / 20_000), side_score=1.0))
    return sorted(hands, key=lambda hand: -hand.score)[:max_hands]


class RectanglePose(torch.nn.Module):
    """As DHPE: heat maps whose peaks lie in the rectangle as GRID does; those of a left hand not mirrored are faint.

    Of several rectangles in one crop it reads none.
    """

    image_size = 128

    def __init__(self, joint0: str = "wrist", peak: float = 0.9) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.joint0, self.peak = joint0, peak
        self.looks: list[torch.Tensor] = []

    def spec(self) -> dict[str, str | bool]:
        return {"joint0": self.joint0, "pose2d_silhouette": False}

    def pose2d(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert not torch.is_grad_enabled()
        assert images.shape[1:] == (3, 128, 128)
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        self.looks.append(images)
        n = len(images) // 4
        # The crops come in four turns; the rectangles' corners are read in the first one.
        maps = torch.stack([self._maps(one) for one in images[:n]])
        for turn in range(4):
            assert images[turn * n : (turn + 1) * n].equal(images[:n].rot90(turn, (2, 3)))
        turned = torch.cat([maps.rot90(turn, (2, 3)) for turn in range(4)])
        return (torch.full((len(images), 21, CELLS, CELLS), -1.0), turned)

    def _maps(self, image: torch.Tensor) -> torch.Tensor:  # (3, 128, 128)
        shown = (image[:2] > 0.78).any(0)
        if cv2.connectedComponents(shown.numpy().astype(np.uint8))[0] != 2:  # the background is one
            return torch.full((21, CELLS, CELLS), 0.05)
        rows, columns = shown.any(1).nonzero()[:, 0], shown.any(0).nonzero()[:, 0]
        low = torch.tensor([float(columns[0]), float(rows[0])]) / 128
        high = torch.tensor([float(columns[-1] + 1), float(rows[-1] + 1)]) / 128
        joints = low + torch.from_numpy(GRID).float() * (high - low)
        if self.joint0 == "palm":
            joints[0] = 0.5 * (joints[0] + joints[MIDDLE_MCP])
        # A left hand is green, and f_J2D knows right hands: the picture has to be mirrored, which a mark tells.
        mark = image[2, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        half = mark.shape[1] // 2
        as_right = bool(mark[:, :half].mean() > mark[:, half:].mean())
        ticks = (torch.arange(CELLS) + 0.5) / CELLS
        along_x, along_y = (torch.exp(-(((ticks - part[:, None]) / SIGMA) ** 2)) for part in joints.unbind(1))
        return (self.peak if as_right else 0.4 * self.peak) * along_y[:, :, None] * along_x[:, None, :]


class SilhouettePose(RectanglePose):
    """It tells the rectangles' cells, too."""

    def __init__(self) -> None:
        super().__init__()
        self.pose2d = SimpleNamespace(heatmaps_and_silhouette=self._both)

    def spec(self) -> dict[str, str | bool]:
        return {"joint0": self.joint0, "pose2d_silhouette": True}

    def _both(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shown = (images[:, :2] > 0.78).any(1).float()
        cells = torch.nn.functional.adaptive_avg_pool2d(shown[:, None], CELLS)[:, 0]
        return RectanglePose.pose2d(self, images)[-1], 20 * (cells - 0.5)


@pytest.fixture(autouse=True)
def _rectangle_locator(monkeypatch):
    monkeypatch.setattr(networks, "locate", locate)


def source(pose: RectanglePose | None = None, **options) -> NetworkEvidence:
    return NetworkEvidence(locator=torch.nn.Identity(), dhpe=pose or RectanglePose(), **options)


def picture(*rectangles, size=(480, 640)) -> np.ndarray:
    """Rectangles with a blue mark where a right hand has its first joints, mirrored for a left one."""
    image = np.full((*size, 3), 60, np.uint8)
    for (left, top, right, bottom), colour in rectangles:
        image[top:bottom, left:right] = colour
        middle = (left + right) // 2
        marked = slice(left, middle) if colour == RED else slice(middle, right)
        image[top:bottom, marked, 2] = 120
    return image


def joints_in(rectangle, side: str) -> np.ndarray:
    left, top, right, bottom = rectangle
    grid = GRID if side == "right" else GRID * (-1, 1) + (1, 0)
    return (left, top) + grid * (right - left, bottom - top)


RIGHT_ONE, LEFT_ONE = (100, 150, 220, 300), (400, 100, 540, 220)


def test_each_hand_is_read_in_its_place_and_of_its_side():
    hands = {hand.side: hand for hand in source()(picture((RIGHT_ONE, RED), (LEFT_ONE, GREEN)))}
    assert set(hands) == {"right", "left"}
    for side, rectangle in (("right", RIGHT_ONE), ("left", LEFT_ONE)):
        # A pixel of the crop is at most 1.8 px of the image; the peaks between cells are found by parabolas.
        np.testing.assert_allclose(hands[side].joints2d_px, joints_in(rectangle, side), atol=2)
    assert 0.85 < hands["right"].score <= 0.9, "the mean peak"


@pytest.mark.parametrize("boxes", [None, [RIGHT_ONE]])
@pytest.mark.parametrize("said", ["left", "right"])
def test_the_joints_name_the_side_whatever_the_locator_says(monkeypatch, boxes, said):
    def saying(*given, **options) -> list[SimpleNamespace]:
        return [SimpleNamespace(**vars(hand) | {"side": said}) for hand in locate(*given, **options)]

    monkeypatch.setattr(networks, "locate", saying)
    [hand] = source()(picture((RIGHT_ONE, RED)), boxes)
    assert hand.side == "right"
    np.testing.assert_allclose(hand.joints2d_px, joints_in(RIGHT_ONE, "right"), atol=2)


def test_a_side_that_is_known_is_the_only_one_looked_for():
    image = picture((RIGHT_ONE, RED), (LEFT_ONE, GREEN))
    for side in ("right", "left"):
        pose = RectanglePose()
        assert {hand.side for hand in source(pose, side=side, min_confidence=0.0)(image)} == {side}
        assert len(pose.looks[0]) == 3 * 4, "each hand and the whole picture, in four turns"
    with pytest.raises(ValueError, match="side: expected"):
        source(side="both")


def test_another_default_dtype_does_not_matter():
    torch.set_default_dtype(torch.float64)
    try:
        (hand,) = source()(picture((RIGHT_ONE, RED)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert hand.side == "right"


def test_the_second_look_is_the_papers_crop_around_the_joints():
    pose = RectanglePose()
    source(pose, side="right")(picture((RIGHT_ONE, RED)), [RIGHT_ONE])
    first, second, *views = pose.looks
    assert len(views) == len(networks.SCALES)
    assert first.shape == second.shape == (4, 3, 128, 128)
    shown = (second[0, 0] > 0.78).nonzero().float()
    left, top, right, bottom = RIGHT_ONE
    side_px = 1.5 * max(right - left, bottom - top)
    mcp = joints_in(RIGHT_ONE, "right")[MIDDLE_MCP]
    expected = 64 + (np.array([top, left]) - mcp[::-1]) * 128 / side_px
    np.testing.assert_allclose(shown.amin(0), expected.clip(0), atol=2)  # a part lies beyond the crop


def test_beyond_the_image_a_crop_is_grey():
    pose = RectanglePose()
    source(pose)(picture(((0, 0, 100, 100), RED)))
    assert float(pose.looks[0][0, :, 0, 0].max()) == pytest.approx(BORDER_GREY / 255)


def test_a_palm_is_turned_into_the_wrist():
    (hand,) = source(RectanglePose("palm"))(picture((RIGHT_ONE, RED)))
    np.testing.assert_allclose(hand.joints2d_px, joints_in(RIGHT_ONE, "right"), atol=4)


def test_a_hand_whose_joints_are_unsure_is_not_reported():
    image = picture((RIGHT_ONE, RED))
    assert source(RectanglePose(peak=0.2))(image) == []
    assert len(source(RectanglePose(peak=0.5), min_confidence=0.4)(image)) == 1
    assert source(RectanglePose(peak=0.5), min_confidence=0.6)(image) == []


def test_a_peak_says_how_exact_a_joint_is():
    """By the definition: the mean of the maps of many places drawn about the joint has the peak that is inverted."""
    spread, ticks = 0.05, (np.arange(401) - 200) / 1000
    places = np.random.default_rng(0).normal(0, spread, (2000, 2))
    maps_x, maps_y = (np.exp(-(((ticks[:, None] - places[:, axis]) / SIGMA) ** 2)) for axis in (0, 1))
    peak = (maps_y @ maps_x.T / len(places)).max()
    (hand,) = source(RectanglePose(peak=peak))(picture((RIGHT_ONE, RED)))
    crop_px = 1.5 * 150
    assert hand.noise_px == pytest.approx(crop_px * np.hypot(spread, LEAST_NOISE), rel=0.05)
    np.testing.assert_allclose(hand.confidence, np.ones(21), atol=0.1)  # relative to the surest joint


def test_unsure_joints_count_as_much_less_as_their_variance_is_larger():
    pose = RectanglePose(peak=1.5)
    sure = pose._maps
    pose._maps = lambda image: sure(image).clamp(max=1) * torch.where(torch.arange(21) == 8, 0.5, 1.0)[:, None, None]
    (hand,) = source(pose)(picture((RIGHT_ONE, RED)))
    expected = np.ones(21)
    expected[8] = LEAST_NOISE**2 / (LEAST_NOISE**2 + SIGMA**2 / 2)
    np.testing.assert_allclose(hand.confidence, expected, rtol=1e-6)
    assert hand.noise_px == pytest.approx(1.5 * 150 * LEAST_NOISE, rel=0.02)


def test_a_picture_without_hands_gives_an_empty_list():
    pose = RectanglePose()
    assert source(pose)(picture()) == []
    assert [len(look) for look in pose.looks] == [2 * 4], "the whole picture, as either side's, in four turns"


@pytest.mark.parametrize(("colour", "side"), [(RED, "right"), (GREEN, "left")])
def test_where_the_locator_finds_none_the_whole_picture_is_looked_at(monkeypatch, colour, side):
    monkeypatch.setattr(networks, "locate", lambda *given, **options: [])
    pose = RectanglePose()
    (hand,) = source(pose)(picture((RIGHT_ONE, colour)))
    assert hand.side == side
    np.testing.assert_allclose(hand.joints2d_px, joints_in(RIGHT_ONE, side), atol=6)
    assert len(pose.looks) <= 2 + networks.CLOSER_LOOKS + len(networks.SCALES)


def test_where_the_locator_finds_something_else_the_whole_picture_is_looked_at_too(monkeypatch):
    elsewhere = [SimpleNamespace(box_px=np.array([400.0, 400.0, 440.0, 440.0]), side="left", score=0.9)]
    monkeypatch.setattr(networks, "locate", lambda *given, **options: elsewhere)
    (hand,) = source()(picture((RIGHT_ONE, RED)))
    np.testing.assert_allclose(hand.joints2d_px, joints_in(RIGHT_ONE, "right"), atol=6)


def test_looks_end_when_they_show_the_same():
    """The stand-in reads the same joints in any crop, so that the second crop is the third's."""
    pose = RectanglePose()
    source(pose)(picture((RIGHT_ONE, RED)))
    assert len(pose.looks) == 2 + len(networks.SCALES) < 1 + networks.CLOSER_LOOKS + len(networks.SCALES)


def test_the_most_hands_are_a_choice_and_the_surest_come_first():
    image = picture((RIGHT_ONE, RED), (LEFT_ONE, GREEN), ((20, 400, 60, 440), RED))
    scores = [hand.score for hand in source()(image)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert [hand.score for hand in source(max_hands=1)(image)] == scores[:1]


def test_one_hand_located_twice_counts_once(monkeypatch):
    monkeypatch.setattr(networks, "locate", lambda *given, **options: 2 * locate(*given, **options))
    assert len(source()(picture((RIGHT_ONE, RED)))) == 1


def test_boxes_say_where_to_look_and_give_the_order():
    image = picture((RIGHT_ONE, RED), (LEFT_ONE, GREEN))
    boxes = np.array([LEFT_ONE, (20, 400, 60, 460), RIGHT_ONE], dtype=float)
    first, second = source()(image, boxes)
    assert (first.side, second.side) == ("left", "right")
    np.testing.assert_allclose(first.joints2d_px, joints_in(LEFT_ONE, "left"), atol=2)
    np.testing.assert_allclose(second.joints2d_px, joints_in(RIGHT_ONE, "right"), atol=2)
    assert 0.85 < first.score <= 0.9, "the mean peak"


@pytest.mark.parametrize(("colour", "side", "rectangle"), [(RED, "right", RIGHT_ONE), (GREEN, "left", LEFT_ONE)])
def test_in_a_box_the_surer_joints_name_the_side(colour, side, rectangle):
    (hand,) = source()(picture((rectangle, colour)), np.array([rectangle], dtype=float))
    assert hand.side == side
    np.testing.assert_allclose(hand.joints2d_px, joints_in(rectangle, side), atol=2)


def test_a_box_may_reach_beyond_the_image():
    box = np.array([[-30.0, -30, 80, 90]])
    (hand,) = source()(picture(((0, 0, 80, 90), RED)), box)
    np.testing.assert_allclose(hand.joints2d_px, joints_in((0, 0, 80, 90), "right"), atol=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_hands": 0}, "max_hands"),
        ({"max_hands": True}, "max_hands"),
        ({"min_confidence": -0.1}, "min_confidence"),
        ({"min_confidence": float("nan")}, "min_confidence"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NetworkEvidence(**options)


# --- By name ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def packaged(monkeypatch) -> RectanglePose:
    """The stand-ins as the networks of the package."""
    pose = RectanglePose()
    monkeypatch.setattr("dhpe_fast.pretrained.locator", lambda device: torch.nn.Identity())
    monkeypatch.setattr("dhpe_fast.pretrained.dhpe", lambda device: pose)
    return pose


@pytest.fixture
def untrained(tmp_path, monkeypatch) -> None:
    """A package whose networks are small and have learnt nothing."""
    options = {"depth": 18, "image_size": 64, "pose2d": "unet", "pose2d_width": 0.25, "pose2d_input_size": 64}
    manifest = {}
    for name, spec in (("dhpe", options), ("locator", {"width": 8})):
        data = pretrained.packed(pretrained.blank(name, spec), spec)
        (tmp_path / f"{name}.pt").write_bytes(data)
        manifest[f"{name}.pt"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / pretrained.MANIFEST).write_text(json.dumps(manifest))
    monkeypatch.setattr(pretrained, "shipped", pretrained.WeightsFolder(tmp_path))


@pytest.fixture
def no_mediapipe(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    for shared in (sources._has_mediapipe, sources._shared_mediapipe):
        shared.cache_clear()


def test_a_bare_picture_is_fitted_without_mediapipe(packaged, no_mediapipe):
    """The job as a whole; the rectangle's joints are no hand's, so only its place is looked at."""
    (hand,) = dhpe_fast.fit(picture((RIGHT_ONE, RED)))
    assert hand.side == "right"
    np.testing.assert_allclose(hand.keypoints2d_px, joints_in(RIGHT_ONE, "right"), atol=2)
    assert dhpe_fast.fit(picture()) == []


def test_auto_prefers_mediapipe_and_networks_are_asked_for_by_name(packaged, monkeypatch):
    other = HandEvidence(joints_in(LEFT_ONE, "left"), np.ones(21), "left")
    sources._has_mediapipe.cache_clear()
    monkeypatch.setattr(sources, "_shared_mediapipe", lambda: lambda image, boxes: [other])
    image = picture((RIGHT_ONE, RED))
    assert [hand.side for hand in evidence_source("auto")(image)] == ["left"]
    assert [hand.side for hand in evidence_source("networks")(image)] == ["right"]
    sources._has_mediapipe.cache_clear()


def test_networks_that_have_learnt_nothing_find_nothing(untrained):
    """The real classes, from the files of a package to the answer."""
    image = picture((RIGHT_ONE, RED))
    assert evidence_source("networks")(image) == []
    assert evidence_source("networks")(image, [RIGHT_ONE]) == []


def test_weights_that_are_missing_are_named_with_the_remedy(tmp_path, monkeypatch, no_mediapipe):
    folder = pretrained.WeightsFolder(tmp_path, remedy=pretrained.REINSTALL)
    monkeypatch.setattr(pretrained, "shipped", folder)
    for name in ("auto", "networks"):
        with pytest.raises(pretrained.WeightsError, match=r"manifest\.json: cannot be read .*pip install --force-re"):
            dhpe_fast.fit(picture(), evidence=name)


@pytest.mark.parametrize(("colour", "side"), [(RED, "right"), (GREEN, "left")])
def test_the_silhouette_is_told_in_its_place(colour, side):
    left, top, right, bottom = 200, 100, 320, 280
    (hand,) = source(SilhouettePose())(picture(((left, top, right, bottom), colour)))
    assert hand.side == side
    rows, columns = np.mgrid[0:480, 0:640] + 0.5
    shares = hand.silhouette.at(np.stack([columns, rows], axis=-1))
    inside, outside = shares[top + 4 : bottom - 4, left + 4 : right - 4], shares.copy()
    outside[top - 4 : bottom + 4, left - 4 : right + 4] = 0
    assert inside.min() > 0.9
    assert outside.max() < 0.1


def test_without_it_there_is_no_silhouette():
    (hand,) = source()(picture(((200, 100, 320, 280), RED)))
    assert hand.silhouette is None


def test_fit_looks_for_the_side_that_the_caller_knows(packaged, no_mediapipe):
    image = picture((RIGHT_ONE, RED))
    assert [hand.side for hand in dhpe_fast.fit(image, hand="right")] == ["right"]
    assert dhpe_fast.fit(image, hand="left") == [] or dhpe_fast.fit(image, hand="left")[0].side == "left"


def test_several_scales_agree_on_a_map_that_is_the_same_in_all():
    """A network that sees bright pixels: the mean over the scales is the picture, and 1 where all is bright."""
    bright = SimpleNamespace(image_size=32, spec=lambda: {"pose2d_silhouette": True})
    bright.pose2d = SimpleNamespace(
        heatmaps_and_silhouette=lambda images: (images[:, :1].expand(-1, 21, -1, -1), 40 * (images[:, 0] - 0.5))
    )
    wide = torch.zeros(1, 3, 40, 40)
    wide[:, :, 12:20, 16:28] = 1  # in the crop, the middle 32 x 32: rows 8 to 16, columns 12 to 24
    seen = networks.seen_in_scales(bright, wide)
    assert seen.heatmaps.shape == (1, 21, 32, 32)
    expected = torch.zeros(32, 32)
    expected[8:16, 12:24] = 1
    inner = torch.nn.functional.avg_pool2d(expected[None], 5, 1, 2)[0]  # 1 deep inside, 0 far outside
    for maps in (seen.heatmaps[0, 0], seen.silhouettes[0]):
        assert maps[inner == 1].min() > 0.99
        assert maps[inner == 0].max() < 0.01
    everywhere = networks.seen_in_scales(bright, torch.ones(1, 3, 40, 40))
    torch.testing.assert_close(everywhere.heatmaps, torch.ones(1, 21, 32, 32))
