"""The first estimate: hands that explain 2D joints, found on the skeleton alone.

It starts from the hypotheses of the lifter (:mod:`dhpe_fast.nets.lifter`), which know poses, and from alignments of
typical poses (:mod:`dhpe_fast.alignment`), which know no hand but err in no way that was learnt. Where the package has
no lifter, from more of the alignments. All are refined with widened joint noise until they have found their basins,
then without; the best few that differ are the finalists. What the lifter takes the pose for is also, half-way, what
the prior expects: one around the mean of all hands would pull each hand towards that.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dhpe_fast import pretrained
from dhpe_fast.alignment import StartViews, initial_states
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.derived_models import derived
from dhpe_fast.hand.mirror import mirror_pose
from dhpe_fast.nets.lifter import Lifter, placed
from dhpe_fast.projection import ScaledOrthographic
from dhpe_fast.refinement.gauss_newton import (
    Evidence2d,
    HandConstants,
    HandState,
    Objective,
    Refined,
    Weights,
    minimize,
)

LIKELIEST = 2
"""Hypotheses of the lifter that are starts."""
ALIGNMENTS = 2
"""Starts beside these."""
ALIGNMENTS_ALONE = 10
"""Starts where there is none."""
FINALISTS = 3
"""Of the starts, how many are refined on the mesh."""
ROUGH_ITERATIONS = 6
"""Steps with widened joint noise, in which the hypotheses find their basins."""
SKELETON_ITERATIONS = 12
SAME_MINIMUM = 0.1
"""Hypotheses whose energies differ by less have found the same hand."""
ROUGH_SIGMA = 0.04
"""Standard deviation of a joint in those steps, crop units."""
LIFTER_SAYS = 0.5
"""How far the pose that is expected moves from the mean of natural poses to the likeliest one of the lifter."""
LEAST_SCALE = 1e-6
"""Crop units for each metre: a hypothesis seen from behind has none that is positive."""


@dataclass(frozen=True)
class Starts:
    """Where a search begins."""

    state: HandState
    """the hypotheses"""
    pose: Tensor | None = None
    """(45,) the likeliest pose; None where nobody knows."""
    noise: float | None = None
    """Standard deviation that the joints seem to have, crop units; None where nobody knows."""


def finalists(
    model: HandModel,
    hand: HandConstants,
    evidence: Evidence2d,
    start: HandState,
    weights: Weights,
) -> Refined:
    """The best hands, under a camera without perspective, those in the same minimum counted once; the best first."""
    camera = ScaledOrthographic()
    rough = replace(weights, joint_sigma=max(ROUGH_SIGMA, weights.joint_sigma))
    for stage, steps in ((rough, ROUGH_ITERATIONS), (weights, SKELETON_ITERATIONS)):
        objective = Objective(model, hand, evidence, camera, stage, use_mesh=False)
        result = minimize(objective, start, iterations=steps)
        start = result.state
    order = _distinct(result.energy)
    return Refined(result.state[order], result.energy[order], result.iterations[order], result.converged[order])


def expecting(
    hand: HandConstants,
    start: Starts,
) -> HandConstants:
    """The hand with the pose that is to be expected of it, given its joints; as it is where nobody knows."""
    if start.pose is None or not bool(start.pose.isfinite().all()):
        return hand
    return hand.expecting(torch.lerp(hand.prior.mean, start.pose.to(hand.prior.mean), LIFTER_SAYS))


def starts(
    model: HandModel,
    hand: HandConstants,
    evidence: Evidence2d,  # confidence 0 for joints that are too far off to be true
) -> Starts:
    """Where the search begins: likely hypotheses of the lifter and a few alignments; without a lifter more of these."""
    views = derived(model, "start views", lambda: StartViews.of(hand))
    if not pretrained.available("lifter"):
        return Starts(initial_states(views, evidence, ALIGNMENTS_ALONE))
    lifted = lifted_starts(pretrained.lifter(), model, evidence)
    both = (lifted.state, initial_states(views, evidence, ALIGNMENTS))
    state = HandState(*(torch.cat([getattr(one, part.name) for one in both]) for part in fields(HandState)))
    return Starts(state, lifted.pose, lifted.noise)


def lifted_starts(
    lifter: Lifter,
    model: HandModel,
    evidence: Evidence2d,
) -> Starts:
    """The lifter's likeliest hypotheses of a hand of the model's side, brought onto the joints by least squares."""
    device, flip = evidence.joints.device, evidence.joints.new_tensor((-1.0 if model.side == "left" else 1.0, 1.0))
    found = lifter((evidence.joints * flip)[None].float().cpu(), evidence.confidence[None].float().cpu())
    likeliest = found.log_probability[0].topk(min(LIKELIEST, found.log_probability.shape[1])).indices
    pose, betas, rotation = (part[0, likeliest].to(device) for part in (found.pose, found.betas, found.rotation))
    if model.side == "left":
        reflect = rotation.new_tensor((-1.0, 1.0, 1.0))
        pose, rotation = mirror_pose(pose), rotation * torch.outer(reflect, reflect)
    dtype = model.hands_mean.dtype
    # Of the mesh, as `model.joints_m` keeps the fingertips of a model that was changed in place.
    joints_m = model(pose.to(dtype), betas.to(dtype)).joints_m @ rotation.to(dtype).transpose(1, 2)
    scale, trans = placed(joints_m.to(evidence.joints.dtype), evidence.joints, evidence.confidence)
    cam = torch.cat([scale.clamp_min(LEAST_SCALE).log(), trans], dim=1)
    parts = (part.to(cam.dtype) for part in (pose, betas, rotation))
    state = HandState(*parts, cam)
    return Starts(state, state.pose[0], float(found.noise))


def _distinct(energy: Tensor) -> Tensor:  # (B,) -> indices of the finalists
    """The best hypotheses, those that have met in the same minimum counted once."""
    chosen: list[int] = []
    for index in energy.argsort().tolist():
        if not chosen or float(energy[index] - energy[chosen[-1]]) > SAME_MINIMUM:
            chosen.append(index)
    return torch.tensor(chosen[:FINALISTS], device=energy.device)
