"""Cameras against OpenCV and by round trips; crops by pictures whose pixels are known."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from dhpe_fast.hand import CropBox, Pinhole, WeakPerspective

K = np.array([[607.9, 0, 314.8], [0, 601.2, 236.4], [0, 0, 1]])
DIST = (-0.28, 0.09, 0.0012, -0.0007, -0.01)


def _points_m(count: int = 50, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        np.concatenate([rng.uniform(-0.15, 0.15, (count, 2)), rng.uniform(0.4, 0.9, (count, 1))], 1)
    )


@pytest.mark.parametrize("dist", [(0.0,) * 5, DIST])
def test_pinhole_projects_like_opencv(dist: tuple[float, ...]) -> None:
    points_m = _points_m()
    expected, _ = cv2.projectPoints(points_m.numpy(), np.zeros(3), np.zeros(3), K, np.array(dist))
    found = Pinhole.from_matrix(K, dist).project(points_m)
    np.testing.assert_allclose(found, expected[:, 0], atol=1e-9)


@pytest.mark.parametrize("dist", [(0.0,) * 5, DIST])
def test_unproject_inverts_project(dist: tuple[float, ...]) -> None:
    camera, points_m = Pinhole.from_matrix(K, dist), _points_m()
    again = camera.unproject(camera.project(points_m), points_m[:, 2])
    torch.testing.assert_close(again, points_m, atol=1e-10, rtol=0)
    assert camera.unproject(torch.zeros(2, 3, 2), 0.5).shape == (2, 3, 3)


def test_integer_centers_move_the_principal_point_by_half_a_pixel() -> None:
    camera = Pinhole.from_matrix(K, integer_centers=True)
    assert (camera.cx, camera.cy) == (315.3, 236.9)
    np.testing.assert_array_equal(Pinhole.from_matrix(K).matrix, K)


def test_points_behind_the_camera_have_no_image_and_harmless_gradients() -> None:
    points_m = torch.tensor([[0.1, 0.2, -0.5], [0.1, 0.2, 0.0], [0.1, 0.2, 0.5]], requires_grad=True)
    pixels = Pinhole(500, 500, 320, 240).project(points_m)
    assert pixels[:2].isnan().all()
    assert pixels[2].tolist() == [420.0, 440.0]
    (gradient,) = torch.autograd.grad(pixels[2].sum(), points_m)
    assert gradient.isfinite().all()
    assert gradient[:2].abs().max() == 0


@pytest.mark.parametrize("dist", [(0.0,) * 5, DIST])
def test_weak_perspective_and_root_are_inverse(dist: tuple[float, ...]) -> None:
    camera, root_m = Pinhole.from_matrix(K, dist), (0.05, -0.08, 0.62)
    weak = camera.weak_perspective_at(root_m)
    np.testing.assert_allclose(camera.root_m(weak), root_m, atol=1e-9)
    assert weak.scale_px_per_m == pytest.approx(0.5 * (607.9 + 601.2) / 0.62)


def test_weak_perspective_is_what_the_pinhole_sees_of_a_small_thing() -> None:
    camera, root_m = Pinhole(600, 600, 320, 240), torch.tensor([0.02, 0.03, 0.7], dtype=torch.float64)
    offsets_m = 1e-4 * torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    offsets_m[:, 2] = 0
    weak = camera.weak_perspective_at(root_m).project(offsets_m)
    torch.testing.assert_close(weak, camera.project(offsets_m + root_m), atol=1e-9, rtol=0)


def test_weak_perspective_by_hand() -> None:
    camera = WeakPerspective(100, (10, 20))
    assert camera.project(torch.tensor([[1.0, 2.0, 99.0]])).tolist() == [[110.0, 220.0]]


def test_crop_frame_spans_the_box() -> None:
    box = CropBox((100, 50), 40)
    corners_px = torch.tensor([[80.0, 30.0], [120.0, 70.0], [100.0, 50.0]])
    assert box.to_crop(corners_px).tolist() == [[-1, -1], [1, 1], [0, 0]]
    assert torch.equal(box.from_crop(box.to_crop(corners_px)), corners_px)
    assert box.from_crop(torch.tensor([[1.0, 1.0, 7.0]])).tolist() == [[120.0, 70.0]]
    assert box.top_left_px == (80, 30)


def test_hand_in_the_crop_is_a_weak_perspective_view() -> None:
    box, points_m = CropBox((100, 50), 40), _points_m()
    in_crop = 9.0 * points_m[:, :2] + torch.tensor([0.1, -0.2], dtype=torch.float64)
    seen = box.weak_perspective(9.0, (0.1, -0.2, 0.3)).project(points_m)
    torch.testing.assert_close(seen, box.from_crop(in_crop))


def test_paper_crop_is_centred_at_the_middle_mcp() -> None:
    joints2d_px = np.full((21, 2), 100.0)
    joints2d_px[0], joints2d_px[12], joints2d_px[9] = (90, 160), (110, 60), (105, 110)
    box = CropBox.from_points(joints2d_px)
    assert box.center_px == (105, 110)
    assert box.size_px == pytest.approx(1.5 * 100)
    around_box = CropBox.from_points(torch.from_numpy(joints2d_px), margin=2, around="box")
    assert around_box.center_px == (100, 110)
    assert around_box.size_px == pytest.approx(200)
    assert around_box.to_crop(torch.from_numpy(joints2d_px)).abs().max() <= 1


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_crop_at_scale_one_is_a_slice(shape: tuple[int, ...], dtype: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    crop = CropBox((32, 24), 16).crop_image(image, size=16)
    np.testing.assert_array_equal(crop, image[16:32, 24:40])
    assert crop.dtype == image.dtype


def test_crop_beyond_the_image_is_zero_there() -> None:
    crop = CropBox((0, 0), 8).crop_image(np.full((20, 20), 9, np.uint8), size=8)
    assert (crop[4:, 4:] == 9).all()
    assert crop[:4].max() == crop[:, :4].max() == 0


def test_crop_beyond_the_image_is_the_border_where_one_is_given() -> None:
    crop = CropBox((0, 0), 8).crop_image(np.full((20, 20, 3), 9, np.uint8), size=8, border=128)
    assert (crop[4:, 4:] == 9).all()
    assert (crop[:4] == 128).all()
    assert (crop[:, :4] == 128).all()


@pytest.mark.parametrize("zoom", [0.25, 0.5, 2.0, 3.0])
def test_crop_of_a_ramp_gives_each_pixel_its_own_place(zoom: float) -> None:
    """Each pixel's value is the x coordinate of its centre: so it must be in the crop, in image pixels."""
    image = np.tile(np.arange(200) + 0.5, (200, 1))
    size = 40
    box = CropBox((83.3, 97.7), size / zoom)
    places_px = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="xy"), -1) + 0.5
    in_image = box.from_crop(places_px.double() / size * 2 - 1)
    np.testing.assert_allclose(box.crop_image(image, size=size), in_image[..., 0], atol=0.02)  # cv2: 1/32 pixel


