"""Several meshes in one image: the nearest surface shows, whichever mesh it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_MAX_VERTS = 2**31 - 1


class JoinedMeshes(NamedTuple):
    """Meshes that stand in one scene, as one mesh."""

    verts: Tensor
    """(*batch, V, 3) those of all meshes, one after the other."""
    faces: Tensor
    """(F, 3) the same."""
    face_mesh: Tensor
    """(F,) int64, to which mesh each face belongs: ``face_mesh[face_index]`` says which mesh a covered pixel shows."""


def join_meshes(
    verts: Tensor | Sequence[Tensor],  # (*batch, M, V, 3), or M tensors (*batch, V_m, 3)
    faces: Tensor | Sequence[Tensor],  # (F, 3) common to the meshes, or M tensors (F_m, 3)
) -> JoinedMeshes:
    """Puts M meshes into one scene, to be drawn together by ``rasterize`` and every mode of ``silhouette``.

    Each pixel then shows the nearest of all meshes, and a silhouette is that of their union. Gradients go to the
    vertices of each mesh; what another one hides receives none.

    Args:
        verts: one tensor if all meshes have the same number of vertices, else one tensor for each; batches are the
            images, and have to be alike.
        faces: int32 or int64 vertex ids, counted within each mesh.

    Returns:
        The joined mesh, differentiable in `verts`.

    Raises:
        TypeError: an argument is neither a tensor nor a sequence of tensors, or faces are not of an integer type.
        ValueError: shapes, types, devices or the numbers of meshes do not fit, or there is no mesh.
    """
    parts = _parts("verts", verts, -3)
    common = isinstance(faces, Tensor)
    tables = [faces] * len(parts) if common else _parts("faces", faces, None)
    if not parts or len(tables) != len(parts):
        raise ValueError(f"faces: expected a tensor, or one for each of {len(parts)} >= 1 meshes, got {len(tables)}")
    first = parts[0]
    for number, (own, table) in enumerate(zip(parts, tables, strict=True)):
        if own.dim() < 2 or own.shape[-1] != 3 or own.shape[:-2] != first.shape[:-2]:
            raise ValueError(
                f"verts: expected (*batch, V, 3) with the batch {tuple(first.shape[:-2])} of the first mesh, got "
                f"{tuple(own.shape)} for mesh {number}"
            )
        if (own.dtype, own.device) != (first.dtype, first.device):
            raise ValueError(
                f"verts: mesh {number} is {own.dtype} on {own.device}, the first {first.dtype} on {first.device}"
            )
        if table.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"faces: expected int32 or int64, got {table.dtype} for mesh {number}")
        if table.dim() != 2 or table.shape[1] != 3 or table.device != own.device:
            raise ValueError(
                f"faces: expected (F, 3) on {own.device}, got {tuple(table.shape)} on {table.device} for mesh {number}"
            )
    offsets = [0]
    for own in parts:
        offsets.append(offsets[-1] + own.shape[-2])
    if offsets[-1] > _MAX_VERTS:
        raise ValueError(f"verts: {offsets[-1]} vertices in all, expected up to {_MAX_VERTS}, which int32 ids can name")
    # An id that its mesh does not have stays one that no mesh has.
    moved = [
        torch.where((table >= 0) & (table < own.shape[-2]), table + offset, -1)
        for table, own, offset in zip(tables, parts, offsets, strict=False)
    ]
    joined = torch.cat(moved)
    counts = torch.tensor([len(table) for table in tables], device=first.device)
    meshes = torch.arange(len(tables), device=first.device)
    # With the sum of the counts at hand, torch need not wait for a GPU to tell.
    face_mesh = torch.repeat_interleave(meshes, counts, output_size=len(joined))
    return JoinedMeshes(torch.cat(parts, dim=-2), joined, face_mesh)


def _parts(name: str, value: Tensor | Sequence[Tensor], axis: int | None) -> list[Tensor]:
    if isinstance(value, Tensor):
        if axis is None or value.dim() < 3:
            raise ValueError(f"{name}: expected (*batch, M, V, 3) or a sequence of tensors, got {tuple(value.shape)}")
        return list(value.unbind(axis))
    parts = list(value) if isinstance(value, Sequence) else [value]
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"{name}: expected a tensor or a sequence of tensors, got {type(part).__name__}")
    return parts
