"""The checks and conversions that the ops on meshes share."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.ops._library import check_kernels
from dhpe_fast.reference import _arguments
from dhpe_fast.reference._arguments import check_face_range, image_height_width

__all__ = ["check_face_range", "check_mesh", "flatten_batch", "image_height_width"]


def check_mesh(
    verts_px: Tensor,  # (*batch, V, 3)
    faces: Tensor,  # (F, 3)
) -> None:
    """Raises TypeError or ValueError unless the two form a batch of meshes, for which there are kernels."""
    _arguments.check_mesh(verts_px, faces)
    check_kernels("verts_px", verts_px)


def flatten_batch(
    verts_px: Tensor,  # (*batch, V, 3)
) -> Tensor:  # (B, V, 3), half types as float32
    """One batch axis in a dtype which the kernels know."""
    if verts_px.dtype in (torch.float16, torch.bfloat16):
        verts_px = verts_px.float()
    return verts_px.reshape(verts_px.shape[:-2].numel(), *verts_px.shape[-2:])
