"""The skeleton against the full skinning op, and its analytic Jacobian against autograd."""

from __future__ import annotations

import pytest
import torch

from dhpe_fast.conventions import STD_TIPS
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.kinematics import RestSkeleton, pose_skeleton, skeleton_jacobian


@pytest.fixture(scope="module")
def model() -> HandModel:
    return HandModel.default(dtype=torch.float64)


@pytest.fixture(scope="module")
def rest(model: HandModel) -> RestSkeleton:
    return RestSkeleton.of(model)


def parameters(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 45, dtype=torch.float64) * 0.4, torch.randn(batch, 10, dtype=torch.float64)


def test_joints_are_those_of_the_mesh(model, rest):
    pose, betas = parameters(4)
    joints_m = pose_skeleton(rest, pose, betas).joints_m
    expected = model(pose, betas).joints_m
    inner = [j for j in range(21) if j not in STD_TIPS]
    torch.testing.assert_close(joints_m[:, inner], expected[:, inner], rtol=0, atol=1e-12)


def test_tips_are_exact_at_rest_and_near_when_bent(model, rest):
    """A tip is a vertex of the mesh: pose correctives may move it off the rigid bone, by millimetres."""
    pose, betas = parameters(4)
    at_rest = pose_skeleton(rest, torch.zeros_like(pose), betas).joints_m
    torch.testing.assert_close(at_rest, model(torch.zeros_like(pose), betas).joints_m, rtol=0, atol=1e-12)
    distance = (pose_skeleton(rest, pose, betas).joints_m - model(pose, betas).joints_m).norm(dim=-1)
    assert distance.max() < 6e-3


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_jacobian_is_the_derivative(rest, angle):
    pose, betas = parameters(3)
    pose = pose * angle
    by_pose, by_betas = skeleton_jacobian(rest, pose_skeleton(rest, pose, betas))
    expected = torch.autograd.functional.jacobian(lambda p, b: pose_skeleton(rest, p, b).joints_m, (pose, betas))
    for hand in range(3):
        torch.testing.assert_close(by_pose[hand], expected[0][hand, :, :, hand], rtol=0, atol=1e-12)
        torch.testing.assert_close(by_betas[hand], expected[1][hand, :, :, hand], rtol=0, atol=1e-12)


def test_a_joint_moves_nothing_before_it(rest):
    """The middle finger's PIP joint (MANO joint 5) moves its DIP and tip, and no other point."""
    pose, betas = parameters(1)
    by_pose, _ = skeleton_jacobian(rest, pose_skeleton(rest, pose, betas))
    moved = by_pose[0, :, :, 12:15].abs().sum((1, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [11, 12]
