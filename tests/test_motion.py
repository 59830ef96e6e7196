"""The generated motion is smooth, stays in the picture, and is what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from dhpe_fast.data.motion import moving_hand, spline
from dhpe_fast.hand import HandModel, Pinhole


def test_the_spline_is_that_of_scipy():
    controls = np.random.default_rng(0).normal(size=(9, 4))
    times = np.linspace(0, 5.99, 40)
    knots = np.arange(-3, 10)
    expected = BSpline(knots, controls, 3)(times)
    np.testing.assert_allclose(spline(controls, times), expected, atol=1e-12)


@pytest.mark.parametrize("camera", ["weak", "pinhole"])
def test_every_frame_is_a_view_of_one_hand(camera):
    model = HandModel.default("left")
    views = list(moving_hand(50, 3, model, camera=camera))
    assert len(views) == 50
    for view in views[::7]:
        assert view.side == "left"
        assert torch.equal(view.params.shape, views[0].params.shape)
        torch.testing.assert_close(view.camera.project(view.joints_m), view.joints2d_px)
        decoded = view.crop.from_crop(model.decode(view.params).joints_m[0])
        assert (decoded[9] - view.joints2d_px[9]).norm() < 0.01
        assert (view.joints2d_px > 0).all()
        assert (view.joints2d_px < torch.tensor([320, 240])).all()
    assert {view.camera for view in views} == {views[0].camera} if camera == "pinhole" else True
    assert isinstance(views[0].camera, Pinhole) == (camera == "pinhole")


def test_twice_the_frame_rate_shows_the_same_motion_with_a_quarter_of_the_second_differences():
    slow = torch.stack([view.joints_m for view in moving_hand(20, 1, fps=30)])
    fast = torch.stack([view.joints_m for view in moving_hand(39, 1, fps=60)])
    torch.testing.assert_close(fast[::2], slow, rtol=0, atol=1e-5)
    ratio = fast.diff(n=2, dim=0).norm(dim=-1).mean() / slow.diff(n=2, dim=0).norm(dim=-1).mean()
    assert 0.2 < float(ratio) < 0.3
    assert slow.diff(dim=0).norm(dim=-1).max() < 0.02  # metres from frame to frame


def test_the_same_seed_gives_the_same_pictures_and_light_and_background_stay():
    first, second = moving_hand(2, 5, image_size=(96, 128), pictures=True)
    again = next(moving_hand(1, 5, image_size=(96, 128), pictures=True))
    np.testing.assert_array_equal(first.image, again.image)
    away = ~(first.mask | second.mask).numpy()
    assert np.abs(first.image.astype(int) - second.image)[away].mean() < 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_frames": 0}, "n_frames"),
        ({"fps": 0.0}, "fps"),
        ({"camera": "fisheye"}, "camera: expected 'weak' or 'pinhole', got 'fisheye'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        moving_hand(**{"n_frames": 2, "seed": 0, **change})
