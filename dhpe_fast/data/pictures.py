"""Pictures of hands that look somewhat like photographs: skin, light, forearm, and a blurred background."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.data.backgrounds import soft_background
from dhpe_fast.data.skin_detail import SkinDetail
from dhpe_fast.hand import HandModel, Pinhole, WeakPerspective
from dhpe_fast.shading import GAMMA, SKIN, Lighting, Patterned, round_off, shade

SKIN_TONES = (
    (0.95, 0.80, 0.73),
    (0.90, 0.71, 0.62),
    (0.82, 0.61, 0.49),
    (0.69, 0.48, 0.36),
    (0.52, 0.35, 0.26),
    (0.38, 0.26, 0.20),
)
"""sRGB, light to dark; between them tones are mixed."""

FOREARM_M = 0.30
"""Length of a drawn forearm."""
_FOREARM_RINGS = 6
_TOWARDS_CAMERA = -0.25
"""A forearm pointing more towards the camera (z of its unit axis) would hide the hand, and is left out."""


@dataclass(frozen=True)
class Sleeve:
    """What covers a forearm from some place on."""

    color: tuple[float, float, float]
    """sRGB"""
    start: int
    """The ring of the forearm where it begins, 1 (at the wrist) to ``_FOREARM_RINGS``."""
    widen: float
    """Its radius by that of the arm."""

    @classmethod
    def random(cls, rng: np.random.Generator) -> Sleeve:
        """Of any colour, a little darker than not, close-fitting or loose."""
        color = rng.uniform(0.02, 0.95, 3) * rng.uniform(0.3, 1.0)
        return cls(tuple(color.tolist()), int(rng.integers(1, _FOREARM_RINGS)), rng.uniform(1.05, 1.4))


@dataclass(frozen=True, eq=False)
class Skin:
    """The skin of one person's hands."""

    colors: Tensor
    """(778, 3) albedo of the vertices, sRGB."""
    detail: SkinDetail
    """What is finer than these."""


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
    skin = _skin(model, tone, rng)
    layer = hand_layer(model, verts_m, camera, image_size, skin, random_light(rng))
    return sensor_image(lay_over(soft_background(image_size, rng), layer, shadow=0.45), rng)


def hand_layer(
    model: HandModel,
    verts_m: Tensor,  # (778, 3) camera frame
    camera: WeakPerspective | Pinhole,
    image_size: tuple[int, int],
    skin: Skin,
    light: Lighting,
    sleeve: Sleeve | None = None,
    supersample: int | None = None,
) -> np.ndarray:
    """The lit hand and its forearm alone: float32 (H, W, 4), sRGB and straight alpha."""
    values = torch.cat([skin.colors, _places_m(model.side)], dim=1)
    points_m, faces, values = round_off(*_with_forearm(model, verts_m, values, sleeve))
    colors, places_m = values.split(3, dim=1)
    return shade(
        points_m,
        faces,
        camera,
        image_size,
        material=SKIN,
        lighting=light,
        vertex_colors=Patterned(colors, places_m, skin.detail.factor),
        supersample=supersample,
    )


def forearm_axis(
    model: HandModel,
    verts_m: Tensor,  # (778, 3)
) -> tuple[Tensor, Tensor]:
    """Where the forearm begins (3,), metres, and its unit direction (3,), away from the hand."""
    center = verts_m[model.wrist_index].mean(0)
    axis = center - (model.joint_regressor @ verts_m)[MIDDLE_MCP]
    return center, axis / torch.linalg.vector_norm(axis)


def has_forearm(
    axis: Tensor,  # (3,) camera frame
) -> bool:
    """Whether a forearm of this unit direction is drawn: not if it would hide the hand."""
    return bool(axis[2] >= _TOWARDS_CAMERA)


def random_skin(model: HandModel, rng: np.random.Generator, tone: float | None = None) -> Skin:
    """Somebody's skin; of a given `tone`, as of a random one, all else is the same."""
    any_tone = rng.uniform()
    return _skin(model, any_tone if tone is None else tone, rng)


