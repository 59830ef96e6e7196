"""The benchmarks of refinement compare what is alike: the same step, the same loss, errors that vanish at the truth."""

from __future__ import annotations

import bench_fit
import bench_refine
import newton_against_descent
import pytest
import readme_refine
import torch
from bench_refine import Case, fused, fused_many, fused_step, given_term, unfused, with_ratios
from refine_peers import ComposedIteration, manopth_layer
from refine_scene import perturbed_hands
from test_frozen_features import trained

from dhpe_fast.refinement.cuda_graph import GraphedIteration

SIZE = 48


@pytest.fixture(scope="module")
def scene():
    return perturbed_hands(3, SIZE, pictures=False)


def test_the_scene_is_seen_where_it_is_drawn():
    hands = perturbed_hands(2, 64)
    mask = hands.projector("nmr")(hands.truth).mask[:, None] > 0
    assert hands.images.shape == (2, 3, 64, 64)
    assert torch.equal(hands.first(1).start, hands.start[:1])
    skin, around = (hands.images * mask).sum((2, 3)), (hands.images * ~mask).sum((2, 3))
    skin, around = skin / mask.sum((2, 3)), around / (~mask).sum((2, 3))
    assert ((skin - around).abs().amax(1) > 0.02).all()
    moved_px = (hands.projector("nmr")(hands.start).joints - hands.projector("nmr")(hands.truth).joints)[..., :2] * 32
    assert float(moved_px.norm(dim=-1).mean()) > 2


def test_all_implementations_take_the_same_step(scene):
    """Three hands, without the CNN: compiled and by autograd."""
    expected = fused(scene, None).call()[0]
    assert float((expected - scene.start).norm(dim=1).min()) > 0.05
    torch.testing.assert_close(unfused(scene, None).call(), expected, rtol=1e-3, atol=1e-4)


def test_so_does_the_one_composed_from_others_parts(scene):
    expected = fused(scene, None).call()[0]
    composed = ComposedIteration(scene, manopth_layer(), bench_refine.STEP_SIZE)
    slope = bench_refine.FEATURE_WEIGHT * given_term(scene).slope
    torch.testing.assert_close(composed(scene.start, slope)[0], expected, rtol=1e-3, atol=1e-3)


def test_with_the_cnn_too(scene):
    features = trained(18).eval().requires_grad_(False)
    expected = unfused(scene, features).call()
    torch.testing.assert_close(fused(scene, features).call()[0], expected, rtol=1e-3, atol=1e-4)
    assert not torch.equal(expected, fused(scene, None).call()[0])


@pytest.mark.needs_cuda
@pytest.mark.parametrize("precision", [None, "float16"])
def test_the_recorded_iteration_is_the_eager_one(precision):
    """Mask, CNN and step in one CUDA graph, five times; gradients add up in another order each time."""
    hands = perturbed_hands(2, SIZE, device="cuda")
    features = trained(18).eval().requires_grad_(False).cuda()
    step, state, constants = fused_step(hands, features, precision)
    iteration = GraphedIteration(step)
    found, _ = iteration(state, constants, 5)
    assert iteration.reason is None
    for _ in range(5):
        state = step(state, constants)
    torch.testing.assert_close(found, state[0], rtol=1e-3, atol=1e-3)


def test_one_call_for_many_is_as_many_iterations(scene):
    many = fused_many(scene, None)
    assert many.count == bench_refine.CALLED_ITERATIONS
    assert many.call().energies.shape[1] == many.count + 1


def test_ratios_are_to_the_baselines_of_the_same_case():
    def row(implementation, ms, batch=1):
        return {**vars(Case("cpu", "full", batch, 1)), "implementation": implementation, "median_ms": ms}

    ours, cnn, other = with_ratios([row("fused", 2.0), row("cnn", 3.0), row("fused", 9.0, batch=4)])
    assert ours["times_cnn"] == 1.5
    assert not any(key.startswith("times_") for key in (*cnn, *other))


