"""Conversions between axis-angle, quaternion, 6D and matrix forms of a rotation.

Matrices act on column vectors, angles are radians, quaternions are (w, x, y, z). Every function takes any
leading batch, keeps dtype and device, and has finite gradients everywhere, at the identity, at half turns and for
numbers that stand for no rotation (zeros, parallel columns) included. Components may be as large as 1e18.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUAT_EPS = 1e-8
"""A quaternion that is not longer than this is read as the identity, with zero gradient."""

_SMALL_ANGLE_SQ = 1e-2
"""Below this squared angle Taylor series take over; their truncation error stays under 3e-14."""


def axis_angle_to_matrix(
    axis_angle: Tensor,  # (..., 3) radians
) -> Tensor:
    """Rotation matrices (..., 3, 3) by Rodrigues' formula, R = I + sin(t)/t K + (1 - cos t)/t^2 K^2."""
    _check(axis_angle, "axis_angle", (3,))
    angle_sq = (axis_angle * axis_angle).sum(-1)
    small = angle_sq < _SMALL_ANGLE_SQ
    angle = torch.where(small, torch.ones_like(angle_sq), angle_sq).sqrt()
    # (1 - cos t)/t^2 as half the square of sin(t/2)/(t/2): no cancellation in float32.
    half_sinc = (0.5 * angle).sin() / (0.5 * angle)
    t2 = angle_sq
    first = torch.where(small, 1 - t2 / 6 * (1 - t2 / 20 * (1 - t2 / 42)), angle.sin() / angle)
    second = torch.where(small, 0.5 - t2 / 24 * (1 - t2 / 30 * (1 - t2 / 56)), 0.5 * half_sinc * half_sinc)
    k, k_sq = cross_matrix(axis_angle), _cross_matrix_sq(axis_angle)
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + first[..., None, None] * k + second[..., None, None] * k_sq


def left_jacobian(
    axis_angle: Tensor,  # (..., 3) radians
) -> Tensor:
    """Left Jacobians of SO(3) (..., 3, 3): R(v + dv) is R(J dv) R(v) to first order.

    J = I + (1 - cos t)/t^2 K + (t - sin t)/t^3 K^2.
    """
    _check(axis_angle, "axis_angle", (3,))
    t2 = (axis_angle * axis_angle).sum(-1)
    small = t2 < _SMALL_ANGLE_SQ
    angle = torch.where(small, torch.ones_like(t2), t2).sqrt()
    half_sinc = (0.5 * angle).sin() / (0.5 * angle)
    first = torch.where(small, 0.5 - t2 / 24 * (1 - t2 / 30 * (1 - t2 / 56)), 0.5 * half_sinc * half_sinc)
    second = torch.where(small, (1 - t2 / 20 * (1 - t2 / 42 * (1 - t2 / 72))) / 6, (angle - angle.sin()) / angle**3)
    k, k_sq = cross_matrix(axis_angle), _cross_matrix_sq(axis_angle)
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + first[..., None, None] * k + second[..., None, None] * k_sq


def quaternion_to_matrix(
    quat: Tensor,  # (..., 4) w, x, y, z of any length
) -> Tensor:
    """Rotation matrices (..., 3, 3) of the normalised quaternion; the zero quaternion gives the identity."""
    _check(quat, "quat", (4,))
    unit = _unit_quaternion(quat)
    k, k_sq = cross_matrix(unit[..., 1:]), _cross_matrix_sq(unit[..., 1:])
    eye = torch.eye(3, dtype=quat.dtype, device=quat.device)
    return eye + 2 * (unit[..., :1, None] * k + k_sq)


def matrix_to_quaternion(
    matrix: Tensor,  # (..., 3, 3) rotations
) -> Tensor:
    """Unit quaternions (..., 4) with w >= 0.

    The entries of R give the 4x4 matrix 4 q q^T; its row with the largest diagonal element, normalised, is q
    up to sign. That row's length is at least 2, so neither value nor gradient degrades anywhere.
    """
    _check(matrix, "matrix", (3, 3))
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(-1) for row in matrix.unbind(-2))
    outer = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m01 + m10, m02 + m20], -1),
            torch.stack([m02 - m20, m01 + m10, 1 - m00 + m11 - m22, m12 + m21], -1),
            torch.stack([m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22], -1),
        ],
        dim=-2,
    )
    best = outer.detach().diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = outer.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    quat = row / torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    return torch.where(quat[..., :1] < 0, -quat, quat)


def axis_angle_to_quaternion(
    axis_angle: Tensor,  # (..., 3) radians
) -> Tensor:
    """Unit quaternions (..., 4) = (cos(t/2), sin(t/2)/t * axis_angle)."""
    _check(axis_angle, "axis_angle", (3,))
    angle_sq = (axis_angle * axis_angle).sum(-1, keepdim=True)
    small = angle_sq < _SMALL_ANGLE_SQ
    half = 0.5 * torch.where(small, torch.ones_like(angle_sq), angle_sq).sqrt()
    h2 = 0.25 * angle_sq
    cosine = torch.where(small, 1 - h2 / 2 * (1 - h2 / 12 * (1 - h2 / 30 * (1 - h2 / 56))), half.cos())
    ratio = torch.where(small, 0.5 * (1 - h2 / 6 * (1 - h2 / 20 * (1 - h2 / 42))), 0.5 * half.sin() / half)
    return torch.cat([cosine, ratio * axis_angle], dim=-1)


