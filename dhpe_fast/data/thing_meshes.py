"""Meshes of what is no hand and may look like one: heads, bare limbs, lumps of skin, tools, bottles and sticks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.data.pictures import SKIN_TONES
from dhpe_fast.hand import Pinhole
from dhpe_fast.rotation import quaternion_to_matrix
from dhpe_fast.shading import SKIN, Lighting, Material, shade

_SECTORS = 28


@dataclass(frozen=True, eq=False)
class ThingMesh:
    """A coloured mesh in the camera's axes: x right, y down, z away."""

    verts_m: Tensor
    """(V, 3)"""
    faces: Tensor
    """(F, 3) int64, outward counter-clockwise"""
    colors: Tensor
    """(V, 3) albedo, sRGB in [0, 1]"""
    material: Material

    def drawn(
        self, camera: Pinhole, image_size: tuple[int, int], light: Lighting, supersample: int | None = None
    ) -> np.ndarray:
        """Lit, alone: float32 (H, W, 4), sRGB and straight alpha; see ``shading.shade``."""
        return shade(
            self.verts_m,
            self.faces,
            camera,
            image_size,
            material=self.material,
            lighting=light,
            vertex_colors=self.colors,
            supersample=supersample,
        )


def random_thing(rng: np.random.Generator) -> tuple[str, ThingMesh]:
    """A thing and its name: "head", upright, or "limb", "lump" or "tool", turned in any way."""
    name = tuple(_MAKERS)[int(rng.integers(len(_MAKERS)))]
    mesh = _MAKERS[name](rng)
    if name == "head":
        return name, mesh
    quat = rng.normal(size=4)
    turn = quaternion_to_matrix(torch.from_numpy(quat / np.linalg.norm(quat))).float()
    return name, ThingMesh(mesh.verts_m @ turn.T, mesh.faces, mesh.colors, mesh.material)


def random_held(rng: np.random.Generator) -> ThingMesh:
    """A thing for a hand: mostly a tool, its longer side along x, else a lump, which may have the colour of skin."""
    return _tool(rng) if rng.random() < 0.7 else _lump(rng)


