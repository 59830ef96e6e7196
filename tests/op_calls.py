"""Calls for what must hold for all ops alike: each as a function of one tensor, and a hand with its silhouette."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from meshes import sphere
from torch import Tensor, nn

from dhpe_fast import ops, reference
from dhpe_fast.hand import HandModel

SIZE = (12, 14)


class OpCall(NamedTuple):
    """``function(leaf)`` is a floating-point result of an op, differentiable in the leaf."""

    function: Callable[[Tensor], Tensor]
    leaf: Tensor
    twin: Callable[[Tensor], Tensor]


def op_calls(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> dict[str, OpCall]:
    """A call of each op by its name (silhouettes: by their mode), with all arguments but the leaf bound."""
    verts, faces = sphere()
    verts = torch.stack([verts, verts + 1])
    verts[..., :2] *= SIZE[0] / 32
    verts, faces = verts.to(device, dtype), faces.to(device)
    seen = reference.rasterize(verts.cpu(), faces.cpu(), SIZE)
    seen = ops.Fragments(*(t.to(device) for t in seen))
    uv = torch.rand(2, *SIZE, 2, generator=torch.Generator().manual_seed(0), dtype=dtype).to(device)
    model = HandModel.default(dtype=dtype).to(device)
    pose = 0.3 * torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(1), dtype=dtype).to(device)
    betas = torch.linspace(-1, 1, 10, dtype=dtype, device=device)

    def lbs(package, pose: Tensor) -> Tensor:
        return torch.cat(package.lbs(pose, betas, model.basis), 1)

    def rasterize(package, verts: Tensor) -> Tensor:
        fragments = package.rasterize(verts, faces, SIZE)
        return torch.cat([fragments.bary, fragments.depth[..., None]], -1)

    def interpolate(package, bary: Tensor) -> Tensor:
        return package.interpolate(verts, faces, ops.Fragments(seen.face_index, bary, seen.depth))

    def sample_texture(package, texture: Tensor) -> Tensor:
        return package.sample_texture(texture, uv, seen.face_index)

    def visibility_gradient(package, verts: Tensor) -> Tensor:
        image = (seen.face_index >= 0).to(verts.dtype)[..., None] * 0.5
        return package.visibility_gradient(image, seen.face_index, verts, faces)

    def silhouette(package, verts: Tensor, mode: str) -> Tensor:
        return package.silhouette(verts, faces, SIZE, mode=mode)

    texture = torch.rand(2, 5, 4, 3, generator=torch.Generator().manual_seed(2), dtype=dtype).to(device)
    calls = {
        "lbs": (lbs, pose),
        "rasterize": (rasterize, verts),
        "interpolate": (interpolate, seen.bary),
        "sample_texture": (sample_texture, texture),
        "visibility_gradient": (visibility_gradient, verts),
        **{mode: (partial(silhouette, mode=mode), verts) for mode in ("nmr", "edge", "soft")},
    }
    return {
        name: OpCall(partial(function, ops), leaf, partial(function, reference))
        for name, (function, leaf) in calls.items()
    }


NAMES = ("lbs", "rasterize", "interpolate", "sample_texture", "visibility_gradient", "nmr", "edge", "soft")


class DrawnHand(nn.Module):
    """h (B, 63) -> its mask (B, 12, 14) in its crop, and its joints (B, 21, 3)."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.hand, self.mode = HandModel.default(), mode

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mesh = self.hand.decode(h)
        verts_px = (mesh.verts_m + torch.tensor([1.0, 1, 0])) * 6
        return ops.silhouette(verts_px, self.hand.faces, (12, 14), mode=self.mode), mesh.joints_m


def hands(n: int) -> Tensor:
    """H (n, 63) of hands that fill their crop."""
    h = 0.3 * torch.randn(n, 63, generator=torch.Generator().manual_seed(n))
    h[:, 59] = 8
    return h
