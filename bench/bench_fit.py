"""Where the time of a fit goes, and how fast each solver comes near the hand: Fig. 5(e)'s axis, in milliseconds.

    python bench/bench_fit.py

`stages`: a picture of a drawn hand is read from a file, fitted, and drawn over: to its exact 2D joints, to these and
its mask, and with nothing given, where the package's networks look for hands first. `curves`: hands started from
perturbed parameters are refined by so many iterations of each solver, from exact 2D joints alone, and compared with the
hands that were drawn; the time is that of one hand by itself. All solvers minimise the energy of `fit`: the joints with
priors on pose and shape, Levenberg-Marquardt and particle swarm those of the skeleton, descent and Adam those that
f_Reg takes from the mesh. One more line is descent on Eq. 11 without the CNN, the joints and Laplacian terms. Goes to
bench/results/fit.json and bench/results/fit_curves.png.

On a GPU the fits run there, and only `stages` is measured: the GPU is waited for before a fit counts as done, and a
stage may leave work to the next one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import torch
from common import DEVICE, RESULTS, noise_warning, run_facts, summary, time_ms, write_result
from newton_against_descent import newton, state_of
from refine_scene import Scene, perturbed_hands
from torch import Tensor

import dhpe_fast
from dhpe_fast.data import render_hands
from dhpe_fast.hand import HandModel, HandParams
from dhpe_fast.metrics import pa_mpjpe_mm
from dhpe_fast.projection import ScaledOrthographic
from dhpe_fast.refinement import BALANCED, BlockScales, EnergyWeights, refine
from dhpe_fast.refinement.gauss_newton import Evidence2d, HandConstants, HandState, Objective, Weights
from dhpe_fast.refinement.particle_swarm import Spread, SwarmOptions, fly
from dhpe_fast.rotation import matrix_to_quaternion

ITERATIONS = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200)
NEWTON_ITERATIONS = 50
ADAM_STEP = 0.01
ADAM_SCALES = BlockScales(pose=1.0, shape=2.0, quat=0.5, scale=5.0, trans=0.5)
"""Adam's steps have the length of its rate, whatever the gradient: about a fifteenth of the start's error."""
EQUATION_11 = EnergyWeights(feature=0.0)
PICTURE = (480, 640)
JOINTS, MASK, NOTHING = "2D joints", "2D joints and a mask", "nothing"
"""What a fit is given."""


# ---- Stages ----------------------------------------------------------------------------------------------------------


def stages(n: int, seed: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Milliseconds of each stage of `fit`, over n pictures; the first fit of each kind does not count.

    With nothing given, what no hand is found in has no time of drawing; `hands` says how many were found.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    hands = render_hands(n + 1, seed, image_size=PICTURE, pictures=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hand.png"
        for given in (JOINTS, MASK, NOTHING):
            laps: dict[str, list[float]] = {}
            n_found = 0
            for number, hand in enumerate(hands):
                cv2.imwrite(str(path), cv2.cvtColor(hand.image, cv2.COLOR_RGB2BGR))
                hints = {"keypoints": hand.joints2d_px.numpy(), "hand": hand.side} if given != NOTHING else {}
                mask = hand.mask.numpy() if given == MASK else None
                start = time.perf_counter()
                answer = dhpe_fast.fit(path, **hints, mask=mask, device=device)
                wait()
                times = {"fit": 1e3 * (time.perf_counter() - start)}
                found = answer if isinstance(answer, list) else [answer]
                for one in found[:1]:
                    fitted = time.perf_counter()
                    one.overlay(hand.image)
                    drawn = time.perf_counter()
                    one.overlay(hand.image, fast=True)
                    ends = {"draw": 1e3 * (drawn - fitted), "draw_fast": 1e3 * (time.perf_counter() - drawn)}
                    times = {**one.timings_ms, **ends, **times}
                n_found += len(found) if number else 0
                for stage, ms in times.items() if number else ():
                    laps.setdefault(stage, []).append(ms)
            ms = {stage: summary(times) for stage, times in laps.items()}
            rows.append({"given": given, "n": n, "hands": n_found, "ms": ms})
    return rows


# ---- Curves ----------------------------------------------------------------------------------------------------------


def curves(n: int, seed: int, iterations: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """For each solver, the errors after each number of iterations, and the milliseconds that one hand takes."""
    hands, rows = perturbed_hands(n, seed=seed, pictures=False), []
    for solver, prepare in SOLVERS.items():
        one = prepare(hands.first(1))
        for t, h in prepare(hands)(iterations):
            rows.append({"solver": solver, "iterations": t, "ms": _milliseconds(one, t, seconds), **errors(hands, h)})
    return rows


def errors(hands: Scene, h: Tensor) -> dict[str, float]:
    """Means over hands and vertices: in the image, pixels of a 224 crop, and after Procrustes alignment, mm.

    Of vertices, as the solvers have different joints: f_Reg's with the palm (Eq. 11), or the skeleton's (`fit`).
    """
    truth, found = hands.hand.decode(hands.truth).verts_m, hands.hand.decode(h).verts_m
    truth_m = truth / HandParams.from_packed(hands.truth).scale[..., None]
    offset_px = (found - truth)[..., :2].norm(dim=-1).mean(1) * (hands.size / 2)
    aligned_mm = [float(pa_mpjpe_mm(one, other)) for one, other in zip(found, truth_m, strict=True)]
    return {"error2d_px": float(offset_px.mean()), "pa_mpvpe_mm": sum(aligned_mm) / len(aligned_mm)}


Run = Callable[[tuple[int, ...]], Iterator[tuple[int, Tensor]]]
"""Numbers of iterations to h (B, 63) after each of them."""


def _milliseconds(run: Run, t: int, seconds: float) -> float:
    """Of the call for one hand, with so many iterations; a solver that stops by itself does so here, too."""
    return summary(time_ms(lambda: list(run((t,))), seconds))["median"]


def fit_weights() -> EnergyWeights:
    """The weights of `fit` in the terms of Eq. 11, for a weight 1 of the joints.

    `fit` has half of a squared deviation everywhere, and joints in crop units: 4 / (2 sigma^2) times Eq. 11's.
    """
    found = Weights()
    prior = found.joint_sigma**2 / 4
    limits = prior / found.limit_sigma_rad**2
    return EnergyWeights(feature=0.0, laplacian=0.0, pose=prior * found.pose, shape=prior * found.shape, limits=limits)


def _descent(hands: Scene, **options: Any) -> Run:
    estimator = _NoNetworks(hands)

    def run(iterations: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
        for t in iterations:
            result = refine(
                estimator, hands.images, hands.start, hands.joints2d_px,
                iterations=t, **options,
            )  # fmt: skip
            yield t, result.h

    return run


class _NoNetworks:
    """What `refine` asks for where the feature term does not count."""

    def __init__(self, hands: Scene) -> None:
        self.hand, self.project = hands.hand, hands.projector("edge")
        self.features = torch.nn.Identity()


def _newton(hands: Scene) -> Run:
    objective, start = _objective(hands), state_of(hands.start.double())

    def run(iterations: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
        for t in iterations:
            if t <= NEWTON_ITERATIONS:  # it has converged long before
                yield t, _as_h(newton(objective, start, t)[0], hands.start)

    return run


def _swarm(hands: Scene) -> Run:
    """All hands' swarms in one batch."""
    options = SwarmOptions()
    objective, start = _objective(hands, options.particles), state_of(hands.start.double())
    each = torch.arange(len(hands.start)).repeat_interleave(options.particles)
    spread = Spread().vector(start.pose)

    def energy(places: Tensor) -> Tensor:  # (B, P, 61)
        return objective.energy(start[each].moved(places.flatten(0, 1))).unflatten(0, places.shape[:2])

    def run(iterations: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
        center = start.pose.new_zeros(len(hands.start), len(spread))
        with torch.no_grad():
            flight = fly(energy, center, spread, replace(options, iterations=max(iterations)))
        for t in iterations:
            yield t, _as_h(start.moved(flight.places[t]), hands.start)

    return run


SOLVERS: dict[str, Callable[[Scene], Run]] = {
    "gd": lambda hands: _descent(hands, block_scales=BALANCED, weights=fit_weights()),
    "gd, Eq. 11": lambda hands: _descent(hands, block_scales=BALANCED, weights=EQUATION_11),
    "adam": lambda hands: _descent(
        hands, optimizer="adam", step_size=ADAM_STEP, block_scales=ADAM_SCALES, weights=fit_weights()
    ),
    "lm": _newton,
    "pso": _swarm,
}


def _objective(hands: Scene, repeats: int = 1) -> Objective:
    """The energy of `fit` on the skeleton, every hand with joints of its own, each so many times."""
    model: HandModel = hands.hand
    joints = model.decode(hands.truth).joints_m[..., :2].double().repeat_interleave(repeats, 0)
    evidence = Evidence2d(joints, joints.new_ones(joints.shape[1]))
    return Objective(model, HandConstants.of(model), evidence, ScaledOrthographic(), use_mesh=False)


def _as_h(state: HandState, like: Tensor) -> Tensor:
    quat, scale = matrix_to_quaternion(state.rotation), state.cam[:, :1].exp()
    return torch.cat([state.pose, state.betas, quat, scale, state.cam[:, 1:], like[:, 62:].double()], 1).to(like)


def as_text(rows: list[dict[str, Any]], points: list[dict[str, Any]]) -> str:
    """Both tables."""
    lines = []
    for row in rows:
        medians = ", ".join(f"{stage} {found['median']:.2f}" for stage, found in row["ms"].items())
        lines.append(f"given {row['given']}, {row['hands']} hands, median ms: {medians}")
    lines.append(f"{'solver':12}{'iterations':>11}{'ms':>10}{'2D px':>9}{'PA mm':>9}")
    for p in points:
        error = f"{p['error2d_px']:9.2f}{p['pa_mpvpe_mm']:9.2f}"
        lines.append(f"{p['solver']:12}{p['iterations']:11}{p['ms']:10.2f}{error}")
    return "\n".join(lines)


def main() -> None:
    """Measures, unless only the picture is asked for; draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20, help="fits of each kind that are timed by stage")
    parser.add_argument("--n", type=int, default=100, help="hands of the curves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.1, help="budget of each timing")
    parser.add_argument("--draw", action="store_true", help="only draw what the result file holds")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    if not arguments.draw:
        rows = stages(arguments.pictures, arguments.seed, DEVICE)
        on_cpu = DEVICE == "cpu"
        points = curves(arguments.n, arguments.seed, ITERATIONS, arguments.seconds) if on_cpu else []
        print(noise_warning() + as_text(rows, points))
        if arguments.dry:
            return
        result = {"run": run_facts(DEVICE), "arguments": vars(arguments), "stages": rows, "curves": points}
        print(f"-> {write_result('fit', result)}")
        if not on_cpu:
            return
    from fit_plot import draw

    print(f"-> {draw(json.loads((RESULTS / 'fit.json').read_text()), RESULTS / 'fit_curves.png')}")


if __name__ == "__main__":
    main()
