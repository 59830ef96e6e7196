"""Keypoints in, pictures and fitted hands out.

Every file is written whole or not at all: into a temporary file beside it, which then takes its name.
Folders are not created here: a misspelt folder is an error.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import trimesh
from torch import Tensor

from dhpe_fast.atomic_write import write_whole
from dhpe_fast.conventions import H_LAYOUT, JOINT_ORDERS, N_JOINTS_STD, joint_permutation
from dhpe_fast.shading import vertex_normals

if TYPE_CHECKING:
    from dhpe_fast.hand_fit import HandFit

FIT_SCHEMA = "dhpe-fast/hand-fit/1"
"""Names the layout of the JSON files; its number grows when readers of the old layout would misread it."""


def save_image(
    path: str | os.PathLike[str],
    rgb: np.ndarray,  # (H, W, 3) uint8
) -> None:
    """Writes an RGB picture, in the format of the suffix (.png, .jpg, .webp, ...), whole or not at all.

    Raises:
        TypeError, ValueError: if `rgb` is no uint8 array (H, W, 3) with pixels, or the suffix is not that of
            a format.
        FileNotFoundError: if the folder does not exist.
    """
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8:
        given = rgb.dtype if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise TypeError(f"rgb: expected a uint8 array, got {given}")
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ValueError(f"rgb: expected (H, W, 3) with pixels, got {rgb.shape}")
    file = Path(path)
    if not file.suffix or not cv2.haveImageWriter(file.name):
        raise ValueError(f"path: '{file.name}' has no suffix of an image format, such as .png or .jpg")
    done, data = cv2.imencode(file.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"rgb: {file.suffix} cannot hold an image of shape {rgb.shape}")
    write_whole(file, data.tobytes())


# --- Keypoints ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Keypoints:
    """2D keypoints of one image, as ``fit`` takes them."""

    joints2d_px: np.ndarray
    """(21, 2) or (N, 21, 2) float64, STD order, pixels; a third column is the confidence. NaN is unknown."""
    side: str | None = None
    """'right' or 'left', if the file says so."""
    named: bool = False
    """Whether the file says which image they belong to."""


def read_keypoints(
    path: str | os.PathLike[str],
    image_name: str | None = None,
    order: str | None = None,
) -> Keypoints:
    """Reads 2D keypoints, in pixels of the image frame of :mod:`dhpe_fast.conventions`.

    ``.npy`` holds an array (21, 2) or (21, 3), x, y and possibly confidence, or (N, 21, 2 | 3) for N hands.
    ``.json`` holds the same as nested lists, in one of four forms; ``null`` is an unknown coordinate::

        [[x, y], ...]
        {"keypoints": [[x, y], ...], "order": "std", "side": "right"}
        {"a.jpg": <one of the two above>, ...}
        {"images": {"a.jpg": <one of the first two>, ...}, "order": "std"}

    `order` and `side` are optional, and other entries are ignored; the inner `order` goes before the outer.

    Args:
        path: the file.
        image_name: which image's keypoints to take from the last two forms; None will do where there is one.
        order: the joint order of the file, a key of ``conventions.JOINT_ORDERS``; goes before what the file
            says. Where neither says anything it is STD.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the file is not as above, or has no entry for the image; the message names the entry.
    """
    file = Path(path)
    if file.suffix == ".npy":
        entry: Any = load_npy(file)
    elif file.suffix == ".json":
        entry = load_json(file)
    else:
        raise ValueError(f"{file}: expected a .json or .npy file, got '{file.suffix}'")
    found: dict[str, Any] = {}
    named = isinstance(entry, dict) and "keypoints" not in entry
    if named:
        found["order"] = entry.get("order") if "images" in entry else None
        entry = _entry_of(entry.get("images", entry), image_name, file)
    if isinstance(entry, dict):
        if "keypoints" not in entry:
            raise ValueError(f"{file}: expected an entry 'keypoints', found {', '.join(entry) or 'nothing'}")
        found |= {key: entry[key] for key in ("order", "side") if entry.get(key) is not None}
        entry = entry["keypoints"]
    joints2d_px = _keypoint_array(entry, file)
    side = found.get("side")
    if side not in (None, "right", "left"):
        raise ValueError(f"{file}: side: expected 'right' or 'left', got {side!r}")
    name = order or found.get("order") or "std"
    if name not in JOINT_ORDERS:
        raise ValueError(f"{file}: unknown joint order {name!r}; known are {', '.join(JOINT_ORDERS)}")
    return Keypoints(joints2d_px[..., list(joint_permutation(name)), :], side, named)


def _entry_of(images: Any, image_name: str | None, file: Path) -> Any:
    if not isinstance(images, dict):
        raise ValueError(
            f"{file}: expected an object from image names to keypoints, {{'a.jpg': [[x, y], ...]}}, got a "
            f"{type(images).__name__}"
        )
    if image_name is None and len(images) == 1:
        return next(iter(images.values()))
    if image_name not in images:
        raise ValueError(f"{file}: has no keypoints for image {image_name!r}; it names {len(images)} images")
    return images[image_name]


def _keypoint_array(entry: Any, file: Path) -> np.ndarray:
    try:
        values = np.asarray(entry, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{file}: keypoints: expected lists of numbers, all of one length") from None
    if values.ndim not in (2, 3) or values.shape[-2] != N_JOINTS_STD or values.shape[-1] not in (2, 3):
        wanted = "(21, 2), (21, 3), (N, 21, 2) or (N, 21, 3)"
        raise ValueError(f"{file}: keypoints: expected shape {wanted}, got {values.shape}")
    return values


def load_npy(file: Path) -> np.ndarray:
    """An array file; ValueError if it is none, or would run code."""
    try:
        return np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file}: is no array file of NumPy: {error}") from error


def load_json(file: Path) -> Any:
    """What a JSON file holds; ValueError if it is none."""
    try:
        return json.loads(file.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: is no JSON file: {error}") from error


# --- Fitted hands -------------------------------------------------------------------------------------------


def save_fit(fit: HandFit, path: str | os.PathLike[str]) -> None:
    """Writes a fitted hand in the format of the suffix, whole or not at all.

    * ``.glb``: mesh with vertex normals and a skin material, metres, in glTF's axes: x right, y up, z towards
      the viewer, that is (x, -y, -z) of the camera frame. Opens upright in any viewer.
    * ``.obj``, ``.ply``: mesh with vertex normals, metres, in the camera frame (OpenCV axes), as
      ``fit.verts_m``.
    * ``.npz``: all arrays: mesh, joints, mask, every parameter, camera and crop; strings and numbers as 0-d
      arrays.
    * ``.json``: the same but for the mask and the faces; the layout is named by "schema".

    Raises:
        ValueError: if the suffix is none of these.
        FileNotFoundError: if the folder does not exist.
    """
    file = Path(path)
    writer = _FIT_WRITERS.get(file.suffix.lower())
    if writer is None:
        raise ValueError(f"path: expected a suffix of {', '.join(_FIT_WRITERS)}, got '{file.name}'")
    write_whole(file, writer(fit))


def fit_record(fit: HandFit, *, vertices: bool = True) -> dict[str, Any]:
    """All that a fit says but its mask and faces, as JSON types; non-finite numbers are None.

    "params" are the parts of h in the crop frame for the model named by "model" and "side"; "crop" is the
    square of the image that the crop frame spans; verts_m and joints_m are in the camera frame, metres, and
    "camera" projects them to pixels. Without `vertices`, verts_m are left out: "params" give them.
    """
    return {
        "schema": FIT_SCHEMA,
        "side": fit.side,
        "model": fit.model.name,
        "params": {name: plain(getattr(fit.params, name)[0]) for name in H_LAYOUT},
        "crop": plain(fit.crop),
        "camera": {"type": type(fit.camera).__name__, **plain(fit.camera)},
        "joints2d_px": plain(fit.joints2d_px),
        "joints_m": plain(fit.joints_m),
        **({"verts_m": plain(fit.verts_m)} if vertices else {}),
        "keypoints2d_px": plain(fit.keypoints2d_px),
        "confidence": plain(fit.confidence),
        "score": float(fit.score),
        "residuals": plain(fit.residuals),
        "timings_ms": plain(fit.timings_ms),
        "iterations": fit.iterations,
        "converged": fit.converged,
    }


def plain(value: Any) -> Any:
    """Tensors, dataclasses and mappings as JSON types; non-finite numbers as None."""
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, float):
        # Nine digits hold every float32 exactly.
        return float(f"{value:.9g}") if np.isfinite(value) else None
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _json_bytes(fit: HandFit) -> bytes:
    return (json.dumps(fit_record(fit), allow_nan=False) + "\n").encode()


def _npz_bytes(fit: HandFit) -> bytes:
    parts = {f"params_{name}": getattr(fit.params, name)[0] for name in H_LAYOUT}
    names = ("verts_m", "faces", "joints_m", "joints2d_px", "mask", "keypoints2d_px", "confidence")
    tensors = {name: getattr(fit, name) for name in names} | parts
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    for group in ("camera", "crop"):
        owner = getattr(fit, group)
        for field in dataclasses.fields(owner):
            arrays[f"{group}_{field.name}"] = np.array(getattr(owner, field.name))
    arrays |= {
        "schema": np.array(FIT_SCHEMA),
        "side": np.array(fit.side),
        "model": np.array(fit.model.name),
        "camera_type": np.array(type(fit.camera).__name__),
        "iterations": np.array(fit.iterations),
        "converged": np.array(fit.converged),
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _mesh(fit: HandFit, axes: tuple[int, int, int] = (1, 1, 1)) -> trimesh.Trimesh:
    verts_m, faces = fit.verts_m.detach().cpu().double(), fit.faces.detach().cpu()
    turn = np.array(axes, dtype=np.float64)
    # Given, as trimesh would look for scipy to compute them.
    normals = vertex_normals(verts_m, faces).numpy() * turn
    return trimesh.Trimesh(verts_m.numpy() * turn, faces.numpy(), vertex_normals=normals, process=False)


def _glb_bytes(fit: HandFit) -> bytes:
    mesh = _mesh(fit, axes=(1, -1, -1))
    mesh.visual = trimesh.visual.TextureVisuals(
        material=trimesh.visual.material.PBRMaterial(
            name="skin",
            baseColorFactor=(224, 172, 146, 255),
            metallicFactor=0.0,
            roughnessFactor=0.65,
            doubleSided=True,
        )
    )
    return trimesh.exchange.gltf.export_glb(trimesh.Scene({f"{fit.side}_hand": mesh}), include_normals=True)


def _obj_bytes(fit: HandFit) -> bytes:
    header = "dhpe-fast: metres, camera frame (x right, y down, z away from the camera)"
    return trimesh.exchange.obj.export_obj(_mesh(fit), include_normals=True, header=header).encode()


def _ply_bytes(fit: HandFit) -> bytes:
    return trimesh.exchange.ply.export_ply(_mesh(fit), vertex_normal=True)


_FIT_WRITERS = {
    ".glb": _glb_bytes,
    ".obj": _obj_bytes,
    ".ply": _ply_bytes,
    ".npz": _npz_bytes,
    ".json": _json_bytes,
}

FIT_SUFFIXES = tuple(_FIT_WRITERS)
"""The suffixes that ``save_fit`` accepts."""
