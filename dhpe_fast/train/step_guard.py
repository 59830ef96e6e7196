"""Steps of an optimiser. Of one whose loss or gradient is not finite nothing stays; too many running stop the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dhpe_fast.config import Optimisation, StreamOptimisation
from dhpe_fast.train.distributed import World


class TrainingDivergedError(RuntimeError):
    """Too many steps running had a loss or gradient that is not finite."""


class CountsSteps(Protocol):
    """Where a run is, as far as steps go."""

    step: int
    skipped_in_a_row: int


class GuardedSteps:
    """Takes the steps of an optimiser; those left out also leave the statistics of batch normalisation as they were."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        options: Optimisation | StreamOptimisation,
        processes: World,
        norms: Sequence[str] = ("gradient_norm",),
    ) -> None:
        """Looks for the statistics.

        Args:
            network: on its device.
            optimizer: of its weights; the gradient of each group is clipped by itself.
            options: rate, warm-up, clipping, precision, and how many steps may be left out running.
            processes: all of them take a step, or none.
            norms: what the groups' gradient norms are called.
        """
        self._optimizer, self._options, self._processes, self._norms = optimizer, options, processes, norms
        layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self._statistics = [buffer for layer in layers for buffer in layer.buffers()]
        self._before: list[Tensor] = []

    def begin(self, progress: CountsSteps, decay: float) -> torch.autocast:
        """Sets the learning rate, `decay` times the warmed-up one; the loss is computed within what is returned."""
        options = self._options
        warm = min(1.0, (progress.step + 1) / (options.warmup_steps + 1))
        for group in self._optimizer.param_groups:
            group["lr"] = options.learning_rate * warm * decay
        self._before = [buffer.clone() for buffer in self._statistics]
        device, enabled = self._processes.device, options.precision == "bfloat16"
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)

    def end(self, progress: CountsSteps, total: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Takes the step, or leaves it out, and counts it.

        Args:
            progress: changed.
            total: () the loss.
            terms: () each, of what it is made.

        Returns:
            ``total``, the norms before they are clipped, the terms, and ``learning_rate``.

        Raises:
            TrainingDivergedError: if it is the last of too many that are left out.
        """
        options, optimizer = self._options, self._optimizer
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        clip = math.inf if options.gradient_clip is None else options.gradient_clip
        norms = [torch.nn.utils.clip_grad_norm_(group["params"], clip) for group in optimizer.param_groups]
        progress.step += 1
        judged = {"total": total, **dict(zip(self._norms, norms, strict=True))}
        values = {**judged, **terms}
        # The one wait for the device and for the other processes in a step; a mean is finite only where all are.
        means = self._processes.mean(torch.stack([value.detach().float() for value in values.values()]))
        scalars = dict(zip(values, means.tolist(), strict=True))
        if all(math.isfinite(scalars[name]) for name in judged):
            optimizer.step()
            progress.skipped_in_a_row = 0
        else:
            self._skip(progress, {name: scalars[name] for name in terms})
        return {**scalars, "learning_rate": optimizer.param_groups[0]["lr"]}

    def _skip(self, progress: CountsSteps, terms: Mapping[str, float]) -> None:
        for buffer, value in zip(self._statistics, self._before, strict=True):
            buffer.copy_(value)
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= self._options.max_skipped_steps:
            raise TrainingDivergedError(
                f"step {progress.step}: the loss or its gradient was not finite {progress.skipped_in_a_row} "
                f"times running, the last time with {', '.join(f'{name} {value:g}' for name, value in terms.items())}; "
                "lower the learning rate, or go back to a checkpoint"
            )
