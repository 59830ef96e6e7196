"""Wavefront OBJ files, neural_renderer's way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from dhpe_fast.atomic_write import write_whole
from dhpe_fast.compat.neural_renderer.textures import WRAPPINGS, create_texture_image, cubes_from_image
from dhpe_fast.io import save_image

Path_ = str | os.PathLike[str]


def load_obj(
    filename_obj: Path_,
    normalization: bool = True,
    texture_size: int = 4,
    load_texture: bool = False,
    texture_wrapping: str = "REPEAT",
    use_bilinear: bool = True,
    *,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """Reads vertices and faces; polygons become fans of triangles.

    Args:
        filename_obj: the file.
        normalization: moves and scales the vertices into [-1, 1]^3, centred, the longest side from -1 to 1.
        texture_size: T of the textures.
        load_texture: reads the material file as well: its colours, or its pictures through texture coordinates.
        texture_wrapping: of texture coordinates outside of [0, 1]: 'REPEAT', 'MIRRORED_REPEAT', 'CLAMP_TO_EDGE', or
            'CLAMP_TO_BORDER' (black).
        use_bilinear: between a picture's pixels; else the nearest.
        device: of the tensors; by default CUDA where there is one, as in neural_renderer, and else the CPU.

    Returns:
        Vertices (V, 3) float32, faces (F, 3) int32, and with load_texture textures (F, T, T, T, 3) float32.

    Raises:
        ValueError: if a line cannot be read or names a vertex that is not there; the message names file and line. If
            textures are asked for and the file has none.
    """
    if texture_wrapping not in WRAPPINGS:
        raise ValueError(f"texture_wrapping is {texture_wrapping!r}, expected one of {', '.join(WRAPPINGS)}")
    file = Path(filename_obj)
    mesh = _ObjFile(file)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32).reshape(-1, 3)
    faces = torch.tensor(mesh.faces, dtype=torch.int32).reshape(-1, 3)
    if normalization and len(vertices):
        vertices = vertices - vertices.amin(0)
        vertices = vertices * (2 / vertices.abs().max())
        vertices = vertices - vertices.amax(0) / 2
    if not load_texture:
        return vertices.to(device), faces.to(device)
    if mesh.material_file is None:
        raise ValueError(f"{file}: load_texture=True, but the file names no materials (mtllib)")
    textures = _load_textures(mesh, texture_size, texture_wrapping, use_bilinear)
    return vertices.to(device), faces.to(device), textures.to(device)


class _ObjFile:
    """What this package reads of an OBJ file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.vertices: list[list[float]] = []
        self.uv: list[list[float]] = []
        self.faces: list[tuple[int, int, int]] = []
        self.uv_faces: list[tuple[int, int, int]] = []  # -1 where a corner has none
        self.materials: list[str] = []  # of each face
        self.material_file: Path | None = None
        material = ""
        statements = list(_statements(file))
        self.totals = {kind: sum(key == kind for _, key, _ in statements) for kind in ("v", "vt")}
        for number, key, rest in statements:
            try:
                if key == "v":
                    self.vertices.append(_floats(rest, 3))
                elif key == "vt":
                    self.uv.append(_floats(rest, 2))
                elif key == "f":
                    self._add_polygon(rest.split(), material)
                elif key == "usemtl":
                    material = rest
                elif key == "mtllib":
                    self.material_file = file.parent / rest
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None

    def _add_polygon(self, corners: list[str], material: str) -> None:
        if len(corners) < 3:
            raise ValueError(f"a face of {len(corners)} corners")
        ids, uv_ids = [], []
        for corner in corners:
            parts = corner.split("/")
            ids.append(_index(parts[0], len(self.vertices), self.totals["v"], "vertices"))
            has_uv = len(parts) > 1 and parts[1] != ""
            uv_ids.append(_index(parts[1], len(self.uv), self.totals["vt"], "texture coordinates") if has_uv else -1)
        for k in range(1, len(corners) - 1):
            self.faces.append((ids[0], ids[k], ids[k + 1]))
            self.uv_faces.append((uv_ids[0], uv_ids[k], uv_ids[k + 1]))
            self.materials.append(material)


