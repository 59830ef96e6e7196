"""Interpolation of vertex attributes over rasterized faces."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.reference.rasterize import Fragments


def interpolate(
    attributes: Tensor,  # (*batch, V, C), or (V, C) common to the batch
    faces: Tensor,  # (F, 3)
    fragments: Fragments,  # of (*batch, H, W) pixels
) -> Tensor:  # (*batch, H, W, C)
    """Draws attributes of vertices; the twin of :func:`dhpe_fast.ops.interpolate`, where the contract is written."""
    batch, (height, width) = fragments.face_index.shape[:-2], fragments.face_index.shape[-2:]
    n_channels = attributes.shape[-1]
    if attributes.dim() == 2:
        attributes = attributes.expand(*batch, *attributes.shape)
    face_index = fragments.face_index.reshape(-1, height, width)
    image, row, column = torch.nonzero(face_index >= 0, as_tuple=True)
    vertex = faces.long()[face_index[image, row, column].long()]  # (n, 3)
    corners = attributes.reshape(-1, *attributes.shape[-2:])[image[:, None], vertex]  # (n, 3, C)
    bary = fragments.bary.reshape(-1, height, width, 3)[image, row, column]
    if attributes.dtype in (torch.float16, torch.bfloat16):
        corners, bary = corners.float(), bary.float()
    seen = (bary[..., None] * corners).sum(1).to(attributes.dtype)
    out = attributes.new_zeros(batch.numel(), height, width, n_channels).index_put((image, row, column), seen)
    return out.reshape(*batch, height, width, n_channels)
