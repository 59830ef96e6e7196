"""Silhouettes as one op: triangles in, a mask out, and a gradient that says where to grow or shrink it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dhpe_fast.ops import _library  # noqa: F401  (registers torch.ops.dhpe_fast)
from dhpe_fast.ops._mesh_arguments import check_face_range, check_mesh, flatten_batch, image_height_width
from dhpe_fast.reference.rasterize import MIN_Z_NEAR


def silhouette(
    verts_px: Tensor,  # (*batch, V, 3)
    faces: Tensor,  # (F, 3)
    image_size: int | tuple[int, int],
    *,
    mode: str = "nmr",
    z_near: float | None = None,
    fill_back: bool = True,
    eps: float = 1e-4,
) -> Tensor:
    """Draws the mask of a mesh: 1 where a face covers the pixel's centre, else 0.

    Convention: as :func:`dhpe_fast.ops.rasterize`; x and y in pixels, x right, y down, the centre of pixel
    (i, j) at (j + 0.5, i + 0.5), z away from the camera, front faces counter-clockwise on the screen.

    Differentiable in: verts_px (once). A mask is piecewise constant, so its derivative is replaced by the
    mode's:

    ``"nmr"``: Kato et al., "Neural 3D Mesh Renderer" (CVPR 2018), as computed by its public code,
    neural_renderer. Along its row and its column, every pixel which should change (the loss falls if an
    uncovered one is covered, or a covered one uncovered) pulls on each edge of the visible faces with the
    inverse of the distance by which an end point would have to move; eps is added to that distance in
    normalised device coordinates, where the image spans [-1, 1]. Equal to neural_renderer without
    anti-aliasing, but for: images that are not square (each axis has its own unit), pixel centres exactly on
    an edge (only top and left edges cover them), and edges parallel to the scan direction (they divide by
    zero there and receive nothing here). Units are those of the op: the gradient with respect to pixels. z
    receives 0.

    Args:
        verts_px: vertices of a batch of meshes; the batch may have any rank and may be empty.
        faces: vertex ids, int32 or int64, common to the batch.
        image_size: side, or (height, width); 1 to 16384 pixels each.
        mode: which gradient.
        z_near: None for an orthographic view. A number, at least 1e-6, for a perspective one: faces with a
            vertex nearer than this are dropped, and the nearest face is found with depth linear in space.
        fill_back: draws back faces too, as if each came with its reversed copy; False drops them.
        eps: see above.

    Returns:
        The mask (*batch, H, W) in the dtype of verts_px.

    Raises:
        TypeError: an argument has the wrong type or dtype. ValueError: shapes or devices do not fit; mode is
            unknown; image_size, z_near, eps or an index in faces is out of range.
    """
    check_mesh(verts_px, faces)
    height, width = image_height_width(image_size)
    if mode not in _MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(map(repr, _MODES))}")
    if z_near is not None and not (math.isfinite(z_near) and z_near >= MIN_Z_NEAR):
        raise ValueError(f"z_near is {z_near}, expected a number of at least {MIN_Z_NEAR:g} or None")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps is {eps}, expected a positive number")
    try:
        mask = _MODES[mode](flatten_batch(verts_px), faces, height, width, z_near, fill_back, eps)
    except RuntimeError:
        check_face_range(faces, verts_px.shape[-2])
        raise
    return mask.reshape(*verts_px.shape[:-2], height, width).to(verts_px.dtype)


def _nmr(verts_px, faces, height, width, z_near, fill_back, eps) -> Tensor:
    return torch.ops.dhpe_fast.silhouette_nmr(verts_px, faces, height, width, z_near, fill_back, eps)[0]


_MODES: dict[str, Callable[..., Tensor]] = {"nmr": _nmr}


@torch.library.register_fake("dhpe_fast::silhouette_nmr")
def _silhouette_nmr_fake(verts_px, faces, height, width, z_near, fill_back, eps):
    mask = verts_px.new_empty(verts_px.shape[0], height, width)
    return mask, torch.empty_like(mask, dtype=torch.int32)


@torch.library.register_fake("dhpe_fast::_silhouette_nmr_backward")
def _silhouette_nmr_backward_fake(grad_mask, face_index, verts_px, faces, eps, deterministic):
    return verts_px.new_empty(verts_px.shape)


def _setup_context(ctx, inputs, output) -> None:
    verts_px, faces, _, _, _, _, ctx.eps = inputs
    _mask, face_index = output
    ctx.save_for_backward(face_index, verts_px, faces)
    ctx.mark_non_differentiable(face_index)
    ctx.set_materialize_grads(True)


def _backward(ctx, grad_mask, _grad_face_index):
    grad_verts = torch.ops.dhpe_fast._silhouette_nmr_backward(
        grad_mask, *ctx.saved_tensors, ctx.eps, torch.are_deterministic_algorithms_enabled()
    )
    return grad_verts, *(None,) * 6


def _refuse_double_backward(ctx, *grads):
    raise NotImplementedError("silhouette is differentiable once: its gradient is piecewise constant in the mask")


torch.library.register_autograd("dhpe_fast::silhouette_nmr", _backward, setup_context=_setup_context)
torch.library.register_autograd("dhpe_fast::_silhouette_nmr_backward", _refuse_double_backward)
