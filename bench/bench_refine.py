"""One iteration of Eq. 11: this package's, beside the same one put together from what there was, and the bare CNN.

    python bench/bench_refine.py
    DHPE_MANOPTH=path/to/manopth python bench/bench_refine.py --seconds 0.5 --batches 1,8,64,256

`geometric` is an iteration without the CNN: the mesh of h, its joints and mask, the joints and Laplacian terms, a given
slope of the feature term by the mask, the gradient by h, and a step. `full` runs the CNN, too, for that slope: a
ResNet-50 with random weights at 224 x 224, which costs what a trained one costs. All in float32 unless it says
otherwise. On a GPU, times are between events of the device. Milliseconds are those of an iteration of the whole batch.
The table is printed and goes to bench/results/refine.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from common import DEVICE, device_times_ms, noise_warning, run_facts, summary, time_ms, write_result
from refine_peers import ComposedIteration, manopth_layer
from refine_scene import Scene, perturbed_hands
from timings import as_text
from torch import Tensor

from dhpe_fast.losses import cotangent_laplacian, joints2d_refine_loss, laplacian_loss
from dhpe_fast.nets import FeatureExtractor, FrozenFeatures, MaskedFeatures
from dhpe_fast.ops.refine import EnergyWeights, FeatureTerm, RefineEnergy, RefineModel, refine_descend, refine_mask
from dhpe_fast.reference.descent_rule import first_memory
from dhpe_fast.refinement import BALANCED
from dhpe_fast.refinement.constants import refine_model
from dhpe_fast.refinement.cuda_graph import GraphedIteration, Step

PAPER_MS = {"iteration": 5.0, "refinement of 50 iterations": 250.0, "first estimate": 100.0}
"""Of one image, on the GPU of 2019 (Sec. 4)."""
MODE = "edge"
STEP_SIZE = 1e-3
FEATURE_WEIGHT = 1e-4
CALLED_ITERATIONS = 50
"""Of a fused call that runs many; its time is divided by them."""
TOO_LONG_MS = 1000.0
"""Nothing that takes longer is timed with larger batches."""
BASELINES = ("composed", "unfused", "cnn")
"""What the others are compared with in the same job, batch and number of threads."""

Call = Callable[[], Any]
Implementation = Callable[[Scene, Any], "Iterations"]


@dataclass(frozen=True)
class Case:
    """What is timed."""

    device: str
    job: str
    batch: int
    threads: int


@dataclass(frozen=True)
class Iterations:
    """So many iterations in one call."""

    call: Call
    count: int = 1


# ---- Implementations -------------------------------------------------------------------------------------------------


def unfused(scene: Scene, features: FeatureExtractor | None) -> Iterations:
    """The ops of this package under autograd, as `refine(..., fused=False)` runs them."""
    projector, hand, size = scene.projector(MODE), scene.hand, scene.size
    laplacian = cotangent_laplacian(hand.basis.v_template, hand.faces)
    rates = STEP_SIZE * BALANCED.vector(scene.start)
    constant = given_term(scene)
    masked = None if features is None else MaskedFeatures(features, scene.images)

    def step() -> Tensor:
        h = scene.start.clone().requires_grad_()
        projection = projector(h)
        feature = constant
        if masked is not None:
            mask = projection.mask.detach()
            value, slope = masked(mask)
            feature = FeatureTerm(value, mask, slope)
        joints_px = (0.5 * projection.joints[..., :2] + 0.5) * size
        energy = joints2d_refine_loss(joints_px, scene.joints2d_px, None, size)
        energy = energy + laplacian_loss(projection.verts, laplacian) + FEATURE_WEIGHT * feature.at(projection.mask)
        (gradient,) = torch.autograd.grad(energy.sum(), h)
        return h.detach() - rates * gradient

    return Iterations(step)


def given_term(scene: Scene) -> FeatureTerm:
    """A feature term with some slope, as an iteration without the CNN finds it."""
    with torch.no_grad():
        mask = scene.projector(MODE)(scene.start).mask
    slope = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1)).to(mask) / mask.shape[-1]
    return FeatureTerm(mask.new_ones(len(mask)), mask, slope)


def fused(scene: Scene, features: FeatureExtractor | None, precision: str | None = None) -> Iterations:
    """The compiled ops; with the CNN, around this package's fast copy of it."""
    step, state, constants = fused_step(scene, features, precision)
    return Iterations(lambda: step(state, constants))


