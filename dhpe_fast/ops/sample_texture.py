"""Texture lookup: an image and texture coordinates in, colours out."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dhpe_fast import reference
from dhpe_fast.reference._arguments import result_dtype, widened
from dhpe_fast.reference.sample_texture import check_texture


def sample_texture(
    texture: Tensor,  # (*batch, Ht, Wt, C), or (Ht, Wt, C) common to the batch
    uv: Tensor,  # (*batch, H, W, 2)
    face_index: Tensor | None = None,  # (*batch, H, W)
) -> Tensor:  # (*batch, H, W, C)
    """Looks colours up in a texture, bilinearly between the four nearest texels.

    Convention: u runs to the right and v down, over the whole texture, borders included, from 0 to 1; the texel in row
    i and column j has its centre at u = (j + 0.5) / Wt, v = (i + 0.5) / Ht. (In OBJ files v runs up: pass 1 - v.)
    Coordinates outside, and those between the border and the centres of the outermost texels, see the nearest texel.

    Differentiable in: texture and uv; uv receives 0 where it is clamped. Every floating-point dtype; half types
    as :mod:`dhpe_fast.ops` says. Computed by torch's ``grid_sample``, which is what this convention is called
    there with ``align_corners=False, padding_mode="border"``; on CUDA, where its gradient depends on the order of
    atomic additions, by the twin if deterministic algorithms are asked for.

    Args:
        texture: C values a texel.
        uv: texture coordinates, for instance those of :func:`dhpe_fast.ops.interpolate`.
        face_index: as of :func:`dhpe_fast.ops.rasterize`; pixels where it is negative become 0. None keeps all.

    Raises:
        TypeError: an argument has the wrong type or dtype. ValueError: shapes, dtypes or devices do not fit.
    """
    check_texture(texture, uv, face_index)
    if texture.is_cuda and torch.are_deterministic_algorithms_enabled():
        return reference.sample_texture(texture, uv, face_index)
    batch, (height, width) = uv.shape[:-3], uv.shape[-3:-1]
    texels, dtype = widened(texture), result_dtype(texture, uv)
    grid = uv.to(texels.dtype) * 2 - 1
    n_channels = texture.shape[-1]
    if texture.dim() == 3:  # all images are rows of one
        texels, grid = texels[None], grid.reshape(1, math.prod(batch) * height, width, 2)
    else:
        texels, grid = texels.reshape(-1, *texture.shape[-3:]), grid.reshape(-1, height, width, 2)
    if grid.numel() * n_channels == 0:
        return texels.new_zeros(*batch, height, width, n_channels).to(dtype)
    colors = grid_sample(texels.permute(0, 3, 1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False)
    colors = colors.permute(0, 2, 3, 1).reshape(*batch, height, width, n_channels).to(dtype)
    return colors if face_index is None else torch.where((face_index >= 0)[..., None], colors, 0)
