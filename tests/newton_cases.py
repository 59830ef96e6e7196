"""Hands, states and evidence for the tests of Levenberg-Marquardt, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from dhpe_fast.hand import HandModel
from dhpe_fast.hand.pose_prior import PosePrior
from dhpe_fast.ops import silhouette
from dhpe_fast.projection import PerspectiveCrop, ScaledOrthographic
from dhpe_fast.refinement.gauss_newton import Evidence2d, HandConstants, HandState
from dhpe_fast.rotation import axis_angle_to_matrix

CAMERAS = {
    "orthographic": (ScaledOrthographic(), (2.0, 0.1, -0.2)),
    "perspective": (PerspectiveCrop((4.0, 4.2), (0.3, -0.1)), (0.02, -0.05, 0.6)),
}
"""Each with the parameters of a hand that fills the crop."""


@dataclass(frozen=True)
class Hand:
    model: HandModel
    constants: HandConstants

    @property
    def prior(self) -> PosePrior:
        return self.constants.prior


@lru_cache(maxsize=2)
def default_hand(dtype: torch.dtype = torch.float64) -> Hand:
    model = HandModel.default(dtype=dtype)
    return Hand(model, HandConstants.of(model))


def make_state(hand: Hand, cam: tuple[float, ...], batch: int = 2) -> HandState:
    return HandState(
        pose=hand.prior.mean + 0.2 * torch.randn(batch, 45, dtype=torch.float64),
        betas=0.5 * torch.randn(batch, 10, dtype=torch.float64),
        rotation=axis_angle_to_matrix(torch.randn(batch, 3, dtype=torch.float64)),
        cam=torch.tensor(cam, dtype=torch.float64).repeat(batch, 1),
    )


def image_of(hand: Hand, camera, state: HandState) -> torch.Tensor:  # (B, 21, 2)
    dtype = hand.model.hands_mean.dtype
    joints_m = hand.model(state.pose.to(dtype), state.betas.to(dtype)).joints_m.double()
    return camera.project(joints_m @ state.rotation.transpose(1, 2), state.cam)[..., :2]


def mask_of(hand: Hand, camera, state: HandState) -> torch.Tensor:  # (224, 224)
    dtype = hand.model.hands_mean.dtype
    verts = hand.model(state.pose.to(dtype), state.betas.to(dtype)).verts_m.double() @ state.rotation.transpose(1, 2)
    verts = camera.project(verts, state.cam)
    verts_px = torch.cat([(verts[..., :2] + 1) * 112, verts[..., 2:]], -1)
    return silhouette(verts_px, hand.model.faces, 224)[0].to(dtype)


def make_evidence(joints: torch.Tensor, mask: torch.Tensor | None = None) -> Evidence2d:
    confidence = torch.linspace(0.3, 1.0, 21, dtype=torch.float64)
    return Evidence2d(joints, confidence, mask)
