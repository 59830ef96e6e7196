"""Crops against pictures with a dot at each joint: whatever was turned, moved or mirrored, labels are at the dots."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import STD, dots, hand_at, pixels, rows, write_picture

from dhpe_fast.data import CropAugmentation, DatasetError, Sample, make_crop
from dhpe_fast.data.augmentation import draw_square_jitter
from dhpe_fast.data.crop import BORDER_GREY, joints_in_crop
from dhpe_fast.data.normalize import Square, denormalize
from dhpe_fast.hand import CropBox, Pinhole

INTRINSICS = (520.0, 500.0, 150.0, 130.0)
WIDTH, HEIGHT = 320, 240
ANY_SQUARE = CropAugmentation(center=0.15, scale=1.4, rotation=math.pi)
PALM_ROWS = ["palm", *STD[1:]]


def write_sample(folder: Path, seed: int = 0, side: str = "right", **changed) -> Sample:
    """A hand whose dots are drawn one by one, so that each can be found; here the one in the image."""
    hand = hand_at(seed, (0.01, -0.005, 0.75), mirrored=side == "left")
    joints_m = rows(hand, STD)
    places = pixels(joints_m, *INTRINSICS)
    write_picture(folder / "image.png", dots(places, WIDTH, HEIGHT))
    fields = {
        "name": "dots/0",
        "image_file": folder / "image.png",
        "side": side,
        "joints_m": joints_m,
        "joints2d_px": places,
        "visible": np.ones(21, bool),
        "camera": Pinhole(*INTRINSICS),
        "joint0": "wrist",
    }
    return Sample(**{**fields, **changed})


def only_dot(sample: Sample, joint: int) -> None:
    """Red, so that the grey beyond the border does not matter."""
    picture = dots(sample.joints2d_px[joint : joint + 1], WIDTH, HEIGHT)
    write_picture(sample.image_file, picture * np.uint8([0, 0, 1]))


def brightest_place(image: np.ndarray) -> np.ndarray:
    """Centre of mass of what is redder than half of the reddest pixel; x, y with centres at half numbers."""
    red = image[..., 0] - image[..., -1].astype(float)
    weight = np.where(red > 0.5 * red.max(), red, 0)
    y, x = np.mgrid[: len(red), : len(red)] + 0.5
    return np.array(((x * weight).sum(), (y * weight).sum())) / weight.sum()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("augmentation", [CropAugmentation(), ANY_SQUARE], ids=["paper", "any"])
@pytest.mark.parametrize("size", [224, 60])
def test_labels_are_at_the_dots(tmp_path, side, augmentation, size):
    sample = write_sample(tmp_path, seed=3, side=side)
    found = 0
    for seed, joint in enumerate((0, 4, 5, 9, 12, 16, 20)):
        only_dot(sample, joint)
        item = make_crop(sample, size, np.random.default_rng(seed), augmentation, joint0="wrist")
        label = (item.joints_crop[joint, :2] + 1) / 2 * size
        if (label > 4).all() and (label < size - 4).all():
            np.testing.assert_allclose(brightest_place(item.image), label, atol=0.35 if size == 224 else 0.5)
            found += 1
        assert item.mirrored == (side == "left")
    assert found >= 5


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_alone_need_no_picture(tmp_path, side):
    sample = write_sample(tmp_path, seed=2, side=side)
    expected = make_crop(sample, 32).joints_crop
    sample.image_file.unlink()
    np.testing.assert_allclose(joints_in_crop(sample), expected, atol=1e-12)
    assert np.abs(joints_in_crop(sample, "wrist") - expected)[0].max() > 0.1


def test_the_paper_crop_by_hand(tmp_path):
    sample = write_sample(tmp_path)
    item = make_crop(sample, 224, joint0="palm")
    hand = hand_at(0, (0.01, -0.005, 0.75))
    joints_m = rows(hand, PALM_ROWS)
    places = pixels(joints_m, *INTRINSICS)
    side_px = 1.5 * (places.max(0) - places.min(0)).max()
    np.testing.assert_allclose(item.center_px, places[9], atol=1e-9)
    assert item.size_px == pytest.approx(side_px)
    assert item.angle == 0
    np.testing.assert_allclose(item.joints_crop[:, :2], (places - places[9]) / (side_px / 2), atol=1e-9)
    # Eq. 8: one unit of z is half of the width of the square at the root's depth.
    unit_m = side_px / 2 * 0.75 / 510
    np.testing.assert_allclose(item.joints_crop[:, 2], (joints_m[:, 2] - 0.75) / unit_m, atol=1e-9)
    assert item.root_depth_m == pytest.approx(0.75)
    assert item.valid.all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_square_leads_back_to_the_camera(tmp_path, side):
    sample = write_sample(tmp_path, 1, side)
    item = make_crop(sample, 64, np.random.default_rng(0), ANY_SQUARE, joint0="wrist")
    square = Square(*(torch.tensor(v, dtype=torch.float64) for v in (item.center_px, item.size_px, item.angle)))
    back = denormalize(
        torch.from_numpy(item.joints_crop), square, torch.from_numpy(item.camera), torch.tensor(item.root_depth_m)
    )
    mirror = (-1, 1, 1) if side == "left" else (1, 1, 1)
    np.testing.assert_allclose(back, sample.joints_m * mirror, atol=1e-7)
    assert item.camera[2] == (WIDTH - 150 if side == "left" else 150)


def test_a_left_hand_is_the_mirror_image_of_a_right_one(tmp_path):
    right = write_sample(tmp_path, 2)
    picture = right.read_image()
    write_picture(tmp_path / "mirrored.png", picture[:, ::-1])
    left = replace(
        right,
        image_file=tmp_path / "mirrored.png",
        side="left",
        joints_m=right.joints_m * (-1, 1, 1),
        joints2d_px=right.joints2d_px * (-1, 1) + (WIDTH, 0),
        camera=Pinhole(520, 500, WIDTH - 150.0, 130),
    )
    one, other = (make_crop(s, 100, np.random.default_rng(1), ANY_SQUARE) for s in (right, left))
    np.testing.assert_allclose(other.joints_crop, one.joints_crop, atol=1e-9)
    assert np.abs(other.image.astype(int) - one.image).max() <= 1
    np.testing.assert_allclose(other.center_px, one.center_px)


def test_an_angle_turns_the_square_clockwise(tmp_path):
    """A quarter turn: the crop's x axis points down in the image, so what was below the centre is to its right."""
    sample = write_sample(tmp_path, crop=CropBox((160, 120), 100))
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[150:154, 158:162, 2] = 255  # red, below the centre
    write_picture(sample.image_file, picture)
    turned = make_crop(sample, 100, FixedRng(angle=0.5), CropAugmentation(rotation=math.pi))
    assert turned.angle == pytest.approx(math.pi / 2)
    np.testing.assert_allclose(brightest_place(turned.image), (50 + 32, 50), atol=0.1)


