"""What a hand's pose is likely to be: a Gaussian over natural poses, and the joints' ranges of motion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import N_POSE
from dhpe_fast.hand import anatomy
from dhpe_fast.hand.model import HandModel
from dhpe_fast.torch_settings import full_precision

SAMPLES = 4096
FLOOR_RAD = np.deg2rad(4.0)
"""Standard deviation added in every direction: annotated hands bend a hinge sideways more than the sampler does."""


@dataclass(frozen=True)
class PosePrior:
    """Anatomical coordinates are angles = axes @ pose, (45,): flexion, abduction, twist of joints 1..15, radians."""

    axes: Tensor
    """(45, 45) orthonormal; block-diagonal in the joints."""
    mean: Tensor
    """(45,) mean pose, axis-angle."""
    precision: Tensor
    """(45, 45) inverse covariance of the pose, axis-angle, 1 / radian^2."""
    low: Tensor
    """(45,) lower ends of the ranges of motion, anatomical coordinates."""
    high: Tensor
    """(45,) upper ends."""

    @classmethod
    def of(cls, model: HandModel, dtype: torch.dtype = torch.float64) -> PosePrior:
        """The prior for a model, from its rest joints; computed once per skeleton."""
        joints = model.rest_joints_m().detach().cpu().double().numpy()
        tips = model.rest_tips_m().detach().cpu().double().numpy()
        arrays = _fit_gaussian(joints.tobytes(), tips.tobytes(), model.side)
        device = model.faces.device
        return cls(*(torch.from_numpy(a).to(device=device, dtype=dtype) for a in arrays))

    def violation(self, pose: Tensor) -> Tensor:  # (*batch, 45) -> (*batch, 45)
        """How far each anatomical coordinate lies outside its range; signed, zero inside, radians."""
        angles = pose @ self.axes.T
        return (angles - self.high).clamp_min(0) - (self.low - angles).clamp_min(0)

    def energy(self, pose: Tensor) -> Tensor:  # (*batch, 45) -> (*batch,)
        """Squared Mahalanobis distance to the mean natural pose."""
        offset = pose - self.mean
        with full_precision(pose.device):
            return ((offset @ self.precision) * offset).sum(-1)


@lru_cache(maxsize=8)
def _fit_gaussian(joints: bytes, tips: bytes, side: str) -> tuple[np.ndarray, ...]:
    axes = anatomy.joint_axes(np.frombuffer(joints).reshape(-1, 3), np.frombuffer(tips).reshape(-1, 3), side)
    poses = anatomy.sample_poses(axes, SAMPLES, np.random.default_rng(0))
    covariance = np.cov(poses, rowvar=False) + FLOOR_RAD**2 * np.eye(N_POSE)
    block = np.zeros((N_POSE, N_POSE))
    for joint in range(len(axes)):
        block[3 * joint : 3 * joint + 3, 3 * joint : 3 * joint + 3] = axes[joint]
    limits = anatomy.RANGE_OF_MOTION_RAD.reshape(N_POSE, 2)
    return block, poses.mean(0), np.linalg.inv(covariance), limits[:, 0].copy(), limits[:, 1].copy()
