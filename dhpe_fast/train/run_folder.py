"""The folder of a run: whose it is, which changes a resumed run takes, and whether all processes see the same one."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from dhpe_fast.config import ConfigError, StreamConfig, TrainConfig, load_config, save_config
from dhpe_fast.train.distributed import World

Resume = bool | Literal["auto"]
"""True goes on with a run that is there, False starts one that is not, "auto" does what fits."""

FREE = (
    "data.workers",
    "checkpoint_every",
    "picture_every",
    "log_every",
    "validate_every",
    "refinement",
    "refinement.*",
)
"""Keys that do not change what is learnt."""
PATHS = (
    "data.train.*.root",
    "data.validation.*.root",
    "data.synthesize.root",
    "start.*",
    "self_supervision.backgrounds",
)
"""Keys that say where something lies: it may be moved, but not be left out or added."""

Config = TrainConfig | StreamConfig

_PATIENCE_S = 60.0
"""So long a network file system may take to show a new file to other machines."""


def claim_folder(run: Path, config: Config, resume: Resume, processes: World) -> None:
    """Refuses a folder that is another run's, or no run where one is to be resumed; the first process looks.

    Raises:
        ConfigError: in every process, if the folder is refused, or is not one and the same for all of them.
        ValueError: if `resume` is none of True, False and "auto".
    """
    if resume not in (True, False, "auto"):
        raise ValueError(f"resume: expected True, False or 'auto', got {resume!r}")
    check_shared(run.parent, f"the folder of {run}", processes)
    try:
        refusal = _refusal(run, config, resume) if processes.is_first else None
    except ConfigError as error:  # the saved one is damaged; the others wait for word of it
        refusal = str(error)
    refusal = processes.from_first(refusal)
    if refusal is not None:
        raise ConfigError(refusal)


def make_folder(run: Path, config: Config, processes: World) -> None:
    """Makes the folder with the configuration in it, before any process goes on."""
    if processes.is_first:
        run.mkdir(parents=True, exist_ok=True)
        save_config(config, run / "config.yaml")
    processes.wait()


def check_shared(folder: Path, what: str, processes: World, patience_s: float = _PATIENCE_S) -> None:
    """Makes the folder, and checks that it is the same one for all processes.

    Raises:
        ConfigError: in every process, if what the first one writes there does not appear in all of them.
    """
    if processes.size == 1:
        return
    marker = folder / processes.from_first(f".shared-{uuid4().hex}")
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    try:
        processes.wait()
        machines = processes.gather(None if _appears(marker, patience_s) else platform.node())
    finally:
        if processes.is_first:
            marker.unlink()
    without = [f"{rank} on {machine}" for rank, machine in enumerate(machines) if machine is not None]
    if without:
        raise ConfigError(
            f"{what}: what process 0 writes into {folder.absolute()} does not appear there in process "
            f"{', '.join(without)}; all machines of a run need it on a disk that they share"
        )


def learning_changes(saved: Config, config: Config) -> list[str]:
    """The keys by which a resumed run would learn something else, each with the saved and the given value."""
    before, after = dict(_leaves(saved.model_dump(mode="json"))), dict(_leaves(config.model_dump(mode="json")))
    constant = all(getattr(one.optimisation, "schedule", None) == "constant" for one in (saved, config))
    free = (*FREE, "optimisation.epochs") if constant else FREE
    changes = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        moved = any(fnmatch(key, pattern) for pattern in PATHS) and None not in (old, new)
        if old != new and not moved and not any(fnmatch(key, pattern) for pattern in free):
            changes.append(f"{key}: was {old!r}, is {new!r}")
    return changes


def _refusal(run: Path, config: Config, resume: Resume) -> str | None:
    saved = run / "config.yaml"
    if resume and saved.is_file():
        changes = learning_changes(load_config(saved), config)
        if not changes:
            return None
        return f"{run}: was made with another configuration, resume with that of {saved}:\n  " + "\n  ".join(changes)
    if resume is True:
        return f"{run}: is no run to resume, there is no {saved}; start it without resuming, or with resume 'auto'"
    if run.exists() and any(run.iterdir()):
        return f"{run}: exists already; resume it, or choose another folder"
    return None


def _appears(file: Path, patience_s: float) -> bool:
    """Lists the folder instead of asking for the file: that "no" would be remembered by a network file system."""
    give_up = time.monotonic() + patience_s
    while not (file.parent.is_dir() and file.name in os.listdir(file.parent)):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.1)
    return True


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested sections and lists, by keys as in ``--set``."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if children is None:
        yield key, tree
        return
    for name, child in children:
        yield from _leaves(child, f"{key}.{name}" if key else str(name))
