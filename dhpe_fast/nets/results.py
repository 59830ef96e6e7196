"""What the parts of DHPE hand to each other: every intermediate result of the paper's Fig. 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Evidence:
    """z, the 2D evidence of a batch of crops (paper, Sec. 3.1)."""

    features: Tensor
    """(B, n_features) F(x); 2048 of ResNet-50."""
    heatmaps: tuple[Tensor, ...]
    """(B, 21, n, n) of each stage of f_J2D, the last one being the estimate; STD order."""
    joints2d_px: Tensor
    """(B, 21, 2) j_2D, where the last heat maps are largest, pixels of the crop; without gradient."""


class MeshStep(NamedTuple):
    """The outcome of one iteration of Eq. 5."""

    h: Tensor
    """(B, 63) h(t + 1)."""
    joints2d_px: Tensor
    """(B, 21, 2) j'_2D(t + 1), pixels of the crop."""


@dataclass(frozen=True, eq=False)
class MeshEstimate:
    """The hand which f_E3D sees in the evidence, and how it came there (paper, Sec. 3.2)."""

    steps: tuple[MeshStep, ...]
    """One for each iteration, in their order."""

    @property
    def h(self) -> Tensor:
        """(B, 63) parameters of the final hand, as ``HandParams.packed()``."""
        return self.steps[-1].h

    @property
    def joints2d_px(self) -> Tensor:
        """(B, 21, 2) the final j'_2D, pixels of the crop."""
        return self.steps[-1].joints2d_px


@dataclass(frozen=True, eq=False)
class Projection:
    """y = (j, m), what f_Proj makes of a hand (paper, Eq. 1), and its mesh v'; in the crop frame."""

    verts: Tensor
    """(B, 778, 3) crop units."""
    joints: Tensor
    """(B, 21, 3) crop units, STD order, by f_Reg; joint 0 is the palm or the wrist."""
    mask: Tensor
    """(B, S, S) in [0, 1], by f_Ren."""


@dataclass(frozen=True, eq=False)
class DHPEOutput:
    """y' = f_DHPE(x) with all that lies between (paper, Fig. 2)."""

    evidence: Evidence
    """z"""
    estimate: MeshEstimate
    """h'(t) and j'_2D(t)"""
    projection: Projection
    """v' and y'"""
