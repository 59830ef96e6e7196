"""Silhouettes in every mode; and that with the gradient of Kato et al., Neural 3D Mesh Renderer (CVPR 2018)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dhpe_fast.reference._arguments import (
    check_face_range,
    check_mesh,
    checked_eps,
    checked_sigma,
    checked_z_near,
    image_height_width,
    result_dtype,
    widened,
)
from dhpe_fast.reference.rasterize import rasterize
from dhpe_fast.reference.silhouette_edge import edge_silhouette
from dhpe_fast.reference.silhouette_soft import soft_silhouette

_PIXELS_PER_CHUNK = 1 << 21


def silhouette(
    verts_px: Tensor,  # (*batch, V, 3)
    faces: Tensor,  # (F, 3)
    image_size: int | tuple[int, int],
    *,
    mode: str = "nmr",
    z_near: float | None = None,
    fill_back: bool = True,
    eps: float = 1e-4,
    sigma: float = 1.0,
) -> Tensor:  # (*batch, H, W)
    """Draws a mesh's mask; the twin of :func:`dhpe_fast.ops.silhouette`, where the contract is written."""
    if mode not in ("nmr", "edge", "soft"):
        raise ValueError(f"mode is {mode!r}, expected one of 'nmr', 'edge', 'soft'")
    check_mesh(verts_px, faces)
    check_face_range(faces, verts_px.shape[-2])
    height, width = image_height_width(image_size)
    z_near = None if z_near is None else checked_z_near(z_near, perspective=True)
    eps, sigma = checked_eps(eps), checked_sigma(sigma)
    work = widened(verts_px)
    flat = work.reshape(verts_px.shape[:-2].numel(), *verts_px.shape[-2:])
    if mode == "nmr":
        mask = _NmrSilhouette.apply(flat, faces, (height, width), z_near, fill_back, eps)
    elif len(flat) == 0:
        mask = flat.new_zeros(0, height, width)
    else:
        draw = edge_silhouette if mode == "edge" else partial(soft_silhouette, sigma=sigma)
        mask = torch.stack([draw(verts, faces.long(), (height, width), z_near, fill_back) for verts in flat])
    return mask.reshape(*verts_px.shape[:-2], height, width).to(result_dtype(verts_px))


class _NmrSilhouette(torch.autograd.Function):
    @staticmethod
    def forward(ctx, verts_px, faces, image_size, z_near, fill_back, eps):
        fragments = rasterize(
            verts_px,
            faces,
            image_size,
            perspective=z_near is not None,
            z_near=z_near,
            cull_backfaces=not fill_back,
        )
        ctx.save_for_backward(verts_px, faces, fragments.face_index)
        ctx.eps = eps
        return (fragments.face_index >= 0).to(verts_px.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_mask):
        verts_px, faces, face_index = ctx.saved_tensors
        grad = torch.zeros_like(verts_px)
        for image in range(len(verts_px)):
            grad[image] = nmr_gradient(verts_px[image], faces.long(), face_index[image], grad_mask[image], ctx.eps)
        return grad, None, None, None, None, None


class Edges(NamedTuple):
    """Directed edges p0 -> p1 of faces: s counts scan lines, m runs along a line."""

    scan: Tensor  # (E, 2) s of both end points, counted from the centre of line 0
    move: Tensor  # (E, 2) m of both end points
    outward: Tensor  # (E,) -1 or +1, the side of the edge along m on which the face is not
    face: Tensor  # (E,)


def nmr_gradient(
    verts_px: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    face_index: Tensor,  # (H, W)
    grad_mask: Tensor,  # (H, W)
    eps: float,
) -> Tensor:  # (V, 3)
    """dL/dverts_px of one image: every edge of every visible face is scanned by rows and by columns."""
    grad = torch.zeros_like(verts_px)
    seen = face_index[face_index >= 0].unique().long()
    ids = faces[seen]  # (n, 3)
    centred = verts_px[:, :2] - 0.5
    x, y = centred[ids].unbind(-1)  # (n, 3)
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (y[:, 1] - y[:, 0]) * (x[:, 2] - x[:, 0])
    # Front faces run counter-clockwise on the screen: below an edge to the right is outside, and so is the
    # left of an edge downwards. A back face acts as its reversed copy.
    below = torch.where(area < 0, 1, -1)
    for k in range(3):
        ends = [k, (k + 1) % 3]
        rising_x = torch.where(x[:, ends[0]] < x[:, ends[1]], 1, -1)
        rising_y = torch.where(y[:, ends[0]] < y[:, ends[1]], 1, -1)
        columns = Edges(x[:, ends], y[:, ends], below * rising_x, seen)
        rows = Edges(y[:, ends], x[:, ends], -below * rising_y, seen)
        grad_y = _scan(columns, face_index.T, grad_mask.T, eps)
        grad_x = _scan(rows, face_index, grad_mask, eps)
        grad.index_put_((ids[:, ends],), torch.stack([grad_x, grad_y, 0 * grad_x], -1), accumulate=True)
    return grad


