"""The loop for small networks on an endless stream of examples: by steps instead of epochs, resumable at any."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dhpe_fast.config import ConfigError, StreamConfig
from dhpe_fast.train.checkpoint import (
    LAST,
    CheckpointError,
    find_checkpoint,
    load_state,
    load_weights,
    save_checkpoint,
)
from dhpe_fast.train.distributed import World, check_device
from dhpe_fast.train.log import RunLog
from dhpe_fast.train.run_facts import write_facts
from dhpe_fast.train.run_folder import Resume, claim_folder, make_folder
from dhpe_fast.train.step_guard import GuardedSteps

Objective = Callable[[nn.Module, Any], Mapping[str, Tensor]]
"""(network, batch) -> the terms of the loss by name, weighted, () each; what is minimised is their sum."""
Batches = Callable[[int], Iterable[Any]]
"""Number of steps done -> the batches from there on, as an uninterrupted run would see them."""
Validation = Callable[[nn.Module], Mapping[str, float]]
"""Network, in evaluation mode -> scores on examples that are not trained on."""


@dataclass
class StreamProgress:
    """Where a run is."""

    step: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    """of training so far, over all resumptions"""


@dataclass(frozen=True)
class Task:
    """What is learnt from what."""

    objective: Objective
    batches: Batches
    validate: Validation | None = None


def train_stream(
    run: str | os.PathLike[str],
    network: Callable[[], nn.Module],
    task: Task,
    config: StreamConfig,
    *,
    resume: Resume = False,
    device: str | None = None,
) -> Path:
    """Trains a network on a stream with Adam (AdamW), a linear warm-up and a cosine that ends at zero.

    The folder `run` receives ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/last`` and, at the
    end, ``run.json``: steps, wall time, device, version of torch, number of weights, last scores. One process.

    A step whose loss or gradient norm is not finite changes neither weights nor the statistics of batch normalisation;
    after ``optimisation.max_skipped_steps`` of them running, the run stops with an error.

    Args:
        run: a folder that does not exist, or the run to resume.
        network: makes the network; called after the random numbers are seeded.
        task: objective, batches and measurement; the batches' tensors are expected on the network's device.
        config: seed and numbers of the optimisation.
        resume: as in ``train_dhpe``; exact on the CPU if ``task.batches`` is.
        device: where to compute; None is the GPU, or the CPU where there is none.

    Returns:
        The folder of the last checkpoint.

    Raises:
        ConfigError: if `run` is refused (see ``train_dhpe``), or torchrun has started several processes.
        TrainingDivergedError: see above.
        CheckpointError, ValueError: if a checkpoint is damaged, or `device` is none.
    """
    run = Path(run)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"network: the {config.network} is trained by one process; start it without torchrun")
    alone = World(0, 1, check_device(device))
    claim_folder(run, config, resume, alone)
    torch.manual_seed(config.seed)
    trainer = StreamTrainer(config, run, network(), task, alone)
    make_folder(run, config, alone)
    if resume:
        trainer.resume()
    trainer.run_steps()
    return run / "checkpoints" / LAST


def load_network(run: str | os.PathLike[str], network: nn.Module) -> nn.Module:
    """The network of a run with its last weights, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: if there is no checkpoint, it is damaged, or of another network.
    """
    folder = find_checkpoint(Path(run), LAST)
    if folder is None:
        raise CheckpointError(f"{os.fspath(run)}: there is no checkpoint {LAST!r}; train first")
    load_weights(folder, network)
    return network.eval()


class StreamTrainer:
    """A run: network, optimiser and progress."""

    def __init__(self, config: StreamConfig, run: Path, network: nn.Module, task: Task, alone: World) -> None:
        self.config, self.run, self.task, self.device = config, run, task, alone.device
        # Convolutions are faster with channels-last weights; those of other layers stay as they are.
        self.network = network.to(alone.device, memory_format=torch.channels_last)
        options = config.optimisation
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
        self.steps = GuardedSteps(self.network, self.optimizer, options, alone)
        self.progress = StreamProgress()
        self.scores: dict[str, float] = {}

    def resume(self) -> None:
        """Takes up the last checkpoint, if there is one."""
        folder = find_checkpoint(self.run, LAST)
        if folder is None:
            return
        state = load_state(folder)
        load_weights(folder, self.network)
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = StreamProgress(**state["progress"])
        self.scores = state["scores"]
        torch.set_rng_state(state["random"])  # dropout goes on where it was

    def run_steps(self) -> None:
        """Trains until the last step is done."""
        config, progress = self.config, self.progress
        steps = config.optimisation.steps
        started = time.perf_counter() - progress.seconds
        log = RunLog(self.run, progress.step)
        self.network.train()
        shown = tqdm(desc=config.network, initial=progress.step, total=steps, disable=None)
        try:
            if progress.step < steps:
                for batch in self.task.batches(progress.step):
                    scalars = self._step(batch)
                    shown.update()
                    last = progress.step == steps
                    if last or progress.step % config.log_every == 0:
                        log.scalars("train", progress.step, scalars)
                    if last or progress.step % config.validate_every == 0:
                        self._measure(log, time.perf_counter() - started)
                    if last or progress.step % config.checkpoint_every == 0:
                        progress.seconds = time.perf_counter() - started
                        self._save()
                    if last:
                        break
            facts = {"steps": progress.step, "seconds": round(progress.seconds, 3)}
            write_facts(self.run, self.network, self.device, self.scores, network=config.network, **facts)
        finally:
            shown.close()
            log.close()

    def _step(self, batch: Any) -> dict[str, float]:
        """The numbers of a step, after it."""
        options, progress = self.config.optimisation, self.progress
        part = progress.step * options.cycles / options.steps % 1.0  # of the cycle
        with self.steps.begin(progress, 0.5 * (1 + math.cos(math.pi * part))):
            terms = self.task.objective(self.network, batch)
        return self.steps.end(progress, sum(terms.values()), terms)

    def _measure(self, log: RunLog, seconds: float) -> None:
        if self.task.validate is None:
            return
        self.network.eval()
        with torch.no_grad():
            self.scores = {name: float(value) for name, value in self.task.validate(self.network).items()}
        self.network.train()
        log.scalars("validation", self.progress.step, self.scores, seconds=seconds)

    def _save(self) -> None:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "scores": self.scores,
            "random": torch.get_rng_state(),
        }
        save_checkpoint(self.run, LAST, self.network, state)
