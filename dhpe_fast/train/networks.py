"""Which loop trains what a configuration describes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dhpe_fast.config import LifterConfig, LocatorConfig, StreamConfig, TrainConfig
from dhpe_fast.train.lifter import train_lifter
from dhpe_fast.train.locator import train_locator
from dhpe_fast.train.loop import train_dhpe
from dhpe_fast.train.run_folder import Resume

TRAINERS: dict[type, Callable[..., Path]] = {
    TrainConfig: train_dhpe,
    LifterConfig: train_lifter,
    LocatorConfig: train_locator,
}
"""Kind of configuration -> ``trainer(config, run, *, resume, device)``, which returns the folder of the weights."""


def train(
    config: TrainConfig | StreamConfig,
    run: str | os.PathLike[str],
    *,
    resume: Resume = False,
    device: str | None = None,
) -> Path:
    """Trains what a configuration describes; see :func:`dhpe_fast.train.loop.train_dhpe` and ``train.stream``.

    Args:
        config: from :func:`dhpe_fast.config.load_config`.
        run: a folder that does not exist, or the run to resume.
        resume: go on from the last checkpoint of `run` as if it had never stopped, on the CPU exactly; "auto" starts
            `run` if it is not there.
        device: where to compute; None is the GPU of this process, or the CPU.

    Returns:
        The folder of the checkpoint to use.

    Raises:
        TypeError: if `config` is no configuration.
        ConfigError, TrainingDivergedError, CheckpointError, ValueError, OSError: see ``train_dhpe``.
    """
    trainer = TRAINERS.get(type(config))
    if trainer is None:
        raise TypeError(f"config: expected what load_config returns, got {type(config).__name__}")
    return trainer(config, run, resume=resume, device=device)
