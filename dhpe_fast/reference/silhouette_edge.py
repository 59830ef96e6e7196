"""Exact coverage: the area of every pixel's square which the union of the projected faces covers."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.reference.rasterize import MAX_COORDINATE_PX, MAX_DEPTH


def edge_silhouette(
    verts_px: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    image_size: tuple[int, int],
    z_near: float | None,
    fill_back: bool,
) -> Tensor:  # (H, W)
    """One mesh's coverage; autograd differentiates it.

    The plane is cut into slabs at every row of pixels, every vertex and every crossing of two edges. Within a slab the
    union consists of trapezoids between edges, found by counting faces from left to right. The gradient of an edge that
    is exactly horizontal goes to one of its ends, since it bounds no trapezoid of its own; the op shares it out.
    """
    xy = verts_px[:, :2].double()
    ends, jump = _contour(verts_px, faces, z_near, fill_back)
    if len(ends) == 0:
        return verts_px.new_zeros(image_size)
    a, b = xy[ends[:, 0]], xy[ends[:, 1]]  # (E, 2), a.y <= b.y
    levels = _levels(a, b, image_size[0])  # (S + 1,)
    top, bottom = levels[:-1], levels[1:]
    middle = (top + bottom).detach() / 2
    is_active = (a[:, 1:] < middle) & (middle < b[:, 1:])  # (E, S)
    order = torch.where(is_active, _x_at(a, b, middle), torch.inf).argsort(0)
    covering = torch.where(is_active, jump[:, None], 0).gather(0, order).cumsum(0)
    is_covered = (covering > 0).int()
    side_sorted = is_covered - torch.cat([torch.zeros_like(is_covered[:1]), is_covered[:-1]])
    side = torch.zeros_like(side_sorted).scatter(0, order, side_sorted)
    edge, slab = torch.nonzero(side, as_tuple=True)  # what bounds the union: (N,)

    left = torch.arange(image_size[1], device=xy.device)
    x = [_x_at(a[edge], b[edge], level[slab][:, None])[:, 0] for level in (top, bottom)]
    to_the_right = _mean_right_of(left, *x) * ((bottom - top)[slab] * side[edge, slab])[:, None]
    row = middle[slab].floor().long().clamp(max=image_size[0] - 1)  # a thin slab's middle can round up to its bottom
    return xy.new_zeros(image_size).index_add(0, row, to_the_right).clamp(0, 1).to(verts_px.dtype)


def _contour(
    verts_px: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    z_near: float | None,
    fill_back: bool,
) -> tuple[Tensor, Tensor]:  # (E, 2) vertices, the upper first; (E,)
    """The edges with more faces on one side than on the other, and how many more on the right."""
    corners = verts_px.detach()[faces].double()
    is_drawn = ((corners[..., :2].abs() <= MAX_COORDINATE_PX).all(-1) & (corners[..., 2].abs() <= MAX_DEPTH)).all(-1)
    if z_near is not None:
        is_drawn &= (corners[..., 2] >= z_near).all(-1)
    u, w = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = u[:, 0] * w[:, 1] - u[:, 1] * w[:, 0]
    is_drawn &= (area < 0) | ((area > 0) & fill_back)
    begin, end = faces[is_drawn], faces[is_drawn].roll(-1, 1)
    ends = torch.stack([begin, end], -1).reshape(-1, 2)
    # y points down: a face of positive area lies to the left of its edges that lead down, and to the right of others.
    right = torch.where(area[is_drawn] > 0, -1, 1).repeat_interleave(3)
    y, x = verts_px.detach()[:, 1], verts_px.detach()[:, 0]
    y0, y1, x0, x1 = y[ends[:, 0]], y[ends[:, 1]], x[ends[:, 0]], x[ends[:, 1]]
    is_turned = (y0 > y1) | ((y0 == y1) & (x0 > x1))
    ends = torch.where(is_turned[:, None], ends.flip(1), ends)
    right = torch.where(is_turned, -right, right)
    unique, which = ends.unique(dim=0, return_inverse=True)
    jump = torch.zeros(len(unique), dtype=torch.long, device=faces.device).index_add(0, which, right)
    return unique[jump != 0], jump[jump != 0]


def _x_at(
    a: Tensor,  # (E, 2)
    b: Tensor,  # (E, 2)
    y: Tensor,  # (S,) or (E, 1)
) -> Tensor:  # (E, S)
    rise = b[:, 1:] - a[:, 1:]
    return a[:, :1] + (b[:, :1] - a[:, :1]) * (y - a[:, 1:]) / torch.where(rise == 0, 1, rise)


def _levels(
    a: Tensor,  # (E, 2)
    b: Tensor,  # (E, 2)
    height: int,
) -> Tensor:  # (S + 1,) ascending, from 0 to height
    rows = torch.arange(height + 1, device=a.device, dtype=a.dtype)
    levels = torch.cat([a[:, 1], b[:, 1], _crossings(a, b)])
    levels = levels[(levels > 0) & (levels < height)]
    return torch.cat([rows, levels]).sort(stable=True).values


def _crossings(
    a: Tensor,  # (E, 2)
    b: Tensor,  # (E, 2)
) -> Tensor:  # (C,) y
    first, second = torch.triu_indices(len(a), len(a), 1, device=a.device)
    u, w, between = b[first] - a[first], b[second] - a[second], a[second] - a[first]
    det = _cross(u, w)
    safe = torch.where(det == 0, 1, det)
    s, t = _cross(between, w) / safe, _cross(between, u) / safe
    meets = (det != 0) & (s > 0) & (s < 1) & (t > 0) & (t < 1)
    return (a[first, 1] + s * u[:, 1])[meets]


def _cross(u: Tensor, w: Tensor) -> Tensor:
    return u[:, 0] * w[:, 1] - u[:, 1] * w[:, 0]


def _mean_right_of(
    left: Tensor,  # (W,) of the pixels
    x0: Tensor,  # (N,)
    x1: Tensor,  # (N,)
) -> Tensor:  # (N, W)
    """How much of each pixel lies right of a line from x0 to x1, as a share of the line's height.

    The mean of clamp(left + 1 - x, 0, 1) over x from x0 to x1: a difference of the clamp's integral.
    """
    u0, u1 = left + 1 - x0[:, None], left + 1 - x1[:, None]
    span = u1 - u0
    is_steep = span.abs() < 1e-7
    slope = (_clamp_integral(u1) - _clamp_integral(u0)) / torch.where(is_steep, 1, span)
    return torch.where(is_steep, ((u0 + u1) / 2).clamp(0, 1), slope)


def _clamp_integral(u: Tensor) -> Tensor:
    return torch.where(u > 1, u - 0.5, u.clamp(0, 1) ** 2 / 2)
