"""What is behind a hand: drawn, or cut from a folder of photographs. Pictures are float32 (H, W, 3) RGB in [0, 1]."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from dhpe_fast.image import read_image

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm")
SCIKIT_IMAGE = "scikit-image"
"""In place of a folder: those photographs of the package of that name whose terms it states; all are free to use."""
_PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "clock_motion", "coffee", "coins", "grass", "gravel")
_PHOTOGRAPHS += ("horse", "hubble_deep_field", "ihc", "retina", "rocket")
_SKIN_LIKE = 0.25
"""Share of the shapes of a cluttered background whose colour is that of skin."""


def background_files(folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The images in a folder and the folders in it, sorted; of ``SCIKIT_IMAGE``, the photographs among them.

    Raises:
        ValueError: if the folder is missing or holds no image.
        ModuleNotFoundError: for ``SCIKIT_IMAGE`` where that package is not installed.
    """
    if os.fspath(folder) == SCIKIT_IMAGE:
        package = importlib.util.find_spec("skimage")
        if package is None or package.origin is None:
            raise ModuleNotFoundError("backgrounds: these photographs need pip install 'dhpe-fast[train]'")
        found = sorted(Path(package.origin).with_name("data").iterdir())
        return tuple(file for file in found if file.stem in _PHOTOGRAPHS and file.suffix in _SUFFIXES)
    files = tuple(sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in _SUFFIXES))
    if not files:
        raise ValueError(f"backgrounds: no image ({', '.join(_SUFFIXES)}) in {os.fspath(folder)!r}")
    return files


def random_background(
    image_size: tuple[int, int],
    rng: np.random.Generator,
    files: Sequence[Path] = (),
) -> np.ndarray:
    """A random part of one of the `files`; without files a drawn one, out of focus or cluttered."""
    if files:
        return photographed_background(files[int(rng.integers(len(files)))], image_size, rng)
    draw = soft_background if rng.random() < 0.3 else cluttered_background
    return draw(image_size, rng)


def photographed_background(file: Path, image_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random part of a photograph, at least half of it, mirrored or not.

    Raises:
        ImageFileError: if the file is no image; a ValueError.
    """
    photo = _photograph(file)
    height, width = image_size
    largest = min(photo.shape[0] / height, photo.shape[1] / width)
    part = rng.uniform(0.5, 1.0) * largest
    rows, columns = max(1, int(part * height)), max(1, int(part * width))
    top = int(rng.integers(photo.shape[0] - rows + 1))
    left = int(rng.integers(photo.shape[1] - columns + 1))
    cut = photo[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    smaller = rows > height
    resized = cv2.resize(
        np.ascontiguousarray(cut), (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    return resized.astype(np.float32) / 255


@lru_cache(maxsize=32)
def _photograph(file: Path) -> np.ndarray:
    return read_image(file)


def cluttered_background(image_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A soft background with textured shapes before it, some with the colours of skin, and a little defocus."""
    height, width = image_size
    canvas = soft_background(image_size, rng)
    side = max(height, width)
    for _ in range(int(rng.integers(4, 14))):
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [_random_outline(rng, side, (width, height))], 255)
        blur = rng.uniform(0.002, 0.012) * side
        alpha = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), blur)[..., None] * rng.uniform(0.5, 1.0)
        color = _skin_like(rng) if rng.random() < _SKIN_LIKE else _muted(rng.uniform(), rng)
        canvas = canvas * (1 - alpha) + np.clip(color * (1 + _texture(image_size, rng)), 0, 1) * alpha
    return np.clip(canvas, 0, 1).astype(np.float32)


