"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder that appears whole: it is written under another name, and renamed. It holds the weights
(``model.safetensors``, readable by anything), and what only training needs (``state.pt``).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

LAST = "last"
BEST = "best"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another run."""


@dataclass
class Progress:
    """Where a run is; the next batch is number `batch` of epoch `epoch`."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped_in_a_row: int = 0
    best_epe_mm: float = math.inf
    best_joints2d_px: float = math.inf
    best_heatmap_px: float = math.inf
    seconds: float = 0.0
    """what the epoch has taken so far"""

    def takes(self, scores: Mapping[str, float]) -> bool:
        """Whether the weights with these scores are the best so far; notes it if they are.

        By the error in space; where no joint is annotated in space, by that in the image; where f_J2D alone is trained,
        by its error; and where no joint is known at all, the newest are the best. Of equals, the later ones.
        """
        measures = ("epe_mm", "joints2d_px", "heatmap_px")
        measure = next((name for name in measures if not math.isnan(scores[name])), measures[-1])
        if scores[measure] > getattr(self, f"best_{measure}"):
            return False
        if not math.isnan(scores[measure]):
            setattr(self, f"best_{measure}", scores[measure])
        return True


def save_checkpoint(
    run: Path,
    name: str,
    model: nn.Module,
    state: dict[str, Any],
) -> None:
    """Writes ``run/checkpoints/NAME``; until the new one is complete, the old one stays.

    Args:
        run: folder of the run.
        name: of the checkpoint, for instance ``LAST``.
        model: whose weights and buffers are saved.
        state: tensors and plain values, as ``torch.load(weights_only=True)`` gives them back.
    """
    folder = run / "checkpoints" / name
    fresh, old = folder.with_name(f".{name}.new"), folder.with_name(f".{name}.old")
    if old.exists() and not folder.exists():  # the last process died between its two renames
        os.rename(old, folder)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, fresh / "model.safetensors")
    torch.save(state, fresh / "state.pt")
    for file in fresh.iterdir():
        _flush_to_disk(file)
    _flush_to_disk(fresh)  # the names of the files in it
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    _flush_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(run: Path, name: str = LAST) -> Path | None:
    """The folder of a checkpoint, also if the process died between its last two renames; None if there is none."""
    folder = run / "checkpoints" / name
    for candidate in (folder, folder.with_name(f".{name}.old")):
        if (candidate / "state.pt").is_file():
            return candidate
    return None


def load_weights(folder: Path, model: nn.Module) -> None:
    """Loads ``model.safetensors`` of a checkpoint.

    Raises:
        CheckpointError: if the file is missing or damaged, or its tensors are not those of the model; it names the
            first that differ.
    """
    _load_all(_read(folder), model, folder)


def _read(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "model.safetensors"
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None


def _load_all(tensors: Mapping[str, torch.Tensor], model: nn.Module, folder: Path) -> None:
    expected = model.state_dict()
    wrong = sorted(set(tensors) ^ set(expected)) + sorted(
        key for key in set(tensors) & set(expected) if tensors[key].shape != expected[key].shape
    )
    if wrong:
        raise CheckpointError(
            f"{folder / 'model.safetensors'}: {len(wrong)} tensors are not those of this model, the first: {wrong[:3]}"
        )
    model.load_state_dict(tensors)


def load_part(folder: Path, part: nn.Module, prefix: str, new: str | None = None) -> None:
    """Loads those tensors of a checkpoint whose names begin with `prefix` into a part of the networks.

    Tensors of the part whose names begin with `new` may be missing in the checkpoint: these stay as they are.

    Raises:
        CheckpointError: as ``load_weights``.
    """
    tensors = {name.removeprefix(prefix): t for name, t in _read(folder).items() if name.startswith(prefix)}
    if new is not None:
        tensors = {name: t for name, t in part.state_dict().items() if name.startswith(new)} | tensors
    _load_all(tensors, part, folder)


def load_state(folder: Path) -> dict[str, Any]:
    """Loads ``state.pt`` of a checkpoint, to the CPU.

    Raises:
        CheckpointError: if the file is damaged.
    """
    file = folder / "state.pt"
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the damage leads it to
        raise CheckpointError(f"{file}: cannot be read: {error}") from None


def pack_progress(progress: Progress) -> dict[str, int | float]:
    """As plain values."""
    return asdict(progress)


def _flush_to_disk(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
