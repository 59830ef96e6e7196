"""Measures of a hand against the truth, for tensors and arrays of any batch, computed in float64.

Points are metres (``_m``) unless a function says otherwise. Results are float64: arrays where the first
argument is an array, tensors on its device where it is a tensor.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Points = TypeVar("Points", Tensor, np.ndarray)

_MM_PER_M = 1000.0


def procrustes_align(
    source: Points,  # (*batch, N, 3)
    target: Points,  # (*batch, N, 3)
    *,
    scale: bool = True,
) -> Points:
    """Moves each set of source points onto its target by the best similarity, in any unit.

    The rotation, translation and (unless `scale` is False) positive scale minimise the summed squared
    distances. Reflections are excluded, so a left hand never fits a right one. Source: Umeyama 1991,
    *Least-squares estimation of transformation parameters between two point patterns*, IEEE TPAMI 13(4),
    Eq. 40-43.

    Args:
        source: points to move, N >= 1.
        target: points of the same shape to move them to.
        scale: whether the scale is free, or one.

    Returns:
        The moved source (*batch, N, 3). Sources that are a single point keep their (zero) size.

    Raises:
        TypeError: if an argument is neither a tensor nor an array.
        ValueError: if the shapes differ or are not (*batch, N, 3) with N >= 1, or a coordinate is not finite.
    """
    a, b = _pair("source", source, "target", target)
    return _like(source, _align(a, b, scale))


def mpjpe(
    predicted: Points,  # (*batch, N, 3)
    truth: Points,  # (*batch, N, 3)
) -> Points:
    """Mean distance between corresponding points, (*batch,), in the unit of the points; nothing is aligned.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``.
    """
    a, b = _pair("predicted", predicted, "truth", truth)
    return _like(predicted, torch.linalg.vector_norm(a - b, dim=-1).mean(-1))


def pa_mpjpe_mm(
    predicted_m: Points,  # (*batch, N, 3)
    truth_m: Points,  # (*batch, N, 3)
) -> Points:
    """Mean distance in millimetres after ``procrustes_align``, (*batch,): the error of shape and pose alone.

    For vertices instead of joints it is what papers call PA-MPVPE.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``.
    """
    a, b = _pair("predicted_m", predicted_m, "truth_m", truth_m)
    distance = torch.linalg.vector_norm(_align(a, b, True) - b, dim=-1)
    return _like(predicted_m, _MM_PER_M * distance.mean(-1))


def mask_iou(
    predicted: Points,  # (*batch, H, W) bool
    truth: Points,  # (*batch, H, W) bool
) -> Points:
    """Intersection over union of two masks, (*batch,); 1 where both are empty.

    Raises:
        TypeError: if an argument is neither a tensor nor an array, or is not bool.
        ValueError: if the shapes differ or have fewer than two axes.
    """
    a, b = _tensor("predicted", predicted), _tensor("truth", truth)
    for name, mask in (("predicted", a), ("truth", b)):
        if mask.dtype != torch.bool:
            raise TypeError(f"{name}: expected a bool mask, got {mask.dtype}; compare with a threshold first")
    if a.shape != b.shape or a.dim() < 2:
        raise ValueError(f"predicted {tuple(a.shape)} and truth {tuple(b.shape)}: expected one shape (*batch, H, W)")
    b = b.to(a.device)
    shared = (a & b).sum((-2, -1)).double()
    united = (a | b).sum((-2, -1)).double()
    return _like(predicted, torch.where(united > 0, shared / united.clamp(min=1), torch.ones_like(shared)))


def _align(source: Tensor, target: Tensor, scale: bool) -> Tensor:
    centre, goal = source.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    a, b = source - centre, target - goal
    # a.T @ b = U S V.T; the rotation of row vectors is U D V.T, D = diag(1, 1, det) keeps it from reflecting.
    u, singular, vt = torch.linalg.svd(a.transpose(-1, -2) @ b)
    flip = torch.ones_like(singular)
    flip[..., 2] = torch.where(torch.linalg.det(u @ vt) < 0, -1.0, 1.0)
    aligned = a @ (u * flip[..., None, :]) @ vt
    if scale:
        size_sq = a.square().sum((-2, -1))
        fitted = (singular * flip).sum(-1) / torch.where(size_sq > 0, size_sq, torch.ones_like(size_sq))
        aligned = aligned * fitted[..., None, None]
    return aligned + goal


def _pair(name_a: str, a: Points, name_b: str, b: Points) -> tuple[Tensor, Tensor]:
    first, second = _tensor(name_a, a).double(), _tensor(name_b, b).double()
    if first.shape != second.shape or first.dim() < 2 or first.shape[-1] != 3 or first.shape[-2] < 1:
        raise ValueError(
            f"{name_a} {tuple(first.shape)} and {name_b} {tuple(second.shape)}: "
            "expected one shape (*batch, N, 3), N >= 1"
        )
    for name, points in ((name_a, first), (name_b, second)):
        if not torch.isfinite(points).all():
            raise ValueError(f"{name}: {int((~torch.isfinite(points)).sum())} coordinates are not finite")
    return first, second.to(first.device)


def _tensor(name: str, value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        return value.detach()
    raise TypeError(f"{name}: expected a torch.Tensor or a numpy array, got {type(value).__name__}")


def _like(given: Tensor | np.ndarray, result: Tensor) -> Tensor | np.ndarray:
    return result.numpy() if isinstance(given, np.ndarray) else result
