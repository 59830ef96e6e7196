"""How a descent on h treats its iterates, hand by hand: which is the best, when a hand rests, what a step is.

A hand's memory is one row of 195 numbers, so that it can be handed from call to call: Adam's moments, the best h, and
what is named below. It starts as ``first_memory``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dhpe_fast.conventions import H_SIZE

FIRST_MOMENT, SECOND_MOMENT, BEST_H = (slice(i * H_SIZE, (i + 1) * H_SIZE) for i in range(3))
STEPS, IDLE, STATUS, FIRST_ENERGY, LAST_ENERGY, BEST_ENERGY = range(3 * H_SIZE, 3 * H_SIZE + 6)
MEMORY_SIZE = 3 * H_SIZE + 6
FRESH, MOVING, CONVERGED, NOT_FINITE = range(4)
"""Values of STATUS; a hand with one of the last two rests."""

IDLE_TO_CONVERGE = 3
"""Changes running of a hand's energy below the tolerance after which it rests."""

DIVERGED_SLACK = 1e-5
"""A hand has diverged when its energy ends above the first one by more than this share: less is rounding, as of hands
that start at the optimum."""

_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPS = 1e-8


class Descent(NamedTuple):
    """Where hands are after some iterations, and the way there."""

    h: Tensor
    """(B, 63) the last iterates: finite if the first were"""
    memory: Tensor
    """(B, 195) for further iterations"""
    energies: Tensor
    """(B, rows, 8) by iterate and term"""

    @property
    def diverged(self) -> Tensor:
        """(B,) bool: an energy or a step was not finite, or the last energy is above the first by more than rounding.

        A hand that has gone up and is still below its first energy is not flagged; ``best_h`` is its best h all the
        same.
        """
        memory = self.memory
        first, last = memory[:, FIRST_ENERGY], memory[:, LAST_ENERGY]
        slack = DIVERGED_SLACK * (first.abs() + torch.finfo(memory.dtype).eps)
        return (memory[:, STATUS] == NOT_FINITE) | (last > first + slack)

    @property
    def converged(self) -> Tensor:
        """(B,) bool: the tolerance let the hand rest."""
        return self.memory[:, STATUS] == CONVERGED

    @property
    def best_h(self) -> Tensor:
        """(B, 63) the iterates of least energy, but those whose energy was extrapolated."""
        return self.memory[:, BEST_H]

    @property
    def best_energy(self) -> Tensor:
        """(B,) of ``best_h``: the part of its energy by which iterates are compared."""
        return self.memory[:, BEST_ENERGY]


def first_memory(
    h: Tensor,  # (B, 63)
) -> Tensor:  # (B, 195)
    """The memory of hands that start at h."""
    memory = h.new_zeros(len(h), MEMORY_SIZE)
    memory[:, BEST_H] = h
    return memory


def at_rest(
    memory: Tensor,  # (B, 195)
) -> Tensor:  # (B,) bool
    """Which hands do not move any more."""
    return memory[:, STATUS] >= CONVERGED


def noted(
    memory: Tensor,  # (B, 195)
    h: Tensor,  # (B, 63)
    energy: tuple[Tensor, Tensor],  # (B,) each
    *,
    is_exact: bool = True,
    tolerance: float = 0.0,
) -> Tensor:  # (B, 195)
    """The memory after the iterates h.

    Args:
        memory: before.
        h: the iterates.
        energy: of each hand in total, and the part of it by which iterates are compared.
        is_exact: whether the energies can be trusted to compare iterates; one that is linear in the mask is an
            extrapolation.
        tolerance: a hand rests after three changes of its energy below this share of it; 0 is never.
    """
    total, rank = energy
    active = ~at_rest(memory)
    good = active & total.isfinite() & rank.isfinite()
    fresh = memory[:, STATUS] == FRESH
    best = good & (fresh | (rank < memory[:, BEST_ENERGY])) & is_exact
    status = torch.where(good, MOVING, torch.where(active, NOT_FINITE, memory[:, STATUS]))
    idle = memory[:, IDLE]
    if tolerance > 0:
        is_idle = (rank - memory[:, LAST_ENERGY]).abs() <= tolerance * rank.abs()
        idle = torch.where(good & ~fresh, torch.where(is_idle, idle + 1, 0), idle)
        status = torch.where(good & ~fresh & (idle >= IDLE_TO_CONVERGE), CONVERGED, status)
    after = memory.clone()
    after[:, BEST_H] = torch.where(best[:, None], h, memory[:, BEST_H])
    after[:, IDLE], after[:, STATUS] = idle, status
    for index, changes in ((FIRST_ENERGY, good & fresh), (LAST_ENERGY, good), (BEST_ENERGY, best | (good & fresh))):
        after[:, index] = torch.where(changes, rank, memory[:, index])
    return after


def stepped(
    memory: Tensor,  # (B, 195)
    h: Tensor,  # (B, 63)
    gradient: Tensor,  # (B, 63)
    rates: Tensor,  # (63,)
    optimizer: str,
) -> tuple[Tensor, Tensor]:
    """The next iterates and the memory: by gradient descent ("gd") or Adam (Kingma and Ba 2015).

    A hand whose next h is not finite keeps its h and Adam's moments, and rests from now on.
    """
    after, moving = memory.clone(), memory[:, STATUS] == MOVING
    direction = gradient
    if optimizer == "adam":
        beta1, beta2 = _ADAM_BETAS
        first = beta1 * memory[:, FIRST_MOMENT] + (1 - beta1) * gradient
        second = beta2 * memory[:, SECOND_MOMENT] + (1 - beta2) * gradient.square()
        step = memory[:, STEPS, None].double() + 1
        unbiased = first / (1 - beta1**step).to(h.dtype), second / (1 - beta2**step).to(h.dtype)
        direction = unbiased[0] / (unbiased[1].sqrt() + _ADAM_EPS)
    moved = h - rates * direction
    finite = moved.isfinite().all(-1)
    steps = moving & finite
    if optimizer == "adam":
        after[:, FIRST_MOMENT] = torch.where(steps[:, None], first, memory[:, FIRST_MOMENT])
        after[:, SECOND_MOMENT] = torch.where(steps[:, None], second, memory[:, SECOND_MOMENT])
    after[:, STEPS] += steps
    after[:, STATUS] = torch.where(moving & ~finite, NOT_FINITE, memory[:, STATUS])
    return torch.where(steps[:, None], moved, h), after
