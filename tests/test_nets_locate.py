"""Hands in whole photographs, with a network that knows its answer: where a red and green flag is."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from dhpe_fast import pretrained
from dhpe_fast.boxes import box_iou
from dhpe_fast.data import render_hands
from dhpe_fast.nets import locate as looks
from dhpe_fast.nets.locate import locate, pyramid_sizes
from dhpe_fast.nets.locator import REFERENCE_PX, STRIDE, LocatorMaps


class Flags(nn.Module):
    """Finds one flag of a red and a green half, exactly: red first is a right hand, green first a left one."""

    def __init__(self, least_px: float = 12.0) -> None:
        super().__init__()
        self.least_px = least_px
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> LocatorMaps:
        batch, _, height, width = images.shape
        one, two = (torch.zeros(batch, channels, height // STRIDE, width // STRIDE) for channels in (1, 2))
        maps = LocatorMaps(one - 10, one, two, two.clone())
        for k, (red, green, _) in enumerate(images):
            coloured = (red - green).abs() > 0.5
            if not coloured.any():
                continue
            rows, columns = (torch.nonzero(coloured.any(axis)).flatten() for axis in (1, 0))
            low = torch.stack([columns[0], rows[0]]).float()
            size = torch.stack([columns[-1], rows[-1]]).float() + 1 - low
            if size.max() < self.least_px:
                continue
            x_red = torch.nonzero((red - green) > 0.5)[:, 1].float().mean()
            left = 1.0 if x_red > low[0] + size[0] / 2 else -1.0
            centre = (low + size / 2) / STRIDE
            for y, x in itertools.product(range(one.shape[2]), range(one.shape[3])):
                offset = centre - torch.tensor((x + 0.5, y + 0.5))
                if offset.abs().max() <= 1:  # as wide as the peaks of a network
                    maps.hand[k, 0, y, x], maps.left[k, 0, y, x] = 3.0 - float(offset.square().sum()), left
                    maps.offset[k, :, y, x] = offset
                    maps.log_size[k, :, y, x] = (size / REFERENCE_PX).log()
        return maps


def photograph(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Grey with a flag at left, top, right, bottom."""
    image = np.full((height, width, 3), 128, np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left : (left + right) // 2] = (255, 0, 0)
    image[top:bottom, (left + right) // 2 : right] = (0, 255, 0)
    return image


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (200, 200), (131, 97), (1080, 1920)])
def test_the_box_is_in_pixels_of_the_photograph(size):
    box = tuple(int(share * side) for share, side in zip((0.35, 0.4, 0.55, 0.65), (*size[::-1],) * 2, strict=True))
    [hand] = locate(Flags(), photograph(*size, box))
    span = max(box[2] - box[0], box[3] - box[1])
    assert hand.side == "right"
    assert hand.box_px == pytest.approx(box, abs=0.03 * span)


def test_the_mirrored_photograph_has_the_mirrored_hand_of_the_other_side():
    image = photograph(300, 410, (50, 90, 130, 170))
    [hand] = locate(Flags(), image)
    [mirrored] = locate(Flags(), np.ascontiguousarray(image[:, ::-1]))
    left, top, right, bottom = hand.box_px
    assert (hand.side, mirrored.side) == ("right", "left")
    assert hand.side_score == pytest.approx(mirrored.side_score) == pytest.approx(1 / (1 + math.exp(-1)))
    assert mirrored.box_px == pytest.approx((410 - right, top, 410 - left, bottom), abs=0.2)
    assert mirrored.score == pytest.approx(hand.score)


def test_what_is_small_in_the_photograph_is_found_at_a_finer_level():
    image = photograph(720, 1280, (700, 300, 740, 330))  # 5 of 160 pixels, 20 of 640
    [hand] = locate(Flags(), image)
    assert hand.box_px == pytest.approx((700, 300, 740, 330), abs=1.5)


def cut_of_the_whole(image: np.ndarray, corner_px: np.ndarray, side_px: float) -> np.ndarray:
    """The closer look at a square, from the photograph as a whole."""
    scale = 160 / side_px
    if scale < 0.5:
        size = tuple(round(2 * scale * side) for side in image.shape[1::-1])
        corner_px, scale = corner_px * size / image.shape[1::-1], scale * np.array(image.shape[1::-1]) / size
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    linear = np.broadcast_to(scale, 2)
    affine = np.column_stack([np.diag(linear), linear * (0.5 - corner_px) - 0.5])
    return cv2.warpAffine(image, affine, (160, 160))


