"""Rasterization of triangles: which face a pixel sees, where on it, and how far away."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dhpe_fast.reference._arguments import (
    check_face_range,
    check_mesh,
    checked_z_near,
    image_height_width,
    result_dtype,
    widened,
)

MAX_COORDINATE_PX = 2.0**24
"""A face with a vertex farther out draws nothing: float32 no longer resolves pixels there."""
MAX_DEPTH = 1e12
_PIXELS_PER_CHUNK = 1 << 21


class Fragments(NamedTuple):
    """What every pixel sees."""

    face_index: Tensor  # (*batch, H, W) int32; -1 where no face is
    bary: Tensor  # (*batch, H, W, 3) weights of the face's vertices, >= 0 and summing to 1; 0 where no face is
    depth: Tensor  # (*batch, H, W) z of the surface; 0 where no face is


class FaceSetup(NamedTuple):
    """Edge k of a face lies opposite its vertex k, through `anchor` along `direction`, inside positive."""

    anchor: Tensor  # (F, 3, 2)
    direction: Tensor  # (F, 3, 2)
    owns_ties: Tensor  # (F, 3) bool, top and left edges
    z: Tensor  # (F, 3)
    inv_z: Tensor  # (F, 3), ones where interpolation is linear in the image
    pixels: Tensor  # (F, 4) first and last column, first and last row
    is_drawn: Tensor  # (F,) bool


def rasterize(
    verts_px: Tensor,  # (*batch, V, 3)
    faces: Tensor,  # (F, 3)
    image_size: int | tuple[int, int],
    *,
    perspective: bool = False,
    z_near: float | None = None,
    cull_backfaces: bool = False,
) -> Fragments:
    """Draws meshes; the twin of :func:`dhpe_fast.ops.rasterize`, where the contract is written.

    Every pixel is tested against every face. Which face a pixel sees is found without gradients; barycentrics
    and depth are then computed once more from the chosen face, differentiably.
    """
    check_mesh(verts_px, faces)
    check_face_range(faces, verts_px.shape[-2])
    height, width = image_height_width(image_size)
    z_near = checked_z_near(z_near, perspective)
    batch = verts_px.shape[:-2]
    work, dtype = widened(verts_px), result_dtype(verts_px)
    images = [
        _rasterize_one(verts, faces.long(), (height, width), perspective, z_near, cull_backfaces)
        for verts in work.reshape(batch.numel(), *verts_px.shape[-2:])
    ]
    if not images:
        empty = work.new_zeros(*batch, height, width, dtype=dtype)
        return Fragments(empty.int(), work.new_zeros(*batch, height, width, 3, dtype=dtype), empty)
    stacked = (torch.stack(parts) for parts in zip(*images, strict=True))
    index, bary, depth = (t.reshape(*batch, *t.shape[1:]) for t in stacked)
    return Fragments(index, bary.to(dtype), depth.to(dtype))


def _rasterize_one(
    verts: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    size: tuple[int, int],
    perspective: bool,
    z_near: float | None,
    cull_backfaces: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        setup = setup_faces(verts, faces, size, perspective, z_near, cull_backfaces)
        face_index = nearest_face(setup, size)
    row, column = torch.nonzero(face_index >= 0, as_tuple=True)
    seen = face_index[row, column].long()
    setup = setup_faces(verts, faces[seen], size, perspective, z_near, cull_backfaces)
    centre = torch.stack([column, row], -1).to(verts.dtype) + 0.5
    seen_bary, seen_depth = _interpolate(_edge_values(setup, centre), setup)
    bary = verts.new_zeros(*size, 3).index_put((row, column), seen_bary)
    depth = verts.new_zeros(*size).index_put((row, column), seen_depth)
    return face_index, bary, depth


def setup_faces(
    verts: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    size: tuple[int, int],
    perspective: bool,
    z_near: float | None,
    cull_backfaces: bool,
) -> FaceSetup:
    """What a pixel test needs of each face.

    An edge is taken from its vertex with the lower id, whichever face asks: two faces that share it compute
    the same number up to its sign.
    """
    corners = verts[faces]  # (F, 3, 3)
    xy, z = corners[..., :2], corners[..., 2]
    is_drawn = ((xy.abs() <= MAX_COORDINATE_PX).all(-1) & (z.abs() <= MAX_DEPTH)).all(-1)
    if z_near is not None:
        is_drawn = is_drawn & (z >= z_near).all(-1)
    area = _signed_area(xy.detach().double())
    is_drawn = is_drawn & (area != 0) & ~((area > 0) & cull_backfaces)
    sign = torch.where(area > 0, 1.0, -1.0).to(verts.dtype)

    begin, end = corners.roll(-1, 1)[..., :2], corners.roll(-2, 1)[..., :2]
    in_order = (faces.roll(-1, 1) < faces.roll(-2, 1))[..., None]
    low, high = torch.where(in_order, begin, end), torch.where(in_order, end, begin)
    direction = (high - low) * torch.where(in_order, sign[:, None, None], -sign[:, None, None])
    dx, dy = direction.unbind(-1)
    owns_ties = (dy < 0) | ((dy == 0) & (dx > 0))

    margin = 0.5 + 1 / 64
    (x_low, y_low), (x_high, y_high) = (t.unbind(-1) for t in torch.aminmax(xy.detach(), dim=1))
    pixels = [(x_low - margin).ceil(), (x_high - 1 + margin).floor()]
    pixels += [(y_low - margin).ceil(), (y_high - 1 + margin).floor()]
    is_drawn = is_drawn & (pixels[0] < size[1]) & (pixels[1] >= 0) & (pixels[2] < size[0]) & (pixels[3] >= 0)
    inv_z = 1 / z if perspective else torch.ones_like(z)
    return FaceSetup(low, direction, owns_ties, z, inv_z, torch.stack(pixels, -1), is_drawn)


def _signed_area(xy: Tensor) -> Tensor:  # (..., 3, 2) -> (...); negative for front faces, since y points down
    u, w = xy[..., 1, :] - xy[..., 0, :], xy[..., 2, :] - xy[..., 0, :]
    return u[..., 0] * w[..., 1] - u[..., 1] * w[..., 0]


def _edge_values(setup: FaceSetup, centre: Tensor) -> Tensor:  # (..., 2) -> (..., 3)
    """Twice the area between each edge and the pixel centre: dx (y - ay) - dy (x - ax)."""
    dx, dy = setup.direction.unbind(-1)
    ax, ay = setup.anchor.unbind(-1)
    x, y = centre[..., None, 0], centre[..., None, 1]
    return dx * (y - ay) - dy * (x - ax)


def _interpolate(edges: Tensor, setup: FaceSetup) -> tuple[Tensor, Tensor]:  # (..., 3) -> (..., 3), (...)
    """b_k = w_k / sum(w) with w_k = e_k or, in perspective, e_k / z_k; depth = sum(b_k z_k)."""
    w = edges * setup.inv_z
    bary = w * (1 / ((w[..., 0] + w[..., 1]) + w[..., 2]))[..., None]
    weighted = bary * setup.z
    return bary, (weighted[..., 0] + weighted[..., 1]) + weighted[..., 2]


def nearest_face(setup: FaceSetup, size: tuple[int, int]) -> Tensor:  # (H, W) int32
    """The face with the least depth in each pixel, the lower index in a tie, -1 where there is none."""
    height, width = size
    device, dtype = setup.z.device, setup.z.dtype
    column = torch.arange(width, device=device)
    row = torch.arange(height, device=device)[:, None]
    centre = torch.stack(torch.broadcast_tensors(column, row), -1).to(dtype) + 0.5  # (H, W, 2)
    best_depth = torch.full(size, torch.inf, dtype=dtype, device=device)
    best_face = torch.full(size, -1, dtype=torch.int32, device=device)
    drawn = torch.nonzero(setup.is_drawn)[:, 0]
    if len(drawn) == 0:
        return best_face
    for ids in drawn.split(max(1, _PIXELS_PER_CHUNK // (height * width))):
        chunk = FaceSetup(*(t[ids][:, None, None] for t in setup))
        edges = _edge_values(chunk, centre)  # (n, H, W, 3)
        inside = ((edges > 0) | ((edges == 0) & chunk.owns_ties)).all(-1)
        inside &= (edges[..., 0] + edges[..., 1]) + edges[..., 2] > 1e-20
        x0, x1, y0, y1 = chunk.pixels.unbind(-1)
        inside &= (column >= x0) & (column <= x1) & (row >= y0) & (row <= y1)
        depth = torch.where(inside, _interpolate(edges, chunk)[1], torch.inf)
        nearest = depth.amin(0)
        at = (depth == nearest).to(torch.uint8).argmax(0)  # the first of equals
        closer = nearest < best_depth
        best_depth = torch.where(closer, nearest, best_depth)
        best_face = torch.where(closer, ids[at].int(), best_face)
    return best_face
