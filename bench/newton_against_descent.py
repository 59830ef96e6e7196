"""How many Levenberg-Marquardt steps reach what 50 steps of gradient descent reach, on the same loss.

    python bench/newton_against_descent.py --n 200

The loss is the energy of ``gauss_newton``: squared distances of the joints to exact 2D joints (without outliers, hence
not robust), the Gaussian prior on the pose, that on the shape, the ranges of motion; on the mesh also its Laplacian.
Levenberg-Marquardt and descent start from the same perturbed hands and minimise this very sum, so either can be held
against the other. Descent is preconditioned (``BALANCED``, in these parameters), and for every hand the better of two
step sizes counts. Goes to bench/results/newton_against_descent.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import astuple, dataclass
from typing import Any

import torch
from common import noise_warning, run_facts, write_result
from refine_scene import perturbed_hands
from torch import Tensor

from dhpe_fast.conventions import H_LAYOUT
from dhpe_fast.hand import HandModel, HandParams
from dhpe_fast.ops.newton import NewtonEvidence, NewtonState, newton_minimize
from dhpe_fast.projection import ScaledOrthographic
from dhpe_fast.refinement import BALANCED
from dhpe_fast.refinement.gauss_newton import (
    CAMERA,
    N_LOCAL,
    POSE,
    ROTATION,
    SHAPE,
    Evidence2d,
    HandConstants,
    HandState,
    Objective,
    Weights,
)
from dhpe_fast.rotation import quaternion_to_matrix

DESCENT_STEPS = 50
NEWTON_STEPS = 10
STEP_SIZES = (1.0, 2.0)
"""Times gamma = 1e-3; for every hand the better one counts. At 3, most descents diverge."""
PLAIN_SQUARES = 1e6
"""Deviations beyond which a joint loses its say: none does."""


@dataclass(frozen=True)
class Problem:
    """Hands with an answer, and where the solvers start."""

    objective: Objective
    start: HandState
    truth: HandParams


def problem(n: int, seed: int, *, use_mesh: bool) -> Problem:
    """N hands in one batch, each with its own exact joints; see ``refine_scene``."""
    model = HandModel.default()
    scene = perturbed_hands(n, seed=seed, pictures=False)
    joints = model.decode(scene.truth).joints_m[..., :2].double()
    evidence = Evidence2d(joints, joints.new_ones(joints.shape[1]))
    weights = Weights(outlier_sigmas=PLAIN_SQUARES)
    camera = ScaledOrthographic()
    objective = Objective(model, HandConstants.of(model), evidence, camera, weights, use_mesh=use_mesh)
    return Problem(objective, state_of(scene.start.double()), HandParams.from_packed(scene.truth))


def state_of(h: Tensor) -> HandState:  # (B, 63)
    """The solver's form of h; the depth of the translation has no part in a scaled orthographic image."""
    part = {name: h[:, where] for name, where in H_LAYOUT.items()}
    cam = torch.cat([part["scale"].clamp_min(0.5).log(), part["trans"][:, :2]], 1)
    return HandState(part["pose"], part["shape"], quaternion_to_matrix(part["quat"]), cam)


def descend(problem: Problem, steps: int, step_size: float) -> Tensor:
    """Energies (steps + 1, B) of gradient descent on the objective."""
    state, energies = problem.start, []
    rates = step_size * _rates(problem)
    for t in range(steps + 1):
        local = torch.zeros_like(rates, requires_grad=t < steps)
        energy = problem.objective.energy(state.moved(local))
        energies.append(energy.detach())
        if t < steps:
            (gradient,) = torch.autograd.grad(energy.sum(), local)
            state = state.moved(-rates * gradient)
    return torch.stack(energies)


