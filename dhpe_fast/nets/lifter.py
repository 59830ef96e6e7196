"""From 21 joints in the image to hands in space: where a fit starts.

Seen without perspective, a hand tilted towards the camera looks much like one tilted away from it, and so does each
finger. The network therefore answers with several hypotheses and how likely it holds each of them (multiple choice
learning: Guzman-Rivera et al., NIPS 2012; Rupprecht et al., ICCV 2017). Its body is the residual network on joints of
Martinez et al., ICCV 2017.

What the image alone decides is not learnt. Place and size in the image are taken out before the network, and so is the
turn in the image: the joints are turned until the long axis of the hand lies along x. Every turn of the image then
turns the answer, exactly, which a network that is shown turned examples would only approximate, and pay for.
Scale and translation follow from the answer and the joints by least squares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dhpe_fast.conventions import MIDDLE_MCP, N_JOINTS_STD, N_POSE, N_SHAPE
from dhpe_fast.hand import HandModel
from dhpe_fast.rotation import matrix_to_quaternion, rotation_6d_to_matrix

N_ROTATION_6D = 6
N_ANSWER = N_POSE + N_SHAPE + N_ROTATION_6D + 1
"""Numbers of a hypothesis; the last one is its score."""
START_NOISE = 0.05
"""What an untrained network takes for the noise, of the joints' spread."""
MIN_JOINTS = 4
"""Fewer joints than these are no hand."""
EPS = 1e-8


@dataclass(frozen=True)
class LifterSpec:
    """The options of :class:`Lifter`."""

    width: int = 512
    """Of the hidden layers."""
    blocks: int = 3
    """Residual blocks, of two layers each."""
    hypotheses: int = 4
    """Hands for each set of joints."""

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "hypotheses"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")


@dataclass(frozen=True, eq=False)
class LiftedHands:
    """K hypotheses for each of B hands, in no order."""

    pose: Tensor
    """(B, K, 45) absolute axis-angle, MANO16 order, radians"""
    betas: Tensor
    """(B, K, 10)"""
    rotation: Tensor
    """(B, K, 3, 3) model axes to camera axes"""
    log_probability: Tensor
    """(B, K) that the hypothesis is the closest one"""
    noise: Tensor
    """(B,) standard deviation of the joints' errors, unit of the joints"""


class Lifter(nn.Module):
    """2D joints of a right hand to hypotheses of its pose, shape and orientation, and how exact the joints are.

    The joints may be given in any image frame with x to the right and y down, in any unit: moved or scaled joints give
    the same hands, joints turned in the image the turned ones. Of confidences only zero or not counts, as every source
    of joints has a scale of its own; joints of confidence 0 are missing, whatever their coordinates are.

    The mirror image of a left hand is a right hand: mirror its joints before, and the hands after (``hand.mirror``).

    Attributes:
        options: its LifterSpec.
    """

    mean_pose: Tensor
    along: Tensor

    def __init__(self, options: LifterSpec | None = None, hand: HandModel | None = None) -> None:
        """Random weights.

        Args:
            options: its size.
            hand: whose mean pose and long axis the network starts from; both are saved with the weights. None is for
                a network that weights are loaded into.
        """
        super().__init__()
        self.options = LifterSpec() if options is None else options
        width, k = self.options.width, self.options.hypotheses
        self.first = nn.Linear(3 * N_JOINTS_STD, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(self.options.blocks))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, k * N_ANSWER + 1))
        self.register_buffer("mean_pose", torch.zeros(N_POSE))
        self.register_buffer("along", torch.linspace(-1, 1, N_JOINTS_STD))
        with torch.no_grad():
            self.last[1].weight.mul_(0.1)
            # Hypotheses that begin alike would all be the winner or the loser: they begin as different views.
            self.last[1].bias.zero_()[-1] = math.log(START_NOISE)
            start = self.last[1].bias[:-1].view(k, N_ANSWER)
            start[:, N_POSE + N_SHAPE : -1] = torch.randn(k, N_ROTATION_6D)
        if hand is not None:
            joints_m = hand.joints_m(hand.hands_mean[None])[0].detach()
            axis = torch.nn.functional.normalize(joints_m[MIDDLE_MCP] - joints_m[0], dim=0)
            self.mean_pose.copy_(hand.hands_mean)
            self.along.copy_((joints_m @ axis) / 0.1)

    def forward(
        self,
        joints: Tensor,  # (B, 21, 2) image, any unit
        confidence: Tensor | None = None,  # (B, 21)
    ) -> LiftedHands:
        """The hypotheses; raises TypeError or ValueError for other shapes or types."""
        _check(joints, confidence)
        seen = torch.ones_like(joints[..., 0]) if confidence is None else (confidence > 0).to(joints.dtype)
        upright, turn, spread = self._upright(torch.where(seen[..., None] > 0, joints, 0.0), seen)
        # What the blocks add up stays in full precision under autocast.
        x = self.first(torch.cat([upright.flatten(1), seen], dim=1)).to(joints.dtype)
        for block in self.blocks:
            x = block(x)
        answer = self.last(x).to(joints.dtype)
        hands = answer[:, :-1].unflatten(1, (self.options.hypotheses, N_ANSWER))
        pose, betas, rotation, score = hands.split([N_POSE, N_SHAPE, N_ROTATION_6D, 1], dim=2)
        return LiftedHands(
            pose=self.mean_pose + pose,
            betas=betas,
            rotation=_turned(rotation_6d_to_matrix(rotation), turn),
            log_probability=score[..., 0].log_softmax(1),
            noise=answer[:, -1].exp() * spread,
        )

    def _upright(
        self,
        joints: Tensor,  # (B, 21, 2)
        seen: Tensor,  # (B, 21)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Joints about their mean, of unit spread, the long axis along x; turn (B, 2) and spread (B,) before."""
        weight = (seen / seen.sum(1, keepdim=True).clamp_min(1))[..., None]
        offset = (joints - (weight * joints).sum(1, keepdim=True)) * seen[..., None]
        spread = (weight * offset.square()).sum((1, 2)).sqrt()
        offset = offset / spread.clamp_min(EPS)[:, None, None]
        along = self.along[None, :, None]
        axis = (weight * (along - (weight * along).sum(1, keepdim=True)) * offset).sum(1)  # regression on `along`
        length = torch.linalg.vector_norm(axis, dim=1, keepdim=True)
        turn = torch.where(length > EPS, axis / length.clamp_min(EPS), axis.new_tensor((1.0, 0.0)))
        cos, sin = turn[:, None, 0], turn[:, None, 1]
        x, y = offset[..., 0], offset[..., 1]
        return torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1), turn, spread


