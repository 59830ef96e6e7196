"""Opens a data set by the name of its format."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from dhpe_fast.data.dexter_object import read_dexter_object
from dhpe_fast.data.freihand import read_freihand
from dhpe_fast.data.rhd import read_rhd
from dhpe_fast.data.sample import Dataset
from dhpe_fast.data.stb import read_stb

READERS: dict[str, Callable[..., Dataset]] = {
    "rhd": read_rhd,
    "stb": read_stb,
    "dexter_object": read_dexter_object,
    "freihand": read_freihand,
}
"""Format -> its reader; drawn data has the format 'rhd', and the name 'synthetic'."""


def open_dataset(format: str, root: str | os.PathLike[str], split: str, **options: Any) -> Dataset:
    """The data set at `root`, by the reader of its format.

    Args:
        format: a key of ``READERS``.
        root: the data set's folder.
        split: 'train' or 'test'.
        options: further arguments of the reader.

    Raises:
        ValueError: if there is no such format.
        TypeError: if the reader does not take an option.
        DatasetError: as the reader does.
    """
    if format not in READERS:
        raise ValueError(f"format: expected one of {', '.join(READERS)}, got {format!r}")
    reader = READERS[format]
    accepted = [name for name in inspect.signature(reader).parameters if name not in ("root", "split")]
    for option in options:
        if option not in accepted:
            raise TypeError(f"{option}: the format {format} has no such option; it takes {', '.join(accepted)}")
    return reader(root, split, **options)
