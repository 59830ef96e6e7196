"""Measures of surfaces: errors of corresponding vertices, and the F-score, which needs no correspondence."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.metrics._arguments import MM_PER_M, Points, as_given, point_pair
from dhpe_fast.metrics.joints import mpjpe, pa_mpjpe_mm


def mpvpe_mm(
    predicted_m: Points,  # (*batch, V, 3)
    truth_m: Points,  # (*batch, V, 3)
) -> Points:
    """Mean distance between corresponding vertices, millimetres (*batch,); nothing is aligned.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``.
    """
    return MM_PER_M * mpjpe(predicted_m, truth_m)


def pa_mpvpe_mm(
    predicted_m: Points,  # (*batch, V, 3)
    truth_m: Points,  # (*batch, V, 3)
    *,
    reflection: bool = False,
) -> Points:
    """Mean distance between corresponding vertices, millimetres (*batch,), after ``procrustes_align``.

    The vertices are aligned among themselves, not by the joints, as in the evaluation code of FreiHAND.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``.
    """
    return pa_mpjpe_mm(predicted_m, truth_m, reflection=reflection)


def f_score(
    predicted_m: Points,  # (*batch, V, 3)
    truth_m: Points,  # (*batch, V, 3)
    threshold_mm: float,
) -> Points:
    """Harmonic mean of precision and recall of the vertices (*batch,), in [0, 1]; nothing is aligned.

    Precision is the share of predicted vertices nearer than the threshold (exclusive) to some true vertex, recall the
    share of true vertices nearer than it to some predicted one. FreiHAND reports it at 5 and 15 mm. Source: Knapitsch
    et al. 2017, *Tanks and Temples*, ACM TOG 36(4).

    Returns:
        0 where no vertex is near; NaN where no vertex is annotated.

    Raises:
        TypeError, ValueError: as for ``procrustes_align``; or the threshold is not positive.
    """
    if not threshold_mm > 0:
        raise ValueError(f"threshold_mm: expected a number > 0, got {threshold_mm}")
    a, b, annotated = point_pair(("predicted_m", predicted_m), ("truth_m", truth_m))
    # Hand by hand: the distances of all pairs of vertices of a set would not fit into memory.
    hands = zip(*(part.reshape(-1, *a.shape[-2:]) for part in (a, b)), annotated.reshape(-1, a.shape[-2]), strict=True)
    scores = [_f_score(one, other[known], threshold_mm / MM_PER_M) for one, other, known in hands]
    return as_given(predicted_m, torch.stack(scores).reshape(a.shape[:-2]) if scores else a.new_zeros(a.shape[:-2]))


def _f_score(predicted: Tensor, truth: Tensor, threshold: float) -> Tensor:  # (V, 3), (W, 3) -> ()
    if len(truth) == 0:
        return predicted.new_tensor(torch.nan)
    # Not by the matrix product: it cancels, and vertices lie millimetres apart at a distance of a metre.
    distance = torch.cdist(predicted, truth, compute_mode="donot_use_mm_for_euclid_dist")
    precision, recall = ((distance.amin(axis) < threshold).double().mean() for axis in (1, 0))
    return 2 * precision * recall / (precision + recall).clamp_min(1e-300)
