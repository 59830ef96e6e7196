"""Steps whose loss or gradient is not finite: nothing of them stays, and after too many of them running a run stops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn


class TrainingDivergedError(RuntimeError):
    """Too many steps running had a loss or gradient that is not finite."""


class CountsSteps(Protocol):
    """Where a run is, as far as skipped steps go."""

    step: int
    skipped_in_a_row: int


class StepGuard:
    """Undoes what a forward pass has noted in a network's batch normalisation, and counts the steps left out."""

    def __init__(self, network: nn.Module, most: int) -> None:
        """Looks for the statistics.

        Args:
            network: on its device.
            most: so many steps running are left out before the run stops.
        """
        layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self._statistics = [buffer for layer in layers for buffer in layer.buffers()]
        self._before = [buffer.clone() for buffer in self._statistics]
        self._most = most

    def begin(self) -> None:
        """Before the forward pass of a step."""
        self._before = [buffer.clone() for buffer in self._statistics]

    def skip(self, progress: CountsSteps, terms: Mapping[str, float]) -> None:
        """Leaves the step out; `terms` of its loss are told where that ends the run.

        Raises:
            TrainingDivergedError: if it is the last of too many.
        """
        for buffer, value in zip(self._statistics, self._before, strict=True):
            buffer.copy_(value)
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= self._most:
            raise TrainingDivergedError(
                f"step {progress.step}: the loss or its gradient was not finite {progress.skipped_in_a_row} "
                f"times running, the last time with {', '.join(f'{name} {value:g}' for name, value in terms.items())}; "
                "lower the learning rate, or go back to a checkpoint"
            )
