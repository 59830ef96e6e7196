"""Eq. 8 and its inverse: scalar formulas as the oracle, exact round trips, and what has no place in the crop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.data import render_hands
from dhpe_fast.data.normalize import (
    Square,
    denormalize,
    normalize,
    paper_square,
    root_depth_of_bone,
)
from dhpe_fast.hand import CropBox, Pinhole

CAMERA = Pinhole(600.0, 620.0, 310.0, 245.5)
NAN = math.nan


def make_hands(batch: int = 5) -> Tensor:  # (B, 21, 3)
    center = torch.tensor([0.02, -0.05, 0.6], dtype=torch.float64)
    return center + torch.randn(batch, 1, 3).double() * 0.05 + 0.04 * torch.randn(batch, 21, 3).double()


def make_square(batch: int = 5) -> Square:
    center_px = 320 + 60 * torch.randn(batch, 2).double()
    return Square(center_px, 100 + 200 * torch.rand(batch).double(), 3 * torch.randn(batch).double())


def camera_tensor(batch: int = 5) -> Tensor:  # (B, 4)
    return torch.tensor([CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]).double() + 10 * torch.rand(batch, 4).double()


def eq8(joint: list[float], root_depth: float, camera: list[float], center: list[float], g: float, angle: float):
    """One joint in the unit interval, coordinate by coordinate as printed, and a turn of the image before that."""
    fx, fy, cx, cy = camera
    du = fx * joint[0] / joint[2] + cx - center[0]
    dv = fy * joint[1] / joint[2] + cy - center[1]
    along_x = math.cos(angle) * du + math.sin(angle) * dv
    along_y = -math.sin(angle) * du + math.cos(angle) * dv
    focal = (fx + fy) / 2
    return along_x / g + 0.5, along_y / g + 0.5, (joint[2] - root_depth) / (root_depth * g / focal) + 0.5


def test_equals_eq_8_joint_by_joint():
    joints_m, square, camera = make_hands(), make_square(), camera_tensor()
    joints_norm = 0.5 * normalize(joints_m, camera, square) + 0.5
    for b in range(5):
        where = camera[b].tolist(), square.center_px[b].tolist(), float(square.size_px[b]), float(square.angle[b])
        root_depth = float(joints_m[b, MIDDLE_MCP, 2])
        for j in range(21):
            expected = eq8(joints_m[b, j].tolist(), root_depth, *where)
            assert joints_norm[b, j].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("camera", [CAMERA, camera_tensor()], ids=["one", "batch"])
def test_round_trip_with_the_depth_of_the_root(camera):
    joints_m, square = make_hands(), make_square()
    joints_crop = normalize(joints_m, camera, square)
    back = denormalize(joints_crop, square, camera, joints_m[:, MIDDLE_MCP, 2])
    torch.testing.assert_close(back, joints_m, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(normalize(back, camera, square), joints_crop, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bone", [(9, 10), (0, 9)])
def test_round_trip_with_the_length_of_a_bone(bone):
    joints_m, square, camera = make_hands(), make_square(), camera_tensor()
    length_m = (joints_m[:, bone[0]] - joints_m[:, bone[1]]).norm(dim=-1)
    joints_crop = normalize(joints_m, camera, square)
    back = denormalize(joints_crop, square, camera, bone_length_m=length_m, bone=bone)
    torch.testing.assert_close(back, joints_m, rtol=1e-12, atol=1e-12)
    depth = root_depth_of_bone(joints_crop, square, camera, length_m, bone)
    torch.testing.assert_close(depth, joints_m[:, MIDDLE_MCP, 2], rtol=1e-12, atol=1e-12)


def test_any_points_with_the_depth_of_the_root():
    """Vertices go the same way as the joints; a wrong root depth scales the whole hand about the camera."""
    joints_m, square, camera = make_hands(), make_square(), camera_tensor()
    root = joints_m[:, MIDDLE_MCP, 2]
    points_crop = normalize(joints_m[:, 3:8], camera, square, root)
    torch.testing.assert_close(points_crop, normalize(joints_m, camera, square)[:, 3:8])
    back = denormalize(points_crop, square, camera, 2 * root)
    torch.testing.assert_close(back, 2 * joints_m[:, 3:8])


def test_one_hand_without_a_batch_and_float32():
    joints_m, square, camera = make_hands(), make_square(), camera_tensor()
    alone = normalize(joints_m[2], camera[2], Square(square.center_px[2], square.size_px[2], square.angle[2]))
    torch.testing.assert_close(alone, normalize(joints_m, camera, square)[2])
    single = Square(square.center_px.float(), square.size_px.float(), square.angle.float())
    crop = normalize(joints_m.float(), camera.float(), single)
    assert crop.dtype == torch.float32
    torch.testing.assert_close(crop.double(), normalize(joints_m, camera, square), rtol=1e-3, atol=1e-4)


def test_the_root_is_the_middle_of_the_papers_crop():
    joints_m = make_hands()
    joints2d_px = CAMERA.project(joints_m)
    square = paper_square(joints2d_px)
    joints_norm = 0.5 * normalize(joints_m, CAMERA, square) + 0.5
    torch.testing.assert_close(joints_norm[:, MIDDLE_MCP], torch.full((5, 3), 0.5, dtype=torch.float64))
    extent = joints_norm[..., :2].amax(1) - joints_norm[..., :2].amin(1)
    torch.testing.assert_close(extent.amax(1), torch.full((5,), 1 / 1.5, dtype=torch.float64))


def test_depth_has_the_unit_of_the_width():
    """A cube around the root, seen from far away through a long lens, stays a cube in the crop frame."""
    far = Pinhole(1e6, 1e6, 0, 0)
    corners_m = 0.05 * torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]).double()
    points_m = corners_m + torch.tensor([0, 0, 1000.0])
    square = Square(torch.zeros(2).double(), torch.tensor(200.0).double())
    crop = normalize(points_m, far, square, torch.tensor(1000.0).double())
    torch.testing.assert_close(crop, corners_m * (1 / 0.1), rtol=1e-3, atol=1e-3)


def test_positive_angles_turn_the_square_clockwise():
    """A quarter turn: what was below the centre in the image (y down) lies on the crop's x axis."""
    square = Square(torch.tensor([100.0, 50.0]), torch.tensor(40.0), torch.tensor(math.pi / 2))
    torch.testing.assert_close(square.to_crop(torch.tensor([[100.0, 70.0]])), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(square.from_crop(torch.tensor([[0.0, 1.0]])), torch.tensor([[80.0, 50.0]]))


def test_upright_squares_are_crop_boxes():
    box = CropBox((100.0, 50.0), 80.0)
    points_px = 100 * torch.rand(21, 2).double()
    square = Square.from_box(box)
    torch.testing.assert_close(square.to_crop(points_px), box.to_crop(points_px))
    torch.testing.assert_close(square.from_crop(square.to_crop(points_px)), points_px)
    expected = CropBox.from_points(points_px)
    found = paper_square(points_px)
    assert found.center_px.tolist() == pytest.approx(expected.center_px)
    assert found.size_px.item() == pytest.approx(expected.size_px)


def test_agrees_with_the_hands_that_the_package_draws():
    """Of a pinhole view, x and y are exact; z is that of the weak-perspective parameters to first order in depth."""
    (hand,) = render_hands(1, 0, camera="pinhole")
    crop = normalize(hand.joints_m[None], hand.camera, paper_square(hand.joints2d_px[None]))
    torch.testing.assert_close(crop[0, :, :2], hand.crop.to_crop(hand.joints2d_px), rtol=0, atol=1e-5)
    decoded = hand.model.decode(hand.params).joints_m[0]
    assert (crop[0, :, 2] - decoded[:, 2]).abs().max() < 1e-4


# --- Missing joints -----------------------------------------------------------------------------------------


def test_joints_without_annotation_or_image_are_nan_and_the_others_are_not():
    joints_m, square = make_hands(1), make_square(1)
    expected = normalize(joints_m, CAMERA, square)
    joints_m[0, 4, 1] = NAN
    joints_m[0, 7, 2] = -0.1
    joints_m[0, 8, 2] = 0
    crop = normalize(joints_m, CAMERA, square)
    missing = torch.zeros(1, 21, dtype=torch.bool)
    missing[0, [4, 7, 8]] = True
    assert crop[missing].isnan().all()
    torch.testing.assert_close(crop[~missing], expected[~missing])
    back = denormalize(crop, square, CAMERA, joints_m[:, MIDDLE_MCP, 2])
    assert back[missing].isnan().all()
    torch.testing.assert_close(back[~missing], joints_m[~missing])


def test_without_a_root_there_is_no_depth_but_an_image():
    joints_m, square = make_hands(2), make_square(2)
    expected = normalize(joints_m, CAMERA, square)
    joints_m[0, MIDDLE_MCP] = NAN
    crop = normalize(joints_m, CAMERA, square)
    assert crop[0, :, 2].isnan().all()
    torch.testing.assert_close(crop[0, :9, :2], expected[0, :9, :2])
    torch.testing.assert_close(crop[1], expected[1])


def test_estimates_behind_the_camera_stay_finite():
    square = make_square(1)
    estimate = torch.zeros(1, 21, 3, dtype=torch.float64)
    estimate[0, 4, 2] = -100
    joints_m = denormalize(estimate, square, CAMERA, torch.ones(1).double())
    assert joints_m.isfinite().all()
    assert joints_m[0, 4, 2] < 0


def test_the_papers_square_counts_valid_joints_only():
    joints2d_px = 100 * torch.rand(5, 21, 2).double()
    valid = torch.rand(5, 21) < 0.7
    valid[:, MIDDLE_MCP] = True
    valid[1, MIDDLE_MCP] = False
    valid[2] = False
    valid[2, MIDDLE_MCP] = True
    joints2d_px[3, 5] = NAN
    valid[3, 5] = True
    square = paper_square(joints2d_px, valid)
    for b in (0, 3, 4):
        counted = [p for p, v in zip(joints2d_px[b].tolist(), valid[b].tolist(), strict=True) if v and p[0] == p[0]]
        width, height = (max(p[a] for p in counted) - min(p[a] for p in counted) for a in (0, 1))
        assert float(square.size_px[b]) == pytest.approx(1.5 * max(width, height))
        assert square.center_px[b].tolist() == joints2d_px[b, MIDDLE_MCP].tolist()
    for b in (1, 2):  # no root, nothing but the root
        assert square.center_px[b].isnan().all()
        assert square.size_px[b].isnan()


def test_bad_arguments_are_refused_by_name():
    joints_m, square = make_hands(2), make_square(2)
    with pytest.raises(ValueError, match=r"joints_m: expected .* got ndarray"):
        normalize(joints_m.numpy(), CAMERA, square)
    with pytest.raises(ValueError, match=r"joints_crop: expected .* got \(2, 21, 2\)"):
        denormalize(joints_m[..., :2], square, CAMERA, torch.ones(2))
    with pytest.raises(ValueError, match="root_depth_m: needed"):
        normalize(joints_m[:, :5], CAMERA, square)
    with pytest.raises(ValueError, match="lens distortion"):
        normalize(joints_m, Pinhole(600, 600, 300, 200, (0.1, 0, 0, 0, 0)), square)
    with pytest.raises(ValueError, match=r"camera: expected .* got \(2, 3\)"):
        normalize(joints_m, torch.ones(2, 3), square)
    with pytest.raises(ValueError, match="one of the two"):
        denormalize(joints_m, square, CAMERA)
    with pytest.raises(ValueError, match="one of the two"):
        denormalize(joints_m, square, CAMERA, torch.ones(2), bone_length_m=torch.ones(2))
    with pytest.raises(ValueError, match=r"Square: .* \(2, 2\), \(3,\)"):
        Square(torch.zeros(2, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"joints2d_px: expected \(\*batch, 21, 2\)"):
        paper_square(joints_m[:, :20, :2])
    with pytest.raises(ValueError, match="valid: expected bool"):
        paper_square(joints_m[..., :2], torch.ones(2, 21))
