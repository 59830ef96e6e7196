"""The probabilistic silhouette of Liu et al., Soft Rasterizer (ICCV 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.reference.rasterize import MAX_COORDINATE_PX, MAX_DEPTH


def soft_silhouette(
    verts_px: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    image_size: tuple[int, int],
    z_near: float | None,
    fill_back: bool,
    sigma: float,
) -> Tensor:  # (H, W)
    """1 - prod_j (1 - sigmoid(+- d_j^2 / sigma)), every face against every pixel; autograd differentiates it."""
    corners = verts_px[faces]  # (F, 3, 3)
    xy, z = corners[..., :2], corners[..., 2]
    fixed = xy.detach().double()
    u, w = fixed[:, 1] - fixed[:, 0], fixed[:, 2] - fixed[:, 0]
    area = u[:, 0] * w[:, 1] - u[:, 1] * w[:, 0]
    is_drawn = ((xy.abs() <= MAX_COORDINATE_PX).all(-1) & (z.abs() <= MAX_DEPTH)).all(-1)
    is_drawn &= (area < 0) | ((area > 0) & fill_back)
    if z_near is not None:
        is_drawn &= (z >= z_near).all(-1)
    height, width = image_size
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = (torch.stack([column, row], -1).to(verts_px) + 0.5)[:, :, None]  # (H, W, 1, 2)
    square, is_inside = _squared_distance(centre, xy[is_drawn], area[is_drawn])
    signed = torch.where(is_inside, square, -square) / sigma  # (H, W, F)
    return 1 - torch.exp(-torch.nn.functional.softplus(signed, threshold=40).sum(-1))


def _squared_distance(
    centre: Tensor,  # (H, W, 1, 2)
    xy: Tensor,  # (F, 3, 2)
    area: Tensor,  # (F,)
) -> tuple[Tensor, Tensor]:  # (H, W, F), (H, W, F)
    """From pixels to the outlines of faces, and whether they lie inside."""
    squares, sides = [], []
    for k in range(3):
        a, b = xy[:, k], xy[:, (k + 1) % 3]
        edge, offset = b - a, centre - a
        t = ((offset * edge).sum(-1) / (edge * edge).sum(-1)).clamp(0, 1)
        squares.append((offset - t[..., None] * edge).square().sum(-1))
        sides.append((edge[..., 0] * offset[..., 1] - edge[..., 1] * offset[..., 0]) * area.sign())
    return torch.stack(squares).amin(0), (torch.stack(sides) > 0).all(0)
