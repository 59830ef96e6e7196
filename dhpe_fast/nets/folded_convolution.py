"""A convolution and the batch norm behind it as one convolution, for inference and for the gradient by its input alone.

gamma (w * x - mu) / sigma + beta is a convolution with weights w gamma / sigma and a bias. Sum, rectifier and the
transposed weights of the gradient are prepared or fused where the device's library can do so.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from torch import Tensor, nn


class FoldedConvolution(Protocol):
    """What the layers of a frozen network are made of. Feature maps (B, C, H, W) lie channels-last."""

    def __call__(self, x: Tensor, *, relu: bool, add: Tensor | None = None) -> Tensor:
        """The result w * x + b, plus `add` if there is one, rectified or not."""

    def gradient(self, upstream: Tensor, x: Tensor) -> Tensor:
        """The gradient by x, whose values do not matter, of w * x for a given gradient of the result."""


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype, scale: Tensor | None = None) -> FoldedConvolution:
    """Folds both for running statistics, in double precision, so that each weight is rounded once.

    Args:
        conv: without groups, dilation or a bias.
        norm: the batch norm of its result.
        dtype: of weights and feature maps.
        scale: (C, 1, 1) factors on the channels of x, to be folded in, too.
    """
    with torch.no_grad():
        gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = conv.weight.double() * gain[:, None, None, None]
        if scale is not None:
            weight = weight * scale.double()
        bias = norm.bias.double() - norm.running_mean.double() * gain
        weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        kind = _OneDnnConvolution if one_dnn_fuses(weight.device, dtype) else _TorchConvolution
        return kind(weight, bias.to(dtype).contiguous(), conv.stride[0], conv.padding[0])


def one_dnn_fuses(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's oneDNN ops take such tensors: on the CPU, in float32 and in half types that it computes in.

    They are what torch's own compiler calls, and no public interface: a torch in which they do not do what they do here
    is told by a trial, and goes without.
    """
    if device.type != "cpu" or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return _one_dnn_agrees(dtype)


@functools.cache
def _one_dnn_agrees(dtype: torch.dtype) -> bool:
    supports = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    try:
        if dtype != torch.float32 and not getattr(torch.ops.mkldnn, supports[dtype])():
            return False
        with torch.inference_mode(False), torch.no_grad():
            x = torch.linspace(-1, 1, 3 * 25).reshape(1, 3, 5, 5).to(dtype=dtype, memory_format=torch.channels_last)
            weight = torch.linspace(-1, 1, 3 * 27).reshape(3, 3, 3, 3).to(x)
            weight, bias = weight.contiguous(memory_format=torch.channels_last), weight[:, 0, 0, 0].clone()
            one_dnn, plain = (kind(weight, bias, 1, 1) for kind in (_OneDnnConvolution, _TorchConvolution))
            for convolve in (
                lambda kind: kind(x, relu=True, add=x),
                lambda kind: kind(x, relu=False),
                lambda kind: kind.gradient(x, x),
            ):
                torch.testing.assert_close(convolve(one_dnn).float(), convolve(plain).float(), rtol=0.05, atol=0.05)
    except (AttributeError, KeyError, RuntimeError, TypeError, AssertionError):
        return False
    return True


class _TorchConvolution:
    """By torch's own convolutions."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int) -> None:
        self._weight, self._bias = weight, bias
        self._stride, self._padding = stride, padding

    def __call__(self, x: Tensor, *, relu: bool, add: Tensor | None = None) -> Tensor:
        y = torch.conv2d(x, self._weight, self._bias, self._stride, self._padding)
        if add is not None:
            y.add_(add)
        return y.relu_() if relu else y

    def gradient(self, upstream: Tensor, x: Tensor) -> Tensor:
        pair = [self._stride] * 2, [self._padding] * 2, [1, 1]
        by_input_alone = [True, False, False]
        return torch.ops.aten.convolution_backward(
            upstream, x, self._weight, None, *pair, False, [0, 0], 1, by_input_alone
        )[0]


class _OneDnnConvolution(_TorchConvolution):
    """By oneDNN with what torch does not do by itself: weights are brought into the library's blocks once, for both
    directions, and sum and rectifier are part of the convolution.

    Otherwise 25 million weights of a ResNet-50 are rearranged at every call, twice.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int) -> None:
        super().__init__(weight, bias, stride, padding)
        self._size = weight.shape[-1]
        self._packed: Tensor | None = None
        self._packed_backward: Tensor | None = None

    def __call__(self, x: Tensor, *, relu: bool, add: Tensor | None = None) -> Tensor:
        if self._packed is None:
            self._packed = _packed(self._weight, self._stride, self._padding, x)
        place = [self._padding] * 2, [self._stride] * 2, [1, 1], 1
        rectifier = "relu" if relu else "none"
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise(x, self._packed, self._bias, *place, rectifier, [], "")
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, add, self._packed, self._bias, *place, "add", 1.0, rectifier if relu else None, [], None
        )

    def gradient(self, upstream: Tensor, x: Tensor) -> Tensor:
        if self._stride != 1 and self._size != 1:
            return super().gradient(upstream, x)
        # The gradient of a convolution is the convolution with the transposed weights, turned by half a turn.
        padding = self._size - 1 - self._padding
        if self._packed_backward is None:
            turned = self._weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
            self._packed_backward = _packed(turned, 1, padding, upstream)
        place = [padding] * 2, [1, 1], [1, 1], 1
        gradient = torch.ops.mkldnn._convolution_pointwise(
            upstream, self._packed_backward, None, *place, "none", [], ""
        )
        if self._stride == 1:
            return gradient
        spread = torch.zeros_like(x)
        spread[..., :: self._stride, :: self._stride] = gradient
        return spread


def _packed(weight: Tensor, stride: int, padding: int, x: Tensor) -> Tensor:
    place = [padding] * 2, [stride] * 2, [1, 1], 1
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *place, list(x.shape))
