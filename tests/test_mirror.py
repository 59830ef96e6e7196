"""Mirroring: every part alone by hand, and all of them together by seeing the same hand twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from synthetic_mano import synthetic_mano

from dhpe_fast.hand import CropBox, HandModel, HandParams, HandView, Pinhole, WeakPerspective, mirror_view
from dhpe_fast.hand.mirror import (
    mirror_camera,
    mirror_image,
    mirror_params,
    mirror_points_m,
    mirror_points_px,
    mirror_pose,
)

WIDTH_PX = 640


def _params(batch: int = 3) -> HandParams:
    h = torch.randn(batch, 63, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return HandParams.from_packed(h * 0.5)


def test_mirrored_parameters_on_the_mirrored_model_give_the_mirrored_mesh() -> None:
    model = HandModel(synthetic_mano(), dtype=torch.float64)
    params = _params()
    mesh, mirrored = model.decode(params), model.mirrored().decode(mirror_params(params))
    torch.testing.assert_close(mirrored.verts_m, mirror_points_m(mesh.verts_m), atol=1e-12, rtol=0)
    torch.testing.assert_close(mirrored.joints_m, mirror_points_m(mesh.joints_m), atol=1e-12, rtol=0)


def test_global_orient_mirrors_like_a_joint() -> None:
    model = HandModel(synthetic_mano(), dtype=torch.float64)
    params = _params()
    orient = torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64)
    mesh = model(params.pose, params.shape, orient)
    mirrored = model.mirrored()(mirror_pose(params.pose), params.shape, mirror_pose(orient))
    torch.testing.assert_close(mirrored.verts_m, mirror_points_m(mesh.verts_m), atol=1e-12, rtol=0)


def test_one_bright_pixel_stays_under_its_point() -> None:
    image = np.zeros((4, 6), np.uint8)
    image[1, 4] = 255
    centre_px = torch.tensor([4.5, 1.5])
    row, column = np.argwhere(mirror_image(image))[0]
    assert mirror_points_px(centre_px, 6).tolist() == [column + 0.5, row + 0.5]
    assert torch.equal(mirror_image(torch.from_numpy(image)[None])[0], torch.from_numpy(mirror_image(image)))


@pytest.mark.parametrize(
    "camera",
    [
        Pinhole(600, 590, 300, 250),
        Pinhole(600, 590, 300, 250, (-0.28, 0.09, 0.02, -0.03, -0.01)),
        WeakPerspective(900, (311, 222)),
    ],
)
def test_mirrored_camera_sees_mirrored_points_in_the_mirrored_image(
    camera: Pinhole | WeakPerspective,
) -> None:
    points_m = torch.rand(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    points_m[:, 2] += 1.2
    seen_px = mirror_camera(camera, WIDTH_PX).project(mirror_points_m(points_m))
    torch.testing.assert_close(seen_px, mirror_points_px(camera.project(points_m), WIDTH_PX), atol=1e-9, rtol=0)


def test_mirrored_box_cuts_the_mirrored_crop() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, WIDTH_PX, 3)).astype(np.uint8)
    box = CropBox((100, 30), 32)
    crop = mirror_camera(box, WIDTH_PX).crop_image(mirror_image(image), size=32)
    np.testing.assert_array_equal(crop, mirror_image(box.crop_image(image, size=32)))


def _view() -> HandView:
    rng = np.random.default_rng(0)
    return HandView(
        width_px=WIDTH_PX,
        image=rng.integers(0, 255, (8, WIDTH_PX, 3)).astype(np.uint8),
        mask=torch.from_numpy(rng.integers(0, 2, (8, WIDTH_PX))),
        joints2d_px=torch.from_numpy(rng.integers(0, WIDTH_PX, (21, 2)).astype(np.float64)),
        joints3d_m=torch.from_numpy(rng.normal(size=(21, 3))),
        params=_params(),
        camera=Pinhole(600, 590, 300, 250),
        box=CropBox((100, 30), 32),
    )


def test_mirroring_a_view_twice_gives_it_back_and_changes_nothing_in_place() -> None:
    view, untouched = _view(), _view()
    again = mirror_view(mirror_view(view))
    for result in (again, view):
        np.testing.assert_array_equal(result.image, untouched.image)
        assert torch.equal(result.mask, untouched.mask)
        assert torch.equal(result.joints2d_px, untouched.joints2d_px)
        assert torch.equal(result.joints3d_m, untouched.joints3d_m)
        assert torch.equal(result.params.packed(), untouched.params.packed())
        assert (result.camera, result.box) == (untouched.camera, untouched.box)


def test_mirroring_a_view_changes_every_part() -> None:
    view, mirrored = _view(), mirror_view(_view())
    assert not np.array_equal(mirrored.image, view.image)
    assert not torch.equal(mirrored.mask, view.mask)
    assert torch.equal(mirrored.joints2d_px[:, 0], WIDTH_PX - view.joints2d_px[:, 0])
    assert torch.equal(mirrored.joints3d_m[:, 0], -view.joints3d_m[:, 0])
    assert torch.equal(mirrored.params.quat[:, 2:], -view.params.quat[:, 2:])
    assert mirrored.camera.cx == WIDTH_PX - view.camera.cx
    assert mirrored.box.center_px == (WIDTH_PX - 100, 30)


def test_missing_parts_stay_missing() -> None:
    mirrored = mirror_view(HandView(width_px=10))
    assert [getattr(mirrored, field.name) for field in dataclasses.fields(mirrored)] == [10] + [None] * 7


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"HandView.image has shape \(4, 6\), expected a width of 7"):
        HandView(width_px=7, image=np.zeros((4, 6)))
    with pytest.raises(ValueError, match=r"HandView\.width_px"):
        HandView(width_px=0)
    with pytest.raises(TypeError, match=r"camera: expected a Pinhole.* got str"):
        mirror_camera("camera", 10)
    with pytest.raises(ValueError, match=r"points_px: expected \(\.\.\., 2\), got \(3,\)"):
        mirror_points_px(torch.zeros(3), 10)
    with pytest.raises(ValueError, match="pose: expected axis-angles"):
        mirror_pose(torch.zeros(4))
    with pytest.raises(ValueError, match="image: expected an array"):
        mirror_image(np.zeros(4))
