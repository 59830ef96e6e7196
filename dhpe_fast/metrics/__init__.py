"""Measures of hands against the truth, for tensors and arrays of any batch, computed in float64.

Points are metres (``_m``) unless a function says otherwise. Results are float64: arrays where the first argument is an
array, tensors on its device where it is a tensor.

NaN in the truth means "not annotated": such points are left out of alignments and means, and their distances are NaN.
Predictions have to be finite, whatever is annotated: one that is not is an error, never left out. Over nothing at all,
a measure of one hand is NaN, and one of a whole set is refused.

A set is measured in three steps: ``joint_distances_mm`` aligns and compares hand by hand, (S, 21) over a set of S;
``epe``, ``pck_curve`` and ``auc`` sum those up, as Zimmermann and Brox do; ``SegmentationCounts`` add up over masks.
"""

from dhpe_fast.metrics.align import (
    ALIGNMENTS,
    align_centroid_scale,
    align_root,
    align_root_scale,
    procrustes_align,
)
from dhpe_fast.metrics.joints import (
    EndPointErrors,
    epe,
    fingertip_distances_mm,
    joint_distances_mm,
    joint_distances_px,
    mpjpe,
    pa_mpjpe_mm,
)
from dhpe_fast.metrics.masks import SegmentationCounts, mask_iou
from dhpe_fast.metrics.meshes import f_score, mpvpe_mm, pa_mpvpe_mm
from dhpe_fast.metrics.pck import AUC_THRESHOLDS, auc, pck_curve
from dhpe_fast.metrics.sequences import jitter, second_differences

__all__ = [
    "ALIGNMENTS",
    "AUC_THRESHOLDS",
    "EndPointErrors",
    "SegmentationCounts",
    "align_centroid_scale",
    "align_root",
    "align_root_scale",
    "auc",
    "epe",
    "f_score",
    "fingertip_distances_mm",
    "jitter",
    "joint_distances_mm",
    "joint_distances_px",
    "mask_iou",
    "mpjpe",
    "mpvpe_mm",
    "pa_mpjpe_mm",
    "pa_mpvpe_mm",
    "pck_curve",
    "procrustes_align",
    "second_differences",
]
