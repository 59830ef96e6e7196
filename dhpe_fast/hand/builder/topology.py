"""The mesh of the default hand: edge loops around palm and digits, 778 vertices and 1538 triangles.

The palm is a flattened tube of ten loops between the wrist rim (16 vertices) and the webs (28). A loop runs
over the back from the thumb side to the little finger, down its side, back over the palm and up the thumb
side. Each finger continues three columns of the back, two side steps and three columns of the palm as a tube
of ten columns; neighbouring fingers share the two edges of the web between them. The thumb continues a hole
of twelve edges in the thumb side of the palm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from dhpe_fast.hand.builder.anthropometry import Skeleton
from dhpe_fast.hand.builder.surface import HandSurface

ACROSS = ("index", "middle", "ring", "little")
"""The fingers from the thumb side to the little finger's side."""

# Edges over the back and over the palm in each loop, wrist to webs.
_BACK = (6, 7, 8, 9, 11, 12, 12, 12, 12, 12)
_PALM = (6, 7, 8, 9, 11, 11, 12, 12, 12, 12)
_HOLE_ROWS = (1, 5)
_WEB_ROW = 9
FINGER_COLUMNS = 10
THUMB_COLUMNS = 12
# Loop positions along a finger's axis, metres from the knuckle (the web row is a fraction of the phalanx).
_KNUCKLE_ROWS_M = {6: -0.019, 7: -0.0055, 8: 0.0055}
_WEB_FRACTION = 0.35
_WRIST_ROWS_M = {0: -0.017, 1: 0.004}


@dataclass
class HandMesh:
    """Vertices, faces and the named loops of the structured mesh.

    Attributes:
        verts_m: (V, 3) positions. faces: (F, 3) outward triangles.
        rings: Loops of each digit from its base to the last one before the tip; (10,) or (12,) ids each.
        tips: Apex vertex of each digit.
        rows: The palm's loops, (n,) ids each: back, little side, palm (reversed), thumb side (where present).
        locked: Edges (sorted pairs) that optimisation must keep: loops, columns and UV seams.
        seam: Edges of the cut between the back and the palm chart.
    """

    verts_m: np.ndarray
    faces: np.ndarray
    rings: dict[str, list[np.ndarray]]
    tips: dict[str, int]
    rows: list[np.ndarray]
    locked: set[tuple[int, int]] = field(default_factory=set)
    seam: set[tuple[int, int]] = field(default_factory=set)


def _edge(first: int, second: int) -> tuple[int, int]:
    return (first, second) if first < second else (second, first)


def _zip(lower: list[int], upper: list[int]) -> list[tuple[int, int, int]]:
    """Triangulate the strip between two polylines; the loop direction and lower-to-upper turn outwards."""
    faces, i, j = [], 0, 0
    n, m = len(lower) - 1, len(upper) - 1
    while i < n or j < m:
        if j == m or (i < n and (i + 1) * m <= (j + 1) * n):
            faces.append((lower[i], lower[i + 1], upper[j]))
            i += 1
        else:
            faces.append((lower[i], upper[j + 1], upper[j]))
            j += 1
    return faces


