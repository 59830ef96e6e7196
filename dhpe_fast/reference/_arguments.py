"""How the ops and their twins name an argument that they refuse."""

from __future__ import annotations

from torch import Tensor


def describe(value: object) -> str:
    """What was given where a tensor of some dtype was expected."""
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
