"""Checks of the fake kernels, so that a traced program is refused what the kernels refuse."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises RuntimeError, as the kernels do, unless `tensor` has this shape."""
    torch._check(
        tensor.dim() == len(shape),
        lambda: f"{op}: {name} has shape {tuple(tensor.shape)}, expected {shape}",
    )
    for found, expected in zip(tensor.shape, shape, strict=True):
        torch._check(
            found == expected,
            lambda: f"{op}: {name} has shape {tuple(tensor.shape)}, expected {shape}",
        )
