"""The checks and conversions that the ops on meshes share."""

from __future__ import annotations

import math

from torch import Tensor

from dhpe_fast.ops._library import check_kernels
from dhpe_fast.reference import _arguments
from dhpe_fast.reference._arguments import check_face_range, image_height_width, result_dtype, widened

__all__ = ["check_face_range", "check_mesh", "flatten_batch", "image_height_width", "result_dtype"]


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
    verts_px = widened(verts_px)
    return verts_px.reshape(math.prod(verts_px.shape[:-2]), *verts_px.shape[-2:])