def test_shrinking_averages_and_does_not_alias() -> None:
    stripes = np.zeros((256, 256), np.float32)
    stripes[:, ::2] = 1
    crop = CropBox((128, 128), 240).crop_image(stripes, size=40)
    np.testing.assert_allclose(crop, 0.5, atol=0.05)


@pytest.mark.parametrize("center_px", [(90.3, 60.7), (2.6, 1.1), (179.0, 119.5), (-300.0, 40.0), (90.0, 700.0)])
@pytest.mark.parametrize(("size_px", "size"), [(30.5, 64), (100.0, 16), (900.0, 40)])
@pytest.mark.parametrize("nearest", [False, True])
def test_a_crop_is_that_of_the_whole_image(center_px, size_px: float, size: int, nearest: bool) -> None:
    """Inside of it, across its borders and beyond: what is cut off first is not missed."""
    image = np.random.default_rng(0).integers(0, 255, (120, 180, 3)).astype(np.uint8)
    box = CropBox(center_px, size_px)
    samples = 1 if nearest else min(max(math.ceil(size_px / size), 1), 16)
    step, (left, top) = size_px / (size * samples), box.top_left_px
    affine = np.array([[step, 0, left + 0.5 * step - 0.5], [0, step, top + 0.5 * step - 0.5]])
    flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    whole = cv2.warpAffine(image, affine, (size * samples,) * 2, flags=flags, borderValue=(77,) * 4)
    whole = cv2.resize(whole, (size, size), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(box.crop_image(image, size=size, nearest=nearest, border=77), whole)


@pytest.mark.parametrize("kind", ["uint8", "float32", "bool"])
def test_images_of_any_length_are_cropped(kind: str) -> None:
    """OpenCV resamples none of more than 32,766 pixels a side."""
    image = np.random.default_rng(0).integers(0, 2, (40, 40_000)).astype(kind)
    crop = CropBox((39_990, 20), 32).crop_image(image, size=20, border=1)
    np.testing.assert_array_equal(crop, CropBox((90, 20), 32).crop_image(image[:, -100:], size=20, border=1))
    np.testing.assert_array_equal(CropBox((20, 39_990), 32).crop_image(image.T.copy(), size=20, border=1), crop.T)


def test_a_crop_may_be_longer_than_what_is_resampled_at_once() -> None:
    ramp = np.tile((np.arange(40_000) + 0.5).astype(np.float32), (8, 1))
    crop = CropBox((20_000, 2), 40_000).crop_image(ramp, size=9, nearest=True, border=-1)
    np.testing.assert_allclose(crop[4], 40_000 / 9 * (np.arange(9) + 0.5), atol=1)
    assert (np.delete(crop, 4, axis=0) == -1).all()


def test_masks_keep_their_labels() -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 7, 33], np.uint8), (50, 50))
    assert set(np.unique(CropBox((25, 25), 30).crop_image(labels, size=13, nearest=True))) <= {0, 7, 33}
    mask = CropBox((25, 25), 30).crop_image(labels > 0, size=13)
    assert mask.dtype == bool


