"""Small mesh tools of the builder: edges, normals, volume, smoothing and self-intersection."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree


def unique_edges(faces: np.ndarray) -> np.ndarray:  # (E, 2)
    """Return each undirected edge once, sorted."""
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    return np.unique(edges, axis=0)


def boundary_edges(faces: np.ndarray) -> np.ndarray:  # (B, 2)
    """Return the edges that belong to one face only, in the direction in which the face runs them."""
    directed = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    _, index, counts = np.unique(np.sort(directed, axis=1), axis=0, return_index=True, return_counts=True)
    return directed[index[counts == 1]]


def boundary_loop(faces: np.ndarray) -> np.ndarray:
    """Return the vertices of the one open border, in order."""
    following = dict(boundary_edges(faces).tolist())
    loop = [min(following)]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    return np.array(loop)


def face_normals(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return area-weighted face normals (twice the area long)."""
    a, b, c = verts[faces[:, 0]], verts[faces[:, 1]], verts[faces[:, 2]]
    return np.cross(b - a, c - a)


def vertex_normals(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return unit vertex normals: area-weighted means of the faces around."""
    normals = np.zeros_like(verts)
    flat = face_normals(verts, faces)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], flat)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-15)


def closed_faces(faces: np.ndarray, n_verts: int) -> np.ndarray:
    """Close the border with a fan around a new vertex ``n_verts`` (to be placed at the border's centre)."""
    edges = boundary_edges(faces)
    cap = np.column_stack([edges[:, 1], edges[:, 0], np.full(len(edges), n_verts)])
    return np.vstack([faces, cap])


def volume(verts: np.ndarray, faces: np.ndarray) -> float:
    """Return the volume enclosed by the mesh with its border closed by a fan."""
    rim = boundary_loop(faces)
    points = np.vstack([verts, verts[rim].mean(0)])
    tris = points[closed_faces(faces, len(verts))]
    return float(np.einsum("fi,fi->", tris[:, 0], np.cross(tris[:, 1], tris[:, 2])) / 6.0)


def averaging_matrix(faces: np.ndarray, n_verts: int) -> sp.csr_matrix:
    """Return the sparse matrix that replaces each vertex value by the mean of its neighbours."""
    edges = unique_edges(faces)
    rows = np.concatenate([edges[:, 0], edges[:, 1]])
    cols = np.concatenate([edges[:, 1], edges[:, 0]])
    graph = sp.csr_matrix((np.ones(len(rows)), (rows, cols)), shape=(n_verts, n_verts))
    return sp.diags(1.0 / np.asarray(graph.sum(1)).ravel()) @ graph


def corner_angles(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:  # (F, 3)
    """Return the three angles of each face in radians."""
    angles = []
    for corner in range(3):
        a = verts[faces[:, corner]]
        u = verts[faces[:, (corner + 1) % 3]] - a
        w = verts[faces[:, (corner + 2) % 3]] - a
        angles.append(np.arctan2(np.linalg.norm(np.cross(u, w), axis=1), (u * w).sum(1)))
    return np.stack(angles, axis=1)


def flip_edges(verts: np.ndarray, faces: np.ndarray, locked: set[tuple[int, int]], rounds: int = 20) -> np.ndarray:
    """Flip unlocked edges while that makes the opposite angles smaller (Delaunay) on nearly flat quads."""
    faces = faces.copy()
    for _ in range(rounds):
        owners: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for index, face in enumerate(faces):
            for corner in range(3):
                pair = (int(face[corner]), int(face[(corner + 1) % 3]))
                owners.setdefault((min(pair), max(pair)), []).append((index, corner))
        angles = corner_angles(verts, faces)
        normals = face_normals(verts, faces)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        touched: set[int] = set()
        flips = 0
        for edge, sides in owners.items():
            if len(sides) != 2 or edge in locked:
                continue
            (f, i), (g, j) = sides
            if f in touched or g in touched:
                continue
            opposite = angles[f, (i + 2) % 3] + angles[g, (j + 2) % 3]
            p, q = int(faces[f, (i + 2) % 3]), int(faces[g, (j + 2) % 3])
            if opposite < np.pi + 0.02 or normals[f] @ normals[g] < 0.3 or (min(p, q), max(p, q)) in owners:
                continue
            a, b = int(faces[f, i]), int(faces[f, (i + 1) % 3])
            faces[f], faces[g] = (a, q, p), (q, b, p)
            touched.update((f, g))
            flips += 1
        if not flips:
            break
    return faces


def _segments_cross(tails: np.ndarray, heads: np.ndarray, tris: np.ndarray) -> np.ndarray:
    """Whether segments (N, 3) pass through triangles (N, 3, 3) (Moeller and Trumbore 1997, interior hits)."""
    u, w = tris[:, 1] - tris[:, 0], tris[:, 2] - tris[:, 0]
    direction = heads - tails
    p = np.cross(direction, w)
    det = (u * p).sum(1)
    safe = np.where(np.abs(det) < 1e-18, 1.0, det)
    offset = tails - tris[:, 0]
    first = (offset * p).sum(1) / safe
    q = np.cross(offset, u)
    second = (direction * q).sum(1) / safe
    along = (w * q).sum(1) / safe
    hit = (first >= 0) & (second >= 0) & (first + second <= 1) & (along >= 0) & (along <= 1)
    return hit & (np.abs(det) >= 1e-18)


def self_intersections(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:  # (N, 2)
    """Return the pairs of faces that share no vertex and pass through each other."""
    tris = verts[faces]
    centers = tris.mean(1)
    reach = np.linalg.norm(tris - centers[:, None], axis=2).max()
    pairs = cKDTree(centers).query_pairs(2.0 * reach, output_type="ndarray")
    shared = (faces[pairs[:, 0]][:, :, None] == faces[pairs[:, 1]][:, None, :]).any((1, 2))
    low, high = tris.min(1), tris.max(1)
    apart = (low[pairs[:, 0]] > high[pairs[:, 1]]).any(1) | (low[pairs[:, 1]] > high[pairs[:, 0]]).any(1)
    pairs = pairs[~shared & ~apart]
    hit = np.zeros(len(pairs), dtype=bool)
    for one, other in ((0, 1), (1, 0)):
        for corner in range(3):
            tails = tris[pairs[:, one], corner]
            heads = tris[pairs[:, one], (corner + 1) % 3]
            hit |= _segments_cross(tails, heads, tris[pairs[:, other]])
    return pairs[hit]