class FixedRng:
    """Draws the same square each time."""

    def __init__(self, x=0.0, y=0.0, log_scale=0.0, angle=0.0):
        self.drawn = np.array((x, y, log_scale, angle))

    def uniform(self, low, high, size):
        return self.drawn


def test_moves_are_in_shares_of_the_side(tmp_path):
    sample = write_sample(tmp_path, crop=CropBox((160, 120), 100))
    item = make_crop(sample, 50, FixedRng(1, -0.5, 1), CropAugmentation(center=0.1, scale=1.25))
    assert item.center_px == (170, 115)
    assert item.size_px == pytest.approx(125)


def test_a_square_that_is_laid_wrongly_moves_farther_than_any_other():
    """By up to half its side, and up to twice as large or small; it turns as others do."""
    augmentation = CropAugmentation(center=0.05, scale=1.1, rotation=0.3, astray=1.0)
    rng, same = np.random.default_rng(0), np.random.default_rng(0)
    farthest_px = 0.0
    for _ in range(50):
        jitter = draw_square_jitter(augmentation, rng)
        x, y, size, angle = same.uniform(-1, 1, 4)
        same.random()
        assert jitter.shift == pytest.approx((x / 2, y / 2))
        assert jitter.scale == pytest.approx(2**size)
        assert jitter.angle == pytest.approx(0.3 * angle)
        farthest_px = max(farthest_px, *map(abs, jitter.shift))
    assert farthest_px > 0.45


def test_so_many_squares_are_laid_wrongly_as_asked():
    rng = np.random.default_rng(0)
    jitters = [draw_square_jitter(CropAugmentation(astray=0.25), rng) for _ in range(1000)]
    moved = [jitter.shift != (0, 0) for jitter in jitters]
    assert [jitter.scale != 1 for jitter in jitters] == moved
    assert sum(moved) == pytest.approx(250, abs=40)  # three standard deviations


def test_where_none_is_laid_wrongly_the_random_numbers_are_as_they_were():
    rng, same = np.random.default_rng(0), np.random.default_rng(0)
    draw_square_jitter(ANY_SQUARE, rng)
    same.uniform(-1, 1, 4)
    assert rng.random() == same.random()


def test_beyond_the_image_is_grey_and_no_hand(tmp_path):
    mask = np.full((HEIGHT, WIDTH), 20, np.uint8)
    write_picture(tmp_path / "mask.png", mask)
    sample = write_sample(tmp_path, crop=CropBox((0, 120), 100), mask_file=tmp_path / "mask.png", mask_ids=(18, 33))
    item = make_crop(sample, 50)
    assert (item.image[:, :24] == BORDER_GREY).all()
    assert not item.mask[:, :24].any()
    assert (item.mask[:, 26:] == 1).all()
    assert item.mask.dtype == np.uint8


