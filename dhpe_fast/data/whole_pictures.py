"""Whole pictures of people with no, one or several hands, and where these are: to learn finding hands.

Drawn hands with forearms (:mod:`~dhpe_fast.data.hand_layers`) are laid over backgrounds, people and things, at any
size and place. Skin is no sign of a hand: faces, bare limbs and arms whose hand is cut off have it, too. Every picture
depends on the seed, the split and its own number only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from dhpe_fast.data.backgrounds import background_files, random_background
from dhpe_fast.data.camera_effects import photographed
from dhpe_fast.data.collage import lay, moved, patch, rod, shadow, similarity
from dhpe_fast.data.hand_layers import Layer
from dhpe_fast.data.synthetic import SPLITS
from dhpe_fast.data.thing_meshes import skin_color
from dhpe_fast.image import read_image

HANDS = (0.3, 0.42, 0.28)
"""Chances of pictures without hands, with one, and with two."""
SPAN = (0.07, 1.6)
"""Longer side of a hand's box of joints, by the side of the picture; uniform in the logarithm."""
CLOSE_UP = 0.4
"""Share of the pictures in whose middle one hand fills about half, as in a second look at a found hand."""
TO_BE_FOUND = (0.09, 0.85)
"""Sizes of the hands to be found; whether others are found does not matter, unless they fill the picture."""

_FILLS_PICTURE = 1.3
_IN_PICTURE, _IN_VIEW = 0.7, 0.5
"""Parts of a hand's box inside of the picture, and of its joints before everything, for it to be found."""
_DRAWN_BACKGROUNDS, _BACKGROUND_PX = 160, 224
_PERSON, _THING, _HELD, _MORE_ARMS, _PLAIN = 0.6, 0.45, 0.3, 0.25, 0.15


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """A picture and its hands."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB"""
    boxes_px: np.ndarray
    """(N, 4) float32: left, top, right, bottom of the 21 joints"""
    is_left: np.ndarray
    """(N,) bool"""
    counts: np.ndarray
    """(N,) bool: whether the hand is to be found; else it may be found or not"""
    has_unlabelled: bool = False
    """Whether there is a hand beside these, which fills the picture and has no box"""


@dataclass(frozen=True, eq=False)
class _Arm:
    """A hand layer at its place in the picture, or such an arm whose hand is cut off."""

    layer: Layer
    affine: np.ndarray
    """(2, 3) layer to picture, pixels"""
    mirrored: bool
    has_hand: bool

    @property
    def scale_px_per_m(self) -> float:
        return self.layer.scale_px_per_m * float(np.sqrt(abs(np.linalg.det(self.affine[:, :2]))))

    @property
    def joints_px(self) -> np.ndarray:  # (21, 2)
        return moved(self.layer.joints_px.astype(float), self.affine)

    @property
    def elbow_px(self) -> np.ndarray:  # (2,) not finite without a forearm
        return moved(self.layer.elbow_px.astype(float), self.affine)

    @property
    def is_left(self) -> bool:
        return (self.layer.kind == "left") != self.mirrored