def random_occluder(image_size: tuple[int, int], centre_px: tuple[float, float], radius_px: float, rng) -> np.ndarray:
    """Something in front of a hand: a textured bar or lump, float32 (H, W, 4), colour and straight alpha."""
    height, width = image_size
    mask = np.zeros((height, width), np.uint8)
    outline = _random_outline(rng, 2.4 * radius_px, None) + np.array(centre_px, np.int32)
    cv2.fillPoly(mask, [outline.astype(np.int32)], 255)
    alpha = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), 0.6)[..., None]
    color = np.clip(_muted(rng.uniform(), rng) * (1 + _texture(image_size, rng)), 0, 1)
    return np.concatenate([np.broadcast_to(color, (height, width, 3)), alpha], axis=2).astype(np.float32)


def soft_background(image_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Soft patches of muted colours, out of focus, and a vignette; float32 (H, W, 3) in [0, 1]."""
    height, width = image_size
    coarse = 48
    canvas = np.empty((coarse, coarse, 3), np.float32)
    hue, spread = rng.uniform(0, 1), rng.uniform(0.05, 0.20)
    top, bottom = (_muted(hue + rng.normal(0, spread), rng) for _ in range(2))
    ramp = np.linspace(0, 1, coarse, dtype=np.float32)[:, None, None]
    canvas[:] = top * (1 - ramp) + bottom * ramp
    for _ in range(rng.integers(5, 12)):
        x, y, radius = rng.uniform(0, coarse), rng.uniform(0, coarse), rng.uniform(3, 16)
        patch = canvas.copy()
        color = tuple(float(channel) for channel in _muted(hue + rng.normal(0, spread), rng))
        if rng.random() < 0.5:
            cv2.circle(patch, (int(x), int(y)), int(radius), color, cv2.FILLED)
        else:
            corner = (int(x + radius), int(y + rng.uniform(0.3, 2) * radius))
            cv2.rectangle(patch, (int(x), int(y)), corner, color, cv2.FILLED)
        canvas += rng.uniform(0.2, 0.6) * (cv2.GaussianBlur(patch, (0, 0), rng.uniform(1.0, 3.5)) - canvas)
    canvas = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    vignette = 1 - 0.22 * np.clip(x * x + y * y, 0, 2)[..., None] / 2
    return np.clip(canvas * vignette, 0, 1).astype(np.float32)


def _muted(hue: float, rng: np.random.Generator) -> np.ndarray:
    hsv = np.float32([[[360 * (hue % 1), rng.uniform(0.08, 0.35), rng.uniform(0.25, 0.85)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _skin_like(rng: np.random.Generator) -> np.ndarray:
    tone = rng.uniform(0.2, 0.95)
    return np.array([tone, tone * rng.uniform(0.68, 0.80), tone * rng.uniform(0.50, 0.70)], np.float32)


def _texture(image_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:  # (H, W, 1)
    """Relative changes of brightness: stripes, or noise of several sizes."""
    height, width = image_size
    if rng.random() < 0.4:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.02, 0.12) * max(image_size)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period) + rng.uniform(0, 6.28))
        return (rng.uniform(0, 0.35) * wave)[..., None].astype(np.float32)
    total = np.zeros((height, width), np.float32)
    for cells in (4, 12, 36):
        coarse = rng.normal(0, 1, (cells, cells)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / np.sqrt(cells)
    return (rng.uniform(0, 0.5) * total)[..., None]


def _random_outline(rng: np.random.Generator, side: float, within: tuple[int, int] | None) -> np.ndarray:  # (N, 2)
    """A round, long or angular closed outline of about the given size, centred at 0 or anywhere `within`."""
    n = int(rng.integers(3, 7)) if rng.random() < 0.5 else 24
    angles = np.sort(rng.uniform(0, 2 * np.pi, n)) if n < 24 else np.linspace(0, 2 * np.pi, n, endpoint=False)
    radius = 0.5 * side * rng.uniform(0.08, 0.5)
    shape = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.15, 1.0)], 1) * radius
    turn = rng.uniform(0, np.pi)
    c, s = np.cos(turn), np.sin(turn)
    shape = shape @ np.array([[c, s], [-s, c]])
    if within is not None:
        shape = shape + rng.uniform((0, 0), within)
    return np.rint(shape).astype(np.int32)
