"""Attribute interpolation as one op: values of vertices in, an image out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dhpe_fast.ops._derivatives import register_derivative
from dhpe_fast.ops._fake import check_shape
from dhpe_fast.ops._library import check_kernels
from dhpe_fast.reference._arguments import result_dtype, widened
from dhpe_fast.reference.interpolate import check_interpolation, shows_a_face
from dhpe_fast.reference.rasterize import Fragments


def interpolate(
    attributes: Tensor,  # (*batch, V, C), or (V, C) common to the batch
    faces: Tensor,  # (F, 3)
    fragments: Fragments,  # of (*batch, H, W) pixels
) -> Tensor:  # (*batch, H, W, C)
    """Draws any attribute of the vertices: colours, normals, texture coordinates, positions.

    Every pixel receives sum_k bary_k attributes[faces[face_index, k]], and 0 where it sees no face. The faces may be
    others than those rasterized as long as they come in the same order: those of a texture's seams, for instance,
    which index texture coordinates instead of positions.

    Differentiable in: attributes and fragments.bary (once), and so through
    :func:`dhpe_fast.ops.rasterize` in the vertices. float32 and float64; half types as :mod:`dhpe_fast.ops` says.

    Args:
        attributes: C values a vertex.
        faces: vertex ids, int32 or int64; an id out of range makes its face empty.
        fragments: what :func:`dhpe_fast.ops.rasterize` returned.

    Raises:
        TypeError: an argument has the wrong type or dtype. ValueError: shapes, dtypes or devices do not fit.
    """
    check_interpolation(attributes, faces, fragments)
    check_kernels("attributes", attributes)
    face_index, bary = fragments.face_index, fragments.bary
    batch, (height, width) = face_index.shape[:-2], face_index.shape[-2:]
    dtype = result_dtype(attributes, bary)
    attributes, bary = widened(attributes), widened(bary)
    n_images = math.prod(batch)
    shared = attributes.dim() == 2
    image = torch.ops.dhpe_fast.interpolate(
        attributes.reshape(1 if shared else n_images, *attributes.shape[-2:]),
        faces,
        face_index.reshape(n_images, height, width),
        bary.reshape(n_images, height, width, 3),
    )
    return image.reshape(*batch, height, width, attributes.shape[-1]).to(dtype)


def _check_shapes(op: str, attributes: Tensor, faces: Tensor, face_index: Tensor, bary: Tensor) -> None:
    """What csrc/raster/interpolate_tensors.h checks."""
    check_shape(op, "face_index", face_index, (face_index.shape[0], *face_index.shape[-2:]))
    n_images = 1 if attributes.shape[0] == 1 else face_index.shape[0]
    check_shape(op, "attributes", attributes, (n_images, *attributes.shape[-2:]))
    check_shape(op, "bary", bary, (*face_index.shape, 3))
    check_shape(op, "faces", faces, (faces.shape[0], 3))


@torch.library.register_fake("dhpe_fast::interpolate")
def _interpolate_fake(attributes, faces, face_index, bary):
    _check_shapes("interpolate", attributes, faces, face_index, bary)
    return attributes.new_empty(*face_index.shape, attributes.shape[-1])


@torch.library.register_fake("dhpe_fast::_interpolate_backward")
def _interpolate_backward_fake(grad, attributes, faces, face_index, bary, of_attributes, of_bary):
    _check_shapes("_interpolate_backward", attributes, faces, face_index, bary)
    check_shape("_interpolate_backward", "grad", grad, (*face_index.shape, attributes.shape[-1]))
    n_images = face_index.shape[0]
    grad_attributes = attributes.new_empty(n_images if of_attributes else 0, *attributes.shape[1:])
    return grad_attributes, bary.new_empty(n_images if of_bary else 0, *bary.shape[1:])


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    attributes, faces, face_index, bary = ctx.saved_tensors
    of_attributes, _, _, of_bary = ctx.needs_input_grad
    # The kernel adds up by atomics, in any order; torch has an ordered addition.
    in_order = grad.is_cuda and torch.are_deterministic_algorithms_enabled()
    grad_attributes, grad_bary = torch.ops.dhpe_fast._interpolate_backward(
        grad, *ctx.saved_tensors, of_attributes and not in_order, of_bary
    )
    if of_attributes and in_order:
        grad_attributes = _ordered_gradient(grad, attributes.shape[1], faces, face_index, bary)
    if of_attributes and attributes.shape[0] == 1:
        grad_attributes = grad_attributes.sum(0, keepdim=True)
    return grad_attributes if of_attributes else None, None, None, grad_bary if of_bary else None


def _ordered_gradient(
    grad: Tensor,  # (B, H, W, C)
    n_verts: int,
    faces: Tensor,  # (F, 3)
    face_index: Tensor,  # (B, H, W)
    bary: Tensor,  # (B, H, W, 3)
) -> Tensor:  # (B, V, C)
    image, row, column = torch.nonzero(shows_a_face(face_index, faces, n_verts), as_tuple=True)
    vertex = faces.long()[face_index[image, row, column].long()]  # (n, 3)
    share = bary[image, row, column][..., None] * grad[image, row, column][:, None]  # (n, 3, C)
    total = grad.new_zeros(len(face_index), n_verts, grad.shape[-1])
    return total.index_put_((image[:, None].expand_as(vertex), vertex), share, accumulate=True)


register_derivative("interpolate", _backward, _setup_context)
