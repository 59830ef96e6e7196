"""f_J2D: the 2D pose network PoseNet of Zimmermann and Brox, ICCV 2017 (paper, Sec. 3.1)."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhpe_fast.conventions import N_JOINTS_STD
from dhpe_fast.nets.posenet_weights import convert_posenet, read_posenet_weights
from dhpe_fast.nets.resnet import check_images

STRIDE = 8
"""Pixels of the network's input for each cell of a heat map: three poolings."""

_LEAK = 0.01
_FIRST_BIAS = 1e-4
# Output channels of the 3 x 3 convolutions, block by block, with a pooling between two blocks.
_TRUNK = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 256, 256, 256, 256, 128))
_ENCODING = _TRUNK[-1][-1]
# (kernel, output channels) of the convolutions before the one which gives the heat maps.
_FIRST_STAGE = ((1, 512),)
_LATER_STAGE = ((7, 128), (7, 128), (7, 128), (7, 128), (7, 128), (1, 128))


class Pose2DNet(nn.Module):
    """Heat maps of the 21 joints, by a trunk of convolutions and stages, each of which corrects the one before.

    Fifteen 3 x 3 convolutions and three poolings give an encoding of 128 channels. The first stage turns it into heat
    maps cell by cell; every later one sees [heat maps, encoding] in a wide field (7 x 7 convolutions, after
    Convolutional Pose Machines, Wei et al. 2016). Leaky ReLU, no normalisation; 17,518,847 parameters as published.
    Layers carry the authors' names, conv1_1 to conv7_7. Their joints are in RHD's order, ours in STD order.

    Attributes:
        input_size: side to which images are resized, pixels.
        heatmap_size: cells a side, an eighth of `input_size`.
    """

    def __init__(self, width: float = 1.0, stages: int = 3, input_size: int = 256) -> None:
        """Random weights as the authors': Xavier's, uniform, and biases of 1e-4; see ``load_zb_weights``.

        Args:
            width: factor on the numbers of channels, but for heat maps. 1 is the published network, less is for
                tests and small machines.
            stages: 3 are published.
            input_size: a multiple of 8; 256 gives the paper's 32 x 32 cells.

        Raises:
            ValueError: if an argument is none of these.
        """
        super().__init__()
        if not 0 < width <= 8:
            raise ValueError(f"width: expected a number above 0 and up to 8, got {width!r}")
        if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
            raise ValueError(f"stages: expected a whole number >= 1, got {stages!r}")
        if not isinstance(input_size, int) or input_size < STRIDE or input_size % STRIDE:
            raise ValueError(f"input_size: expected a positive multiple of {STRIDE}, got {input_size!r}")
        self.input_size = input_size
        self.heatmap_size = input_size // STRIDE
        self.trunk = _trunk(width)
        encoding = _scaled(_ENCODING, width)
        self.stages = nn.ModuleList([_stage("conv5", encoding, _FIRST_STAGE, width)])
        for number in range(6, 5 + stages):
            self.stages.append(_stage(f"conv{number}", N_JOINTS_STD + encoding, _LATER_STAGE, width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.bias, _FIRST_BIAS)

    def forward(
        self,
        images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
    ) -> tuple[Tensor, ...]:
        """Heat maps of every stage, the last being the estimate: each (B, 21, n, n), n = ``heatmap_size``.

        Their values are not bounded; those of a trained network are near 1 at a joint and near 0 away from it. The
        layer that gives them stays float32 under autocast: half types would tie the cells around a maximum.

        Raises:
            TypeError, ValueError: if `images` is no floating-point tensor (B, 3, S, S).
        """
        check_images(images)
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"images: expected square crops (B, 3, S, S), got {tuple(images.shape)}")
        encoding = self.trunk(resized(images, self.input_size) - 0.5)
        heatmaps: list[Tensor] = []
        for stage in self.stages:
            heatmaps.append(stage(torch.cat([heatmaps[-1], encoding], dim=1) if heatmaps else encoding))
        return tuple(heatmaps)

    def load_zb_weights(self, path: str | os.PathLike[str]) -> None:
        """Takes the authors' trained weights, e.g. ``posenet3d-rhd-stb.pickle``; all of them, or none on an error.

        The file, part of https://github.com/lmb-freiburg/hand3d, is read without running code in it. Its networks
        PosePrior and ViewpointNet are left out. Joint 0 of these weights is the palm, midway between wrist and middle
        MCP, and their maps are anchored at the cells' corners, see :mod:`dhpe_fast.nets.heatmaps`.

        Raises:
            UnsafePickleError: if the pickle asks for anything else than arrays; a ValueError.
            ValueError: if the file cannot be read, or a layer is missing, unknown or of another shape, naming it.
            FileNotFoundError: if it does not exist.
        """
        self.load_state_dict(convert_posenet(read_posenet_weights(path), self.state_dict(), path))


class _Stage(nn.Sequential):
    """Convolutions with activations, and a last one whose output is taken as it is, in its own precision."""

    def forward(
        self,
        x: Tensor,  # (B, C, n, n)
    ) -> Tensor:
        """Heat maps (B, 21, n, n)."""
        *hidden, last = self
        for layer in hidden:
            x = layer(x)
        with torch.autocast(x.device.type, enabled=False):
            return last(x.to(last.weight.dtype))


def _trunk(width: float) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    in_channels = 3
    for block, row in enumerate(_TRUNK, start=1):
        for number, channels in enumerate(row, start=1):
            layers[f"conv{block}_{number}"] = _conv(in_channels, _scaled(channels, width), 3)
            layers[f"relu{block}_{number}"] = nn.LeakyReLU(_LEAK)
            in_channels = _scaled(channels, width)
        if block < len(_TRUNK):
            layers[f"pool{block}"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


def _stage(name: str, in_channels: int, plan: Sequence[tuple[int, int]], width: float) -> _Stage:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (kernel, channels) in enumerate(plan, start=1):
        layers[f"{name}_{number}"] = _conv(in_channels, _scaled(channels, width), kernel)
        layers[f"{name.replace('conv', 'relu')}_{number}"] = nn.LeakyReLU(_LEAK)
        in_channels = _scaled(channels, width)
    layers[f"{name}_{len(plan) + 1}"] = _conv(in_channels, N_JOINTS_STD, 1)
    return _Stage(layers)


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    # With odd kernels and stride 1 TensorFlow's SAME padding is symmetric.
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def resized(images: Tensor, size: int) -> Tensor:
    side = images.shape[-1]
    if side == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=side > size)
