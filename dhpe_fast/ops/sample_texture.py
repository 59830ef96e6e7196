"""Texture lookup: an image and texture coordinates in, colours out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dhpe_fast import reference


def sample_texture(
    texture: Tensor,  # (*batch, Ht, Wt, C), or (Ht, Wt, C) common to the batch
    uv: Tensor,  # (*batch, H, W, 2)
    face_index: Tensor | None = None,  # (*batch, H, W)
) -> Tensor:  # (*batch, H, W, C)
    """Looks colours up in a texture, bilinearly between the four nearest texels.

    Convention: u runs to the right and v down, over the whole texture, borders included, from 0 to 1; the texel in row
    i and column j has its centre at u = (j + 0.5) / Wt, v = (i + 0.5) / Ht. (In OBJ files v runs up: pass 1 - v.)
    Coordinates outside, and those between the border and the centres of the outermost texels, see the nearest texel.

    Differentiable in: texture and uv; uv receives 0 where it is clamped. Every floating-point dtype; half types are
    computed in float32 and cast back. Computed by torch's ``grid_sample``, which is what this convention is called
    there with ``align_corners=False, padding_mode="border"``; on CUDA, where its gradient depends on the order of
    atomic additions, by the twin if deterministic algorithms are asked for.

    Args:
        texture: C values a texel.
        uv: texture coordinates, for instance those of :func:`dhpe_fast.ops.interpolate`.
        face_index: as of :func:`dhpe_fast.ops.rasterize`; pixels where it is negative become 0. None keeps all.

    Raises:
        TypeError: an argument has the wrong type or dtype. ValueError: shapes, dtypes or devices do not fit.
    """
    _check_arguments(texture, uv, face_index)
    if texture.is_cuda and torch.are_deterministic_algorithms_enabled():
        return reference.sample_texture(texture, uv, face_index)
    batch, (height, width) = uv.shape[:-3], uv.shape[-3:-1]
    texels = texture.float() if texture.dtype in (torch.float16, torch.bfloat16) else texture
    grid = uv.to(texels.dtype) * 2 - 1
    n_channels = texture.shape[-1]
    if texture.dim() == 3:  # all images are rows of one
        texels, grid = texels[None], grid.reshape(1, batch.numel() * height, width, 2)
    else:
        texels, grid = texels.reshape(-1, *texture.shape[-3:]), grid.reshape(-1, height, width, 2)
    if grid.numel() * n_channels == 0:
        return texels.new_zeros(*batch, height, width, n_channels).to(texture.dtype)
    colors = grid_sample(texels.permute(0, 3, 1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False)
    colors = colors.permute(0, 2, 3, 1).reshape(*batch, height, width, n_channels).to(texture.dtype)
    return colors if face_index is None else torch.where((face_index >= 0)[..., None], colors, 0)


def _check_arguments(texture: Tensor, uv: Tensor, face_index: Tensor | None) -> None:
    for name, value in (("texture", texture), ("uv", uv)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {given}")
    if uv.dim() < 3 or uv.shape[-1] != 2:
        raise ValueError(f"uv has shape {tuple(uv.shape)}, expected (*batch, H, W, 2)")
    batch = tuple(uv.shape[:-3])
    if texture.dim() < 3 or (texture.dim() > 3 and tuple(texture.shape[:-3]) != batch):
        accepted = f"(Ht, Wt, C) or {(*batch, 'Ht', 'Wt', 'C')}"
        raise ValueError(f"texture has shape {tuple(texture.shape)}, expected {accepted}")
    if 0 in texture.shape[-3:-1]:
        raise ValueError(f"texture has shape {tuple(texture.shape)}: it holds no texel")
    if texture.dtype != uv.dtype:
        raise ValueError(f"texture is {texture.dtype}, uv {uv.dtype}: they must agree")
    if face_index is not None and face_index.shape != uv.shape[:-1]:
        raise ValueError(f"face_index has shape {tuple(face_index.shape)}, expected {tuple(uv.shape[:-1])}")
    for name, value in (("uv", uv), ("face_index", face_index)):
        if value is not None and value.device != texture.device:
            raise ValueError(f"{name} is on {value.device}, texture on {texture.device}")
