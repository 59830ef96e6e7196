"""Cut-outs and simple shapes laid over a picture in place; pictures are float32 (H, W, 3) RGB in [0, 1].

Points are pixels of the image frame: the centre of pixel (i, j) is at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import cv2
import numpy as np

_ROUGH_SHRINK = 0.6
"""Cut-outs that become smaller than this are averaged first, so that they do not flicker."""


def similarity(
    anchor_px: np.ndarray,  # (2,) of the layer
    place_px: np.ndarray,  # (2,) of the picture
    scale: float,
    angle: float,
    mirrored: bool,
) -> np.ndarray:  # (2, 3)
    """Scales, turns (radians) and perhaps mirrors a layer into a picture, `anchor_px` to `place_px`."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array(((cos, -sin), (sin, cos))) @ np.diag((-1.0 if mirrored else 1.0, 1.0))
    return np.concatenate([linear, (np.asarray(place_px) - linear @ np.asarray(anchor_px))[:, None]], axis=1)


def moved(points_px: np.ndarray, affine: np.ndarray) -> np.ndarray:  # (..., 2), (2, 3)
    """Points of the layer in the picture."""
    return points_px @ affine[:, :2].T + affine[:, 2]


def lay(
    picture: np.ndarray,  # (H, W, 3), changed
    rgba: np.ndarray,  # (h, w, 4) uint8, premultiplied
    affine: np.ndarray,  # (2, 3) layer to picture
    owner: np.ndarray | None = None,  # (H, W), changed
    name: int = -1,
    tint: np.ndarray | float = 1.0,  # (3,)
) -> None:
    """Lays a layer over the picture, its colours times `tint`; the pixels that it hides get its name in `owner`."""
    height, width = rgba.shape[:2]
    corners = moved(np.array(((0, 0), (width, 0), (width, height), (0, height)), float), affine)
    window = _window(corners.min(0), corners.max(0), picture.shape)
    if window is None:
        return
    rows, columns = window
    scale = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    if scale < _ROUGH_SHRINK:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rgba = cv2.resize(rgba, size, interpolation=cv2.INTER_AREA)
        affine = np.concatenate([affine[:, :2] * (width / size[0], height / size[1]), affine[:, 2:]], axis=1)
    # OpenCV has pixel centres at whole numbers.
    shift = affine[:, :2] @ (0.5, 0.5) + affine[:, 2] - (columns.start + 0.5, rows.start + 0.5)
    centred = np.concatenate([affine[:, :2], shift[:, None]], axis=1)
    cut = cv2.warpAffine(rgba, centred, (columns.stop - columns.start, rows.stop - rows.start))
    alpha = cut[..., 3:].astype(np.float32) / 255
    part = picture[rows, columns]
    part *= 1 - alpha
    part += np.minimum(cut[..., :3] * (np.asarray(tint, np.float32) / 255), alpha)
    if owner is not None:
        owner[rows, columns][alpha[..., 0] > 0.5] = name


def shadow(picture: np.ndarray, centre_px: np.ndarray, radius_px: float, darkness: float) -> None:
    """Darkens a soft round spot."""
    window = _window(centre_px - 2 * radius_px, centre_px + 2 * radius_px, picture.shape)
    if window is not None:
        x, y = _pixels(window)
        square = ((x - centre_px[0]) ** 2 + (y - centre_px[1]) ** 2) / radius_px**2
        picture[window] *= 1 - np.float32(darkness) * np.exp(-square, dtype=np.float32)[..., None]


def rod(
    picture: np.ndarray,  # (H, W, 3), changed
    ends_px: np.ndarray,  # (2, 2)
    radii_px: tuple[float, float],
    color: np.ndarray,  # (3,) or (H, W, 3)
    light: float,
    owner: np.ndarray | None = None,  # (H, W), changed
) -> None:
    """A rounded, tapered bar with the shading of a cylinder; `light` in [-1, 1] is the side which it comes from.

    In `owner`, what it covers is marked with -1.
    """
    reach = max(radii_px) + 1
    window = _window(ends_px.min(0) - reach, ends_px.max(0) + reach, picture.shape)
    if window is None:
        return
    x, y = _pixels(window)
    start, along = ends_px[0], ends_px[1] - ends_px[0]
    length2 = max(float(along @ along), 1e-6)
    t = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / length2, 0, 1)
    aside = ((y - start[1]) * along[0] - (x - start[0]) * along[1]) / np.sqrt(length2)
    distance = np.hypot(x - start[0] - t * along[0], y - start[1] - t * along[1])
    radius = radii_px[0] + (radii_px[1] - radii_px[0]) * t
    alpha = np.clip(radius - distance + 0.5, 0, 1)[..., None].astype(np.float32)
    offset = np.clip(aside / np.maximum(radius, 1e-3), -1, 1)
    shade = (0.55 + 0.5 * np.sqrt(np.clip(1 - (0.6 * offset - 0.5 * light) ** 2, 0, 1)))[..., None].astype(np.float32)
    own = color[window] if color.ndim == 3 else color.astype(np.float32)
    part = picture[window]
    part += (np.clip(own * shade, 0, 1) - part) * alpha
    if owner is not None:
        owner[window][alpha[..., 0] > 0.5] = -1


def patch(
    picture: np.ndarray,  # (H, W, 3), changed
    outline_px: np.ndarray,  # (N, 2)
    color: np.ndarray,  # (H, W, 3)
    blur_px: float = 0.7,
) -> None:
    """Fills a polygon with the pixels of another picture, its edge a little soft."""
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(outline_px * 8 - 4).astype(np.int32)], 255, cv2.LINE_AA, 3)
    alpha = cv2.GaussianBlur(mask, (0, 0), blur_px)[..., None].astype(np.float32) / 255
    picture += (color - picture) * alpha


def _window(low: np.ndarray, high: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    """Rows and columns of the pixels between two points; None outside of the picture."""
    left, top = np.maximum(np.floor(low), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(high), (shape[1], shape[0])).astype(int).tolist()
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def _pixels(window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = window
    return np.arange(columns.start, columns.stop)[None] + 0.5, np.arange(rows.start, rows.stop)[:, None] + 0.5
