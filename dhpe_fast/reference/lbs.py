"""Linear blend skinning with shape and pose blend shapes (MANO, Romero et al. 2017; SMPL, Loper et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from dhpe_fast.reference._arguments import describe, result_dtype, widened, widened_dtype
from dhpe_fast.rotation import axis_angle_to_matrix
from dhpe_fast.torch_settings import full_precision


@dataclass(frozen=True, eq=False)
class LbsBasis:
    """The constant part of a skinned hand: S shape directions, P = 9 (J - 1) pose directions, J joints, V vertices.

    The joint regressor is linear, so it is folded into the joints' own template and shape directions.
    Skinning weights are stored as each vertex's K strongest joints; unused slots hold joint 0 with weight 0.
    """

    v_template: Tensor  # (V, 3) metres
    shapedirs: Tensor  # (S, V, 3) metres per unit beta
    posedirs: Tensor  # (P, V, 3) metres per unit of (R - I), joints 1..J-1, row-major
    joint_template: Tensor  # (J, 3) metres
    joint_shapedirs: Tensor  # (S, J, 3) metres per unit beta
    skin_joints: Tensor  # (V, K) int32
    skin_weights: Tensor  # (V, K), rows sum to one
    parents: Tensor  # (J,) int32; parents[0] = -1, parents[j] < j
    tensors: tuple[Tensor, ...] = field(init=False, repr=False, compare=False)
    """The fields above, in the order in which the op takes them."""

    def __post_init__(self) -> None:
        n_verts, n_shape, n_joints = len(self.v_template), len(self.shapedirs), len(self.joint_template)
        expected = {
            "v_template": (n_verts, 3),
            "shapedirs": (n_shape, n_verts, 3),
            "posedirs": (9 * (n_joints - 1), n_verts, 3),
            "joint_template": (n_joints, 3),
            "joint_shapedirs": (n_shape, n_joints, 3),
            "skin_joints": (n_verts, self.skin_joints.shape[-1]),
            "skin_weights": (n_verts, self.skin_joints.shape[-1]),
            "parents": (n_joints,),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"LbsBasis.{name} has shape {found}, expected {shape}")
        # Not a property: gathering them takes longer than a check of the op, and torch.compile traces no cached one.
        object.__setattr__(self, "tensors", tuple(getattr(self, name) for name in expected))

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LbsBasis:
        """Moves every tensor to `device` and the floating-point ones to `dtype`."""
        names = [f.name for f in fields(self) if f.init]
        moved = {
            name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            for name, value in zip(names, self.tensors, strict=True)
        }
        return replace(self, **moved)

    def subset(self, vertex_ids: Sequence[int]) -> LbsBasis:
        """A basis of these vertices alone, in their order: the op's cost shrinks with them; joints stay as they are.

        Raises:
            ValueError: if an id is not one of 0 to V - 1.
        """
        n_verts = len(self.v_template)
        for vertex in vertex_ids:
            if not 0 <= vertex < n_verts:
                raise ValueError(f"vertex_ids holds {vertex}, expected 0 to {n_verts - 1}")
        ids = torch.tensor(vertex_ids, dtype=torch.int64, device=self.v_template.device)
        return replace(
            self,
            v_template=self.v_template[ids],
            shapedirs=self.shapedirs[:, ids],
            posedirs=self.posedirs[:, ids],
            skin_joints=self.skin_joints[ids],
            skin_weights=self.skin_weights[ids],
        )


def lbs(
    pose: Tensor,  # (*batch, J, 3) axis-angle, or (*batch, J, 3, 3) rotation matrices; root first
    betas: Tensor,  # (*batch, S)
    basis: LbsBasis,
) -> tuple[Tensor, Tensor]:
    """Poses a hand; the twin of :func:`dhpe_fast.ops.lbs`, where the contract is written.

    It is also differentiable in the basis, and more than once.

    Returns:
        verts_m (*batch, V, 3) and the posed kinematic joints joints_m (*batch, J, 3).
    """
    rotation_dims = check_lbs_arguments(pose, betas, basis)
    with full_precision(pose.device):
        verts_m, joints_m = _lbs(widened(pose), widened(betas), basis, rotation_dims)
    dtype = result_dtype(pose, betas)
    return verts_m.to(dtype), joints_m.to(dtype)


def _lbs(pose: Tensor, betas: Tensor, basis: LbsBasis, rotation_dims: int) -> tuple[Tensor, Tensor]:
    rotations = pose if rotation_dims == 2 else axis_angle_to_matrix(pose)
    rest_verts = basis.v_template + torch.einsum("...s,svc->...vc", betas, basis.shapedirs)
    rest_joints = basis.joint_template + torch.einsum("...s,sjc->...jc", betas, basis.joint_shapedirs)

    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    pose_feature = (rotations[..., 1:, :, :] - eye).flatten(-3)
    bent_verts = rest_verts + torch.einsum("...p,pvc->...vc", pose_feature, basis.posedirs)

    world_rotations, joints_m = forward_kinematics(rotations, rest_joints, basis.parents)
    offsets = joints_m - torch.einsum("...jab,...jb->...ja", world_rotations, rest_joints)

    index, weights = basis.skin_joints.long(), basis.skin_weights
    # An unused slot adds nothing, whatever it names. Where that is finite it stays, for the derivative by the weight.
    unused_rotation, unused_offset = (weights == 0)[..., None, None], (weights == 0)[..., None]
    slot_rotations, slot_offsets = world_rotations[..., index, :, :], offsets[..., index, :]
    slot_rotations = slot_rotations.masked_fill(unused_rotation & ~slot_rotations.isfinite(), 0)
    slot_offsets = slot_offsets.masked_fill(unused_offset & ~slot_offsets.isfinite(), 0)
    vertex_rotations = torch.einsum("vk,...vkab->...vab", weights, slot_rotations)
    vertex_offsets = torch.einsum("vk,...vka->...va", weights, slot_offsets)
    verts_m = torch.einsum("...vab,...vb->...va", vertex_rotations, bent_verts) + vertex_offsets
    return verts_m, joints_m


def check_lbs_arguments(
    pose: Tensor,  # (*batch, J, 3) or (*batch, J, 3, 3)
    betas: Tensor,  # (*batch, S)
    basis: LbsBasis,
) -> int:
    """Raises TypeError or ValueError unless the three fit; how many dimensions a joint's rotation has otherwise.

    That is 1 for axis-angle and 2 for matrices. With three joints, (3, 3, 3) can be three hands in axis-angle or one
    in matrices: it is what leaves `pose` with as many batch dimensions as `betas`, and matrices if neither does.
    """
    n_joints, n_shape, work = basis.parents.shape[0], basis.shapedirs.shape[0], basis.v_template.dtype
    if _is_plainly_right(pose, betas, basis, n_joints, n_shape):
        return 1
    if work not in (torch.float32, torch.float64):
        raise ValueError(
            f"basis is {work}, expected torch.float32 or torch.float64: poses of half types fit the former"
        )
    for name, value in (("pose", pose), ("betas", betas)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {describe(value)}")
        if value.device != basis.v_template.device:
            raise ValueError(f"{name} is on {value.device}, the basis on {basis.v_template.device}")
    if betas.dim() == 0 or betas.shape[-1] != n_shape:
        raise ValueError(f"betas has shape {tuple(betas.shape)}, expected (*batch, {n_shape})")
    is_axis_angle = pose.shape[-2:] == (n_joints, 3)
    # The last sizes first: a batch size that is compared is no longer free in an exported program.
    is_matrix = pose.shape[-2:] == (3, 3) and pose.shape[-3:] == (n_joints, 3, 3)
    if not (is_axis_angle or is_matrix):
        raise ValueError(
            f"pose has shape {tuple(pose.shape)}, expected (*batch, {n_joints}, 3) axis-angle "
            f"or (*batch, {n_joints}, 3, 3) rotation matrices"
        )
    if any(dtype != work and widened_dtype(dtype) != work for dtype in (pose.dtype, betas.dtype)):
        raise ValueError(f"pose is {pose.dtype}, betas is {betas.dtype}, the basis {work}: they must agree")
    rotation_dims = 2 if is_matrix and not (is_axis_angle and pose.dim() == betas.dim() + 1) else 1
    batches = pose.shape[: -1 - rotation_dims], betas.shape[:-1]
    if batches[0] != batches[1]:
        try:
            torch.broadcast_shapes(*batches)
        except RuntimeError:
            raise ValueError(
                f"pose {tuple(pose.shape)} and betas {tuple(betas.shape)} have batches that do not broadcast"
            ) from None
    return rotation_dims


def _is_plainly_right(pose: Tensor, betas: Tensor, basis: LbsBasis, n_joints: int, n_shape: int) -> bool:
    """Whether all fits, with axis-angles and no type or batch to adapt: said in half the time that the details take."""
    if not (isinstance(pose, Tensor) and isinstance(betas, Tensor)):
        return False
    work, device = basis.v_template.dtype, basis.v_template.device
    if not (pose.dtype == betas.dtype == work and work in (torch.float32, torch.float64)):
        return False
    pose_shape, betas_shape = pose.shape, betas.shape
    return (
        len(pose_shape) == len(betas_shape) + 1 >= 2
        and pose_shape[-1] == 3
        and pose_shape[-2] == n_joints
        and betas_shape[-1] == n_shape
        and pose_shape[:-2] == betas_shape[:-1]
        and pose.device == device
        and betas.device == device
    )


def forward_kinematics(
    rotations: Tensor,  # (*batch, J, 3, 3) relative to the parent
    rest_joints: Tensor,  # (*batch, J, 3)
    parents: Tensor,  # (J,)
) -> tuple[Tensor, Tensor]:
    """World rotations (*batch, J, 3, 3) and joint positions (*batch, J, 3); the root turns about its own joint."""
    world = [rotations[..., 0, :, :]]
    batch = torch.broadcast_shapes(rotations.shape[:-3], rest_joints.shape[:-2])
    position = [rest_joints[..., 0, :].expand(*batch, 3)]
    for joint, parent in enumerate(parents.tolist()[1:], start=1):
        bone = rest_joints[..., joint, :] - rest_joints[..., parent, :]
        position.append(position[parent] + (world[parent] @ bone[..., None])[..., 0])
        world.append(world[parent] @ rotations[..., joint, :, :])
    return torch.stack(world, dim=-3), torch.stack(position, dim=-2)
