"""Checks of the fake kernels, so that a traced program is refused what the kernels refuse."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.ops._library import build


def check_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises RuntimeError, as the kernels do, unless `tensor` has this shape."""

    def message() -> str:
        return f"{op}: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}"

    torch._check(tensor.dim() == len(shape), message)
    for found, expected in zip(tensor.shape, shape, strict=True):
        torch._check(found == expected, message)


def check_raster_shapes(
    op: str,
    verts_px: Tensor,  # (B, V, 3)
    faces: Tensor,  # (F, 3)
    height: int,
    width: int,
) -> None:
    """What csrc/raster/raster_tensors.h checks."""
    check_shape(op, "verts_px", verts_px, (*verts_px.shape[:2], 3))
    check_shape(op, "faces", faces, (*faces.shape[:1], 3))
    for side in (height, width):
        torch._check(
            1 <= side <= build.max_image_size,
            lambda: f"{op}: image_size {height} x {width}, expected 1 to {build.max_image_size}",
        )
