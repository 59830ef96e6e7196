"""Operations and bytes of the ops, counted on paper: what any implementation has to do.

An operation is one floating-point addition, multiplication, division or comparison of values that the result needs;
idle lanes of vectors, addresses and repeated work do not count. Bytes are those of arguments read and of results
written, each once: what stays between has no need to leave the caches. B hands or images, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scene import Scene
from torch import Tensor

from dhpe_fast.ops import rasterize
from dhpe_fast.reference import LbsBasis
from dhpe_fast.reference.rasterize import setup_faces
from dhpe_fast.reference.silhouette_edge import _contour

FLOAT = 4
FUSED = ("soft",)
"""The others are compiled without fused multiplications and additions: every processor then draws the same."""
AFFINE = 12  # numbers of a joint's 3 x 4 transform


@dataclass(frozen=True)
class Work:
    """Of one call."""

    operations: float
    bytes_moved: float
    bytes_of_each_thread: float = 0.0
    """The part of the bytes that every thread needs for itself; they share the rest."""
    fused: bool = True
    """Whether multiplications and additions may be fused, which the peak counts on."""


def lbs_forward(basis: LbsBasis, batch: int) -> Work:
    """Skinning.

    Blend shapes: a multiplication and an addition for each of 3 V (S + P) numbers. Skinning: K weighted 3 x 4
    transforms a vertex, then 9 multiplications and 9 additions to apply the sum. Kinematics: about 150 operations a
    joint.
    """
    verts, slots = basis.skin_weights.shape
    joints = len(basis.parents)
    directions = len(basis.shapedirs) + len(basis.posedirs)
    a_hand = 2 * 3 * verts * directions + verts * (2 * AFFINE * slots + 18) + 150 * joints
    read = _basis_bytes(basis) + batch * FLOAT * (3 * joints + len(basis.shapedirs))
    written = batch * FLOAT * (3 * verts + 3 * joints)
    return Work(batch * a_hand, read + written, _basis_bytes(basis) * (batch > 1))


def lbs_forward_and_backward(basis: LbsBasis, batch: int) -> Work:
    """Skinning and its gradient.

    The gradient of the blend shapes' coefficients is a second product with the same 3 V (S + P) numbers. Each vertex
    needs its transform once more, 15 operations for the gradient of the bent vertex and 9 for that of the transform,
    which is added to K joints. The bent vertices are written on the way forth, and read with the gradients of the
    results.
    """
    forward = lbs_forward(basis, batch)
    verts, slots = basis.skin_weights.shape
    joints = len(basis.parents)
    directions = len(basis.shapedirs) + len(basis.posedirs)
    a_hand = 2 * 3 * verts * directions + verts * (2 * 2 * AFFINE * slots + 24) + 300 * joints
    moved = _basis_bytes(basis) + batch * FLOAT * (3 * 3 * verts + 3 * joints + 3 * joints + len(basis.shapedirs))
    return Work(forward.operations + batch * a_hand, forward.bytes_moved + moved, forward.bytes_of_each_thread)


def raster_forward(job: str, scene: Scene, sigma_px: float) -> Work:
    """Rasterization, or the silhouette of a mode.

    `rasterize` and `nmr`: a pixel in the box around a face takes 9 operations for three edges, 2 to compare, 14 for
    barycentrics and depth, and a face about 60. Written are five numbers a pixel, or the mask and the face.
    `edge`: 10 for a face's area and what it adds to its edges, about 30 for a contour edge in a row of pixels, 10 for
    every pixel that it runs through there, 2 a pixel to sum up. Written is the mask.
    `soft`: a pixel within reach of a face takes 19 operations for the distance to each edge, 5 to choose, about 30 for
    an exponential and the product, and a face about 60. Written are the mask and what it lacks to 1.
    """
    faces = len(scene.faces)
    if job == "edge":
        pieces, visited = _contour_pieces(scene)
        operations = 10 * faces + 30 * pieces + 10 * visited + 2 * _image_bytes(scene, 1) / FLOAT
    elif job == "soft":
        operations = 92 * _box_pixels(scene, _reach_px(sigma_px)) + 60 * faces
    else:
        operations = 25 * _box_pixels(scene, 0.0) + 60 * faces
    written = {"rasterize": 5, "nmr": 2, "edge": 1, "soft": 2}[job]
    return Work(operations, _mesh_bytes(scene) + _image_bytes(scene, written), fused=job in FUSED)


def raster_forward_and_backward(job: str, scene: Scene, sigma_px: float) -> Work:
    """The same and its gradient.

    `rasterize`: 25 operations to find a covered pixel's barycentrics again and about 60 for their gradient; four
    gradients a pixel and the face are read. `nmr`: 6 for every edge of a visible face and every pixel of the rows and
    columns that it crosses; the gradient and the face are read. `edge`: about 60 for a contour edge in a row, 30 for
    every pixel there; the gradient is read. `soft`: 92 as above and about 60 more; the gradient and what the mask lacks
    are read.
    """
    forward = raster_forward(job, scene, sigma_px)
    if job == "edge":
        pieces, visited = _contour_pieces(scene)
        operations = 10 * len(scene.faces) + 60 * pieces + 30 * visited
    elif job == "soft":
        operations = 152 * _box_pixels(scene, _reach_px(sigma_px))
    else:
        face_index = rasterize(scene.verts_px, scene.faces, scene.image_size).face_index
        operations = 85 * float((face_index >= 0).sum()) if job == "rasterize" else 6 * _nmr_pairs(scene, face_index)
    read = {"rasterize": 5, "nmr": 2, "edge": 1, "soft": 2}[job]
    moved = forward.bytes_moved + _mesh_bytes(scene) + _image_bytes(scene, read) + FLOAT * scene.verts_px.numel()
    return Work(forward.operations + operations, moved, fused=job in FUSED)


def _basis_bytes(basis: LbsBasis) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in basis.tensors)


def _mesh_bytes(scene: Scene) -> int:
    return FLOAT * (scene.verts_px.numel() + scene.faces.numel())


def _image_bytes(scene: Scene, channels: int) -> int:
    return FLOAT * len(scene.verts_px) * channels * scene.image_size**2


def _box_pixels(scene: Scene, margin_px: float) -> float:
    """Pixels in the boxes around the faces, grown by a margin and cut off at the image's border."""
    total = 0.0
    size = scene.image_size
    for verts_px in scene.verts_px:
        setup = setup_faces(verts_px, scene.faces.long(), (size, size), False, None, False)
        first, last = setup.pixels[setup.is_drawn].reshape(-1, 2, 2).unbind(-1)
        sides = (last + margin_px).clamp(max=size - 1) - (first - margin_px).clamp(min=0) + 1
        total += float(sides.clamp(min=0).prod(-1).sum())
    return total


