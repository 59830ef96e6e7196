"""Reads the arrays of a MANO pickle without running any code in it, and without chumpy or SciPy.

The released files are Python-2 pickles which hold NumPy arrays, a chumpy expression and a SciPy sparse
matrix. Here a pure-Python unpickler builds inert records instead: no class of the file's choice is imported,
every global outside a short list is refused by name, and NumPy sees a buffer only after its shape and type
have been checked against it.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

MAX_READS = 1_000_000
"""Bound on the steps of one pickle, against files made to keep the reader busy; MANO needs thousands."""
_MAX_NESTING = 16


class UnsafePickleError(ValueError):
    """The pickle asks for something that a MANO file has no use for, and that is therefore not run."""


def load_pickle(data: bytes) -> Any:
    """The object in `data`, with records in place of arrays; see :func:`to_array`.

    Raises:
        UnsafePickleError: if the pickle names a global, or changes an object, that no MANO file needs.
        ValueError: if the bytes are not a whole, well-formed pickle.
    """
    try:
        return _MANOUnpickler(data).load()
    except UnsafePickleError:
        raise
    except Exception as error:  # a hostile stream can make the pickle machine fail in any way
        raise ValueError(f"not a well-formed pickle ({type(error).__name__}: {error})") from error


def to_array(value: Any, depth: int = 0) -> np.ndarray:
    """A plain array from a loaded array, chumpy object or sparse matrix.

    Raises:
        ValueError: if the value is none of these, or a record is incomplete or contradicts itself.
    """
    if depth > _MAX_NESTING:
        raise ValueError(f"chumpy expressions nest deeper than {_MAX_NESTING}")
    if isinstance(value, ArrayRecord):
        return value.array()
    if isinstance(value, (ChumpyRecord, SparseRecord)):
        return value.array(depth)
    raise ValueError(f"holds a {_describe(value)}, not an array")


class _Record:
    """An inert stand-in: it keeps what the pickle says about an object, once."""

    state: Any = None  # on the class, as a pickle can make objects without __init__

    def __init__(self, *_: Any) -> None:
        pass

    def set_state(self, state: Any) -> None:
        self.state = state

    def entries(self) -> dict[str, Any]:
        if not isinstance(self.state, dict):
            raise ValueError(f"a {_describe(self)} without its attributes")
        return self.state


class DtypeRecord(_Record):
    """A NumPy dtype of plain numbers: 'f8', 'i4', 'u4', 'b1', ... with a byte order."""

    code: str = ""

    def __init__(self, *args: Any) -> None:
        if args and isinstance(args[0], str):
            self.code = args[0]

    def dtype(self) -> np.dtype:
        code = self.code.lstrip("<>|=")
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
            raise ValueError(f"holds values of dtype {self.code[:20]!r}, not plain numbers")
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"holds values of dtype {code} without a byte order")
        return np.dtype((self.code[0] if self.code[0] in "<>" else order) + code)


class ArrayRecord(_Record):
    """A NumPy array: shape, dtype, order and raw bytes."""

    def array(self) -> np.ndarray:
        state = self.state
        if not isinstance(state, tuple) or len(state) < 4:
            raise ValueError("holds an array without contents")
        shape, dtype, fortran, raw = state[-4:]
        return _array_from_bytes(shape, dtype, raw, "F" if fortran else "C")


class ChumpyRecord(_Record):
    """A chumpy constant `x`, or the selection `idxs` from `a`, in its `preferred_shape`."""

    def array(self, depth: int) -> np.ndarray:
        entries = self.entries()
        if "x" in entries:
            return to_array(entries["x"], depth + 1)
        missing = [key for key in ("a", "idxs") if key not in entries]
        if missing:
            raise ValueError(f"holds a chumpy object without {', '.join(missing)}")
        source = to_array(entries["a"], depth + 1).ravel()
        index = to_array(entries["idxs"], depth + 1).ravel()
        if index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= source.size):
            raise ValueError(f"selects outside of the {source.size} numbers of its source")
        return source[index.astype(np.int64)].reshape(
            _checked_shape(entries.get("preferred_shape", (index.size,)), index.size)
        )


class SparseRecord(_Record):
    """A scipy.sparse matrix in compressed columns (CSC)."""

    def array(self, depth: int) -> np.ndarray:
        entries = self.entries()
        shape = entries.get("_shape", entries.get("shape"))
        missing = [key for key in ("data", "indices", "indptr") if key not in entries]
        if missing or not isinstance(shape, tuple) or len(shape) != 2:
            raise ValueError("holds a sparse matrix without _shape, data, indices and indptr")
        rows, columns = _checked_shape(shape)
        data, indices, indptr = (to_array(entries[key], depth + 1).ravel() for key in ("data", "indices", "indptr"))
        if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
            raise ValueError("holds a sparse matrix whose indices are no integers")
        indices, indptr = indices.astype(np.int64), indptr.astype(np.int64)
        consistent = (
            len(indptr) == columns + 1
            and indptr[0] == 0
            and indptr[-1] == len(data) == len(indices)
            and bool((np.diff(indptr) >= 0).all())
            and (indices.size == 0 or 0 <= indices.min() <= indices.max() < rows)
        )
        if not consistent or rows * columns > 100_000_000:
            raise ValueError(f"holds a sparse matrix {shape} whose indices contradict each other")
        dense = np.zeros((rows, columns))
        np.add.at(dense, (indices, np.repeat(np.arange(columns), np.diff(indptr))), data)
        return dense


def _checked_shape(shape: Any, size: int | None = None) -> tuple[int, ...]:
    dims = shape.array().tolist() if isinstance(shape, ArrayRecord) else shape
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    dims = tuple(dim.array().item() if isinstance(dim, ArrayRecord) else dim for dim in dims[:9])
    if len(dims) > 8 or any(not isinstance(dim, int) or not 0 <= dim < 2**40 for dim in dims):
        raise ValueError("states a shape that is no row of sizes")
    if size is not None and math.prod(dims) != size:
        raise ValueError(f"states the shape {dims} for {size} numbers")
    return dims


def _array_from_bytes(shape: Any, dtype: Any, raw: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, DtypeRecord):
        raise ValueError("holds an array without a dtype")
    kind = dtype.dtype()
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(raw, (bytes, bytearray)) or len(raw) % kind.itemsize:
        raise ValueError(f"holds an array of {kind} without a whole number of values")
    values = np.frombuffer(bytes(raw), kind)
    values = values.reshape(_checked_shape(shape, values.size), order="F" if order == "F" else "C")
    return values.astype(kind.newbyteorder("="))


def _reconstruct(*_: Any) -> ArrayRecord:
    return ArrayRecord()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> ArrayRecord:
    record = ArrayRecord()
    record.set_state((shape, dtype, order == "F", raw))
    return record


def _scalar(dtype: Any, raw: Any) -> ArrayRecord:
    return _from_buffer(raw, dtype, (), "C")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise UnsafePickleError("refused: encodes something else than text as Latin-1")
    return text.encode("latin1")


def _reconstructor(cls: Any, *_: Any) -> _Record:
    if not (isinstance(cls, type) and issubclass(cls, _Record)):
        raise UnsafePickleError("refused: rebuilds an object of an unexpected class")
    return cls()


def _new_object(cls: Any, *_: Any) -> _Record:
    return _reconstructor(cls)


def _ordered_dict(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()  # its entries follow one by one


class _Nothing:
    """Stands for `object` and `numpy.ndarray`, which only appear as arguments."""


_CHUMPY_CLASSES = {
    ("chumpy.ch", "Ch"),
    ("chumpy.ch", "Select"),
    ("chumpy.reordering", "Select"),
    ("chumpy", "Ch"),
}
_SPARSE_MODULES = {"scipy.sparse", "scipy.sparse.csc", "scipy.sparse._csc"}
_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Nothing,
    ("numpy", "dtype"): DtypeRecord,
    ("__builtin__", "object"): _Nothing,
    ("builtins", "object"): _Nothing,
    ("__builtin__", "set"): _Record,
    ("builtins", "set"): _Record,
    ("collections", "OrderedDict"): _ordered_dict,
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copyreg", "__newobj__"): _new_object,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _scalar
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _from_buffer
for _name in _CHUMPY_CLASSES:
    _GLOBALS[_name] = ChumpyRecord
for _module in _SPARSE_MODULES:
    _GLOBALS[_module, "csc_matrix"] = SparseRecord


class _BoundedReader(io.BytesIO):
    """Bytes of which at most ``MAX_READS`` pieces may be asked for."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self._count()
        return super().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        self._count()
        return super().readline(size)

    def _count(self) -> None:
        self.reads += 1
        if self.reads > MAX_READS:
            raise UnsafePickleError(f"refused: more than {MAX_READS} steps, far beyond a MANO file")


