"""Data sets that take hours to draw: their folder appears when it is complete, and an interrupted drawing goes on."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dhpe_fast.atomic_write import write_whole
from dhpe_fast.data.files import RECIPE_FILE
from dhpe_fast.data.recipe import differences, read_recipe

SET = "set"
"""In the unfinished folder: what becomes the data set. Whatever lies beside it is thrown away at the end."""
_LOCK = "lock"


@contextmanager
def unfinished_folder(root: Path, recipe: dict[str, Any]) -> Iterator[Path]:
    """A folder ``.NAME.unfinished`` beside `root`, with what an interrupted call of the same recipe has left in it.

    Its ``set``, in which ``recipe.json`` is, takes the name of `root` at the end. After an error, or if the process is
    killed, all stays for the next call. The lock of a process ends with it, however it ends.

    Raises:
        FileExistsError: if `root` exists, or the folder has another recipe.
        BlockingIOError: if another process is using the folder.
    """
    _check_new(root)
    folder = root.with_name(f".{root.name}.unfinished")
    (folder / SET).mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder}: another process is writing this data set") from None
        _check_new(root)  # another process may have completed it before it gave the lock back
        _keep_recipe(folder, recipe)
        yield folder
        os.rename(folder / SET, root)
    shutil.rmtree(folder, ignore_errors=True)


def _check_new(root: Path) -> None:
    if root.exists():
        raise FileExistsError(f"{root}: exists already; a data set is written into a new folder")


def _keep_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    """Writes the recipe, or compares it with the one that is there."""
    file = folder / SET / RECIPE_FILE
    if not file.exists():
        write_whole(file, (json.dumps(recipe, indent=1) + "\n").encode())
        return
    faults = differences(read_recipe(folder / SET), recipe)
    if faults:
        raise FileExistsError(
            f"{folder}: holds an unfinished data set of other arguments ({faults}); call with those to finish it, or "
            "remove the folder to begin anew"
        )
