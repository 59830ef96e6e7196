"""Pictures of people for the locator: layers, how they are laid over a picture, and where the hands are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dhpe_fast.data import DatasetError, hand_layers, whole_pictures
from dhpe_fast.data.camera_effects import photographed
from dhpe_fast.data.collage import lay, moved, patch, rod, similarity
from dhpe_fast.data.hand_layers import KINDS, Layer, draw_layer, read_layers, write_layers
from dhpe_fast.data.thing_meshes import random_thing
from dhpe_fast.data.whole_pictures import LabelledPicture, WholePictures, turned


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    """Two hands, and one of all other kinds."""
    hands = [draw_layer(0, "training", number) for number in range(2)]
    things: dict[str, Layer] = {}
    for number in range(5, 400, 6):
        layer = draw_layer(0, "training", number)
        things.setdefault(layer.kind, layer)
        if len(things) == 4:
            break
    return hands + list(things.values())


# --- Layers -------------------------------------------------------------------------------------------------------


def test_a_layer_shows_its_hand_where_its_joints_are(layers):
    for hand in layers[:2]:
        column, row = np.floor(hand.joints_px).astype(int).T
        assert (hand.rgba[row, column, 3] > 200).mean() > 0.9
        assert 60 < np.ptp(hand.joints_px, axis=0).max() < 113  # the mesh spans 112
        height, width = hand.rgba.shape[:2]
        assert (hand.joints_px >= 0).all()
        assert (hand.joints_px < (width, height)).all()


def test_a_layer_that_would_be_too_large_is_drawn_smaller_and_whole(layers, monkeypatch):
    monkeypatch.setattr(hand_layers, "_MAX_SIDE_PX", 64)
    for number, whole in enumerate(layers[:2]):
        hand = draw_layer(0, "training", number)
        height, width = hand.rgba.shape[:2]
        assert 60 < max(height, width) <= 64
        assert (hand.joints_px >= 0).all()
        assert (hand.joints_px < (width, height)).all()
        smaller = hand.scale_px_per_m / whole.scale_px_per_m
        assert smaller < 0.9
        np.testing.assert_allclose(np.ptp(hand.joints_px, 0), smaller * np.ptp(whole.joints_px, 0), rtol=1e-4)
        drawn, expected = hand.rgba[..., 3].mean() * height * width, whole.rgba[..., 3].astype(float).sum()
        assert drawn == pytest.approx(smaller**2 * expected, rel=0.03)


def test_every_sixth_layer_is_no_hand(layers):
    assert {layer.kind for layer in layers[:2]} <= {"right", "left"}
    assert {layer.kind for layer in layers[2:]} == set(KINDS[2:])
    assert all(np.isnan(layer.joints_px).all() for layer in layers[2:])


def test_layers_read_back_as_drawn(tmp_path, layers):
    write_layers(tmp_path / "new", 2, 1, seed=0, workers=1)
    again = read_layers(tmp_path / "new", "training", seed=0, count=2)
    for layer, drawn in zip(again, layers, strict=False):
        assert layer.kind == drawn.kind
        np.testing.assert_array_equal(layer.rgba, drawn.rgba)
        np.testing.assert_array_equal(layer.joints_px, drawn.joints_px)
        np.testing.assert_array_equal(layer.elbow_px, drawn.elbow_px)
    held_out = read_layers(tmp_path / "new", "evaluation", seed=0, count=1)[0]
    assert held_out.rgba.shape != layers[0].rgba.shape or (held_out.rgba != layers[0].rgba).any()


def test_layers_of_another_recipe_are_refused(tmp_path):
    write_layers(tmp_path, 1, 0, seed=0, workers=1)
    with pytest.raises(DatasetError, match="1 layers of seed 0, expected 2 of seed 0"):
        read_layers(tmp_path, "training", seed=0, count=2)
    (tmp_path / "training.npz").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match="cannot be read as drawn layers"):
        read_layers(tmp_path, "training", seed=0, count=1)


def test_layers_of_another_version_of_the_generator_are_refused(tmp_path, monkeypatch):
    write_layers(tmp_path, 1, 0, seed=0, workers=1)
    monkeypatch.setattr(hand_layers, "GENERATOR_VERSION", 99)
    with pytest.raises(DatasetError, match=r"version \d of the generator, expected 99; remove the file to draw"):
        read_layers(tmp_path, "training", seed=0, count=1)


def test_a_negative_number_of_layers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="n_training"):
        write_layers(tmp_path, -1, 0)


def test_things_are_closed_meshes_with_outward_faces():
    for seed in range(8):
        _, mesh = random_thing(np.random.default_rng(seed))
        a, b, c = mesh.verts_m[mesh.faces].double().unbind(1)
        volume_m3 = float((a * b.cross(c, dim=1)).sum() / 6)
        assert 1e-7 < volume_m3 < 0.02
        assert mesh.colors.min() > 0
        assert mesh.colors.max() <= 1


# --- Collage ------------------------------------------------------------------------------------------------------


def test_a_layer_laid_without_scaling_keeps_its_pixels():
    rng = np.random.default_rng(0)
    rgba = np.concatenate([rng.integers(0, 255, (5, 7, 3)), np.full((5, 7, 1), 255)], axis=2).astype(np.uint8)
    picture, owner = np.zeros((20, 30, 3), np.float32), np.full((20, 30), -1)
    lay(picture, rgba, similarity((0, 0), (12, 4), 1.0, 0.0, False), owner, 3)
    np.testing.assert_allclose(picture[4:9, 12:19], rgba[..., :3] / 255, atol=1e-3)
    assert (owner == 3).sum() == 35
    assert (owner[4:9, 12:19] == 3).all()
    assert picture.sum() == pytest.approx(rgba[..., :3].sum() / 255, rel=1e-4)


def test_a_layer_partly_outside_is_cut():
    picture = np.zeros((10, 10, 3), np.float32)
    lay(picture, np.full((6, 6, 4), 255, np.uint8), similarity((0, 0), (-3, 8), 1.0, 0.0, False))
    assert picture[..., 0].sum() == 3 * 2
    lay(picture, np.full((6, 6, 4), 255, np.uint8), similarity((0, 0), (50, 50), 1.0, 0.0, False))
    assert picture[..., 0].sum() == 3 * 2


@pytest.mark.parametrize("scale", [0.25, 0.9, 2.5])
def test_a_scaled_turned_mirrored_layer_lies_where_its_points_do(scale):
    rgba = np.zeros((80, 120, 4), np.uint8)
    rgba[20:32, 90:102] = 255  # a square about (96, 26)
    picture = np.zeros((300, 300, 3), np.float32)
    affine = similarity((60, 40), (150, 140), scale, 0.7, True)
    lay(picture, rgba, affine)
    rows, columns = np.nonzero(picture[..., 0] > 0.3)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(moved(np.array((96.0, 26.0)), affine), abs=0.6)
    assert moved(np.array((60.0, 40.0)), affine) == pytest.approx((150, 140))


def test_a_rod_covers_its_line_and_hides_what_is_behind():
    picture, owner = np.zeros((40, 60, 3), np.float32), np.full((40, 60), 5)
    rod(picture, np.array(((10.0, 20.0), (50.0, 20.0))), (4.0, 4.0), np.array((1.0, 0.5, 0.0)), 0.0, owner)
    assert (owner[17:23, 10:50] == -1).all()
    assert (owner[:15] == 5).all()
    assert (owner[25:] == 5).all()
    assert (picture[20, 10:50, 0] > 0.5).all()
    assert (picture[..., 2] == 0).all()


def test_a_patch_is_cut_from_the_other_picture():
    picture, other = np.zeros((40, 40, 3), np.float32), np.ones((40, 40, 3), np.float32)
    patch(picture, np.array(((10, 10), (30, 10), (30, 30), (10, 30))), other)
    assert picture[13:27, 13:27].min() > 0.95
    assert picture[:7].max() < 0.02


def test_a_camera_changes_looks_and_moves_nothing():
    """The middle of a bright disc stays where it is, whatever is done."""
    picture = np.full((96, 96, 3), 0.1, np.float32)
    cv2.circle(picture, (60, 40), 14, (0.9, 0.9, 0.9), cv2.FILLED)
    for seed in range(30):
        image = photographed(picture, np.random.default_rng(seed)).astype(float).mean(2)[20:76, 20:76]
        weight = np.clip(image - (image.min() + image.max()) / 2, 0, None)
        y, x = np.mgrid[20:76, 20:76]
        centre = ((weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum())
        assert centre == pytest.approx((60, 40), abs=2.0)


# --- Pictures -----------------------------------------------------------------------------------------------------


def test_a_picture_depends_on_its_number_only(layers):
    first, again = (WholePictures(layers, "training", seed=3) for _ in range(2))
    first[0]
    for name in ("image", "boxes_px", "is_left", "counts"):
        np.testing.assert_array_equal(getattr(first[5], name), getattr(again[5], name))
    assert (first[6].image != first[5].image).any()
    held_out = WholePictures(layers, "evaluation", seed=3)
    assert (held_out[5].image != first[5].image).any()


def test_pictures_have_no_hand_one_or_two_of_either_side_and_any_size(layers):
    pictures = WholePictures(layers, "training", size_px=(96, 128))
    drawn = [pictures[number] for number in range(60)]
    assert all(picture.image.shape == (96, 128, 3) and picture.image.dtype == np.uint8 for picture in drawn)
    assert {len(picture.boxes_px) for picture in drawn} == {0, 1, 2}
    lefts = np.concatenate([picture.is_left for picture in drawn])
    assert 0.25 < lefts.mean() < 0.75
    spans = np.concatenate([picture.boxes_px[:, 2:] - picture.boxes_px[:, :2] for picture in drawn]).max(1) / 96
    counts = np.concatenate([picture.counts for picture in drawn])
    assert spans[counts].min() >= 0.09
    assert spans[counts].max() <= 0.85
    assert (~counts).any()


def test_a_hand_that_fills_the_picture_has_no_box_but_is_told(layers, monkeypatch):
    monkeypatch.setattr(whole_pictures, "HANDS", (0.0, 1.0, 0.0))
    monkeypatch.setattr(whole_pictures, "CLOSE_UP", 0.0)
    for span, unlabelled in ((1.2, False), (1.5, True)):
        monkeypatch.setattr(whole_pictures, "SPAN", (span, span + 0.01))
        picture = WholePictures(layers, "training", size_px=(64, 64))[0]
        assert (picture.has_unlabelled, len(picture.boxes_px)) == (unlabelled, 1 - unlabelled)
        assert turned(picture, 3).has_unlabelled == unlabelled


def test_a_hand_lies_in_its_box(layers, monkeypatch):
    """With nothing but one hand on a plain ground, what differs from the ground is about the box."""
    for name in ("_PERSON", "_THING", "_HELD", "_MORE_ARMS"):
        monkeypatch.setattr(whole_pictures, name, 0.0)
    monkeypatch.setattr(whole_pictures, "_PLAIN", 1.0)
    monkeypatch.setattr(whole_pictures, "HANDS", (0.0, 1.0, 0.0))
    monkeypatch.setattr(whole_pictures, "CLOSE_UP", 1.0)
    monkeypatch.setattr(whole_pictures, "photographed", lambda picture, rng: picture)
    monkeypatch.setattr(whole_pictures, "shadow", lambda *arguments: None)
    for number in range(6):
        picture = WholePictures(layers, "training")[number]
        ground = np.median(picture.image.reshape(160, -1, 3), axis=1, keepdims=True)
        is_hand = np.abs(picture.image - ground).max(2) > 0.1
        left, top, right, bottom = np.rint(picture.boxes_px[0]).astype(int)
        inside = is_hand[top:bottom, left:right]
        assert inside.mean() > 0.3
        assert inside[:, : inside.shape[1] // 3].any()
        assert inside[:, -inside.shape[1] // 3 :].any()


@pytest.mark.parametrize("symmetry", range(8))
def test_a_turned_picture_has_its_boxes_turned(symmetry):
    image = np.zeros((40, 40, 3), np.uint8)
    image[5:12, 20:36] = 200
    box = np.array([(20, 5, 36, 12)], np.float32)
    picture = LabelledPicture(image, box, np.array([False]), np.array([True]))
    result = turned(picture, symmetry)
    left, top, right, bottom = result.boxes_px[0].astype(int)
    assert (result.image[top:bottom, left:right] == 200).all()
    assert (result.image == 200).sum() == (image == 200).sum()
    assert result.is_left.tolist() == [symmetry % 2 == 1]


def test_the_eight_symmetries_differ():
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    picture = LabelledPicture(image, np.zeros((0, 4), np.float32), np.zeros(0, bool), np.zeros(0, bool))
    assert len({turned(picture, symmetry).image.tobytes() for symmetry in range(8)}) == 8


def test_an_arm_without_its_hand_has_no_finger(layers):
    hand = next(layer for layer in layers if np.isfinite(layer.elbow_px).all())
    arm = whole_pictures._without_hand(hand, np.random.default_rng(0))
    column, row = np.floor(hand.joints_px[1:]).astype(int).T
    assert (arm[row, column] == 0).all()
    assert arm[..., 3].sum() > 0


def test_layers_without_hands_are_refused(layers):
    with pytest.raises(ValueError, match="layers"):
        WholePictures(layers[2:], "training")
