"""The forms in which a hand's rotations can be given; this is the one place that states them.

===========  =============================================  ==================
form         pose, joints 1..15 in MANO16 order             global_orient
===========  =============================================  ==================
axis-angle   ``(*batch, 45)``, or ``(*batch, 15, 3)``       ``(*batch, 3)``
matrices     ``(*batch, 15, 3, 3)``                         ``(*batch, 3, 3)``
6D           ``(*batch, 15, 6)``                            ``(*batch, 6)``
quaternions  ``(*batch, 15, 4)``                            ``(*batch, 4)``
===========  =============================================  ==================

The shape of the pose tells its form without doubt, and ``global_orient`` comes in the same one; for another,
:mod:`dhpe_fast.rotation` converts. Principal components look like axis-angles of as many numbers, so they are named:
``model(model.pose_from_pca(coeffs))``.

Radians; every rotation is relative to the parent, acts on column vectors and is absolute: the mean pose is not added.
Axis-angles turn by any angle, also beyond a full turn. Matrices are taken as they are, without a projection to the
nearest rotation. 6D is the first column of the matrix, then the second, made orthonormal by Gram-Schmidt (Zhou et al.,
"On the Continuity of Rotation Representations in Neural Networks", CVPR 2019); PyTorch3D's are its first two rows.
Quaternions are (w, x, y, z) of any length.

Gradients are finite everywhere: at the identity, at half and at whole turns, and for numbers that stand for no rotation
(zeros, parallel 6D vectors), which :mod:`dhpe_fast.rotation` reads as one and to which it gives no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dhpe_fast.conventions import N_ARTICULATED, N_POSE
from dhpe_fast.reference._arguments import widened
from dhpe_fast.rotation import quaternion_to_matrix, rotation_6d_to_matrix


@dataclass(frozen=True)
class _Form:
    name: str
    shape: tuple[int, ...]
    """Of one rotation."""
    identity: Callable[[Tensor], Tensor]
    """The numbers of no rotation, in the type and on the device of a tensor."""
    to_matrix: Callable[[Tensor], Tensor] | None
    """None if the skinning op takes the form itself."""


def _eye(rows: int, columns: int, like: Tensor) -> Tensor:
    # Made on the device: numbers from a list would wait for a GPU.
    return torch.eye(rows, columns, dtype=like.dtype, device=like.device)


_AXIS_ANGLE = _Form("axis-angle", (3,), lambda like: like.new_zeros(3), None)
_FORMS = (
    _AXIS_ANGLE,
    _Form("matrices", (3, 3), lambda like: _eye(3, 3, like), None),
    _Form("6D", (6,), lambda like: _eye(2, 3, like).flatten(), rotation_6d_to_matrix),
    _Form("quaternions", (4,), lambda like: _eye(1, 4, like).flatten(), quaternion_to_matrix),
)


def full_pose(
    pose: Tensor,  # any form of the table above
    global_orient: Tensor | None,
) -> Tensor:
    """Root and joints together as the skinning op takes them, (*batch, 16, 3) or (*batch, 16, 3, 3); no half types.

    Raises:
        TypeError: an argument is no floating-point tensor. ValueError: their shapes, dtypes or devices do not fit.
    """
    check_float_tensor("pose", pose)
    form, joints = _joints(pose)
    joints = widened(joints)
    root = form.identity(joints) if global_orient is None else _root(form, global_orient, pose)
    n = len(form.shape)
    try:
        batch = torch.broadcast_shapes(root.shape[:-n], joints.shape[: -n - 1])
    except RuntimeError:
        raise ValueError(
            f"global_orient {tuple(root.shape)} and pose {tuple(pose.shape)}: batches do not broadcast"
        ) from None
    rotations = torch.cat(
        [root.expand(*batch, *form.shape).unsqueeze(-n - 1), joints.expand(*batch, N_ARTICULATED, *form.shape)],
        dim=-n - 1,
    )
    return rotations if form.to_matrix is None else form.to_matrix(rotations)


def check_float_tensor(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is a floating-point tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {given}")


def _joints(pose: Tensor) -> tuple[_Form, Tensor]:
    if pose.shape[-1:] == (N_POSE,):
        return _AXIS_ANGLE, pose.unflatten(-1, (N_ARTICULATED, 3))
    for form in _FORMS:
        n = len(form.shape)
        # The last sizes first: a batch size that is compared is no longer free in an exported program.
        if pose.shape[-n:] == form.shape and pose.shape[-n - 1 :] == (N_ARTICULATED, *form.shape):
            return form, pose
    accepted = ", ".join(f"{_shape(N_ARTICULATED, *form.shape)} {form.name}" for form in _FORMS)
    raise ValueError(f"pose: expected {_shape(N_POSE)} axis-angle or one of {accepted}, got {tuple(pose.shape)}")


def _root(form: _Form, global_orient: Tensor, pose: Tensor) -> Tensor:
    check_float_tensor("global_orient", global_orient)
    if global_orient.shape[-len(form.shape) :] != form.shape:
        raise ValueError(
            f"global_orient: expected {_shape(*form.shape)}, as the pose is given as {form.name}, "
            f"got {tuple(global_orient.shape)}; dhpe_fast.rotation converts"
        )
    root, like = widened(global_orient), widened(pose)
    if (root.dtype, root.device) != (like.dtype, like.device):
        raise ValueError(
            f"global_orient is {global_orient.dtype} on {global_orient.device}, "
            f"but pose is {pose.dtype} on {pose.device}"
        )
    return root


def _shape(*sizes: int) -> str:
    return f"(*batch, {', '.join(map(str, sizes))})"
