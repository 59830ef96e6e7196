"""The share of correct keypoints over a threshold, and the area under that curve."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from dhpe_fast.metrics._arguments import Points
from dhpe_fast.metrics.joints import measured_distances

_ZB2017_MM = tuple(np.linspace(0, 50, 20))

AUC_THRESHOLDS = MappingProxyType(
    {
        # Zimmermann and Brox 2017: 20 thresholds from 0 to 50 mm, and of those the ones from 21.05 mm on, as "20-50".
        "zb2017_0_50": _ZB2017_MM,
        "zb2017_20_50": _ZB2017_MM[8:],
        # The range 20-50 mm of later papers, which divide it into 15, 20 or 100.
        "lin_20_50_15": tuple(np.linspace(20, 50, 15)),
        "lin_20_50_20": tuple(np.linspace(20, 50, 20)),
        "lin_20_50_100": tuple(np.linspace(20, 50, 100)),
        # The evaluation code of FreiHAND and HO-3D, for joints and vertices.
        "freihand_0_50_100": tuple(np.linspace(0, 50, 100)),
        # The range of the paper's Fig. 5(b, d) on Dexter+Object, each millimetre (the paper does not say).
        "do_0_100": tuple(np.linspace(0, 100, 101)),
        # In the image, pixels: Zimmermann and Brox 2017.
        "zb2017_0_30_px": tuple(np.linspace(0, 30, 20)),
    }
)
"""Named thresholds: millimetres, but of those that end in ``_px``."""


def pck_curve(
    distances: Points,  # (S, N), NaN is not measured
    thresholds: str | Sequence[float] | np.ndarray,  # (T,) or a key of AUC_THRESHOLDS
) -> np.ndarray:
    """Share of the points at most `threshold` away (inclusive): (T,) float64, the mean over joints of their shares.

    Every joint counts the same, however often it was measured; those that never were do not count.

    Raises:
        TypeError: if `distances` is neither a tensor nor an array.
        ValueError: if it is not (S, N), nothing was measured, or `thresholds` is not as above.
    """
    values, counts = measured_distances(distances)
    limits = auc_thresholds(thresholds)
    measured = np.flatnonzero(counts)
    # NaN is not below anything, so it is not counted as correct; nor is it among the counts.
    correct = np.stack([(values[:, measured] <= limit).sum(0) for limit in limits])
    return (correct / counts[measured]).mean(1)


def auc(
    distances: Points,  # (S, N), NaN is not measured
    thresholds: str | Sequence[float] | np.ndarray = "zb2017_20_50",  # (T,) or a key of AUC_THRESHOLDS
) -> float:
    """Area under the ``pck_curve`` by the trapezoidal rule, divided by the thresholds' range: in [0, 1].

    Raises:
        TypeError, ValueError: as for ``pck_curve``.
    """
    limits = auc_thresholds(thresholds)
    curve = pck_curve(distances, limits)
    area = float((np.diff(limits) * (curve[1:] + curve[:-1])).sum()) / 2
    return area / (limits[-1] - limits[0])


def auc_thresholds(thresholds: str | Sequence[float] | np.ndarray) -> np.ndarray:
    """The thresholds (T,) float64 of a name or as given; raises ValueError unless they rise and there are two."""
    if isinstance(thresholds, str):
        if thresholds not in AUC_THRESHOLDS:
            raise ValueError(f"thresholds: expected one of {', '.join(AUC_THRESHOLDS)}, got {thresholds!r}")
        thresholds = AUC_THRESHOLDS[thresholds]
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.ndim != 1 or len(limits) < 2 or not (np.diff(limits) > 0).all():
        raise ValueError(f"thresholds: expected two or more rising numbers, got {thresholds!r}")
    return limits
