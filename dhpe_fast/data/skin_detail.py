"""What tells a palm from the back of a hand: nails, creases, folds over the knuckles, tendons and veins.

They are a solid texture (Peachey 1985, *Solid texturing of complex surfaces*, SIGGRAPH): values on a grid of the space
around the hand at rest, looked up for each place that is drawn by where it is at rest. That needs no texture
coordinates, and serves every pose and shape. Metres, in the rest frame of the default right hand; a left one is its
mirror image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dhpe_fast.conventions import FINGER_MCPS, MIDDLE_MCP
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.anatomy import joint_axes

_CELL_M = 0.0012
_NAIL, _RIM, _EDGE, _CREASE, _FOLD, _RELIEF, _VEIN, _PALM = range(8)
"""Layers of the grid: a nail, the dark skin around it, its white edge, creases of palm and fingers, folds over the
joints, tendons and knuckles (bright above 0, dark below), veins, and the palmar side of the hand."""

_INDEX_MCP, _LITTLE_MCP = 5, 17
_DIGITS = ((1, 12), (5, 0), (9, 3), (13, 9), (17, 6))
"""First joint (STD) and first kinematic joint, from 0, of thumb, index, middle, ring and little finger."""


@dataclass(frozen=True, eq=False)
class SkinDetail:
    """The skin of one person, as factors on its albedo."""

    nail: np.ndarray
    """(3,) linear albedo of the nails by that of the skin."""
    creases: float
    """Strengths from 0 (none) to 1 (deep): lines of the palm and of the fingers' palmar side;"""
    folds: float
    """of the skin over the joints;"""
    relief: float
    """tendons and knuckles;"""
    veins: float
    palm: np.ndarray
    """(3,) factor on the albedo of the palmar side."""
    warp: np.ndarray
    """(3, 4): amplitudes (metres) and phases of the waves by which one person's lines differ from another's."""

    @classmethod
    def random(cls, skin_linear: np.ndarray, rng: np.random.Generator) -> SkinDetail:
        """Somebody's; `skin_linear` is the mean albedo (3,) of the skin."""
        clear = np.clip(skin_linear * rng.uniform(1.05, 1.35) + rng.uniform(0.0, 0.10), 0, 1)
        nail = clear * np.array((1.0, 0.93, 0.93))
        if rng.random() < 0.12:  # varnish
            nail = rng.uniform(0.01, 0.9, 3)
        return cls(
            nail=nail / np.maximum(skin_linear, 1e-3),
            creases=rng.uniform(0.15, 0.85),
            folds=rng.uniform(0.15, 0.9),
            relief=rng.uniform(0.0, 1.0),
            veins=rng.uniform(0.0, 1.0) * (rng.random() < 0.6),
            palm=1 + rng.uniform(0, 1) * np.array((0.06, -0.10, -0.08)),
            warp=np.concatenate([rng.normal(0, 0.0009, (3, 2)), rng.uniform(0, 6.28, (3, 2))], axis=1),
        )

    def factor(
        self,
        places: Tensor,  # (N, 3) on the right hand at rest
    ) -> Tensor:
        """Factors (N, 3) on the linear albedo of these places."""
        grid = _grid()
        warp = torch.from_numpy(self.warp).to(places)
        waves = torch.sin(places.roll(1, 1) * 70 + warp[:, 2]) * warp[:, 0]
        waves = waves + torch.sin(places.roll(2, 1) * 160 + warp[:, 3]) * warp[:, 1]
        at = 2 * (places + waves - grid.low) / (grid.high - grid.low) - 1
        found = grid_sample(grid.layers, at[None, None, None], padding_mode="border", align_corners=True)
        nail, rim, edge, crease, fold, relief, vein, palm = found[0, :, 0, 0].unsqueeze(-1).unbind(0)

        def dyed(red: float, green: float, blue: float) -> Tensor:
            return places.new_tensor((red, green, blue))

        skin = 1 - self.creases * crease * dyed(0.45, 0.58, 0.58)
        skin = skin * (1 - self.folds * fold * dyed(0.34, 0.44, 0.46))
        skin = skin * (1 + self.relief * relief * dyed(0.10, 0.13, 0.14))
        skin = skin * (1 - self.veins * vein * dyed(0.22, 0.10, 0.04))
        skin = skin * (1 - 0.5 * rim * dyed(0.5, 0.75, 0.8))
        skin = skin * (1 + palm * (torch.from_numpy(self.palm).to(places) - 1))
        horn = torch.from_numpy(self.nail).to(places) * (1 + 0.25 * edge)
        return skin * (1 - nail) + nail * horn


@dataclass(frozen=True, eq=False)
class _Grid:
    low: Tensor  # (3,)
    high: Tensor  # (3,)
    layers: Tensor  # (1, 8, X, Y, Z) as grid_sample has it: its last axis is the first coordinate