def test_what_takes_too_long_is_not_tried_with_more_hands(scene, monkeypatch):
    monkeypatch.setitem(bench_refine.IMPLEMENTATIONS, "geometric", {"fused": fused, "unfused": unfused})
    monkeypatch.setattr(bench_refine, "TOO_LONG_MS", 0.0)
    skipped: set[str] = set()
    case = Case("cpu", "geometric", 1, torch.get_num_threads())
    rows = list(bench_refine.measure(case, scene.first(1), None, 0.0, skipped))
    assert [row["implementation"] for row in rows] == ["fused", "unfused"]
    assert skipped == {"fused", "unfused"}
    assert list(bench_refine.measure(case, scene, None, 0.0, skipped)) == []


@pytest.mark.parametrize("use_mesh", [False, True], ids=["skeleton", "mesh"])
def test_newton_reaches_in_ten_steps_what_descent_reaches_in_fifty(use_mesh):
    """On the same loss, which is that of both: the energy at the start is the same number."""
    hands = newton_against_descent.problem(8, 1, use_mesh=use_mesh)
    energies = newton_against_descent.descend(hands, 50, 1.0)
    assert (energies[1:] <= energies[:-1]).all()
    assert (energies[-1] < 0.1 * energies[0]).all()
    start = newton_against_descent.newton(hands.objective, hands.start, 0)[1]
    torch.testing.assert_close(start, energies[0], rtol=1e-4, atol=1e-4)
    needed = newton_against_descent.steps_needed(hands, energies[-1], 10)
    assert (needed >= 1).all()
    assert float((needed <= 10).double().mean()) >= 0.9


def test_errors_vanish_at_the_truth_and_solvers_lower_them(scene):
    zero = bench_fit.errors(scene, scene.truth)
    assert zero["error2d_px"] < 1e-3
    assert zero["pa_mpvpe_mm"] < 1e-3
    before = bench_fit.errors(scene, scene.start)
    for name, prepare in bench_fit.SOLVERS.items():
        found = dict(prepare(scene)((0, 20)))
        torch.testing.assert_close(
            bench_fit.errors(scene, found[0])["error2d_px"], before["error2d_px"], rtol=0.2, atol=0
        )
        assert bench_fit.errors(scene, found[20])["error2d_px"] < 0.8 * before["error2d_px"], name


def test_pages_say_what_was_not_reached(monkeypatch):
    run = {"threads": 2, "processor": "P", "commit": "c", "torch": "t", "date": "2026-01-01T", "device": "cpu"}
    about = {"run": run, "paper_ms": {"iteration": 5.0}, "depth": 50, "weights": "random", "mode": "edge"}

    def row(job, implementation, ms, threads=2):
        case = {"job": job, "implementation": implementation, "batch": 1, "threads": threads}
        return case | {"median_ms": ms, "iqr_ms": 0.1, "device": "cpu"}

    rows = [row("geometric", readme_refine.OURS["geometric"], 0.5, threads=1)]
    rows += [row("full", "fused", 110.0), row("full", "cnn", 100.0)]
    monkeypatch.setattr(readme_refine, "read", lambda name: about | {"rows": rows} if name == "refine" else None)
    monkeypatch.setattr(readme_refine, "_gpu_results", lambda: [])
    geometric, full, paper = readme_refine.goal_rows()
    assert geometric[1:4] == ("0.25 ms", "0.500 ms", "0.25 ms")
    assert full[1:4] == ("1.05 x the bare CNN", "110 ms, 1.10 x the CNN as torch runs it", "105 ms")
    assert paper[2:4] == ("110 ms", "5 ms")
    assert "| full, 1 hand | 2 | `cnn` | 100 | 0.1 |" in readme_refine.iterations_table()
    rows[1]["median_ms"] = 90.0
    assert readme_refine.goal_rows()[1][3] == ""
