"""Cameras, light and corners: neural_renderer's functions of vertices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dhpe_fast.reference._arguments import check_face_range
from dhpe_fast.torch_settings import full_precision, out_of_half

Vector = Sequence[float] | np.ndarray | Tensor
"""Three numbers, or three for each item of a batch."""

_NORMALIZE_EPS = 1e-5


def get_points_from_angles(
    distance: float | Tensor,
    elevation: float | Tensor,
    azimuth: float | Tensor,
    degrees: bool = True,
) -> tuple[float, float, float] | Tensor:
    """Where a camera is that looks at the origin from a distance, a height above the xz plane and a turn about y.

    Azimuth 0 is in front of the origin, on the negative z axis. Of numbers, three numbers; of tensors (N,), (N, 3).
    """
    if isinstance(distance, (int, float)):
        if degrees:
            elevation, azimuth = math.radians(elevation), math.radians(azimuth)
        flat = distance * math.cos(elevation)
        return flat * math.sin(azimuth), distance * math.sin(elevation), -flat * math.cos(azimuth)
    if degrees:
        elevation, azimuth = torch.deg2rad(elevation), torch.deg2rad(azimuth)
    flat = distance * torch.cos(elevation)
    return torch.stack([flat * torch.sin(azimuth), distance * torch.sin(elevation), -flat * torch.cos(azimuth)], 1)


def look_at(
    vertices: Tensor,  # (B, V, 3)
    eye: Vector,
    at: Vector = (0, 0, 0),
    up: Vector = (0, 1, 0),
) -> Tensor:  # (B, V, 3)
    """Vertices as a camera sees them that stands at `eye` and looks at `at`: x right, y up, z the distance along."""
    _check_vertices(vertices)
    eye, at = _vector("eye", eye, vertices), _vector("at", at, vertices)
    return _into_camera(vertices, eye, at - eye, _vector("up", up, vertices))


def look(
    vertices: Tensor,  # (B, V, 3)
    eye: Vector,
    direction: Vector = (0, 1, 0),
    up: Vector | None = None,
) -> Tensor:  # (B, V, 3)
    """As :func:`look_at`, for a camera that looks in a direction; `up` is (0, 1, 0) by default."""
    _check_vertices(vertices)
    eye, direction = _vector("eye", eye, vertices), _vector("direction", direction, vertices)
    return _into_camera(vertices, eye, direction, _vector("up", (0, 1, 0) if up is None else up, vertices))


def _into_camera(
    vertices: Tensor,  # (B, V, 3)
    eye: Tensor,  # (1 or B, 3)
    direction: Tensor,  # (1 or B, 3)
    up: Tensor,  # (1 or B, 3)
) -> Tensor:  # (B, V, 3)
    z = normalize(direction, dim=-1, eps=_NORMALIZE_EPS)
    x = normalize(torch.linalg.cross(up, z), dim=-1, eps=_NORMALIZE_EPS)
    y = normalize(torch.linalg.cross(z, x), dim=-1, eps=_NORMALIZE_EPS)
    axes = torch.stack(torch.broadcast_tensors(x, y, z), -1)  # (1 or B, 3, 3), one axis a column
    with full_precision(vertices.device):
        return (vertices - eye[:, None]) @ axes


def perspective(
    vertices: Tensor,  # (B, V, 3) in the camera's frame
    angle: float = 30.0,
) -> Tensor:  # (B, V, 3)
    """Projects: x and y are divided by z tan(angle), so that `angle`, in degrees, is *half* the field of view."""
    _check_vertices(vertices)
    x, y, z = vertices.unbind(-1)
    width = math.tan(math.radians(angle))
    return torch.stack([x / z / width, y / z / width, z], -1)


def projection(
    vertices: Tensor,  # (B, V, 3) in the world
    K: Tensor,  # (B, 3, 3)
    R: Tensor,  # (B, 3, 3)
    t: Tensor,  # (B, 1, 3)
    dist_coeffs: Tensor,  # (B, 5)
    orig_size: float,
    eps: float = 1e-9,
) -> Tensor:  # (B, V, 3)
    """Projects with a calibrated camera, x right, y *down*, z away from it, onto an image of orig_size^2 pixels.

    A point of the camera's frame is R v + t; `dist_coeffs` are OpenCV's k1, k2, p1, p2, k3. The image's corners are at
    pixels 0 and orig_size: a K that counts pixels from the centre of the first one is half a pixel off. Any batch of
    1 broadcasts.
    """
    _check_vertices(vertices)
    vertices = out_of_half(vertices, K.dtype)
    with full_precision(vertices.device):
        return _project(vertices, K, R, t, dist_coeffs, orig_size, eps)


def _project(
    vertices: Tensor,  # (B, V, 3)
    K: Tensor,  # (B, 3, 3)
    R: Tensor,  # (B, 3, 3)
    t: Tensor,  # (B, 1, 3)
    dist_coeffs: Tensor,  # (B, 5)
    orig_size: float,
    eps: float,
) -> Tensor:  # (B, V, 3)
    x, y, z = (vertices @ R.transpose(-1, -2) + t).unbind(-1)
    x, y = x / (z + eps), y / (z + eps)
    k1, k2, p1, p2, k3 = dist_coeffs[:, None].unbind(-1)
    square = x * x + y * y
    radial = 1 + square * (k1 + square * (k2 + square * k3))
    bent_x = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x)
    bent_y = y * radial + 2 * p2 * x * y + p1 * (square + 2 * y * y)
    u, v, _ = (torch.stack([bent_x, bent_y, torch.ones_like(z)], -1) @ K.transpose(-1, -2)).unbind(-1)
    return torch.stack([2 * u / orig_size - 1, 1 - 2 * v / orig_size, z], -1)


def vertices_to_faces(
    vertices: Tensor,  # (B, V, 3)
    faces: Tensor,  # (B, F, 3)
) -> Tensor:  # (B, F, 3, 3)
    """The corners of every face.

    Raises:
        ValueError: if the shapes do not fit; or, on the CPU, if a face names a vertex that is not there.
    """
    _check_vertices(vertices)
    if faces.dim() != 3 or faces.shape[0] != vertices.shape[0] or faces.shape[2] != 3:
        raise ValueError(f"faces has shape {tuple(faces.shape)}, expected ({vertices.shape[0]}, F, 3)")
    if not faces.is_cuda:  # where looking would wait for the device
        check_face_range(faces, vertices.shape[1])
    image = torch.arange(len(vertices), device=vertices.device)[:, None, None]
    return vertices[image, faces.long()]


def lighting(
    faces: Tensor,  # (B, F, 3, 3) corners in the world
    textures: Tensor,  # (B, F, T, T, T, 3)
    intensity_ambient: float = 0.5,
    intensity_directional: float = 0.5,
    color_ambient: Vector = (1, 1, 1),
    color_directional: Vector = (1, 1, 1),
    direction: Vector = (0, 1, 0),
) -> Tensor:  # (B, F, T, T, T, 3)
    """Textures under light: each face is multiplied by ambient + directional max(0, n . direction).

    n is the unit normal (v0 - v1) x (v2 - v1), which points *away* from where a face's corners run counter-clockwise.
    Differentiable in both tensors; neither is changed.
    """
    light = faces.new_zeros(*faces.shape[:2], 3)
    if intensity_ambient != 0:
        light = light + intensity_ambient * _vector("color_ambient", color_ambient, faces)[:, None]
    if intensity_directional != 0:
        v0, v1, v2 = faces.unbind(2)
        normal = normalize(torch.linalg.cross(v0 - v1, v2 - v1), dim=-1, eps=_NORMALIZE_EPS)
        cosine = (normal * _vector("direction", direction, faces)[:, None]).sum(-1, keepdim=True).relu()
        light = light + intensity_directional * _vector("color_directional", color_directional, faces)[:, None] * cosine
    return textures * light[:, :, None, None, None]


def _check_vertices(vertices: Any) -> None:
    if not isinstance(vertices, Tensor) or vertices.dim() != 3 or vertices.shape[-1] != 3:
        given = f"shape {tuple(vertices.shape)}" if isinstance(vertices, Tensor) else type(vertices).__name__
        raise ValueError(f"vertices: expected a tensor (B, V, 3), got {given}")


def _vector(name: str, value: Vector, like: Tensor) -> Tensor:  # (1 or B, 3)
    vector = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    vector = vector.reshape(1, 3) if vector.dim() == 1 and vector.numel() == 3 else vector
    if vector.dim() == 3 and vector.shape[1:] == (1, 3):
        vector = vector[:, 0]
    if vector.dim() != 2 or vector.shape[-1] != 3 or vector.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected (3,) or ({like.shape[0]}, 3)")
    return vector