def lay_over(
    picture: np.ndarray,  # (H, W, 3) in [0, 1]
    layer: np.ndarray,  # (H, W, 4)
    *,
    shadow: float = 0.0,
) -> np.ndarray:
    """A layer before a picture, on which it may cast a soft shadow of the given darkness."""
    alpha = layer[..., 3:]
    if shadow:
        size_px = float(np.sqrt(alpha.sum()))
        moved = np.float32([[1, 0, 0.12 * size_px], [0, 1, 0.16 * size_px]])
        shade_map = cv2.warpAffine(alpha, moved, alpha.shape[1::-1])
        picture = picture * (1 - shadow * cv2.GaussianBlur(shade_map, (0, 0), max(1.0, 0.10 * size_px))[..., None])
    return picture * (1 - alpha) + layer[..., :3] * alpha


def _skin(model: HandModel, tone: float, rng: np.random.Generator) -> Skin:
    colors = _skin_colors(model, tone, rng)
    return Skin(colors, SkinDetail.random((colors.mean(0) ** GAMMA).double().numpy(), rng))


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


@lru_cache(maxsize=2)
def _places_m(side: str) -> Tensor:  # (778, 3)
    """Where the detail of the skin is looked up; any model's vertices are those of the default hand in this."""
    return HandModel.default(side).v_template * torch.tensor((1.0 if side == "right" else -1.0, 1, 1))


def _with_forearm(
    model: HandModel,
    verts_m: Tensor,  # (778, 3)
    values: Tensor,  # (778, 6) colours and places
    sleeve: Sleeve | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mesh and values of the hand, continued from its border by a forearm; closed where that would hide it."""
    ring = model.wrist_index
    border = verts_m[ring]
    center, axis = forearm_axis(model, verts_m)
    if not has_forearm(axis):
        return model.close_wrist(verts_m), model.faces_closed, torch.cat([values, values[ring].mean(0)[None]])
    skin = values[ring].mean(0)[:3]
    rows = [(step, 1.0, skin) for step in range(1, _FOREARM_RINGS + 1)]
    if sleeve is not None:  # its hem is a ring of its own, around that of the skin
        cloth = skin.new_tensor(sleeve.color)
        covered = [(step, sleeve.widen, cloth) for step in range(sleeve.start, _FOREARM_RINGS + 1)]
        rows = rows[: sleeve.start] + covered
    n, first = len(ring), len(verts_m)
    steps = border.new_tensor([step / _FOREARM_RINGS for step, _, _ in rows])[:, None, None]
    widen = (1 + 0.28 * torch.sin(1.4 * steps)) * border.new_tensor([factor for _, factor, _ in rows])[:, None, None]
    # The first rings still follow the border's slant, the last are perpendicular to the axis.
    slant = ((border - center) @ axis)[:, None] * axis
    rings = center + (border - center - slant) * widen + slant * (1 - steps) + FOREARM_M * steps * axis
    starts = [ring.long(), *(first + n * k + torch.arange(n) for k in range(len(rows)))]
    faces = [model.faces.long()]
    for near, far in pairwise(starts):
        near_next, far_next = near.roll(-1), far.roll(-1)
        faces += [torch.stack([near_next, near, far], 1), torch.stack([near_next, far, far_next], 1)]
    colors = torch.stack([color for _, _, color in rows]).repeat_interleave(n, dim=0)
    points_m = torch.cat([verts_m, rings.reshape(-1, 3)])
    # Beyond the wrist there is no detail but the palm's colour.
    places_m = (values[ring, 3:] + steps * values.new_tensor((FOREARM_M, 0, 0))).reshape(-1, 3)
    return points_m, torch.cat(faces), torch.cat([values, torch.cat([colors, places_m], dim=1)])


def random_light(rng: np.random.Generator) -> Lighting:
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


def sensor_image(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a small camera makes of it: a slight blur and noise."""
    picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.45)
    noise = rng.normal(0, 0.009, picture.shape[:2])[..., None] + rng.normal(0, 0.004, picture.shape)
    return np.rint(np.clip(picture + noise, 0, 1) * 255).astype(np.uint8)