@pytest.mark.parametrize("corner_px", [(210.3, 190.7), (-70.4, 33.3), (560.5, 480.2), (-400.0, -300.0), (2000.0, 90.0)])
@pytest.mark.parametrize("side_px", [40.7, 250.0, 330.0, 700.0])
def test_a_closer_look_is_that_at_the_whole_photograph(corner_px, side_px):
    """Inside of it, across its borders and beyond; of noise where no pixels are averaged, of shapes where they are."""
    image = np.random.default_rng(0).integers(0, 255, (600, 800, 3)).astype(np.float32)
    if side_px > 320:
        image = np.clip(128 + 15 * (cv2.GaussianBlur(image, (0, 0), 12) - 127), 0, 255)
    image = image.astype(np.uint8)
    found, expected = (of(image, np.array(corner_px), side_px) for of in (looks._cut, cut_of_the_whole))
    assert found.shape == (160, 160, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert ((found == 0).all(2) == (expected == 0).all(2)).all()


def test_photographs_of_any_length_are_looked_at():
    """OpenCV resamples none of more than 32,766 pixels a side."""
    image = photograph(1400, 33_000, (16_000, 200, 16_900, 1_100))
    [hand] = locate(Flags(10), image)
    assert hand.box_px == pytest.approx((16_000, 200, 16_900, 1_100), abs=30)


def test_a_photograph_without_hands_has_none():
    assert locate(Flags(), np.full((240, 320, 3), 128, np.uint8)) == []


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (0, 0)])
def test_a_photograph_of_a_few_pixels_shows_no_hand(size):
    assert locate(Flags(1), np.zeros((*size, 3), np.uint8)) == []


@pytest.mark.parametrize("size", [(8, 8), (8, 900), (33, 20)])
def test_small_and_narrow_photographs_are_looked_at(size):
    assert locate(Flags(), np.full((*size, 3), 90, np.uint8)) == []


def test_a_score_below_the_threshold_is_no_hand():
    image = photograph(240, 320, (100, 80, 180, 150))
    [hand] = locate(Flags(), image, threshold=0.5)
    assert locate(Flags(), image, threshold=hand.score + 0.01) == []
    assert locate(Flags(), image, max_hands=0) == []


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), [(120, 160), (240, 320), (480, 640)]),
        ((3000, 4000), [(120, 160), (240, 320), (480, 640)]),
        ((224, 224), [(160, 160)]),
        ((100, 50), [(100, 50)]),
        ((2, 2000), [(2, 160), (2, 320), (2, 640)]),
    ],
)
def test_the_pyramid_scales_down_only(size, expected):
    assert pyramid_sizes(*size) == expected


@pytest.mark.parametrize("image", [np.zeros((32, 32, 3), np.float32), "photo.jpg"])
def test_other_types_than_bytes_are_refused(image):
    with pytest.raises(TypeError, match="image_rgb"):
        locate(Flags(), image)


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 4)])
def test_other_shapes_than_rgb_are_refused(shape):
    with pytest.raises(ValueError, match="image_rgb"):
        locate(Flags(), np.zeros(shape, np.uint8))


def test_a_negative_number_of_hands_is_refused():
    with pytest.raises(ValueError, match="max_hands"):
        locate(Flags(), np.zeros((32, 32, 3), np.uint8), max_hands=-1)


def test_the_weights_that_ship_find_rendered_hands():
    if not pretrained.available("locator"):
        pytest.skip("the package has no weights of the locator yet")
    hands = render_hands(8, seed=5, image_size=(240, 320), pictures=True)
    found = 0
    for hand in hands:
        box = torch.cat([hand.joints2d_px.amin(0), hand.joints2d_px.amax(0)]).numpy()
        located = locate(pretrained.locator(), hand.image, max_hands=1, threshold=0.0)
        found += any(box_iou(one.box_px, box) > 0.5 for one in located)
    assert found >= 6
