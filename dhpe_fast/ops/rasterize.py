"""Rasterization as one op: triangles in, what every pixel sees out."""

from __future__ import annotations

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
from dhpe_fast.reference._arguments import checked_z_near
from dhpe_fast.reference.rasterize import Fragments


def rasterize(
    verts_px: Tensor,  # (*batch, V, 3)
    faces: Tensor,  # (F, 3)
    image_size: int | tuple[int, int],
    *,
    perspective: bool = False,
    z_near: float | None = None,
    cull_backfaces: bool = False,
) -> Fragments:
    """Finds the nearest face in every pixel, with its barycentric coordinates and its depth.

    Convention: x and y in pixels, x right, y down; the pixel in row i and column j has its centre at (j +
    0.5, i + 0.5). z points away from the camera, in any unit. The nearest z wins, the lower face index in
    a tie. A pixel belongs to a face if its centre lies inside or on a top or left edge: two faces that
    share an edge never both draw a pixel there and never leave a gap. A face is front-facing if its
    vertices run counter-clockwise as seen on the screen, (v1 - v0) x (v2 - v0) having a negative z:
    outward right-hand normals then point to the camera.

    Nothing is drawn by faces of zero area, by faces with a vertex that is NaN, infinite, more than 2**24
    pixels or 1e12 units of z away from the origin, and by faces with a vertex nearer than z_near: nothing is
    clipped. CUDA also skips faces with an index out of range, which the CPU reports.

    Differentiable in: verts_px, through bary and depth (once). face_index is piecewise constant, so the
    gradient does not see a face's outline; for that see :func:`dhpe_fast.ops.silhouette`. float32 and
    float64; half types as :mod:`dhpe_fast.ops` says.

    Args:
        verts_px: vertices of a batch of meshes; the batch may have any rank and may be empty.
        faces: vertex ids, int32 or int64, common to the batch.
        image_size: side, or (height, width); 1 to 16384 pixels each.
        perspective: if true, bary and depth are linear in space (x and y come from a perspective projection
            of positive z); if false, in the image.
        z_near: drops faces with a vertex nearer than this; None is 1e-6 in perspective, where it may not be
            less, and no test otherwise.
        cull_backfaces: drops back-facing faces.

    Returns:
        Fragments(face_index (*batch, H, W) int32 with -1 where no face is, bary (*batch, H, W, 3) and
        depth (*batch, H, W), both 0 there).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not fit, or image_size, z_near or an index in faces is out of range.
    """
    check_mesh(verts_px, faces)
    height, width = image_height_width(image_size)
    z_near = checked_z_near(z_near, perspective)
    try:
        bary, depth, face_index = torch.ops.dhpe_fast.rasterize(
            flatten_batch(verts_px), faces, height, width, perspective, z_near, cull_backfaces
        )
    except RuntimeError:
        check_face_range(faces, verts_px.shape[-2])
        raise
    batch, dtype = verts_px.shape[:-2], result_dtype(verts_px)
    return Fragments(
        face_index.reshape(*batch, height, width),
        bary.reshape(*batch, height, width, 3).to(dtype),
        depth.reshape(*batch, height, width).to(dtype),
    )


@torch.library.register_fake("dhpe_fast::rasterize")
def _rasterize_fake(verts_px, faces, height, width, perspective, z_near, cull_backfaces):
    check_raster_shapes("rasterize", verts_px, faces, height, width)
    n_images = verts_px.shape[0]
    return (
        verts_px.new_empty(n_images, height, width, 3),
        verts_px.new_empty(n_images, height, width),
        verts_px.new_empty(n_images, height, width, dtype=torch.int32),
    )


@torch.library.register_fake("dhpe_fast::_rasterize_backward")
def _rasterize_backward_fake(grad_bary, grad_depth, face_index, verts_px, faces, *options):
    pixels = verts_px.shape[0], *face_index.shape[1:]
    check_raster_shapes("_rasterize_backward", verts_px, faces, *pixels[1:])
    check_shape("_rasterize_backward", "grad_bary", grad_bary, (*pixels, 3))
    check_shape("_rasterize_backward", "grad_depth", grad_depth, pixels)
    check_shape("_rasterize_backward", "face_index", face_index, pixels)
    return verts_px.new_empty(verts_px.shape)


def _setup_context(ctx, inputs, output) -> None:
    verts_px, faces, _, _, *ctx.options = inputs
    _bary, _depth, face_index = output
    ctx.save_for_backward(face_index, verts_px, faces)
    ctx.mark_non_differentiable(face_index)
    ctx.set_materialize_grads(True)


def _backward(ctx, grad_bary, grad_depth, _grad_face_index):
    grad_verts = torch.ops.dhpe_fast._rasterize_backward(
        grad_bary, grad_depth, *ctx.saved_tensors, *ctx.options, torch.are_deterministic_algorithms_enabled()
    )
    return grad_verts, *(None,) * 6


register_derivative("rasterize", _backward, _setup_context)
