"""Linear blend skinning as one op: parameters in, vertices and joints out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dhpe_fast.ops._derivatives import needs_no_derivative, register_derivative
from dhpe_fast.ops._fake import check_shape
from dhpe_fast.ops._library import build, check_kernels
from dhpe_fast.reference._arguments import result_dtype, widened
from dhpe_fast.reference.lbs import LbsBasis, check_lbs_arguments


def lbs(
    pose: Tensor,  # (*batch, J, 3) axis-angle, or (*batch, J, 3, 3) rotation matrices; root first
    betas: Tensor,  # (*batch, S)
    basis: LbsBasis,
) -> tuple[Tensor, Tensor]:
    """Poses a hand: blend shapes, kinematic chain and skinning in one kernel.

    Convention: metres and radians; rotations act on column vectors in the model's rest axes; the root turns the hand
    about its own joint. Pose blend shapes are driven by R - I of the joints 1..J-1, as in SMPL and MANO.
    Differentiable in: pose, betas (once). float32 and float64; half types as :mod:`dhpe_fast.ops` says.

    Args:
        pose: absolute rotations of all J joints relative to their parents, axis-angle (*batch, J, 3) or matrices
            (*batch, J, 3, 3); MANO has J = 16.
        betas: shape coefficients (*batch, S); MANO has S = 10.
        basis: the hand's constants, on the same device and with the same dtype: ``HandModel.basis``.

    Returns:
        verts_m (*batch, V, 3) and the posed kinematic joints joints_m (*batch, J, 3); batches broadcast, and may be
        empty.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes, dtypes or devices do not fit, a tensor of the basis requires a gradient, or the basis has
            more than 64 joints or 1024 shape and pose directions. Also if skin_joints or parents name a joint that is
            not there or not an earlier one; CUDA does not look, and takes the root instead.
    """
    rotation_dims = check_lbs_arguments(pose, betas, basis)
    check_kernels("pose", pose)
    if any(t.requires_grad for t in basis.tensors):
        raise ValueError("basis requires a gradient, which this op does not give: use dhpe_fast.reference.lbs")
    batch = pose.shape[: -1 - rotation_dims]
    if batch != betas.shape[:-1]:
        batch = torch.broadcast_shapes(batch, betas.shape[:-1])
        pose, betas = pose.expand(*batch, *pose.shape[-1 - rotation_dims :]), betas.expand(*batch, -1)
    dtype = work_dtype = basis.v_template.dtype
    if pose.dtype != work_dtype or betas.dtype != work_dtype:
        dtype = result_dtype(pose, betas)
        pose, betas = widened(pose), widened(betas)
    if len(batch) != 1:
        n_hands = math.prod(batch)  # not -1: a basis without shape directions leaves betas without elements
        pose = pose.reshape(n_hands, *pose.shape[-1 - rotation_dims :])
        betas = betas.reshape(n_hands, betas.shape[-1])
    try:
        if needs_no_derivative(pose, betas):
            verts_m, joints_m = torch.ops.dhpe_fast._lbs_values(pose, betas, *basis.tensors)
        else:
            verts_m, joints_m, _ = torch.ops.dhpe_fast.lbs(pose, betas, *basis.tensors)
    except RuntimeError:
        _check_basis(basis)
        raise
    if len(batch) != 1:
        verts_m = verts_m.reshape(*batch, *verts_m.shape[1:])
        joints_m = joints_m.reshape(*batch, *joints_m.shape[1:])
    if dtype != work_dtype:
        verts_m, joints_m = verts_m.to(dtype), joints_m.to(dtype)
    return verts_m, joints_m


def _check_basis(basis: LbsBasis) -> None:
    """Raises ValueError if the kernels have no room for the basis, or one of its ids is out of range."""
    n_joints, n_shape = len(basis.parents), len(basis.shapedirs)
    if not 1 <= n_joints <= build.max_joints:
        raise ValueError(f"basis.parents has {n_joints} joints, expected 1 to {build.max_joints}")
    most = build.max_coeffs - 9 * (n_joints - 1)
    if n_shape > most:
        raise ValueError(f"basis.shapedirs has {n_shape} directions, expected up to {most} beside {n_joints} joints")
    for joint, parent in enumerate(basis.parents.tolist()[1:], start=1):
        if not 0 <= parent < joint:
            raise ValueError(f"basis.parents[{joint}] is {parent}, expected an earlier joint, 0 to {joint - 1}")
    outside = basis.skin_joints[(basis.skin_joints < 0) | (basis.skin_joints >= n_joints)]
    if len(outside):
        raise ValueError(f"basis.skin_joints holds {int(outside[0])}, expected 0 to {n_joints - 1}")


def _check_shapes(op, pose, betas, v_template, shapedirs, posedirs, joint_template, joint_shapedirs, *skin) -> None:
    """What csrc/lbs/lbs_tensors.h checks."""
    skin_joints, skin_weights, parents = skin
    n_hands, n_joints, n_verts, n_shape = betas.shape[0], parents.shape[0], v_template.shape[0], shapedirs.shape[0]
    rotation = (3, 3) if pose.dim() == 4 else (3,)
    check_shape(op, "pose", pose, (n_hands, n_joints, *rotation))
    check_shape(op, "betas", betas, (n_hands, n_shape))
    check_shape(op, "v_template", v_template, (n_verts, 3))
    check_shape(op, "shapedirs", shapedirs, (n_shape, n_verts, 3))
    check_shape(op, "posedirs", posedirs, (9 * (n_joints - 1), n_verts, 3))
    check_shape(op, "joint_template", joint_template, (n_joints, 3))
    check_shape(op, "joint_shapedirs", joint_shapedirs, (n_shape, n_joints, 3))
    check_shape(op, "skin_joints", skin_joints, (n_verts, skin_joints.shape[-1]))
    check_shape(op, "skin_weights", skin_weights, tuple(skin_joints.shape))


@torch.library.register_fake("dhpe_fast::lbs")
def _lbs_fake(pose, betas, v_template, *basis):
    _check_shapes("lbs", pose, betas, v_template, *basis)
    n_hands, n_joints = pose.shape[:2]
    verts_shape = (n_hands, v_template.shape[0], 3)
    return pose.new_empty(verts_shape), pose.new_empty(n_hands, n_joints, 3), pose.new_empty(verts_shape)


@torch.library.register_fake("dhpe_fast::_lbs_values")
def _lbs_values_fake(pose, betas, *basis):
    return _lbs_fake(pose, betas, *basis)[:2]


@torch.library.register_fake("dhpe_fast::_lbs_backward")
def _lbs_backward_fake(grad_verts, grad_joints, bent, pose, betas, v_template, *basis):
    _check_shapes("_lbs_backward", pose, betas, v_template, *basis)
    verts_shape = (pose.shape[0], v_template.shape[0], 3)
    check_shape("_lbs_backward", "grad_verts", grad_verts, verts_shape)
    check_shape("_lbs_backward", "grad_joints", grad_joints, (*pose.shape[:2], 3))
    check_shape("_lbs_backward", "bent", bent, verts_shape)
    # The kernels return dense tensors, whatever the strides of their inputs.
    return pose.new_empty(pose.shape), betas.new_empty(betas.shape)


def _setup_context(ctx, inputs, output) -> None:
    pose, betas, *basis = inputs
    _, _, bent = output
    ctx.save_for_backward(bent, pose, betas, *basis)
    ctx.mark_non_differentiable(bent)
    ctx.set_materialize_grads(True)


def _backward(ctx, grad_verts, grad_joints, _grad_bent):
    grad_pose, grad_betas = torch.ops.dhpe_fast._lbs_backward(grad_verts, grad_joints, *ctx.saved_tensors)
    return grad_pose, grad_betas, *(None,) * 8


register_derivative("lbs", _backward, _setup_context)