def test_crop_camera_sees_the_crop() -> None:
    camera, box, points_m = Pinhole.from_matrix(K, DIST), CropBox((300.5, 200.25), 180), _points_m()
    in_crop_px = (box.to_crop(camera.project(points_m)) + 1) / 2 * 224
    torch.testing.assert_close(box.crop_camera(camera).project(points_m), in_crop_px, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: WeakPerspective(0, (0, 0)),
            "WeakPerspective.scale_px_per_m: expected a finite number > 0, got 0",
        ),
        (
            lambda: WeakPerspective(1, (0, math.nan)),
            "WeakPerspective.trans_px: expected a finite number, got nan",
        ),
        (lambda: WeakPerspective(1, (0, 0, 0)), "WeakPerspective.trans_px: expected 2 numbers, got 3"),
        (lambda: Pinhole(-1, 1, 0, 0), "Pinhole.fx"),
        (lambda: Pinhole(1, math.inf, 0, 0), "Pinhole.fy"),
        (lambda: Pinhole(1, 1, 0, 0, (0.1,)), "Pinhole.dist: expected 5 numbers, got 1"),
        (lambda: Pinhole.from_matrix(np.eye(4)), r"matrix: expected \(3, 3\), got \(4, 4\)"),
        (lambda: Pinhole.from_matrix(np.ones((3, 3))), "matrix: expected"),
        (lambda: Pinhole(1, 1, 0, 0).weak_perspective_at((0, 0, -1)), "root_m: expected z > 0"),
        (lambda: Pinhole(1, 1, 0, 0).project(torch.zeros(3, 2)), r"points_m: .* \(\.\.\., 3\), got \(3, 2\)"),
        (lambda: CropBox((0, 0), -3), "CropBox.size_px"),
        (lambda: CropBox.from_points(np.zeros((21, 2))), "all points are the same"),
        (lambda: CropBox.from_points(np.zeros((5, 2))), r"expected \(21, 2\) joints, got \(5, 2\)"),
        (lambda: CropBox.from_points(np.full((21, 2), np.nan)), "21 points are not finite"),
        (lambda: CropBox.from_points(np.eye(21, 2), around="wrist"), "around: .* got 'wrist'"),
        (lambda: CropBox.from_points(np.eye(21, 2), margin=0), "margin"),
        (lambda: CropBox((0, 0), 5).crop_image(np.zeros((0, 5), np.uint8)), "image: .* not empty"),
        (lambda: CropBox((0, 0), 5).crop_image(np.zeros((5, 5), np.uint8), size=0), "size: "),
    ],
)
def test_wrong_values_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeakPerspective("big", (0, 0)), "scale_px_per_m: expected a number, got str"),
        (lambda: CropBox(3.0, 5), "CropBox.center_px: expected 2 numbers, got float"),
        (lambda: CropBox((0, 0), 5).crop_image(np.zeros((5, 5), np.int64)), "image: .* got int64"),
        (lambda: CropBox((0, 0), 5).crop_image([[1]]), "image: .* got list"),
    ],
)
def test_wrong_types_are_named(make, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()
