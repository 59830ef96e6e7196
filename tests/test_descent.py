"""Eq. 11 by descent: each step against finite differences of an energy written out here, and what it must never do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from dhpe_fast.conventions import H_LAYOUT, MIDDLE_MCP
from dhpe_fast.data import render_hands
from dhpe_fast.hand import HandModel
from dhpe_fast.losses import cotangent_laplacian, mask_iou_loss
from dhpe_fast.metrics import mask_iou
from dhpe_fast.nets import DHPE
from dhpe_fast.nets.projector import Projector
from dhpe_fast.ops import silhouette
from dhpe_fast.refinement import BALANCED, BlockScales, EnergyWeights, descent

S = 32


@pytest.fixture(params=[True, False], ids=["fused", "autograd"])
def refine(request) -> Callable[..., descent.Refinement]:
    """Both paths have to do all that is said here."""
    return partial(descent.refine, fused=request.param)


class TinyFeatures(nn.Sequential):
    """F with 12 smooth features and a batch norm, whose two modes differ; counts how often it runs."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 5, stride=2),
            nn.BatchNorm2d(6),
            nn.Softplus(),
            nn.Conv2d(6, 12, 3, stride=2),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.runs = 0
        self[1].running_mean += 0.3

    def forward(self, images: Tensor) -> Tensor:
        assert not self[1].training
        self.runs += 1
        return 4 * super().forward(images)


@pytest.fixture(scope="module")
def model() -> HandModel:
    return HandModel.default(dtype=torch.float64)


@pytest.fixture
def toy(model) -> SimpleNamespace:
    features = TinyFeatures().double().train()
    return SimpleNamespace(hand=model, features=features, project=Projector(model, S, silhouette_mode="edge"))


@pytest.fixture(scope="module")
def scene(model) -> SimpleNamespace:
    """Three hands, bright before dark noise; their joints, and parameters nearby."""
    hands = render_hands(3, 5, model, image_size=(S, S))
    truth = torch.cat([hand.params.packed() for hand in hands])
    projection = Projector(model, S, silhouette_mode="edge")(truth)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 3, S, S, dtype=torch.float64, generator=generator)
    images = projection.mask[:, None] * (0.6 + 0.4 * noise) + (1 - projection.mask[:, None]) * 0.3 * noise
    spread = BlockScales(pose=0.1, shape=0.5, quat=0.05, scale=0.5, trans=0.1).vector(truth)
    start = truth + spread * torch.randn(3, 63, dtype=torch.float64, generator=generator)
    return SimpleNamespace(truth=truth, images=images, start=start, joints2d_px=pixels(projection.joints), hands=hands)


def pixels(joints_crop: Tensor) -> Tensor:
    return (joints_crop[..., :2] + 1) / 2 * S


def energy_by_hand(toy, images: Tensor, h: Tensor, joints2d_px: Tensor) -> dict[str, Tensor]:  # (B,) each
    """Eq. 11's energy, term by term, from the hand model and the renderer alone."""
    verts = toy.hand.decode(h).verts_m
    joints = toy.hand.regress_joints(verts)
    palm = (joints[:, 0] + joints[:, MIDDLE_MCP]) / 2
    joints = torch.cat([palm[:, None], joints[:, 1:]], 1)
    difference = (joints[..., :2] + 1) / 2 - joints2d_px / S
    verts_px = torch.cat([(verts[..., :2] + 1) / 2 * S, verts[..., 2:]], -1)
    mask = silhouette(verts_px, toy.hand.faces, S, mode="edge")
    features = [nn.Sequential.forward(toy.features.eval(), x) * 4 for x in (images, images * mask[:, None])]
    curvature = cotangent_laplacian(toy.hand.v_template, toy.hand.faces) @ verts
    return {
        "joints": (difference**2).nansum((1, 2)),
        "feature": ((features[0] - features[1]) ** 2).sum(1),
        "laplacian": (curvature**2).sum(-1).sqrt().mean(1),
    }


def slope_by_hand(toy, images: Tensor, h: Tensor, joints2d_px: Tensor, weights: dict[str, float]) -> Tensor:  # (63,)
    """Central differences for one hand, all 126 moved hands in one batch."""
    step = 1e-6
    moves = step * torch.eye(63, dtype=torch.float64)
    moved = torch.cat([h + moves, h - moves])
    with torch.no_grad():
        terms = energy_by_hand(toy, images.expand(126, -1, -1, -1), moved, joints2d_px.expand(126, -1, -1))
    total = sum(weights[name] * terms[name] for name in terms)
    return (total[:63] - total[63:]) / (2 * step)


