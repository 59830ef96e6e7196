"""What every measure does with its arguments: check them, compute in float64, answer in the caller's own type."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Points = TypeVar("Points", Tensor, np.ndarray)

MM_PER_M = 1000.0


def as_tensor(name: str, value: Tensor | np.ndarray) -> Tensor:
    """The same values without a graph; raises TypeError for anything but a tensor or an array."""
    if isinstance(value, np.ndarray):
        # Torch warns of arrays that may not be written to, though nothing here would.
        return torch.from_numpy(np.require(value, requirements=("C", "W")))
    if isinstance(value, Tensor):
        return value.detach()
    raise TypeError(f"{name}: expected a torch.Tensor or a numpy array, got {type(value).__name__}")


def as_given(given: Tensor | np.ndarray, result: Tensor) -> Tensor | np.ndarray:
    """The result as an array where an array was given."""
    return result.numpy() if isinstance(given, np.ndarray) else result


def point_pair(
    predicted: tuple[str, Points],  # name and (*batch, N, width)
    truth: tuple[str, Points],  # the same
    width: int = 3,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both in float64 on the device of the first, and which points are annotated (*batch, N).

    Truth that is not annotated is NaN in all coordinates.

    Raises:
        TypeError: if an argument is neither a tensor nor an array.
        ValueError: if the shapes differ or are not (*batch, N, width) with N >= 1, a predicted coordinate is not
            finite, or a true one is infinite.
    """
    (name_a, a), (name_b, b) = ((name, as_tensor(name, value).double()) for name, value in (predicted, truth))
    if a.shape != b.shape or a.dim() < 2 or a.shape[-1] != width or a.shape[-2] < 1:
        raise ValueError(
            f"{name_a} {tuple(a.shape)} and {name_b} {tuple(b.shape)}: expected one shape (*batch, N, {width}), N >= 1"
        )
    for name, bad in ((name_a, ~a.isfinite()), (name_b, b.isinf())):
        if bool(bad.any()):
            raise ValueError(f"{name}: {int(bad.sum())} coordinates are not finite")
    b = b.to(a.device)
    annotated = b.isfinite().all(-1)
    return a, torch.where(annotated[..., None], b, torch.nan), annotated
