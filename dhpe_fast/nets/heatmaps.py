"""Heat maps of the 2D joints: drawn from joints to train f_J2D, and read to give joints (paper, Sec. 3.1).

A heat map has a value for each joint and cell of a grid of n x n over the square crop. The cell in row i and column j
stands for one point of the crop, by ``anchor``:

``"center"``: the cell's centre, ``(j + 0.5, i + 0.5) * image_size / n`` in pixels, pixel centres at half numbers.
``"corner"``: ``(j + 1/16, i + 1/16) * image_size / n``, at 256 pixels and 32 cells the centre of its first pixel.
    It is what Zimmermann and Brox (ICCV 2017) trained for, as TensorFlow's resizing takes cell j to pixel 8 j. Use it
    with their weights as they are; training towards ``heatmap_targets`` moves a network to the anchor of the targets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dhpe_fast.conventions import N_JOINTS_STD

SIGMA = 25 / 256
"""Distance by the crop's side at which a target exp(-d^2 / sigma^2) is 1/e: 25 px at 256 (Zimmermann and Brox)."""

_OFFSETS = {"center": 1 / 2, "corner": 1 / 16}
"""A cell's point from its corner, in cells."""


@torch.no_grad()
def joints_from_heatmaps(
    heatmaps: Tensor,  # (B, 21, n, n)
    image_size: int,
    subpixel: bool = False,
    *,
    anchor: str = "center",
) -> Tensor:
    """j_2D: where each map is largest (paper, Sec. 3.1), (B, 21, 2) float32 pixels of the crop.

    Of equal values the first by rows counts. No gradient flows, as in the paper. Upsampling the maps before, as
    Zimmermann and Brox do, would find the same points: a bilinear surface is largest at a node.

    Args:
        heatmaps: a stage of ``Pose2DNet``.
        image_size: side of the crop in pixels, whatever the side that the network resizes it to.
        subpixel: move by up to half a cell along x and y, to the top of the parabola through the largest value and
            its two neighbours; not at the border.
        anchor: what a cell stands for, see the top of this module.

    Raises:
        TypeError, ValueError: if `heatmaps` is no floating-point tensor (B, 21, n, n), `image_size` is not positive,
            or `anchor` is unknown.
    """
    _check_heatmaps(heatmaps)
    _check_grid(heatmaps.shape[-1], image_size, anchor)
    n = heatmaps.shape[-1]
    flat = heatmaps.flatten(2).float()
    best = flat.argmax(-1)
    cells = [best % n, best // n]  # x, y
    places = [cell.float() for cell in cells]
    if subpixel:
        for axis, step in enumerate((1, n)):
            inside = (cells[axis] > 0) & (cells[axis] < n - 1)
            places[axis] = places[axis] + _parabola_top(flat, best, torch.where(inside, step, 0))
    return (torch.stack(places, dim=-1) + _OFFSETS[anchor]) * (image_size / n)


def heatmap_targets(
    joints2d_px: Tensor,  # (B, 21, 2)
    valid: Tensor,  # (B, 21) bool
    size: int,
    image_size: int,
    sigma_px: float | None = None,
    *,
    anchor: str = "center",
) -> Tensor:
    """j_2DHeat of Eq. 3: exp(-d^2 / sigma^2) of each cell's distance to its joint, (B, 21, size, size).

    A joint that is not valid, or not finite, has a map of zeros. One outside of the crop leaves its tail inside, so
    that the largest value still is where it is nearest (Zimmermann and Brox: zeros; mark it invalid for that).

    Args:
        joints2d_px: pixels of the crop.
        valid: which joints are known.
        size: cells a side, those of the network's output.
        image_size: side of the crop in pixels.
        sigma_px: width in pixels of the crop; None is 25 px at an `image_size` of 256, and in proportion.
        anchor: what a cell stands for, see the top of this module.

    Raises:
        TypeError, ValueError: if a tensor has another type or shape; a number is not positive; `anchor` is unknown.
    """
    if not isinstance(joints2d_px, Tensor) or not joints2d_px.is_floating_point():
        raise TypeError(f"joints2d_px: expected a floating-point tensor, got {_describe(joints2d_px)}")
    if joints2d_px.dim() != 3 or joints2d_px.shape[1:] != (N_JOINTS_STD, 2):
        raise ValueError(f"joints2d_px: expected (B, {N_JOINTS_STD}, 2), got {tuple(joints2d_px.shape)}")
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        raise TypeError(f"valid: expected a bool tensor, got {_describe(valid)}")
    if valid.shape != joints2d_px.shape[:2]:
        raise ValueError(f"valid: expected {tuple(joints2d_px.shape[:2])} as joints2d_px, got {tuple(valid.shape)}")
    _check_grid(size, image_size, anchor)
    sigma_px = SIGMA * image_size if sigma_px is None else sigma_px
    if not sigma_px > 0:
        raise ValueError(f"sigma_px: expected a positive number, got {sigma_px!r}")
    drawn = (valid & torch.isfinite(joints2d_px).all(-1))[..., None]
    place = torch.where(drawn, joints2d_px, 0.0)
    cells_px = torch.arange(size, device=place.device, dtype=place.dtype).add(_OFFSETS[anchor]) * (image_size / size)
    # exp(-(dx^2 + dy^2) / sigma^2) is a product of one row and one column.
    along_x, along_y = (torch.exp(-(((cells_px - p[..., None]) / sigma_px) ** 2)) for p in place.unbind(-1))
    return (along_y * drawn)[..., :, None] * along_x[..., None, :]


def heatmap_mass(size: int) -> float:
    """Sum of the cells of a target whose joint lies well inside of the crop: pi sigma^2, in cells."""
    return math.pi * (SIGMA * size) ** 2


def _parabola_top(
    flat: Tensor,  # (B, 21, n * n)
    best: Tensor,  # (B, 21) index of the largest value
    step: Tensor,  # (B, 21) to the next cell; 0 stays
) -> Tensor:
    """Where, in cells from the largest value, the parabola through it and its neighbours has its top: (B, 21)."""
    index = torch.stack([best - step, best, best + step], dim=-1)
    before, peak, after = flat.gather(2, index).double().unbind(-1)
    fall_before, fall_after = peak - before, peak - after
    falls = fall_before + fall_after
    return torch.where(falls > 0, (fall_before - fall_after) / (2 * falls), 0).to(flat.dtype)


def _check_heatmaps(heatmaps: Tensor) -> None:
    if not isinstance(heatmaps, Tensor) or not heatmaps.is_floating_point():
        raise TypeError(f"heatmaps: expected a floating-point tensor, got {_describe(heatmaps)}")
    shape = heatmaps.shape
    if len(shape) != 4 or shape[1] != N_JOINTS_STD or shape[2] != shape[3] or shape[3] == 0:
        raise ValueError(f"heatmaps: expected (B, {N_JOINTS_STD}, n, n), got {tuple(shape)}")


def _check_grid(size: int, image_size: int, anchor: str) -> None:
    for name, value in (("size", size), ("image_size", image_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a positive whole number, got {value!r}")
    if anchor not in _OFFSETS:
        raise ValueError(f"anchor: expected 'center' or 'corner', got {anchor!r}")


def _describe(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
