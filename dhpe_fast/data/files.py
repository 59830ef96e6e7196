"""What all readers of data sets need: folders, listings and text files, with errors that name the file."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dhpe_fast.data.errors import DatasetError, MissingDataError

Split = Literal["train", "test"]
RECIPE_FILE = "recipe.json"
"""In the folder of a drawn data set: the arguments of ``synthetic.write_synthetic``."""
_SPLITS = {"train": "train", "training": "train", "test": "test", "evaluation": "test", "eval": "test"}


def canonical_split(split: str) -> Split:
    """'train' or 'test', of these or the data sets' own names 'training', 'evaluation', 'eval'.

    Raises:
        ValueError: if it is none of them.
    """
    if split not in _SPLITS:
        raise ValueError(f"split: expected 'train' or 'test' (or 'training', 'evaluation', 'eval'), got {split!r}")
    return _SPLITS[split]


def one_of(value: str, accepted: Iterable[str], argument: str) -> str:
    """`value`, if it is accepted.

    Raises:
        ValueError: if it is not.
    """
    accepted = tuple(accepted)
    if value not in accepted:
        raise ValueError(f"{argument}: expected one of {', '.join(map(repr, accepted))}, got {value!r}")
    return value


def existing_folder(folder: str | os.PathLike[str], what: str) -> Path:
    """The folder as a path.

    Raises:
        MissingDataError: if it is not there; says what of its parents is, and what that holds.
        DatasetError: if it is a file.
    """
    folder = Path(folder)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise DatasetError(f"{folder}: is a file, expected {what}, a folder")
    parent = next((path for path in folder.absolute().parents if path.is_dir()), Path("/"))
    raise MissingDataError(f"{folder}: no such folder, expected {what}; {parent} holds {_some(os.listdir(parent))}")


def existing_file(file: Path, what: str) -> Path:
    """The file's path.

    Raises:
        MissingDataError: if it is not there.
    """
    if not file.is_file():
        raise MissingDataError(f"{file}: no such file, expected {what}")
    return file


def list_files(folder: Path, suffixes: Collection[str], what: str) -> list[str]:
    """Sorted names of the files in `folder` that end in one of the suffixes (lower case, with the dot)."""
    names = os.listdir(existing_folder(folder, what))
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in suffixes)


def match_files(folder: Path, expected: Collection[str], labels_file: Path, what: str, *, exact: bool = True) -> None:
    """Checks that `folder` has a file for each annotation, and no more of their kind.

    Args:
        folder: of the pictures.
        expected: the names for which there are labels.
        labels_file: where the labels are, for the message.
        what: kind of picture, for the message.
        exact: also refuse files of the same suffix which have no labels.

    Raises:
        MissingDataError: if files are missing.
        DatasetError: if there are files too many.
    """
    suffixes = {os.path.splitext(name)[1].lower() for name in expected} or {".png"}
    found, wanted = set(list_files(folder, suffixes, f"the {what}")), set(expected)
    count = f"{folder}: holds {len(found)} {what}, expected {len(wanted)}, one for each annotation in {labels_file}"
    if wanted - found:
        raise MissingDataError(f"{count}; missing: {_some(wanted - found)}")
    if exact and found - wanted:
        raise DatasetError(f"{count}; without annotation: {_some(found - wanted)}")


def read_json(file: Path, what: str) -> Any:
    """The contents of a JSON file.

    Raises:
        MissingDataError, DatasetError: if it is missing, or no whole JSON text.
    """
    existing_file(file, what)
    try:
        with open(file, encoding="utf-8") as stream:
            return json.load(stream)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{file}: is no whole JSON text ({error}), {file.stat().st_size} bytes; expected {what}"
        ) from error


def as_array(rows: Any, shape: tuple[int | None, ...], file: Path, what: str) -> np.ndarray:
    """`rows` as a float64 array of a shape in which None is any length.

    Raises:
        DatasetError: if it has another shape, or is not numeric.
    """
    expected = f"expected {what} {str(shape).replace('None', 'N')}"
    try:
        array = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{file}: holds no regular array of numbers ({error}), {expected}") from error
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise DatasetError(f"{file}: holds an array {array.shape}, {expected}")
    return array


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "nothing"
