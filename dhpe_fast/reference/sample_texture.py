"""Bilinear texture lookup."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.reference._arguments import check_same_dtype, describe, result_dtype, widened_dtype


def sample_texture(
    texture: Tensor,  # (*batch, Ht, Wt, C), or (Ht, Wt, C) common to the batch
    uv: Tensor,  # (*batch, H, W, 2)
    face_index: Tensor | None = None,  # (*batch, H, W)
) -> Tensor:  # (*batch, H, W, C)
    """Looks colours up; the twin of :func:`dhpe_fast.ops.sample_texture`, where the contract is written."""
    check_texture(texture, uv, face_index)
    batch, (height, width) = uv.shape[:-3], uv.shape[-3:-1]
    rows, columns, n_channels = texture.shape[-3:]
    work, dtype = widened_dtype(texture.dtype), result_dtype(texture, uv)
    shared = texture.dim() == 3
    texels = texture.to(work).reshape(-1, n_channels)
    image = torch.arange(batch.numel(), device=uv.device)[:, None, None] * (0 if shared else rows * columns)
    x = (uv[..., 0].to(work).reshape(-1, height, width) * columns - 0.5).clamp(0, columns - 1)
    y = (uv[..., 1].to(work).reshape(-1, height, width) * rows - 0.5).clamp(0, rows - 1)
    left, top = x.detach().floor().long(), y.detach().floor().long()
    right, bottom = (left + 1).clamp(max=columns - 1), (top + 1).clamp(max=rows - 1)
    across, down = (x - left)[..., None], (y - top)[..., None]
    upper = texels[image + top * columns + left] * (1 - across) + texels[image + top * columns + right] * across
    lower = texels[image + bottom * columns + left] * (1 - across) + texels[image + bottom * columns + right] * across
    colors = (upper * (1 - down) + lower * down).reshape(*batch, height, width, n_channels).to(dtype)
    return colors if face_index is None else torch.where((face_index >= 0)[..., None], colors, 0)


def check_texture(texture: Tensor, uv: Tensor, face_index: Tensor | None) -> None:
    """Raises TypeError or ValueError unless the three belong together."""
    for name, value in (("texture", texture), ("uv", uv)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {describe(value)}")
    if uv.dim() < 3 or uv.shape[-1] != 2:
        raise ValueError(f"uv has shape {tuple(uv.shape)}, expected (*batch, H, W, 2)")
    batch = tuple(uv.shape[:-3])
    if texture.dim() < 3 or (texture.dim() > 3 and tuple(texture.shape[:-3]) != batch):
        accepted = f"(Ht, Wt, C) or {(*batch, 'Ht', 'Wt', 'C')}"
        raise ValueError(f"texture has shape {tuple(texture.shape)}, expected {accepted}")
    if 0 in texture.shape[-3:-1]:
        raise ValueError(f"texture has shape {tuple(texture.shape)}: it holds no texel")
    check_same_dtype("texture", texture, "uv", uv)
    if face_index is not None and face_index.shape != uv.shape[:-1]:
        raise ValueError(f"face_index has shape {tuple(face_index.shape)}, expected {tuple(uv.shape[:-1])}")
    for name, value in (("uv", uv), ("face_index", face_index)):
        if value is not None and value.device != texture.device:
            raise ValueError(f"{name} is on {value.device}, texture on {texture.device}")
