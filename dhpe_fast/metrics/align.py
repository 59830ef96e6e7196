"""Ways to bring a predicted hand onto the true one before their points are compared.

Each returns all of the moved prediction. Only annotated points (truth that is not NaN) take part; where those that are
needed are not annotated, the hand cannot be aligned and all of it is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from dhpe_fast.conventions import MIDDLE_MCP, SCALE_BONE
from dhpe_fast.metrics._arguments import Points, as_given, point_pair


def procrustes_align(
    source: Points,  # (*batch, N, 3)
    target: Points,  # (*batch, N, 3)
    *,
    scale: bool = True,
    reflection: bool = False,
) -> Points:
    """Moves each set of source points onto its target by the best similarity, in any unit.

    The rotation, translation and (unless `scale` is False) positive scale minimise the summed squared
    distances. Source: Umeyama 1991, *Least-squares estimation of transformation parameters between two point
    patterns*, IEEE TPAMI 13(4), Eq. 40-43.

    Args:
        source: points to move, N >= 1.
        target: points of the same shape to move them to.
        scale: whether the scale is free, or one.
        reflection: whether mirror images count as rotations, as in the evaluation code of FreiHAND and HO-3D. By
            default a left hand never fits a right one.

    Returns:
        The moved source (*batch, N, 3). Sources that are a single point keep their (zero) size.

    Raises:
        TypeError: if an argument is neither a tensor nor an array.
        ValueError: if the shapes differ or are not (*batch, N, 3) with N >= 1, a source coordinate is not finite, or a
            target one is infinite.
    """
    a, b, annotated = point_pair(("source", source), ("target", target))
    return as_given(source, _similarity(a, b, annotated, scale, reflection))


def align_root(
    predicted: Points,  # (*batch, N, 3)
    truth: Points,  # (*batch, N, 3)
    root: int = MIDDLE_MCP,
) -> Points:
    """Shifts each hand so that its root is the true one. The root then counts as exact in any mean that includes it.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``.
    """
    a, b, _ = point_pair(("predicted", predicted), ("truth", truth))
    return as_given(predicted, a + (b - a)[..., root : root + 1, :])


def align_root_scale(
    predicted: Points,  # (*batch, N, 3)
    truth: Points,  # (*batch, N, 3)
    root: int = MIDDLE_MCP,
    bone: tuple[int, int] = SCALE_BONE,
) -> Points:
    """Scales each hand so that one bone has its true length, then shifts it by ``align_root``.

    Zimmermann and Brox 2017 measure the bone from middle MCP to PIP, and have the palm as the root (0); others measure
    (0, 9). A bone that is predicted to have no length cannot be scaled: NaN.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``.
    """
    a, b, _ = point_pair(("predicted", predicted), ("truth", truth))
    length, true_length = (_distance(points, *bone) for points in (a, b))
    ratio = torch.where(length > 0, true_length / length, torch.nan)[..., None, None]
    return as_given(predicted, (a - a[..., root : root + 1, :]) * ratio + b[..., root : root + 1, :])


def align_centroid_scale(
    predicted: Points,  # (*batch, N, 3)
    truth: Points,  # (*batch, N, 3)
) -> Points:
    """Gives each hand the true centroid, and the true mean distance of the points to it.

    For sets of points without a root, like the fingertips of Dexter+Object. Needs two annotated points.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``.
    """
    a, b, annotated = point_pair(("predicted", predicted), ("truth", truth))
    centre, goal = _mean(a, annotated), _mean(b, annotated)
    radius, true_radius = (
        _mean(torch.linalg.vector_norm(points - middle, dim=-1, keepdim=True), annotated)
        for points, middle in ((a, centre), (b, goal))
    )
    ratio = torch.where((radius > 0) & (annotated.sum(-1) >= 2)[..., None, None], true_radius / radius, torch.nan)
    return as_given(predicted, (a - centre) * ratio + goal)


def align_none(
    predicted: Points,  # (*batch, N, 3)
    truth: Points,  # (*batch, N, 3)
) -> Points:
    """The prediction as it is: absolute errors."""
    return predicted


ALIGNMENTS: MappingProxyType[str, Callable[[Points, Points], Points]] = MappingProxyType(
    {
        "none": align_none,
        "root": align_root,
        "root_scale": align_root_scale,
        "zb2017": partial(align_root_scale, root=0),
        "centroid_scale": align_centroid_scale,
        "procrustes": procrustes_align,
    }
)
"""By the names that configurations and tables use; "zb2017" has joint 0 (their palm) as the root."""


def _similarity(source: Tensor, target: Tensor, annotated: Tensor, scale: bool, reflection: bool) -> Tensor:
    centre, goal = _mean(source, annotated), _mean(target, annotated)
    known = annotated[..., None]
    a, b = torch.where(known, source - centre, 0.0), torch.where(known, target - goal, 0.0)
    # a.T @ b = U S V.T; the rotation of row vectors is U D V.T, D = diag(1, 1, det) keeps it from reflecting.
    u, singular, vt = torch.linalg.svd(a.transpose(-1, -2) @ b)
    flip = torch.ones_like(singular)
    if not reflection:
        flip[..., 2] = torch.where(torch.linalg.det(u @ vt) < 0, -1.0, 1.0)
    aligned = (source - centre) @ (u * flip[..., None, :]) @ vt
    if scale:
        size_sq = a.square().sum((-2, -1))
        fitted = (singular * flip).sum(-1) / torch.where(size_sq > 0, size_sq, 1.0)
        aligned = aligned * torch.where(size_sq > 0, fitted, 1.0)[..., None, None]
    return aligned + goal


def _mean(points: Tensor, annotated: Tensor) -> Tensor:  # (*batch, N, C), (*batch, N) -> (*batch, 1, C)
    """Over the annotated points; NaN if there are none."""
    total = torch.where(annotated[..., None], points, 0.0).sum(-2, keepdim=True)
    return total / annotated.sum(-1)[..., None, None]


def _distance(points: Tensor, i: int, j: int) -> Tensor:  # (*batch, N, 3) -> (*batch,)
    return torch.linalg.vector_norm(points[..., i, :] - points[..., j, :], dim=-1)