# The C unpickler allocates whatever memo index a file names; the Python one keeps a dict and reads only what
# is there.
class _MANOUnpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, data: bytes) -> None:
        super().__init__(_BoundedReader(data), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        found = _GLOBALS.get((module, name))
        if found is None:
            raise UnsafePickleError(
                f"refused: the pickle asks for {module[:100]}.{name[:100]}, which no MANO file needs; nothing was run"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError("refused: the pickle refers to an object outside of the file")

    def get_extension(self, code: int) -> None:
        raise UnsafePickleError(f"refused: the pickle uses copyreg extension {code}")

    def _load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, _Record):
            raise UnsafePickleError(f"refused: the pickle changes a {_describe(target)}")
        target.set_state(state)

    def _load_bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))  # the inherited method allocates `size` bytes first

    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray


def _hashing_only_plain_keys(load: Callable[[Any], None], keys: Callable[[list], Sequence]) -> Callable[[Any], None]:
    """`load`, unless it would hash tuples: nested ones can take exponential time."""

    def checked_load(unpickler: Any) -> None:
        for key in keys(unpickler.stack):
            if not isinstance(key, (str, bytes, int, float, type(None))):
                raise UnsafePickleError(f"refused: the pickle uses a {_describe(key)} as a key")
        load(unpickler)

    return checked_load


for _opcode, _keys in (
    (pickle.SETITEM, lambda stack: stack[-2:-1]),
    (pickle.SETITEMS, lambda stack: stack[::2]),
    (pickle.DICT, lambda stack: stack[::2]),
    (pickle.ADDITEMS, lambda stack: stack),
    (pickle.FROZENSET, lambda stack: stack),
):
    _MANOUnpickler.dispatch[_opcode[0]] = _hashing_only_plain_keys(_MANOUnpickler.dispatch[_opcode[0]], _keys)

_DESCRIPTIONS: dict[type, str] = {
    _Record: "set",
    ArrayRecord: "numpy array",
    ChumpyRecord: "chumpy object",
    SparseRecord: "sparse matrix",
    DtypeRecord: "numpy dtype",
    _Nothing: "class",
}


def _describe(value: Any) -> str:
    return _DESCRIPTIONS.get(type(value), type(value).__name__)