@lru_cache(maxsize=1)
def _grid() -> _Grid:
    model = HandModel.default("right")
    template_m = model.v_template.double().numpy()
    low, high = template_m.min(0) - 0.004, template_m.max(0) + 0.004
    counts = np.ceil((high - low) / _CELL_M).astype(int) + 1
    x, y, z = (np.linspace(a, b, n) for a, b, n in zip(low, high, counts, strict=True))
    places_m = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], axis=-1)
    # Only what is near the surface is ever looked up.
    cell = np.rint((template_m - low) / (high - low) * (counts - 1)).astype(int)
    near = np.zeros(counts[::-1], np.uint8)
    near[cell[:, 2], cell[:, 1], cell[:, 0]] = 1
    near = torch.nn.functional.max_pool3d(torch.from_numpy(near)[None].float(), 13, 1, 6)[0].numpy() > 0
    values = np.zeros((*near.shape, 8), np.float32)
    values[near] = _layers(model, places_m[near])
    layers = torch.from_numpy(np.ascontiguousarray(values.transpose(3, 0, 1, 2)))[None]
    return _Grid(*(torch.from_numpy(corner).float() for corner in (low, high)), layers)


def _layers(
    model: HandModel,
    places_m: np.ndarray,  # (N, 3)
) -> np.ndarray:  # (N, 8)
    template_m = model.v_template.double()
    joints_m = (model.joint_regressor.double() @ template_m).numpy()
    axes = joint_axes(model.rest_joints_m().double().numpy(), model.rest_tips_m().double().numpy())
    values = np.zeros((len(places_m), 8))
    _draw_palm(values, places_m, joints_m)
    for digit, (first, kinematic) in enumerate(_DIGITS):
        for segment in range(3):
            frame = _Bone(places_m, joints_m[first + segment], joints_m[first + segment + 1], axes[kinematic + segment])
            _draw_segment(values, frame, segment, thumb=digit == 0)
    values[:, _FOLD] *= 1 - values[:, _NAIL]
    return values.clip(-1, 1)


class _Bone:
    """Places as seen from a bone: metres `along` it from its first joint, to the `side`, and `up` to the nail."""

    def __init__(self, places_m: np.ndarray, start_m: np.ndarray, end_m: np.ndarray, axes: np.ndarray) -> None:
        offset = places_m - start_m
        self.length = float(np.linalg.norm(end_m - start_m))
        self.side, self.up, self.along = (offset @ axis for axis in axes)
        self.within = np.exp(-((np.hypot(self.side, 0.6 * self.up) / 0.0115) ** 8))
        self.back = _step(self.up - 0.001, 0.0012)

    def line(self, at_m: float, width_m: float = 0.0008) -> np.ndarray:
        """Across the bone, a little bent."""
        return np.exp(-0.5 * ((self.along - at_m - 8.0 * self.side**2) / width_m) ** 2)


def _draw_segment(values: np.ndarray, bone: _Bone, segment: int, thumb: bool) -> None:
    """One phalanx: the creases at its first joint, folds behind that, and the nail on the last."""
    palmar, dorsal = bone.within * (1 - bone.back), bone.within * bone.back
    # The fingers' first crease lies at the web, far from their first joint; the thumb's first bone is in the palm.
    creases = ((), (-0.0005,), (-0.0012, 0.0012)) if thumb else ((0.45 * bone.length,), (-0.0014, 0.0016), (-0.0008,))
    for at_m in creases[segment]:
        _raise(values[:, _CREASE], palmar * bone.line(at_m))
    if segment > 0:
        spread = 0.0035 if segment == 1 else 0.0022
        lines = sum(bone.line(at_m, 0.0006) for at_m in np.arange(-1.5, 2) * spread / 1.5)
        patch = np.exp(-0.5 * (bone.along / spread) ** 2 - 0.5 * (bone.side / 0.006) ** 2)
        _raise(values[:, _FOLD], dorsal * np.minimum(0.7 * lines + 0.35, 1) * patch)
    if segment == 2:
        long_m, wide_m = (0.0070, 0.0066) if thumb else (0.0058, 0.0050)
        from_centre = (bone.along - (bone.length - long_m - 0.0002)) / long_m
        radius = (from_centre**4 + (bone.side / wide_m) ** 4) ** 0.25
        above = bone.within * _step(bone.up - 0.0025, 0.0006)
        _raise(values[:, _NAIL], above * _step(1 - radius, 0.05))
        _raise(values[:, _RIM], above * np.exp(-0.5 * ((radius - 1.08) / 0.09) ** 2) * (from_centre < 0.85))
        _raise(values[:, _EDGE], above * _step(from_centre - 0.72, 0.05))


