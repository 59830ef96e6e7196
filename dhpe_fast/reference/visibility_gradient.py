"""The gradient of rendered images where outlines move, after Kato et al., Neural 3D Mesh Renderer (CVPR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.reference._arguments import (
    check_face_range,
    check_mesh,
    checked_eps,
    describe,
    result_dtype,
    widened,
    widened_dtype,
)

_VALUES_PER_CHUNK = 1 << 22


def visibility_gradient(
    image: Tensor,  # (*batch, H, W, C)
    face_index: Tensor,  # (*batch, H, W)
    verts_px: Tensor,  # (*batch, V, 3)
    faces: Tensor,  # (F, 3)
    *,
    eps: float = 1e-4,
) -> Tensor:  # (*batch, H, W, C)
    """The twin of :func:`dhpe_fast.ops.visibility_gradient`, where the contract is written."""
    check_mesh(verts_px, faces)
    check_image(image, face_index, verts_px)
    check_face_range(faces, verts_px.shape[-2])
    eps = checked_eps(eps)
    work = widened(verts_px)
    n_images = verts_px.shape[:-2].numel()
    attached = _Attach.apply(
        image.to(work.dtype).reshape(n_images, *image.shape[-3:]),
        face_index.reshape(n_images, *image.shape[-3:-1]),
        work.reshape(n_images, *verts_px.shape[-2:]),
        faces,
        eps,
    )
    return attached.reshape(image.shape).to(result_dtype(image))


def check_image(image: Tensor, face_index: Tensor, verts_px: Tensor) -> None:
    """Raises TypeError or ValueError unless the image belongs to the vertices."""
    batch = tuple(verts_px.shape[:-2])
    if not isinstance(image, Tensor) or widened_dtype(image.dtype) != widened_dtype(verts_px.dtype):
        raise TypeError(f"image must be a tensor of the dtype of verts_px, {verts_px.dtype}, got {describe(image)}")
    if not isinstance(face_index, Tensor) or face_index.dtype != torch.int32:
        raise TypeError(f"face_index must be an int32 tensor, got {describe(face_index)}")
    if image.dim() < 3 or tuple(image.shape[:-3]) != batch or image.shape[-1] > 64:
        accepted = f"{(*batch, 'H', 'W', 'C')} with C of up to 64"
        raise ValueError(f"image has shape {tuple(image.shape)}, expected {accepted}")
    if face_index.shape != image.shape[:-1]:
        raise ValueError(f"face_index has shape {tuple(face_index.shape)}, expected {tuple(image.shape[:-1])}")
    for name, value in (("image", image), ("face_index", face_index)):
        if value.device != verts_px.device:
            raise ValueError(f"{name} is on {value.device}, verts_px on {verts_px.device}")


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, face_index, verts_px, faces, eps):
        ctx.save_for_backward(image, face_index, verts_px, faces)
        ctx.eps = eps
        return image.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        image, face_index, verts_px, faces = ctx.saved_tensors
        grad_verts = torch.zeros_like(verts_px)
        for i in range(len(verts_px)):
            # Scanned by columns, an edge moves in y, by rows in x: rows and columns, x and y change places.
            for axis in (0, 1):
                by_lines = (t[i].transpose(0, 1) if axis else t[i] for t in (image, grad, face_index))
                move = verts_px[i, :, axis] - 0.5
                scan = verts_px[i, :, 1 - axis] - 0.5
                grad_verts[i, :, axis] = _scan(*by_lines, scan, move, faces.long(), ctx.eps)
        return grad, None, grad_verts, None, None


def _scan(
    image: Tensor,  # (S, M, C), scan lines first
    grad: Tensor,  # (S, M, C)
    face_index: Tensor,  # (S, M)
    scan: Tensor,  # (V,) where a vertex lies across the lines, counted from the centre of line 0
    move: Tensor,  # (V,) and along them
    faces: Tensor,  # (F, 3)
    eps: float,
) -> Tensor:  # (V,) dL/dmove
    n_lines, length, n_channels = image.shape
    seen = face_index[face_index >= 0].unique().long()
    lines = torch.arange(n_lines, device=scan.device)
    out = torch.zeros_like(move)
    for k in range(3):
        a, b, c = (faces[seen, (k + j) % 3] for j in range(3))
        crosses = (lines >= torch.minimum(scan[a], scan[b])[:, None]) & (
            lines <= torch.maximum(scan[a], scan[b])[:, None]
        )
        # An edge along the lines' normal crosses none of them at a single point and receives nothing.
        edge, line = torch.nonzero(crosses & (scan[a] != scan[b])[:, None], as_tuple=True)
        a, b, c, face = a[edge], b[edge], c[edge], seen[edge]
        t_b = (line - scan[a]) / (scan[b] - scan[a])
        crossing = move[a] + t_b * (move[b] - move[a])
        # Outwards is where the third vertex is not, seen from the line through the edge.
        third = move[a] + (move[b] - move[a]) / (scan[b] - scan[a]) * (scan[c] - scan[a])
        outward = torch.where(move[c] < third, 1, -1)
        for part in torch.arange(len(edge), device=scan.device).split(
            max(1, _VALUES_PER_CHUNK // (length * n_channels))
        ):
            at = line[part]
            pulls = _pulls(image[at], grad[at], face_index[at] == face[part, None], crossing[part], outward[part])
            d = torch.arange(length, device=scan.device)
            for vertex, t in ((a[part], 1 - t_b[part]), (b[part], t_b[part])):
                # |D| = |d - c| / t, and dL/dm = -+ delta / (|D| + eps), the sign that of the direction of the move
                reach = (d - crossing[part, None]).abs() + eps * length / 2 * t[:, None]
                moved = torch.where(pulls != 0, -pulls * t[:, None] / reach.clamp(min=1e-20), 0)
                out.index_add_(0, vertex, moved.sum(1))
    return out


def _pulls(
    image: Tensor,  # (n, M, C) the lines of n crossings
    grad: Tensor,  # (n, M, C)
    is_own: Tensor,  # (n, M) pixels of the crossing's face
    crossing: Tensor,  # (n,)
    outward: Tensor,  # (n,)
) -> Tensor:  # (n, M)
    """+delta where a pixel pulls the edge towards greater m, -delta where towards smaller."""
    length = image.shape[1]
    # A centre exactly on an edge is covered if the edge is a left or an upper one.
    d_in = crossing.ceil().long() - (outward > 0).long()
    d_out = d_in + outward
    fits = (d_in >= 0) & (d_in < length) & (d_out >= 0) & (d_out < length)
    d_in, d_out = d_in.clamp(0, length - 1), d_out.clamp(0, length - 1)
    n = torch.arange(len(image), device=image.device)
    beyond = (torch.arange(length, device=image.device) - d_in[:, None]) * outward[:, None] > 0
    reference = torch.where(beyond[..., None], image[n, d_in][:, None], image[n, d_out][:, None])
    delta = ((image - reference) * grad).sum(-1)
    pulls = torch.where(beyond, is_own[n, d_in][:, None], is_own) & fits[:, None] & (delta > 0)
    return torch.where(pulls, torch.where(beyond, delta, -delta) * outward[:, None], 0)