@pytest.mark.parametrize("side", ["right", "left"])
def test_masks_go_with_the_labels(tmp_path, side):
    """A disc of the mask about the middle MCP is about its label."""
    sample = write_sample(tmp_path, 4, side)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = np.hypot(x - sample.joints2d_px[12, 0], y - sample.joints2d_px[12, 1]) < 6
    write_picture(tmp_path / "mask.png", disc.astype(np.uint8) * 255)
    sample = write_sample(tmp_path, 4, side, mask_file=tmp_path / "mask.png")
    item = make_crop(sample, 128, np.random.default_rng(3), ANY_SQUARE)
    label = (item.joints_crop[12, :2] + 1) / 2 * 128
    np.testing.assert_allclose(np.argwhere(item.mask).mean(0)[::-1] + 0.5, label, atol=0.5)
    area_px = math.pi * (6 * 128 / item.size_px) ** 2
    assert item.mask.sum() == pytest.approx(area_px, rel=0.05)


def test_strong_shrinking_averages(tmp_path):
    """Stripes of one pixel become their mean."""
    sample = write_sample(tmp_path, crop=CropBox((160, 120), 200))
    stripes = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stripes[:, ::2] = 255
    write_picture(sample.image_file, stripes)
    item = make_crop(sample, 24, np.random.default_rng(0), CropAugmentation(rotation=1.0))
    assert np.abs(item.image.astype(float) - 127.5).max() < 12


def test_joints_that_are_not_annotated_are_not_valid(tmp_path):
    tips = [4, 8, 12, 16, 20]
    sample = write_sample(tmp_path, crop=CropBox((160, 120), 150))
    joints_m = np.full((21, 3), np.nan)
    joints_m[tips] = sample.joints_m[tips]
    sample = write_sample(tmp_path, crop=sample.crop, joints_m=joints_m, visible=np.arange(21) % 8 == 0)
    item = make_crop(sample, 64)
    assert np.flatnonzero(item.valid).tolist() == tips
    assert np.flatnonzero(item.visible).tolist() == [8, 16], "visible only where the place is known"
    assert item.root_depth_m == pytest.approx(joints_m[tips, 2].mean())
    expected = (pixels(joints_m[tips], *INTRINSICS) - (160, 120)) / 75
    np.testing.assert_allclose(item.joints_crop[tips, :2], expected, atol=1e-9)


def test_joint_0_and_its_visibility_follow_the_option(tmp_path):
    visible = np.ones(21, bool)
    visible[0] = False
    sample = write_sample(tmp_path, visible=visible)
    wrist, palm = (make_crop(sample, 32, joint0=joint0) for joint0 in ("wrist", "palm"))
    assert (wrist.visible[0], palm.visible[0]) == (False, True)
    np.testing.assert_allclose(palm.joints_m[0], (sample.joints_m[0] + sample.joints_m[9]) / 2)
    stb = write_sample(tmp_path, joint0="palm")
    np.testing.assert_allclose(make_crop(stb, 32).joints_m, stb.joints_m)
    middle = make_crop(stb, 32, joint0="wrist", wrist_rule="middle").joints_m[0]
    np.testing.assert_allclose(middle, stb.joints_m[9] + 2.2 * (stb.joints_m[0] - stb.joints_m[9]))


def test_without_labels_there_must_be_a_square(tmp_path):
    nothing = np.full((21, 3), np.nan)
    sample = write_sample(tmp_path, joints_m=nothing)
    with pytest.raises(DatasetError, match="dots/0: has no annotated middle MCP"):
        make_crop(sample, 32)
    item = make_crop(write_sample(tmp_path, joints_m=nothing, crop=CropBox((160, 120), 100)), 32)
    assert not item.valid.any()
    assert math.isnan(item.root_depth_m)


def test_what_does_not_fit_is_named(tmp_path):
    write_picture(tmp_path / "mask.png", np.zeros((5, 7), np.uint8))
    sample = write_sample(tmp_path, mask_file=tmp_path / "mask.png")
    with pytest.raises(DatasetError, match=r"mask\.png: is 7 x 5 pixels .* but .*image\.png 320 x 240"):
        make_crop(sample, 32)
    distorted = write_sample(tmp_path, camera=Pinhole(500, 500, 160, 120, (0.1, 0, 0, 0, 0)))
    with pytest.raises(ValueError, match="camera of dots/0: has lens distortion"):
        make_crop(distorted, 32)
    with pytest.raises(ValueError, match="size: expected a whole number of pixels >= 1, got 0"):
        make_crop(write_sample(tmp_path), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"center": -0.1}, "center: expected a finite number >= 0, got -0.1"),
        ({"scale": 0.8}, "scale: expected a factor >= 1"),
        ({"rotation": math.nan}, "rotation: expected a finite"),
        ({"brightness": 1.5}, "brightness: expected at most 1"),
        ({"astray": 1.5}, r"astray: expected at most 1, got 1\.5"),
        ({"occluders": 1.5}, "occluders: expected a whole number"),
        ({"occluder_size": (0.5, 0.1)}, "occluder_size: expected 0 < low <= high"),
    ],
)
def test_wrong_ranges_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"CropAugmentation.{message}"):
        CropAugmentation(**arguments)
