"""Terms of the objective, one function each; Eqs. refer to Baek, Kim and Kim, CVPR 2019."""

from __future__ import annotations

import torch
from torch import Tensor

from dhpe_fast.ops import silhouette


def silhouette_iou_loss(
    verts_px: Tensor,  # (*batch, V, 3) x, y in pixels of the mask, z away from the camera
    faces: Tensor,  # (F, 3)
    mask: Tensor,  # (*batch, H, W) in [0, 1]
) -> Tensor:
    """1 - IoU of the rendered silhouette and the mask: (*batch,) in [0, 1].

    Anti-aliased, with its exact gradient (``silhouette(mode="edge")``). Bounded, unlike a sum over pixels: a mask that
    shows little of the hand has little to say.
    """
    rendered = silhouette(verts_px, faces, tuple(mask.shape[-2:]), mode="edge")
    both = (rendered * mask).sum((-2, -1))
    either = rendered.sum((-2, -1)) + mask.sum((-2, -1)) - both
    return 1 - both / either.clamp_min(1.0)


def laplacian_loss(
    verts: Tensor,  # (*batch, V, 3)
    laplacian: Tensor,  # (V, V)
) -> Tensor:
    """Mean length of the mesh's Laplacian coordinates (L_Lap of Eq. 7, after Kanazawa et al. 2018): (*batch,).

    The unit is that of the vertices; the value does not change when the mesh is turned or moved.
    """
    return torch.linalg.vector_norm(laplacian @ verts, dim=-1).mean(-1)


def cotangent_laplacian(
    verts: Tensor,  # (V, 3) the template
    faces: Tensor,  # (F, 3)
) -> Tensor:
    """Cotangent Laplacian L (V, V) of a template, frozen afterwards as in Kanazawa et al. 2018.

    L_ij = (cot a + cot b) / 2 for the two angles opposite edge ij; rows sum to zero; not divided by vertex areas.
    Dense: at a hand's 778 vertices one matrix product beats the sparse formats.
    """
    faces = faces.long()
    triangle = verts[faces]  # (F, corner, 3)
    laplacian = verts.new_zeros(len(verts), len(verts))
    for corner in range(3):
        i, j = faces[:, (corner + 1) % 3], faces[:, (corner + 2) % 3]
        u = triangle[:, (corner + 1) % 3] - triangle[:, corner]
        v = triangle[:, (corner + 2) % 3] - triangle[:, corner]
        area = torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1).clamp_min(1e-12)
        half_cot = 0.5 * (u * v).sum(-1) / area
        for row, column, sign in ((i, j, 1), (j, i, 1), (i, i, -1), (j, j, -1)):
            laplacian.index_put_((row, column), sign * half_cot, accumulate=True)
    return laplacian
