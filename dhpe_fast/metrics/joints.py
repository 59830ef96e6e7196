"""Distances between corresponding points, of one hand and over a set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import N_JOINTS_STD, STD_TIPS
from dhpe_fast.metrics._arguments import MM_PER_M, Points, as_given, as_tensor, point_pair
from dhpe_fast.metrics.align import ALIGNMENTS, procrustes_align


def mpjpe(
    predicted: Points,  # (*batch, N, 3)
    truth: Points,  # (*batch, N, 3)
) -> Points:
    """Mean distance between corresponding points, (*batch,), in the unit of the points; nothing is aligned.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``.
    """
    a, b, _ = point_pair(("predicted", predicted), ("truth", truth))
    return as_given(predicted, torch.linalg.vector_norm(a - b, dim=-1).nanmean(-1))


def pa_mpjpe_mm(
    predicted_m: Points,  # (*batch, N, 3)
    truth_m: Points,  # (*batch, N, 3)
    *,
    reflection: bool = False,
) -> Points:
    """Mean distance in millimetres after ``procrustes_align``, (*batch,): the error of shape and pose alone.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``.
    """
    a, b, _ = point_pair(("predicted_m", predicted_m), ("truth_m", truth_m))
    distance = torch.linalg.vector_norm(procrustes_align(a, b, reflection=reflection) - b, dim=-1)
    return as_given(predicted_m, MM_PER_M * distance.nanmean(-1))


def joint_distances_mm(
    predicted_m: Points,  # (*batch, N, 3)
    truth_m: Points,  # (*batch, N, 3)
    *,
    alignment: str = "none",
    visible: Points | None = None,  # (*batch, N) bool
) -> Points:
    """Distances in millimetres of corresponding points (*batch, N) once each hand is aligned.

    Args:
        predicted_m: the 21 joints or any other points.
        truth_m: the true ones.
        alignment: a key of ``ALIGNMENTS``, each a function with the defaults of its parameters; call another variant
            yourself and pass its result with "none".
        visible: which points to measure, beside those that are annotated. Zimmermann and Brox measure the joints that
            are annotated as visible, most others all. Alignments use every annotated point.

    Returns:
        NaN for points that are not measured, and for hands that the alignment cannot place.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``; or `alignment` is unknown, or `visible` has another shape.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment: expected one of {', '.join(ALIGNMENTS)}, got {alignment!r}")
    a, b, annotated = point_pair(("predicted_m", predicted_m), ("truth_m", truth_m))
    distance_mm = MM_PER_M * torch.linalg.vector_norm(ALIGNMENTS[alignment](a, b) - b, dim=-1)
    return as_given(predicted_m, torch.where(_measured(annotated, visible), distance_mm, torch.nan))


def joint_distances_px(
    predicted_px: Points,  # (*batch, N, 2)
    truth_px: Points,  # (*batch, N, 2)
    *,
    visible: Points | None = None,  # (*batch, N) bool
) -> Points:
    """Distances in pixels of corresponding points in an image, (*batch, N); NaN for those that are not measured.

    Raises:
        TypeError, ValueError: as for ``joint_distances_mm``.
    """
    a, b, annotated = point_pair(("predicted_px", predicted_px), ("truth_px", truth_px), 2)
    distance_px = torch.linalg.vector_norm(a - b, dim=-1)
    return as_given(predicted_px, torch.where(_measured(annotated, visible), distance_px, torch.nan))


def fingertip_distances_mm(
    predicted_m: Points,  # (*batch, 21, 3)
    truth_m: Points,  # (*batch, 21, 3), or the tips alone (*batch, 5, 3)
    *,
    alignment: str = "none",
) -> Points:
    """Distances in millimetres of the five fingertips (*batch, 5), thumb to little: the protocol of Dexter+Object.

    That data set knows no other joints. It is measured with absolute coordinates ("none": Sridhar et al. 2016, Mueller
    et al. 2018, Iqbal et al. 2018) or with the tips aligned among themselves ("centroid_scale", "procrustes").

    Raises:
        TypeError, ValueError: as for ``joint_distances_mm``; or `predicted_m` are not 21 joints.
    """
    if as_tensor("predicted_m", predicted_m).shape[-2:] != (N_JOINTS_STD, 3):
        raise ValueError(f"predicted_m: expected (*batch, {N_JOINTS_STD}, 3), got {tuple(predicted_m.shape)}")
    tips = list(STD_TIPS)
    if as_tensor("truth_m", truth_m).shape[-2:] == (N_JOINTS_STD, 3):
        truth_m = truth_m[..., tips, :]
    return joint_distances_mm(predicted_m[..., tips, :], truth_m, alignment=alignment)


@dataclass(frozen=True, eq=False)
class EndPointErrors:
    """Distances over a set, summed up as by Zimmermann and Brox 2017, in the unit of the distances."""

    mean: float
    """Mean over joints of their means."""
    median: float
    """Mean over joints of their medians, what they call the median."""
    joint_means: np.ndarray
    """(N,), NaN for joints that were never measured; these do not count above."""
    joint_medians: np.ndarray
    """(N,), the same."""
    counts: np.ndarray
    """(N,) how often each joint was measured."""


def epe(
    distances: Points,  # (S, N), NaN is not measured
) -> EndPointErrors:
    """End-point errors of a set of S hands.

    Raises:
        TypeError: if `distances` is neither a tensor nor an array.
        ValueError: if it is not (S, N), or nothing was measured.
    """
    values, counts = measured_distances(distances)
    joints = np.flatnonzero(counts)
    means, medians = np.full((2, len(counts)), np.nan)
    for joint in joints:
        one = values[:, joint]
        one = one[~np.isnan(one)]
        means[joint], medians[joint] = one.mean(), np.median(one)
    return EndPointErrors(float(means[joints].mean()), float(medians[joints].mean()), means, medians, counts)


def measured_distances(
    distances: Points,  # (S, N), NaN is not measured
) -> tuple[np.ndarray, np.ndarray]:
    """The distances (S, N) float64, and how many there are of each joint (N,); raises as ``epe``."""
    values = as_tensor("distances", distances).double().cpu().numpy()
    if values.ndim != 2:
        raise ValueError(f"distances: expected (S, N), a row for each hand of the set, got {values.shape}")
    counts = (~np.isnan(values)).sum(0)
    if not counts.any():
        raise ValueError(f"distances {values.shape}: nothing was measured, there is no distance that is not NaN")
    return values, counts


def _measured(annotated: Tensor, visible: Points | None) -> Tensor:
    if visible is None:
        return annotated
    flags = as_tensor("visible", visible)
    if flags.dtype != torch.bool or flags.shape != annotated.shape:
        raise ValueError(f"visible: expected bool {tuple(annotated.shape)}, got {tuple(flags.shape)} {flags.dtype}")
    return annotated & flags.to(annotated.device)
