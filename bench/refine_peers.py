"""The iteration of Eq. 11 as it is put together from what there was: manopth, a renderer in plain torch, and autograd.

The same work as this package's: the mesh of h, its joints by f_Reg, its mask, the joints and Laplacian terms, the
feature term's slope by the mask (constant, or from a CNN), the gradient by h, one step of descent. manopth skins, the
renderer is this package's twin of `edge` (`dhpe_fast.reference`), the rest is torch as it is usually written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from refine_scene import Scene
from torch import Tensor

from dhpe_fast.conventions import H_LAYOUT, MIDDLE_MCP
from dhpe_fast.hand import HandModel
from dhpe_fast.losses import cotangent_laplacian
from dhpe_fast.reference import silhouette
from dhpe_fast.refinement import BALANCED

Cnn = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Mask (B, S, S) to the value (B,) and the slope (B, S, S) of the feature term."""


def manopth_layer(device: torch.device | str = "cpu") -> Any:
    """The default hand in manopth; raises pytest's Skipped where it is not at hand."""
    tests = str(Path(__file__).parents[1] / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    import peers

    arrays = HandModel.default(dtype=torch.float64).arrays()
    return peers.manopth_layer(arrays, use_pca=False, flat_hand_mean=True).to(device)


class ComposedIteration:
    """Steps of plain descent, each hand of a batch on its own."""

    def __init__(self, scene: Scene, layer: Any, step_size: float = 1e-3) -> None:
        """Takes what stays the same from the scene; `layer` is a ManoLayer."""
        hand = scene.hand
        self._scene, self._layer = scene, layer
        self._laplacian = cotangent_laplacian(hand.basis.v_template, hand.faces)
        self._regressor = hand.joint_regressor
        self._rates = step_size * BALANCED.vector(scene.truth)

    def mask(self, h: Tensor) -> Tensor:  # (B, 63) -> (B, S, S)
        """f_Ren of the mesh, without gradients."""
        with torch.no_grad():
            return self._mask(self._verts(h))

    def __call__(
        self,
        h: Tensor,  # (B, 63)
        slope: Tensor,  # (B, S, S) of the feature term
    ) -> tuple[Tensor, Tensor]:
        """The next h, and the energy (B,) without the feature term's constant."""
        return self._step(h, lambda mask: (slope * mask).sum((-2, -1)))

    def with_features(
        self,
        h: Tensor,  # (B, 63)
        extract: Callable[[Tensor], Tensor],
        features: Tensor,  # (B, N) F(x)
        weight: float,
    ) -> tuple[Tensor, Tensor]:
        """The same with the CNN inside, all of it in one graph of autograd."""

        def term(mask: Tensor) -> Tensor:
            return weight * (extract(self._scene.images * mask[:, None]) - features).square().sum(-1)

        return self._step(h, term)

    def _step(self, h: Tensor, mask_term: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        h = h.detach().requires_grad_()
        verts = self._verts(h)
        joints = torch.matmul(self._regressor, verts)
        palm = 0.5 * (joints[:, :1] + joints[:, MIDDLE_MCP : MIDDLE_MCP + 1])
        joints2d = 0.5 * torch.cat([palm, joints[:, 1:]], 1)[..., :2] + 0.5
        energy = (joints2d - self._scene.joints2d_px / self._scene.size).square().sum((1, 2))
        energy = energy + torch.matmul(self._laplacian, verts).norm(dim=-1).mean(-1)
        energy = energy + mask_term(self._mask(verts))
        (gradient,) = torch.autograd.grad(energy.sum(), h)
        return h.detach() - self._rates * gradient, energy.detach()

    def _verts(self, h: Tensor) -> Tensor:
        part = {name: h[:, where] for name, where in H_LAYOUT.items()}
        pose = torch.cat([torch.zeros_like(part["pose"][:, :3]), part["pose"]], 1)
        verts_mm, _ = self._layer(pose, part["shape"])
        turn = _rotation(part["quat"])
        return part["scale"][..., None] * torch.matmul(verts_mm / 1000, turn.transpose(1, 2)) + part["trans"][:, None]

    def _mask(self, verts: Tensor) -> Tensor:
        size = self._scene.size
        verts_px = torch.cat([(verts[..., :2] + 1) * (size / 2), verts[..., 2:]], -1)
        return silhouette(verts_px, self._scene.hand.faces, size, mode="edge")


def _rotation(quat: Tensor) -> Tensor:  # (B, 4) -> (B, 3, 3)
    w, x, y, z = torch.nn.functional.normalize(quat, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))
