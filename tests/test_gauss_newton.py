"""The solver: its Gauss-Newton model against autograd, its guarantees, and fits whose answer is known."""

from __future__ import annotations

import pytest
import torch
from newton_cases import CAMERAS, Hand, default_hand, image_of, make_evidence, make_state, mask_of

from dhpe_fast.alignment import StartViews, initial_states
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.pose_prior import PosePrior
from dhpe_fast.refinement.gauss_newton import (
    N_LOCAL,
    Evidence2d,
    HandState,
    Objective,
    Weights,
    best,
    minimize,
)


@pytest.fixture(scope="module")
def hand() -> Hand:
    return default_hand()


@pytest.mark.parametrize("name", CAMERAS)
def test_camera_jacobians_are_the_derivatives(name):
    camera, cam = CAMERAS[name]
    points = 0.1 * torch.randn(1, 5, 3, dtype=torch.float64)
    cam = torch.tensor([cam], dtype=torch.float64)
    by_point, by_cam = camera.jacobians(points, cam)
    expected = torch.autograd.functional.jacobian(lambda p, c: camera.project(p, c)[..., :2], (points, cam))
    for n in range(5):
        torch.testing.assert_close(by_point[0, n], expected[0][0, n, :, 0, n])
        torch.testing.assert_close(by_cam[0, n], expected[1][0, n, :, 0])


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("noise", [0.01, 0.5], ids=["inliers", "outliers"])
def test_gradient_is_the_derivative_of_the_energy(hand, name, noise):
    camera, cam = CAMERAS[name]
    state = make_state(hand, cam, 1)
    state = HandState(3 * state.pose, 6 * state.betas, state.rotation, state.cam)  # beyond limits of pose and shape
    joints = image_of(hand, camera, state)[0]
    evidence = make_evidence(joints + noise * torch.randn(21, 2, dtype=torch.float64))
    objective = Objective(hand.model, hand.constants, evidence, camera, use_mesh=False)
    _, gradient = objective.normal_equations(state)
    expected = torch.autograd.functional.jacobian(
        lambda local: objective.energy(state.moved(local))[0], torch.zeros(1, N_LOCAL, dtype=torch.float64)
    )
    # The rotation's chart is exact at zero, so the whole gradient must agree.
    torch.testing.assert_close(gradient, expected[:, :], rtol=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", CAMERAS)
def test_mesh_terms_have_their_gradient(hand, name):
    """With the joints silenced, what remains of the gradient is Laplacian, silhouette and priors."""
    camera, cam = CAMERAS[name]
    state = make_state(hand, cam, 1)
    nearby = state.moved(0.05 * torch.randn(1, N_LOCAL, dtype=torch.float64))
    silent = torch.zeros(21, dtype=torch.float64)
    evidence = Evidence2d(torch.zeros(21, 2).double(), silent, mask_of(hand, camera, nearby))
    objective = Objective(hand.model, hand.constants, evidence, camera)
    _, gradient = objective.normal_equations(state)
    step = 1e-6
    for index in (0, 20, 46, 54, 56, 58, 60):
        delta = torch.zeros(1, N_LOCAL, dtype=torch.float64)
        delta[0, index] = step
        slope = (objective.energy(state.moved(delta)) - objective.energy(state.moved(-delta))) / (2 * step)
        torch.testing.assert_close(gradient[:, index], slope, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", CAMERAS)
def test_recovers_a_perturbed_hand(hand, name):
    camera, cam = CAMERAS[name]
    truth = make_state(hand, cam, 1)
    joints = image_of(hand, camera, truth)[0]
    start = truth.moved(0.15 * torch.randn(1, N_LOCAL, dtype=torch.float64))
    objective = Objective(hand.model, hand.constants, make_evidence(joints), camera)
    result = minimize(objective, start, iterations=30)
    found = image_of(hand, camera, result.state)[0]
    before = (image_of(hand, camera, start)[0] - joints).norm(dim=-1).mean()
    after = (found - joints).norm(dim=-1).mean()
    assert bool(result.converged.all())
    assert after < 0.015  # crop units: where the priors hold it, 1.5 standard deviations of a joint
    assert after < 0.1 * before


def test_never_worse_than_the_start_and_never_nan(hand):
    camera, cam = CAMERAS["perspective"]
    state = make_state(hand, cam, 4)
    state.cam[1, 2] = 1e-9  # inside the hand: points behind the camera
    state.pose[2] *= 1e3
    objective = Objective(hand.model, hand.constants, make_evidence(torch.zeros(21, 2, dtype=torch.float64)), camera)
    before = objective.energy(state)
    result = minimize(objective, state, iterations=5)
    assert bool((result.energy <= before).all())
    assert bool(result.state.pose.isfinite().all())
    assert float(best(result).energy) == float(result.energy.min())


def test_hypotheses_do_not_influence_each_other(hand):
    camera, cam = CAMERAS["orthographic"]
    state = make_state(hand, cam, 3)
    evidence = make_evidence(0.3 * torch.randn(21, 2, dtype=torch.float64))
    objective = Objective(hand.model, hand.constants, evidence, camera, use_mesh=False)
    together = minimize(objective, state, iterations=4, tolerance=0)
    alone = minimize(objective, state[torch.tensor([1])], iterations=4, tolerance=0)
    torch.testing.assert_close(together.state.pose[1:2], alone.state.pose, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("starts", [1, 10])
def test_alignment_finds_the_view_of_a_mean_hand(hand, starts):
    """The mean hand itself, turned: the best start is within the spacing of the views, and starts are distinct."""
    camera, cam = CAMERAS["orthographic"]
    truth = make_state(hand, cam, 1)
    truth = HandState(hand.prior.mean[None], 0 * truth.betas, truth.rotation, truth.cam)
    evidence = make_evidence(image_of(hand, camera, truth)[0])
    found = initial_states(StartViews.of(hand.constants), evidence, starts)
    trace = (found.rotation @ truth.rotation.transpose(1, 2)).diagonal(dim1=1, dim2=2).sum(1)
    angles = ((trace - 1) / 2).clamp(-1, 1).acos().rad2deg()
    assert len(found.pose) == starts
    # A flat hand seen from the front has a twin in depth; with one start either may win.
    assert angles.min() < 25 or starts == 1
    assert (image_of(hand, camera, found)[0] - evidence.joints).norm(dim=-1).mean() < 0.15


def test_prior_prefers_natural_poses_and_knows_its_limits():
    model = HandModel.default()
    prior = PosePrior.of(model)
    assert float(prior.energy(prior.mean)) == 0
    assert prior.violation(prior.mean).abs().max() == 0
    backwards = torch.zeros(45, dtype=torch.float64)
    backwards[3] = -1.0  # index PIP bent back by a radian, in anatomical coordinates
    pose = backwards @ prior.axes
    violation = prior.violation(pose)
    assert violation[3] < -0.8
    assert float(prior.energy(pose)) > float(prior.energy(-pose))


def test_prior_of_a_left_hand_is_the_mirror_image():
    right, left = PosePrior.of(HandModel.default("right")), PosePrior.of(HandModel.default("left"))
    pose = 0.3 * torch.randn(45, dtype=torch.float64)
    mirrored = pose * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64).repeat(15)
    torch.testing.assert_close(right.violation(pose), left.violation(mirrored), rtol=0, atol=1e-6)
    torch.testing.assert_close(right.energy(pose), left.energy(mirrored), rtol=1e-3, atol=1e-3)


def test_one_wrong_keypoint_bends_no_hand(hand):
    camera, cam = CAMERAS["orthographic"]
    truth = make_state(hand, cam, 1)
    joints = image_of(hand, camera, truth)[0]
    wrong = joints.clone()
    wrong[8] += 1.0
    evidence = Evidence2d(wrong, torch.ones(21, dtype=torch.float64))
    result = minimize(Objective(hand.model, hand.constants, evidence, camera, Weights()), truth, iterations=30)
    others = [j for j in range(21) if j not in (5, 6, 7, 8)]
    error = (image_of(hand, camera, result.state)[0] - joints).norm(dim=-1)
    assert error[others].max() < 0.05
