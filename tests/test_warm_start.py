"""A hand taken from one frame's crop to another's, and moved onto new joints."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dhpe_fast.data.rendered import render_hands
from dhpe_fast.evidence import HandEvidence
from dhpe_fast.fit import FitOptions, View, refine_from, views_of
from dhpe_fast.hand import HandModel, Pinhole
from dhpe_fast.refinement.gauss_newton import HandState
from dhpe_fast.rotation import axis_angle_to_matrix
from dhpe_fast.warm_start import PlacedHand, ShapedHand, turned_joints_m

SIZE = (240, 320)
K = Pinhole(400.0, 400.0, 150.0, 130.0)
CASES = [(side, camera) for side in ("right", "left") for camera in (None, K)]


def view_and_joints(side: str, camera: Pinhole | None, offset_px: float = 0.0) -> tuple[View, np.ndarray]:
    """A hand of a side, seen by the right model."""
    kind = "weak" if camera is None else "pinhole"
    (hand,) = render_hands(1, 4, HandModel.default(side), SIZE, camera=kind)
    joints_m = hand.joints_m if camera is None else hand.joints_m - hand.joints_m[9] + torch.tensor([0.01, 0, 0.5])
    joints_px = (hand.camera if camera is None else camera).project(joints_m).numpy() + offset_px
    options = FitOptions.of(side, None, camera, 50, None)
    (view,) = views_of(SIZE, HandEvidence(joints_px, np.ones(21)), None, options, [side])
    return view, joints_px


def some_hand(log_scale: float = math.log(800.0)) -> PlacedHand:
    rng = np.random.default_rng(1)
    return PlacedHand(
        pose=torch.from_numpy(rng.normal(0, 0.2, 45)),
        rotation=axis_angle_to_matrix(torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64)),
        root_px=torch.tensor([140.0, 110.0], dtype=torch.float64),
        log_scale=torch.tensor(log_scale, dtype=torch.float64),
    )


def image_px(view: View, state: HandState) -> torch.Tensor:
    """Where the joints of a state are in the image, mirrored back."""
    points = view.solver_camera.project(turned_joints_m(view, state), state.cam)[0, :, :2]
    return view.crop.from_crop(points * torch.tensor([-1.0 if view.mirrored else 1.0, 1.0]))


def turn_between(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((torch.trace(a @ b.T) - 1) / 2).clamp(-1, 1).acos())


@pytest.mark.parametrize(("side", "camera"), CASES)
def test_into_a_crop_and_out_of_it_is_the_same_hand(side, camera):
    view, _ = view_and_joints(side, camera)
    betas = torch.linspace(-1, 1, 10, dtype=torch.float64)
    hand = some_hand()
    state = hand.in_view(view, betas)
    back = PlacedHand.of(view, state)
    for name in ("pose", "rotation", "root_px", "log_scale"):
        torch.testing.assert_close(getattr(back, name), getattr(hand, name), rtol=0, atol=1e-5)
    torch.testing.assert_close(image_px(view, state)[9], hand.root_px, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("side", "camera"), CASES)
def test_another_crop_shows_it_at_the_same_place_of_the_image(side, camera):
    betas = torch.zeros(10, dtype=torch.float64)
    here, there = view_and_joints(side, camera)[0], view_and_joints(side, camera, 25.0)[0]
    assert here.crop != there.crop
    hand = some_hand()
    first, second = (image_px(view, hand.in_view(view, betas)) for view in (here, there))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("side", "camera"), CASES)
def test_following_undoes_a_move_a_zoom_and_a_roll(side, camera):
    """The joints of a hand, moved by a similarity of the image: exact with weak perspective, close with a pinhole."""
    betas = torch.zeros(10, dtype=torch.float64)
    view, _ = view_and_joints(side, camera)
    hand = some_hand()
    points = image_px(view, hand.in_view(view, betas))
    angle, zoom = 0.3, 1.2
    roll = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    moved = (points - points[0]) @ (zoom * roll).T + points[0] + torch.tensor([12.0, -7.0])
    evidence = HandEvidence(moved.numpy(), np.ones(21))
    (view,) = views_of(SIZE, evidence, None, FitOptions.of(side, None, camera, 50, None), [side])
    followed = hand.followed(view, betas)
    offset = (image_px(view, followed.in_view(view, betas)) - moved).norm(dim=1).max()
    assert float(offset) < (1e-3 if camera is None else 8.0)
    assert turn_between(followed.rotation, hand.rotation) == pytest.approx(angle, abs=1e-6 if camera is None else 0.02)
    assert math.exp(followed.log_scale - hand.log_scale) == pytest.approx(zoom, rel=1e-6 if camera is None else 0.02)


def test_a_joint_far_off_does_not_lead_the_hand_away():
    betas = torch.zeros(10, dtype=torch.float64)
    view, _ = view_and_joints("right", None)
    points = image_px(view, some_hand().in_view(view, betas)).numpy()
    points[4] = (3000.0, 3000.0)
    options = FitOptions.of("right", None, None, 50, None)
    (view,) = views_of(SIZE, HandEvidence(points, np.ones(21)), None, options, ["right"])
    followed = some_hand().followed(view, betas)
    torch.testing.assert_close(followed.root_px, some_hand().root_px, rtol=0, atol=1e-3)


def test_joints_are_followed_by_their_confidence():
    """Every other joint is 12 px off, and hardly believed: the hand stays with the others."""
    betas = torch.zeros(10, dtype=torch.float64)
    view, _ = view_and_joints("right", None)
    points = image_px(view, some_hand().in_view(view, betas)).numpy()
    points[::2, 0] += 12.0
    confidence = np.where(np.arange(21) % 2 == 0, 1e-3, 1.0)
    options = FitOptions.of("right", None, None, 50, None)
    (view,) = views_of(SIZE, HandEvidence(points, confidence), None, options, ["right"])
    followed = some_hand().followed(view, betas)
    torch.testing.assert_close(followed.root_px, some_hand().root_px, rtol=0, atol=0.1)
    torch.testing.assert_close(followed.rotation, some_hand().rotation, rtol=0, atol=5e-3)


def test_joints_of_quite_another_size_are_not_followed():
    betas = torch.zeros(10, dtype=torch.float64)
    view, _ = view_and_joints("right", None)
    tiny = some_hand(log_scale=math.log(2.0))
    assert tiny.followed(view, betas) is tiny


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_fit_of_one_shape_keeps_that_shape(side):
    """Its own betas stay at zero, and the joints are those of the full model with the betas of the hand."""
    view, _ = view_and_joints(side, None)
    betas = torch.linspace(1.5, -1.5, 10, dtype=torch.float64)
    shaped = ShapedHand.of(view, betas).in_view(view)
    start = some_hand().followed(shaped, torch.zeros_like(betas))
    refined = refine_from(shaped, start.in_view(shaped, torch.zeros_like(betas)), 40)
    assert refined.state.betas.abs().max() < 1e-9
    whole = replace(refined.state, betas=betas[None])
    torch.testing.assert_close(turned_joints_m(shaped, refined.state), turned_joints_m(view, whole), rtol=0, atol=1e-6)
    torch.testing.assert_close(view.model.basis.shapedirs, HandModel.default().basis.shapedirs)


def test_refining_from_the_answer_stays_there():
    view, _ = view_and_joints("right", None)
    betas = torch.zeros(10, dtype=torch.float64)
    once = refine_from(view, some_hand().followed(view, betas).in_view(view, betas), 60)
    again = refine_from(view, once.state, 10)
    assert float(once.energy) * 0.98 <= float(again.energy) <= float(once.energy)
