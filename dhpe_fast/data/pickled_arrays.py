"""Reads pickles of plain containers and NumPy arrays, written by Python 2 or 3, without running code in them.

As in :mod:`dhpe_fast.hand.mano_pickle`, a file's globals become inert records, and NumPy sees a buffer only after
its shape and type have been checked; everything else that a pickle can ask for is refused by name. Annotation
files are large (RHD has 124,000 arrays), so here C's pickle machine reads them: a file made for it can use up the
memory, but not run code.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.files import existing_file
from dhpe_fast.hand.mano_pickle import ArrayRecord, DtypeRecord, UnsafePickleError


class _Array(ArrayRecord):
    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(DtypeRecord):
    def __setstate__(self, state: Any) -> None:
        self.state = state


class _NDArray:
    """Stands for `numpy.ndarray`, which only appears as an argument."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (shape, dtype, order == "F", raw)
    return array


def _scalar(dtype: Any, raw: Any) -> _Array:
    return _from_buffer(raw, dtype, (), "C")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise UnsafePickleError("encodes something else than text as Latin-1")
    return text.encode("latin1")


_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _scalar
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _GLOBALS.get((module, name))
        if found is None:
            raise UnsafePickleError(f"asks for {module[:100]}.{name[:100]}, which plain arrays do not need")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError("refers to an object outside of the file")


def read_pickle(file: Path, what: str) -> Any:
    """The object in `file`, with records in place of arrays: ``record.array()`` gives the array.

    Raises:
        MissingDataError: if there is no such file.
        DatasetError: if the pickle is cut off, or asks for more than containers, numbers, text and arrays.
    """
    data = existing_file(file, what).read_bytes()
    try:
        # Python 2 wrote the arrays' bytes as text; Latin-1 keeps every byte.
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except UnsafePickleError as error:
        raise DatasetError(f"{file}: refused, nothing was run: the pickle {error}; expected {what}") from error
    except Exception as error:  # a stream that is cut off can make the pickle machine fail in any way
        raise DatasetError(
            f"{file}: is no whole pickle ({type(error).__name__}: {error}), {len(data)} bytes; expected {what}"
        ) from error
