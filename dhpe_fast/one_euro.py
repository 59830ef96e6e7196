"""The One-Euro filter, for points and for rotations: still hands do not tremble, fast ones do not lag.

Casiez, Roussel and Vogel, "1 Euro Filter: a simple speed-based low-pass filter for noisy input in interactive systems",
CHI 2012. An exponential low-pass filter whose cutoff frequency grows with the speed of its signal:

    speed = low-pass of (x - last answer) / dt  at `derivative_cutoff_hz`
    cutoff = min_cutoff_hz + beta * |speed|
    answer = last answer + alpha(cutoff) * (x - last answer),   alpha(f) = 1 / (1 + 1 / (2 pi f dt))

For a rotation, x - last answer is the axis-angle of the turn from the last answer to x, always the shorter way: whether
x came from the quaternion q or -q, or from an axis-angle beyond half a turn, makes no difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dhpe_fast.rotation import axis_angle_to_matrix, matrix_to_axis_angle


@dataclass(frozen=True)
class OneEuro:
    """Parameters of a One-Euro filter. Lower `min_cutoff_hz` against trembling at rest, raise `beta` against lag."""

    min_cutoff_hz: float = 1.0
    """Cutoff frequency at rest, > 0."""
    beta: float = 0.0
    """Hertz that the cutoff gains for each unit of speed, >= 0."""
    derivative_cutoff_hz: float = 1.0
    """Cutoff frequency of the speed, > 0."""

    def __post_init__(self) -> None:
        for name in ("min_cutoff_hz", "derivative_cutoff_hz"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"OneEuro.{name}: expected a finite number > 0, got {getattr(self, name)!r}")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"OneEuro.beta: expected a finite number >= 0, got {self.beta!r}")


class PointFilter:
    """Filters points; all coordinates of one share its speed, the norm over the last axis."""

    def __init__(self, parameters: OneEuro) -> None:
        self._parameters = parameters
        self._answer: Tensor | None = None
        self._speed: Tensor | None = None

    def step(
        self,
        value: Tensor,  # (*batch, D)
        dt_s: float,
        unit: float = 1.0,
    ) -> Tensor:
        """The filtered value (*batch, D); the first value passes as it is.

        Args:
            value: the next value, of the shape of those before.
            dt_s: time since the last one, > 0; it may differ from step to step.
            unit: what counts as a distance of 1 in the speed.
        """
        if self._answer is None:
            self._answer, self._speed = value.clone(), torch.zeros_like(value)
            return value
        offset = value - self._answer
        self._speed, share = _share(self._parameters, self._speed, offset / unit, dt_s)
        self._answer = self._answer + share * offset
        return self._answer


class RotationFilter:
    """Filters rotations along the shortest turn; the unit of speed is a radian a second."""

    def __init__(self, parameters: OneEuro) -> None:
        self._parameters = parameters
        self._answer: Tensor | None = None
        self._speed: Tensor | None = None

    def step(
        self,
        rotation: Tensor,  # (*batch, 3, 3)
        dt_s: float,
    ) -> Tensor:
        """The filtered rotations (*batch, 3, 3), see :class:`PointFilter`."""
        if self._answer is None:
            self._answer, self._speed = rotation.clone(), rotation.new_zeros(*rotation.shape[:-2], 3)
            return rotation
        turn = matrix_to_axis_angle(rotation @ self._answer.transpose(-1, -2))
        self._speed, share = _share(self._parameters, self._speed, turn, dt_s)
        self._answer = axis_angle_to_matrix(share * turn) @ self._answer
        return self._answer


def _share(parameters: OneEuro, speed: Tensor, offset: Tensor, dt_s: float) -> tuple[Tensor, Tensor]:
    """The filtered speed (*batch, D), and which share (*batch, 1) of the offset is followed."""
    if not dt_s > 0:
        raise ValueError(f"dt_s: expected a time > 0, got {dt_s!r}")
    radians = 2 * math.pi * dt_s
    derivative = radians * parameters.derivative_cutoff_hz
    speed = speed + derivative / (1 + derivative) * (offset / dt_s - speed)
    cutoff_hz = parameters.min_cutoff_hz + parameters.beta * torch.linalg.vector_norm(speed, dim=-1, keepdim=True)
    return speed, radians * cutoff_hz / (1 + radians * cutoff_hz)
