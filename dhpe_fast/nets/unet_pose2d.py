"""A smaller f_J2D: heat maps of the 2D joints by a residual U-Net, for machines and packages of modest size."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhpe_fast.conventions import N_JOINTS_STD
from dhpe_fast.nets.heatmaps import heatmap_mass
from dhpe_fast.nets.pose2d import resized
from dhpe_fast.nets.resnet import BasicBlock, check_images

STRIDE = 4
"""Pixels of the network's input for each cell of a heat map."""

_STEM = 32
_CHANNELS = (64, 128, 192, 192)
"""Of the feature maps at strides 4, 8, 16 and 32."""
_COARSEST = STRIDE * 2 ** (len(_CHANNELS) - 1)


class UNetPose2D(nn.Module):
    """Heat maps of the 21 joints by residual blocks down to a 32nd of the resolution, and up again to a fourth.

    In the place of ``Pose2DNet`` (17.5 million parameters): 3.3 million and, at 128 pixels, 0.38 billion
    multiplications. Each block is that of ResNet-18 (He et al. 2016), skip connections are added (Newell et al. 2016),
    and the maps are twice as fine as those of the paper's network.

    A map is the distribution of its joint over the cells, times the mass of a target (``heatmap_mass``): where the
    joint is certain, it looks like its target, and where it is not, its peak is lower. What is missing of the mass is
    the probability that the joint lies outside of the crop.

    Attributes:
        input_size: side to which images are resized, pixels.
        heatmap_size: cells a side, a fourth of `input_size`.
        silhouette: the layer that tells which cells are the hand, or None.
    """

    def __init__(self, width: float = 1.0, input_size: int = 128, *, silhouette: bool = False) -> None:
        """Random weights.

        Args:
            width: factor on the numbers of channels, but for heat maps.
            input_size: a multiple of 32.
            silhouette: whether it also tells which cells are the hand, see ``heatmaps_and_silhouette``.

        Raises:
            ValueError: if an argument is none of these.
        """
        super().__init__()
        if not 0 < width <= 8:
            raise ValueError(f"width: expected a number above 0 and up to 8, got {width!r}")
        if not isinstance(input_size, int) or input_size < _COARSEST or input_size % _COARSEST:
            raise ValueError(f"input_size: expected a positive multiple of {_COARSEST}, got {input_size!r}")
        self.input_size = input_size
        self.heatmap_size = input_size // STRIDE
        stem, *channels = (max(8, 8 * round(c * width / 8)) for c in (_STEM, *_CHANNELS))
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        inputs = [stem, *channels[:-1]]
        self.down = nn.ModuleList(BasicBlock(a, b, stride=2) for a, b in zip(inputs, channels, strict=True))
        self.bottom = BasicBlock(channels[-1], channels[-1], stride=1)
        self.lateral = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(channels))
        self.up = nn.ModuleList(BasicBlock(c, c, stride=1) for c in channels[:-1])
        self.head = nn.Conv2d(channels[0], N_JOINTS_STD, 1)
        self.outside = nn.Parameter(torch.zeros(N_JOINTS_STD))
        self.silhouette = nn.Conv2d(channels[0], 1, 1) if silhouette else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.last_bn.weight)  # every block starts as its shortcut
        nn.init.normal_(self.head.weight, std=1e-3)  # a joint may be anywhere at first
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
    ) -> tuple[Tensor]:
        """Heat maps (B, 21, n, n), n = ``heatmap_size``, as the one stage of a ``Pose2DNet``.

        Their values are near 1 at a joint that is certain, and near 0 away from it; the layer that gives them stays
        float32 under autocast.

        Raises:
            TypeError, ValueError: if `images` is no floating-point tensor (B, 3, S, S).
        """
        return (self._heatmaps(self._seen(images)),)

    def heatmaps_and_silhouette(
        self,
        images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
    ) -> tuple[Tensor, Tensor]:
        """The heat maps of ``forward``, and (B, n, n) log-odds that a cell shows the hand.

        Raises:
            TypeError, ValueError: as ``forward``; ValueError if it was made without ``silhouette``.
        """
        if self.silhouette is None:
            raise ValueError("silhouette: this network has none, it was made without")
        x = self._seen(images)
        with torch.autocast(x.device.type, enabled=False):
            return self._heatmaps(x), self.silhouette(x.to(self.silhouette.weight.dtype))[:, 0]

    def _seen(self, images: Tensor) -> Tensor:  # (B, channels, n, n)
        check_images(images)
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"images: expected square crops (B, 3, S, S), got {tuple(images.shape)}")
        x = self.stem(4 * (resized(images, self.input_size) - 0.5))
        levels = []
        for block in self.down:
            x = block(x)
            levels.append(x)
        x = self.bottom(x)
        for finer, lateral, block in zip(levels[-2::-1], reversed(self.lateral), reversed(self.up), strict=True):
            x = block(finer + F.interpolate(lateral(x), scale_factor=2.0, mode="nearest"))
        return x

    def _heatmaps(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            logits = self.head(x.to(self.head.weight.dtype))
            outside = self.outside.expand(len(logits), -1)[..., None]
            share = torch.cat([logits.flatten(2), outside], dim=2).softmax(dim=2)[..., :-1]
            return share.unflatten(2, logits.shape[2:]) * heatmap_mass(logits.shape[-1])
