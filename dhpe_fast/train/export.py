"""From the folder of a training run to a file of ``dhpe_fast/weights``, with an entry of where it comes from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from dhpe_fast import pretrained
from dhpe_fast.atomic_write import whole_file
from dhpe_fast.config import ConfigError, StreamConfig, TrainConfig, load_config
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.recipe import VERSION_KEY, differences, read_recipe
from dhpe_fast.train.checkpoint import LAST
from dhpe_fast.train.loop import load_model
from dhpe_fast.train.run_facts import read_facts
from dhpe_fast.train.stream import load_network


def export_run(
    run: str | os.PathLike[str],
    name: str,
    folder: str | os.PathLike[str],
    *,
    checkpoint: str = LAST,
    accuracy: Mapping[str, float | str] | None = None,
) -> Path:
    """Writes ``folder/NAME.pt`` and its entry in ``folder/manifest.json``, whole or not at all.

    The entry has checksum and size, the configuration, the seed, the recipe of the data, steps, wall time, device and
    accuracy; of a run that starts from another one also those of that.

    Args:
        run: folder of a run that was trained to its end.
        name: which network it is, one of ``pretrained.NAMES``.
        folder: made if missing; other networks in it stay.
        checkpoint: "last", or "best" of the paper's networks.
        accuracy: figures by what they measure; None takes the last scores of the run on its validation set.

    Returns:
        The file.

    Raises:
        ConfigError: if the run is no run, or of another network.
        CheckpointError, ValueError, OSError: if it is not finished, or a file is damaged or cannot be written.
    """
    run, folder = Path(run), Path(folder)
    if name not in pretrained.NAMES:
        raise ValueError(f"name: expected one of {', '.join(pretrained.NAMES)}, got {name!r}")
    config = load_config(run / "config.yaml")
    data = pretrained.packed(_network(run, name, config, checkpoint), _spec(config))
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "checkpoint": checkpoint}
    entry |= provenance(run, config)
    if accuracy is not None:
        entry["accuracy"] = dict(accuracy)
    folder.mkdir(parents=True, exist_ok=True)
    file, manifest = folder / f"{name}.pt", folder / pretrained.MANIFEST
    known = pretrained.WeightsFolder(folder).manifest() if manifest.exists() else {}
    text = json.dumps(dict(sorted((known | {file.name: entry}).items())), indent=1)
    with whole_file(manifest) as entries, whole_file(file) as weights:  # both appear at the end
        weights.write(data)
        entries.write(f"{text}\n".encode())
    return file


def provenance(run: Path, config: TrainConfig | StreamConfig, later: tuple[Path, ...] = ()) -> dict[str, Any]:
    """How a run came to its weights: plain values, without a trace of the machine's folders.

    Args:
        run: its folder.
        config: its configuration.
        later: the runs that started from it, directly or not.

    Raises:
        ValueError: if the run, or the one that it starts from, is not finished, or it starts from itself.
    """
    if run.resolve() in later:
        raise ValueError(f"start.pose2d: {run} starts from a run that started from it; folders have been renamed since")
    facts = read_facts(run)
    known = {
        "config": _plain(config.model_dump()),
        "seed": config.seed,
        "recipe": _recipe(config),
        "steps": facts["steps"],
        "wall_time_s": facts["seconds"],
        "device": facts["device"],
        "torch": facts["torch"],
        "weights": facts["weights"],
        "accuracy": facts["scores"],
    }
    earlier = config.start.pose2d if isinstance(config, TrainConfig) else None
    if earlier is not None:
        known["starts_from"] = provenance(earlier, load_config(earlier / "config.yaml"), (*later, run.resolve()))
    return known


def _network(run: Path, name: str, config: TrainConfig | StreamConfig, checkpoint: str) -> nn.Module:
    trained = "dhpe" if isinstance(config, TrainConfig) else config.network
    if trained != name:
        raise ConfigError(f"{run}: is a run of the network {trained!r}, not of {name!r}")
    if isinstance(config, TrainConfig):
        return load_model(run, checkpoint)[1]
    if checkpoint != LAST:
        raise ValueError(f"checkpoint: a run of the {trained} has 'last' alone, got {checkpoint!r}")
    return load_network(run, pretrained.blank(name, _spec(config)))


def _spec(config: TrainConfig | StreamConfig) -> dict[str, Any]:
    """The options of the network: those of the locator stand in the configuration itself."""
    return asdict(config.model) if hasattr(config, "model") else {"width": config.width}


def _recipe(config: TrainConfig | StreamConfig) -> Any:
    """What the data were drawn by: of a data set that the run drew, its own recipe; else the section of the data."""
    plan = config.data.synthesize if isinstance(config, TrainConfig) else None
    if plan is not None:
        try:
            drawn, wanted = read_recipe(plan.root), plan.model_dump(exclude={"root"}, mode="json")
        except DatasetError:  # it has been moved or removed since
            return _plain(plan.model_dump())
        # Where another set stands there now, the run's own plan is all that is known.
        return _plain(wanted if differences(drawn, wanted, but=(VERSION_KEY,)) else drawn)
    return _plain(config.model_dump()["data"])


def _plain(value: Any) -> Any:
    """As JSON has it. Of an absolute path the last part is left: the others are of one machine."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, str | os.PathLike) and os.path.isabs(value):
        return os.path.basename(value)
    return str(value) if isinstance(value, os.PathLike) else value