def _reach_px(sigma_px: float) -> float:
    return (16 * sigma_px) ** 0.5  # of float32


def _nmr_pairs(scene: Scene, face_index: Tensor) -> float:  # (B, H, W)
    """Edges of visible faces, times the pixels of the rows and columns that they cross."""
    pairs = 0.0
    for verts_px, index in zip(scene.verts_px, face_index, strict=True):
        seen = scene.faces[index[index >= 0].unique().long()].long()
        begin, end = (verts_px[seen.roll(-shift, 1), :2] - 0.5 for shift in (0, 1))  # (n, 3, 2)
        low, high = torch.minimum(begin, end).ceil(), torch.maximum(begin, end).floor()
        pairs += float((high - low + 1).clamp(min=0).sum()) * scene.image_size
    return pairs


def _contour_pieces(scene: Scene) -> tuple[float, float]:
    """Rows that contour edges meet, and the pixels that they run through."""
    pieces = visited = 0.0
    for verts_px in scene.verts_px:
        ends, _ = _contour(verts_px, scene.faces.long(), None, True)
        begin, end = _pixel(verts_px, ends[:, 0]), _pixel(verts_px, ends[:, 1])
        columns, rows = (end - begin).abs().unbind(-1)
        pieces += float((rows + 1).sum())
        visited += float((rows + columns + 1).sum())
    return pieces, visited


def _pixel(verts_px: Tensor, index: Tensor) -> Tensor:  # (V, 3), (E,) -> (E, 2)
    return torch.floor(verts_px[index, :2])
