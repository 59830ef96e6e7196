"""Random variation of crops: what may vary and by how much, and what was drawn for one picture.

Everything about an item is drawn in the worker, from a generator that depends on (seed, epoch, index) only. The square
is applied there; the look of the picture is only noted, and carried out by ``colour.apply_colour`` for a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

OCCLUDER_FIELDS = (
    "is_ellipse",
    "x",
    "y",
    "half_width",
    "half_height",
    "angle",
    "red",
    "green",
    "blue",
    "stripes",
    "frequency",
    "phase",
)
"""Columns of an occluder: a rectangle or an ellipse in the crop frame, turned by `angle`, of a colour in [0, 1] to
which ``stripes * sin(frequency * x + phase)`` is added along its own x axis. One of zero size is not drawn."""


_ASTRAY = (0.5, 2.0)
"""``center`` and ``scale`` of a square that is laid wrongly."""
BLUR_REACH = 3.0
"""Blurs are cut off at so many standard deviations of the widest one that can be drawn."""


@dataclass(frozen=True)
class CropAugmentation:
    """Ranges of the variation; the default is none: the paper's crop as it is."""

    center: float = 0.0
    """The square's centre moves by up to this share of its side, in x and in y of the image."""
    scale: float = 1.0
    """Its side is multiplied by a factor between 1 / scale and scale, uniform in the logarithm."""
    rotation: float = 0.0
    """It turns by up to so many radians, either way."""
    astray: float = 0.0
    """Probability that the square is laid wrongly instead: moved by up to half its side, in x and y, and made up to
    twice as large or small, so that parts of the hand lie outside."""
    brightness: float = 0.0
    """All channels are multiplied by 1 +- this."""
    tint: float = 0.0
    """Each channel is multiplied by 1 +- this."""
    contrast: float = 0.0
    """Differences to the mean grey of the picture are multiplied by 1 +- this."""
    saturation: float = 0.0
    """Differences to the grey of each pixel are multiplied by 1 +- this."""
    hue: float = 0.0
    """Colours turn by up to so many radians about the grey axis."""
    blur_px: float = 0.0
    """Gaussian blur of a standard deviation up to this, pixels of the crop."""
    noise: float = 0.0
    """Gaussian noise of a standard deviation up to this, of the range [0, 1]."""
    occluders: int = 0
    """At most so many shapes cover parts of the picture; the mask stays that of the whole hand."""
    occlusion: float = 0.5
    """Probability of each of them."""
    occluder_size: tuple[float, float] = (0.1, 0.4)
    """Their width and height, as shares of the crop's side."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "occluder_size" and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(f"CropAugmentation.{field.name}: expected a finite number >= 0, got {value!r}")
        for name in ("brightness", "tint", "contrast", "saturation", "occlusion", "astray"):
            if getattr(self, name) > 1:
                raise ValueError(f"CropAugmentation.{name}: expected at most 1, got {getattr(self, name)}")
        if self.scale < 1:
            raise ValueError(f"CropAugmentation.scale: expected a factor >= 1, got {self.scale}")
        if not isinstance(self.occluders, int):
            raise ValueError(f"CropAugmentation.occluders: expected a whole number, got {self.occluders!r}")
        low, high = self.occluder_size
        if not 0 < low <= high:
            raise ValueError(f"CropAugmentation.occluder_size: expected 0 < low <= high, got {self.occluder_size}")

    @classmethod
    def standard(cls) -> CropAugmentation:
        """Moderate variation of everything but sharpness, for training."""
        return cls(
            center=0.08,
            scale=1.2,
            rotation=math.pi / 6,
            brightness=0.3,
            tint=0.1,
            contrast=0.3,
            saturation=0.3,
            hue=0.1,
            noise=0.02,
            occluders=1,
            occlusion=0.3,
        )

    @property
    def varies_look(self) -> bool:
        """Whether anything is left for ``apply_colour`` to do."""
        return bool(
            self.occluders
            or any((self.brightness, self.tint, self.contrast, self.saturation, self.hue, self.blur_px, self.noise))
        )


@dataclass(frozen=True)
class SquareJitter:
    """What was drawn for the square of one item; the default changes nothing."""

    shift: tuple[float, float] = (0.0, 0.0)
    """In x and y of the (mirrored) image, shares of its side."""
    scale: float = 1.0
    angle: float = 0.0


@dataclass(frozen=True, eq=False)
class Look:
    """What was drawn for the picture of one item; fields as in ``batch.Appearance``."""

    gain: np.ndarray
    contrast: float
    saturation: float
    hue: float
    blur_px: float
    blur_radius: int
    noise: float | None
    noise_seed: int
    occluders: np.ndarray


def draw_square_jitter(augmentation: CropAugmentation, rng: np.random.Generator) -> SquareJitter:
    """Moves, resizes and turns the square at random."""
    x, y, log_scale, angle = rng.uniform(-1, 1, 4)
    center, scale = augmentation.center, augmentation.scale
    if augmentation.astray and rng.random() < augmentation.astray:
        center, scale = _ASTRAY
    return SquareJitter(
        shift=(center * x, center * y),
        scale=math.exp(log_scale * math.log(scale)),
        angle=augmentation.rotation * angle,
    )


def draw_look(augmentation: CropAugmentation, rng: np.random.Generator) -> Look:
    """Colours, noise and occluders at random."""
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4)
    tint = rng.uniform(-1, 1, 3)
    blur, noise = rng.uniform(0, 1, 2)
    return Look(
        gain=(1 + augmentation.brightness * brightness) * (1 + augmentation.tint * tint),
        contrast=1 + augmentation.contrast * contrast,
        saturation=1 + augmentation.saturation * saturation,
        hue=augmentation.hue * hue,
        blur_px=augmentation.blur_px * blur,
        blur_radius=math.ceil(BLUR_REACH * augmentation.blur_px),
        noise=augmentation.noise * noise if augmentation.noise else None,
        noise_seed=int(rng.integers(2**31)),
        occluders=_draw_occluders(augmentation, rng),
    )


def _draw_occluders(augmentation: CropAugmentation, rng: np.random.Generator) -> np.ndarray:
    """(N, 12) of ``OCCLUDER_FIELDS``."""
    n = augmentation.occluders
    present = rng.uniform(size=n) < augmentation.occlusion
    # A share of the side, from -1 to 1 two units long, is also half that length in the crop frame.
    half_sizes = rng.uniform(*augmentation.occluder_size, (n, 2)) * present[:, None]
    columns = (
        rng.integers(2, size=n),
        *rng.uniform(-1, 1, (2, n)),
        *half_sizes.T,
        rng.uniform(0, math.pi, n),
        *rng.uniform(0, 1, (3, n)),
        rng.uniform(0, 0.3, n),
        rng.uniform(5, 40, n),
        rng.uniform(0, 2 * math.pi, n),
    )
    return np.stack(columns, axis=1).astype(np.float32) if n else np.zeros((0, len(OCCLUDER_FIELDS)), np.float32)
