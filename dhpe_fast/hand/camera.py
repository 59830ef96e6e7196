"""Cameras and the square crop box; the image frame is that of :mod:`dhpe_fast.conventions`.

Camera frame and image frame are OpenCV's, x right, y down, z away from the camera, but for one thing: pixel
(i, j) has its centre at (j + 0.5, i + 0.5). Calibrations made with integer pixel centres, as OpenCV's and
those of most data sets, are taken over by ``Pinhole.from_matrix(K, integer_centers=True)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import CROP_MARGIN, CROP_SIZE_PX, MIDDLE_MCP, N_JOINTS_STD

_UNDISTORT_STEPS = 30


@dataclass(frozen=True)
class WeakPerspective:
    """Orthographic camera with a scale: ``px = scale_px_per_m * (x, y) + trans_px``, whatever the depth."""

    scale_px_per_m: float
    """Pixels for each metre, > 0."""
    trans_px: tuple[float, float]
    """Image of the origin."""

    def __post_init__(self) -> None:
        _set(
            self,
            "scale_px_per_m",
            _number(self.scale_px_per_m, "WeakPerspective.scale_px_per_m", positive=True),
        )
        _set(self, "trans_px", _numbers(self.trans_px, 2, "WeakPerspective.trans_px"))

    def project(
        self,
        points_m: Tensor,  # (..., 3)
    ) -> Tensor:
        """Pixels (..., 2)."""
        points_m = _points(points_m, 3, "points_m")
        return points_m[..., :2] * self.scale_px_per_m + points_m.new_tensor(self.trans_px)


@dataclass(frozen=True)
class Pinhole:
    """Perspective camera with OpenCV's lens distortion (k1, k2, p1, p2, k3)."""

    fx: float
    """Focal length along x, pixels, > 0."""
    fy: float
    """Focal length along y, pixels, > 0."""
    cx: float
    """Principal point, pixels; pixel centres at half numbers."""
    cy: float
    """Principal point, pixels; pixel centres at half numbers."""
    dist: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    """Distortion coefficients in OpenCV's order: k1, k2, p1, p2, k3."""

    def __post_init__(self) -> None:
        for name in ("fx", "fy", "cx", "cy"):
            _set(self, name, _number(getattr(self, name), f"Pinhole.{name}", positive=name in ("fx", "fy")))
        _set(self, "dist", _numbers(self.dist, 5, "Pinhole.dist"))

    @classmethod
    def from_matrix(
        cls,
        matrix: Any,  # (3, 3)
        dist: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0),
        *,
        integer_centers: bool = False,
    ) -> Pinhole:
        """The camera of an intrinsic matrix K.

        Args:
            matrix: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], array or tensor.
            dist: distortion coefficients k1, k2, p1, p2, k3.
            integer_centers: whether K counts pixel centres at integer coordinates, as OpenCV's calibration
                does; the principal point then moves by half a pixel.

        Raises:
            ValueError: if the matrix has another shape, a skew, or another last row.
        """
        k = _to_float64(matrix)
        if k.shape != (3, 3):
            raise ValueError(f"matrix: expected (3, 3), got {k.shape}")
        if abs(k[0, 1]) > 1e-9 * abs(k[0, 0]) or k[1, 0] != 0 or not np.array_equal(k[2], (0, 0, 1)):
            raise ValueError(f"matrix: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {k.tolist()}")
        shift = 0.5 if integer_centers else 0.0
        return cls(k[0, 0], k[1, 1], k[0, 2] + shift, k[1, 2] + shift, tuple(dist))

    @property
    def matrix(self) -> np.ndarray:
        """K, (3, 3) float64, for pixel centres at half numbers."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    @property
    def focal_px(self) -> float:
        """Mean focal length."""
        return 0.5 * (self.fx + self.fy)

    def project(
        self,
        points_m: Tensor,  # (..., 3) camera frame
    ) -> Tensor:
        """Pixels (..., 2).

        A point that is not in front of the camera (z <= 0) has no image: NaN, with zero gradient.
        """
        points_m = _points(points_m, 3, "points_m")
        z = points_m[..., 2:]
        in_front = z > 0
        xy = self._distort(points_m[..., :2] / torch.where(in_front, z, torch.ones_like(z)))
        pixels = xy * xy.new_tensor((self.fx, self.fy)) + xy.new_tensor((self.cx, self.cy))
        return torch.where(in_front, pixels, torch.full_like(pixels, math.nan))

    def unproject(
        self,
        points_px: Tensor,  # (..., 2)
        depth_m: Tensor | float,  # (...)
    ) -> Tensor:
        """Camera-frame points (..., 3) at depth z = `depth_m`; the inverse of ``project``.

        Lens distortion is undone by fixed-point iteration, as in OpenCV; it converges for the distortion of
        ordinary lenses within their image.
        """
        points_px = _points(points_px, 2, "points_px")
        depth_m = torch.as_tensor(depth_m, dtype=points_px.dtype, device=points_px.device)
        distorted = (points_px - points_px.new_tensor((self.cx, self.cy))) / points_px.new_tensor((self.fx, self.fy))
        xy = distorted
        for _ in range(_UNDISTORT_STEPS if any(self.dist) else 0):
            radial, tangential = self._distortion(xy)
            xy = (distorted - tangential) / radial
        z = depth_m[..., None].expand(*torch.broadcast_shapes(depth_m.shape, xy.shape[:-1]), 1)
        return torch.cat([xy * z, z], dim=-1)

    def weak_perspective_at(
        self,
        root_m: Sequence[float] | Tensor,  # (3,) camera frame
    ) -> WeakPerspective:
        """The weak-perspective camera for points given *relative to a root* which is at `root_m`.

        All points are taken to be at the depth of the root: scale = focal_px / z_root, and the root is where
        this camera sees it. ``root_m`` below is the inverse.

        Raises:
            ValueError: if the root is not in front of the camera.
        """
        root = _numbers(root_m, 3, "root_m")
        if root[2] <= 0:
            raise ValueError(f"root_m: expected z > 0, in front of the camera, got {root}")
        return WeakPerspective(
            self.focal_px / root[2], tuple(self.project(torch.tensor(root, dtype=torch.float64)).tolist())
        )

    def root_m(self, weak: WeakPerspective) -> tuple[float, float, float]:
        """Where the root, the origin of `weak`, lies in this camera's frame: at depth focal_px / scale."""
        trans_px = torch.tensor(weak.trans_px, dtype=torch.float64)
        return tuple(self.unproject(trans_px, self.focal_px / weak.scale_px_per_m).tolist())

    def _distort(self, xy: Tensor) -> Tensor:
        if not any(self.dist):
            return xy
        radial, tangential = self._distortion(xy)
        return xy * radial + tangential

    def _distortion(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """Radial factor (..., 1) and tangential offset (..., 2) at undistorted normalised coordinates."""
        k1, k2, p1, p2, k3 = self.dist
        x, y = xy[..., :1], xy[..., 1:]
        r_sq = x * x + y * y
        radial = 1 + r_sq * (k1 + r_sq * (k2 + r_sq * k3))
        tangential = torch.cat(
            [2 * p1 * x * y + p2 * (r_sq + 2 * x * x), p1 * (r_sq + 2 * y * y) + 2 * p2 * x * y], dim=-1
        )
        return radial, tangential


@dataclass(frozen=True)
class CropBox:
    """A square part of an image, which may reach beyond it; the crop frame spans [-1, 1] across it."""

    center_px: tuple[float, float]
    """Centre in the image, pixels."""
    size_px: float
    """Side, pixels of the image, > 0."""

    def __post_init__(self) -> None:
        _set(self, "center_px", _numbers(self.center_px, 2, "CropBox.center_px"))
        _set(self, "size_px", _number(self.size_px, "CropBox.size_px", positive=True))

    @classmethod
    def from_points(
        cls,
        points_px: Tensor | np.ndarray,  # (21, 2) STD joints; any (N, 2) if around="box"
        margin: float = CROP_MARGIN,
        around: str = "middle_mcp",
    ) -> CropBox:
        """The paper's crop: a square of side g = margin * max(width, height) of the joints' bounding box (Eq.
        8).

        Args:
            points_px: 2D joints, or with ``around="box"`` any points.
            margin: side of the square by the longer side of the bounding box, > 0.
            around: 'middle_mcp' centres the square at the middle finger's MCP joint, as the paper does; outer
                joints may then lie outside of it, by up to a sixth of its side. 'box' centres it at the
                bounding box.

        Raises:
            ValueError: if points are missing, not finite, or all the same; if `margin` or `around` is not as
                above.
        """
        points = _to_float64(points_px)
        if around not in ("middle_mcp", "box"):
            raise ValueError(f"around: expected 'middle_mcp' or 'box', got {around!r}")
        expected = f"({N_JOINTS_STD}, 2) joints" if around == "middle_mcp" else "(N, 2) with N >= 1"
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 1:
            raise ValueError(f"points_px: expected {expected}, got {points.shape}")
        if around == "middle_mcp" and len(points) != N_JOINTS_STD:
            raise ValueError(f"points_px: expected {expected}, got {points.shape}; or pass around='box'")
        if not np.isfinite(points).all():
            raise ValueError(f"points_px: {int((~np.isfinite(points)).any(1).sum())} points are not finite")
        low, high = points.min(0), points.max(0)
        side = _number(margin, "margin", positive=True) * float((high - low).max())
        if side <= 0:
            raise ValueError("points_px: all points are the same, so they span no box")
        return cls(points[MIDDLE_MCP] if around == "middle_mcp" else 0.5 * (low + high), side)

    @property
    def top_left_px(self) -> tuple[float, float]:
        """The corner at (-1, -1) of the crop frame."""
        return self.center_px[0] - 0.5 * self.size_px, self.center_px[1] - 0.5 * self.size_px

    def to_crop(
        self,
        points_px: Tensor,  # (..., 2) image
    ) -> Tensor:
        """Points (..., 2) in the crop frame."""
        points_px = _points(points_px, 2, "points_px")
        return (points_px - points_px.new_tensor(self.center_px)) * (2 / self.size_px)

    def from_crop(
        self,
        points: Tensor,  # (..., 2) crop frame; of (..., 3) the depth is left out
    ) -> Tensor:
        """Pixels (..., 2) in the image."""
        if not isinstance(points, Tensor) or points.shape[-1:] != (3,):
            points = _points(points, 2, "points")
        return points[..., :2] * (0.5 * self.size_px) + points.new_tensor(self.center_px)

    def weak_perspective(self, scale: float, trans: Sequence[float]) -> WeakPerspective:
        """The camera in the image for a hand that ``HandParams`` places in the crop.

        Args:
            scale: crop units for each metre, > 0.
            trans: x, y and possibly z, crop units.
        """
        half = 0.5 * self.size_px
        x, y = _numbers(tuple(trans)[:2], 2, "trans")
        return WeakPerspective(
            _number(scale, "scale", positive=True) * half,
            (self.center_px[0] + x * half, self.center_px[1] + y * half),
        )

    def crop_camera(self, camera: Pinhole, size: int = CROP_SIZE_PX) -> Pinhole:
        """`camera` as it is for the crop resized to `size` x `size` pixels."""
        zoom = _crop_size(size) / self.size_px
        left, top = self.top_left_px
        return replace(
            camera,
            fx=camera.fx * zoom,
            fy=camera.fy * zoom,
            cx=(camera.cx - left) * zoom,
            cy=(camera.cy - top) * zoom,
        )

    def crop_image(
        self,
        image: np.ndarray,  # (H, W) or (H, W, C), C <= 4
        size: int = CROP_SIZE_PX,
        *,
        nearest: bool = False,
        border: float = 0,
    ) -> np.ndarray:
        """The crop resized to (size, size[, C]), in the type of `image`.

        Bilinear, with pixel centres mapped to pixel centres' places; where the crop is made smaller,
        sub-samples are averaged over each pixel's area, so that nothing aliases.

        Args:
            image: uint8, uint16, float32, float64, or bool.
            size: side of the result, pixels.
            nearest: take the nearest pixel instead, for masks of labels; bool always does.
            border: the value of all channels where the crop reaches beyond the image.

        Raises:
            TypeError, ValueError: if the image has another type or shape, or is empty.
        """
        if not isinstance(image, np.ndarray) or image.dtype not in _IMAGE_TYPES:
            given = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"image: expected an array of {', '.join(map(str, _IMAGE_TYPES))}, got {given}")
        if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] > 4):
            raise ValueError(f"image: expected (H, W) or (H, W, C) with C <= 4, not empty, got {image.shape}")
        _crop_size(size)
        is_mask = image.dtype == bool
        nearest = nearest or is_mask
        samples = 1 if nearest else min(max(math.ceil(self.size_px / size), 1), _MAX_SAMPLES)
        grid = size * samples
        step = self.size_px / grid
        # Grid index j is at (j + 0.5) * step from the box's border, and source index i has its centre at i +
        # 0.5.
        columns, rows = (_Samples(corner + 0.5 * step - 0.5, step, grid) for corner in self.top_left_px)
        method = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        crop = _sampled(image.view(np.uint8) if is_mask else image, rows, columns, method, border)
        if samples > 1:
            crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
        crop = crop.reshape(size, size, *image.shape[2:])
        return crop.view(bool) if is_mask else crop