class WholePictures:
    """An endless set of pictures of drawn layers.

    Args:
        layers: of one split, see ``hand_layers.read_layers``.
        split: "training" or "evaluation".
        seed: of the random numbers.
        backgrounds: a folder of photographs, or ``backgrounds.SCIKIT_IMAGE``, for half of the backgrounds; None draws
            all.
        size_px: height and width.

    Raises:
        ValueError: if there is no hand among the layers, or the folder holds no image.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        split: str,
        *,
        seed: int = 0,
        backgrounds: str | None = None,
        size_px: tuple[int, int] = (160, 160),
    ) -> None:
        layers = [replace(layer, rgba=_premultiplied(layer.rgba)) for layer in layers]
        self.hands = [layer for layer in layers if layer.kind in ("right", "left")]
        self.heads = [layer for layer in layers if layer.kind == "head"]
        self.things = [layer for layer in layers if layer.kind in ("limb", "lump", "tool")]
        if not self.hands:
            raise ValueError(f"layers: expected hands among them, got {len(layers)} layers without any")
        self.split, self.seed, self.size_px = SPLITS.index(split), seed, size_px
        self.photos = [] if backgrounds is None else [read_image(file) for file in background_files(backgrounds)]
        self._drawn: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> LabelledPicture:
        """Picture `number`."""
        rng = np.random.default_rng((self.seed, self.split, number))
        picture = self._background(rng)
        arms = self._arms(rng)
        size_m = np.array(self.size_px[::-1]) / arms[0].scale_px_per_m
        if rng.random() < _PERSON:
            self._draw_person(picture, arms[0], rng)
        while rng.random() < _THING:
            self._draw_thing(picture, float(size_m.max()), arms[0].scale_px_per_m, rng)
        owner = np.full(self.size_px, -1, np.int16)
        for index in rng.permutation(len(arms)).tolist():
            self._draw_arm(picture, owner, arms[index], index, rng)
            if rng.random() < _HELD:
                self._draw_held(picture, owner, arms[index], rng)
        hands = [
            (arm, self._is_to_be_found(arm, owner == index))
            for index, arm in enumerate(arms)
            if arm.has_hand and self._span(arm) < _FILLS_PICTURE
        ]
        return LabelledPicture(
            photographed(picture, rng),
            np.array([_box(arm.joints_px) for arm, _ in hands], np.float32).reshape(-1, 4),
            np.array([arm.is_left for arm, _ in hands], bool),
            np.array([counts for _, counts in hands], bool),
            len(hands) < sum(arm.has_hand for arm in arms),
        )

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        height, width = self.size_px
        if rng.random() < _PLAIN:  # a studio: white, black or any colour
            color = rng.choice(3, p=(0.3, 0.2, 0.5))
            level = (rng.uniform(0.85, 1, 3), rng.uniform(0, 0.08, 3), rng.uniform(0.05, 0.95, 3))[color]
            slope = np.linspace(-1, 1, height)[:, None, None] * rng.uniform(-0.15, 0.15)
            return np.broadcast_to(np.clip(level * (1 + slope), 0, 1), (height, width, 3)).astype(np.float32)
        picture = self._texture(rng)
        if rng.random() < 0.3:  # two backgrounds, as wall and floor
            angle, middle = rng.uniform(0, 2 * np.pi), rng.uniform((0.2, 0.2), (0.8, 0.8)) * (width, height)
            along = 2 * (height + width) * np.array((np.cos(angle), np.sin(angle)))
            aside = np.array((-along[1], along[0]))
            outline = np.array((middle - along, middle + along, middle + along + aside, middle - along + aside))
            patch(picture, outline, self._texture(rng), rng.uniform(0.5, 2))
        return picture

    def _texture(self, rng: np.random.Generator) -> np.ndarray:
        """A part of a photograph or of a drawn background, of changed colours, as large as the picture."""
        height, width = self.size_px
        is_photo = bool(self.photos) and rng.random() < 0.6
        number = int(rng.integers(len(self.photos) if is_photo else _DRAWN_BACKGROUNDS))
        image = self.photos[number] if is_photo else self._drawn_background(number)
        side = rng.uniform(0.25, 1.0) * min(image.shape[0] / height, image.shape[1] / width)
        rows, columns = max(2, int(side * height)), max(2, int(side * width))
        top, left = (int(rng.integers(n - k + 1)) for n, k in zip(image.shape, (rows, columns), strict=False))
        cut = image[top : top + rows, left : left + columns][:, :: 1 if rng.random() < 0.5 else -1]
        shrinks = rows > height
        cut = cv2.resize(
            np.ascontiguousarray(cut), (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        mixing = np.eye(3) + rng.normal(0, 0.1 if is_photo else 0.25, (3, 3))
        return np.clip(cv2.transform(cut.astype(np.float32) / 255, mixing.astype(np.float32)), 0, 1)

    def _drawn_background(self, number: int) -> np.ndarray:
        """One of those which all pictures share, uint8; drawn when it is first used."""
        if number not in self._drawn:
            rng = np.random.default_rng((self.seed, self.split, number, _DRAWN_BACKGROUNDS))
            drawn = random_background((_BACKGROUND_PX, _BACKGROUND_PX), rng)
            self._drawn[number] = np.rint(drawn * 255).astype(np.uint8)
        return self._drawn[number]

    # --- Arms and hands ---------------------------------------------------------------------------------------

    def _arms(self, rng: np.random.Generator) -> list[_Arm]:
        """At least one; those with hands first."""
        n_hands = int(rng.choice(len(HANDS), p=HANDS))
        n_arms = max(1, n_hands) + int(rng.random() < _MORE_ARMS)
        side, size = min(self.size_px), np.array(self.size_px[::-1], float)
        if rng.random() < CLOSE_UP:
            span, place = rng.uniform(0.3, 0.7), size / 2 + rng.uniform(-0.12, 0.12, 2) * side
        else:
            span, place = np.exp(rng.uniform(*np.log(SPAN))), rng.uniform((0, 0), size)
        arms = []
        for index in range(n_arms):
            if index:
                span = span * np.exp(rng.normal(0, 0.25))
                away = span * side * rng.uniform(0.6, 3) * _direction(rng.uniform(0, 2 * np.pi))
                place = place + away if rng.random() < 0.6 else rng.uniform((0, 0), size)
            layer = self.hands[int(rng.integers(len(self.hands)))]
            has_hand = index < n_hands
            arms.append(self._placed(layer, place, span * side, has_hand, rng))
        return arms

    def _placed(self, layer: Layer, place_px: np.ndarray, span_px: float, has_hand: bool, rng) -> _Arm:
        low, high = layer.joints_px.min(0), layer.joints_px.max(0)
        angle, mirrored = rng.uniform(0, 2 * np.pi), bool(rng.random() < 0.5)
        affine = similarity((low + high) / 2, place_px, span_px / float((high - low).max()), angle, mirrored)
        return _Arm(layer, affine, mirrored, has_hand)

    def _draw_arm(self, picture: np.ndarray, owner: np.ndarray, arm: _Arm, name: int, rng) -> None:
        rgba = arm.layer.rgba if arm.has_hand else _without_hand(arm.layer, rng)
        tint = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.05, 3))
        centre, span = arm.joints_px.mean(0), self._span(arm) * min(self.size_px)
        if rng.random() < 0.5:
            shadow(picture, centre + rng.normal(0, 0.2, 2) * span, 0.5 * span, rng.uniform(0, 0.5))
        lay(picture, rgba, arm.affine, owner, name if arm.has_hand else -1, tint)

    def _draw_held(self, picture: np.ndarray, owner: np.ndarray, arm: _Arm, rng) -> None:
        """Something before the hand or in it: a stick, a board, or a tool."""
        joints, span = arm.joints_px, self._span(arm) * min(self.size_px)
        centre = joints[int(rng.integers(21))] + rng.normal(0, 0.1, 2) * span
        along = span * rng.uniform(0.2, 1.2) * _direction(rng.uniform(0, 2 * np.pi))
        if rng.random() < 0.6:
            radius = span * (rng.uniform(0.01, 0.06) if rng.random() < 0.7 else rng.uniform(0.06, 0.2))
            color = rng.uniform(0.02, 0.95, 3) if rng.random() < 0.8 else skin_color(rng)
            ends = np.stack([centre - along * rng.uniform(0, 1), centre + along])
            rod(picture, ends, (radius, radius * rng.uniform(0.5, 1.5)), color, rng.uniform(-1, 1), owner)
            return
        layer = _one_of(self.things, rng)
        if layer is not None and layer.kind == "tool":
            self._lay_thing(picture, layer, centre, rng.uniform(0.4, 1.5) * span, rng, owner)

    def _span(self, arm: _Arm) -> float:
        """Longer side of the hand's box, by the shorter side of the picture."""
        return float(np.ptp(arm.joints_px, axis=0).max()) / min(self.size_px)

    def _is_to_be_found(self, arm: _Arm, is_its: np.ndarray) -> bool:
        height, width = self.size_px
        joints = arm.joints_px
        left, top, right, bottom = _box(joints)
        inside = max(0, min(right, width) - max(left, 0)) * max(0, min(bottom, height) - max(top, 0))
        column, row = np.floor(joints).astype(int).T
        seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        seen[seen] = is_its[row[seen], column[seen]]
        is_in_picture = inside >= _IN_PICTURE * (right - left) * (bottom - top)
        is_in_view = seen.mean() >= _IN_VIEW
        return bool(TO_BE_FOUND[0] <= self._span(arm) <= TO_BE_FOUND[1] and is_in_picture and is_in_view)

    # --- People and things ------------------------------------------------------------------------------------

    def _draw_person(self, picture: np.ndarray, arm: _Arm, rng: np.random.Generator) -> None:
        """The one whose arm it is: upper arm, trunk in cloth, legs and a head, behind the arm."""
        unit, light = arm.scale_px_per_m, rng.uniform(-1, 1)
        elbow, wrist = arm.elbow_px, arm.joints_px[0]
        if not np.isfinite(elbow).all():
            elbow = wrist + 0.3 * unit * _direction(rng.uniform(0, 2 * np.pi))
        up = _direction(-np.pi / 2 + rng.normal(0, 0.4))
        away = np.arctan2(*(elbow - wrist)[::-1]) + rng.normal(0, 0.9)
        shoulder = elbow + 0.29 * unit * _direction(away)
        across = np.array((-up[1], up[0])) * (1 if rng.random() < 0.5 else -1)
        width_m, height_m = rng.uniform(0.3, 0.48), rng.uniform(0.5, 0.65)
        cloth = self._texture(rng)
        other, hip = shoulder + width_m * unit * across, -height_m * unit * up
        middle = (shoulder + other) / 2
        legs = self._texture(rng) if rng.random() < 0.7 else np.broadcast_to(skin_color(rng), picture.shape)
        for start in (shoulder + 0.15 * width_m * unit * across, other - 0.15 * width_m * unit * across):
            end = start + hip + 0.8 * unit * _direction(np.arctan2(-up[1], -up[0]) + rng.normal(0, 0.5))
            rod(picture, np.stack([start + hip, end]), (0.09 * unit, 0.06 * unit), legs.astype(np.float32), light)
        trunk = np.array((shoulder, middle + 0.06 * unit * up, other, other + hip, shoulder + hip))
        patch(picture, trunk + rng.normal(0, 0.02, trunk.shape) * unit, cloth, 0.7 + 0.01 * unit)
        skin = _color_at(arm.layer, rng)
        rod(picture, np.stack([middle, middle + 0.15 * unit * up]), (0.06 * unit,) * 2, skin, light)
        head = _one_of(self.heads, rng)
        if head is not None:
            turn = np.arctan2(up[0], -up[1])
            self._lay_thing(picture, head, middle + 0.24 * unit * up, 0.25 * unit, rng, angle=turn)
        color = cloth if rng.random() < 0.5 else skin
        rod(picture, np.stack([shoulder, elbow]), (0.06 * unit, 0.045 * unit), color, light)

    def _draw_thing(self, picture: np.ndarray, size_m: float, unit: float, rng: np.random.Generator) -> None:
        """Anywhere, and of any size up to that of the picture."""
        layer = _one_of(self.heads if rng.random() < 0.3 else self.things, rng)
        if layer is None:
            return
        longest_m = min(size_m, rng.uniform(0.1, 0.5)) if rng.random() < 0.5 else size_m * rng.uniform(0.1, 1.2)
        place = rng.uniform((0, 0), self.size_px[::-1])
        upright = rng.normal(0, 0.3) if layer.kind == "head" else rng.uniform(0, 2 * np.pi)
        self._lay_thing(picture, layer, place, longest_m * unit, rng, angle=upright)

    def _lay_thing(
        self,
        picture: np.ndarray,
        layer: Layer,
        place_px: np.ndarray,
        longest_px: float,
        rng: np.random.Generator,
        owner: np.ndarray | None = None,
        angle: float | None = None,
    ) -> None:
        height, width = layer.rgba.shape[:2]
        angle = rng.uniform(0, 2 * np.pi) if angle is None else angle
        scale = longest_px / max(height, width)
        affine = similarity((width / 2, height / 2), place_px, scale, angle, bool(rng.random() < 0.5))
        lay(picture, layer.rgba, affine, owner)


