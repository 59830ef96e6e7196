"""Random bits that are a function of numbers, not of what was drawn before: SplitMix64 (Steele et al. 2014)."""

from __future__ import annotations

from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
"""The step of the counter, as int64."""


def mix64(
    x: Tensor,  # (...) int64, taken as unsigned
) -> Tensor:
    """The mixing function, (...) int64: each bit of the result depends on all bits of `x`."""
    # Products wrap; a shift of int64 repeats the sign, which the mask takes away.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1)):
        x = ((x >> shift).bitwise_and_(2 ** (64 - shift) - 1)).bitwise_xor_(x).mul_(factor)
    return x
