"""Reads weight files of ResNets and compares them with a network, by name and shape."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CLASSIFIER = "fc."
_COUNTER = "num_batches_tracked"
_MAX_NAMED = 6


def read_imagenet_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` or ``.safetensors`` file by name, on the CPU, without the classifier.

    Raises:
        ValueError: if the file is no dictionary of tensors. FileNotFoundError: if there is none.
        ModuleNotFoundError: for a ``.safetensors`` file without the package of that name.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of network weights")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pth(file)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file}: expected a dictionary of tensors by name, got {_describe(content)}")
    return {name: value for name, value in content.items() if not name.startswith(_CLASSIFIER)}


def check_matches(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    network: str,
) -> None:
    """Raises ValueError, naming the tensors, unless `weights` has all that is expected, in shape, and nothing else.

    BatchNorm's counters may be missing, as in files from before they were introduced.
    """
    faults = []
    missing = [name for name in expected if name not in weights and not name.endswith(_COUNTER)]
    if missing:
        faults.append(f"missing {_listed(missing)}")
    unexpected = [name for name in weights if name not in expected]
    if unexpected:
        faults.append(f"unexpected {_listed(unexpected)}")
    common = [name for name in weights if name in expected]
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in common
        if weights[name].shape != expected[name].shape
    ]
    if wrong:
        faults.append(f"wrong shape: {_listed(wrong)}")
    broken = [name for name in common if not torch.isfinite(weights[name]).all()]
    if broken:
        faults.append(f"not finite: {_listed(broken)}")
    if faults:
        raise ValueError(f"{os.fspath(path)}: no weights for this {network}: {'; '.join(faults)}")


def _read_pth(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file}: cannot be read as a .pth file of tensors: {reason}") from error


def _read_safetensors(file: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file}: reading .safetensors files needs safetensors: pip install 'dhpe-fast[train]'"
        ) from error
    try:
        return load_file(file, device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{file}: not a .safetensors file: {error}") from error


def _describe(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    return f"one that also holds {_listed([str(name) for name in others])}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED} more"