def _draw_palm(values: np.ndarray, places_m: np.ndarray, joints_m: np.ndarray) -> None:
    """The creases of the palm and the wrist; tendons, knuckles and veins on the back."""
    wrist, middle = joints_m[0], joints_m[MIDDLE_MCP]
    across = joints_m[_LITTLE_MCP] - joints_m[_INDEX_MCP]
    fingers, width_m = middle - wrist, float(np.linalg.norm(across))
    length_m = float(np.linalg.norm(fingers))
    along = fingers / length_m
    across = across - (across @ along) * along
    across /= np.linalg.norm(across)
    up = np.cross(across, along)
    up *= np.sign(up[1])  # the back of the hand faces +y at rest
    offset = places_m - wrist
    # Lengths of the palm from the wrist, widths of the knuckles from the index finger's.
    u = offset @ along / length_m
    v = (offset - (joints_m[_INDEX_MCP] - wrist)) @ across / width_m
    height_m = offset @ up
    back = _step(height_m - 0.004 * np.clip(u, 0, 1), 0.002)
    values[:, _PALM] = 1 - back
    hand = (u < 1.12) & (u > -0.25)
    for curve in _PALM_CREASES:
        near = hand & (back < 0.5)
        distance = _distance_m(u[near], v[near], np.array(curve), length_m, width_m)
        line = np.zeros(len(u))
        line[near] = np.exp(-0.5 * (distance / 0.0010) ** 2) * (1 - back[near])
        _raise(values[:, _CREASE], line)
    for at in (-0.07, -0.12):
        _raise(values[:, _CREASE], 0.7 * (1 - back) * np.exp(-0.5 * ((u - at) * length_m / 0.0008) ** 2))
    for first in FINGER_MCPS:
        knuckle = joints_m[first]
        ku, kv = (knuckle - wrist) @ along / length_m, (knuckle - joints_m[_INDEX_MCP]) @ across / width_m
        # From the wrist's middle to the knuckle.
        share = np.clip(u / ku, 0, 1)
        aside_m = (v - (0.42 + (kv - 0.42) * share)) * width_m
        tendon = np.exp(-0.5 * (aside_m / 0.0018) ** 2) * share * (u < ku) * (u > 0.1)
        values[:, _RELIEF] += back * hand * tendon
        around = ((u - ku) * length_m) ** 2 + ((v - kv) * width_m) ** 2
        _raise(values[:, _FOLD], 0.6 * back * np.exp(-0.5 * around / 0.0055**2))
        valley = ((u - ku - 0.02) * length_m) ** 2 + ((v - kv - 0.17) * width_m) ** 2
        values[:, _RELIEF] -= 1.1 * back * np.exp(-0.5 * valley / 0.0065**2)
    for curve in _VEINS:
        near = hand & (back > 0.5)
        distance = _distance_m(u[near], v[near], np.array(curve), length_m, width_m)
        values[near, _VEIN] = np.maximum(values[near, _VEIN], np.exp(-0.5 * (distance / 0.0013) ** 2) * back[near])


_PALM_CREASES = (
    # (u, v) of Bezier curves: the heart line, from the little finger's edge to between index and middle finger,
    ((0.74, 1.30), (0.78, 0.75), (0.84, 0.45), (1.02, 0.16)),
    # the head line, from the thumb's edge across the palm,
    ((0.78, -0.32), (0.68, 0.20), (0.62, 0.65), (0.40, 1.15)),
    # and the life line around the ball of the thumb.
    ((0.80, -0.34), (0.66, 0.34), (0.30, 0.50), (0.02, 0.36)),
)
_VEINS = (
    ((0.05, 0.9), (0.35, 0.7), (0.5, 0.95), (0.95, 0.82)),
    ((0.1, 0.1), (0.4, 0.35), (0.5, 0.1), (0.9, 0.18)),
    ((0.30, 0.60), (0.5, 0.45), (0.7, 0.62), (0.95, 0.50)),
)


def _distance_m(u: np.ndarray, v: np.ndarray, curve: np.ndarray, length_m: float, width_m: float) -> np.ndarray:
    """Distance of each place from a cubic Bezier curve, metres over the flat palm."""
    scale = np.array((length_m, width_m))
    places = np.stack([u, v], axis=1) * scale
    nearest = np.full(len(u), np.inf)
    for a, b in pairwise(_along(curve * scale)):
        step = b - a
        share = np.clip((places - a) @ step / (step @ step), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(places - a - share[:, None] * step, axis=1))
    return nearest


def _along(curve: np.ndarray) -> Iterator[np.ndarray]:
    for t in np.linspace(0, 1, 17):
        s = 1 - t
        yield s**3 * curve[0] + 3 * s * s * t * curve[1] + 3 * s * t * t * curve[2] + t**3 * curve[3]


def _step(distance: np.ndarray, softness: float) -> np.ndarray:
    """From 0 below to 1 above 0, softly."""
    return 1 / (1 + np.exp(np.clip(-distance / softness, -60, 60)))


def _raise(layer: np.ndarray, to: np.ndarray) -> None:
    np.maximum(layer, to, out=layer)
