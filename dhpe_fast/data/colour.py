"""The look of pictures, varied for a whole batch on the device that trains.

Order: occluders are part of the scene, so they come first; then the lens (blur), the light (gain, saturation, hue,
contrast: one affine map of colours), and the sensor (noise).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dhpe_fast.data.augmentation import OCCLUDER_FIELDS
from dhpe_fast.data.batch import Appearance, HandBatch
from dhpe_fast.data.splitmix import GOLDEN_GAMMA, mix64

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey of a pixel (ITU-R BT.601)."""


def apply_colour(batch: HandBatch, dtype: torch.dtype = torch.float32) -> HandBatch:
    """The batch with images and masks in floating point, images in [0, 1], and what was drawn for them carried out.

    A batch that is already so is returned as it is. Each picture depends on what was drawn for it alone, noise
    included, on every device.

    Args:
        batch: from the loader, moved to the device.
        dtype: of the images and masks.
    """
    if batch.images.is_floating_point() and batch.appearance is None:
        return batch
    images = batch.images
    images = images.to(dtype) if images.is_floating_point() else images.to(dtype) / 255
    if batch.appearance is not None:
        look = batch.appearance
        if look.occluders.shape[1]:
            images = draw_occluders(images, look.occluders)
        if look.blur_radius:
            images = blur(images, look.blur_px, look.blur_radius)
        images = adjust_colours(images, look)
        if look.noise is not None:
            images = images + look.noise[:, None, None, None] * seeded_noise(images, look.noise_seed)
        images = images.clamp(0, 1)
    return replace(batch, images=images, masks=batch.masks.to(dtype), appearance=None)


def adjust_colours(
    images: Tensor,  # (B, 3, H, W)
    look: Appearance,
) -> Tensor:
    """Gain, saturation, hue and contrast of each picture, (B, 3, H, W), not clamped.

    All are linear in the colour c but for contrast, which keeps the mean grey m: k (A c) + (1 - k) m with
    A = hue(saturation(gain)).
    """
    eye = torch.eye(3, dtype=images.dtype, device=images.device)
    luma = images.new_tensor(LUMA)
    look_of = (look.saturation, look.contrast, look.hue)
    saturation, contrast, hue = (value.to(images.dtype)[:, None, None] for value in look_of)
    desaturate = saturation * eye + (1 - saturation) * luma.expand(3, 3)
    # Rodrigues' formula about the grey axis (1, 1, 1) / sqrt(3).
    cross = images.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = hue.cos() * eye + hue.sin() * cross + (1 - hue.cos()) / 3
    matrix = turn @ desaturate * look.gain.to(images.dtype)[:, None, :]  # (B, 3, 3)
    mean_grey = torch.einsum("c,bcd,bd->b", luma, matrix, images.mean(dim=(2, 3)))
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H W, 3), a view of what the loader gives
    offset = ((1 - contrast) * mean_grey[:, None, None]).expand(-1, 1, 3)
    adjusted = torch.baddbmm(offset, pixels, (contrast * matrix).transpose(1, 2))
    return adjusted.unflatten(1, images.shape[2:]).permute(0, 3, 1, 2)


def draw_occluders(
    images: Tensor,  # (B, 3, H, W)
    occluders: Tensor,  # (B, N, 12) OCCLUDER_FIELDS
) -> Tensor:
    """The pictures (B, 3, H, W) with the shapes drawn over them, the last one on top."""
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device, dtype=images.dtype) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=images.device, dtype=images.dtype) + 0.5) * (2 / width) - 1
    for shape in occluders.to(images.dtype).unbind(1):
        of = dict(zip(OCCLUDER_FIELDS, shape[:, :, None, None].unbind(1), strict=True))  # (B, 1, 1) each
        dx, dy = x[None, None, :] - of["x"], y[None, :, None] - of["y"]
        cos, sin = of["angle"].cos(), of["angle"].sin()
        along, across = cos * dx + sin * dy, cos * dy - sin * dx
        # The least positive size stands for none, which no pixel centre lies in.
        u = along.abs() / of["half_width"].clamp_min(1e-6)
        v = across.abs() / of["half_height"].clamp_min(1e-6)
        inside = torch.where(of["is_ellipse"] > 0.5, u * u + v * v, torch.maximum(u, v)) <= 1
        stripes = of["stripes"] * torch.sin(of["frequency"] * along + of["phase"])
        colour = torch.stack([of["red"], of["green"], of["blue"]], dim=1) + stripes[:, None]
        images = torch.where(inside[:, None], colour.clamp(0, 1), images)
    return images


def blur(
    images: Tensor,  # (B, 3, H, W)
    sigma_px: Tensor,  # (B,)
    radius: int,
) -> Tensor:
    """Each picture (B, 3, H, W) under a Gaussian of its own width, cut off at `radius`; borders are repeated."""
    b, c, height, width = images.shape
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    # Narrower than a tenth of a pixel is no blur; the clamp keeps the exponent finite.
    kernel = torch.exp(-0.5 * (offsets / sigma_px.to(images.dtype)[:, None].clamp_min(0.1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, dim=0)  # (B C, 2 radius + 1)
    rows = F.pad(images.reshape(1, b * c, height, width), (radius,) * 4, mode="replicate")
    rows = F.conv2d(rows, kernel[:, None, :, None], groups=b * c)
    return F.conv2d(rows, kernel[:, None, None, :], groups=b * c).reshape(b, c, height, width)


def seeded_noise(
    images: Tensor,  # (B, 3, H, W) gives shape, type and device
    seeds: Tensor,  # (B,) int64
) -> Tensor:
    """Nearly Gaussian noise (B, 3, H, W) of unit variance which depends on the seeds only, the same on any device.

    Each pixel has 64 random bits, a counter through the mixing function of SplitMix64 (Steele et al. 2014); each of its
    channels is the sum of four numbers of five of these bits, an Irwin-Hall distribution.
    """
    b, _, height, width = images.shape
    counter = torch.arange(1, height * width + 1, device=images.device) * GOLDEN_GAMMA
    bits = mix64(mix64(seeds.to(images.device) * GOLDEN_GAMMA)[:, None] + counter)  # (B, H W)
    noise = images.new_empty((b, height * width, 3))
    for channel in range(3):
        # Two sums at once, in bits 0..5 and 10..15; then the sum of both, 0 to 124.
        fields = (bits >> (20 * channel)) & 0xFFFFF
        pairs = (fields & 0x7C1F).add_(fields.bitwise_right_shift_(5).bitwise_and_(0x7C1F))
        noise[..., channel] = (pairs & 0x3FF).add_(pairs.bitwise_right_shift_(10))
    noise.sub_(62).div_(math.sqrt(4 * (32**2 - 1) / 12))
    return noise.view(b, height, width, 3).permute(0, 3, 1, 2)
