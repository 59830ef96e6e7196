"""How to descend on Eq. 11: step sizes, weights, and what the feature term may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from dhpe_fast.conventions import H_LAYOUT, H_SIZE
from dhpe_fast.nets.frozen_features import PRECISIONS
from dhpe_fast.ops import EnergyWeights
from dhpe_fast.reference.refine import OPTIMIZERS, check_gate


@dataclass(frozen=True)
class BlockScales:
    """Factors on the step of each block of h, whose units differ: a diagonal preconditioner."""

    pose: float = 1.0
    """radians"""
    shape: float = 1.0
    """standard deviations"""
    quat: float = 1.0
    """of a unit quaternion; the step of a longer one is shorter by its length"""
    scale: float = 1.0
    """crop units for each metre"""
    trans: float = 1.0
    """crop units"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"BlockScales.{name}: expected a finite number >= 0, got {value!r}")

    def vector(self, like: Tensor) -> Tensor:
        """The factor of each entry of h, (63,)."""
        factors = like.new_empty(H_SIZE)
        for name, block in H_LAYOUT.items():
            factors[block] = getattr(self, name)
        return factors


BALANCED = BlockScales(pose=300.0, shape=1000.0, quat=30.0, scale=5000.0, trans=40.0)
"""Scales for gamma = 1e-3, about the inverse curvatures of the joints term.

Measured on 40 generated hands (``data.render_hands``, seed 0) started 21 px off in crops of 224 px, by joints and
Laplacian alone: 50 iterations lower the mean 2D error to 2.2 px, with all scales 1 to 14.7 px, and the energy falls at
every step. A feature term that adds much curvature makes them diverge: it needs a smaller gamma or lambda.
"""


@dataclass(frozen=True)
class RefineOptions:
    """How to descend; the defaults are the paper's."""

    iterations: int = 50
    step_size: float = 1e-3
    """gamma"""
    optimizer: str = "gd"
    """"gd" as printed, or "adam" (Kingma and Ba 2015) with the same gamma."""
    weights: EnergyWeights = field(default_factory=EnergyWeights)
    block_scales: BlockScales = field(default_factory=BlockScales)
    feature_interval: int = 1
    """The CNN runs in every so many iterations. Between them the feature term is linear in the mask: that is drawn
    anew, the CNN's gradient is the last one."""
    feature_tau_px: float | None = None
    """Lets the feature term act, at each iteration, only on hands whose joints are on average nearer to j'_2D than
    this: Eq. 10, with j'_2D for the truth."""
    feature_size: int | None = None
    """Side in pixels of the crops that the CNN sees: crops and masks are averaged down to it. None is the side of the
    crops as they are given. Half of it is a quarter of the CNN's work, and another F."""
    feature_precision: str | None = None
    """Of the CNN's weights and feature maps: "float32", "bfloat16", "float16"; None is that of the network."""
    update_joints2d: bool = False
    """Runs f_Ref after every step, see above."""
    tolerance: float = 0.0
    """A hand rests when its energy has changed by less than this share three times running. 0: never."""

    def __post_init__(self) -> None:
        for name, least in (("iterations", 0), ("feature_interval", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")
        size = self.feature_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"feature_size: expected None or a whole number of pixels >= 1, got {size!r}")
        if self.feature_precision not in (None, *PRECISIONS):
            accepted = ", ".join(map(repr, PRECISIONS))
            raise ValueError(f"feature_precision: expected None or one of {accepted}, got {self.feature_precision!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected 'gd' or 'adam', got {self.optimizer!r}")
        for name in ("step_size", "feature_tau_px"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
        check_gate(self.weights, self.feature_tau_px)
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance: expected a finite number >= 0, got {self.tolerance!r}")
