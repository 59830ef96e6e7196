"""The hands that the rasterizing benchmarks draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dhpe_fast.hand import HandModel

FILLED = 0.8
"""The longer side of a hand's box, as a share of the image's side."""


@dataclass(frozen=True)
class Scene:
    """Posed hands, each in the middle of its own square image."""

    verts_px: Tensor
    """(B, V, 3) x, y in pixels, z in the same unit, positive"""
    faces: Tensor
    """(F, 3) int32"""
    image_size: int


def hands_in_view(batch: int, image_size: int, device: torch.device | str = "cpu") -> Scene:
    """Default hands in random poses, seen from the back or the palm; the first ones do not depend on `batch`."""
    hand = HandModel.default()
    pose = torch.stack([0.3 * torch.randn(48, generator=torch.Generator().manual_seed(i)) for i in range(batch)])
    verts_m = hand(pose[:, 3:], torch.zeros(batch, 10), pose[:, :3]).verts_m
    low, high = verts_m.amin(1, keepdim=True), verts_m.amax(1, keepdim=True)
    # The default hand's longest axis is x, its thinnest y: that one points away from the camera.
    scale = FILLED * image_size / (high - low)[..., [0, 2]].amax(-1, keepdim=True)
    middle = torch.tensor([0.5, 0.5, 2.0]) * image_size
    verts_px = (verts_m - (low + high) / 2)[..., [0, 2, 1]] * scale + middle
    return Scene(verts_px.to(device).contiguous(), hand.faces.int().to(device), image_size)


def with_finer_faces(scene: Scene, parts: int) -> Scene:
    """The same surface with every edge cut into `parts`, every face into `parts` squared; shared edges stay shared."""
    i, j = torch.meshgrid(torch.arange(parts + 1), torch.arange(parts + 1), indexing="ij")
    inside = i + j <= parts
    i, j = i[inside], j[inside]
    weights = torch.stack([parts - i - j, i, j], -1)  # (n, 3) of the face's corners, in sum `parts`
    number = torch.full((parts + 1, parts + 1), -1)
    number[i, j] = torch.arange(len(i))
    upward = [(a, b) for a in range(parts) for b in range(parts - a)]
    small = [(number[a, b], number[a + 1, b], number[a, b + 1]) for a, b in upward]
    small += [(number[a + 1, b], number[a + 1, b + 1], number[a, b + 1]) for a, b in upward if a + b < parts - 1]
    local = torch.tensor(small)  # (parts^2, 3)

    # A point is the same point in two faces if it has the same weights of the same corners.
    corner = scene.faces.long().cpu()[:, None].expand(-1, len(weights), -1)  # (F, n, 3)
    weight = weights.expand_as(corner)
    key = torch.where(weight > 0, corner * (parts + 1) + weight, -1).sort(-1).values
    _, which = torch.unique(key.reshape(-1, 3), dim=0, return_inverse=True)
    first = torch.empty(int(which.max()) + 1, dtype=torch.long)
    first[which] = torch.arange(len(which))
    corner, weight = corner.reshape(-1, 3)[first], weight.reshape(-1, 3)[first]
    verts_px = (scene.verts_px.cpu()[:, corner] * (weight / parts)[..., None]).sum(-2)
    faces = which.reshape(len(scene.faces), -1)[:, local].reshape(-1, 3)
    device = scene.verts_px.device
    return Scene(verts_px.to(device).contiguous(), faces.int().to(device), scene.image_size)
