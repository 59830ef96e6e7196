"""The UV map: back and palm as two charts, cut along the sides of the hand and flattened with little stretch."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from dhpe_fast.hand.builder.geometry import boundary_edges

_MARGIN = 0.015


def _charts(faces: np.ndarray, seam: set[tuple[int, int]]) -> np.ndarray:
    """Label faces by the side of the seam on which they lie."""
    owners: dict[tuple[int, int], list[int]] = {}
    for index, face in enumerate(faces.tolist()):
        for corner in range(3):
            a, b = face[corner], face[(corner + 1) % 3]
            owners.setdefault((min(a, b), max(a, b)), []).append(index)
    joined = np.array([pair for edge, pair in owners.items() if len(pair) == 2 and edge not in seam])
    graph = sp.coo_matrix((np.ones(len(joined)), joined.T), shape=(len(faces), len(faces)))
    return connected_components(graph, directed=False)[1]


def _local_frames(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:  # (F, 3, 2)
    """Lay each face flat in its own plane."""
    a, b, c = (verts[faces[:, k]] for k in range(3))
    x = (b - a) / np.linalg.norm(b - a, axis=1, keepdims=True)
    normal = np.cross(b - a, c - a)
    y = np.cross(normal / np.linalg.norm(normal, axis=1, keepdims=True), x)
    flat = [np.zeros((len(faces), 2))]
    flat += [np.stack([((p - a) * x).sum(1), ((p - a) * y).sum(1)], axis=1) for p in (b, c)]
    return np.stack(flat, axis=1)


def _cotangents(flat: np.ndarray) -> np.ndarray:  # (F, 3): half cotangent opposite to edge (k, k + 1)
    result = []
    for corner in range(3):
        u = flat[:, corner] - flat[:, (corner + 2) % 3]
        w = flat[:, (corner + 1) % 3] - flat[:, (corner + 2) % 3]
        cross = np.abs(u[:, 0] * w[:, 1] - u[:, 1] * w[:, 0])
        result.append(0.5 * (u * w).sum(1) / cross)
    return np.clip(np.stack(result, axis=1), 0.02, None)


def _laplacian(weights: np.ndarray, faces: np.ndarray, count: int) -> sp.csc_matrix:
    rows, cols, values = [], [], []
    for corner in range(3):
        i, j, w = faces[:, corner], faces[:, (corner + 1) % 3], weights[:, corner]
        rows += [i, j, i, j]
        cols += [j, i, i, j]
        values += [-w, -w, w, w]
    matrix = sp.coo_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), (count, count))
    return matrix.tocsc()


def flatten_chart(verts: np.ndarray, faces: np.ndarray, start: np.ndarray, rounds: int = 60) -> np.ndarray:
    """Flatten a disc as rigidly as possible (Liu et al. 2008) from a start without flipped faces."""
    flat = _local_frames(verts, faces)
    cotangents = _cotangents(flat)
    system = _laplacian(cotangents, faces, len(verts)) + 1e-10 * sp.eye(len(verts))
    solver = splu(system.tocsc())
    uv = start
    for _ in range(rounds):
        right = np.zeros_like(uv)
        jacobian = np.zeros((len(faces), 2, 2))
        for corner in range(3):
            i, j = faces[:, corner], faces[:, (corner + 1) % 3]
            edge = flat[:, corner] - flat[:, (corner + 1) % 3]
            jacobian += cotangents[:, corner, None, None] * np.einsum("fa,fb->fab", uv[i] - uv[j], edge)
        # The closest rotation to a 2x2 matrix in closed form.
        cosine, sine = jacobian[:, 0, 0] + jacobian[:, 1, 1], jacobian[:, 1, 0] - jacobian[:, 0, 1]
        length = np.maximum(np.hypot(cosine, sine), 1e-15)
        turn = np.stack([cosine, -sine, sine, cosine], axis=1).reshape(-1, 2, 2) / length[:, None, None]
        for corner in range(3):
            i, j = faces[:, corner], faces[:, (corner + 1) % 3]
            edge = flat[:, corner] - flat[:, (corner + 1) % 3]
            pull = cotangents[:, corner, None] * np.einsum("fab,fb->fa", turn, edge)
            np.add.at(right, i, pull)
            np.add.at(right, j, -pull)
        uv = solver.solve(right)
    return uv


def _harmonic(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Tutte's embedding on a circle: no face flipped, whatever the shape."""
    following = dict(boundary_edges(faces).tolist())
    loop = [min(following)]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    points = verts[loop]
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1))])
    angle = 2.0 * np.pi * arc[:-1] / arc[-1]
    uv = np.zeros((len(verts), 2))
    uv[loop] = 0.1 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    graph = _laplacian(np.ones((len(faces), 3)), faces, len(verts)).tocsr()
    inner = np.setdiff1d(np.arange(len(verts)), loop)
    uv[inner] = splu(graph[inner][:, inner].tocsc()).solve(-graph[inner][:, loop] @ uv[loop])
    return uv


def texture_map(verts_m: np.ndarray, faces: np.ndarray, seam: set[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return texture coordinates (U, 2) in [0, 1] and their faces (F, 3); the fingers point up."""
    labels = _charts(faces, seam)
    uv_faces = np.zeros_like(faces)
    charts, offset = [], 0
    order = sorted(range(labels.max() + 1), key=lambda k: -verts_m[faces[labels == k]][..., 1].mean())
    for label in order:
        own = faces[labels == label]
        used, local = np.unique(own, return_inverse=True)
        local = local.reshape(own.shape)
        points = verts_m[used]
        uv = flatten_chart(points, local, _harmonic(points, local))
        uv_faces[labels == label] = local + offset
        offset += len(used)
        charts.append(_upright(uv, points))
    width = sum(np.ptp(uv[:, 0]) for uv in charts) + _MARGIN * (len(charts) + 1) * 0.4
    height = max(np.ptp(uv[:, 1]) for uv in charts)
    scale = (1.0 - 2.0 * _MARGIN) / max(width, height)
    left, placed = _MARGIN, []
    for uv in charts:
        moved = (uv - uv.min(0)) * scale + np.array([left, _MARGIN])
        left = moved[:, 0].max() + _MARGIN
        placed.append(moved)
    return np.vstack(placed), uv_faces


def _upright(uv: np.ndarray, points_m: np.ndarray) -> np.ndarray:
    """Turn a chart so that the fingers (towards -x) point up."""
    centered = uv - uv.mean(0)
    up = -((points_m[:, 0] - points_m[:, 0].mean())[:, None] * centered).sum(0)
    up /= np.linalg.norm(up)
    return np.stack([centered @ np.array([up[1], -up[0]]), centered @ up], axis=1)
