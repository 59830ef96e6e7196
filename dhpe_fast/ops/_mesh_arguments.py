"""The checks that rasterize and silhouette share: what they accept, said by name."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from dhpe_fast.ops._library import build

MAX_IMAGE_SIZE: int = build.max_image_size
"""Pixels a side, the limit of the kernels."""


def check_mesh(
    verts_px: Tensor,  # (*batch, V, 3)
    faces: Tensor,  # (F, 3)
) -> None:
    """Raises TypeError or ValueError unless the two form a batch of meshes."""
    if not isinstance(verts_px, Tensor) or not verts_px.is_floating_point():
        raise TypeError(f"verts_px must be a floating-point tensor, got {_describe(verts_px)}")
    if not isinstance(faces, Tensor) or faces.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"faces must be an int32 or int64 tensor, got {_describe(faces)}")
    if verts_px.dim() < 2 or verts_px.shape[-1] != 3:
        raise ValueError(f"verts_px has shape {tuple(verts_px.shape)}, expected (*batch, V, 3)")
    if faces.dim() != 2 or faces.shape[-1] != 3:
        raise ValueError(f"faces has shape {tuple(faces.shape)}, expected (F, 3)")
    if faces.device != verts_px.device:
        raise ValueError(f"faces is on {faces.device}, verts_px on {verts_px.device}")


def image_height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Reads `image_size`, a side or (height, width)."""
    sides = (image_size, image_size) if isinstance(image_size, Integral) else image_size
    try:
        height, width = sides
    except (TypeError, ValueError):
        raise TypeError(f"image_size must be an int or (height, width), got {image_size!r}") from None
    for side in (height, width):
        if not isinstance(side, Integral | torch.SymInt):
            raise TypeError(f"image_size must be an int or (height, width), got {image_size!r}")
        if not 1 <= side <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size is {image_size!r}, expected 1 to {MAX_IMAGE_SIZE} pixels a side")
    return height, width


def check_face_range(
    faces: Tensor,  # (F, 3)
    n_verts: int,
) -> None:
    """Raises ValueError if a face names a vertex that is not there."""
    if faces.numel() == 0:
        return
    low, high = (int(bound) for bound in faces.aminmax())
    if low < 0 or high >= n_verts:
        raise ValueError(f"faces holds {low if low < 0 else high}, expected 0 to {n_verts - 1} (V = {n_verts})")


def flatten_batch(
    verts_px: Tensor,  # (*batch, V, 3)
) -> Tensor:  # (B, V, 3), half types as float32
    """One batch axis in a dtype which the kernels know."""
    if verts_px.dtype in (torch.float16, torch.bfloat16):
        verts_px = verts_px.float()
    return verts_px.reshape(verts_px.shape[:-2].numel(), *verts_px.shape[-2:])


def _describe(value: object) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
