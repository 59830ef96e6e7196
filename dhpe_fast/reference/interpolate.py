"""Interpolation of vertex attributes over rasterized faces."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.reference._arguments import check_same_dtype, describe, result_dtype, widened
from dhpe_fast.reference.rasterize import Fragments


def interpolate(
    attributes: Tensor,  # (*batch, V, C), or (V, C) common to the batch
    faces: Tensor,  # (F, 3)
    fragments: Fragments,  # of (*batch, H, W) pixels
) -> Tensor:  # (*batch, H, W, C)
    """Draws attributes of vertices; the twin of :func:`dhpe_fast.ops.interpolate`, where the contract is written."""
    check_interpolation(attributes, faces, fragments)
    batch, (height, width) = fragments.face_index.shape[:-2], fragments.face_index.shape[-2:]
    n_channels = attributes.shape[-1]
    if attributes.dim() == 2:
        attributes = attributes.expand(*batch, *attributes.shape)
    face_index = fragments.face_index.reshape(-1, height, width)
    image, row, column = torch.nonzero(shows_a_face(face_index, faces, attributes.shape[-2]), as_tuple=True)
    vertex = faces.long()[face_index[image, row, column].long()]  # (n, 3)
    corners = attributes.reshape(-1, *attributes.shape[-2:])[image[:, None], vertex]  # (n, 3, C)
    bary = fragments.bary.reshape(-1, height, width, 3)[image, row, column]
    seen = (widened(bary)[..., None] * widened(corners)).sum(1)
    out = seen.new_zeros(batch.numel(), height, width, n_channels).index_put((image, row, column), seen)
    return out.reshape(*batch, height, width, n_channels).to(result_dtype(attributes, bary))


def shows_a_face(
    face_index: Tensor,  # (...)
    faces: Tensor,  # (F, 3)
    n_verts: int,
) -> Tensor:  # (...)
    """Where a face is whose id and whose vertices' ids are all in range."""
    n_faces = len(faces)
    if n_faces == 0:
        return torch.zeros_like(face_index, dtype=torch.bool)
    has_vertices = ((faces >= 0) & (faces < n_verts)).all(-1)  # (F,)
    return (face_index >= 0) & (face_index < n_faces) & has_vertices[face_index.clamp(0, n_faces - 1).long()]


def check_interpolation(attributes: Tensor, faces: Tensor, fragments: Fragments) -> None:
    """Raises TypeError or ValueError unless the three belong together."""
    if not isinstance(fragments, Fragments):
        raise TypeError(f"fragments must be what rasterize returned, Fragments, got {describe(fragments)}")
    face_index, bary = fragments.face_index, fragments.bary
    for name, value in (("attributes", attributes), ("fragments.bary", bary)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {describe(value)}")
    for name, value in (("faces", faces), ("fragments.face_index", face_index)):
        if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be an int32 or int64 tensor, got {describe(value)}")
    if face_index.dtype != torch.int32 or face_index.dim() < 2:
        raise ValueError(
            f"fragments.face_index is {face_index.dtype} {tuple(face_index.shape)}, expected int32 (*batch, H, W)"
        )
    if bary.shape != (*face_index.shape, 3):
        raise ValueError(f"fragments.bary has shape {tuple(bary.shape)}, expected {(*face_index.shape, 3)}")
    batch = tuple(face_index.shape[:-2])
    if attributes.dim() < 2 or (attributes.dim() > 2 and tuple(attributes.shape[:-2]) != batch):
        raise ValueError(f"attributes has shape {tuple(attributes.shape)}, expected (V, C) or {(*batch, 'V', 'C')}")
    if faces.dim() != 2 or faces.shape[-1] != 3:
        raise ValueError(f"faces has shape {tuple(faces.shape)}, expected (F, 3)")
    check_same_dtype("attributes", attributes, "fragments.bary", bary)
    for name, value in (("faces", faces), ("fragments.face_index", face_index), ("fragments.bary", bary)):
        if value.device != attributes.device:
            raise ValueError(f"{name} is on {value.device}, attributes on {attributes.device}")