def _statements(file: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, keyword and the rest of every line that says something."""
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words = line.strip().split(maxsplit=1)
        if words and not words[0].startswith("#"):
            yield number, words[0], words[1].strip() if len(words) > 1 else ""


def _floats(text: str, count: int) -> list[float]:
    values = [float(word) for word in text.split()[:count]]
    if len(values) != count:
        raise ValueError(f"expected {count} numbers, got {text!r}")
    return values


def _index(text: str, so_far: int, total: int, of: str) -> int:
    """An index counted from 1, or backwards from the line it stands in where it is negative, as one from 0."""
    given = int(text)
    index = given - 1 if given > 0 else so_far + given
    if given == 0 or not 0 <= index < total:
        raise ValueError(f"index {given} among {total} {of}")
    return index


def _load_textures(mesh: _ObjFile, size: int, wrapping: str, bilinear: bool) -> Tensor:  # (F, T, T, T, 3)
    textures = torch.full((len(mesh.faces), size, size, size, 3), 0.5)
    names = np.array(mesh.materials)
    colors, pictures = _load_materials(mesh.material_file)
    for name, color in colors.items():
        textures[torch.from_numpy(names == name)] = torch.tensor(color)
    uv = torch.tensor([*mesh.uv, [0.0, 0.0]])  # -1 finds the last
    for name, picture in pictures.items():
        chosen = torch.from_numpy(names == name)
        if not chosen.any():
            continue
        pixels = cv2.imread(str(picture), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is None:
            raise ValueError(f"{mesh.material_file}: the picture {picture} of material {name!r} cannot be read")
        rgb = torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).float() / 255
        corners = uv[torch.tensor(mesh.uv_faces)[chosen]]
        textures[chosen] = cubes_from_image(rgb.flip(0), corners, size, wrapping, bilinear)
    return textures


def _load_materials(file: Path) -> tuple[dict[str, list[float]], dict[str, Path]]:
    """Colours (Kd) and pictures (map_Kd) by material."""
    colors: dict[str, list[float]] = {}
    pictures: dict[str, Path] = {}
    material = ""
    for number, key, rest in _statements(file):
        if key == "newmtl":
            material = rest
        elif key == "map_Kd":
            pictures[material] = file.parent / rest.replace("\\", "/")
        elif key == "Kd":
            try:
                colors[material] = _floats(rest, 3)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    return colors, pictures


def save_obj(
    filename: Path_,
    vertices: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    textures: Tensor | None = None,  # (F, T, T, T, 3)
) -> None:
    """Writes a mesh; with textures also a material and a picture beside it, with the suffixes .mtl and .png.

    Raises:
        ValueError: if the shapes do not fit. FileNotFoundError: if the folder does not exist.
    """
    for name, value in (("vertices", vertices), ("faces", faces)):
        if value.dim() != 2 or value.shape[1] != 3:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected (N, 3)")
    if textures is not None and (textures.dim() != 5 or len(textures) != len(faces)):
        raise ValueError(f"textures has shape {tuple(textures.shape)}, expected ({len(faces)}, T, T, T, 3)")
    file = Path(filename)
    lines = [f"# {file.name}", ""]
    if textures is not None:
        lines += [f"mtllib {file.with_suffix('.mtl').name}", ""]
    lines += ["v {:.8f} {:.8f} {:.8f}".format(*vertex) for vertex in vertices.detach().cpu().tolist()]
    lines.append("")
    ids = (faces.detach().cpu() + 1).tolist()
    if textures is None:
        lines += ["f {} {} {}".format(*face) for face in ids]
    else:
        image, uv = create_texture_image(textures)
        lines += ["vt {:.8f} {:.8f}".format(*corner) for corner in uv.reshape(-1, 2).tolist()]
        lines += ["", "usemtl material_1"]
        lines += [f"f {a}/{3 * i + 1} {b}/{3 * i + 2} {c}/{3 * i + 3}" for i, (a, b, c) in enumerate(ids)]
        material = f"newmtl material_1\nmap_Kd {file.with_suffix('.png').name}\n"
        save_image(file.with_suffix(".png"), np.rint(image.clip(0, 1) * 255).astype(np.uint8))
        write_whole(file.with_suffix(".mtl"), material.encode())
    write_whole(file, ("\n".join(lines) + "\n").encode())


class Mesh:
    """Vertices (V, 3), faces (F, 3) and textures (F, T, T, T, 3): those given, or faint random ones to learn."""

    def __init__(
        self,
        vertices: Tensor,  # (V, 3)
        faces: Tensor,  # (F, 3)
        textures: Tensor | None = None,  # (F, T, T, T, 3)
        texture_size: int = 4,
    ) -> None:
        """Keeps what it is given."""
        self.vertices = vertices
        self.faces = faces
        self.num_vertices = len(vertices)
        self.num_faces = len(faces)
        if textures is None:
            shape = (self.num_faces, texture_size, texture_size, texture_size, 3)
            textures = nn.Parameter(0.05 * torch.randn(shape, device=vertices.device))
        self.textures = textures
        self.texture_size = textures.shape[1]

    @classmethod
    def fromobj(
        cls,
        filename_obj: Path_,
        normalization: bool = True,
        load_texture: bool = False,
        texture_size: int = 4,
    ) -> Mesh:
        """Reads a mesh with :func:`load_obj`."""
        return cls(*load_obj(filename_obj, normalization, texture_size, load_texture), texture_size=texture_size)