def placed(
    turned_m: Tensor,  # (..., 21, 3) joints in camera axes
    joints: Tensor,  # (..., 21, 2)
    weight: Tensor,  # (..., 21) >= 0
) -> tuple[Tensor, Tensor]:
    """Scale (..., 1), units of `joints` for each metre, and translation (..., 2) that bring a hand onto its image.

    The least-squares solution; never a scale below zero, nor one from joints that lie on one line of sight.
    """
    weight = (weight / weight.sum(-1, keepdim=True).clamp_min(EPS))[..., None]
    source_mean = (weight * turned_m[..., :2]).sum(-2, keepdim=True)
    target_mean = (weight * joints).sum(-2, keepdim=True)
    source, target = turned_m[..., :2] - source_mean, joints - target_mean
    spread = (weight * source.square()).sum((-2, -1)).clamp_min(EPS)
    scale = ((weight * source * target).sum((-2, -1)) / spread).clamp_min(0)[..., None]
    return scale, target_mean[..., 0, :] - scale * source_mean[..., 0, :]


def initial_hands(
    lifter: Lifter,
    model: HandModel,
    joints: Tensor,  # (B, 21, 2) crop frame
    confidence: Tensor | None = None,  # (B, 21)
) -> tuple[Tensor, Tensor]:
    """The hypotheses as parameters h (B, K, 63) in the crop, and their log probabilities (B, K).

    Args:
        lifter: the network.
        model: a right hand, whose bones decide scale and translation.
        joints: image of the joints of right hands.
        confidence: weights of the joints, 0 for missing ones; None is 1.

    Raises:
        TypeError, ValueError: for other shapes or types.
    """
    lifted = lifter(joints, confidence)
    weight = torch.ones_like(joints[..., 0]) if confidence is None else confidence
    known = torch.where(weight[..., None] > 0, joints, 0.0)
    joints_m = model.joints_m(lifted.pose, lifted.betas) @ lifted.rotation.transpose(-1, -2)
    scale, trans = placed(joints_m, known[:, None], weight[:, None])
    depth = -scale * joints_m[..., MIDDLE_MCP, 2:]
    parts = (lifted.pose, lifted.betas, matrix_to_quaternion(lifted.rotation), scale, trans, depth)
    return torch.cat(parts, dim=-1), lifted.log_probability


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        with torch.no_grad():
            self.inside[3].weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:  # (B, width)
        return x + self.inside(x)


def _turned(
    rotation: Tensor,  # (B, K, 3, 3)
    turn: Tensor,  # (B, 2) cosine and sine
) -> Tensor:
    """The hands turned in the image."""
    x, y, z = rotation.unbind(-2)
    cos, sin = turn[:, None, :1], turn[:, None, 1:]
    return torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-2)


def _check(joints: Tensor, confidence: Tensor | None) -> None:
    for name, value in (("joints", joints), ("confidence", confidence)):
        if not isinstance(value, Tensor) and not (value is None and name == "confidence"):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if joints.dim() != 3 or joints.shape[1:] != (N_JOINTS_STD, 2) or not joints.is_floating_point():
        raise ValueError(
            f"joints: expected a floating-point tensor (B, 21, 2), got {tuple(joints.shape)} {joints.dtype}"
        )
    if confidence is not None and confidence.shape != joints.shape[:2]:
        raise ValueError(f"confidence: expected {tuple(joints.shape[:2])} as the joints, got {tuple(confidence.shape)}")