class _Assembly:
    """Collects vertices, faces and loops; positions come from rays cast inside the surface."""

    def __init__(self, surface: HandSurface) -> None:
        self.surface = surface
        self.skeleton: Skeleton = surface.skeleton
        self.verts: list[np.ndarray] = []
        self.faces: list[tuple[int, int, int]] = []
        self.locked: set[tuple[int, int]] = set()
        self.seam: set[tuple[int, int]] = set()
        self.axes = self._finger_axes()
        self.border = self._thumb_border()

    def add(self, points_m: np.ndarray) -> list[int]:
        start = len(self.verts)
        self.verts.extend(points_m)
        return list(range(start, len(self.verts)))

    def lock(self, loop: list[int], *, closed: bool = False, seam: bool = False) -> None:
        pairs = list(pairwise([*loop, loop[0]] if closed else loop))
        self.locked.update(_edge(*pair) for pair in pairs)
        if seam:
            self.seam.update(_edge(*pair) for pair in pairs)

    def strip(self, lower: list[int], upper: list[int]) -> None:
        self.faces.extend(_zip(lower, upper))

    def _finger_axes(self) -> np.ndarray:  # (10, 4, 3)
        """Points inside the hand where each palm loop crosses the axis of each finger."""
        wrist = self.skeleton.joints_m[0]
        axes = np.zeros((len(_BACK), 4, 3))
        for column, digit in enumerate(ACROSS):
            tube = self.surface.tubes[digit]
            length = np.linalg.norm(np.diff(self.skeleton.chain(digit)[:2], axis=0))
            stations = {**_KNUCKLE_ROWS_M, _WEB_ROW: _WEB_FRACTION * length}
            for row, arc in stations.items():
                axes[row, column] = tube.frame(arc)[0]
            across = (0.75, 0.25, -0.25, -0.75)[column] * 0.022
            for row, distal in _WRIST_ROWS_M.items():
                axes[row, column] = wrist + np.array([-distal, 0.0, across])
            for row in range(2, 6):
                blend = (row - 1) / 5.0
                axes[row, column] = (1 - blend) * axes[1, column] + blend * axes[6, column]
        return axes

    def _thumb_border(self) -> np.ndarray:  # (10, 3)
        """Points inside the hand under the first column: half way to the thumb beside its hole."""
        base, knuckle = self.skeleton.chain("thumb")[:2]
        border = 1.5 * self.axes[:, 0] - 0.5 * self.axes[:, 1]
        for row in range(_HOLE_ROWS[0] + 1, _HOLE_ROWS[1] + 1):
            fraction = 0.68 * (row - _HOLE_ROWS[0]) / (_HOLE_ROWS[1] - _HOLE_ROWS[0])
            border[row] = 0.5 * self.axes[row, 0] + 0.5 * (base + fraction * (knuckle - base))
        return border

    def _inside(self, row: int, across: np.ndarray) -> np.ndarray:  # (n, 3)
        """Points inside at fractions 0 (thumb side) .. 1 (little side) across a palm loop."""
        stations = np.array([0.0, 0.125, 0.375, 0.625, 0.875])
        points = np.vstack([self.border[row], self.axes[row]])
        return np.stack([np.interp(across, stations, points[:, k]) for k in range(3)], axis=-1)

    def palm_row(self, row: int) -> tuple[list[int], list[int], int | None, int]:
        radial = self.axes[row, 0] - self.axes[row, 3]
        radial = radial / np.linalg.norm(radial)
        lists = []
        for count, up in ((_BACK[row], 1.0), (_PALM[row], -1.0)):
            across = np.linspace(0.0, 1.0, count + 1)
            beside_thumb = _HOLE_ROWS[0] < row <= _HOLE_ROWS[1]
            origin = self._inside(row, np.clip(across, 0.0 if beside_thumb else 0.125, 0.875))
            lean = np.clip(0.125 - across, 0.0, None) * (not beside_thumb) - np.clip(across - 0.875, 0.0, None)
            direction = np.array([0.0, up, 0.0]) + (8.0 * lean)[:, None] * radial
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
            lists.append(self.add(self.surface.cast(origin, direction)))
        little = self.add(self.surface.cast(self._inside(row, np.array([0.875])), -radial[None]))[0]
        thumb_side = None
        if not _HOLE_ROWS[0] < row < _HOLE_ROWS[1]:
            # The hole's distal end lies in the first web, which faces the finger tips.
            start, direction = (0.0, np.array([-0.9, 0.0, 0.44])) if row == _HOLE_ROWS[1] else (0.125, radial)
            thumb_side = self.add(self.surface.cast(self._inside(row, np.array([start])), direction[None]))[0]
        return lists[0], lists[1], thumb_side, little

    def webs(self) -> list[int]:
        """Add the middle vertex of each web between two fingers."""
        origin = self._inside(_WEB_ROW, np.array([0.25, 0.5, 0.75]))
        origin = origin + np.array([0.012, -0.003, 0.0])
        return self.add(self.surface.cast(origin, np.tile([-1.0, 0.0, 0.0], (3, 1))))

    def digit(self, name: str, base: list[int], arcs_m: np.ndarray, first_angle: float, seam_columns) -> list:
        """Continue a base loop as a closed tube up to the finger tip."""
        tube = self.surface.tubes[name]
        count = len(base)
        angles = first_angle + 2.0 * np.pi * np.arange(count) / count
        rings = [base]
        for arc in arcs_m:
            center, (_, side, up) = tube.frame(float(arc))
            direction = np.cos(angles)[:, None] * up + np.sin(angles)[:, None] * side
            # Rays see this digit only: beside the palm they would run on into it.
            ring = self.add(self.surface.cast(np.tile(center, (count, 1)), direction, field=tube.field))
            self.lock(ring, closed=True)
            rings.append(ring)
        tip = self.add(self.skeleton.tips_m[name][None])[0]
        for lower, upper in pairwise(rings):
            self.strip(lower + lower[:1], upper + upper[:1])
        self.faces.extend((a, b, tip) for a, b in pairwise([*rings[-1], rings[-1][0]]))
        for column in range(count):
            self.lock([ring[column] for ring in rings] + [tip], seam=column in seam_columns)
        return [rings, tip]


