"""The skeleton without the mesh: 21 joints from pose and shape, and their analytic Jacobian.

The wrist is not turned here (a hand's global rotation is applied to the mesh afterwards, as in the paper), so every
finger is an independent chain of three rotations and a tip that moves rigidly with its last bone. Tips are vertices of
the mesh, which pose correctives and blended weights move a little more; fitting therefore takes its residuals from
the mesh and uses this module for the first estimate and for the Jacobian.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dhpe_fast.conventions import JOINT_ORDERS, N_ARTICULATED, N_JOINTS, N_JOINTS_STD
from dhpe_fast.rotation import axis_angle_to_matrix, left_jacobian

# Each finger's three joints and tip, as STD indices, in MANO16's order of fingers.
_STD_OF_MANO21 = {mano: std for std, mano in enumerate(JOINT_ORDERS["mano21"])}
TIP_OF_CHAIN = (1, 2, 4, 3, 0)
"""Index, middle, little, ring, thumb among thumb..little."""
CHAINS = tuple(
    tuple(_STD_OF_MANO21[j] for j in (1 + 3 * f, 2 + 3 * f, 3 + 3 * f, N_JOINTS + TIP_OF_CHAIN[f])) for f in range(5)
)


@dataclass(frozen=True)
class Skeleton:
    """A batch of posed skeletons with what their Jacobians need; model frame, metres."""

    joints_m: Tensor
    """(B, 21, 3) STD order."""
    chain_m: Tensor
    """(B, 5, 4, 3) the same points by finger: three joints and the tip."""
    world: Tensor
    """(B, 5, 3, 3, 3) rotation of each joint relative to the model."""
    pose: Tensor
    """(B, 45)"""


@dataclass(frozen=True)
class RestSkeleton:
    """A model's rest joints and tips as functions of betas; constants of a fit."""

    wrist: Tensor
    """(3,) metres"""
    wrist_dirs: Tensor
    """(10, 3)"""
    chain: Tensor
    """(5, 4, 3) metres"""
    chain_dirs: Tensor
    """(10, 5, 4, 3)"""

    @classmethod
    def of(cls, model) -> RestSkeleton:
        """Reads the rest skeleton off a :class:`~dhpe_fast.hand.model.HandModel`."""
        basis, tips = model.basis, list(model.tip_ids)
        template = torch.cat([basis.joint_template, basis.v_template[tips]])
        dirs = torch.cat([basis.joint_shapedirs, basis.shapedirs[:, tips]], dim=1)
        order = torch.tensor([[1 + 3 * f, 2 + 3 * f, 3 + 3 * f, N_JOINTS + TIP_OF_CHAIN[f]] for f in range(5)])
        return cls(template[0], dirs[:, 0], template[order], dirs[:, order])

    def to(self, dtype: torch.dtype) -> RestSkeleton:
        """The same skeleton in another floating-point type."""
        return RestSkeleton(*(t.to(dtype) for t in (self.wrist, self.wrist_dirs, self.chain, self.chain_dirs)))


def pose_skeleton(
    rest: RestSkeleton,
    pose: Tensor,  # (B, 45) axis-angle
    betas: Tensor,  # (B, 10)
) -> Skeleton:
    """Poses the 21 joints (tips rigid with their last bone); differentiable."""
    rest_chain = rest.chain + torch.einsum("bs,sfnc->bfnc", betas, rest.chain_dirs)
    bones = rest_chain[:, :, 1:] - rest_chain[:, :, :-1]
    local = axis_angle_to_matrix(pose.reshape(-1, 5, 3, 3))
    world, points = [local[:, :, 0]], [rest_chain[:, :, 0]]
    for joint in (1, 2):
        world.append(world[-1] @ local[:, :, joint])
    for bone in range(3):
        points.append(points[-1] + (world[bone] @ bones[:, :, bone, :, None])[..., 0])
    chain_m = torch.stack(points, dim=2)
    wrist = rest.wrist + betas @ rest.wrist_dirs
    return Skeleton(_std_joints(wrist, chain_m), chain_m, torch.stack(world, dim=2), pose)


def skeleton_jacobian(
    rest: RestSkeleton,
    skeleton: Skeleton,
) -> tuple[Tensor, Tensor]:
    """Derivatives of the joints: by pose (B, 21, 3, 45), by betas (B, 21, 3, 10).

    Turning joint i by d(theta) moves a point X beyond it by (W_parent J_l(theta_i) d(theta)) x (X - X_i), with J_l the
    left Jacobian of SO(3).
    """
    batch = len(skeleton.pose)
    chain, world = skeleton.chain_m, skeleton.world
    turn = left_jacobian(skeleton.pose.reshape(batch, 5, 3, 3))
    turn = torch.cat([turn[:, :, :1], world[:, :, :2] @ turn[:, :, 1:]], dim=2)  # (B, 5, joint, 3, 3)
    lever = chain[:, :, :, None] - chain[:, :, None, :3]  # (B, 5, point, joint, 3)
    columns = turn[:, :, None].transpose(-1, -2)  # (B, 5, 1, joint, 3 columns, 3)
    moved = torch.linalg.cross(columns.expand(-1, -1, 4, -1, -1, -1), lever[..., None, :].expand(-1, -1, -1, -1, 3, -1))
    reaches = torch.ones(4, 3, dtype=torch.bool, device=chain.device).tril(-1)  # a joint moves what lies beyond it
    moved = moved * reaches[:, :, None, None]

    by_pose = chain.new_zeros(batch, N_JOINTS_STD, 3, 5, 3, 3)
    by_betas = chain.new_empty(batch, N_JOINTS_STD, 3, len(rest.wrist_dirs))
    bone_dirs = rest.chain_dirs[:, :, 1:] - rest.chain_dirs[:, :, :-1]  # (S, 5, bone, 3)
    steps = torch.einsum("bfnac,sfnc->bfnas", world, bone_dirs)
    first = rest.chain_dirs[:, :, 0].permute(1, 2, 0).expand(batch, -1, -1, -1)  # (B, 5, 3, S)
    chain_by_betas = torch.cat([first[:, :, None], first[:, :, None] + steps.cumsum(2)], dim=2)
    for finger, nodes in enumerate(CHAINS):
        by_pose[:, nodes, :, finger] = moved[:, finger].permute(0, 1, 4, 2, 3)
        by_betas[:, nodes] = chain_by_betas[:, finger]
    by_betas[:, 0] = rest.wrist_dirs.T
    return by_pose.reshape(batch, N_JOINTS_STD, 3, 3 * N_ARTICULATED), by_betas


def _std_joints(wrist: Tensor, chain_m: Tensor) -> Tensor:
    joints = torch.cat([wrist[:, None], chain_m.flatten(1, 2)], dim=1)
    order = [0] * N_JOINTS_STD
    for finger, nodes in enumerate(CHAINS):
        for place, node in enumerate(nodes):
            order[node] = 1 + 4 * finger + place
    return joints[:, order]
