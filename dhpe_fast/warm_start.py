"""From the hand of one frame to the start of the next one's fit: where a hand is, whatever crop it was fitted in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.fit import View, unmirrored
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.derived_models import shaped_model
from dhpe_fast.projection import PerspectiveCrop
from dhpe_fast.refinement.gauss_newton import HandConstants, HandState

MAX_ZOOM = 10.0
"""Two frames whose hands differ in size by more than this do not show one hand that moved: it is not followed."""


@dataclass(frozen=True)
class PlacedHand:
    """A hand of known shape in the image; float64.

    Its place is that of the middle finger's MCP joint. With a pinhole camera the scale is the focal length over the
    depth of that joint, and pixels are those of the camera without lens distortion.
    """

    pose: Tensor
    """(45,) axis-angle, of the hand itself: not mirrored"""
    rotation: Tensor
    """(3, 3) model axes to camera axes"""
    root_px: Tensor
    """(2,) image of the middle MCP joint"""
    log_scale: Tensor
    """() logarithm of the pixels for each metre there"""

    @classmethod
    def of(cls, view: View, state: HandState) -> PlacedHand:
        """From the solver's state (batch of one) in the crop of a view, of its mirror image perhaps."""
        root = view.solver_camera.project(turned_joints_m(view, state), state.cam)[0, MIDDLE_MCP]
        if isinstance(view.solver_camera, PerspectiveCrop):
            log_scale = (view.camera.focal_px / root[2]).log()
        else:
            log_scale = state.cam[0, 0] + root.new_tensor(0.5 * view.crop.size_px).log()
        upright = unmirrored(view, state) if view.mirrored else state
        root_px = view.crop.from_crop(root[:2] * _flip(view, root))
        return cls(upright.pose[0], upright.rotation[0], root_px, log_scale)

    def in_view(
        self,
        view: View,
        betas: Tensor,  # (10,)
    ) -> HandState:
        """The solver's state (batch of one) in the crop of a view; inverse to ``of``."""
        upright = HandState(self.pose[None], betas[None], self.rotation[None], self.rotation.new_zeros(1, 3))
        state = unmirrored(view, upright) if view.mirrored else upright
        root_m = turned_joints_m(view, state)[0, MIDDLE_MCP]
        root = view.crop.to_crop(self.root_px) * _flip(view, self.root_px)
        if isinstance(view.solver_camera, PerspectiveCrop):
            depth_m = view.camera.focal_px / self.log_scale.exp()
            center, focal = (root.new_tensor(pair) for pair in (view.solver_camera.center, view.solver_camera.focal))
            cam = torch.cat([(root - center) / focal * depth_m, depth_m[None]]) - root_m
        else:
            log_scale = self.log_scale - root.new_tensor(0.5 * view.crop.size_px).log()
            cam = torch.cat([log_scale[None], root - log_scale.exp() * root_m[:2]])
        return replace(state, cam=cam[None])

    def followed(
        self,
        view: View,
        betas: Tensor,  # (10,)
    ) -> PlacedHand:
        """Moved, scaled and turned in the image onto the joints that the view trusts, by least squares.

        From frame to frame a hand may move by far more than keypoints err, and to the solver joints that are far from
        where they should be are outliers.
        """
        state = self.in_view(view, betas)
        points = view.solver_camera.project(turned_joints_m(view, state), state.cam)[0]
        trusted = torch.from_numpy(view.trusted).to(points.device)
        weight = torch.where(trusted, view.evidence.confidence, 0.0)
        weight = weight / weight.sum()
        source = torch.complex(points[:, 0].contiguous(), points[:, 1].contiguous())
        target = torch.complex(view.evidence.joints[:, 0].contiguous(), view.evidence.joints[:, 1].contiguous())
        source_mean, target_mean = (weight * source).sum(), (weight * target).sum()
        offset = source - source_mean
        # Scale and turn in one: zoom * exp(i angle).
        factor = (weight * offset.conj() * (target - target_mean)).sum() / (weight * offset.abs().square()).sum()
        if not 1 / MAX_ZOOM < float(factor.abs()) < MAX_ZOOM:
            return self
        root = target_mean + factor * offset[MIDDLE_MCP]
        flip = _flip(view, self.root_px)
        angle = factor.angle() * flip[0]
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        roll = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one]).reshape(3, 3)
        return PlacedHand(
            pose=self.pose,
            rotation=roll @ self.rotation,
            root_px=view.crop.from_crop(torch.stack([root.real, root.imag]) * flip),
            log_scale=self.log_scale + factor.abs().log(),
        )


@dataclass(frozen=True)
class ShapedHand:
    """A hand model of one shape: its own betas do nothing, so that a fit leaves them at zero."""

    model: HandModel
    hand: HandConstants

    @classmethod
    def of(
        cls,
        view: View,
        betas: Tensor,  # (10,)
    ) -> ShapedHand:
        """The hand of these betas, for views of this model; the view's own shape has to be free."""
        model = shaped_model(view.model, betas)
        return cls(model, view.hand.reshaped(model))

    def in_view(self, view: View) -> View:
        """The view, of this hand."""
        return replace(view, model=self.model, hand=self.hand)


def turned_joints_m(view: View, state: HandState) -> Tensor:
    """The joints (B, 21, 3) in the camera's axes, relative to the model's origin; of the mirrored hand, if it is."""
    dtype = view.model.hands_mean.dtype
    joints_m = view.model.joints_m(state.pose.to(dtype), state.betas.to(dtype)).to(state.pose.dtype)
    return joints_m @ state.rotation.transpose(1, 2)


def _flip(view: View, like: Tensor) -> Tensor:  # (2,)
    return like.new_tensor((-1.0 if view.mirrored else 1.0, 1.0))