def _finger_arcs(lengths_m: np.ndarray) -> np.ndarray:
    """Ring positions from the knuckle: three rings at each interphalangeal joint, rounded tip."""
    proximal, middle, distal = lengths_m
    second, third = proximal, proximal + middle
    bend = 0.0062 * min(1.0, middle / 0.0240)
    return np.array(
        [
            0.5 * (_WEB_FRACTION * proximal + second - bend),
            second - bend,
            second,
            second + bend,
            0.5 * (second + third),
            third - 0.92 * bend,
            third,
            third + 0.34 * distal,
            third + 0.68 * distal,
            third + 0.915 * distal,
        ]
    )


def _thumb_arcs(lengths_m: np.ndarray) -> np.ndarray:
    first, second, third = np.cumsum(lengths_m)
    return np.array(
        [
            first - 0.0200,
            first - 0.0090,
            first - 0.0005,
            first + 0.0080,
            0.5 * (first + second) + 0.0005,
            second - 0.0075,
            second,
            second + 0.0070,
            second + 0.55 * (third - second),
            second + 0.79 * (third - second),
            second + 0.945 * (third - second),
        ]
    )


def build_mesh(surface: HandSurface) -> HandMesh:
    """Assemble the structured mesh with its first positions on the surface."""
    build = _Assembly(surface)
    rows = [build.palm_row(row) for row in range(len(_BACK))]
    for (back, palm, thumb_side, little), (back2, palm2, thumb_side2, little2) in pairwise(rows):
        build.strip(back, back2)
        build.strip([back[-1], little, palm[-1]], [back2[-1], little2, palm2[-1]])
        build.strip(palm[::-1], palm2[::-1])
        if thumb_side is not None and thumb_side2 is not None:
            build.strip([palm[0], thumb_side, back[0]], [palm2[0], thumb_side2, back2[0]])
    for first, second in ((0, 1), (5, 6), (6, 7), (7, 8), (8, 9)):
        build.lock([rows[first][2], rows[second][2]], seam=True)
    build.lock([row[3] for row in rows], seam=True)
    build.lock(_loop(rows[0]), closed=True)

    rings, tips = {}, {}
    back, palm, thumb_side, little = rows[_WEB_ROW]
    sides = [thumb_side, *build.webs(), little]
    for column, digit in enumerate(ACROSS):
        start, stop = 3 * column, 3 * column + 3
        base = [*back[start : stop + 1], sides[column + 1], *palm[start : stop + 1][::-1], sides[column]]
        lengths = np.linalg.norm(np.diff(surface.skeleton.chain(digit), axis=0), axis=1)
        rings[digit], tips[digit] = build.digit(
            digit, base, _finger_arcs(lengths), np.deg2rad(-54.0), seam_columns=(4, 9)
        )
        build.lock(base, closed=True)
    low, high = _HOLE_ROWS
    hole = [rows[low][1][0], rows[low][2], *(rows[r][0][0] for r in range(low, high + 1))]
    hole += [rows[high][2], *(rows[r][1][0] for r in range(high, low, -1))]
    lengths = np.linalg.norm(np.diff(surface.skeleton.chain("thumb"), axis=0), axis=1)
    rings["thumb"], tips["thumb"] = build.digit(
        "thumb", hole, _thumb_arcs(lengths), _thumb_angle(build, hole), seam_columns=(1, 7)
    )
    build.lock(hole, closed=True)
    return HandMesh(
        np.array(build.verts),
        np.array(build.faces),
        {digit: [np.array(ring) for ring in loops] for digit, loops in rings.items()},
        tips,
        [np.array(_loop(row)) for row in rows],
        build.locked,
        build.seam,
    )


def _loop(row: tuple[list[int], list[int], int | None, int]) -> list[int]:
    back, palm, thumb_side, little = row
    return [*back, little, *palm[::-1], *([] if thumb_side is None else [thumb_side])]


def _thumb_angle(build: _Assembly, hole: list[int]) -> float:
    """Angle of the first column of the thumb's rings that matches the hole best (circular mean)."""
    tube = build.surface.tubes["thumb"]
    points = np.array([build.verts[vertex] for vertex in hole])
    _, (_, side, up) = tube.frame(0.030)
    offset = points - points.mean(0)
    angles = np.arctan2(offset @ side, offset @ up) - 2.0 * np.pi * np.arange(len(hole)) / len(hole)
    return float(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean()))
