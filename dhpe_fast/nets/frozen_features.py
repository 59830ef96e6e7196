"""F as Eq. 11 needs it: fixed weights, and of its derivatives only that by the image.

``FrozenFeatures`` is a copy of a ``FeatureExtractor`` in eval mode, made to be fast: batch norms are folded into the
convolutions before them, tensors lie channels-last, what can be fused is, and the precision can be chosen.
``MaskedFeatures`` is the feature term of Eq. 11 for crops that stay while the mask changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dhpe_fast.nets.folded_convolution import FoldedConvolution, fold
from dhpe_fast.nets.resnet import BasicBlock, Bottleneck, FeatureExtractor, averaged, check_images

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class FrozenFeatures:
    """F(x) with fixed weights, differentiable by x alone; a copy, which later training does not reach.

    In a half type, weights and feature maps are rounded to it; features are averaged in the network's own. bfloat16
    has the range of float32, and about two digits; float16 has three, and overflows where a feature map exceeds 65,504,
    which trained networks stay far below. CPUs without instructions for a half type are far slower in it, and few have
    those for float16.

    Attributes:
        depth: number of layers of the ResNet.
        n_features: length of the feature vector.
        input_size: side to which larger images are averaged down, as by the network.
        precision: torch's type of weights and feature maps.
    """

    def __init__(self, features: FeatureExtractor, precision: str | None = None) -> None:
        """Copies and folds; `features` stays as it is, in whichever mode, and the copy is on its device.

        Args:
            features: the network.
            precision: "float32", "bfloat16" or "float16"; None is that of the network.

        Raises:
            TypeError: if `features` is no ``FeatureExtractor``. ValueError: if the precision is another one.
        """
        if not isinstance(features, FeatureExtractor):
            raise TypeError(f"features: expected a FeatureExtractor, got {type(features).__name__}")
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"precision: expected None or one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.depth, self.n_features = features.depth, features.n_features
        self.input_size = features.input_size
        self.precision = features.conv1.weight.dtype if precision is None else PRECISIONS[precision]
        self._mean = features.mean.detach().clone()
        # (x - mean) / std is zero where x - mean is: with the std in the weights, the padding stays what it was.
        self._stem = fold(features.conv1, features.bn1, self.precision, 1 / features.std.double())
        layers = (features.layer1, features.layer2, features.layer3, features.layer4)
        self._blocks = tuple(_Block.of(block, self.precision) for layer in layers for block in layer)

    def __call__(
        self,
        images: Tensor,  # (B, 3, H, W) RGB in [0, 1]
    ) -> Tensor:
        """Feature vectors (B, n_features), in the type of the network that was copied.

        Raises:
            TypeError, ValueError: if `images` is no floating-point tensor (B, 3, H, W).
        """
        check_images(images)
        with torch.autocast(images.device.type, enabled=False):
            centred = averaged(images.to(self._mean.dtype), self.input_size) - self._mean
            return _Features.apply(centred, self)

    def __repr__(self) -> str:
        return f"FrozenFeatures(depth={self.depth}, n_features={self.n_features}, precision={self.precision})"

    def forward_pass(
        self,
        centred: Tensor,  # (B, 3, H, W) images less their mean
    ) -> tuple[Tensor, _Pass]:
        """The features, and what ``backward_pass`` needs of the way to them."""
        x = centred.to(dtype=self.precision, memory_format=torch.channels_last)
        stem = self._stem(x, relu=True)
        pooled, winners = torch.ops.aten.max_pool2d_with_indices(stem, *_POOLING)
        maps = [[pooled]]
        for block in self._blocks:
            maps.append(block(maps[-1][-1]))
        return maps[-1][-1].mean((2, 3), dtype=self._mean.dtype), _Pass(x, stem, winners, maps)

    def backward_pass(
        self,
        upstream: Tensor,  # (B, n_features)
        done: _Pass,
    ) -> Tensor:
        """The gradient (B, 3, H, W) by the images."""
        last = done.maps[-1][-1]
        gradient = (upstream / (last.shape[2] * last.shape[3])).to(self.precision)[..., None, None]
        gradient = gradient.expand_as(last).contiguous(memory_format=torch.channels_last)
        for block, before, after in zip(
            reversed(self._blocks), reversed(done.maps[:-1]), reversed(done.maps[1:]), strict=True
        ):
            gradient = block.gradient(gradient, before[-1], after)
        gradient = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, done.stem, *_POOLING, [1, 1], False, done.winners
        )
        return self._stem.gradient(_rectified(gradient, done.stem), done.images).to(self._mean.dtype)


_POOLING = ([3, 3], [2, 2], [1, 1])
"""Kernel, stride and padding of ResNet's only max pooling."""


class _Pass(NamedTuple):
    """What a forward pass leaves for a backward one."""

    images: Tensor
    stem: Tensor
    winners: Tensor
    """of the max pooling"""
    maps: list[list[Tensor]]
    """after the stem and after each block: rectified feature maps in their order"""


class _Block(NamedTuple):
    """A residual block: convolutions in a row, the last of which adds the shortcut; all are rectified."""

    convolutions: tuple[FoldedConvolution, ...]
    shortcut: FoldedConvolution | None
    """None is the identity"""

    @classmethod
    def of(cls, block: BasicBlock | Bottleneck, dtype: torch.dtype) -> _Block:
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        shortcut = None if block.downsample is None else fold(*block.downsample, dtype)
        return cls(tuple(fold(conv, norm, dtype) for conv, norm in pairs), shortcut)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """The feature map after each convolution."""
        maps = [x]
        for convolution in self.convolutions[:-1]:
            maps.append(convolution(maps[-1], relu=True))
        shortcut = x if self.shortcut is None else self.shortcut(x, relu=False)
        return [*maps[1:], self.convolutions[-1](maps[-1], relu=True, add=shortcut)]

    def gradient(self, upstream: Tensor, x: Tensor, maps: list[Tensor]) -> Tensor:
        """By x, given that of the last map."""
        upstream = gradient = _rectified(upstream, maps[-1])
        for convolution, before in zip(self.convolutions[:0:-1], maps[-2::-1], strict=True):
            gradient = _rectified(convolution.gradient(gradient, before), before)
        gradient = self.convolutions[0].gradient(gradient, x)
        return gradient.add_(upstream if self.shortcut is None else self.shortcut.gradient(upstream, x))


