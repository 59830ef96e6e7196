"""The first estimate from 2D joints alone: the mean hand, seen from everywhere.

A hand is nearly flat and a weak-perspective camera cannot tell near from far, so a single rigid alignment often locks
on to the mirrored depth. All viewing directions are therefore scored in closed form, and several distinct ones start
the refinement.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dhpe_fast.conventions import N_SHAPE
from dhpe_fast.hand import anatomy
from dhpe_fast.hand.kinematics import pose_skeleton
from dhpe_fast.refinement.gauss_newton import Evidence2d, HandConstants, HandState

VIEWS = 96
"""Viewing directions over the sphere: 20 degrees apart."""
APART_RAD = math.radians(35)
"""Starts with the same pose are at least this far apart."""
START_POSES = ("flat", "fist")
"""Tried beside the mean pose."""
ROUGH_SIGMA = 0.08
"""Standard deviation of a joint, crop units, at which a candidate's fit is weighed against how natural its pose is."""


def initial_states(hand: HandConstants, evidence: Evidence2d, starts: int) -> HandState:
    """The `starts` best distinct weak-perspective alignments of a few typical poses.

    For each pose and viewing direction the in-plane rotation, scale and translation are the least-squares solution
    (the joints as complex numbers), with joints weighted by confidence.
    """
    poses = _start_poses(hand)
    device, dtype = poses.device, poses.dtype
    joints_m = pose_skeleton(hand.rest, poses, poses.new_zeros(len(poses), N_SHAPE)).joints_m  # (P, 21, 3)
    views = _fibonacci_views(VIEWS).to(device, dtype)
    turned = torch.einsum("vab,pjb->pvja", views, joints_m)
    source = torch.complex(turned[..., 0].contiguous(), turned[..., 1].contiguous())
    target = torch.complex(evidence.joints[:, 0].contiguous(), evidence.joints[:, 1].contiguous())
    weight = evidence.confidence / evidence.confidence.sum()
    source_mean, target_mean = (weight * source).sum(-1, keepdim=True), (weight * target).sum()
    source, target = source - source_mean, target - target_mean
    # Never below a tenth of a millimetre: all joints on one line of sight give no scale.
    spread = (weight * source.abs().square()).sum(-1).clamp_min(1e-8)
    factor = (weight * source.conj() * target).sum(-1) / spread  # scale * exp(i angle), (P, V)
    residual = (weight * (factor[..., None] * source - target).abs().square()).sum(-1)
    cost = 0.5 * residual * evidence.confidence.sum() / ROUGH_SIGMA**2 + 0.5 * hand.prior.energy(poses)[:, None]

    spin = torch.zeros(*factor.shape, 3, 3, device=device, dtype=dtype)
    cos, sin = factor.real / factor.abs().clamp_min(1e-12), factor.imag / factor.abs().clamp_min(1e-12)
    spin[..., 0, 0], spin[..., 0, 1], spin[..., 1, 0], spin[..., 1, 1] = cos, -sin, sin, cos
    spin[..., 2, 2] = 1
    rotation = spin @ views
    trans = target_mean - factor * source_mean[..., 0]
    cam = torch.stack([factor.abs().clamp_min(1e-6).log(), trans.real, trans.imag], dim=-1)
    chosen = _distinct(cost, rotation, starts)
    pose_index = torch.div(chosen, VIEWS, rounding_mode="floor")
    return HandState(
        pose=poses[pose_index],
        betas=poses.new_zeros(len(chosen), N_SHAPE),
        rotation=rotation.flatten(0, 1)[chosen],
        cam=cam.flatten(0, 1)[chosen],
    )


def _start_poses(hand: HandConstants) -> Tensor:  # (P, 45)
    axes = hand.prior.axes.reshape(15, 3, 15, 3).diagonal(dim1=0, dim2=2).permute(2, 0, 1).cpu().numpy()
    named = anatomy.named_poses(axes)
    mean = hand.prior.mean
    return torch.stack(
        [mean, *(torch.as_tensor(named[name], dtype=mean.dtype, device=mean.device) for name in START_POSES)]
    )


def _fibonacci_views(count: int) -> Tensor:  # (count, 3, 3)
    """Rotations that bring evenly spread directions of the hand to face the camera."""
    i = torch.arange(count, dtype=torch.float64)
    z = 1 - (2 * i + 1) / count
    angle = i * math.pi * (3 - math.sqrt(5))
    r = (1 - z * z).sqrt()
    forward = torch.stack([r * angle.cos(), r * angle.sin(), z], dim=-1)
    helper = torch.where(z[:, None].abs() < 0.9, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])).double()
    right = torch.nn.functional.normalize(torch.linalg.cross(helper, forward), dim=-1)
    return torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)


def _distinct(cost: Tensor, rotation: Tensor, count: int) -> Tensor:  # (P, V), (P, V, 3, 3) -> (count,) flat indices
    """Greedy choice by cost; of two views of one pose that are close, only the better one."""
    n_views = cost.shape[1]
    order = cost.flatten().argsort().tolist()
    flat = rotation.flatten(0, 1)
    chosen: list[int] = []
    for index in order:
        same_pose = [c for c in chosen if c // n_views == index // n_views]
        if same_pose:
            trace = (flat[same_pose] * flat[index]).sum((-1, -2))
            if bool((((trace - 1) / 2).clamp(-1, 1).acos() < APART_RAD).any()):
                continue
        chosen.append(index)
        if len(chosen) == count:
            break
    return torch.tensor(chosen, device=cost.device)
