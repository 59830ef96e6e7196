"""A folder with MANO_RIGHT.pkl and MANO_LEFT.pkl as people have it, with a synthetic hand in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from synthetic_mano import mano_pickle, synthetic_mano

from dhpe_fast.hand import HandModel

RIGHT: dict[str, Any] = synthetic_mano()
LEFT: dict[str, Any] = HandModel(RIGHT, dtype=torch.float64).mirrored().arrays()
# As in the released left file, the shape directions have the x components of the right hand.
LEFT["shapedirs"] = RIGHT["shapedirs"].copy()
ARRAYS = {"right": RIGHT, "left": LEFT}


def write_mano_folder(folder: Path) -> Path:
    """Writes both pickles and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, arrays in ARRAYS.items():
        (folder / f"MANO_{side.upper()}.pkl").write_bytes(mano_pickle(arrays))
    return folder
