"""An endless stream of hands as the lifter sees them: joints in the image, and the hand in space they belong to."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import CROP_MARGIN, MIDDLE_MCP, N_ARTICULATED, N_JOINTS_STD, N_SHAPE
from dhpe_fast.data.rendered import BETA_LIMIT
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.anatomy import RANGE_OF_MOTION_RAD, angles_from_pose, joint_axes, pose_from_angles, sample_poses
from dhpe_fast.rotation import quaternion_to_matrix

FINGER_OF_JOINT = np.array([0, *(1 + j // 4 for j in range(N_JOINTS_STD - 1))])
"""Wrist, then thumb to little, of the 21 joints."""
MIN_SEEN = 8
"""So many joints of a hand are left at least."""


@dataclass(frozen=True)
class HandSampling:
    """What is drawn, and how joints in the image are disturbed."""

    pose_jitter_deg: float = 4.0
    """Of half of the hands each angle departs from a natural pose by this standard deviation, within its range."""
    pinhole: float = 0.5
    """Share of hands that a pinhole camera sees; the others are seen without perspective."""
    nearness: float = 0.8
    """Largest size of a hand over its distance from that camera."""
    noise: float = 0.06
    """Largest standard deviation of a joint, by the side of the crop; small ones are drawn more often."""
    finger_noise: float = 0.5
    """Share of hands of which fingers err as a whole, too, by as much."""
    outliers: float = 0.2
    """Share of hands with a joint or two that are anywhere."""
    missing: float = 0.3
    """Share of hands that miss joints: up to half of them, or a finger."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(f"{field.name}: expected a number >= 0, got {value!r}")
        for name in ("pinhole", "finger_noise", "outliers", "missing"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)!r}")


@dataclass(frozen=True, eq=False)
class LiftingBatch:
    """B right hands; float32."""

    joints: Tensor
    """(B, 21, 2) crop frame of the joints' own square, disturbed; 0 where missing"""
    confidence: Tensor
    """(B, 21) 1, or 0 where missing"""
    exact_joints: Tensor
    """(B, 21, 2) in the same frame, undisturbed and complete"""
    joints_m: Tensor
    """(B, 21, 3) camera axes, relative to the middle MCP joint, metres"""
    pose: Tensor
    """(B, 45) axis-angle"""
    betas: Tensor
    """(B, 10)"""
    noise: Tensor
    """(B,) standard deviation of the disturbed joints, crop units; outliers apart"""

    def __len__(self) -> int:
        return len(self.joints)

    def to(self, device: torch.device | str) -> LiftingBatch:
        """The batch on another device."""
        return LiftingBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class HandSampler:
    """Draws hands of a model: natural poses, shapes, any orientation, cameras near and far."""

    def __init__(self, model: HandModel, sampling: HandSampling) -> None:
        """Takes a right hand model on the CPU; raises ValueError for a left one."""
        if model.side != "right":
            raise ValueError(f"model: expected a right hand, got a {model.side} one")
        self.model, self.sampling = model, sampling
        rest = (model.rest_joints_m(), model.rest_tips_m())
        self._axes = joint_axes(*(part.double().numpy() for part in rest), model.side)

    def batch(self, n: int, rng: np.random.Generator) -> LiftingBatch:
        """The next n hands of a source of random numbers."""
        pose = torch.from_numpy(self._poses(n, rng)).float()
        betas = torch.from_numpy(np.clip(rng.normal(size=(n, N_SHAPE)), -BETA_LIMIT, BETA_LIMIT)).float()
        rotation = quaternion_to_matrix(torch.from_numpy(rng.normal(size=(n, 4))).float())
        joints_m = self.model.joints_m(pose, betas) @ rotation.transpose(1, 2)
        joints_m = joints_m - joints_m[:, MIDDLE_MCP : MIDDLE_MCP + 1]
        exact = in_unit_crop(self._seen(joints_m.double().numpy(), rng))
        joints, seen, sigma = self._disturbed(exact, rng)
        low, high = (f(np.where(seen[..., None], joints, fill), axis=1) for f, fill in _EXTENT)
        center, half = 0.5 * (low + high)[:, None], 0.5 * CROP_MARGIN * (high - low).max(1)[:, None, None]
        image = (np.where(seen[..., None], (joints - center) / half, 0.0), seen, (exact - center) / half)
        noise = torch.from_numpy(sigma / half[:, 0, 0]).float()
        return LiftingBatch(*(torch.from_numpy(array).float() for array in image), joints_m, pose, betas, noise)

    def _poses(self, n: int, rng: np.random.Generator) -> np.ndarray:  # (n, 45)
        poses = sample_poses(self._axes, n, rng)
        jitter = np.deg2rad(self.sampling.pose_jitter_deg) * rng.normal(size=(n, N_ARTICULATED, 3))
        angles = angles_from_pose(self._axes, poses) + jitter * (rng.random((n, 1, 1)) < 0.5)
        return pose_from_angles(self._axes, np.clip(angles, RANGE_OF_MOTION_RAD[..., 0], RANGE_OF_MOTION_RAD[..., 1]))

    def _seen(self, joints_m: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # (n, 21, 3) -> (n, 21, 2)
        n = len(joints_m)
        size_m = np.ptp(joints_m, axis=1).max(1)[:, None]
        near = self.sampling.nearness * rng.random((n, 1)) * (rng.random((n, 1)) < self.sampling.pinhole)
        # The nearest joint stays in front of the camera by a tenth of its distance at least.
        return joints_m[..., :2] / np.maximum(1 + joints_m[..., 2] * near / size_m, 0.1)[..., None]

    def _disturbed(self, exact: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Joints (n, 21, 2) with errors, which of them are seen (n, 21), standard deviations (n,); crop units."""
        options, n = self.sampling, len(exact)
        sigma = 2 * options.noise * rng.random((n, 1, 1)) ** 2
        by_finger = rng.random((n, 1, 1)) < options.finger_noise
        of_finger = rng.normal(size=(n, 6, 2))[:, FINGER_OF_JOINT]
        joints = exact + sigma * (rng.normal(size=exact.shape) + by_finger * of_finger)
        wrong = (rng.random((n, 1)) < options.outliers) & (rng.random((n, N_JOINTS_STD)) < 1.5 / N_JOINTS_STD)
        joints = np.where(wrong[..., None], rng.uniform(-1.3, 1.3, exact.shape), joints)
        lost = rng.random((n, N_JOINTS_STD)) < 0.5 * rng.random((n, 1))
        finger = rng.integers(1, 6, (n, 1)) == FINGER_OF_JOINT
        lost = np.where(rng.random((n, 1)) < 0.3, finger, lost) & (rng.random((n, 1)) < options.missing)
        too_many = lost.sum(1, keepdims=True) > N_JOINTS_STD - MIN_SEEN
        return joints, ~lost | too_many, (sigma * np.sqrt(1.0 + by_finger))[:, 0, 0]


_EXTENT = ((np.min, np.inf), (np.max, -np.inf))


def in_unit_crop(joints: np.ndarray) -> np.ndarray:  # (n, 21, 2) -> (n, 21, 2)
    """Each hand's joints in the crop frame of its own square, as ``CropBox.from_points(around="box")`` makes it."""
    low, high = joints.min(1), joints.max(1)
    half = 0.5 * CROP_MARGIN * (high - low).max(1)
    return (joints - 0.5 * (low + high)[:, None]) / half[:, None, None]
