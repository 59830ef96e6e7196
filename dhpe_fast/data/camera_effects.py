"""What cameras and files do to a picture: light, colour, blur, noise, borders and JPEG; float32 (H, W, 3) in [0, 1]."""

from __future__ import annotations

import cv2
import numpy as np


def photographed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture as some camera would take and keep it, uint8 (H, W, 3); nothing in it moves."""
    picture = _blurred(_developed(picture, rng), rng)
    if rng.random() < 0.12:
        picture = _bordered(picture, rng)
    if rng.random() < 0.6:
        grain = rng.standard_normal((*picture.shape[:2], 3), dtype=np.float32)
        if rng.random() < 0.5:
            grain = np.broadcast_to(grain[..., :1], grain.shape)
        picture = picture + np.float32(rng.uniform(0, 0.06)) * grain
    image = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 90))]
        image = cv2.imdecode(cv2.imencode(".jpg", image[..., ::-1], quality)[1], cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(image)


def _developed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, white balance, contrast and saturation."""
    picture = np.clip(picture, 0, 1)
    if rng.random() < 0.5:
        picture = picture ** np.float32(np.exp(rng.uniform(-0.6, 0.6)))
    gain = rng.uniform(0.75, 1.25) * (rng.uniform(0.85, 1.15, 3) if rng.random() < 0.6 else np.ones(3))
    if rng.random() < 0.15:
        gain = gain * rng.uniform(0.2, 0.6)
    mixing = np.diag(gain)
    saturation = 0.0 if rng.random() < 0.12 else rng.uniform(0.5, 1.4)
    grey = np.full((3, 3), 1 / 3)
    mixing = mixing @ (saturation * np.eye(3) + (1 - saturation) * grey)
    picture = cv2.transform(picture.astype(np.float32), mixing.astype(np.float32))
    contrast = np.float32(rng.uniform(0.6, 1.4))
    return (picture - picture.mean()) * contrast + picture.mean()


def _blurred(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Defocus, or a small sensor whose picture was enlarged."""
    chance, (height, width) = rng.random(), picture.shape[:2]
    if chance < 0.35:
        return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.5))
    if chance < 0.6:
        factor = rng.uniform(1.3, 3.0)
        small = (max(1, int(width / factor)), max(1, int(height / factor)))
        return cv2.resize(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), (width, height))
    return picture


def _bordered(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Black or white at the edges, where a picture was turned or padded."""
    height, width = picture.shape[:2]
    corners = np.array(((0, 0), (1, 0), (1, 1), (0, 1))) + rng.uniform(-0.02, 0.09, (4, 2)) * (
        (1, 1),
        (-1, 1),
        (-1, -1),
        (1, -1),
    )
    inside = np.zeros((height, width), np.uint8)
    cv2.fillPoly(inside, [np.rint(corners * (width, height)).astype(np.int32)], 1)
    filling = np.float32(0.0 if rng.random() < 0.7 else 1.0)
    return np.where(inside[..., None] > 0, picture, filling)
