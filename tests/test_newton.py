"""The compiled Levenberg-Marquardt, step by step against the torch version, and what it does with hostile input."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from newton_cases import CAMERAS, Hand, default_hand, image_of, make_evidence, make_state, mask_of

from dhpe_fast.ops.newton import DIVERGED, NewtonEvidence, NewtonState, newton_minimize
from dhpe_fast.projection import PerspectiveCrop
from dhpe_fast.refinement.gauss_newton import (
    N_LOCAL,
    Evidence2d,
    HandState,
    Objective,
    Refined,
    Weights,
    minimize,
)
from dhpe_fast.rotation import axis_angle_to_matrix

OBJECTIVES = ("skeleton", "mesh", "mask")


@pytest.fixture(scope="module")
def hand() -> Hand:
    return default_hand()


def make_problem(hand: Hand, camera_name: str, kind: str, starts: int = 3) -> tuple[Objective, HandState]:
    """Noisy joints of a hand, one of them far off, and starts about it; one start is beyond all limits."""
    camera, cam = CAMERAS[camera_name]
    truth = make_state(hand, cam, 1)
    joints = image_of(hand, camera, truth)[0] + 0.02 * torch.randn(21, 2, dtype=torch.float64)
    joints[7] += 1.0
    mask = mask_of(hand, camera, truth) if kind == "mask" else None
    objective = Objective(hand.model, hand.constants, make_evidence(joints, mask), camera, use_mesh=kind != "skeleton")
    start = truth[torch.zeros(starts, dtype=torch.long)].moved(0.2 * torch.randn(starts, N_LOCAL, dtype=torch.float64))
    start.pose[0] *= 3
    start.betas[0] = torch.linspace(-4, 4, 10)
    return objective, start


def assert_same(found: Refined, expected: Refined, rtol: float, atol: float) -> None:
    torch.testing.assert_close(found.energy, expected.energy, rtol=rtol, atol=0)
    for name in ("pose", "betas", "rotation", "cam"):
        pair = (getattr(result.state, name) for result in (found, expected))
        torch.testing.assert_close(*pair, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
    assert found.iterations.tolist() == expected.iterations.tolist()
    assert found.converged.tolist() == expected.converged.tolist()
    assert found.diverged.tolist() == expected.diverged.tolist()


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("camera", CAMERAS)
def test_every_step_is_that_of_the_torch_version(hand, camera, kind):
    objective, start = make_problem(hand, camera, kind)
    for iterations in (0, 1, 2, 3, 6):
        found = minimize(objective, start, iterations=iterations)
        expected = minimize(objective, start, iterations=iterations, compiled=False)
        assert_same(found, expected, rtol=1e-9, atol=1e-9)
        assert found.iterations.max() <= iterations


@pytest.mark.parametrize("kind", ["skeleton", "mesh"])
def test_both_stop_at_the_same_step(hand, kind):
    objective, start = make_problem(hand, "orthographic", kind, starts=4)
    found = minimize(objective, start, iterations=60)
    assert_same(found, minimize(objective, start, iterations=60, compiled=False), rtol=1e-9, atol=1e-6)
    assert found.converged.all()
    assert len(set(found.iterations.tolist())) > 1  # each at its own


def test_both_drop_the_same_hypotheses_of_a_race(hand):
    objective, start = make_problem(hand, "orthographic", "mesh", starts=4)
    turned = axis_angle_to_matrix(torch.tensor([0.0, 2.5, 0.0], dtype=torch.float64))
    start = replace(start, rotation=torch.cat([start.rotation[:3], turned @ start.rotation[3:]]))  # no way from there
    found = minimize(objective, start, iterations=12, race=True)
    assert_same(found, minimize(objective, start, iterations=12, race=True, compiled=False), rtol=1e-9, atol=1e-6)
    alone = minimize(objective, start, iterations=12)
    assert found.energy.min() == alone.energy.min()
    assert found.iterations.sum() < alone.iterations.sum()


@pytest.mark.parametrize("kind", ["mesh", "mask"])
def test_a_float32_model_gives_the_same_hand(kind):
    """Mesh terms are then computed in float32: energies agree to its last digits, and so do the minima."""
    hand = default_hand(torch.float32)
    objective, start = make_problem(hand, "orthographic", kind)
    found = minimize(objective, start, iterations=4)
    expected = minimize(objective, start, iterations=4, compiled=False)
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.state.pose, expected.state.pose, rtol=0, atol=2e-3)


def test_results_do_not_depend_on_threads_or_on_company(hand):
    for kind, race in (("skeleton", False), ("mask", False), ("mask", True)):
        objective, start = make_problem(hand, "perspective", kind, starts=5)
        results = []
        before = torch.get_num_threads()
        for threads in (1, 4):
            torch.set_num_threads(threads)
            try:
                results.append(minimize(objective, start, iterations=5, race=race))
            finally:
                torch.set_num_threads(before)
        assert torch.equal(results[0].energy, results[1].energy)
        assert torch.equal(results[0].state.pose, results[1].state.pose)
        if not race:
            alone = minimize(objective, start[torch.tensor([2])], iterations=5)
            assert torch.equal(results[0].state.pose[2:3], alone.state.pose)


@pytest.mark.parametrize("race", [False, True])
def test_images_of_one_call_do_not_see_each_other(hand, race):
    """Two perspective crops with masks, two hypotheses each."""
    problems = [make_problem(hand, "perspective", "mask", starts=2) for _ in range(2)]
    problems[1] = (replace(problems[1][0], camera=PerspectiveCrop((4.4, 4.0), (0.2, -0.2))), problems[1][1])
    parts = zip(*(astuple(start) for _, start in problems), strict=True)
    evidence = [objective.evidence for objective, _ in problems]
    cameras = [[*objective.camera.focal, *objective.camera.center] for objective, _ in problems]
    together = newton_minimize(
        NewtonState(*(torch.cat(part) for part in parts)),
        NewtonEvidence(
            torch.stack([e.joints for e in evidence]),
            torch.stack([e.confidence for e in evidence]),
            torch.tensor(cameras, dtype=torch.float64),
            torch.stack([e.mask for e in evidence]),
        ),
        hand.constants.compiled_hand,
        hand.constants.compiled_mesh,
        astuple(Weights()),
        4,
        1e-3,
        race,
    )
    alone = [minimize(objective, start, iterations=4, race=race) for objective, start in problems]
    assert torch.equal(together.energy, torch.cat([result.energy for result in alone]))
    assert torch.equal(together.state.pose, torch.cat([result.state.pose for result in alone]))


BAD_STARTS = {
    "NaN pose": ("pose", torch.nan),
    "infinite betas": ("betas", torch.inf),
    "NaN rotation": ("rotation", torch.nan),
    "infinite camera": ("cam", -torch.inf),
    "pose beyond all numbers": ("pose", 1e200),
    "behind the camera": ("cam", -5.0),
}


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("bad", BAD_STARTS)
def test_no_start_gives_nan_and_the_hopeless_is_flagged(hand, bad, kind, compiled):
    objective, start = make_problem(hand, "perspective", kind, starts=2)
    name, value = BAD_STARTS[bad]
    getattr(start, name)[0].fill_(value)
    found = minimize(objective, start, iterations=12, compiled=compiled)
    assert found.diverged.tolist() == [True, False]
    assert found.energy[0] == torch.inf
    assert not found.converged[0]
    for name in ("pose", "betas", "rotation", "cam"):
        assert getattr(found.state, name).isfinite().all(), name
    alone = minimize(objective, start[torch.tensor([1])], iterations=12, compiled=compiled)
    torch.testing.assert_close(found.energy[1:], alone.energy)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
def test_what_no_one_saw_does_not_count(hand, compiled):
    objective, start = make_problem(hand, "orthographic", "mesh")
    joints, confidence = objective.evidence.joints.clone(), objective.evidence.confidence.clone()
    confidence[4] = 0
    expected = minimize(replace(objective, evidence=Evidence2d(joints, confidence)), start, compiled=compiled)
    joints[4] = torch.nan
    found = minimize(replace(objective, evidence=Evidence2d(joints, confidence)), start, compiled=compiled)
    assert torch.equal(found.energy, expected.energy)


ANY = st.floats(width=64, allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(
    state=arrays(np.float64, 67, elements=st.one_of(st.floats(-3, 3), ANY)),
    joints=arrays(np.float64, (21, 2), elements=st.one_of(st.floats(-1, 1), ANY)),
    confidence=arrays(np.float64, 21, elements=st.floats(0, 1)),
    perspective=st.booleans(),
)
def test_nothing_at_all_gives_nan(state, joints, confidence, perspective):
    pose, betas, rotation, cam = (torch.from_numpy(part)[None] for part in np.split(state, (45, 55, 64)))
    found = newton_minimize(
        NewtonState(pose.clone(), betas.clone(), rotation.reshape(1, 3, 3).clone(), cam.clone()),
        NewtonEvidence(
            torch.from_numpy(joints)[None],
            torch.from_numpy(confidence)[None],
            torch.tensor([[4.0, 4.2, 0.3, -0.1]], dtype=torch.float64) if perspective else None,
        ),
        default_hand().constants.compiled_hand,
        None,
        astuple(Weights()),
        8,
        1e-3,
        False,
    )
    assert all(part.isfinite().all() for part in found.state)
    assert not found.energy.isnan()
    assert bool(found.energy.isinf()) == (int(found.status) == DIVERGED)


def test_evidence_that_is_no_number_is_flagged(hand):
    objective, start = make_problem(hand, "orthographic", "skeleton")
    objective.evidence.joints[3, 0] = torch.nan
    found = minimize(objective, start)
    assert found.diverged.all()
    assert torch.equal(found.state.pose, start.pose)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
def test_no_gradient_flows_through(hand, compiled):
    objective, start = make_problem(hand, "orthographic", "skeleton")
    start.pose.requires_grad_()
    found = minimize(objective, start, iterations=2, compiled=compiled)
    assert not found.state.pose.requires_grad
    assert not found.energy.requires_grad


def test_no_hypotheses_and_no_steps(hand):
    objective, start = make_problem(hand, "orthographic", "mesh")
    none = minimize(objective, start[:0])
    assert none.energy.shape == (0,)
    assert none.state.rotation.shape == (0, 3, 3)
    unmoved = minimize(objective, start, iterations=0)
    torch.testing.assert_close(unmoved.energy, objective.energy(start), rtol=1e-12, atol=0)
    assert torch.equal(unmoved.state.cam, start.cam)


def call_arguments(hand: Hand, kind: str) -> dict:
    objective, start = make_problem(hand, "orthographic", kind, starts=2)
    mask = objective.evidence.mask
    return {
        "state": NewtonState(*astuple(start)),
        "evidence": NewtonEvidence(
            objective.evidence.joints[None],
            objective.evidence.confidence[None],
            None,
            None if mask is None else mask[None],
        ),
        "hand": hand.constants.compiled_hand,
        "mesh": None if kind == "skeleton" else hand.constants.compiled_mesh,
        "weights": astuple(Weights()),
        "iterations": 2,
        "tolerance": 1e-3,
        "race": False,
    }


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_opcheck_and_the_callers_tensors(hand, kind):
    call = call_arguments(hand, kind)
    before = [t.clone() for t in call["state"]]
    newton_minimize(**call)
    assert all(torch.equal(a, b) for a, b in zip(before, call["state"], strict=True))
    mesh = call["mesh"]
    arguments = (
        *call["state"],
        *call["evidence"],
        list(call["hand"]),
        [] if mesh is None else mesh.tensors,
        list(call["weights"]),
        2,
        1e-3,
        False,
    )
    op = torch.ops.dhpe_fast.newton_minimize.default
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_arguments_may_lie_anyhow_in_memory(hand):
    call = call_arguments(hand, "skeleton")
    expected = newton_minimize(**call)
    strided = [t.repeat_interleave(2, -1)[..., ::2] for t in call["state"]]
    found = newton_minimize(**{**call, "state": NewtonState(*strided)})
    assert torch.equal(found.energy, expected.energy)


def change(part: str, **fields):
    """A bad call: fields of one argument replaced by functions of what they were."""
    return lambda call: {**call, part: call[part]._replace(**{k: f(getattr(call[part], k)) for k, f in fields.items()})}


def without_mesh(call: dict) -> dict:
    return {**change("evidence", mask=lambda _: torch.ones(1, 5, 5).double())(call), "mesh": None}


def thrice(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor] * 3)


BAD_CALLS = {
    "pose dtype": (change("state", pose=torch.Tensor.float), TypeError, "pose: expected a tensor of torch.float64"),
    "pose list": (change("state", pose=torch.Tensor.tolist), TypeError, "pose: expected a tensor, got list"),
    "betas shape": (change("state", betas=lambda t: t[:, :9]), ValueError, r"betas: expected \(2, 10\).*got \(2, 9\)"),
    "rotation": (change("state", rotation=lambda t: t[:1]), ValueError, r"rotation: expected \(2, 3, 3\)"),
    "joints": (change("evidence", joints=lambda t: t[0]), ValueError, r"joints: expected \(21, 21, 2\)"),
    "no image": (
        change("evidence", joints=lambda t: t[:0], confidence=lambda t: t[:0]),
        ValueError,
        "2 hypotheses cannot be shared evenly by 0 images",
    ),
    "uneven": (change("evidence", joints=thrice, confidence=thrice), ValueError, "shared evenly by 3 images"),
    "axes": (change("hand", axes=lambda t: t[0]), ValueError, r"axes: expected \(15, 3, 3\)"),
    "mask": (change("evidence", mask=lambda _: torch.ones(1, 4, 5).double()), ValueError, r"expected \(1, 5, 5\)"),
    "mask dtype": (change("evidence", mask=lambda _: torch.ones(1, 5, 5)), TypeError, "mask: .* torch.float64"),
    "mask without mesh": (without_mesh, ValueError, "mask: .* needs the mesh"),
    "faces": (change("mesh", faces=torch.Tensor.long), TypeError, "faces: expected a tensor of torch.int32"),
    "columns": (
        change("mesh", laplacian=lambda m: m._replace(column=m.column[1:])),
        ValueError,
        "laplacian.column: expected",
    ),
    "weights": (lambda call: {**call, "weights": (1.0,)}, ValueError, "weights: expected 9 numbers, got 1"),
    "sigma": (lambda call: {**call, "weights": (0.0, *call["weights"][1:])}, ValueError, "joint_sigma is 0.0"),
    "iterations": (lambda call: {**call, "iterations": -1}, ValueError, "iterations: expected a whole number >= 0"),
    "tolerance": (lambda call: {**call, "tolerance": float("nan")}, ValueError, "tolerance: expected a number >= 0"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_arguments_are_named(hand, case):
    spoil, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        newton_minimize(**spoil(call_arguments(hand, "mesh")))


@pytest.mark.parametrize("name", ["tips", "faces", "laplacian.column", "laplacian.start"])
def test_indices_out_of_range_are_refused(hand, name):
    call = call_arguments(hand, "mesh")
    tensors = call["mesh"].tensors
    named = dict(zip(("tips", "faces", "laplacian.start", "laplacian.column"), tensors[-5:], strict=False))
    values = named[name].clone()
    values.view(-1)[-1] = 100_000
    first, *rest = name.split(".")
    changed = call["mesh"].laplacian._replace(**{rest[0]: values}) if rest else values
    with pytest.raises(RuntimeError, match=name):
        newton_minimize(**{**call, "mesh": call["mesh"]._replace(**{first: changed})})


def test_statuses_are_told_apart(hand):
    call = call_arguments(hand, "skeleton")
    call["state"].cam[0, 0] = torch.nan
    assert newton_minimize(**call).status.tolist() == [DIVERGED, 0]


def on_cuda(call: dict, device: str = "cuda") -> dict:
    moved = {
        part: type(call[part])(*(None if t is None else t.to(device) for t in call[part])) for part in TENSOR_PARTS
    }
    return {**call, **moved}


TENSOR_PARTS = ("state", "evidence", "hand")


@pytest.mark.needs_cuda
@pytest.mark.parametrize("intrinsics", [None, (4.0, 4.2, 0.3, -0.1)], ids=CAMERAS)
def test_a_block_on_the_gpu_takes_the_steps_of_the_cpu(hand, intrinsics):
    call = {**call_arguments(hand, "skeleton"), "iterations": 8}
    if intrinsics is not None:
        evidence = call["evidence"]._replace(intrinsics=torch.tensor([intrinsics], dtype=torch.float64))
        call = {**call, "evidence": evidence}
        call["state"].cam.copy_(torch.tensor(CAMERAS["perspective"][1], dtype=torch.float64))
    expected, found = newton_minimize(**call), newton_minimize(**on_cuda(call))
    torch.testing.assert_close(found.energy.cpu(), expected.energy, rtol=1e-8, atol=0)
    for a, b in zip(found.state, expected.state, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-7)
    assert found.steps.tolist() == expected.steps.tolist()
    assert found.status.tolist() == expected.status.tolist()


@pytest.mark.needs_cuda
def test_a_cuda_graph_holds_all_steps(hand):
    """Also proof that the host waits for nothing: a capture forbids it."""
    call = on_cuda({**call_arguments(hand, "skeleton"), "iterations": 8})
    expected = newton_minimize(**call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = newton_minimize(**call)
    call["state"].pose.add_(0.1)
    graph.replay()
    assert not torch.equal(found.energy, expected.energy)
    call["state"].pose.sub_(0.1)
    graph.replay()
    torch.testing.assert_close(found.energy, expected.energy)


@pytest.mark.needs_cuda
def test_a_block_follows_its_stream_and_repeats_itself_bit_for_bit(hand):
    """On two streams at once, whose pose is not a number yet when the call is queued."""
    call = on_cuda({**call_arguments(hand, "skeleton"), "iterations": 8})
    expected = newton_minimize(**call)
    found = []
    torch.cuda.synchronize()
    for stream in [torch.cuda.Stream() for _ in range(2)]:
        with torch.cuda.stream(stream):
            late = torch.full_like(call["state"].pose, torch.nan)
            torch.cuda._sleep(20_000_000)
            late.copy_(call["state"].pose)
            found.append(newton_minimize(**{**call, "state": call["state"]._replace(pose=late)}))
    torch.cuda.synchronize()
    for one in found:
        assert torch.equal(one.energy, expected.energy)
        assert all(map(torch.equal, one.state, expected.state))


@pytest.mark.needs_cuda
def test_a_block_runs_on_the_device_of_its_arguments(hand):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    call = {**call_arguments(hand, "skeleton"), "iterations": 8}
    expected, found = newton_minimize(**call), newton_minimize(**on_cuda(call, "cuda:1"))
    assert found.energy.device == torch.device("cuda:1")
    torch.testing.assert_close(found.energy.cpu(), expected.energy, rtol=1e-8, atol=0)


@pytest.mark.needs_cuda
def test_mesh_terms_and_races_stay_on_the_cpu(hand):
    call = on_cuda(call_arguments(hand, "skeleton"))
    with pytest.raises(ValueError, match="mesh, race: on CUDA"):
        newton_minimize(**{**call, "race": True})