def test_a_step_is_gamma_times_the_finite_differences(refine, toy, scene):
    """Literal Eq. 11: each hand moves by -gamma times the slope of its energy."""
    weights = {"joints": 1.5, "feature": 0.7, "laplacian": 2.0}
    result = refine(
        toy,
        scene.images,
        scene.start,
        scene.joints2d_px,
        iterations=1,
        step_size=1e-4,
        weights=EnergyWeights(**weights),
    )
    for b in range(3):
        slope = slope_by_hand(toy, scene.images[b : b + 1], scene.start[b], scene.joints2d_px[b : b + 1], weights)
        assert float(slope.abs().max()) > 1e-2
        torch.testing.assert_close((scene.start[b] - result.h[b]) / 1e-4, slope, rtol=2e-4, atol=2e-5)


def test_energies_are_those_of_the_path(refine, toy, scene):
    """Row t is the energy at h'(t), term by term; the last one that of the result."""
    options = {"block_scales": BALANCED, "weights": EnergyWeights(1.0, 0.5, 2.0)}
    result = refine(toy, scene.images, scene.start, scene.joints2d_px, iterations=3, **options)
    assert {name: tuple(rows.shape) for name, rows in result.energy.items()} == dict.fromkeys(
        ("joints", "feature", "laplacian", "total"), (4, 3)
    )
    for t in range(4):
        h = refine(toy, scene.images, scene.start, scene.joints2d_px, iterations=t, **options).h
        expected = energy_by_hand(toy, scene.images, h, scene.joints2d_px)
        for name, value in expected.items():
            torch.testing.assert_close(result.energy[name][t], value, rtol=1e-9, atol=1e-12)
        total = expected["joints"] + 0.5 * expected["feature"] + 2 * expected["laplacian"]
        torch.testing.assert_close(result.energy["total"][t], total)


@pytest.mark.parametrize(
    "options",
    [{}, {"block_scales": BALANCED}, {"optimizer": "adam", "step_size": 0.01}],
    ids=["literal", "balanced", "adam"],
)
def test_perturbed_hands_come_closer(refine, toy, scene, options):
    result = refine(toy, scene.images, scene.start, scene.joints2d_px, **options)
    total = result.energy["total"]
    assert len(total) == 51
    assert (total[-1] < total[0]).all()
    if "optimizer" not in options:
        assert (total[1:] <= total[:-1] + 1e-9).all()
    error, iou = {}, {}
    truth = toy.project(scene.truth).mask > 0.5
    for name, h in (("before", scene.start), ("after", result.h)):
        projection = toy.project(h)
        error[name] = (pixels(projection.joints) - scene.joints2d_px).norm(dim=-1).mean(1)
        iou[name] = mask_iou(projection.mask > 0.5, truth)
    assert (error["after"] < (0.9 if not options else 0.35) * error["before"]).all()
    assert (iou["after"] > iou["before"]).all()


def test_the_feature_term_alone_finds_the_mask(refine, toy, scene):
    """No joint counts. F sees means over 4 x 4 pixels of hands before black: they are the same where masks are."""
    toy.features = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    images = toy.project(scene.truth).mask[:, None].expand(-1, 3, -1, -1).clone()
    moved = scene.truth.clone()
    moved[:, 60] += 0.1
    result = refine(
        toy,
        images,
        moved,
        torch.full_like(scene.joints2d_px, math.nan),
        weights=EnergyWeights(laplacian=0.0),
        block_scales=BlockScales(0, 0, 0, 0, trans=2),
        iterations=20,
    )
    assert not result.energy["joints"].any()
    assert (result.energy["feature"][-1] < 0.1 * result.energy["feature"][0]).all()
    assert ((result.h - scene.truth)[:, 60].abs() < 0.02).all()


