"""What the ops and their twins accept, said by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real

import torch
from torch import Tensor

MAX_IMAGE_SIZE = 16384
"""Pixels a side, the limit of the kernels."""
MIN_Z_NEAR = 1e-6
"""The least and the default distance at which a perspective view sees."""

MIN_SIGMA, MAX_SIGMA = 1e-6, 1e6
"""Square pixels; beyond, float32 has no room for the squares of distances."""
# Not made where they are used: a compiled program with free numbers formats none.
_ACCEPTED_Z_NEAR = f"a number of at least {MIN_Z_NEAR:g} or None"
_ACCEPTED_SIGMA = f"{MIN_SIGMA:g} to {MAX_SIGMA:g}"


HALF_TYPES = (torch.float16, torch.bfloat16)
"""Computed in float32, and so at home beside it."""


def widened_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of `dtype` are computed."""
    return torch.float32 if dtype in HALF_TYPES else dtype


def widened(tensor: Tensor) -> Tensor:
    """The tensor in a type that the ops compute in."""
    return tensor.float() if tensor.dtype in HALF_TYPES else tensor


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """The type of a result: the one of the arguments, or what half types and float32 promote to.

    Under autocast half types come from the layers before, not from the caller's wish: results are float32 then, as
    those of torch's own ops that autocast keeps in float32.
    """
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        if tensor.dtype != dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.float32 if dtype in HALF_TYPES and torch.is_autocast_enabled(tensors[0].device.type) else dtype


def check_same_dtype(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError unless two tensors agree in dtype; a half type and float32 do."""
    if tensor.dtype != other.dtype and widened_dtype(tensor.dtype) != widened_dtype(other.dtype):
        raise ValueError(f"{name} is {tensor.dtype}, {other_name} {other.dtype}: they must agree")


def describe(value: object) -> str:
    """What was given where a tensor of some dtype was expected."""
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__


def check_mesh(
    verts_px: Tensor,  # (*batch, V, 3)
    faces: Tensor,  # (F, 3)
) -> None:
    """Raises TypeError or ValueError unless the two form a batch of meshes."""
    if not isinstance(verts_px, Tensor) or not verts_px.is_floating_point():
        raise TypeError(f"verts_px must be a floating-point tensor, got {describe(verts_px)}")
    if not isinstance(faces, Tensor) or faces.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"faces must be an int32 or int64 tensor, got {describe(faces)}")
    if verts_px.dim() < 2 or verts_px.shape[-1] != 3:
        raise ValueError(f"verts_px has shape {tuple(verts_px.shape)}, expected (*batch, V, 3)")
    if faces.dim() != 2 or faces.shape[-1] != 3:
        raise ValueError(f"faces has shape {tuple(faces.shape)}, expected (F, 3)")
    if faces.device != verts_px.device:
        raise ValueError(f"faces is on {faces.device}, verts_px on {verts_px.device}")


def image_height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Reads `image_size`, a side or (height, width)."""
    sides = (image_size, image_size) if isinstance(image_size, Integral | torch.SymInt) else image_size
    try:
        height, width = sides
    except (TypeError, ValueError):
        raise TypeError(f"image_size must be an int or (height, width), got {image_size!r}") from None
    for side in (height, width):
        if isinstance(side, bool) or not isinstance(side, Integral | torch.SymInt):
            raise TypeError(f"image_size must be an int or (height, width), got {image_size!r}")
        if not 1 <= side <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size is {image_size!r}, expected 1 to {MAX_IMAGE_SIZE} pixels a side")
    # The kernels' schemas take Python's integers only.
    return tuple(side if isinstance(side, torch.SymInt) else int(side) for side in (height, width))


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


def checked_number(name: str, value: float, accepted: str, is_accepted: Callable[[float], bool]) -> float:
    """`value` as a float; raises TypeError unless it is a number, ValueError unless it is finite and accepted."""
    if isinstance(value, bool) or not isinstance(value, Real | torch.SymFloat | torch.SymInt):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    # Not math.isfinite, which takes no number that torch.compile leaves open.
    if not (-math.inf < value < math.inf and is_accepted(value)):
        raise ValueError(f"{name} is {value}, expected {accepted}")
    return float(value)


def checked_eps(eps: float) -> float:
    """`eps` as a float, if it is a positive number."""
    return checked_number("eps", eps, "a positive number", lambda value: value > 0)


def checked_sigma(sigma: float) -> float:
    """`sigma` as a float, if the kernels have room for it."""
    return checked_number("sigma", sigma, _ACCEPTED_SIGMA, lambda value: MIN_SIGMA <= value <= MAX_SIGMA)


def checked_z_near(z_near: float | None, perspective: bool) -> float | None:
    """What `z_near` stands for: the default in perspective, None where there is no test."""
    if z_near is None:
        return MIN_Z_NEAR if perspective else None
    accepted = _ACCEPTED_Z_NEAR if perspective else "a finite number or None"
    return checked_number("z_near", z_near, accepted, lambda value: not perspective or value >= MIN_Z_NEAR)
