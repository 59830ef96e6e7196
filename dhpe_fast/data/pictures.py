"""Pictures of hands that look somewhat like photographs: skin, light, forearm, and a blurred background."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.hand import HandModel, Pinhole, WeakPerspective
from dhpe_fast.shading import SKIN, Lighting, round_off, shade

SKIN_TONES = (
    (0.95, 0.80, 0.73),
    (0.90, 0.71, 0.62),
    (0.82, 0.61, 0.49),
    (0.69, 0.48, 0.36),
    (0.52, 0.35, 0.26),
    (0.38, 0.26, 0.20),
)
"""sRGB, light to dark; between them tones are mixed."""

_FOREARM_M = 0.30
_FOREARM_RINGS = 6
_TOWARDS_CAMERA = -0.25
"""A forearm pointing more towards the camera (z of its unit axis) would hide the hand, and is left out."""


def draw_hand(
    model: HandModel,
    verts_m: Tensor,  # (778, 3) camera frame
    camera: WeakPerspective | Pinhole,
    image_size: tuple[int, int],
    rng: np.random.Generator,
    *,
    tone: float | None = None,
) -> np.ndarray:
    """Draws a hand with a forearm before a background, uint8 RGB (H, W, 3).

    Skin, light, background and sensor noise are random. The forearm is not part of the mesh: like that of a
    photograph, it continues beyond the hand's mask.

    Args:
        model: whose mesh it is.
        verts_m: the mesh.
        camera: projects it to the image.
        image_size: (height, width).
        rng: source of the random numbers.
        tone: place in ``SKIN_TONES``, 0 (light) to 1 (dark); None is random.
    """
    tone = rng.uniform() if tone is None else tone
    colors = _skin_colors(model, tone, rng)
    points_m, faces, colors = _with_forearm(model, verts_m, colors)
    points_m, faces, colors = round_off(points_m, faces, colors)
    layer = shade(points_m, faces, camera, image_size, material=SKIN, lighting=_light(rng), vertex_colors=colors)
    picture = _background(image_size, rng)
    alpha = layer[..., 3:]
    size_px = float(np.sqrt(alpha.sum()))
    shadow = cv2.warpAffine(alpha, np.float32([[1, 0, 0.12 * size_px], [0, 1, 0.16 * size_px]]), alpha.shape[1::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(1.0, 0.10 * size_px))[..., None]
    picture = picture * (1 - 0.45 * shadow)
    picture = picture * (1 - alpha) + layer[..., :3] * alpha
    return _sensor(picture, rng)


def _skin_colors(model: HandModel, tone: float, rng: np.random.Generator) -> Tensor:
    """Albedo of the vertices (778, 3): redder at fingertips and knuckles, paler in the palm, mottled."""
    place = tone * (len(SKIN_TONES) - 1)
    index = min(int(place), len(SKIN_TONES) - 2)
    base = np.array(SKIN_TONES[index]) * (1 - place + index) + np.array(SKIN_TONES[index + 1]) * (place - index)
    rest_m = model.v_template.double().numpy()
    joints_m = (model.joint_regressor.double() @ model.v_template.double()).numpy()
    distance = np.linalg.norm(rest_m[:, None] - joints_m[1:], axis=-1)
    # Flushed skin: strongest at the tips (every fourth joint from the fourth on).
    strength = np.where(np.arange(1, 21) % 4 == 0, 1.0, 0.45)
    flush = (strength * np.exp(-0.5 * (distance / 0.009) ** 2)).max(1, keepdims=True)
    waves = rng.normal(size=(3, 24)) * 160
    mottle = np.sin(rest_m @ waves + rng.uniform(0, 6.28, 24)).mean(1, keepdims=True)
    colors = base * (1 + 0.10 * mottle) + flush * np.array((0.015, -0.055, -0.045)) * (1.2 - tone)
    # The palm faces -y in the model frame and has little pigment.
    palm = 1 / (1 + np.exp((rest_m[:, 1:2] - np.median(rest_m[:, 1])) / 0.004))
    pale = np.array(SKIN_TONES[1]) * (1 - 0.35 * tone)
    colors += 0.55 * tone * palm * (pale - base)
    return torch.from_numpy(np.clip(colors, 0.02, 1.0)).float()


def _with_forearm(model: HandModel, verts_m: Tensor, colors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mesh and colours of the hand, continued from its border by a forearm; closed where that would hide it."""
    ring = model.wrist_index
    border = verts_m[ring]
    center = border.mean(0)
    axis = center - (model.joint_regressor @ verts_m)[MIDDLE_MCP]
    axis = axis / torch.linalg.vector_norm(axis)
    if axis[2] < _TOWARDS_CAMERA:
        return model.close_wrist(verts_m), model.faces_closed, torch.cat([colors, colors[ring].mean(0)[None]])
    n, first = len(ring), len(verts_m)
    steps = torch.linspace(0, 1, _FOREARM_RINGS + 1)[1:, None, None]
    widen = 1 + 0.28 * torch.sin(1.4 * steps)
    # The first rings still follow the border's slant, the last are perpendicular to the axis.
    slant = ((border - center) @ axis)[:, None] * axis
    rings = center + (border - center - slant) * widen + slant * (1 - steps) + _FOREARM_M * steps * axis
    starts = [ring.long(), *(first + n * k + torch.arange(n) for k in range(_FOREARM_RINGS))]
    faces = [model.faces.long()]
    for near, far in pairwise(starts):
        near_next, far_next = near.roll(-1), far.roll(-1)
        faces += [torch.stack([near_next, near, far], 1), torch.stack([near_next, far, far_next], 1)]
    forearm = colors[ring].mean(0).expand(n * _FOREARM_RINGS, 3)
    points_m = torch.cat([verts_m, rings.reshape(-1, 3)])
    return points_m, torch.cat(faces), torch.cat([colors, forearm])


def _light(rng: np.random.Generator) -> Lighting:
    """A key light from above, in front and to one side; warm or cool; and a fill light across from it."""
    side = rng.choice((-1.0, 1.0))
    key = (side * rng.uniform(0.3, 1.0), -rng.uniform(0.4, 1.0), -rng.uniform(0.45, 1.0))
    warmth = rng.uniform(-0.08, 0.10)
    strength = rng.uniform(1.2, 1.6)
    tint = np.array((1 + warmth, 1.0, 1 - warmth))
    fill = rng.uniform(0.12, 0.30) * np.array((0.92, 1.0, 1.12))
    ambient = rng.uniform(0.28, 0.42) * np.array((0.95, 1.0, 1.06))
    return Lighting(
        key=key,
        key_color=tuple(strength * tint),
        fill=(-side, 0.2, -0.5),
        fill_color=tuple(fill),
        ambient=tuple(ambient),
    )


def _background(image_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
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


def _sensor(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a small camera makes of it: a slight blur and noise."""
    picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.45)
    noise = rng.normal(0, 0.009, picture.shape[:2])[..., None] + rng.normal(0, 0.004, picture.shape)
    return np.rint(np.clip(picture + noise, 0, 1) * 255).astype(np.uint8)
