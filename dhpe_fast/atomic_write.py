"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_path(file: Path) -> Iterator[Path]:
    """An empty file beside `file`, of its suffix, to be written; it takes the name of `file` at the end.

    For writers that want a name; the permissions are those that open() gives, and after an error nothing is left.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file}: the folder {file.parent} does not exist")
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=f".tmp{file.suffix}")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """A stream into such a file: see :func:`whole_path`."""
    with whole_path(file) as temporary, temporary.open("wb") as stream:
        yield stream


def write_whole(file: Path, data: bytes) -> None:
    """Writes `data` into `file`, whole or not at all; raises FileNotFoundError if the folder does not exist."""
    with whole_file(file) as stream:
        stream.write(data)


def _umask() -> int:
    mask = os.umask(0)  # there is no way to ask without setting it
    os.umask(mask)
    return mask
