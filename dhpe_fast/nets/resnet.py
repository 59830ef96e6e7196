"""F: a residual network (He et al., CVPR 2016) which turns a crop into one feature vector (paper, Sec. 3.1).

Names and shapes in the ``state_dict`` are torchvision's without its classifier ``fc``, so ImageNet weights load.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dhpe_fast.nets.imagenet_weights import check_matches, read_imagenet_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], over the ImageNet training set."""


class FeatureExtractor(nn.Module):
    """F(x) of Eq. 2: RGB images in [0, 1] to feature vectors, by ResNet-18, -34, -50, -101 or -152.

    The paper's is ResNet-50 with the average-pooled output, 2048 features. Strides are those of version 1.5: in a
    bottleneck the 3 x 3 convolution halves the resolution, as in torchvision's weights. A masked image x * m is
    black outside of its mask: the ImageNet mean is subtracted in here, afterwards.

    Attributes:
        depth: number of layers, as ResNets are called by it.
        n_features: length of the feature vector, 512 up to depth 34 and 2048 above.
        input_size: side in pixels to which larger images are averaged down first; None takes them as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int = 50, *, zero_init_residual: bool = False, input_size: int | None = None) -> None:
        """Random weights: He's normal initialisation by fan-out; see ``load_imagenet``.

        Args:
            depth: 18, 34, 50, 101 or 152.
            zero_init_residual: start every block as the identity, its last scale at zero (Goyal et al. 2017).
            input_size: see above; a quarter of the work for half of the side.

        Raises:
            ValueError: if `depth` is another one, or `input_size` is no whole number of at least 32 pixels.
        """
        super().__init__()
        if input_size is not None and (not isinstance(input_size, int) or input_size < 32):
            raise ValueError(f"features_size: expected None or a whole number of pixels >= 32, got {input_size!r}")
        self.input_size = input_size
        if depth not in _ARCHITECTURES:
            raise ValueError(f"depth: expected one of {', '.join(map(str, _ARCHITECTURES))}, got {depth!r}")
        architecture = _ARCHITECTURES[depth]
        self.depth = depth
        self.n_features = 512 * architecture.block.expansion
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(architecture, 0, in_channels=64)
        self.layer2 = _layer(architecture, 1, in_channels=64 * architecture.block.expansion)
        self.layer3 = _layer(architecture, 2, in_channels=128 * architecture.block.expansion)
        self.layer4 = _layer(architecture, 3, in_channels=256 * architecture.block.expansion)
        self._initialise(zero_init_residual)

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W) RGB in [0, 1]
    ) -> Tensor:
        """Feature vectors (B, n_features), averages over the last feature map, whatever the image's size.

        The averages are taken and returned in the precision of the module, under autocast as well.

        Raises:
            TypeError, ValueError: if `images` is no floating-point tensor (B, 3, H, W).
        """
        check_images(images)
        x = (averaged(images, self.input_size) - self.mean) / self.std
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3), dtype=self.mean.dtype)

    def load_imagenet(self, path: str | os.PathLike[str]) -> None:
        """Takes ImageNet weights, such as torchvision's ``resnet50-0676ba61.pth``; all of them, or none on an error.

        Args:
            path: a ``.pth`` file with a ``state_dict``, read without running code in it, or a ``.safetensors``
                file. The classifier ``fc`` is dropped.

        Raises:
            ValueError: if the file cannot be read as such, or a tensor is missing, unknown, of another shape or not
                finite, naming each. FileNotFoundError: if it does not exist.
            ModuleNotFoundError: for a ``.safetensors`` file without the package of that name.
        """
        weights = read_imagenet_weights(path)
        check_matches(weights, self.state_dict(), path, f"ResNet-{self.depth}")
        # What check_matches lets be absent are BatchNorm's counters, which older files lack.
        self.load_state_dict(weights, strict=False)

    def extra_repr(self) -> str:
        return f"depth={self.depth}, n_features={self.n_features}"

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_bn.weight)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, of ResNet-18 and -34."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The normalisation before the sum."""
        return self.bn2

    def forward(
        self,
        x: Tensor,  # (B, in_channels, H, W)
    ) -> Tensor:
        """(B, channels, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """Convolutions 1 x 1, 3 x 3 and 1 x 1 beside a shortcut, of ResNet-50 and deeper."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels * self.expansion, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The normalisation before the sum."""
        return self.bn3

    def forward(
        self,
        x: Tensor,  # (B, in_channels, H, W)
    ) -> Tensor:
        """(B, 4 * channels, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class _Architecture(NamedTuple):
    block: type[BasicBlock] | type[Bottleneck]
    n_blocks: tuple[int, int, int, int]


_ARCHITECTURES = {
    18: _Architecture(BasicBlock, (2, 2, 2, 2)),
    34: _Architecture(BasicBlock, (3, 4, 6, 3)),
    50: _Architecture(Bottleneck, (3, 4, 6, 3)),
    101: _Architecture(Bottleneck, (3, 4, 23, 3)),
    152: _Architecture(Bottleneck, (3, 8, 36, 3)),
}


def _layer(architecture: _Architecture, index: int, in_channels: int) -> nn.Sequential:
    """Blocks of one resolution; all layers but the first halve it in their first block."""
    block, channels = architecture.block, 64 * 2**index
    first = block(in_channels, channels, stride=1 if index == 0 else 2)
    others = (block(channels * block.expansion, channels, stride=1) for _ in range(architecture.n_blocks[index] - 1))
    return nn.Sequential(first, *others)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """None is the identity, possible where shapes stay."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def averaged(
    images: Tensor,  # (B, 3, H, W)
    size: int | None,
) -> Tensor:
    """The images averaged down to `size` pixels a side; smaller ones, and all for None, as they are. Differentiable."""
    if size is None or max(images.shape[2:]) <= size:
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="area")


def check_images(images: Tensor) -> None:
    """Raises TypeError or ValueError unless `images` is a floating-point tensor (B, 3, H, W)."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = f"a tensor of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: expected a floating-point tensor, RGB in [0, 1], got {given}")
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images: expected (B, 3, H, W), got {tuple(images.shape)}")
