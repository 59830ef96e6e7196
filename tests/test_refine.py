"""Refinement ops: against the twin, finite differences, energies written out here; the step's rules; hostile input."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dhpe_fast import ops, reference
from dhpe_fast.conventions import H_LAYOUT, MIDDLE_MCP
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.pose_prior import PosePrior
from dhpe_fast.losses import cotangent_laplacian, mask_iou_loss
from dhpe_fast.ops import EnergyWeights, FeatureTerm, RefineEnergy, refine_descend, refine_gradient, refine_mask
from dhpe_fast.reference.descent_rule import FIRST_ENERGY, LAST_ENERGY, STATUS, STEPS
from dhpe_fast.reference.refine import TERMS
from dhpe_fast.refinement.constants import refine_model

S = 24
ALL = EnergyWeights(joints=1.5, feature=0.5, laplacian=2, silhouette=3, pose=0.01, shape=0.1, limits=5)
WEIGHTS = {
    "paper": EnergyWeights(),
    "geometry": EnergyWeights(feature=0),
    "silhouette": EnergyWeights(feature=0, silhouette=2),
    "all": ALL,
    "prior": EnergyWeights(0, 0, 0, 0, 0.02, 0.3, 2),
}


@pytest.fixture(scope="module")
def hand() -> HandModel:
    return HandModel.default(dtype=torch.float64)


@pytest.fixture(scope="module")
def scene(hand) -> SimpleNamespace:
    """Three hands, turned and bent beyond their range; joints around theirs, one unknown; random masks and slopes."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    h = torch.cat([hand.hands_mean + 0.3 * random(3, 45), 0.7 * random(3, 10), random(3, 4)], 1)
    h = torch.cat([h, 7 + random(3, 1), 0.1 * random(3, 3)], 1)
    joints2d_px = (hand.regress_joints(hand.decode(h).verts_m)[..., :2] + 1) / 2 * S + random(3, 21, 2)
    joints2d_px[1, 4, 1] = math.nan
    feature = FeatureTerm(random(3).abs(), random(3, S, S).sigmoid(), 0.1 * random(3, S, S))
    mask = (random(3, S, S) > 0).double()
    model = refine_model(hand, "palm", with_prior=True)
    return SimpleNamespace(h=h, energy=RefineEnergy(model, joints2d_px, S, ALL, "edge", mask, feature))


def moved(energy: RefineEnergy, device="cpu", dtype=torch.float64) -> RefineEnergy:
    """The same energy elsewhere."""

    def to(t: Tensor) -> Tensor:
        return t.to(device, dtype if t.is_floating_point() else t.dtype)

    model, feature = energy.model, energy.feature
    model = ops.RefineModel(
        model.basis.to(device=device, dtype=dtype),
        to(model.faces),
        *(ops.SparseMatrix(*map(to, part)) for part in (model.joint_regressor, model.laplacian)),
        ops.PriorTables(*map(to, model.prior)),
    )
    feature = FeatureTerm(*map(to, (feature.value, feature.mask, feature.slope)))
    return replace(energy, model=model, joints2d_px=to(energy.joints2d_px), mask=to(energy.mask), feature=feature)


def part_of(energy: RefineEnergy, hands: slice) -> RefineEnergy:
    feature = energy.feature
    feature = FeatureTerm(feature.value[hands], feature.mask[hands], feature.slope[hands])
    return replace(energy, joints2d_px=energy.joints2d_px[hands], mask=energy.mask[hands], feature=feature)


def rates(like: Tensor, rate: float = 1e-3) -> Tensor:
    """Different ones."""
    return rate * torch.linspace(0.5, 1.5, 63, dtype=like.dtype, device=like.device)