def _scan(
    edges: Edges,
    face_index: Tensor,  # (S, M), scan lines first
    grad_mask: Tensor,  # (S, M)
    eps: float,
) -> Tensor:  # (E, 2) dL/dm of both end points
    n_lines, length = face_index.shape
    lines = torch.arange(n_lines, device=grad_mask.device)
    low, high = edges.scan.amin(1), edges.scan.amax(1)
    # An edge along the scan lines' normal crosses none of them at a single point and receives nothing.
    crosses = (lines >= low[:, None]) & (lines <= high[:, None]) & (low < high)[:, None]
    edge, line = torch.nonzero(crosses, as_tuple=True)
    grad = torch.zeros_like(edges.move)
    for part in torch.arange(len(edge), device=edge.device).split(max(1, _PIXELS_PER_CHUNK // length)):
        one = Edges(*(t[edge[part]] for t in edges))
        pull = _pull(one, line[part], face_index[line[part]], grad_mask[line[part]], eps)
        grad.index_add_(0, edge[part], pull)
    return grad


def _pull(
    edges: Edges,  # one for each of n crossings
    line: Tensor,  # (n,) scan line of the crossing
    face_index: Tensor,  # (n, M) the pixels of that line
    grad_mask: Tensor,  # (n, M)
    eps: float,
) -> Tensor:  # (n, 2)
    """dL/dm of both end points from one scan line.

    Pixel d has delta = (I(d) - I(d_ref)) g(d), what the loss falls by if d takes the value on the other side
    of the edge; end point k would have to move by D_k = (d - c) / t_k for that, so dL/dm_k -= delta / (D_k +-
    eps).
    """
    length = grad_mask.shape[1]
    (s0, s1), (m0, m1) = edges.scan.unbind(1), edges.move.unbind(1)
    out = edges.outward
    crossing = m0 + (m1 - m0) * (line - s0) / (s1 - s0)
    # floor(c) on a right or lower edge, ceil(c) on a left or upper one; a centre exactly on a right or lower
    # edge is not covered, by the rasterizer's rule.
    d_in = crossing.ceil().long() - (out > 0).long()
    d_out = d_in + out
    fits = (d_in >= 0) & (d_in < length) & (d_out >= 0) & (d_out < length)

    d = torch.arange(length, device=line.device)
    alpha = (face_index >= 0).to(grad_mask.dtype)
    at_in, at_out = d_in.clamp(0, length - 1)[:, None], d_out.clamp(0, length - 1)[:, None]
    is_own = face_index == edges.face[:, None]
    beyond = ((d - d_out[:, None]) * out[:, None] >= 0) & is_own.gather(1, at_in)
    within = ((d_in[:, None] - d) * out[:, None] >= 0) & is_own
    delta = torch.where(
        beyond, (alpha - alpha.gather(1, at_in)) * grad_mask, (alpha - alpha.gather(1, at_out)) * grad_mask
    )
    delta = torch.where((beyond | within) & fits[:, None] & (delta > 0), delta, 0)

    distance = d - crossing[:, None]
    # The sign of the distance; written so because a centre exactly on the edge must be pushed across it, not
    # back.
    is_positive = (out[:, None] > 0) == beyond
    eps_px = eps * length / 2
    pull = []
    for t in ((s1 - line) / (s1 - s0), (line - s0) / (s1 - s0)):
        move = distance / t[:, None]
        move = torch.where(is_positive, move + eps_px, move - eps_px)
        pull.append(torch.where((delta > 0) & (t != 0)[:, None], -delta / move, 0).sum(1))
    return torch.stack(pull, 1)
