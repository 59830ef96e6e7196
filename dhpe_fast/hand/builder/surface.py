"""The skin of the mean hand as an implicit surface.

The field is negative inside and close to a signed distance (metres) near the skin. It is a smooth union of
swept tubes with anatomical cross-sections (digits with their metacarpals), a wrist, muscle bellies and webs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.spatial import cKDTree

from dhpe_fast.hand.anatomy import FINGERS
from dhpe_fast.hand.builder.anthropometry import DIGITS, JOINT_BREADTHS_MM, Skeleton

Field = Callable[[np.ndarray], np.ndarray]

_SAMPLES = 96
_EXPONENT = 2.25  # of the cross-section superellipse: slightly boxier than an ellipse


def smooth_union(first: np.ndarray, second: np.ndarray, radius_m: float | np.ndarray) -> np.ndarray:
    """Polynomial smooth minimum: equals ``minimum`` where the fields differ by ``radius_m`` or more."""
    blend = np.maximum(radius_m - np.abs(first - second), 0.0) / radius_m
    return np.minimum(first, second) - blend * blend * radius_m / 4.0


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@dataclass(frozen=True)
class Tube:
    """A tube swept along a curve with a varying, up-down asymmetric cross-section and rounded ends.

    Attributes:
        centers_m: (N, 3) curve samples; ``arc_m`` (N,) their arc length, zero at the digit's first joint.
        along, side, up: (N, 3) unit frames: towards the tip, across, towards the back.
        half_m: (N, 3) half-widths: sideways, towards the back, towards the palm.
        ends_m: Arc length where the proximal and the distal cap begin, and the length of each cap.
    """

    centers_m: np.ndarray
    arc_m: np.ndarray
    along: np.ndarray
    side: np.ndarray
    up: np.ndarray
    half_m: np.ndarray
    ends_m: tuple[float, float, float, float]

    @cached_property
    def tree(self) -> cKDTree:
        """Spatial index of the curve samples."""
        return cKDTree(self.centers_m)

    def at(self, arc_m: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Interpolate per-sample rows at arc lengths (clamped to the curve)."""
        return np.stack([np.interp(arc_m, self.arc_m, column) for column in rows.T], axis=-1)

    def local(self, points_m: np.ndarray) -> np.ndarray:  # (P, 3)
        """Return arc length, sideways and upward offset of points (arc length extrapolates past the ends)."""
        arc = self.arc_m[self.tree.query(points_m)[1]]
        for _ in range(2):
            arc = arc + ((points_m - self._center(arc)) * _unit(self.at(arc, self.along))).sum(-1)
        offset = points_m - self._center(arc)
        side = (offset * _unit(self.at(arc, self.side))).sum(-1)
        up = (offset * _unit(self.at(arc, self.up))).sum(-1)
        return np.stack([arc, side, up], axis=-1)

    def _center(self, arc_m: np.ndarray) -> np.ndarray:
        beyond = arc_m - np.clip(arc_m, self.arc_m[0], self.arc_m[-1])
        return self.at(arc_m, self.centers_m) + beyond[:, None] * self.at(arc_m, self.along)

    def frame(self, arc_m: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the centre (3,) and the frame (3, 3) (rows along, side, up) at one arc length."""
        arc = np.array([arc_m])
        rows = [_unit(self.at(arc, axis))[0] for axis in (self.along, self.side, self.up)]
        return self._center(arc)[0], np.array(rows)

    def field(self, points_m: np.ndarray) -> np.ndarray:
        """Radial distance to the tube, negative inside."""
        arc, side, up = self.local(points_m).T
        start, stop, start_cap, stop_cap = self.ends_m
        half = self.at(np.clip(arc, start, stop), self.half_m)
        past = np.where(arc > stop, (arc - stop) / stop_cap, np.minimum(arc - start, 0.0) / start_cap)
        length = np.where(arc > stop, arc - stop, np.minimum(arc - start, 0.0))
        height = np.where(up > 0.0, half[:, 1], half[:, 2])
        scaled = np.abs(np.stack([side / half[:, 0], up / height, past], axis=-1))
        ratio = np.maximum((scaled**_EXPONENT).sum(-1), 1e-12) ** (1.0 / _EXPONENT)
        radius = np.sqrt(side**2 + up**2 + length**2)
        inside = -np.minimum(half[:, 0], height)
        return np.where(ratio < 1e-3, inside, radius * (1.0 - 1.0 / ratio))


# Half-widths in millimetres (sideways, back, palm) at stations given as (segment, fraction): segment 0 is the
# metacarpal, 1..3 the phalanges; for the middle finger.  The others scale with their joint breadths.
_FINGER_PROFILE = (
    (0, 0.00, 9.0, 9.0, 12.0),
    (0, 0.50, 9.6, 9.0, 13.8),
    (0, 0.82, 10.1, 9.8, 15.5),
    (1, 0.00, 10.6, 11.0, 15.8),
    (1, 0.22, 10.3, 9.5, 14.0),
    (1, 0.55, 9.6, 8.0, 10.8),
    (1, 0.82, 9.4, 7.7, 9.4),
    (2, 0.00, 9.8, 8.1, 8.9),
    (2, 0.30, 9.2, 7.2, 9.2),
    (2, 0.55, 8.8, 6.8, 9.0),
    (2, 0.85, 8.5, 6.5, 7.7),
    (3, 0.00, 8.6, 6.4, 7.6),
    (3, 0.24, 8.4, 5.9, 8.1),
    (3, 0.46, 8.2, 5.4, 8.4),
    (3, 0.60, 7.9, 5.1, 8.2),
)
_THUMB_PROFILE = (
    (1, 0.00, 9.8, 9.8, 12.5),
    (1, 0.35, 11.5, 10.0, 15.5),
    (1, 0.70, 10.8, 9.4, 13.5),
    (2, 0.00, 11.1, 10.3, 11.6),
    (2, 0.30, 10.1, 8.9, 10.4),
    (2, 0.65, 9.7, 8.0, 9.5),
    (3, 0.00, 10.6, 8.2, 9.1),
    (3, 0.25, 10.7, 7.4, 9.9),
    (3, 0.45, 10.3, 6.7, 9.9),
    (3, 0.58, 9.9, 6.2, 9.5),
)
_CAP_START = {"finger": 0.60, "thumb": 0.58}


def _digit_tube(skeleton: Skeleton, digit: str) -> Tube:
    chain = skeleton.chain(digit)
    thumb = digit == "thumb"
    first = chain[:1] - 0.15 * (chain[1:2] - chain[:1]) if thumb else skeleton.carpals_m[digit][None]
    knots = np.vstack([first, chain])
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    arc -= arc[1]
    curve = CubicSpline(arc, knots, bc_type="natural")
    samples = np.linspace(arc[0], arc[-1], _SAMPLES)
    along = _unit(curve(samples, 1))
    up = skeleton.dorsal[digit] - along * (along @ skeleton.dorsal[digit])[:, None]
    up = _unit(up)
    profile = _THUMB_PROFILE if thumb else _FINGER_PROFILE
    stations = [arc[segment] + fraction * (arc[segment + 1] - arc[segment]) for segment, fraction, *_ in profile]
    scale = JOINT_BREADTHS_MM[digit][0] / JOINT_BREADTHS_MM["thumb" if thumb else "middle"][0]
    half_mm = np.array([row[2:] for row in profile]) * scale
    half = PchipInterpolator(stations, half_mm / 1000.0)(np.clip(samples, stations[0], stations[-1]))
    stop = arc[3] + _CAP_START["thumb" if thumb else "finger"] * (arc[4] - arc[3])
    return Tube(curve(samples), samples, along, np.cross(along, up), up, half, (arc[0], stop, 0.012, arc[4] - stop))


def _ellipsoid(points_m: np.ndarray, center_m: np.ndarray, axes: np.ndarray, radii_m: np.ndarray) -> np.ndarray:
    local = (points_m - center_m) @ axes.T
    ratio = np.maximum(np.linalg.norm(local / radii_m, axis=1), 1e-9)
    return np.linalg.norm(local, axis=1) * (1.0 - 1.0 / np.maximum(ratio, 1e-3))


def _capsule(points_m: np.ndarray, start_m: np.ndarray, stop_m: np.ndarray, radius_m: float) -> np.ndarray:
    axis = stop_m - start_m
    along = np.clip((points_m - start_m) @ axis / (axis @ axis), 0.0, 1.0)
    return np.linalg.norm(points_m - start_m - along[:, None] * axis, axis=1) - radius_m


def _axes_along(direction: np.ndarray, up: np.ndarray) -> np.ndarray:
    along = direction / np.linalg.norm(direction)
    up = up - along * (up @ along)
    up = up / np.linalg.norm(up)
    return np.array([along, up, np.cross(along, up)])


class HandSurface:
    """The implicit skin of a hand with a given skeleton."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        self.tubes = {digit: _digit_tube(skeleton, digit) for digit in DIGITS}

    def field(self, points_m: np.ndarray) -> np.ndarray:  # (P,)
        """Return the field at points (P, 3)."""
        fingers = {digit: self.tubes[digit].field(points_m) for digit in FINGERS}
        result = self._wrist(points_m)
        for digit in ("middle", "ring", "index", "little"):
            # Metacarpals melt into the palm; past the knuckle the fingers stay apart.
            arc = self.tubes[digit].local(points_m)[:, 0]
            apart = np.clip((arc + 0.006) / 0.018, 0.0, 1.0)
            result = smooth_union(result, fingers[digit], 0.010 - 0.0078 * apart * apart * (3.0 - 2.0 * apart))
        result = smooth_union(result, self._hypothenar(points_m), 0.014)
        result = smooth_union(result, self._finger_webs(points_m), 0.008)
        thumb = smooth_union(self.tubes["thumb"].field(points_m), self._thenar(points_m), 0.014)
        thumb = smooth_union(thumb, self._thumb_web(points_m), 0.012)
        result = smooth_union(result, self._thumb_root(points_m), 0.014)
        return smooth_union(result, thumb, 0.015)

    def gradient(self, points_m: np.ndarray, step_m: float = 2e-5) -> np.ndarray:  # (P, 3)
        """Return the central-difference gradient of the field."""
        columns = []
        for axis in np.eye(3) * step_m:
            columns.append((self.field(points_m + axis) - self.field(points_m - axis)) / (2.0 * step_m))
        return np.stack(columns, axis=-1)

    def project(self, points_m: np.ndarray, steps: int = 4) -> np.ndarray:  # (P, 3)
        """Move points along the gradient onto the skin."""
        points = points_m
        for _ in range(steps):
            gradient = self.gradient(points)
            norm_sq = np.maximum((gradient**2).sum(-1), 0.05)
            move = np.clip(self.field(points) / norm_sq, -0.004, 0.004)
            points = points - gradient * move[:, None]
        return points

    def cast(self, origin_m: np.ndarray, direction: np.ndarray, field: Field | None = None) -> np.ndarray:
        """Return the first skin point on each ray from inside, (P, 3) origins and unit directions."""
        field = field or self.field
        steps = np.linspace(0.0, 0.06, 61)
        values = np.stack([field(origin_m + direction * step) for step in steps])
        outside = values > 0.0
        first = np.where(outside.any(0), outside.argmax(0), len(steps) - 1)
        high = steps[first]
        low = steps[np.maximum(first - 1, 0)]
        for _ in range(16):
            middle = 0.5 * (low + high)
            out = field(origin_m + direction * middle[:, None]) > 0.0
            low, high = np.where(out, low, middle), np.where(out, middle, high)
        return origin_m + direction * high[:, None]

    def _wrist(self, points_m: np.ndarray) -> np.ndarray:
        wrist = self.skeleton.joints_m[0]
        start = wrist + np.array([0.045, -0.001, 0.0])
        axes = np.eye(3)
        local = (points_m - start) @ axes
        # Half-widths grow from the forearm's end to the carpus: an ellipse of the published circumference.
        depth = np.clip(-local[:, 0], 0.0, 0.075)
        across = np.interp(depth, [0.0, 0.028, 0.045, 0.060, 0.075], [0.0290, 0.0285, 0.0293, 0.0315, 0.0320])
        height = np.where(local[:, 1] > 0.0, 0.0165, 0.0190)
        past = np.minimum(local[:, 0] + 0.072, 0.0) / 0.02
        beyond = np.minimum(local[:, 0] + 0.072, 0.0)
        scaled = np.stack([local[:, 2] / across, local[:, 1] / height, past], axis=-1)
        ratio = np.maximum((np.abs(scaled) ** 2.2).sum(-1) ** (1 / 2.2), 1e-3)
        radius = np.sqrt(local[:, 2] ** 2 + local[:, 1] ** 2 + beyond**2)
        return radius * (1.0 - 1.0 / ratio)

    def _thenar(self, points_m: np.ndarray) -> np.ndarray:
        base, tip = self.skeleton.chain("thumb")[:2]
        center = base + 0.42 * (tip - base) + np.array([-0.002, -0.0045, -0.006])
        axes = _axes_along(tip - base, np.array([0.0, 1.0, 0.0]))
        return _ellipsoid(points_m, center, axes, np.array([0.029, 0.0135, 0.0165]))

    def _thumb_root(self, points_m: np.ndarray) -> np.ndarray:
        """The radial side of the carpus, which leads from the wrist into the thumb's base."""
        wrist, base = self.skeleton.joints_m[0], self.skeleton.chain("thumb")[0]
        return _capsule(points_m, wrist + np.array([0.012, -0.001, 0.0145]), base, 0.0135)

    def _hypothenar(self, points_m: np.ndarray) -> np.ndarray:
        wrist, little = self.skeleton.joints_m[0], self.skeleton.chain("little")[0]
        center = wrist + 0.52 * (little - wrist) + np.array([0.0, -0.011, -0.0045])
        axes = _axes_along(little - wrist, np.array([0.0, 1.0, 0.0]))
        return _ellipsoid(points_m, center, axes, np.array([0.036, 0.0125, 0.0125]))

    def _finger_webs(self, points_m: np.ndarray) -> np.ndarray:
        result = np.full(len(points_m), np.inf)
        # The skin slopes from the valley between two knuckles down to the web's edge on the palm's side.
        for first, second in (("index", "middle"), ("middle", "ring"), ("ring", "little")):
            one, other = self.skeleton.chain(first), self.skeleton.chain(second)
            pair = np.full(len(points_m), np.inf)
            for fraction, drop, radius in (
                (-0.02, 0.0025, 0.0072),
                (0.15, 0.0040, 0.0064),
                (0.28, 0.0060, 0.0050),
            ):
                shift = np.array([0.0, -drop, 0.0])
                ends = [chain[0] + fraction * (chain[1] - chain[0]) + shift for chain in (one, other)]
                pair = smooth_union(pair, _capsule(points_m, *ends, radius), 0.003)
            result = np.minimum(result, pair)
        return result

    def _thumb_web(self, points_m: np.ndarray) -> np.ndarray:
        thumb, index = self.skeleton.chain("thumb"), self.skeleton.chain("index")
        carpal = self.skeleton.carpals_m["index"]
        result = np.full(len(points_m), np.inf)
        for fraction in (0.25, 0.42, 0.58):
            first = thumb[0] + fraction * 1.1 * (thumb[1] - thumb[0])
            second = carpal + fraction * 0.95 * (index[0] - carpal) + np.array([0.0, -0.004, 0.0])
            result = smooth_union(result, _capsule(points_m, first, second, 0.0075), 0.008)
        return result