def test_hands_do_not_influence_each_other(refine, toy, scene):
    for options in ({"block_scales": BALANCED}, {"optimizer": "adam", "feature_interval": 2, "feature_tau_px": 3.0}):
        together = refine(toy, scene.images, scene.start, scene.joints2d_px, iterations=4, **options)
        for b in range(3):
            one = slice(b, b + 1)
            alone = refine(toy, scene.images[one], scene.start[one], scene.joints2d_px[one], iterations=4, **options)
            torch.testing.assert_close(together.h[one], alone.h, rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(together.energy["total"][:, one], alone.energy["total"])
    empty = refine(toy, scene.images[:0], scene.start[:0], scene.joints2d_px[:0], iterations=2)
    assert empty.h.shape == (0, 63)


def test_zero_iterations_return_the_start(refine, toy, scene):
    result = refine(toy, scene.images, scene.start, scene.joints2d_px, iterations=0)
    assert torch.equal(result.h, scene.start)
    assert torch.equal(result.joints2d_px, scene.joints2d_px)
    assert result.energy["total"].shape == (1, 3)


# --- Options ------------------------------------------------------------------------------------------------


def test_block_scales_scale_the_step(refine, toy, scene):
    scales = BlockScales(pose=2, shape=3, quat=0.5, scale=0, trans=7)
    literal, scaled = (
        refine(toy, scene.images, scene.start, scene.joints2d_px, iterations=1, block_scales=s).h - scene.start
        for s in (BlockScales(), scales)
    )
    for name, block in H_LAYOUT.items():
        torch.testing.assert_close(scaled[:, block], getattr(scales, name) * literal[:, block])


def test_adam_is_torchs(refine, toy, scene):
    h = scene.start[:1].clone().requires_grad_()
    adam = torch.optim.Adam([h], lr=0.02)
    images, joints2d_px = scene.images[:1], scene.joints2d_px[:1]
    for _ in range(4):
        adam.zero_grad()
        sum(energy_by_hand(toy, images, h, joints2d_px).values()).sum().backward()
        adam.step()
    result = refine(toy, images, scene.start[:1], joints2d_px, iterations=4, optimizer="adam", step_size=0.02)
    torch.testing.assert_close(result.h, h.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("interval", "runs"), [(1, 6), (2, 4), (3, 3), (9, 2)])
def test_the_cnn_runs_in_every_so_many_iterations(refine, toy, scene, interval, runs):
    """For five iterations: beside F(x), at 0, k, 2k, ... and at the end, where the energy is exact again."""
    arguments = toy, scene.images, scene.start, scene.joints2d_px
    result = refine(*arguments, iterations=5, feature_interval=interval)
    assert toy.features.runs == 1 + runs
    expected = energy_by_hand(toy, scene.images, result.h, scene.joints2d_px)["feature"]
    torch.testing.assert_close(result.energy["feature"][-1], expected)


def test_between_runs_the_feature_term_is_linear_in_the_mask(refine, toy, scene):
    """Two steps with one run: by hand, with the slope of the first mask for both."""
    images, joints2d_px = scene.images, scene.joints2d_px
    rate = 0.1 * BALANCED.vector(scene.start) * 1e-3
    result = refine(
        toy, images, scene.start, joints2d_px, iterations=2, feature_interval=2, step_size=1e-4, block_scales=BALANCED
    )
    first = toy.project(scene.start).mask.detach().requires_grad_()
    with torch.no_grad():
        features = toy.features.eval()(images)
    value = (toy.features(images * first[:, None]) - features).square().sum(1)
    (slope,) = torch.autograd.grad(value.sum(), first)
    h = scene.start
    for t in range(2):
        h = h.detach().requires_grad_()
        terms = energy_by_hand(toy, images, h, joints2d_px)
        linear = value.detach() + (slope * (toy.project(h).mask - first.detach())).sum((1, 2))
        torch.testing.assert_close(result.energy["feature"][t], linear.detach())
        (gradient,) = torch.autograd.grad((terms["joints"] + terms["laplacian"] + linear).sum(), h)
        h = h.detach() - rate * gradient
    torch.testing.assert_close(result.h, h, rtol=1e-9, atol=1e-12)


def test_without_the_feature_term_the_cnn_never_runs(refine, toy, scene):
    result = refine(toy, scene.images, scene.start, scene.joints2d_px, iterations=2, weights=EnergyWeights(feature=0.0))
    assert toy.features.runs == 0
    assert not result.energy["feature"].any()


def test_the_gate_lets_the_feature_term_act_on_aligned_hands_only(refine, toy, scene):
    """Hand 1 is asked to be far away; its step is that without a feature term, the others' that with it."""
    joints2d_px = scene.joints2d_px.clone()
    joints2d_px[1] += S
    steps = {
        name: refine(toy, scene.images, scene.start, joints2d_px, iterations=1, **options).h - scene.start
        for name, options in {
            "gated": {"feature_tau_px": 10.0},
            "with": {},
            "without": {"weights": EnergyWeights(feature=0.0)},
        }.items()
    }
    assert not torch.allclose(steps["with"], steps["without"])
    torch.testing.assert_close(steps["gated"][1], steps["without"][1])
    torch.testing.assert_close(steps["gated"][[0, 2]], steps["with"][[0, 2]])


def test_joints_stay_unless_f_ref_is_asked_to_update_them(refine, toy, scene):
    """f_Ref runs once a step, after it, on [j'(t), F(x), h'(t+1), f_Reg(v')] in the unit interval."""
    calls = []

    def refiner(joints2d: Tensor, features: Tensor, h: Tensor, joints_norm: Tensor) -> Tensor:
        calls.append((joints2d, features, h, joints_norm))
        return 0.75 * joints2d + 0.25 * joints_norm[..., :2]

    toy.mesh_estimator = SimpleNamespace(refiner=refiner)
    arguments = toy, scene.images, scene.start, scene.joints2d_px
    fixed = refine(*arguments, iterations=2)
    assert not calls
    assert torch.equal(fixed.joints2d_px, scene.joints2d_px)

    result = refine(*arguments, iterations=2, update_joints2d=True)
    first = refine(*arguments, iterations=1)
    target = 0.75 * scene.joints2d_px + 0.25 * pixels(toy.project(first.h).joints)
    assert len(calls) == 2
    torch.testing.assert_close(calls[0][0], scene.joints2d_px / S)
    torch.testing.assert_close(calls[0][1], toy.features.eval()(scene.images).detach())
    torch.testing.assert_close(calls[0][2], first.h)
    second = refine(toy, scene.images, first.h, target, iterations=1)
    torch.testing.assert_close(result.h, second.h)
    torch.testing.assert_close(result.joints2d_px, 0.75 * target + 0.25 * pixels(toy.project(second.h).joints))
    assert not result.joints2d_px.requires_grad


def test_another_projection_can_take_the_place_of_the_networks(refine, toy, scene):
    """The same forward mask but for its borders; the gradient is that of Kato et al."""
    nmr = Projector(toy.hand, S, silhouette_mode="nmr")
    result = refine(toy, scene.images, scene.start, scene.joints2d_px, project=nmr, iterations=10)
    edge = refine(toy, scene.images, scene.start, scene.joints2d_px, iterations=10)
    assert (result.energy["total"][-1] < result.energy["total"][0]).all()
    assert not torch.allclose(result.h, edge.h)


# --- Guarantees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
def test_a_hand_without_a_finite_step_keeps_its_h(refine, toy, scene, optimizer):
    """Its image is not a number, so its energy is not; the others do not notice."""
    images = scene.images.clone()
    images[1] = math.nan
    start = scene.start.clone()
    start[2, 3] = math.inf
    result = refine(toy, images, start, scene.joints2d_px, iterations=3, optimizer=optimizer)
    expected = refine(toy, scene.images[:1], start[:1], scene.joints2d_px[:1], iterations=3, optimizer=optimizer)
    torch.testing.assert_close(result.h[:1], expected.h)
    assert torch.equal(result.h[1], start[1])
    start[2, 3] = 0  # what is no number does not come back
    assert torch.equal(result.h[2], start[2])
    assert result.energy["feature"][:, 1].isnan().all()
    assert result.diverged.tolist() == [False, True, True]


def test_joints_that_are_nan_do_not_count(refine, toy, scene):
    joints2d_px = scene.joints2d_px.clone()
    joints2d_px[:, 4:9] = math.nan
    result = refine(toy, scene.images, scene.start, joints2d_px, iterations=1)
    expected = energy_by_hand(toy, scene.images, scene.start, joints2d_px)
    torch.testing.assert_close(result.energy["joints"][0], expected["joints"])
    assert result.h.isfinite().all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_networks_and_arguments_stay_as_they_are(refine, toy, scene, mode):
    state = {name: value.clone() for name, value in toy.features.state_dict().items()}
    toy.features[2].eval()
    with mode():
        images, start, joints2d_px = scene.images * 1, scene.start * 1, scene.joints2d_px * 1
        result = refine(toy, images, start, joints2d_px, iterations=2)
    assert not result.h.requires_grad
    for given, kept in ((images, scene.images), (start, scene.start), (joints2d_px, scene.joints2d_px)):
        assert torch.equal(given, kept)
    assert [part.training for part in toy.features] == [True, True, False, True, True, True, True]
    assert all(torch.equal(value, state[name]) for name, value in toy.features.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in toy.features.parameters())
    toy.project = None
    with pytest.raises((TypeError, ValueError)):
        refine(toy, scene.images, scene.start, scene.joints2d_px)
    assert toy.features.training


def test_refines_what_a_whole_network_estimates(refine):
    torch.manual_seed(0)
    dhpe = DHPE(depth=18, image_size=48, pose2d_width=0.125, pose2d_stages=1, pose2d_input_size=64).eval()
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        output = dhpe(images)
    arguments = dhpe, images, output.estimate.h, output.estimate.joints2d_px
    result = refine(*arguments, iterations=3, weights=EnergyWeights(feature=1e-3))
    assert result.h.dtype == torch.float32
    assert (result.energy["total"][-1] < result.energy["total"][0]).all()
    updated = refine(*arguments, iterations=2, update_joints2d=True)
    assert updated.joints2d_px.shape == (2, 21, 2)
    assert not torch.equal(updated.joints2d_px, output.estimate.joints2d_px)


# --- Two paths, one descent ---------------------------------------------------------------------------------


OPTIONS = {
    "paper": {},
    "balanced": {"block_scales": BALANCED, "weights": EnergyWeights(feature=0.0)},
    "adam": {"optimizer": "adam", "step_size": 0.01, "feature_interval": 2},
    "gate": {"feature_tau_px": 2.0, "block_scales": BALANCED, "weights": EnergyWeights(feature=1e-2)},
    "more": {"weights": EnergyWeights(1, 0.5, 1, 2, 1e-4, 1e-3, 0.1), "tolerance": 1e-2, "feature_interval": 3},
    "up": {"step_size": 30.0},
}


@pytest.mark.parametrize("mode", ["edge", "nmr"])
@pytest.mark.parametrize("options", OPTIONS)
def test_both_paths_take_the_same_steps(toy, scene, options, mode):
    """In float64; with a hard mask, whose gradient jumps with the pixels, only one of them."""
    toy.project = Projector(toy.hand, S, silhouette_mode=mode)
    mask = toy.project(scene.truth).mask > 0.5
    arguments = toy, scene.images, scene.start, scene.joints2d_px
    iterations = 1 if mode == "nmr" else 2 if options == "up" else 6
    fused, other = (
        descent.refine(*arguments, fused=path, mask=mask, iterations=iterations, **OPTIONS[options])
        for path in (True, False)
    )
    torch.testing.assert_close(fused.h, other.h, rtol=1e-9, atol=1e-9)
    assert list(fused.energy) == list(other.energy)
    for name, rows in fused.energy.items():
        torch.testing.assert_close(rows, other.energy[name], rtol=1e-8, atol=1e-9, equal_nan=True)
    assert torch.equal(fused.diverged, other.diverged)
    assert torch.equal(fused.converged, other.converged)
    assert fused.diverged.any() == (options == "up")


def test_single_precision_takes_them_too(scene):
    model = HandModel.default()
    features = TinyFeatures().eval()
    toy = SimpleNamespace(hand=model, features=features, project=Projector(model, S, silhouette_mode="edge"))
    arguments = toy, scene.images.float(), scene.start.float(), scene.joints2d_px.float()
    fused, other = (descent.refine(*arguments, iterations=5, fused=path) for path in (True, False))
    assert fused.h.dtype == torch.float32
    torch.testing.assert_close(fused.h, other.h, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.energy["total"], other.energy["total"], rtol=1e-4, atol=1e-6)


def final_errors(model: HandModel, n_hands: int, size: int, fused: bool) -> Tensor:  # (3, n)
    """Of generated hands, perturbed and refined: joints in pixels, vertices in crop units, 1 - IoU."""
    hands = render_hands(n_hands, 3, model, image_size=(size, size))
    truth = torch.cat([hand.params.packed() for hand in hands])
    generator = torch.Generator().manual_seed(1)
    spread = BlockScales(pose=0.1, shape=0.5, quat=0.05, scale=0.5, trans=0.1).vector(truth)
    start = truth + spread * torch.randn(truth.shape, generator=generator, dtype=truth.dtype)
    toy = SimpleNamespace(hand=model, features=None, project=Projector(model, size, silhouette_mode="edge"))
    with torch.no_grad():
        seen = toy.project(truth)
    images = seen.mask[:, None].expand(-1, 3, -1, -1)
    joints2d_px = (seen.joints[..., :2] + 1) / 2 * size
    weights = EnergyWeights(feature=0.0, silhouette=0.02)
    h = descent.refine(
        toy, images, start, joints2d_px, mask=seen.mask, weights=weights, block_scales=BALANCED, fused=fused
    ).h
    with torch.no_grad():
        found = toy.project(h)
    error_px = (found.joints - seen.joints)[..., :2].norm(dim=-1).mean(-1) * size / 2
    error = (found.verts - seen.verts).norm(dim=-1).mean(-1)
    return torch.stack([error_px, error, mask_iou_loss(found.mask, seen.mask)])


@pytest.mark.parametrize(("n_hands", "size"), [(12, 48), pytest.param(200, 224, marks=pytest.mark.slow)])
def test_both_paths_end_with_the_same_errors(n_hands, size):
    """In single precision, after 50 iterations."""
    model = HandModel.default()
    fused, other = (final_errors(model, n_hands, size, path) for path in (True, False))
    assert float(other[0].mean()) < 0.02 * size
    torch.testing.assert_close(fused.mean(1), other.mean(1), rtol=0.01, atol=0)
    torch.testing.assert_close(fused, other, rtol=0.01, atol=1e-4)


def test_what_the_ops_cannot_do_autograd_does(toy, scene):
    single = SimpleNamespace(hand=HandModel.default(), features=TinyFeatures(), project=None)
    arguments = scene.images.float(), scene.start, scene.joints2d_px
    for networks, project, obstacle in (
        (toy, Projector(toy.hand, S, silhouette_mode="soft"), "silhouette_mode is 'soft'"),
        (toy, lambda h: Projector(toy.hand, S)(h), r"f_Proj is no nets\.Projector"),
        (single, Projector(single.hand, S), "h is torch.float64, the hand model torch.float32"),
    ):
        weights = EnergyWeights(feature=float(networks is single))
        result = descent.refine(networks, *arguments, project=project, iterations=1, weights=weights)
        assert not result.diverged.any()
        with pytest.raises(ValueError, match=f"fused: not possible, as {obstacle}"):
            descent.refine(networks, *arguments, project=project, fused=True)


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
def test_nothing_that_comes_in_lets_a_nan_come_out(refine, toy, scene, optimizer):
    """Each argument with what is no number, huge steps, a scale of nothing."""
    broken = scene.start.clone()
    broken[0] = math.nan
    broken[1, 59] = math.inf
    broken[2, 55:60] = 0
    pictures = torch.full_like(scene.images, math.inf)
    nowhere = torch.full_like(scene.joints2d_px, math.nan)
    for images, start, joints2d_px, step_size in (
        (scene.images, broken, scene.joints2d_px, 1e-3),
        (pictures, scene.start, nowhere, 1e-3),
        (scene.images, scene.start, scene.joints2d_px * 1e200, 1e-3),
        (scene.images, scene.start, scene.joints2d_px, 1e300),
    ):
        result = refine(toy, images, start, joints2d_px, iterations=3, optimizer=optimizer, step_size=step_size)
        assert result.h.isfinite().all()
        assert result.diverged.any()


def test_a_descent_that_goes_up_returns_its_best(refine, toy, scene):
    """Steps ten times too long: after a gain in the first ones, the energy rises beyond all bounds."""
    weights = EnergyWeights(feature=0.0)
    arguments = toy, scene.images, scene.start, scene.joints2d_px
    result = refine(*arguments, iterations=30, step_size=6e-3, block_scales=BALANCED, weights=weights)
    assert result.diverged.any()
    total = result.energy["total"].nan_to_num(math.inf)
    at_result = refine(*arguments[:2], result.h, arguments[3], iterations=0, weights=weights).energy["total"][0]
    torch.testing.assert_close(at_result, total.min(0).values)


def test_a_hand_that_ends_above_its_best_but_below_its_start_returns_its_best(refine, toy, scene):
    """It has not diverged, and yet its last h is not what was asked for; with features, too, in rows where F runs."""
    for feature, rows in ((0.0, slice(None)), (1e-2, slice(None, None, 2))):
        weights = EnergyWeights(feature=feature)
        options = {"weights": weights, "block_scales": BALANCED, "step_size": 3e-3, "feature_interval": 2}
        result = refine(toy, scene.images, scene.start, scene.joints2d_px, iterations=20, **options)
        total = result.energy["total"]
        worse = ~result.diverged & (total[-1] > 1.05 * total[rows].min(0).values)
        assert worse.any()
        again = refine(toy, scene.images, result.h, scene.joints2d_px, iterations=0, weights=weights)
        torch.testing.assert_close(again.energy["total"][0], total[rows].min(0).values)


def test_the_optimum_is_no_divergence(refine, scene):
    """Single precision, joints alone, from where nothing is left to gain: rounding may go up."""
    model = HandModel.default()
    truth = scene.truth.float()
    toy = SimpleNamespace(hand=model, features=None, project=Projector(model, S, silhouette_mode="edge"))
    with torch.no_grad():
        joints2d_px = pixels(toy.project(truth).joints)
    weights = EnergyWeights(feature=0.0, laplacian=0.0)
    result = refine(toy, scene.images.float(), truth, joints2d_px, weights=weights, block_scales=BALANCED, iterations=1)
    assert (result.energy["total"] < 1e-10).all()
    assert not result.diverged.any()


def test_a_tolerance_lets_hands_rest(refine, toy, scene):
    options = {"block_scales": BALANCED, "weights": EnergyWeights(feature=0.0), "iterations": 40}
    arguments = toy, scene.images, scene.start, scene.joints2d_px
    resting, moving = refine(*arguments, tolerance=0.02, **options), refine(*arguments, **options)
    assert resting.converged.all()
    assert not moving.converged.any()
    total = resting.energy["total"]
    assert torch.equal(total[-1], total[-2])
    assert not torch.equal(resting.h, moving.h)


def test_bad_arguments_are_refused_by_name(refine, toy, scene):
    good = {"images": scene.images, "h": scene.start, "joints2d_px": scene.joints2d_px}
    for name, value, message in (
        ("images", scene.images[:, :, :20], r"images: expected square crops .* got \(3, 3, 20, 32\)"),
        ("h", scene.start[:2], r"h: expected \(3, 63\) for as many images, got \(2, 63\)"),
        ("joints2d_px", scene.joints2d_px[:, :20], r"joints2d_px: expected \(3, 21, 2\), got \(3, 20, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            refine(toy, **{**good, name: value})
    with pytest.raises(TypeError, match=r"images: expected a floating-point tensor, got a tensor of torch\.uint8"):
        refine(toy, **{**good, "images": torch.zeros(3, 3, S, S, dtype=torch.uint8)})
    for options, message in (
        ({"iterations": -1}, "iterations: expected a whole number >= 0, got -1"),
        ({"feature_interval": 0}, "feature_interval"),
        ({"step_size": math.nan}, "step_size"),
        ({"feature_tau_px": 3.0, "weights": EnergyWeights(0, 1, 0)}, "feature_tau_px .* needs the weight of another"),
        ({"optimizer": "sgd"}, "optimizer: expected 'gd' or 'adam', got 'sgd'"),
        ({"update_joints2d": True}, "no f_Ref"),
        ({"tolerance": -1.0}, "tolerance: expected a finite number >= 0, got -1.0"),
        ({"weights": EnergyWeights(silhouette=2.0)}, "mask: the silhouette term has weight 2.0, got no mask"),
        ({"mask": torch.ones(3, S, 5)}, r"mask: expected \(3, 32, 32\), got \(3, 32, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            refine(toy, **good, **options)
    with pytest.raises(TypeError, match="gamma"):
        refine(toy, **good, gamma=1.0)
    with pytest.raises(ValueError, match=r"EnergyWeights\.feature"):
        EnergyWeights(feature=-1.0)
    with pytest.raises(ValueError, match=r"BlockScales\.trans"):
        BlockScales(trans=math.inf)
