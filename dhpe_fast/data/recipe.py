"""What a drawn data set was drawn by, and whether another drawing would be the same."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.files import RECIPE_FILE, read_json

GENERATOR_VERSION = 2
"""Of the program that draws; raised whenever a picture of the same arguments changes."""
VERSION_KEY = "generator_version"
"""Of the version in a recipe; sets without it were drawn by version 1."""
_LATER = {"gestures": 0.0, "held": 0.0}
"""Arguments that came later, with what they are where a recipe does not name them."""


def read_recipe(root: str | os.PathLike[str]) -> dict[str, Any]:
    """The version of the generator and the arguments with which ``write_synthetic`` drew the data set in `root`.

    Raises:
        MissingDataError: if `root` has no recipe: it is no drawn set.
        DatasetError: if that is no whole JSON object.
    """
    file = Path(root) / RECIPE_FILE
    facts = read_json(file, "the recipe of a drawn data set")
    if not isinstance(facts, dict):
        raise DatasetError(f"{file}: holds {type(facts).__name__}, expected the recipe of a drawn data set")
    return {VERSION_KEY: 1} | _LATER | facts


def differences(drawn: Mapping[str, Any], wanted: Mapping[str, Any], *, but: Collection[str] = ()) -> str:
    """In words, what of a recipe is not as wanted; empty if all is, or differs in the keys `but` alone.

    Args:
        drawn: of ``read_recipe``.
        wanted: arguments of ``write_synthetic``; without a version, that of this package is wanted.
        but: keys that may differ.
    """
    wanted = {VERSION_KEY: GENERATOR_VERSION} | _LATER | wanted
    other = [key for key in {**wanted, **drawn} if key not in but and drawn.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {drawn.get(key)!r} instead of {wanted.get(key)!r}" for key in other)