class _Features(torch.autograd.Function):
    """The passes of a frozen network as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, centred: Tensor, network: FrozenFeatures) -> Tensor:
        features, done = network.forward_pass(centred)
        if ctx.needs_input_grad[0]:
            ctx.network, ctx.done = network, done
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.network.backward_pass(upstream, ctx.done), None


def _rectified(gradient: Tensor, rectified: Tensor) -> Tensor:
    """The gradient through a rectifier whose result is given."""
    return torch.ops.aten.threshold_backward(gradient, rectified, 0)


class MaskedFeatures:
    """||F(x) - F(m * x)||^2 (Eq. 11) and its derivative by the mask m, for a batch of crops x.

    F(x) is computed once. With `feature_size`, F sees crops and masks averaged down to that many pixels a side: cheaper
    by the square, and another F, as its receptive field covers more of the hand. The derivative is that of the whole,
    by the mask as it is given.

    Attributes:
        features: (B, N) F(x).
    """

    def __init__(
        self,
        extract: Callable[[Tensor], Tensor],
        images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
        feature_size: int | None = None,
    ) -> None:
        """Runs F on the crops as they are.

        Args:
            extract: F, such as ``FrozenFeatures`` or any module in eval mode.
            images: the crops x.
            feature_size: side in pixels of what F sees, at most S; None is S.

        Raises:
            TypeError, ValueError: if the crops are no floating-point tensor (B, 3, S, S), or `feature_size` is no whole
                number from 1 to S.
        """
        check_images(images)
        size = images.shape[-1]
        if images.shape[-2] != size:
            raise ValueError(f"images: expected square crops (B, 3, S, S), got {tuple(images.shape)}")
        self._extract = extract
        self._size = size
        self._average = None
        if feature_size is not None and feature_size != size:
            self._average = box_filter(size, feature_size).to(images)
        self._images = self._smaller(images.detach()).contiguous()
        with torch.no_grad():
            self.features = extract(self._images)

    def __call__(
        self,
        mask: Tensor,  # (B, S, S)
    ) -> tuple[Tensor, Tensor]:
        """The value (B,) and its derivative by the mask (B, S, S); no gradient flows through either.

        Raises:
            ValueError: if the mask has another shape.
        """
        leaf = self._leaf(mask).requires_grad_()
        with torch.enable_grad():
            features_masked = self._extract(self._images * leaf[:, None])
        difference = features_masked.detach() - self.features
        # The derivative by the mask is linear in that by the features: scaled to 1, none of it underflows in float16.
        largest = difference.abs().amax(-1, keepdim=True)
        scale = torch.where(largest > 0, largest, 1.0)
        (slope,) = torch.autograd.grad(features_masked, leaf, 2 * difference / scale)
        slope = slope * scale[..., None]
        if self._average is not None:
            slope = self._average.T @ slope @ self._average
        return difference.square().sum(-1).to(mask.dtype), slope.to(mask.dtype)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The crops as F sees them, and F(x)."""
        return self._images, self.features

    def without_tensors(self) -> MaskedFeatures:
        """The same without crops, for what is to be kept: to be called it needs other ones, see ``on``."""
        none = self._images.new_empty(0)
        return self.on(none, none)

    def on(
        self,
        images: Tensor,  # (B, 3, s, s)
        features: Tensor,  # (B, N)
    ) -> MaskedFeatures:
        """The same for other crops, as many as there are, given their ``tensors``: F does not run."""
        other = copy.copy(self)
        other._images, other.features = images, features
        return other

    def value(
        self,
        mask: Tensor,  # (B, S, S)
    ) -> Tensor:
        """The value (B,) alone, by a forward pass.

        Raises:
            ValueError: if the mask has another shape.
        """
        with torch.no_grad():
            difference = self._extract(self._images * self._leaf(mask)[:, None]) - self.features
        return difference.square().sum(-1).to(mask.dtype)

    def _leaf(self, mask: Tensor) -> Tensor:
        expected = (len(self._images), self._size, self._size)
        if tuple(mask.shape) != expected:
            raise ValueError(f"mask: expected {expected}, got {tuple(mask.shape)}")
        return self._smaller(mask.detach().to(self._images.dtype)).clone()

    def _smaller(self, images: Tensor) -> Tensor:  # (..., S, S)
        return images if self._average is None else self._average @ images @ self._average.T


def box_filter(size: int, smaller: int) -> Tensor:
    """The matrix (smaller, size) that averages over boxes: row i has the shares of the pixels that box i covers.

    Raises:
        ValueError: unless `smaller` is a whole number from 1 to `size`.
    """
    if isinstance(smaller, bool) or not isinstance(smaller, int) or not 1 <= smaller <= size:
        raise ValueError(f"feature_size: expected a whole number of pixels from 1 to {size}, got {smaller!r}")
    edges = torch.arange(smaller + 1, dtype=torch.float64) * (size / smaller)
    pixels = torch.arange(size, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return covered.clamp_min(0) * (smaller / size)
