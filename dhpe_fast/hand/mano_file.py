"""Hand model files: the licensed MANO pickles and this package's npz, read safely and checked completely.

Both give the same dictionary of arrays, with the keys of MANO. Floating-point arrays are float64, integer
arrays int64:

====================  ==============  =================================================================
``v_template``        (778, 3)        rest vertices, metres
``f``                 (1538, 3)       faces, counter-clockwise from outside
``shapedirs``         (778, 3, 10)    metres for each unit of beta
``posedirs``          (778, 3, 135)   metres for each unit of the pose feature
``J_regressor``       (16, 778)       rows sum to one
``weights``           (778, 16)       skinning weights, rows sum to one
``kintree_table``     (2, 16)         parents (root -1); 0..15
``hands_components``  (45, 45)        principal components of the pose, in rows
``hands_mean``        (45,)           mean pose, axis-angle
``hands_coeffs``      (N, 45)         optional: coefficients of the registered hands
``tip_ids``           (5,)            optional, npz only: fingertip vertices, thumb to little
``uv``, ``uv_faces``  (U, 2), (F, 3)  optional, npz only: texture coordinates in [0, 1]
====================  ==============  =================================================================

and, in an npz, the strings ``side``, ``name`` and ``licence``.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dhpe_fast.atomic_write import whole_file
from dhpe_fast.conventions import (
    MANO16_PARENTS,
    N_FACES,
    N_JOINTS,
    N_POSE,
    N_POSE_FEATURE,
    N_SHAPE,
    N_VERTS,
    N_WRIST_RING,
)
from dhpe_fast.hand.mano_pickle import UnsafePickleError, load_pickle, to_array

__all__ = [
    "MissingModelFileError",
    "ModelFileError",
    "UnsafePickleError",
    "check_model",
    "read_mano",
    "write_npz",
]

MAX_FILE_BYTES = 256 * 2**20
"""Larger files, or archives that unpack to more, are refused unread; MANO's are 4 MB."""

_SUM_TOLERANCE = 1e-3

_FLOAT_SHAPES: dict[str, tuple[int, ...]] = {
    "v_template": (N_VERTS, 3),
    "shapedirs": (N_VERTS, 3, N_SHAPE),
    "posedirs": (N_VERTS, 3, N_POSE_FEATURE),
    "J_regressor": (N_JOINTS, N_VERTS),
    "weights": (N_VERTS, N_JOINTS),
    "hands_components": (N_POSE, N_POSE),
    "hands_mean": (N_POSE,),
}
_INT_SHAPES: dict[str, tuple[int, ...]] = {"f": (N_FACES, 3), "kintree_table": (2, N_JOINTS)}
# None stands for any length.
_OPTIONAL_FLOAT_SHAPES: dict[str, tuple[int | None, ...]] = {"hands_coeffs": (None, N_POSE), "uv": (None, 2)}
_OPTIONAL_INT_SHAPES: dict[str, tuple[int | None, ...]] = {"tip_ids": (5,), "uv_faces": (N_FACES, 3)}
_TEXTS = ("side", "name", "licence")


class ModelFileError(ValueError):
    """A hand model file that cannot be used; the message names the file, the entry, and what is wanted."""


class MissingModelFileError(ModelFileError, FileNotFoundError):
    """There is no file at the path."""


