"""Silhouettes as one op: triangles in, a mask out, and a gradient that says where to grow or shrink it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dhpe_fast.ops import _library  # noqa: F401  (registers torch.ops.dhpe_fast)
from dhpe_fast.ops._derivatives import register_derivative
from dhpe_fast.ops._fake import check_raster_shapes, check_shape
from dhpe_fast.ops._mesh_arguments import (
    check_face_range,
    check_mesh,
    flatten_batch,
    image_height_width,
    result_dtype,
)
from dhpe_fast.reference._arguments import checked_eps, checked_sigma, checked_z_near


def silhouette(
    verts_px: Tensor,  # (*batch, V, 3)
    faces: Tensor,  # (F, 3)
    image_size: int | tuple[int, int],
    *,
    mode: str = "nmr",
    z_near: float | None = None,
    fill_back: bool = True,
    eps: float = 1e-4,
    sigma: float = 1.0,
) -> Tensor:
    """Draws the mask of a mesh: how far a pixel is covered by the union of its faces.

    Convention: as :func:`dhpe_fast.ops.rasterize`; x and y in pixels, x right, y down, the centre of pixel
    (i, j) at (j + 0.5, i + 0.5), z away from the camera, front faces counter-clockwise on the screen.

    Differentiable in: verts_px (once). z receives 0. The modes differ in the image and in its gradient:

    ``"nmr"``: a hard mask, 1 where a face covers the pixel's centre, else 0. It is piecewise constant; its derivative
    is replaced by that of Kato et al., "Neural 3D Mesh Renderer" (CVPR 2018), as computed by its public code,
    neural_renderer. Along its row and its column, every pixel which should change (the loss falls if an
    uncovered one is covered, or a covered one uncovered) pulls on each edge of the visible faces with the
    inverse of the distance by which an end point would have to move; eps is added to that distance in
    normalised device coordinates, where the image spans [-1, 1]. Equal to neural_renderer without
    anti-aliasing, but for: images that are not square (each axis has its own unit), pixel centres exactly on
    an edge (only top and left edges cover them), and edges parallel to the scan direction (they divide by
    zero there and receive nothing here). Units are those of the op: the gradient with respect to pixels.
    Use it to follow the papers built on it, or for a start so far off that the two masks hardly overlap.

    ``"edge"``: the area of the pixel's square which the union of the projected faces covers, exact up to rounding: its
    sum is the union's area, without bias. The gradient is its derivative, which lives where the outline runs:
    edges inside the union, shared by faces side by side or behind others, receive exactly nothing. Where an edge
    lies exactly between two rows or columns of pixels, moving it has one derivative either way; that of moving it
    down or to the right is taken. Computed in float64 inside. Cost grows with pixels, faces and contour edges; also
    with crossings of such edges times those in a row. That is nothing for a surface. Of random triangles as large as an
    image of 224 pixels, the CPU draws a thousand in a tenth of a second and ten thousand in about one; on CUDA, where
    one thread sweeps such a row as it is, a thousand take seconds.
    Use it to refine what already overlaps the target: the optimum is the exact one.

    ``"soft"``: 1 - prod_j (1 - sigmoid(+- d_j^2 / sigma)) over faces j, after Liu et al., "Soft Rasterizer"
    (ICCV 2019); d_j is the distance in pixels from the pixel's centre to the outline of face j, + inside of it,
    - outside. It is no mask of the mesh: it bleeds over the outline, is 1/2 on a lone face's outline and more where
    faces meet there, and thin faces do not reach 1. Its gradient is exact and reaches a few sqrt(sigma) beyond the
    outline. Faces farther than sqrt(16 sigma) (float32) or sqrt(36 sigma) (float64) px are skipped; each would change
    1 - mask by less than 1.2e-7 or 2.4e-16 of its value. sigma is in square pixels; the paper's, in units in which
    an image of S x S spans [-1, 1], is sigma 4 / S^2: its 1e-4 is 1.25 at 224 pixels. Use a large, shrinking sigma
    for smooth first steps.

    Args:
        verts_px: vertices of a batch of meshes; the batch may have any rank and may be empty.
        faces: vertex ids, int32 or int64, common to the batch.
        image_size: side, or (height, width); 1 to 16384 pixels each.
        mode: "nmr", "edge" or "soft".
        z_near: None for an orthographic view. A number, at least 1e-6, for a perspective one: faces with a
            vertex nearer than this are dropped, and "nmr" finds the nearest face with depth linear in space.
        fill_back: draws back faces too ("nmr": as if each came with its reversed copy); False drops them.
        eps: of "nmr", see above.
        sigma: of "soft", see above; 1e-6 to 1e6.

    Returns:
        The mask (*batch, H, W) in the dtype of verts_px, within [0, 1]; half types as :mod:`dhpe_fast.ops` says.

    Raises:
        TypeError: an argument has the wrong type or dtype. ValueError: shapes or devices do not fit; mode is
            unknown; image_size, z_near, eps, sigma or an index in faces is out of range.
    """
    check_mesh(verts_px, faces)
    height, width = image_height_width(image_size)
    if mode not in _MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(map(repr, _MODES))}")
    z_near = None if z_near is None else checked_z_near(z_near, perspective=True)
    options = _Options(z_near, fill_back, checked_eps(eps), checked_sigma(sigma))
    try:
        mask = _MODES[mode](flatten_batch(verts_px), faces, (height, width), options)
    except RuntimeError:
        check_face_range(faces, verts_px.shape[-2])
        raise
    return mask.reshape(*verts_px.shape[:-2], height, width).to(result_dtype(verts_px))


class _Options(NamedTuple):
    z_near: float | None
    fill_back: bool
    eps: float
    sigma: float


def _nmr(verts_px: Tensor, faces: Tensor, size: tuple[int, int], o: _Options) -> Tensor:
    return torch.ops.dhpe_fast.silhouette_nmr(verts_px, faces, *size, o.z_near, o.fill_back, o.eps)[0]


def _edge(verts_px: Tensor, faces: Tensor, size: tuple[int, int], o: _Options) -> Tensor:
    return torch.ops.dhpe_fast.silhouette_edge(verts_px, faces, *size, o.z_near, o.fill_back)


def _soft(verts_px: Tensor, faces: Tensor, size: tuple[int, int], o: _Options) -> Tensor:
    return torch.ops.dhpe_fast.silhouette_soft(verts_px, faces, *size, o.z_near, o.fill_back, o.sigma)[0]


_MODES: dict[str, Callable[..., Tensor]] = {"nmr": _nmr, "edge": _edge, "soft": _soft}


@torch.library.register_fake("dhpe_fast::silhouette_nmr")
def _silhouette_nmr_fake(verts_px, faces, height, width, z_near, fill_back, eps):
    check_raster_shapes("silhouette_nmr", verts_px, faces, height, width)
    mask = verts_px.new_empty(verts_px.shape[0], height, width)
    return mask, torch.empty_like(mask, dtype=torch.int32)


@torch.library.register_fake("dhpe_fast::silhouette_edge")
def _silhouette_edge_fake(verts_px, faces, height, width, z_near, fill_back):
    check_raster_shapes("silhouette_edge", verts_px, faces, height, width)
    return verts_px.new_empty(verts_px.shape[0], height, width)


@torch.library.register_fake("dhpe_fast::silhouette_soft")
def _silhouette_soft_fake(verts_px, faces, height, width, z_near, fill_back, sigma):
    check_raster_shapes("silhouette_soft", verts_px, faces, height, width)
    mask = verts_px.new_empty(verts_px.shape[0], height, width)
    return mask, torch.empty_like(mask)


@torch.library.register_fake("dhpe_fast::_silhouette_nmr_backward")
def _silhouette_nmr_backward_fake(grad_mask, face_index, verts_px, faces, *options):
    _check_backward_shapes("_silhouette_nmr_backward", verts_px, faces, face_index=face_index, grad_mask=grad_mask)
    return verts_px.new_empty(verts_px.shape)


@torch.library.register_fake("dhpe_fast::_silhouette_edge_backward")
def _silhouette_edge_backward_fake(grad_mask, verts_px, faces, *options):
    _check_backward_shapes("_silhouette_edge_backward", verts_px, faces, grad_mask=grad_mask)
    return verts_px.new_empty(verts_px.shape)


@torch.library.register_fake("dhpe_fast::_silhouette_soft_backward")
def _silhouette_soft_backward_fake(grad_mask, missed, verts_px, faces, *options):
    _check_backward_shapes("_silhouette_soft_backward", verts_px, faces, grad_mask=grad_mask, missed=missed)
    return verts_px.new_empty(verts_px.shape)


def _check_backward_shapes(op: str, verts_px: Tensor, faces: Tensor, **images: Tensor) -> None:
    pixels = verts_px.shape[0], *next(iter(images.values())).shape[1:]
    check_raster_shapes(op, verts_px, faces, *pixels[1:])
    for name, image in images.items():
        check_shape(op, name, image, pixels)


def _setup_nmr(ctx, inputs, output) -> None:
    verts_px, faces, _, _, _, _, ctx.eps = inputs
    _mask, face_index = output
    ctx.save_for_backward(face_index, verts_px, faces)
    ctx.mark_non_differentiable(face_index)
    ctx.set_materialize_grads(True)


def _backward_nmr(ctx, grad_mask, _grad_face_index):
    grad_verts = torch.ops.dhpe_fast._silhouette_nmr_backward(
        grad_mask, *ctx.saved_tensors, ctx.eps, torch.are_deterministic_algorithms_enabled()
    )
    return grad_verts, *(None,) * 6


def _setup_edge(ctx, inputs, output) -> None:
    verts_px, faces, _, _, *ctx.options = inputs
    ctx.save_for_backward(verts_px, faces)


def _backward_edge(ctx, grad_mask):
    grad_verts = torch.ops.dhpe_fast._silhouette_edge_backward(
        grad_mask, *ctx.saved_tensors, *ctx.options, torch.are_deterministic_algorithms_enabled()
    )
    return grad_verts, *(None,) * 5


def _setup_soft(ctx, inputs, output) -> None:
    verts_px, faces, _, _, *ctx.options = inputs
    _mask, missed = output
    ctx.save_for_backward(missed, verts_px, faces)
    ctx.mark_non_differentiable(missed)
    ctx.set_materialize_grads(True)


def _backward_soft(ctx, grad_mask, _grad_missed):
    grad_verts = torch.ops.dhpe_fast._silhouette_soft_backward(
        grad_mask, *ctx.saved_tensors, *ctx.options, torch.are_deterministic_algorithms_enabled()
    )
    return grad_verts, *(None,) * 6


register_derivative("silhouette_nmr", _backward_nmr, _setup_nmr, name="silhouette", has_twin=False)
register_derivative("silhouette_edge", _backward_edge, _setup_edge, name="silhouette")
register_derivative("silhouette_soft", _backward_soft, _setup_soft, name="silhouette")
