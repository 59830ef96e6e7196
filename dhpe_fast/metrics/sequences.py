"""How much a sequence trembles."""

from __future__ import annotations

from dhpe_fast.metrics._arguments import Points, as_given, as_tensor


def second_differences(
    points: Points,  # (T, N, D) any unit
) -> Points:
    """Norms (T - 2, N) of x[t + 1] - 2 x[t] + x[t - 1], in the unit of the points; NaN where one of the three is.

    Zero for points at rest or in uniform motion; dividing by the squared time between frames makes it an acceleration.
    """
    values = as_tensor("points", points).double()
    if values.dim() != 3:
        raise ValueError(f"points: expected (T, N, D), got {tuple(values.shape)}")
    return as_given(points, (values[2:] - 2 * values[1:-1] + values[:-2]).norm(dim=-1))


def jitter(
    points: Points,  # (T, N, D) any unit
) -> float:
    """Mean of ``second_differences`` over frames and points, in their unit: the jitter of a sequence.

    Noise of standard deviation s in each of D coordinates, independent from frame to frame, gives about s sqrt(6 D);
    the motion itself adds its acceleration. Triples with a NaN are left out; NaN if none is left.
    """
    values = as_tensor("differences", second_differences(points))
    return float(values.nanmean())
