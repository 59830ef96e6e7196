"""Linear blend skinning as one op: parameters in, vertices and joints out."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.ops import _library  # noqa: F401  (registers torch.ops.dhpe_fast)
from dhpe_fast.reference.lbs import LbsBasis


def lbs(
    pose: Tensor,  # (*batch, J, 3) axis-angle, or (*batch, J, 3, 3) rotation matrices; root first
    betas: Tensor,  # (*batch, S)
    basis: LbsBasis,
) -> tuple[Tensor, Tensor]:
    """Poses a hand: blend shapes, kinematic chain and skinning in one kernel.

    Convention: metres and radians; rotations act on column vectors in the model's rest axes; the root turns the hand
    about its own joint. Pose blend shapes are driven by R - I of the joints 1..J-1, as in SMPL and MANO.
    Differentiable in: pose, betas (once). float32 and float64; half types are computed in float32 and cast back.

    Args:
        pose: absolute rotations of all J joints, relative to their parents.
        betas: shape coefficients.
        basis: the hand's constants, on the same device and with the same dtype.

    Returns:
        verts_m (*batch, V, 3) and the posed kinematic joints joints_m (*batch, J, 3); batches broadcast, and may be
        empty.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes, dtypes or devices do not fit, or a tensor of the basis requires a gradient.
    """
    matrix_dims = _check_arguments(pose, betas, basis)
    batch = pose.shape[: -1 - matrix_dims]
    if batch != betas.shape[:-1]:
        try:
            batch = torch.broadcast_shapes(batch, betas.shape[:-1])
        except RuntimeError:
            raise ValueError(
                f"pose {tuple(pose.shape)} and betas {tuple(betas.shape)} have batches that do not broadcast"
            ) from None
        pose, betas = pose.expand(*batch, *pose.shape[-1 - matrix_dims :]), betas.expand(*batch, -1)
    dtype, work_dtype = pose.dtype, basis.v_template.dtype
    if dtype != work_dtype:
        pose, betas = pose.to(work_dtype), betas.to(work_dtype)
    if len(batch) != 1:
        pose, betas = pose.reshape(-1, *pose.shape[-1 - matrix_dims :]), betas.reshape(-1, betas.shape[-1])
    verts_m, joints_m, _ = torch.ops.dhpe_fast.lbs(pose, betas, *basis.tensors)
    if len(batch) != 1:
        verts_m = verts_m.reshape(*batch, *verts_m.shape[1:])
        joints_m = joints_m.reshape(*batch, *joints_m.shape[1:])
    if dtype != work_dtype:
        verts_m, joints_m = verts_m.to(dtype), joints_m.to(dtype)
    return verts_m, joints_m


def _check_arguments(pose: Tensor, betas: Tensor, basis: LbsBasis) -> int:
    """How many dimensions one joint's rotation has: 1 for axis-angle, 2 for matrices."""
    n_joints, n_shape = basis.parents.shape[0], basis.shapedirs.shape[0]
    for name, value in (("pose", pose), ("betas", betas)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {_describe(value)}")
        if value.device != basis.v_template.device:
            raise ValueError(f"{name} is on {value.device}, the basis on {basis.v_template.device}")
    matrix_dims = 1 if pose.shape[-2:] == (n_joints, 3) else 2
    if matrix_dims == 2 and pose.shape[-3:] != (n_joints, 3, 3):
        raise ValueError(
            f"pose has shape {tuple(pose.shape)}, expected (*batch, {n_joints}, 3) axis-angle "
            f"or (*batch, {n_joints}, 3, 3) rotation matrices"
        )
    if betas.dim() == 0 or betas.shape[-1] != n_shape:
        raise ValueError(f"betas has shape {tuple(betas.shape)}, expected (*batch, {n_shape})")
    work = basis.v_template.dtype
    is_half = pose.dtype in (torch.float16, torch.bfloat16)
    if pose.dtype != betas.dtype or (pose.dtype != work and not (is_half and work == torch.float32)):
        raise ValueError(f"pose is {pose.dtype}, betas is {betas.dtype}, the basis {work}: they must agree")
    if any(t.requires_grad for t in basis.tensors):
        raise ValueError("basis requires a gradient, which this op does not give: use dhpe_fast.reference.lbs")
    return matrix_dims


def _describe(value: object) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__


@torch.library.register_fake("dhpe_fast::lbs")
def _lbs_fake(pose, betas, v_template, *basis):
    n_joints = pose.shape[1]
    torch._check(pose.shape[0] == betas.shape[0])
    verts = pose.new_empty(pose.shape[0], v_template.shape[0], 3)
    return verts, pose.new_empty(pose.shape[0], n_joints, 3), torch.empty_like(verts)


@torch.library.register_fake("dhpe_fast::_lbs_backward")
def _lbs_backward_fake(grad_verts, grad_joints, bent, pose, betas, *basis):
    return torch.empty_like(pose), torch.empty_like(betas)


def _setup_context(ctx, inputs, output) -> None:
    pose, betas, *basis = inputs
    _, _, bent = output
    ctx.save_for_backward(bent, pose, betas, *basis)
    ctx.mark_non_differentiable(bent)
    ctx.set_materialize_grads(True)


def _backward(ctx, grad_verts, grad_joints, _grad_bent):
    grad_pose, grad_betas = torch.ops.dhpe_fast._lbs_backward(grad_verts, grad_joints, *ctx.saved_tensors)
    return grad_pose, grad_betas, *(None,) * 8


def _refuse_double_backward(ctx, *grads):
    raise NotImplementedError("lbs is differentiable once; for second derivatives use its twin dhpe_fast.reference.lbs")


torch.library.register_autograd("dhpe_fast::lbs", _backward, setup_context=_setup_context)
torch.library.register_autograd("dhpe_fast::_lbs_backward", _refuse_double_backward)
