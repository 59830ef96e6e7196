"""neural_renderer's textures: a cube of T x T x T colours a face, addressed by barycentric coordinates."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dhpe_fast.torch_settings import full_precision

WRAPPINGS = ("REPEAT", "MIRRORED_REPEAT", "CLAMP_TO_EDGE", "CLAMP_TO_BORDER")


def look_up(
    textures: Tensor,  # (B, F, T, T, T, 3)
    face_index: Tensor,  # (B, H, W), -1 where no face is
    bary: Tensor,  # (B, H, W, 3)
    eps: float,
) -> Tensor:  # (B, H, W, 3)
    """Trilinear colours at T - 1 times the barycentric coordinates, 0 where no face is; differentiable in textures."""
    image, row, column = torch.nonzero(face_index >= 0, as_tuple=True)
    cubes = image * textures.shape[1] + face_index[image, row, column]
    colors = _trilinear(textures.flatten(0, 1), cubes, bary[image, row, column], eps)
    return colors.new_zeros(*face_index.shape, 3).index_put((image, row, column), colors)


def _trilinear(
    cubes: Tensor,  # (N, T, T, T, 3)
    which: Tensor,  # (n,) cube of each lookup
    weights: Tensor,  # (n, 3) in [0, 1]
    eps: float,
) -> Tensor:  # (n, 3)
    size = cubes.shape[1]
    at = (weights * (size - 1)).clamp(min=0).clamp(max=max(size - 1 - eps, 0))
    low = at.floor()
    high_share = at - low
    corner = torch.tensor(list(product((0, 1), repeat=3)), device=at.device)  # (8, 3)
    share = torch.where(corner == 1, high_share[:, None], 1 - high_share[:, None]).prod(-1)  # (n, 8)
    index = (low.long()[:, None] + corner).clamp(max=size - 1)  # (n, 8, 3)
    flat = ((which.long()[:, None] * size + index[..., 0]) * size + index[..., 1]) * size + index[..., 2]
    colors = cubes.reshape(-1, 3).index_select(0, flat.flatten()).reshape(-1, 8, 3)
    return (share[..., None].to(colors.dtype) * colors).sum(1)


def cube_weights(size: int) -> Tensor:  # (T, T, T, 3)
    """The barycentric coordinates a cube's cells stand for: their indices, scaled to sum to 1; 0 for cell 0, 0, 0."""
    index = torch.stack(torch.meshgrid(*[torch.arange(size, dtype=torch.float32)] * 3, indexing="ij"), -1)
    return index / index.sum(-1, keepdim=True).clamp(min=1)


def cubes_from_image(
    image: Tensor,  # (Hi, Wi, 3), the first row at v = 0
    uv: Tensor,  # (F, 3, 2) of the corners of faces
    size: int,
    wrapping: str,
    bilinear: bool,
) -> Tensor:  # (F, T, T, T, 3)
    """Colours of an image at a cube's barycentric coordinates; u and v span the centres of the outermost pixels."""
    if wrapping == "REPEAT":
        uv = torch.where((uv < 0) | (uv > 1), uv - uv.floor(), uv)
    elif wrapping == "MIRRORED_REPEAT":
        turn = uv.remainder(2)
        uv = torch.where(turn > 1, 2 - turn, turn)
    elif wrapping == "CLAMP_TO_EDGE":
        uv = uv.clamp(0, 1)
    with full_precision(uv.device):
        at = torch.einsum("ijkc,fcd->fijkd", cube_weights(size).to(uv), uv)
    colors = grid_sample(
        image.permute(2, 0, 1)[None],
        (at * 2 - 1).reshape(1, 1, -1, 2),
        mode="bilinear" if bilinear else "nearest",
        padding_mode="zeros" if wrapping == "CLAMP_TO_BORDER" else "border",
        align_corners=True,
    )
    return colors[0, :, 0].T.reshape(*at.shape[:-1], 3)


def create_texture_image(
    textures: Tensor,  # (F, T, T, T, 3)
    texture_size_out: int = 16,
) -> tuple[np.ndarray, np.ndarray]:
    """One picture with a square tile for each face, and where on it the faces' corners are.

    Returns:
        The image (rows, columns, 3) float32, the first row at the top, and the texture coordinates (F, 3, 2) float32
        in [0, 1], v up, of the faces' corners.
    """
    n_faces, side = len(textures), texture_size_out
    if n_faces == 0 or side < 2:
        raise ValueError(f"textures: expected at least one face and tiles of 2 pixels, got {n_faces} and {side}")
    across = math.isqrt(n_faces - 1) + 1
    down = (n_faces - 1) // across + 1
    # In a tile, corners 0, 1 and 2 lie at (0, 0), (0, 1) and (1, 1): the diagonal y = x is their edge from 0 to 2.
    # Pixels beyond it repeat those on it, against seams.
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    x = torch.where(x == y + 1, y, x)
    weights = torch.stack([side - 1 - y, y - x, x], -1).reshape(-1, 3).to(textures) / (side - 1)
    which = torch.arange(n_faces, device=textures.device).repeat_interleave(side * side)
    tiles = textures.new_zeros(across * down, side, side, 3)
    tiles[:n_faces] = _trilinear(textures.detach(), which, weights.repeat(n_faces, 1), 1e-5).reshape(-1, side, side, 3)
    image = tiles.reshape(down, across, side, side, 3).transpose(1, 2).reshape(down * side, across * side, 3)
    face = np.arange(n_faces)
    corner = np.stack([face % across, face // across], -1)[:, None] * side
    corners = corner + np.array([[0, 0], [0, side - 1], [side - 1, side - 1]])
    uv = corners / np.array([across * side - 1, down * side - 1])
    return image.flip(0).float().cpu().numpy(), uv.astype(np.float32)
