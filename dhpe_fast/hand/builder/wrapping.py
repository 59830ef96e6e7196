"""Fit the structured mesh to the implicit skin: spread the vertices evenly, keep them on the surface."""

from __future__ import annotations

import numpy as np

from dhpe_fast.hand.builder.geometry import averaging_matrix, boundary_loop, flip_edges, vertex_normals
from dhpe_fast.hand.builder.surface import HandSurface
from dhpe_fast.hand.builder.topology import HandMesh


def _free_mask(mesh: HandMesh) -> np.ndarray:
    """Vertices whose place along the surface is free: palm, webs and the thumb's first rings."""
    free = np.zeros(len(mesh.verts_m), dtype=bool)
    for row in mesh.rows:
        free[row] = True
    for digit, rings in mesh.rings.items():
        for ring in rings[: 3 if digit == "thumb" else 1]:
            free[ring] = True
    return free


def wrap(mesh: HandMesh, surface: HandSurface, rounds: int = 60) -> HandMesh:
    """Relax free vertices within the surface, flip edges, and project everything onto the skin.

    The wrist rim stays in its plane; the rings of the digits stay where the joints want them.
    """
    verts, faces = mesh.verts_m.copy(), mesh.faces
    free = _free_mask(mesh)
    rim = boundary_loop(faces)
    rim_x = float(np.median(verts[rim, 0]))
    around = np.roll(np.arange(len(rim)), 1), np.roll(np.arange(len(rim)), -1)
    for step in range(rounds):
        if step % 10 == 9:
            faces = flip_edges(verts, faces, mesh.locked)
        normals = vertex_normals(verts, faces)
        average = averaging_matrix(faces, len(verts))
        pull = average @ verts - verts
        ring = verts[rim]
        pull[rim] = 0.5 * (ring[around[0]] + ring[around[1]]) - ring
        pull -= normals * (pull * normals).sum(1, keepdims=True)
        verts[free] += 0.5 * pull[free]
        verts[free] = surface.project(verts[free], steps=1)
        verts[rim, 0] = rim_x
    tips = np.array(list(mesh.tips.values()))
    moved = surface.project(verts, steps=4)
    moved[rim, 0] = rim_x
    moved[tips] = verts[tips]
    faces = flip_edges(moved, faces, mesh.locked)
    return HandMesh(moved, faces, mesh.rings, mesh.tips, mesh.rows, mesh.locked, mesh.seam)