def terms_by_hand(hand: HandModel, h: Tensor, energy: RefineEnergy) -> dict[str, Tensor]:  # (B,) each
    """From the hand model, the renderer, the losses and the prior alone."""
    verts = hand.decode(h).verts_m
    joints = hand.regress_joints(verts)
    palm = (joints[:, :1] + joints[:, MIDDLE_MCP : MIDDLE_MCP + 1]) / 2
    difference = (torch.cat([palm, joints[:, 1:]], 1)[..., :2] + 1) / 2 - energy.joints2d_px / S
    difference = difference[..., 0].square() + difference[..., 1].square()  # NaN where a joint is
    verts_px = torch.cat([(verts[..., :2] + 1) / 2 * S, verts[..., 2:]], -1)
    mask = ops.silhouette(verts_px, hand.faces, S, mode=energy.mode)
    prior, pose = PosePrior.of(hand), h[:, H_LAYOUT["pose"]]
    return {
        "joints": difference.nansum(1),
        "feature": energy.feature.value + (energy.feature.slope * (mask - energy.feature.mask)).sum((1, 2)),
        "laplacian": (cotangent_laplacian(hand.v_template, hand.faces) @ verts).norm(dim=-1).mean(1),
        "silhouette": mask_iou_loss(mask, energy.mask),
        "pose": prior.energy(pose),
        "shape": h[:, H_LAYOUT["shape"]].square().sum(1),
        "limits": prior.violation(pose).square().sum(1),
    }


# --- Energy and gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_the_mask_is_the_silhouette_of_the_mesh(scene, hand, mode, device, dtype):
    energy = moved(scene.energy, device, dtype)
    mask = refine_mask(scene.h.to(device, dtype), energy.model, S, mode)
    verts = hand.decode(scene.h).verts_m
    verts_px = torch.cat([(verts[..., :2] + 1) / 2 * S, verts[..., 2:]], -1)
    expected = ops.silhouette(verts_px, hand.faces, S, mode=mode)
    assert mask.dtype == dtype
    assert mask.device.type == device.type
    differs = (mask.cpu().double() - expected).abs() > (1e-9 if dtype == torch.float64 else 1e-4)
    # A centre of a pixel may lie on an edge within float32's rounding.
    assert differs.sum() <= (0 if dtype == torch.float64 else 2)
    assert expected.mean() > 0.05


