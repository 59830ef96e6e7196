"""A small network that says where in a picture hands are, and which: a heat map of their centres, and boxes there.

After Zhou, Wang and Krähenbühl 2019, *Objects as Points*: each hand is a peak of the map; at the peak, the network
tells the side, the centre to a fraction of a cell, and the size of the box of the hand's 21 joints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 8
"""Pixels from one cell of the maps to the next."""
MULTIPLE = 32
"""Height and width of a picture are multiples of this."""
REFERENCE_PX = 64.0
"""Sizes of boxes are told as logarithms of multiples of this."""
_RARE = 0.01
"""What an untrained network says the chance of a hand is: most cells have none, and it need not learn that first."""


@dataclass(frozen=True)
class LocatorMaps:
    """What the network says of a batch of pictures, in cells of ``STRIDE`` pixels."""

    hand: Tensor
    """(B, 1, H / 8, W / 8) logit of the heat map: whether a hand's centre is in the cell"""
    left: Tensor
    """(B, 1, H / 8, W / 8) logit: whether that is a left hand"""
    offset: Tensor
    """(B, 2, H / 8, W / 8) x and y from the centre of the cell to that of the box, cells"""
    log_size: Tensor
    """(B, 2, H / 8, W / 8) logarithm of the box's width and height by ``REFERENCE_PX``"""

    def boxes_px(self) -> Tensor:
        """The box told by each cell: left, top, right, bottom (B, 4, H / 8, W / 8)."""
        rows, columns = self.offset.shape[2:]
        x = (torch.arange(columns, device=self.offset.device) + 0.5).expand(rows, columns)
        y = (torch.arange(rows, device=self.offset.device) + 0.5)[:, None].expand(rows, columns)
        centre = (self.offset + torch.stack([x, y])) * STRIDE
        half = self.log_size.clamp(-6.0, 4.0).exp() * (REFERENCE_PX / 2)
        return torch.cat([centre - half, centre + half], dim=1)

    def mirrored(self) -> LocatorMaps:
        """What it would say of the mirrored pictures, if it were consistent: columns reversed, sides swapped."""
        sign = self.offset.new_tensor((-1.0, 1.0))[:, None, None]
        return LocatorMaps(self.hand.flip(3), -self.left.flip(3), self.offset.flip(3) * sign, self.log_size.flip(3))


class Locator(nn.Module):
    """Pictures to :class:`LocatorMaps`: residual convolutions at strides 4 to 32, and back up to stride 8.

    Args:
        width: channels at stride 4; twice and four times as many at strides 8 and 16 or 32.
    """

    def __init__(self, width: int = 32) -> None:
        if width < 2 or width % 2:
            raise ValueError(f"width: expected an even number of channels, got {width}")
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(_Convolution(3, width // 2, stride=2), _Convolution(width // 2, width, stride=2))
        self.at_4 = _Residual(width)
        self.at_8 = nn.Sequential(_Convolution(width, 2 * width, stride=2), _Residual(2 * width), _Residual(2 * width))
        self.at_16 = nn.Sequential(
            _Convolution(2 * width, 4 * width, stride=2), _Residual(4 * width), _Residual(4 * width)
        )
        self.at_32 = nn.Sequential(_Convolution(4 * width, 4 * width, stride=2), _Residual(4 * width))
        self.up_16 = _Convolution(4 * width, 2 * width)
        self.side_16 = _Convolution(4 * width, 2 * width, kernel=1)
        self.side_8 = _Convolution(2 * width, 2 * width, kernel=1)
        self.merge_16 = _Convolution(2 * width, 2 * width)
        self.merge_8 = _Convolution(2 * width, 2 * width)
        self.head = _Convolution(2 * width, 2 * width)
        self.out = nn.Conv2d(2 * width, 6, 1)
        nn.init.zeros_(self.out.weight[1:])
        nn.init.zeros_(self.out.bias)
        nn.init.constant_(self.out.bias[:1], -float(torch.logit(torch.tensor(1 - _RARE))))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Locator:
        """The network of these options, with random weights."""
        return cls(**asdict(LocatorSpec(**spec)))

    def spec(self) -> dict[str, Any]:
        """Its options."""
        return {"width": self.width}

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W) RGB in [0, 1]
    ) -> LocatorMaps:
        """The maps of the pictures.

        Raises:
            ValueError: if a side of the pictures is no multiple of ``MULTIPLE``.
        """
        if images.dim() != 4 or images.shape[1] != 3 or any(side % MULTIPLE for side in images.shape[2:]):
            raise ValueError(f"images: expected (B, 3, H, W), sides multiples of {MULTIPLE}, got {tuple(images.shape)}")
        at_8 = self.at_8(self.at_4(self.stem((images - 0.5) * 4)))
        at_16 = self.at_16(at_8)
        top = functional.interpolate(self.up_16(self.at_32(at_16)), scale_factor=2.0, mode="nearest")
        middle = self.merge_16(self.side_16(at_16) + top)
        fine = self.merge_8(self.side_8(at_8) + functional.interpolate(middle, scale_factor=2.0, mode="nearest"))
        return LocatorMaps(*self.out(self.head(fine)).float().split((1, 1, 2, 2), dim=1))


@dataclass(frozen=True)
class LocatorSpec:
    """Options of a :class:`Locator`."""

    width: int = 32
    """Channels at stride 4."""


class _Convolution(nn.Sequential):
    def __init__(self, channels: int, to: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, to, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(to), nn.ReLU(inplace=True)
        )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _Convolution(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return torch.relu(x + self.norm(self.second(self.first(x))))