_IMAGE_TYPES = tuple(np.dtype(kind) for kind in ("uint8", "uint16", "float32", "float64", "bool"))
_MAX_SAMPLES = 16
_MAX_SIDE_PX = 32_766
"""Of the images that OpenCV resamples."""


@dataclass(frozen=True)
class _Samples:
    """Evenly spaced places along a side of an image; its pixel i is at i."""

    first: float
    step: float
    count: int

    def reached(self, side: int) -> slice:
        """The pixels of the image that these are interpolated from, at least one; beyond it the border is."""
        last = self.first + self.step * (self.count - 1)
        start, stop = math.floor(self.first) - 1, math.ceil(last) + 2
        return slice(min(max(start, 0), side - 1), max(min(stop, side), 1))

    def halves(self) -> tuple[_Samples, _Samples]:
        half = self.count // 2
        return replace(self, count=half), replace(self, first=self.first + half * self.step, count=self.count - half)


def _sampled(image: np.ndarray, rows: _Samples, columns: _Samples, method: int, border: float) -> np.ndarray:
    """The image at these places, (rows, columns[, C]); only the window that they lie in is handed to OpenCV."""
    window = rows.reached(image.shape[0]), columns.reached(image.shape[1])
    tall, wide = (part.stop - part.start > _MAX_SIDE_PX for part in window)
    if tall:
        return np.concatenate([_sampled(image, half, columns, method, border) for half in rows.halves()], 0)
    if wide:
        return np.concatenate([_sampled(image, rows, half, method, border) for half in columns.halves()], 1)
    left, top = columns.first - window[1].start, rows.first - window[0].start
    return cv2.warpAffine(
        np.ascontiguousarray(image[window]),
        np.array([[columns.step, 0, left], [0, rows.step, top]]),
        (columns.count, rows.count),
        flags=method | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(border,) * 4,
    )


def _set(camera: Any, name: str, value: Any) -> None:
    """Stores the plain form of a field while a frozen dataclass is made."""
    object.__setattr__(camera, name, value)


def _number(value: Any, name: str, *, positive: bool = False) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not math.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{name}: expected a finite number{' > 0' if positive else ''}, got {number}")
    return number


def _numbers(values: Any, count: int, name: str) -> tuple[float, ...]:
    try:
        numbers = tuple(_number(value, name) for value in values)
    except TypeError:
        raise TypeError(f"{name}: expected {count} numbers, got {type(values).__name__}") from None
    if len(numbers) != count:
        raise ValueError(f"{name}: expected {count} numbers, got {len(numbers)}")
    return numbers


def _to_float64(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy() if isinstance(values, Tensor) else values, dtype=np.float64)


def _points(points: Any, width: int, name: str) -> Tensor:
    points = torch.as_tensor(points)
    if not points.is_floating_point() or points.shape[-1:] != (width,):
        raise ValueError(
            f"{name}: expected floating-point values (..., {width}), got {tuple(points.shape)} {points.dtype}"
        )
    return points


def _crop_size(size: int) -> int:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size: expected a whole number of pixels >= 1, got {size!r}")
    return size