def tube(
    spine_m: np.ndarray,  # (N, 3)
    radii_m: np.ndarray,  # (N, 2) half axes of the cross-sections
) -> tuple[np.ndarray, np.ndarray]:
    """A surface around a curve: vertices (N * sectors, 3), ring after ring, and faces; small end radii close it."""
    tangent = np.gradient(spine_m, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    aside = np.eye(3)[np.abs(tangent[0]).argmin()]
    first = np.cross(tangent, aside)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(tangent, first)
    angles = np.linspace(0, 2 * np.pi, _SECTORS, endpoint=False)
    rings = (
        spine_m[:, None]
        + radii_m[:, :1, None] * np.cos(angles)[None, :, None] * first[:, None]
        + radii_m[:, 1:, None] * np.sin(angles)[None, :, None] * second[:, None]
    )
    row, column = np.mgrid[: len(spine_m) - 1, :_SECTORS]
    a, b = row * _SECTORS + column, row * _SECTORS + (column + 1) % _SECTORS
    faces = np.concatenate([np.stack([a, b, b + _SECTORS], -1), np.stack([a, b + _SECTORS, a + _SECTORS], -1)])
    return rings.reshape(-1, 3), faces.reshape(-1, 3)


def skin_color(rng: np.random.Generator) -> np.ndarray:
    """Of a random tone of skin: sRGB (3,)."""
    place = rng.uniform(0, len(SKIN_TONES) - 1.001)
    low = int(place)
    mixed = np.array(SKIN_TONES[low]) * (1 - place + low) + np.array(SKIN_TONES[low + 1]) * (place - low)
    return np.clip(mixed * rng.uniform(0.9, 1.1, 3), 0.02, 1)


def _mesh(verts_m: np.ndarray, faces: np.ndarray, colors: np.ndarray, material: Material) -> ThingMesh:
    colors = np.broadcast_to(np.clip(colors, 0.02, 1), verts_m.shape)
    return ThingMesh(
        torch.from_numpy(verts_m - verts_m.mean(0)).float(),
        torch.from_numpy(faces),
        torch.from_numpy(np.array(colors)).float(),
        material,
    )


def _bumps(points: np.ndarray, rng: np.random.Generator, frequency: float) -> np.ndarray:  # (N,) about [-1, 1]
    waves = rng.normal(size=(points.shape[1], 10)) * frequency
    return np.sin(points @ waves + rng.uniform(0, 6.28, 10)).mean(1) * 2


def _ellipsoid(rows: int, half_axes_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces and unit directions from the middle."""
    along = np.linspace(0.01, np.pi - 0.01, rows)
    spine = np.stack([np.zeros(rows), -np.cos(along), np.zeros(rows)], 1)
    directions, faces = tube(spine, np.repeat(np.sin(along)[:, None], 2, 1))
    return directions * half_axes_m, faces, directions


def _head(rng: np.random.Generator) -> ThingMesh:
    """A face of skin with eyes, brows, a nose, a mouth and hair, seen from the front or from a side."""
    verts_m, faces, unit = _ellipsoid(56, np.array((0.075, 0.115, 0.095)) * rng.uniform(0.9, 1.1, 3))
    color = np.tile(skin_color(rng), (len(unit), 1))
    color *= 1 + 0.06 * _bumps(unit, rng, 3.0)[:, None]
    hair = np.clip(skin_color(rng) * rng.uniform(0.08, 0.9), 0.03, 0.8)

    def near(x: float, y: float, reach_x: float, reach_y: float) -> np.ndarray:  # (V, 1) 1 at a place of the face
        square = ((np.abs(unit[:, 0]) - x) / reach_x) ** 2 + ((unit[:, 1] - y) / reach_y) ** 2
        return (np.exp(-(square**2)) * (unit[:, 2] < 0))[:, None]

    mouth = np.array((0.62, 0.28, 0.27)) * rng.uniform(0.6, 1.2)
    for part, tint in (
        (near(0.33, -0.10, 0.13, 0.06), np.array((0.85, 0.85, 0.85))),
        (near(0.33, -0.10, 0.06, 0.06), np.array((0.08, 0.06, 0.05))),
        (near(0.35, -0.27, 0.20, 0.04), hair),
        (near(0.0, 0.50, 0.28, rng.uniform(0.05, 0.12)), mouth),
        (near(0.0, 0.26, 0.11, 0.04), color.mean(0) * 0.5),
    ):
        color = color * (1 - part) + tint * part
    line = rng.uniform(-0.75, -0.45) + 0.9 * np.maximum(0, unit[:, 2] + 0.35)
    color[unit[:, 1] < line + 0.08 * _bumps(unit, rng, 6.0)] = hair
    verts_m = verts_m + near(0.0, 0.12, 0.13, 0.22) * np.array((0.0, 0.0, -0.022))
    turn = rng.normal(0, 0.6)
    cos, sin = np.cos(turn), np.sin(turn)
    verts_m = verts_m @ np.array(((cos, 0, -sin), (0, 1, 0), (sin, 0, cos)))
    return _mesh(verts_m, faces, color, SKIN)


def _limb(rng: np.random.Generator) -> ThingMesh:
    """An arm or a leg without its end, bent or straight, bare or partly in cloth."""
    n, length_m = 48, rng.uniform(0.25, 0.6)
    t = np.linspace(0, 1, n)
    bend = rng.uniform(0, 1.8) * (rng.random() < 0.6)
    angle = bend / (1 + np.exp(-(t - rng.uniform(0.35, 0.65)) / 0.04))
    steps = np.stack([np.cos(angle), np.sin(angle), np.zeros(n)], 1) * length_m / n
    thick = rng.uniform(0.03, 0.07) * (1 + rng.uniform(-0.3, 0.3) * t + 0.12 * np.sin(6.28 * (t + rng.random())))
    thick = thick * np.clip(np.minimum(t, 1 - t) / rng.uniform(0.01, 0.06), 0, 1) ** 0.5
    verts_m, faces = tube(np.cumsum(steps, 0), np.stack([thick, thick * rng.uniform(0.8, 1)], 1) + 1e-4)
    color = skin_color(rng) * (1 + 0.06 * _bumps(verts_m, rng, 40.0)[:, None])
    if rng.random() < 0.4:
        color[: int(rng.integers(10, n - 10)) * _SECTORS] = rng.uniform(0.02, 0.95, 3)
    return _mesh(verts_m, faces, color, SKIN)


def _lump(rng: np.random.Generator) -> ThingMesh:
    """A rounded body with dents: a foot, a knee, bread, leather; of the colour of skin, mostly."""
    verts_m, faces, unit = _ellipsoid(40, np.array((0.09, 0.09, 0.09)) * rng.uniform(0.4, 1.1, 3))
    verts_m = verts_m * (1 + rng.uniform(0.05, 0.25) * _bumps(unit, rng, rng.uniform(1.0, 3.0))[:, None])
    color = skin_color(rng) if rng.random() < 0.75 else rng.uniform(0.05, 0.95, 3)
    return _mesh(verts_m, faces, color * (1 + 0.08 * _bumps(unit, rng, 4.0)[:, None]), SKIN)


def _tool(rng: np.random.Generator) -> ThingMesh:
    """A stick, a bottle, a spoon or a fork, of metal, wood or plastic."""
    n, length_m = 40, 0.2
    t = np.linspace(0, 1, n)
    spine = np.stack([t * length_m, rng.uniform(-0.04, 0.04) * np.sin(3.1 * t), np.zeros(n)], 1)
    form = rng.choice(["stick", "bottle", "spoon", "fork"])
    closing = np.clip(np.minimum(t, 1 - t) / 0.03, 0, 1) ** 0.5
    wide = np.full(n, rng.uniform(0.002, 0.012))
    if form == "bottle":
        wide = np.where(t < rng.uniform(0.55, 0.8), rng.uniform(0.02, 0.04), 0.012)
    flat = wide.copy()
    if form == "spoon":
        flat = np.full(n, 0.003)
        wide = 0.004 + 0.018 * np.exp(-(((t - 0.86) / 0.1) ** 2))
    verts_m, faces = tube(spine, np.stack([flat, wide], 1) * closing[:, None] + 1e-4)
    if form == "fork":
        for aside in np.linspace(-1, 1, int(rng.integers(3, 6))) * rng.uniform(0.008, 0.02):
            ends = spine * (0.35, 1, 1) + (length_m * 0.97, aside, 0)
            tine, its_faces = tube(ends, np.repeat((0.003 * closing + 1e-4)[:, None], 2, 1))
            faces = np.concatenate([faces, its_faces + len(verts_m)])
            verts_m = np.concatenate([verts_m, tine])
    color = np.full(3, rng.uniform(0.2, 0.9)) if rng.random() < 0.4 else rng.uniform(0.03, 0.95, 3)
    gloss = rng.uniform(0, 0.7)
    return _mesh(verts_m, faces, color, Material(tuple(color.tolist()), specular=gloss, shininess=rng.uniform(10, 80)))


_MAKERS: dict[str, Callable[[np.random.Generator], ThingMesh]] = {
    "head": _head,
    "limb": _limb,
    "lump": _lump,
    "tool": _tool,
}
