"""Weights of Zimmermann and Brox (ICCV 2017) for PoseNet: from their pickles to this package's names and joint order.

A file is a pickled dictionary from names such as ``PoseNet2D/conv4_7/weights`` and ``.../biases`` to arrays.
Convolutions are stored as (height, width, in, out), and joints in the order of RHD, which runs from tip to base.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import JOINT_ORDERS, N_JOINTS_STD
from dhpe_fast.hand.mano_pickle import UnsafePickleError, load_pickle, to_array

SCOPE = "PoseNet2D"
OTHER_SCOPES = ("PosePrior", "ViewpointNet")
"""Networks in the same files, which lift the heat maps to 3D; no part of this method."""
MAX_FILE_BYTES = 512 * 2**20
"""Larger files are refused unread; theirs have about 90 MB."""

_SUFFIXES = {"weight": "weights", "bias": "biases"}
# The first stage is conv5, every other one has seven layers.
_GIVES_HEATMAPS = re.compile(r"conv5_2|conv([6-9]|\d\d+)_7")
_TAKES_HEATMAPS = re.compile(r"conv([6-9]|\d\d+)_1")
_MAX_NAMED = 6


def read_posenet_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """PoseNet's arrays by layer and kind, such as ``conv4_7/weights``, as they are in the file.

    Pickles of Python 2 and 3 are read, with any version of NumPy's module names, and no code in them is run. A ``:0``
    after a name is dropped.

    Raises:
        UnsafePickleError: if the pickle asks for anything else than arrays; a ValueError.
        ValueError: if the file is too large, no pickle, or no dictionary of arrays by name; if a name belongs to no
            known network, or appears twice. FileNotFoundError: if the file does not exist.
    """
    file = Path(path)
    content = _read_pickle(file)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{file}: expected a dictionary of arrays by name, got a {type(content).__name__}")
    unknown = [name for name in content if name.split("/")[0] not in (SCOPE, *OTHER_SCOPES)]
    _refuse(file, "unexpected", unknown)
    arrays: dict[str, np.ndarray] = {}
    for name, value in content.items():
        scope, _, layer = name.removesuffix(":0").partition("/")
        if scope != SCOPE:
            continue
        if layer in arrays:
            raise ValueError(f"{file}: holds {scope}/{layer} twice, with and without ':0'")
        try:
            arrays[layer] = to_array(value)
        except ValueError as error:
            raise ValueError(f"{file}: {name}: {error}") from error
    return arrays


def convert_posenet(
    arrays: Mapping[str, np.ndarray],
    expected: Mapping[str, Tensor],
    path: str | os.PathLike[str] = "weights",
) -> dict[str, Tensor]:
    """A ``state_dict`` for ``Pose2DNet`` from PoseNet's arrays; joints go from RHD to STD order.

    Args:
        arrays: as from ``read_posenet_weights``.
        expected: the ``state_dict`` of the network to fill.
        path: where the arrays are from, for messages.

    Raises:
        ValueError: if an array is missing, unknown, of another shape, not of floating point or not finite, naming it.
    """
    theirs = {name: _their_name(name) for name in expected}
    known = list(theirs.values())
    _refuse(path, "missing", [name for name in known if name not in arrays])
    _refuse(path, "unexpected", [name for name in arrays if name not in known])
    _refuse(path, "no floating-point numbers", [name for name in known if arrays[name].dtype.kind != "f"])
    _refuse(path, "not finite", [name for name in known if not np.isfinite(arrays[name]).all()])
    shapes = {theirs[name]: _their_shape(like) for name, like in expected.items()}
    wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
    _refuse(path, "wrong shape", [f"{name} {arrays[name].shape} instead of {shapes[name]}" for name in wrong])
    return _joints_from_rhd({name: _to_torch(arrays[theirs[name]]) for name in expected})


def _read_pickle(file: Path) -> object:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of PoseNet weights; they come with ColorHandPose3D_data_v3.zip")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{file}: {file.stat().st_size} bytes, expected at most {MAX_FILE_BYTES}")
    try:
        return load_pickle(file.read_bytes())
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{file}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _refuse(path: str | os.PathLike[str], fault: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        listed = ", ".join(names[:_MAX_NAMED])
        raise ValueError(f"{os.fspath(path)}: not the weights of this PoseNet: {fault}: {listed}{more}")


def _their_name(name: str) -> str:
    """``stages.1.conv6_1.weight`` is ``conv6_1/weights``."""
    *_, layer, kind = name.split(".")
    return f"{layer}/{_SUFFIXES[kind]}"


def _their_shape(like: Tensor) -> tuple[int, ...]:
    return tuple(like.permute(2, 3, 1, 0).shape if like.dim() == 4 else like.shape)


def _to_torch(array: np.ndarray) -> Tensor:
    """(height, width, in, out) as (out, in, height, width), in float32; biases stay."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def _joints_from_rhd(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reorders heat maps where they leave a stage, and where the next one takes them in before the encoding."""
    order = torch.tensor(JOINT_ORDERS["rhd"])  # joints_std = joints_rhd[order]
    reordered = {}
    for name, value in weights.items():
        *_, layer, kind = name.split(".")
        if _GIVES_HEATMAPS.fullmatch(layer):
            value = value[order]
        elif _TAKES_HEATMAPS.fullmatch(layer) and kind == "weight":
            value = torch.cat([value[:, order], value[:, N_JOINTS_STD:]], dim=1)
        reordered[name] = value
    return reordered
