"""The hands that the refinement benchmarks start from: drawn, with a known answer, and parameters near it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import CROP_SIZE_PX
from dhpe_fast.data import render_hands
from dhpe_fast.hand import HandModel
from dhpe_fast.nets import Projector
from dhpe_fast.refinement import BlockScales

START = BlockScales(pose=0.15, shape=0.7, quat=0.08, scale=0.7, trans=0.12)
"""Standard deviations around the truth, of each number of h."""
DISTINCT = 32
"""Pictures are drawn of so many hands at most; larger batches repeat them, from starts of their own."""


@dataclass(frozen=True)
class Scene:
    """Crops of hands, all tensors on one device, float32."""

    hand: HandModel
    images: Tensor
    """(B, 3, S, S) RGB in [0, 1]"""
    truth: Tensor
    """(B, 63) h of what is drawn"""
    start: Tensor
    """(B, 63) the truth and some noise"""
    joints2d_px: Tensor
    """(B, 21, 2) f_Reg of the true mesh, pixels of the crop"""

    @property
    def size(self) -> int:
        """S"""
        return self.images.shape[-1]

    def projector(self, mode: str) -> Projector:
        """f_Proj of the hand in crops of this size."""
        return Projector(self.hand, self.size, silhouette_mode=mode)

    def first(self, batch: int) -> Scene:
        """The first hands of it."""
        tensors = (self.images, self.truth, self.start, self.joints2d_px)
        return Scene(self.hand, *(tensor[:batch].contiguous() for tensor in tensors))


def perturbed_hands(
    batch: int, size: int = CROP_SIZE_PX, *, seed: int = 0, device: torch.device | str = "cpu", pictures: bool = True
) -> Scene:
    """So many hands of a seed. Without pictures the images are noise: for what does not look at them."""
    hand = HandModel.default()
    distinct = min(batch, DISTINCT) if pictures else batch
    drawn = render_hands(distinct, seed, hand, pictures=pictures)
    repeats = -(-batch // len(drawn))
    truth = torch.cat([one.params.packed() for one in drawn]).repeat(repeats, 1)[:batch]
    generator = torch.Generator().manual_seed(seed)
    if pictures:
        crops = np.stack([one.crop.crop_image(one.image, size) for one in drawn])
        images = torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous().float() / 255
        images = images.repeat(repeats, 1, 1, 1)[:batch].contiguous()
    else:
        images = torch.rand(1, 3, size, size, generator=generator).expand(batch, -1, -1, -1)
    start = truth + START.vector(truth) * torch.randn(batch, truth.shape[1], generator=generator)
    with torch.no_grad():
        joints2d_px = (0.5 * Projector(hand, size)(truth).joints[..., :2] + 0.5) * size
    return Scene(hand.to(device), *(tensor.to(device) for tensor in (images, truth, start, joints2d_px)))