def quaternion_to_axis_angle(
    quat: Tensor,  # (..., 4) w, x, y, z of any length
) -> Tensor:
    """Axis-angle (..., 3) with angle in [0, pi]; q and -q agree, the zero quaternion gives zero."""
    _check(quat, "quat", (4,))
    unit = _unit_quaternion(quat)
    unit = torch.where(unit[..., :1] < 0, -unit, unit)
    w, vector = unit[..., :1], unit[..., 1:]
    sine_sq = (vector * vector).sum(-1, keepdim=True)
    # The angle is 2 asin(|v|) near the identity; its series in |v|^2 has no square root to differentiate at
    # zero.
    small = sine_sq < 2.5e-3
    sine = torch.where(small, torch.ones_like(sine_sq), sine_sq).sqrt()
    series = 1 + sine_sq * (1 / 6 + sine_sq * (3 / 40 + sine_sq * (15 / 336 + sine_sq * (105 / 3456))))
    return vector * 2 * torch.where(small, series, torch.atan2(sine, w) / sine)


def matrix_to_axis_angle(
    matrix: Tensor,  # (..., 3, 3) rotations
) -> Tensor:
    """Axis-angle (..., 3) with angle in [0, pi]; at a half turn one of the two equal axes is returned."""
    return quaternion_to_axis_angle(matrix_to_quaternion(matrix))


def rotation_6d_to_matrix(
    rotation_6d: Tensor,  # (..., 6) first column, then second column
) -> Tensor:
    """Rotation matrices (..., 3, 3) from two columns by Gram-Schmidt (Zhou et al., CVPR 2019).

    A first column of length zero is read as x, and a second one parallel to the first as the axis least along
    it, so the result is always a rotation; such fall-backs carry no gradient.
    """
    _check(rotation_6d, "rotation_6d", (6,))
    x_axis = rotation_6d.new_tensor([1.0, 0.0, 0.0])
    first = _unit_or(rotation_6d[..., :3], x_axis.expand_as(rotation_6d[..., :3]))
    least = torch.nn.functional.one_hot(first.detach().abs().argmin(-1), 3).to(first.dtype)
    second = _orthogonal_unit_or(rotation_6d[..., 3:], first, _orthogonal_unit_or(least, first, least))
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], dim=-1)


def matrix_to_rotation_6d(
    matrix: Tensor,  # (..., 3, 3)
) -> Tensor:
    """The first two columns (..., 6), one after the other."""
    _check(matrix, "matrix", (3, 3))
    return matrix[..., :2].transpose(-1, -2).flatten(-2)


def _unit_quaternion(quat: Tensor) -> Tensor:
    """`quat` made unit, or the identity where it is too short to have a direction."""
    usable = torch.linalg.vector_norm(quat.detach(), dim=-1, keepdim=True) > QUAT_EPS
    quat = torch.where(usable, quat, torch.eye(1, 4, dtype=quat.dtype, device=quat.device)[0])
    return quat / torch.linalg.vector_norm(quat, dim=-1, keepdim=True)


def _unit_or(vector: Tensor, fallback: Tensor) -> Tensor:
    """`vector` made unit, or `fallback` where it is too short to have a direction."""
    length_sq = (vector * vector).sum(-1, keepdim=True)
    usable = length_sq > QUAT_EPS * QUAT_EPS
    return torch.where(usable, vector / torch.where(usable, length_sq, torch.ones_like(length_sq)).sqrt(), fallback)


def _orthogonal_unit_or(vector: Tensor, axis: Tensor, fallback: Tensor) -> Tensor:
    """The unit part of `vector` orthogonal to the unit `axis`, or `fallback` where only rounding is left."""
    direction = _unit_or(vector, torch.zeros_like(vector))
    rest = direction - (direction * axis).sum(-1, keepdim=True) * axis
    length_sq = (rest * rest).sum(-1, keepdim=True)
    usable = length_sq > (16 * torch.finfo(vector.dtype).eps) ** 2
    unit = rest / torch.where(usable, length_sq, torch.ones_like(length_sq)).sqrt()
    # A second projection removes what cancellation left along the axis.
    unit = unit - (unit * axis).sum(-1, keepdim=True) * axis
    return torch.where(usable, _unit_or(unit, fallback), fallback)


def cross_matrix(vector: Tensor) -> Tensor:
    """[v]_x (..., 3, 3) with [v]_x u = v x u."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def _cross_matrix_sq(vector: Tensor) -> Tensor:
    """[v]_x [v]_x = v v^T - |v|^2 I (..., 3, 3); no matrix product, which autocast would round to a half type."""
    x, y, z = vector.unbind(-1)
    xx, yy, zz, xy, xz, yz = x * x, y * y, z * z, x * y, x * z, y * z
    return torch.stack([-yy - zz, xy, xz, xy, -xx - zz, yz, xz, yz, -xx - yy], dim=-1).unflatten(-1, (3, 3))


def _check(value: Tensor, name: str, last: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point() or value.shape[-len(last) :] != last:
        wanted = ", ".join(str(size) for size in last)
        raise ValueError(
            f"{name}: expected a floating-point tensor (..., {wanted}), got {tuple(value.shape)} {value.dtype}"
        )