def read_mano(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a MANO pickle (``MANO_RIGHT.pkl``, ``MANO_LEFT.pkl``, v1.2) or an npz with the same keys.

    Neither chumpy nor SciPy is needed, and no code in the file is run: globals beyond the few that a MANO
    file names are refused. The format is told by the contents, not by the file's name.

    Returns:
        The arrays listed at the top of this module, checked for shape, range and finite values.

    Raises:
        UnsafePickleError: if a pickle asks for anything else than arrays.
        ModelFileError: if the file is missing, no hand model, damaged, or of other sizes. Both are
            ValueErrors.
    """
    file = Path(path)
    data = _read_bytes(file)
    if data[:4] == b"PK\x03\x04":
        return check_model(_npz_entries(file), str(file))
    try:
        content = load_pickle(data)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{file}: {error}") from None
    except ValueError as error:
        raise ModelFileError(f"{file}: neither a MANO pickle nor an npz: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{file}: holds a {type(content).__name__}, expected a dictionary with MANO's keys")
    wanted = {*_FLOAT_SHAPES, *_INT_SHAPES, "hands_coeffs"}
    arrays = {key: _to_array(content[key], key, file) for key in wanted if key in content}
    return check_model(arrays, str(file), found=[key for key in content if isinstance(key, str)])


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Writes a model's arrays and strings as a compressed npz; the file appears whole or not at all.

    Raises:
        ModelFileError: if `arrays` is no complete hand model.
        OSError: if the folder does not exist or cannot be written.
    """
    file = Path(path)
    check_model(arrays, str(file))
    with whole_file(file) as stream:
        np.savez_compressed(stream, **{key: np.asarray(value) for key, value in arrays.items()})


def _read_bytes(file: Path) -> bytes:
    if file.is_dir():
        inside = sorted(child.name for child in file.glob("MANO_*.pkl"))
        hint = f"; name a file in it: {', '.join(inside)}" if inside else ""
        raise ModelFileError(f"{file}: is a folder, expected a MANO .pkl or an .npz file{hint}")
    if not file.exists():
        raise MissingModelFileError(
            f"{file}: no such file. MANO_RIGHT.pkl and MANO_LEFT.pkl come with a licence from "
            "https://mano.is.tue.mpg.de (mano_v1_2.zip, folder models/); HandModel.default() needs no file"
        )
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ModelFileError(f"{file}: {size} bytes, more than the {MAX_FILE_BYTES} that a hand model may have")
    return file.read_bytes()


def _npz_entries(file: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        if not all(member.filename.endswith(".npy") for member in members):
            pickles = [member.filename for member in members if re.search(r"MANO_\w+\.pkl$", member.filename)]
            hint = f"; unpack it and name one of {', '.join(pickles)}" if pickles else ""
            raise ModelFileError(f"{file}: is a zip archive, but no npz{hint}")
        unpacked = sum(member.file_size for member in members)
        if unpacked > MAX_FILE_BYTES:
            raise ModelFileError(f"{file}: unpacks to {unpacked} bytes, more than the {MAX_FILE_BYTES} allowed")
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except ModelFileError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own ways of finding damage
        raise ModelFileError(f"{file}: not a readable npz ({type(error).__name__}: {error})") from error


def _to_array(value: Any, key: str, file: Path) -> np.ndarray:
    try:
        return to_array(value)
    except ValueError as error:
        raise ModelFileError(f"{file}: '{key}' {error}") from None


def check_model(entries: Mapping[str, Any], source: str = "hand model", found: Sequence[str] = ()) -> dict[str, Any]:
    """The entries of a hand model as float64 and int64 arrays and strings, copied and checked.

    Args:
        entries: arrays and strings with the keys listed at the top of this module; others are left out.
        source: what to call the model in messages, such as its path.
        found: the keys to report where required ones are missing, if not those of `entries`.

    Raises:
        ModelFileError: if an entry is missing, or has a wrong shape, type, range or value.
    """
    missing = [key for key in (*_FLOAT_SHAPES, *_INT_SHAPES) if key not in entries]
    if missing:
        names = ", ".join(sorted(found or entries)[:20])[:300] or "nothing"
        raise ModelFileError(
            f"{source}: no hand model: {', '.join(missing)} missing; found {names}{_other_model(entries)}"
        )
    model: dict[str, Any] = {}
    for shapes, kind in (
        (_FLOAT_SHAPES, np.float64),
        (_INT_SHAPES, np.int64),
        (_OPTIONAL_FLOAT_SHAPES, np.float64),
        (_OPTIONAL_INT_SHAPES, np.int64),
    ):
        for key, shape in shapes.items():
            if key in entries:
                model[key] = _checked_array(entries[key], key, shape, kind, f"{source}: '{key}'", entries)
    model["kintree_table"][0, 0] = -1  # files spell "no parent" as -1 or as 2**32 - 1
    _check_contents(model, source)
    for key in _TEXTS:
        if key in entries:
            model[key] = _checked_text(entries[key], f"{source}: '{key}'")
    if model.get("side", "right") not in ("right", "left"):
        raise ModelFileError(f"{source}: 'side' is {model['side'][:40]!r}, expected 'right' or 'left'")
    return model


def _checked_array(
    value: Any, key: str, shape: tuple[int | None, ...], kind: type, where: str, entries: Mapping[str, Any]
) -> np.ndarray:
    array = np.asarray(value)
    wanted = str(shape).replace("None", "N")
    if len(array.shape) != len(shape) or any(b not in (None, a) for a, b in zip(array.shape, shape, strict=True)):
        hint = _other_model(entries) if key in ("v_template", "f", "kintree_table") else ""
        raise ModelFileError(f"{where} has shape {array.shape}, expected {wanted}{hint}")
    allowed = "iu" if kind is np.int64 else "fiu"
    if array.dtype.kind not in allowed:
        raise ModelFileError(
            f"{where} has dtype {array.dtype}, expected {'integers' if allowed == 'iu' else 'numbers'}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ModelFileError(f"{where} holds {int((~np.isfinite(array)).sum())} values that are not finite")
    return array.astype(kind)


def _check_contents(model: Mapping[str, np.ndarray], source: str) -> None:
    parents, joints = model["kintree_table"]
    if tuple(parents[1:]) != MANO16_PARENTS[1:] or tuple(joints) != tuple(range(N_JOINTS)):
        raise ModelFileError(
            f"{source}: 'kintree_table' is {model['kintree_table'].tolist()}, "
            f"expected the parents {list(MANO16_PARENTS)} of joints 0 to {N_JOINTS - 1}"
        )
    for key in ("weights", "J_regressor"):
        worst = np.abs(model[key].sum(1) - 1).max()
        if worst > _SUM_TOLERANCE:
            raise ModelFileError(
                f"{source}: rows of '{key}' sum to one within {worst:.3g}, expected {_SUM_TOLERANCE:g}"
            )
    if model["weights"].min() < -1e-6:
        raise ModelFileError(f"{source}: 'weights' go down to {model['weights'].min():.3g}, expected none below zero")
    limits = {"f": N_VERTS, "tip_ids": N_VERTS, "uv_faces": len(model.get("uv", ()))}
    for key, limit in limits.items():
        if key in model and (model[key].min() < 0 or model[key].max() >= limit):
            raise ModelFileError(
                f"{source}: '{key}' runs from {model[key].min()} to {model[key].max()}, expected 0 to {limit - 1}"
            )
    _check_surface(model["f"], source)


def _check_surface(faces: np.ndarray, source: str) -> None:
    try:
        ring = wrist_ring(faces)
    except ValueError as error:
        raise ModelFileError(f"{source}: 'f' {error}") from None
    if len(ring) != N_WRIST_RING:
        raise ModelFileError(f"{source}: 'f' has a border of {len(ring)} vertices, expected {N_WRIST_RING}")


def wrist_ring(
    faces: np.ndarray,  # (F, 3)
) -> np.ndarray:
    """Vertices of the surface's one border, each followed by the next in the direction of its face.

    Raises:
        ValueError: if the faces are no consistently oriented surface with exactly one border.
    """
    edges = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    directed = set(map(tuple, edges.tolist()))
    if len(directed) != len(edges):
        raise ValueError("has two faces on the same side of an edge: not a consistently oriented surface")
    following = {a: b for a, b in directed if (b, a) not in directed}
    if not following:
        raise ValueError("has no border at the wrist")
    ring = [min(following)]
    while len(ring) <= len(following) and following.get(ring[-1], ring[0]) != ring[0]:
        ring.append(following[ring[-1]])
    if len(ring) != sum((b, a) not in directed for a, b in directed):
        raise ValueError("has more than one border, expected only the wrist's")
    return np.array(ring)


def _checked_text(value: Any, where: str) -> str:
    array = np.asarray(value)
    if array.dtype.kind != "U" or array.size != 1:
        raise ModelFileError(f"{where} has dtype {array.dtype} and shape {array.shape}, expected one string")
    return str(array.item())


def _other_model(entries: Mapping[str, Any]) -> str:
    """A hint, where the vertex count gives away another model of the family."""
    names = {6890: "SMPL or SMPL+H body", 10475: "SMPL-X body", 5023: "FLAME head"}
    name = names.get(len(np.atleast_1d(entries["v_template"]))) if "v_template" in entries else None
    return f" (this is a {name} model)" if name else ""
