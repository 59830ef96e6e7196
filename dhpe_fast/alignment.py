"""The first estimate from 2D joints alone: the mean hand, seen from everywhere.

A hand is nearly flat and a weak-perspective camera cannot tell near from far, so a single rigid alignment often locks
on to the mirrored depth. All viewing directions are therefore scored in closed form, and several distinct ones start
the refinement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

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


@dataclass(frozen=True)
class StartViews:
    """A few typical poses of a hand model, each seen from everywhere; made once, in NumPy, as they are small."""

    poses: np.ndarray
    """(P, 45)"""
    pose_energy: np.ndarray
    """(P,) of the prior"""
    rotations: np.ndarray
    """(V, 3, 3) model axes to camera axes"""
    image: np.ndarray
    """(P, V, 21) complex: x + i y of the joints in the camera's axes, metres"""

    @classmethod
    def of(cls, hand: HandConstants) -> StartViews:
        """Makes them."""
        axes = hand.compiled_hand.axes.cpu().numpy()
        named = anatomy.named_poses(axes)
        mean = hand.prior.mean
        poses = torch.stack([mean, *(mean.new_tensor(named[name]) for name in START_POSES)])
        joints_m = pose_skeleton(hand.rest, poses, poses.new_zeros(len(poses), N_SHAPE)).joints_m.cpu().numpy()
        rotations = _fibonacci_views(VIEWS)
        turned = np.einsum("vab,pjb->pvja", rotations[:, :2], joints_m)
        energy = hand.prior.energy(poses).cpu().numpy()
        return cls(poses.cpu().numpy(), energy, rotations, turned[..., 0] + 1j * turned[..., 1])


def initial_states(views: StartViews, evidence: Evidence2d, count: int) -> HandState:
    """The `count` best distinct weak-perspective alignments of a few typical poses.

    For each pose and viewing direction the in-plane rotation, scale and translation are the least-squares solution
    (the joints as complex numbers), with joints weighted by confidence.
    """
    joints, confidence = evidence.joints.cpu().numpy(), evidence.confidence.cpu().numpy()
    weight = confidence / confidence.sum()
    target = joints[:, 0] + 1j * joints[:, 1]
    target_mean, source_mean = weight @ target, views.image @ weight  # (), (P, V)
    target, source = target - target_mean, views.image - source_mean[..., None]
    spread = (source.real**2 + source.imag**2) @ weight
    # Never below a tenth of a millimetre: all joints on one line of sight give no scale.
    scaled = np.maximum(spread, 1e-8)
    factor = source.conj() @ (weight * target) / scaled  # scale * exp(i angle), (P, V)
    size = np.abs(factor)
    # Of (factor source - target), multiplied out.
    residual = size**2 * (spread - 2 * scaled) + weight @ (target.real**2 + target.imag**2)
    cost = 0.5 * residual * confidence.sum() / ROUGH_SIGMA**2 + 0.5 * views.pose_energy[:, None]

    rotations = _spun(views.rotations, factor / np.maximum(size, 1e-12))
    chosen = _distinct(cost, rotations, count)
    trans = target_mean - factor * source_mean
    cam = np.stack([np.log(np.maximum(size, 1e-6)), trans.real, trans.imag], axis=-1)
    poses = views.poses[chosen // VIEWS]
    parts = (poses, np.zeros((len(chosen), N_SHAPE)), rotations.reshape(-1, 3, 3)[chosen], cam.reshape(-1, 3)[chosen])
    return HandState(*(torch.from_numpy(part).to(evidence.joints.device) for part in parts))


def _fibonacci_views(count: int) -> np.ndarray:  # (count, 3, 3)
    """Rotations that bring evenly spread directions of the hand to face the camera."""
    i = np.arange(count)
    z = 1 - (2 * i + 1) / count
    angle = i * math.pi * (3 - math.sqrt(5))
    r = np.sqrt(1 - z * z)
    forward = np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=-1)
    helper = np.where(np.abs(z[:, None]) < 0.9, [0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    right = np.cross(helper, forward)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def _spun(
    rotations: np.ndarray,  # (V, 3, 3)
    turn: np.ndarray,  # (P, V) complex, exp(i angle)
) -> np.ndarray:  # (P, V, 3, 3)
    """The views turned in the image."""
    x, y = rotations[:, 0], rotations[:, 1]
    cos, sin = turn.real[..., None], turn.imag[..., None]
    forward = np.broadcast_to(rotations[:, 2], (*turn.shape, 3))
    return np.stack([cos * x - sin * y, sin * x + cos * y, forward], axis=-2)


def _distinct(cost: np.ndarray, rotations: np.ndarray, count: int) -> np.ndarray:
    """Greedy choice by cost, (P, V) and (P, V, 3, 3) -> (count,) flat indices.

    Of two views of one pose that are close, only the better one.
    """
    flat = rotations.reshape(*cost.shape, 9)
    close = flat @ flat.transpose(0, 2, 1) > 1 + 2 * math.cos(APART_RAD)  # (P, V, V), by the traces
    left = cost.copy()
    chosen = []
    while len(chosen) < count and np.isfinite(left).any():
        pose, view = np.unravel_index(left.argmin(), left.shape)
        chosen.append(pose * cost.shape[1] + view)
        left[pose, close[pose, view]] = np.inf
    return np.array(chosen)
