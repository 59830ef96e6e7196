"""Small meshes in pixels for the rasterizer's and the silhouettes' tests, and how the latter call what they test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from dhpe_fast import ops, reference

SILHOUETTES = {"twin": reference.silhouette, "kernel": ops.silhouette}

_coordinates = st.one_of(
    st.floats(-40, 60, width=32),
    st.integers(-4, 40).map(lambda n: n / 2),
    st.sampled_from([2.0**24, -(2.0**24), float("nan"), float("inf"), 1e-38, 3e38]),
)
hostile_verts = st.lists(_coordinates, min_size=15, max_size=15).map(lambda c: torch.tensor(c).reshape(5, 3))
"""Five vertices (5, 3) px, float32: on pixel centres and borders, far away, NaN and infinite."""
hostile_faces = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), max_size=6).map(
    lambda ids: torch.tensor(ids, dtype=torch.int64).reshape(-1, 3)
)
"""Up to six faces (F, 3) over them, some of them with a vertex twice."""
small_images = st.tuples(st.integers(1, 20), st.integers(1, 40))
"""(height, width) px."""


def silhouette_call(implementation: str, device: torch.device, mode: str) -> Callable[..., torch.Tensor]:
    """``silhouette(verts_px, faces, image_size, **options)`` of one of SILHOUETTES on a device; its mask on the CPU."""
    if implementation == "twin" and device.type == "cuda":
        pytest.skip("the twin is pure torch: its answers are those of the CPU")

    def call(verts_px, faces, image_size, **options) -> torch.Tensor:
        faces = torch.as_tensor(faces).reshape(-1, 3).to(device)
        return SILHOUETTES[implementation](verts_px.to(device), faces, image_size, mode=mode, **options).cpu()

    return call


def jittered_grid(n: int = 9, size: float = 32.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A grid of n x n jittered vertices (V, 3) px over the square [0, size]^2, and its triangles."""
    rng = np.random.default_rng(seed)
    at = np.linspace(0, size, n)
    x, y = np.meshgrid(at, at)
    jitter = rng.uniform(-0.35, 0.35, (2, n, n)) * size / (n - 1)
    jitter[:, [0, -1], :] = 0
    jitter[:, :, [0, -1]] = 0
    verts = np.stack([x + jitter[0], y + jitter[1], rng.uniform(1, 2, (n, n))], -1).reshape(-1, 3)
    faces = []
    for row in range(n - 1):
        for column in range(n - 1):
            a, b = row * n + column, row * n + column + 1
            c, d = a + n, b + n
            faces += [[a, c, b], [b, c, d]] if rng.random() < 0.5 else [[a, d, b], [a, c, d]]
    ids = rng.permutation(n * n)  # so that an edge's order of ids does not follow its direction
    shuffled = np.empty_like(verts)
    shuffled[ids] = verts
    return torch.tensor(shuffled), torch.tensor(ids[np.array(faces)])


def sphere(centre=(16.0, 16.0, 50.0), radius: float = 11.0, n_rings: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """A closed sphere (V, 3) px with outward faces: right-hand normals point away from the centre."""
    n_around = 2 * n_rings
    polar = np.linspace(0, np.pi, n_rings + 2)[1:-1]
    azimuth = np.arange(n_around) * 2 * np.pi / n_around + 0.1
    ring = np.stack(
        [
            np.sin(polar)[:, None] * np.cos(azimuth),
            np.sin(polar)[:, None] * np.sin(azimuth),
            np.cos(polar)[:, None] * np.ones_like(azimuth),
        ],
        -1,
    ).reshape(-1, 3)
    verts = np.concatenate([ring, [[0, 0, 1], [0, 0, -1]]])
    north, south = len(ring), len(ring) + 1
    faces = []
    for k in range(n_around):
        after = (k + 1) % n_around
        faces.append([north, k, after])
        faces.append([south, (n_rings - 1) * n_around + after, (n_rings - 1) * n_around + k])
        for r in range(n_rings - 1):
            a, b = r * n_around + k, r * n_around + after
            faces += [[a, a + n_around, b], [b, a + n_around, b + n_around]]
    return torch.tensor(verts * radius + np.array(centre)), torch.tensor(faces)


def soup(n_faces: int, size: float, seed: int, spread: float = 1.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Triangles anywhere in and around the image, of both orientations, some of them sharing vertices."""
    rng = np.random.default_rng(seed)
    n_verts = 2 * n_faces + 3
    xy = (rng.random((n_verts, 2)) - 0.5) * spread * size + size / 2
    verts = np.concatenate([xy, rng.uniform(1, 3, (n_verts, 1))], 1)
    faces = np.stack([rng.permutation(n_verts)[:3] for _ in range(n_faces)])
    return torch.tensor(verts), torch.tensor(faces)