def fused_step(
    scene: Scene, features: FeatureExtractor | None, precision: str | None
) -> tuple[Step, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The iteration as a function of h and its memory, where these start, and what stays."""
    model = refine_model(scene.hand)
    rates = STEP_SIZE * BALANCED.vector(scene.start)
    state = (scene.start, first_memory(scene.start))
    term = given_term(scene)
    masked = None
    if features is not None:
        masked = MaskedFeatures(FrozenFeatures(features, precision), scene.images)

    def step(state: tuple[Tensor, ...], constants: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        feature = term
        if masked is not None:
            mask = refine_mask(state[0], model, scene.size, MODE)
            value, slope = masked.on(*constants)(mask)
            feature = FeatureTerm(value, mask, slope)
        done = refine_descend(state[0], energy_of(scene, model, feature), rates, 1, memory=state[1], evaluate_end=False)
        return done.h, done.memory

    return step, state, () if masked is None else masked.tensors


def energy_of(scene: Scene, model: RefineModel, feature: FeatureTerm) -> RefineEnergy:
    """Eq. 11 with a slope of the feature term."""
    weights = EnergyWeights(feature=FEATURE_WEIGHT)
    return RefineEnergy(model, scene.joints2d_px, scene.size, weights, MODE, feature=feature)


def fused_many(scene: Scene, features: None) -> Iterations:
    """Many iterations in one call, as `refine` takes between two runs of the CNN, or without one."""
    model = refine_model(scene.hand)
    energy, rates = energy_of(scene, model, given_term(scene)), STEP_SIZE * BALANCED.vector(scene.start)
    return Iterations(lambda: refine_descend(scene.start, energy, rates, CALLED_ITERATIONS), CALLED_ITERATIONS)


def graphed(precision: str | None) -> Implementation:
    """The compiled iteration recorded in a CUDA graph, replayed several times a call."""

    def implementation(scene: Scene, features: FeatureExtractor | None) -> Iterations:
        step, state, constants = fused_step(scene, features, precision)
        iteration = GraphedIteration(step)
        iteration(state, constants)
        assert iteration.reason is None, iteration.reason
        return Iterations(lambda: iteration(state, constants, CALLED_ITERATIONS), CALLED_ITERATIONS)

    return implementation


def composed(scene: Scene, features: FeatureExtractor | None) -> Iterations:
    """manopth, a renderer in plain torch, autograd; its step is compared with this package's before it is timed."""
    iteration = ComposedIteration(scene, manopth_layer(scene.start.device), STEP_SIZE)
    if features is None:
        slope = FEATURE_WEIGHT * given_term(scene).slope
        check_same_step(iteration(scene.start, slope)[0], scene)
        return Iterations(lambda: iteration(scene.start, slope))
    with torch.no_grad():
        whole = features(scene.images)
    return Iterations(lambda: iteration.with_features(scene.start, features, whole, FEATURE_WEIGHT))


def check_same_step(h: Tensor, scene: Scene) -> None:
    """Raises AssertionError unless this is, to 1 %, the step that this package takes."""
    ours = fused(scene, None).call()[0] - scene.start
    difference = (h - scene.start - ours).norm(dim=1) / ours.norm(dim=1)
    assert float(difference.max()) < 0.01, f"the steps differ by {100 * float(difference.max()):.2f} %"


def bare_cnn(scene: Scene, features: FeatureExtractor) -> Iterations:
    """Forward and input gradient of the network as torch runs it, channels-last, its weights without gradients."""
    images = scene.images.contiguous(memory_format=torch.channels_last)
    upstream = torch.ones(len(images), features.n_features, device=images.device)

    def run() -> Tensor:
        leaf = images.detach().requires_grad_()
        return torch.autograd.grad(features(leaf), leaf, upstream)[0]

    return Iterations(run)


def frozen_cnn(precision: str) -> Callable[[Scene, FeatureExtractor], Iterations]:
    """The feature term's value and slope by this package's fast copy of the network."""

    def implementation(scene: Scene, features: FeatureExtractor) -> Iterations:
        term = MaskedFeatures(FrozenFeatures(features, precision), scene.images)
        mask = given_term(scene).mask
        return Iterations(lambda: term(mask))

    return implementation


IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {
    "geometric": {
        "fused, one call for 50": fused_many,
        "fused": fused,
        "unfused": unfused,
        "composed": composed,
    },
    "full": {
        "cnn": bare_cnn,
        "frozen cnn": frozen_cnn("float32"),
        "frozen cnn, bfloat16": frozen_cnn("bfloat16"),
        "fused": fused,
        "fused, bfloat16": lambda scene, features: fused(scene, features, "bfloat16"),
        "unfused": unfused,
        "composed": composed,
    },
}
if DEVICE == "cuda":
    IMPLEMENTATIONS["geometric"]["fused, graph"] = graphed(None)
    IMPLEMENTATIONS["full"]["fused, graph"] = graphed(None)
    IMPLEMENTATIONS["full"]["fused, float16, graph"] = graphed("float16")
    IMPLEMENTATIONS["full"]["fused, bfloat16, graph"] = graphed("bfloat16")


# ---- Timing ----------------------------------------------------------------------------------------------------------


def measure(case: Case, scene: Scene, features: FeatureExtractor, seconds: float, skipped: set[str]) -> Iterator[dict]:
    """A row for every implementation of a job; those that take too long are added to `skipped`."""
    torch.set_num_threads(case.threads)
    for name, implementation in IMPLEMENTATIONS[case.job].items():
        if name in skipped:
            continue
        try:
            iterations = implementation(scene, features if case.job == "full" else None)
        except pytest.skip.Exception as absent:
            print(absent)
            skipped.add(name)
            continue
        timed = time_ms if case.device == "cpu" else device_times_ms
        times = [ms / iterations.count for ms in timed(iterations.call, seconds)]
        found = summary(times)
        if found["median"] * iterations.count > TOO_LONG_MS:
            skipped.add(name)
        figures = {"median_ms": found["median"], "iqr_ms": found["iqr"], "rounds": len(times)}
        yield {**vars(case), "implementation": name, **figures}


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times faster each row is than the baselines of its case."""
    of_case = {(*_case(row), row["implementation"]): row["median_ms"] for row in rows}
    for row in rows:
        for baseline in BASELINES:
            ms = of_case.get((*_case(row), baseline))
            if ms is not None and row["implementation"] != baseline:
                row[f"times_{baseline}"] = ms / row["median_ms"]
    return rows


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["device"], row["job"], row["batch"], row["threads"]


def job_of(row: dict[str, Any]) -> str:
    """In words."""
    return f"{row['job']} B={row['batch']}, {row['threads']} thr."


def run(device: str, batches: dict[str, tuple[int, ...]], seconds: float, depth: int = 50) -> list[dict[str, Any]]:
    """All rows."""
    every_thread = torch.get_num_threads()
    torch.manual_seed(0)
    features = FeatureExtractor(depth, zero_init_residual=True).to(device).eval().requires_grad_(False)
    features = features.to(memory_format=torch.channels_last)
    largest = perturbed_hands(max(max(sizes) for sizes in batches.values()), device=device)
    rows: list[dict[str, Any]] = []
    try:
        for job, sizes in batches.items():
            for threads in sorted({1, every_thread} if job == "geometric" and device == "cpu" else {every_thread}):
                skipped: set[str] = set()
                for batch in sizes:
                    case = Case(device, job, batch, threads)
                    rows += measure(case, largest.first(batch), features, seconds, skipped)
    finally:
        torch.set_num_threads(every_thread)
    return with_ratios(rows)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


def main() -> None:
    """Measures, prints the table, writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=_sizes, default=(1, 8, 64, 256), help="of geometric iterations")
    full = (1, 4) if DEVICE == "cpu" else (1, 8, 64, 256)
    parser.add_argument("--full-batches", type=_sizes, default=full, help="of full iterations")
    parser.add_argument("--seconds", type=float, default=1.0, help="budget of each row; at least three rounds")
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--dry", action="store_true", help="write no result file")
    arguments = parser.parse_args()
    batches = {"geometric": arguments.batches, "full": arguments.full_batches}
    rows = run(DEVICE, batches, arguments.seconds, arguments.depth)
    print(f"{noise_warning()}{as_text(rows, BASELINES, job_of)}")
    if not arguments.dry:
        facts = {"mode": MODE, "depth": arguments.depth, "weights": "random", "paper_ms": PAPER_MS}
        print(f"-> {write_result('refine', {'run': run_facts(DEVICE), **facts, 'rows': rows})}")


if __name__ == "__main__":
    main()
