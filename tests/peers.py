"""The packages that the drop-ins stand in for, where they are at hand: installed, or as checkouts of their sources.

    DHPE_MANOPTH=path/to/manopth DHPE_SMPLX=path/to/smplx pytest tests/test_compat_manopth.py tests/test_compat_smplx.py

manopth reads MANO files through MANO's own Python 2 code and chumpy, which no supported Python runs. Here it gets the
arrays of a synthetic model instead; everything after reading is the peer's own.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse

CHECKOUTS = {"manopth": "DHPE_MANOPTH", "smplx": "DHPE_SMPLX"}
_READER = "mano.webuser.smpl_handpca_wrapper_HAND_only"


def import_peer(module: str) -> types.ModuleType:
    """The module of a peer; skips the test, with the reason, where there is none."""
    name = module.split(".")[0]
    checkout = os.environ.get(CHECKOUTS[name])
    path = [checkout] if checkout else []
    with _manos_reader(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers were written for older versions of Python
        sys.path[:0] = path
        try:
            return importlib.import_module(module)
        except ImportError as error:
            pytest.skip(f"no {name} here ({error}): install it or name a checkout by {CHECKOUTS[name]}")
        finally:
            del sys.path[: len(path)]


def peer_arrays(arrays: dict[str, Any]) -> dict[str, Any]:
    """A synthetic model as a peer finds it after unpickling a MANO file."""
    found = {key: value for key, value in arrays.items() if isinstance(value, np.ndarray)}
    return found | {
        "f": arrays["f"].astype(np.uint32),
        "J_regressor": scipy.sparse.csc_matrix(arrays["J_regressor"]),
        "betas": np.zeros(10),
    }


@dataclass
class _Value:
    """Stands for a chumpy array: its value is `r`."""

    r: np.ndarray


def manopth_layer(arrays: dict[str, Any], **options: Any) -> Any:
    """The ManoLayer of manopth over these arrays."""
    manolayer = import_peer("manopth.manolayer")
    content = peer_arrays(arrays)
    for key in ("betas", "shapedirs", "posedirs", "v_template", "weights"):
        content[key] = _Value(content[key])
    manolayer.ready_arguments = lambda path: content
    return manolayer.ManoLayer(**options)


def smplx_model(arrays: dict[str, Any], kind: str = "MANO", **options: Any) -> Any:
    """The MANO or MANOLayer of smplx over these arrays."""
    smplx = import_peer("smplx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters are made of tensors by torch.tensor
        return getattr(smplx, kind)("", data_struct=types.SimpleNamespace(**peer_arrays(arrays)), **options)


@contextmanager
def _manos_reader() -> Iterator[None]:
    """Makes MANO's own reader importable, without any contents, and takes it away again."""
    parts = _READER.split(".")
    names = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    saved = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules[_READER].ready_arguments = None
    try:
        yield
    finally:
        for name, module in saved.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
