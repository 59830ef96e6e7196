"""The energy of Eq. 11 in the parts of which an iteration consists, each differentiable by autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dhpe_fast.conventions import H_LAYOUT
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.pose_prior import PosePrior
from dhpe_fast.losses import (
    cotangent_laplacian,
    joints2d_refine_loss,
    laplacian_loss,
    mask_iou_loss,
    silhouette_gate,
    total_loss,
)
from dhpe_fast.ops import EnergyWeights, FeatureTerm


class ProjectionLike(Protocol):
    """y = f_Proj(v') and v', in the crop frame; see ``nets.Projection``."""

    verts: Tensor
    """(B, V, 3)"""
    joints: Tensor
    """(B, 21, 3)"""
    mask: Tensor
    """(B, S, S) in [0, 1]"""


class Estimator(Protocol):
    """What Eq. 11 needs of a ``nets.DHPE``. With ``update_joints2d`` also its ``mesh_estimator.refiner``, f_Ref."""

    features: Callable[[Tensor], Tensor]
    """F: images (B, 3, S, S) to (B, N); put into eval mode for the time being if it is a module."""

    @property
    def hand(self) -> HandModel:
        """The model, for the Laplacian of its template and its prior."""

    def project(self, h: Tensor) -> ProjectionLike:
        """f_Proj of the mesh of h (B, 63), differentiable."""


class FeatureFunction(Protocol):
    """||F(x) - F(m * x)||^2 of a batch of crops as a function of the mask; see ``nets.MaskedFeatures``."""

    features: Tensor
    """(B, N) F(x)"""

    def __call__(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The value (B,) and its derivative (B, S, S) by the mask (B, S, S), both detached."""

    def value(self, mask: Tensor) -> Tensor:
        """The value alone."""


def feature_term(function: FeatureFunction, mask: Tensor, *, with_slope: bool) -> FeatureTerm:
    """Runs the CNN once, forwards and (unless the slope may be zero) backwards to its input."""
    value, slope = function(mask) if with_slope else (function.value(mask), torch.zeros_like(mask))
    return FeatureTerm(value, mask, slope)


@dataclass(frozen=True, eq=False)
class Objective:
    """Everything but f_Proj and F, for a batch of crops."""

    laplacian: Tensor
    """(V, V) of the template"""
    image_size: int
    """S, pixels"""
    weights: EnergyWeights
    prior: PosePrior | None = None
    """for the terms pose and limits"""
    mask: Tensor | None = None
    """(B, S, S) for the silhouette term"""
    feature_tau_px: float | None = None

    @classmethod
    def of(
        cls,
        hand: HandModel,
        image_size: int,
        weights: EnergyWeights,
        *,
        mask: Tensor | None = None,  # (B, S, S)
        feature_tau_px: float | None = None,
    ) -> Objective:
        """Computes what stays the same in all iterations."""
        laplacian = cotangent_laplacian(hand.basis.v_template, hand.faces)
        needs_prior = weights.pose > 0 or weights.limits > 0
        prior = PosePrior.of(hand, hand.hands_mean.dtype) if needs_prior else None
        return cls(laplacian, image_size, weights, prior, mask, feature_tau_px)

    def energy(
        self,
        h: Tensor,  # (B, 63)
        projection: ProjectionLike,
        joints2d_px: Tensor,  # (B, 21, 2)
        feature: FeatureTerm | None,
    ) -> dict[str, Tensor]:
        """Each term before its weight, and their weighted sum "total": (B,) each, differentiable in `h`.

        Terms beyond the paper's are missing where their weight is 0.
        """
        size, weights = self.image_size, self.weights
        projected_px = (0.5 * projection.joints[..., :2] + 0.5) * size
        joints2d_px = joints2d_px.to(projected_px.dtype)
        valid = joints2d_px.isfinite().all(-1)
        terms = {
            "joints": joints2d_refine_loss(projected_px, joints2d_px, valid, size),
            "feature": projected_px.new_zeros(len(h)) if feature is None else feature.at(projection.mask),
            "laplacian": laplacian_loss(projection.verts, self.laplacian),
        }
        pose, betas = (h[:, H_LAYOUT[name]].to(projected_px.dtype) for name in ("pose", "shape"))
        if weights.silhouette > 0:
            terms["silhouette"] = mask_iou_loss(projection.mask, self.mask)
        if weights.pose > 0:
            terms["pose"] = self.prior.energy(pose)
        if weights.shape > 0:
            terms["shape"] = betas.square().sum(-1)
        if weights.limits > 0:
            terms["limits"] = self.prior.violation(pose).square().sum(-1)
        factors: dict[str, float | Tensor] = {name: getattr(weights, name) for name in terms}
        if self.feature_tau_px is not None:
            gate = silhouette_gate(projected_px, joints2d_px, valid, self.feature_tau_px)
            factors["feature"] = weights.feature * gate
        return terms | {"total": total_loss(terms, factors)}
