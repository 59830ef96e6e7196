"""Pictures and masks of the caller, brought to one form: uint8 RGB arrays and boolean arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

_CHANNELS = (1, 3, 4)
_RANGE_TOLERANCE = 1e-3


class ImageFileError(ValueError):
    """An image file that cannot be used; the message names the file and the fault."""


class MissingImageFileError(ImageFileError, FileNotFoundError):
    """There is no file at the path."""


def read_image(source: str | os.PathLike[str] | np.ndarray | Tensor) -> np.ndarray:
    """Reads or converts an image to uint8 RGB, (H, W, 3), a new contiguous array.

    * A file: any format of OpenCV (JPEG, PNG, WebP, TIFF, BMP, ...). The EXIF orientation is honoured, except
      in files with an alpha channel.
    * An array or tensor: grey (H, W), or with 1, 3 (RGB) or 4 (RGBA) channels, (H, W, C) or (C, H, W). Where
      both fit, an array is read as (H, W, C) and a tensor as (C, H, W).
    * uint8 stays; uint16 becomes ``round(v / 257)``; floating point is in [0, 1] and becomes
      ``round(255 v)``.
    * Grey is repeated; RGBA is composited over white, as what lies under transparent pixels is arbitrary.

    Raises:
        TypeError: if `source` is something else, or of another dtype.
        ValueError: if the image has another shape, no pixels, or values that are NaN or outside of [0, 1]; if
            the file is missing (also a FileNotFoundError), empty, truncated, or no image (ImageFileError).
    """
    if isinstance(source, (str, os.PathLike)):
        return _to_rgb8(_decode(Path(source)))
    if isinstance(source, Tensor):
        return _to_rgb8(_channels_last(source.detach().cpu().numpy(), prefer_first=True))
    if isinstance(source, np.ndarray):
        return _to_rgb8(_channels_last(source, prefer_first=False))
    raise TypeError(f"image: expected a path, a numpy array or a tensor, got {type(source).__name__}")


def read_mask(
    source: Any,  # (H, W) or (N, H, W)
) -> np.ndarray:
    """Brings masks of a hand to a new boolean array, (H, W) or (N, H, W).

    Of bool and whole numbers, what is not zero is hand; floating-point masks are probabilities, hand from 0.5 on.

    Raises:
        TypeError: if `source` is no array or tensor of bool or numbers.
        ValueError: if it has another number of axes, is not finite, or a mask has no pixel set.
    """
    values = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        given = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise TypeError(f"mask: expected an array or tensor of bool or numbers, got {given}")
    if values.ndim not in (2, 3):
        raise ValueError(f"mask: expected (H, W), or (N, H, W) for N hands, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("mask: holds NaN or infinity")
    mask = values >= 0.5 if values.dtype.kind == "f" else values != 0
    if not mask.any(axis=(-2, -1)).all():
        raise ValueError("mask: no pixel of it is set; leave the mask out where it is not known")
    return mask


def _decode(file: Path) -> np.ndarray:
    if file.is_dir():
        raise ImageFileError(f"{file}: is a folder, expected an image file")
    try:
        data = np.frombuffer(file.read_bytes(), dtype=np.uint8)
    except FileNotFoundError:
        raise MissingImageFileError(f"{file}: no such file") from None
    except OSError as error:
        raise ImageFileError(f"{file}: cannot be read: {error.strerror}") from error
    if data.size == 0:
        raise ImageFileError(f"{file}: the file is empty")
    is_jpeg = data[:3].tobytes() == b"\xff\xd8\xff"
    try:
        # Only this mode keeps alpha, which JPEG has not; only the other one turns the picture by its EXIF orientation.
        image = None if is_jpeg else cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if is_jpeg or (image is not None and (image.ndim == 2 or image.shape[2] != 4)):
            image = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ImageFileError(f"{file}: cannot be decoded: {error.err or error}") from error
    if image is None:
        raise ImageFileError(f"{file}: is truncated, or not an image of a format that OpenCV reads")
    if image.ndim == 2:
        return image[..., None]
    if image.shape[2] in (3, 4):
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return image[..., [2, 1, 0, *range(3, image.shape[2])]]


def _channels_last(image: np.ndarray, prefer_first: bool) -> np.ndarray:
    """(H, W, C) from any accepted shape."""
    if image.size == 0:
        raise ValueError(f"image: has no pixels, its shape is {image.shape}")
    if image.ndim == 2:
        return image[..., None]
    first, last = (image.ndim == 3 and image.shape[axis] in _CHANNELS for axis in (0, -1))
    if first and (prefer_first or not last):
        return np.moveaxis(image, 0, -1)
    if last:
        return image
    hint = "; pass one image of the batch at a time" if image.ndim == 4 else ""
    raise ValueError(f"image: expected (H, W), or (H, W, C) or (C, H, W) with C of 1, 3 or 4, got {image.shape}{hint}")


def _to_rgb8(
    image: np.ndarray,  # (H, W, C)
) -> np.ndarray:
    if image.dtype.kind == "f":
        # NaN fails the comparison, too.
        if not ((image >= -_RANGE_TOLERANCE) & (image <= 1 + _RANGE_TOLERANCE)).all():
            low, high = float(np.min(image)), float(np.max(image))
            fault = "has NaN" if np.isnan(low + high) else f"spans {low:.4g} to {high:.4g}"
            raise ValueError(
                f"image: floating-point values must lie in [0, 1], this image {fault}; divide by 255, or pass uint8"
            )
        image = np.rint(np.clip(image, 0, 1) * 255.0).astype(np.uint8)
    elif image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise TypeError(f"image: expected uint8, uint16 or floating point, got {image.dtype}")
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] == 4:
        color, alpha = image[..., :3].astype(np.uint32), image[..., 3:].astype(np.uint32)
        return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.array(image, order="C")
