"""A batch of cropped hands as the networks and losses take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from dhpe_fast.data.joint0 import Joint0
from dhpe_fast.data.normalize import Square


@dataclass(frozen=True, eq=False)
class Appearance:
    """What was drawn at random for the look of each picture; ``colour.apply_colour`` carries it out."""

    gain: Tensor
    """(B, 3) factor of each channel: brightness and tint."""
    contrast: Tensor
    """(B,) factor of the difference to the picture's mean grey."""
    saturation: Tensor
    """(B,) factor of the difference to each pixel's grey."""
    hue: Tensor
    """(B,) radians by which colours turn about the grey axis."""
    blur_px: Tensor
    """(B,) standard deviation of a Gaussian blur."""
    blur_radius: int
    """Pixels at which the blurs are cut off; 0 for none."""
    noise: Tensor | None
    """(B,) standard deviation of Gaussian noise, of the range [0, 1]; None for none."""
    noise_seed: Tensor
    """(B,) int64"""
    occluders: Tensor
    """(B, N, 12), see ``augmentation.OCCLUDER_FIELDS``."""


@dataclass(frozen=True, eq=False)
class HandBatch:
    """B cropped hands with their labels; every one is a right hand, as left ones are mirrored.

    Straight from the loader, `images` and `masks` are uint8, a quarter of the bytes to move; ``colour.apply_colour``
    turns both into floating point. Labels are in the crop frame of :mod:`dhpe_fast.conventions`: x, y in [-1, 1]
    over the crop, z in the same unit and 0 at the root. Entries of joints which are not `valid` are 0. Of new views
    that ``augment`` has drawn, `joints_m`, `camera`, `center_px`, `size_px` and `root_depth_m` are NaN: no camera took
    them.
    """

    images: Tensor
    """(B, 3, S, S) RGB; uint8 from the loader, floating point in [0, 1] after ``apply_colour``."""
    masks: Tensor
    """(B, S, S) of the hand; uint8 0 or 1 from the loader, floating point after ``apply_colour``; 0 without a mask."""
    has_mask: Tensor
    """(B,) bool"""
    joints_crop: Tensor
    """(B, 21, 3) crop frame, STD order."""
    valid: Tensor
    """(B, 21) bool: the joint is annotated in space."""
    visible: Tensor
    """(B, 21) bool: it is also said to be seen in the image."""
    index: Tensor
    """(B,) int64, of the item in ``HandCrops``."""
    joints_m: Tensor
    """(B, 21, 3) camera frame, metres; of a mirrored hand, that of the mirrored image."""
    camera: Tensor
    """(B, 4) fx, fy, cx, cy of the whole image, mirrored where `mirrored`."""
    center_px: Tensor
    """(B, 2) centre of the crop's square in the whole image, mirrored where `mirrored`."""
    size_px: Tensor
    """(B,) side of the square, pixels of the whole image."""
    angle: Tensor
    """(B,) radians by which the square is turned: image px = center + size / 2 * R(angle) @ (x, y) of the crop frame,
    with R = [[cos, -sin], [sin, cos]]; x right, y down, so a positive angle turns the square clockwise."""
    root_depth_m: Tensor
    """(B,) depth at which z of the crop frame is 0: the middle MCP, or where that is not annotated the mean of the
    joints that are; NaN without any."""
    mirrored: Tensor
    """(B,) bool: the hand is a left one."""
    names: tuple[str, ...]
    """Of the samples."""
    joint0: Joint0
    """What joint 0 is, in all of the batch."""
    appearance: Appearance | None = None
    """What ``apply_colour`` has still to do, if anything."""
    verts_m: Tensor | None = None
    """(B, 778, 3) camera frame, as `joints_m`; None unless every sample has it."""

    def __post_init__(self) -> None:
        b = len(self.names)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and (value.dim() == 0 or len(value) != b):
                raise ValueError(f"HandBatch.{field.name}: expected {b} rows, got {tuple(value.shape)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """S, side of the crop in pixels."""
        return self.images.shape[-1]

    @property
    def square(self) -> Square:
        """The squares of the whole images, for ``normalize.denormalize`` with `camera` and `root_depth_m`."""
        return Square(self.center_px, self.size_px, self.angle)

    @property
    def joints_norm(self) -> Tensor:
        """(B, 21, 3) in Eq. 8's unit interval: ``0.5 * joints_crop + 0.5``."""
        return 0.5 * self.joints_crop + 0.5

    @property
    def joints2d_px(self) -> Tensor:
        """(B, 21, 2) pixels of the S x S crop."""
        return self.joints_norm[..., :2] * self.size

    def to(self, device: torch.device | str) -> HandBatch:
        """The batch on another device; from page-locked memory to a GPU without waiting."""
        # The other way, the values would be read before they have arrived.
        non_blocking = torch.device(device).type != "cpu"
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> HandBatch:
        """The batch in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return _map_tensors(self, Tensor.pin_memory)


_Record = TypeVar("_Record", HandBatch, Appearance)


def _map_tensors(record: _Record, function: Callable[[Tensor], Tensor]) -> _Record:
    """`record` with `function` applied to each of its tensors, also of the records in it."""
    changed = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, Appearance):
            changed[field.name] = _map_tensors(value, function)
    return replace(record, **changed)
