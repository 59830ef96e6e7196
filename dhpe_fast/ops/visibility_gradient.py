"""The gradient of a rendered image where outlines move, as one op."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.ops import _library  # noqa: F401  (registers torch.ops.dhpe_fast)
from dhpe_fast.ops._derivatives import register_derivative
from dhpe_fast.ops._fake import check_raster_shapes, check_shape
from dhpe_fast.ops._mesh_arguments import check_face_range, check_mesh, flatten_batch, result_dtype
from dhpe_fast.reference._arguments import checked_eps
from dhpe_fast.reference.visibility_gradient import check_image


def visibility_gradient(
    image: Tensor,  # (*batch, H, W, C)
    face_index: Tensor,  # (*batch, H, W)
    verts_px: Tensor,  # (*batch, V, 3)
    faces: Tensor,  # (F, 3)
    *,
    eps: float = 1e-4,
) -> Tensor:  # (*batch, H, W, C)
    """Returns the image as it is, and tells the vertices how it would change if the faces' outlines moved.

    A rendered image jumps where one face ends and another, or the background, begins; no derivative of what the
    pixels show sees that. As in Kato et al., "Neural 3D Mesh Renderer" (CVPR 2018), the jump is replaced by a pull:
    along its row and its column, every pixel d whose loss falls if it takes the colour of a pixel r across an edge,
    by delta = sum over channels of (I(d) - I(r)) dL/dI(d) > 0, pulls on that edge with delta over the distance by
    which an end point would have to move for that; eps is added to the distance in normalised device coordinates,
    where the image spans [-1, 1]. Pixels outside of the face may take the colour just inside of its edge, and
    pixels of the face the colour just outside. With one channel, the mask, this is
    :func:`dhpe_fast.ops.silhouette` in mode "nmr", which is faster.

    Convention: as :func:`dhpe_fast.ops.rasterize`.

    Differentiable in: verts_px (once; z receives 0), and image, whose gradient passes unchanged. The other
    derivatives of the image, of its texture or its depth, are the caller's: colours that were interpolated with
    barycentrics bring a gradient of the vertices of their own, which adds up with this one.

    Args:
        image: what was drawn, background included; up to 64 channels.
        face_index: the face every pixel shows, -1 for the background, as of :func:`dhpe_fast.ops.rasterize`.
        verts_px: the vertices that were drawn.
        faces: their ids, int32 or int64.
        eps: see above.

    Raises:
        TypeError: an argument has the wrong type or dtype. ValueError: shapes, dtypes or devices do not fit; eps or
            an index in faces is out of range.
    """
    check_mesh(verts_px, faces)
    check_image(image, face_index, verts_px)
    eps = checked_eps(eps)
    flat = flatten_batch(verts_px)
    n_images, (height, width, n_channels) = flat.shape[0], image.shape[-3:]
    try:
        attached = torch.ops.dhpe_fast.visibility_gradient(
            image.reshape(n_images, height, width, n_channels).to(flat.dtype),
            face_index.reshape(n_images, height, width),
            flat,
            faces,
            eps,
        )
    except RuntimeError:
        check_face_range(faces, verts_px.shape[-2])
        raise
    return attached.reshape(image.shape).to(result_dtype(image))


def _check_shapes(op: str, image: Tensor, face_index: Tensor, verts_px: Tensor, faces: Tensor) -> None:
    """What csrc/raster/visibility_tensors.h checks."""
    pixels = verts_px.shape[0], *image.shape[1:3]
    check_raster_shapes(op, verts_px, faces, *pixels[1:])
    check_shape(op, "image", image, (*pixels, image.shape[-1]))
    check_shape(op, "face_index", face_index, pixels)


@torch.library.register_fake("dhpe_fast::visibility_gradient")
def _visibility_gradient_fake(image, face_index, verts_px, faces, eps):
    _check_shapes("visibility_gradient", image, face_index, verts_px, faces)
    return torch.empty_like(image)  # a copy, which keeps the strides


@torch.library.register_fake("dhpe_fast::_visibility_gradient_backward")
def _visibility_gradient_backward_fake(grad, image, face_index, verts_px, faces, eps, deterministic):
    _check_shapes("_visibility_gradient_backward", image, face_index, verts_px, faces)
    check_shape("_visibility_gradient_backward", "grad", grad, tuple(image.shape))
    return verts_px.new_empty(verts_px.shape)


def _setup_context(ctx, inputs, output) -> None:
    image, face_index, verts_px, faces, ctx.eps = inputs
    ctx.save_for_backward(image, face_index, verts_px, faces)


def _backward(ctx, grad):
    grad_verts = None
    if ctx.needs_input_grad[2]:
        grad_verts = torch.ops.dhpe_fast._visibility_gradient_backward(
            grad, *ctx.saved_tensors, ctx.eps, torch.are_deterministic_algorithms_enabled()
        )
    return grad, None, grad_verts, None, None


register_derivative("visibility_gradient", _backward, _setup_context, has_twin=False)