def test_the_terms_are_those_written_out_by_hand(scene, hand, device):
    _, terms = refine_gradient(scene.h.to(device, copy=True), moved(scene.energy, device))
    expected = terms_by_hand(hand, scene.h, scene.energy)
    assert set(expected) == set(TERMS[:-1])
    total = sum(getattr(ALL, name) * value for name, value in expected.items())
    assert (expected["limits"] > 0.01).all()
    for name, value in (expected | {"total": total}).items():
        torch.testing.assert_close(terms[:, TERMS.index(name)].cpu(), value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_the_gradient_is_the_twins(scene, mode, weights, device):
    energy = replace(scene.energy, mode=mode, weights=WEIGHTS[weights])
    expected, terms = reference.refine_gradient(scene.h, energy)
    found, found_terms = refine_gradient(scene.h.to(device, copy=True), moved(energy, device))
    torch.testing.assert_close(found_terms.cpu(), terms, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_single_precision_is_near(scene, mode, device):
    energy = replace(scene.energy, mode=mode, weights=replace(ALL, silhouette=0, feature=0))
    expected, terms = refine_gradient(scene.h, energy)
    found, found_terms = refine_gradient(scene.h.to(device).float(), moved(energy, device, torch.float32))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found_terms.cpu().double(), terms, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=2e-4, atol=2e-4)


def test_the_gradient_of_the_anti_aliased_energy_is_its_finite_difference(scene):
    """Central differences in all 63 directions; the nmr mask has no derivative that could be compared."""
    step = 1e-6
    for b in range(3):
        one = part_of(scene.energy, slice(b, b + 1))
        gradient, _ = refine_gradient(scene.h[b : b + 1], one)
        moves = step * torch.eye(63, dtype=torch.float64)
        many = part_of(scene.energy, [b] * 63)
        above, below = (refine_gradient(scene.h[b] + sign * moves, many)[1][:, -1] for sign in (1, -1))
        torch.testing.assert_close(gradient[0], (above - below) / (2 * step), rtol=1e-4, atol=3e-5)


def test_the_wrist_can_be_joint_0(scene, hand):
    model = refine_model(hand, "wrist", with_prior=False)
    joints = hand.regress_joints(hand.decode(scene.h).verts_m)
    energy = RefineEnergy(model, (joints[..., :2] + 1) / 2 * S, S, EnergyWeights(feature=0))
    assert float(refine_gradient(scene.h, energy)[1][:, 0].max()) < 1e-20


def test_the_gate_lets_the_feature_term_act_near_the_joints_only(scene, device):
    """Hand 1 is asked to be elsewhere. The feature term is told in any case."""
    target = scene.energy.joints2d_px.clone()
    target[1] += 3 * S
    gated = replace(scene.energy, joints2d_px=target, feature_tau_px=8.0)
    without = replace(gated, weights=replace(ALL, feature=0.0), feature_tau_px=None)
    free = replace(gated, feature_tau_px=None)
    gradient, terms = refine_gradient(scene.h.to(device, copy=True), moved(gated, device))
    twin, twin_terms = reference.refine_gradient(scene.h, gated)
    torch.testing.assert_close(gradient.cpu(), twin, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(terms.cpu(), twin_terms, rtol=1e-9, atol=1e-9)
    for b, like in ((0, free), (1, without), (2, free)):
        torch.testing.assert_close(gradient[b].cpu(), refine_gradient(scene.h, like)[0][b])
    assert (terms[:, 1] != 0).all()


# --- Descent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_every_step_is_the_twins(scene, mode, optimizer, device):
    """Each from where the op is: the gradient of a hard mask jumps with the pixels, and paths part by rounding."""
    energy = replace(scene.energy, mode=mode)
    given = moved(energy, device)
    h, memory = scene.h.to(device), None
    for _ in range(2):
        remembered = None if memory is None else memory.cpu()
        expected = reference.refine_descend(h.cpu(), energy, rates(scene.h), 1, optimizer=optimizer, memory=remembered)
        found = refine_descend(h, given, rates(h), 1, optimizer=optimizer, memory=memory)
        assert found.energies.shape == (3, 2, 8)
        for name in ("h", "energies", "memory"):
            torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=1e-9, atol=1e-9)
        h, memory = found.h, found.memory


def test_a_step_is_the_rate_times_the_gradient(scene):
    gradient, terms = refine_gradient(scene.h, scene.energy)
    step = refine_descend(scene.h, scene.energy, rates(scene.h), 1, evaluate_end=False)
    torch.testing.assert_close(step.h, scene.h - rates(scene.h) * gradient, rtol=1e-15, atol=1e-15)
    assert torch.equal(step.energies[:, 0], terms)


def test_adam_is_torchs(scene):
    h = scene.h.clone().requires_grad_()
    adam = torch.optim.Adam([h], lr=0.02)
    for _ in range(4):
        h.grad = refine_gradient(h, scene.energy)[0]
        adam.step()
    found = refine_descend(scene.h, scene.energy, torch.full((63,), 0.02, dtype=h.dtype), 4, optimizer="adam")
    torch.testing.assert_close(found.h, h.detach(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
def test_calls_continue_where_the_last_one_stopped(scene, optimizer, device):
    h, energy = scene.h.to(device, copy=True), moved(replace(scene.energy, weights=WEIGHTS["silhouette"]), device)
    whole = refine_descend(h, energy, rates(h), 5, optimizer=optimizer, tolerance=1e-3)
    part = refine_descend(h, energy, rates(h), 2, optimizer=optimizer, tolerance=1e-3, evaluate_end=False)
    rest = refine_descend(part.h, energy, rates(h), 3, optimizer=optimizer, tolerance=1e-3, memory=part.memory)
    exact = {"rtol": 0, "atol": 0} if device.type == "cpu" else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(rest.h, whole.h, **exact)
    torch.testing.assert_close(rest.memory, whole.memory, **exact)
    torch.testing.assert_close(torch.cat([part.energies, rest.energies], 1), whole.energies, **exact)


def test_a_hand_rests_when_its_energy_hardly_changes(scene, device):
    """Steps of nearly nothing: after the first energy, three that are the same."""
    h, energy = scene.h.to(device, copy=True), moved(scene.energy, device)
    found = refine_descend(h, energy, rates(h, 1e-9), 10, tolerance=1e-3)
    twin = reference.refine_descend(scene.h, scene.energy, rates(scene.h, 1e-9), 10, tolerance=1e-3)
    assert found.converged.all()
    assert not found.diverged.any()
    torch.testing.assert_close(found.h.cpu(), twin.h, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.memory.cpu(), twin.memory, rtol=1e-9, atol=1e-9)
    again = refine_descend(found.h, energy, rates(h), 2, tolerance=1e-3, memory=found.memory)
    assert torch.equal(again.h, found.h)
    assert not refine_descend(h, energy, rates(h, 1e-9), 10).converged.any()


def test_a_descent_that_goes_up_says_so_and_knows_the_best(scene, device):
    """With rates that are far too large, in all kinds of ways; no h is ever anything but finite."""
    h, energy = scene.h.to(device, copy=True), moved(replace(scene.energy, weights=WEIGHTS["silhouette"]), device)
    for rate, optimizer in ((30.0, "gd"), (1e30, "gd"), (1e306, "gd"), (30.0, "adam")):
        found = refine_descend(h, energy, rates(h, rate), 6, optimizer=optimizer)
        assert found.diverged.all()
        assert found.h.isfinite().all()
        assert found.best_h.isfinite().all()
        best = refine_gradient(found.best_h, energy)[1][:, -1]
        seen = found.energies[..., -1].nan_to_num(math.inf)
        torch.testing.assert_close(best, seen.min(1).values)


def test_only_more_than_rounding_is_a_divergence(dtype):
    """First and last energies written into the memory of four hands."""
    first, last = [2.0, 2.0, 0.0, 1e-3], [2.00001, 2.0001, torch.finfo(dtype).eps * 1e-6, 1e-9]
    memory = reference.descent_rule.first_memory(torch.zeros(4, 63, dtype=dtype))
    memory[:, STATUS] = 1
    for index, energies in ((FIRST_ENERGY, first), (LAST_ENERGY, last)):
        memory[:, index] = torch.tensor(energies, dtype=dtype)
    found = ops.Descent(memory[:, :63], memory, memory.new_empty(4, 0, 8))
    assert found.diverged.tolist() == [False, True, False, False]


def test_linearised_energies_choose_no_best(scene):
    """Beyond the first iterate of a call, the feature term is an extrapolation."""
    found = refine_descend(scene.h, scene.energy, rates(scene.h), 5)
    assert (found.energies[:, -1, -1] < found.energies[:, 0, -1]).all()
    assert torch.equal(found.best_h, scene.h)


def test_a_gated_feature_term_has_no_part_in_the_comparison(scene, hand, device):
    """A hand comes near to its joints, and the gate opens on a large feature term: it is better than before."""
    joints2d_px = (hand.regress_joints(hand.decode(scene.h).verts_m)[..., :2] + 1) / 2 * S
    huge = replace(scene.energy.feature, value=torch.full((3,), 1e3, dtype=torch.float64))
    energy = replace(scene.energy, joints2d_px=joints2d_px, feature=huge, feature_tau_px=4.0, weights=EnergyWeights())
    energy, near = moved(energy, device), scene.h.to(device, copy=True)
    far = near.clone()
    far[:, H_LAYOUT["trans"]] += 1.0  # 12 px to the right and down
    first = refine_descend(far, energy, rates(far), 0)
    found = refine_descend(near, energy, rates(near), 0, memory=first.memory)
    total = first.energies[:, 0, -1], found.energies[:, 0, -1]
    assert (total[0] < 20).all()
    assert (total[1] > 900).all()
    assert torch.equal(found.best_h, near)
    assert not found.diverged.any()
    rank = found.energies[:, 0, 0] + found.energies[:, 0, 2]
    torch.testing.assert_close(found.best_energy, rank)
    back = refine_descend(far, energy, rates(far), 0, memory=found.memory)
    assert torch.equal(back.best_h, near)


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
def test_a_step_that_is_refused_leaves_the_memory_of_the_optimizer(scene, optimizer, device):
    """Steps without end: no h, no moment and no count of steps comes of them; the same in the twin."""
    for descend, on in ((refine_descend, device), (reference.refine_descend, torch.device("cpu"))):
        h, energy = scene.h.to(on, copy=True), moved(scene.energy, on)
        whole = descend(h, energy, rates(h), 1, optimizer=optimizer, evaluate_end=False)
        found = descend(whole.h, energy, rates(h, math.inf), 1, optimizer=optimizer, memory=whole.memory)
        assert torch.equal(found.h, whole.h)
        assert (found.memory[:, STATUS] == 3).all()
        assert torch.equal(found.memory[:, :126], whole.memory[:, :126])
        assert torch.equal(found.memory[:, STEPS], whole.memory[:, STEPS])
        assert whole.memory[:, :126].any() == (optimizer == "adam")


def test_hands_do_not_influence_each_other(scene, device):
    h, energy = scene.h.to(device, copy=True), moved(scene.energy, device)
    h[1, 5] = math.nan
    together = refine_descend(h, energy, rates(h), 3)
    for b in (0, 2):
        one = slice(b, b + 1)
        alone = refine_descend(h[one], part_of(energy, one), rates(h), 3)
        exact = {"rtol": 0, "atol": 0} if device.type == "cpu" else {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(together.h[one], alone.h, **exact)
        torch.testing.assert_close(together.energies[one], alone.energies, **exact)


@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_the_number_of_threads_changes_no_bit(scene, mode):
    energy = replace(scene.energy, mode=mode)
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            answers.append(refine_descend(scene.h, energy, rates(scene.h), 3, optimizer="adam"))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *answers))


@pytest.mark.needs_cuda
@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_a_graph_replays_the_descent(scene, mode):
    """Nothing makes the host wait: the whole call is captured, and replayed for another h."""
    energy = moved(replace(scene.energy, mode=mode), "cuda")
    h = scene.h.cuda()
    expected = refine_descend(h + 0.01, energy, rates(h), 3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = refine_descend(h, energy, rates(h), 3)
    h += 0.01
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(found.h, expected.h, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.energies, expected.energies, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_deterministic_algorithms_repeat_the_descent_bit_for_bit(scene, mode, device):
    energy, h = moved(replace(scene.energy, mode=mode), device), scene.h.to(device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (refine_descend(h, energy, rates(h), 3) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second))


@pytest.mark.needs_cuda
def test_the_descent_follows_the_stream_it_is_called_on(scene):
    """On two streams at once, whose h is not a number yet when the call is queued."""
    energy, h = moved(scene.energy, "cuda"), scene.h.cuda()
    step = rates(h)
    expected = refine_descend(h, energy, step, 3)
    found = []
    torch.cuda.synchronize()
    for stream in [torch.cuda.Stream() for _ in range(2)]:
        with torch.cuda.stream(stream):
            late = torch.full_like(h, torch.nan)
            torch.cuda._sleep(20_000_000)
            late.copy_(h)
            found.append(refine_descend(late, energy, step, 3).h)
    torch.cuda.synchronize()
    for one in found:
        torch.testing.assert_close(one, expected.h, rtol=1e-9, atol=1e-9)


@pytest.mark.needs_cuda
def test_the_descent_runs_on_the_device_of_its_arguments(scene):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    h = scene.h.to("cuda:1")
    found = refine_descend(h, moved(scene.energy, "cuda:1"), rates(h), 3)
    assert found.h.device == torch.device("cuda:1")
    expected = refine_descend(scene.h, scene.energy, rates(scene.h), 3)
    torch.testing.assert_close(found.h.cpu(), expected.h, rtol=1e-9, atol=1e-9)


# --- What else may come in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nmr", "edge"])
@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e30, 1e300])
@pytest.mark.parametrize("entry", [3, 50, 56, 59])
def test_hands_that_are_not_finite_stay_where_they_are(scene, entry, value, mode, device):
    h = scene.h[:1].to(device, copy=True)
    h[0, entry] = value
    energy = moved(part_of(replace(scene.energy, mode=mode), slice(0, 1)), device)
    found = refine_descend(h, energy, rates(h), 3, tolerance=1e-3)
    assert torch.equal(found.h.nan_to_num(), h.nan_to_num()) or found.h.isfinite().all()
    if not math.isfinite(value):
        assert found.diverged.all()
        assert (found.memory[:, STATUS] == 3).all()
    assert refine_mask(h, energy.model, S, mode).isfinite().all()


def test_no_camera_and_no_hand_are_finite(scene, device):
    """A zero quaternion is the identity, without gradient; a zero scale is a point."""
    h, energy = scene.h.to(device, copy=True), moved(scene.energy, device)
    h[0, H_LAYOUT["quat"]] = 0
    h[1, H_LAYOUT["scale"]] = 0
    h[2] = 0
    gradient, terms = refine_gradient(h, energy)
    assert gradient.isfinite().all()
    assert terms.isfinite().all()
    assert not gradient[0, H_LAYOUT["quat"]].any()
    expected, _ = reference.refine_gradient(h.cpu(), scene.energy)
    torch.testing.assert_close(gradient[[0, 2]].cpu(), expected[[0, 2]], rtol=1e-9, atol=1e-9)
    # The Laplacian of a mesh that is one point is rounding, and so is the direction in which it points.
    torch.testing.assert_close(gradient[1].cpu(), expected[1], rtol=1e-9, atol=1e-4)


@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_masks_without_a_pixel_and_joints_without_a_number(scene, mode, device):
    """The hand out of the picture, the given mask empty, no joint known."""
    energy = replace(scene.energy, mode=mode, mask=torch.zeros_like(scene.energy.mask))
    energy = replace(energy, joints2d_px=torch.full_like(energy.joints2d_px, math.nan))
    h = scene.h.clone()
    h[0, 60] = 9.0
    gradient, terms = refine_gradient(h.to(device), moved(energy, device))
    expected, expected_terms = reference.refine_gradient(h, energy)
    torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(terms.cpu(), expected_terms, rtol=1e-9, atol=1e-9)
    assert terms[0, 3] == 1
    assert not terms[:, 0].any()


def test_empty_batches(scene, device):
    energy = moved(part_of(scene.energy, slice(0, 0)), device)
    h = scene.h[:0].to(device)
    gradient, terms = refine_gradient(h, energy)
    assert gradient.shape == (0, 63)
    assert terms.shape == (0, 8)
    assert refine_mask(h, energy.model, S).shape == (0, S, S)
    found = refine_descend(h, energy, rates(h), 2)
    assert found.h.shape == (0, 63)
    assert found.energies.shape == (0, 3, 8)
    assert found.diverged.shape == (0,)
    assert refine_descend(scene.h, scene.energy, rates(scene.h), 0, evaluate_end=False).energies.shape == (3, 0, 8)


def test_strides_do_not_matter_and_arguments_stay(scene, device):
    energy, h = moved(scene.energy, device), scene.h.to(device)
    strided = replace(energy, joints2d_px=energy.joints2d_px.flip(0).flip(0).mT.contiguous().mT, mask=energy.mask.mT)
    dense = replace(energy, mask=strided.mask.contiguous())
    given = h.T.contiguous().T
    before = given.clone(), strided.joints2d_px.clone()
    found, expected = (refine_descend(a, e, rates(h), 2) for a, e in ((given, strided), (h, dense)))
    torch.testing.assert_close(found.h, expected.h, rtol=1e-12, atol=1e-12)
    assert torch.equal(given, before[0])
    assert torch.equal(strided.joints2d_px.nan_to_num(), before[1].nan_to_num())
    assert not refine_gradient(h.clone().requires_grad_(), energy)[0].requires_grad


def test_wrong_arguments_are_refused_by_name(scene):
    h, energy, model = scene.h, scene.energy, scene.energy.model
    r = rates(h)
    for call, error, message in (
        (lambda: refine_mask(h[:, :62], model, S), ValueError, r"h has shape \(3, 62\), expected \(B, 63\)"),
        (lambda: refine_mask(h.int(), model, S), TypeError, r"h must be a floating-point tensor, got a torch.int32"),
        (lambda: refine_mask(h.float(), model, S), ValueError, r"h is torch.float32 on cpu, the model torch.float64"),
        (lambda: refine_mask(h, model, 0), ValueError, "image_size is 0"),
        (lambda: refine_mask(h, model, S, "soft"), ValueError, "mode is 'soft', expected one of 'nmr', 'edge'"),
        (lambda: refine_gradient(h[:2], energy), ValueError, r"h has shape \(2, 63\), expected \(3, 63\)"),
        (lambda: replace(energy, mask=energy.mask[:, 1:]), ValueError, r"mask has shape \(3, 23, 24\), expected"),
        (lambda: replace(energy, mask=None), ValueError, "weights.silhouette is 3, which needs mask"),
        (lambda: replace(energy, feature=None), ValueError, "weights.feature is 0.5, which needs feature"),
        (lambda: replace(energy, model=replace(model, prior=None)), ValueError, "weights.pose is 0.01, which needs"),
        (lambda: replace(energy, feature_tau_px=-1.0), ValueError, "feature_tau_px is -1.0"),
        (
            lambda: replace(energy, feature_tau_px=3.0, weights=EnergyWeights(joints=0, laplacian=0)),
            ValueError,
            "feature_tau_px is 3.0, which needs the weight of another term",
        ),
        (lambda: EnergyWeights(limits=-1.0), ValueError, r"EnergyWeights\.limits: expected a finite number >= 0"),
        (lambda: refine_descend(h, energy, r[:9], 1), ValueError, r"rates has shape \(9,\), expected \(63,\)"),
        (lambda: refine_descend(h, energy, r, -1), ValueError, "iterations is -1"),
        (lambda: refine_descend(h, energy, r, 1, optimizer="sgd"), ValueError, "optimizer is 'sgd'"),
        (lambda: refine_descend(h, energy, r, 1, tolerance=math.nan), ValueError, "tolerance is nan"),
        (lambda: refine_descend(h, energy, r, 1, memory=h), ValueError, r"memory has shape \(3, 63\), expected"),
    ):
        with pytest.raises(error, match=message):
            call()
    faces = model.faces.clone()
    faces[7, 1] = 778
    with pytest.raises(ValueError, match="faces holds 778, expected 0 to 777"):
        refine_mask(h, replace(model, faces=faces), S)
    column = model.laplacian.column.clone()
    column[5] = -2
    broken = replace(model, laplacian=model.laplacian._replace(column=column))
    with pytest.raises(RuntimeError, match="a sparse matrix names vertex -2, expected 0 to 777"):
        refine_gradient(h, replace(energy, model=broken))


def test_traces_know_shapes_and_strides(scene, device):
    energy, h = moved(scene.energy, device), scene.h.to(device)
    feature = [energy.feature.slope.mT, energy.feature.mask.mT, energy.feature.value]
    weights = [float(getattr(ALL, name)) for name in TERMS[:-1]]
    tensors = list(energy.model.tensors)
    about = energy.joints2d_px, energy.mask, feature, tensors, weights, 15.0, S, 1
    library = torch.ops.dhpe_fast
    memory = reference.descent_rule.first_memory(h)
    torch.library.opcheck(library.refine_mask.default, (h, tensors, S, 1))
    torch.library.opcheck(library.refine_gradient.default, (h, *about, True))
    torch.library.opcheck(library.refine_descend.default, (h, memory, rates(h), *about, 2, 1, 0.01, True, True))
    for device in ("cpu", "meta"):
        joints = about[0][:, :20].to(device)
        rest = [t.to(device) if isinstance(t, Tensor) else t for t in about[1:]]
        rest[1], rest[2] = [[t.to(device) for t in part] for part in rest[1:3]]
        with pytest.raises(RuntimeError, match=r"refine_gradient: joints2d_px has shape"):
            library.refine_gradient(h.to(device), joints, *rest, True)


def test_a_compiled_program_is_one_graph(scene):
    torch._dynamo.reset()

    def program(h: Tensor) -> tuple[Tensor, Tensor]:
        found = refine_descend(h, scene.energy, rates(h), 2, tolerance=1e-3)
        return refine_mask(found.best_h, scene.energy.model, S), found.h

    compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(scene.h), program(scene.h), strict=True):
        assert torch.equal(found, expected)