def _rates(problem: Problem) -> Tensor:
    """``BALANCED`` at gamma = 1e-3 (B, 61), carried over to the energy and the parameters of ``gauss_newton``.

    Its joints term is 2 / sigma^2 times that of Eq. 11; a small turn is twice the change of the quaternion, hence four
    times the rate; the scale is a logarithm.
    """
    scale = problem.start.cam[:, 0].exp()
    rates = scale.new_empty(len(scale), N_LOCAL)
    rates[:, POSE], rates[:, SHAPE], rates[:, ROTATION] = BALANCED.pose, BALANCED.shape, 4 * BALANCED.quat
    rates[:, CAMERA.start] = BALANCED.scale / scale.square()
    rates[:, CAMERA.start + 1 :] = BALANCED.trans
    return rates * (1e-3 * problem.objective.weights.joint_sigma**2 / 2)


def newton(objective: Objective, start: HandState, steps: int) -> tuple[HandState, Tensor]:
    """State and energy (B,) after so many Levenberg-Marquardt steps, each hand with the joints of its own.

    It is the compiled op that ``minimize`` runs for one hand's hypotheses.
    """
    joints = objective.evidence.joints
    found = newton_minimize(
        NewtonState(start.pose, start.betas, start.rotation, start.cam),
        NewtonEvidence(joints, objective.evidence.confidence.expand(len(joints), -1).contiguous()),
        objective.hand.compiled_hand,
        objective.hand.compiled_mesh if objective.use_mesh else None,
        astuple(objective.weights),
        steps,
        tolerance=0.0,
        race=False,
    )
    return HandState(*found.state), found.energy


def steps_needed(problem: Problem, goal: Tensor, most: int) -> Tensor:
    """(B,) Levenberg-Marquardt steps until the energy is at most the goal; most + 1 where they do not suffice."""
    needed = torch.full(goal.shape, most + 1)
    for steps in range(most, -1, -1):
        reached = newton(problem.objective, problem.start, steps)[1] <= goal
        needed = torch.where(reached, steps, needed)
    return needed


def compare(n: int, seed: int, *, use_mesh: bool) -> dict[str, Any]:
    """One row of the result."""
    hands = problem(n, seed, use_mesh=use_mesh)
    start = time.perf_counter()
    descents = torch.stack([descend(hands, DESCENT_STEPS, size) for size in STEP_SIZES])  # (sizes, steps + 1, B)
    goal = torch.where(descents[:, -1].isfinite(), descents[:, -1], torch.inf).amin(0)
    seconds = time.perf_counter() - start
    needed = steps_needed(hands, goal, NEWTON_STEPS)
    _, final = newton(hands.objective, hands.start, NEWTON_STEPS)
    return {
        "objective": "mesh" if use_mesh else "skeleton",
        "n": n,
        "start_energy": float(descents[0, 0].median()),
        "descent_energy": float(goal.median()),
        "newton_energy": float(final.median()),
        "reached_share": float((needed <= NEWTON_STEPS).double().mean()),
        "steps_median": float(needed.double().median()),
        "steps_p90": float(needed.double().quantile(0.9)),
        "steps_most": int(needed.max()),
        "descent_seconds": seconds / len(STEP_SIZES),
    }


def main() -> None:
    """Runs both objectives, prints the rows, writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="how many hands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="write no result file")
    arguments = parser.parse_args()
    rows = [compare(arguments.n, arguments.seed, use_mesh=use_mesh) for use_mesh in (False, True)]
    for row in rows:
        print(
            f"{row['objective']}: energy {row['start_energy']:.0f}, after {DESCENT_STEPS} steps of descent "
            f"{row['descent_energy']:.1f}; reached within {NEWTON_STEPS} steps by {100 * row['reached_share']:.1f} %, "
            f"median {row['steps_median']:.0f}, 90 % {row['steps_p90']:.0f} steps; then {row['newton_energy']:.2f}"
        )
    if not arguments.dry:
        result = {"run": run_facts(), "arguments": vars(arguments), "step_sizes": STEP_SIZES, "rows": rows}
        print(f"{noise_warning()}-> {write_result('newton_against_descent', result)}")


if __name__ == "__main__":
    main()