def _one_of(layers: Sequence[Layer], rng: np.random.Generator) -> Layer | None:
    return layers[int(rng.integers(len(layers)))] if layers else None


def _box(joints_px: np.ndarray) -> tuple[float, float, float, float]:
    return (*joints_px.min(0).tolist(), *joints_px.max(0).tolist())


def _direction(angle: float) -> np.ndarray:  # (2,)
    return np.array((np.cos(angle), np.sin(angle)))


def turned(picture: LabelledPicture, symmetry: int) -> LabelledPicture:
    """One of the eight pictures that are the same but for mirroring (odd numbers) and quarter turns (half of it)."""
    image, boxes, is_left = picture.image, picture.boxes_px, picture.is_left
    if symmetry % 2:
        left, top, right, bottom = boxes.T
        width = image.shape[1]
        image, boxes, is_left = image[:, ::-1], np.stack([width - right, top, width - left, bottom], 1), ~is_left
    for _ in range(symmetry // 2 % 4):
        left, top, right, bottom = boxes.T
        width = image.shape[1]
        image, boxes = np.rot90(image), np.stack([top, width - right, bottom, width - left], 1)
    return replace(picture, image=np.ascontiguousarray(image), boxes_px=boxes, is_left=is_left)


def _premultiplied(rgba: np.ndarray) -> np.ndarray:
    colour = (rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255
    return np.concatenate([colour.astype(np.uint8), rgba[..., 3:]], axis=2)


def _color_at(layer: Layer, rng: np.random.Generator) -> np.ndarray:  # (3,)
    """That of the forearm, near the elbow, or of some skin."""
    if not np.isfinite(layer.elbow_px).all():
        return skin_color(rng).astype(np.float32)
    place = layer.elbow_px + 0.15 * (layer.joints_px[0] - layer.elbow_px)
    row, column = (int(np.clip(v, 0, n - 1)) for v, n in zip(place[::-1], layer.rgba.shape, strict=False))
    return layer.rgba[row, column, :3].astype(np.float32) / 255


def _without_hand(layer: Layer, rng: np.random.Generator) -> np.ndarray:
    """The forearm alone, cut off before the wrist; nothing where there is none."""
    if not np.isfinite(layer.elbow_px).all():
        return np.zeros_like(layer.rgba)
    wrist = layer.joints_px[0].astype(float)
    along = layer.elbow_px - wrist
    aside = np.array((-along[1], along[0])) / max(np.linalg.norm(along), 1e-6) * max(layer.rgba.shape)
    near, far = (wrist + share * along for share in (rng.uniform(0.08, 0.35), 3.0))
    kept = np.zeros(layer.rgba.shape[:2], np.uint8)
    cv2.fillConvexPoly(kept, np.rint((near - aside, near + aside, far + aside, far - aside)).astype(np.int32), 1)
    # Bent hands come back over the arm; what is near the fingers goes, too.
    reach = round(0.12 * float(np.ptp(layer.joints_px, axis=0).max()))
    for joint in np.rint(layer.joints_px[1:]).astype(int).tolist():
        cv2.circle(kept, joint, reach, 0, cv2.FILLED)
    return layer.rgba * kept[..., None]
