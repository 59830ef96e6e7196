"""Loss terms against loops in plain Python, hand-computed values and gradcheck."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dhpe_fast.hand import HandModel
from dhpe_fast.losses import (
    articulation_loss,
    cotangent_laplacian,
    feature_loss,
    heatmap_entropy_loss,
    heatmap_loss,
    joints2d_refine_loss,
    laplacian_loss,
    mask_iou_loss,
    seen_silhouette_loss,
    silhouette_gate,
    silhouette_iou_loss,
    silhouette_loss,
    total_loss,
)
from dhpe_fast.ops import silhouette

NAN = math.nan

# The losses of a difference: shape of one instance, what the equation does to a squared difference, and whether labels
# are missing by joint (or by instance).
TERMS = {
    "feature": (feature_loss, (7,), 1.0, False),
    "heatmap": (heatmap_loss, (21, 3, 4), 1.0, True),
    "joints2d_refine": (joints2d_refine_loss, (21, 2), 1 / 224**2, True),
    "articulation": (articulation_loss, (21, 3), 1 / 4, True),
    "silhouette": (silhouette_loss, (5, 6), 1.0, False),
}
B = 4


def make(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(B, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_labels(by_joint: bool) -> Tensor:
    if not by_joint:
        return torch.tensor([True, False, True, False])
    valid = torch.rand(B, 21, generator=torch.Generator().manual_seed(3)) < 0.6
    valid[2] = True
    valid[3] = False
    return valid


def loop_value(a: Tensor, b: Tensor, flags: Tensor, factor: float, reduction: str) -> list[float]:
    """Sum or mean over the annotated elements, one by one; `flags` has one entry for each element."""
    result = []
    for one_a, one_b, one_flag in zip(a.tolist(), b.tolist(), flags.tolist(), strict=True):
        squares = [factor * (x - y) ** 2 for x, y, f in zip(one_a, one_b, one_flag, strict=True) if f]
        result.append(sum(squares) / (max(len(squares), 1) if reduction == "mean" else 1))
    return result


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", TERMS)
def test_terms_equal_loops_over_what_is_annotated(name, reduction):
    function, shape, factor, by_joint = TERMS[name]
    a, b, label = make(shape, 0), make(shape, 1), make_labels(by_joint)
    flags = label.reshape(*label.shape, *(1,) * (a.dim() - label.dim())).expand_as(a)
    expected = loop_value(a.flatten(1), b.flatten(1), flags.flatten(1), factor, reduction)
    assert function(a, b, label, reduction=reduction).tolist() == pytest.approx(expected, rel=1e-12)
    everything = loop_value(a.flatten(1), b.flatten(1), torch.ones_like(a).flatten(1), factor, reduction)
    assert function(a, b, reduction=reduction).tolist() == pytest.approx(everything, rel=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_the_derivatives(name):
    function, shape, _, by_joint = TERMS[name]
    a, b = make(shape, 0).requires_grad_(), make(shape, 1).requires_grad_()
    label = make_labels(by_joint)
    for reduction in ("sum", "mean"):
        assert torch.autograd.gradcheck(lambda x, y, r=reduction: function(x, y, label, reduction=r), (a, b))


@pytest.mark.parametrize("garbage", [NAN, math.inf])
@pytest.mark.parametrize("name", [*TERMS, "mask_iou"])
def test_missing_labels_contribute_exactly_nothing(name, garbage):
    """Neither value nor gradient, be the label or the estimate itself not a number."""
    function, shape, _, by_joint = TERMS.get(name, (mask_iou_loss, (5, 6), 1.0, False))
    label = make_labels(by_joint)
    missing = ~label.reshape(*label.shape, *(1,) * (1 + len(shape) - label.dim()))
    a = make(shape, 0).masked_fill(missing, garbage).requires_grad_()
    b = make(shape, 1).masked_fill(missing, garbage).requires_grad_()
    loss = function(a, b, label)
    assert loss[3].item() == 0
    loss.sum().backward()
    for gradient in (a.grad, b.grad):
        assert gradient.isfinite().all()
        assert not gradient[missing.expand_as(gradient)].any()
        assert gradient[~missing.expand_as(gradient)].any()


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_any_batch(batch):
    for function, shape, _, by_joint in TERMS.values():
        a, b = torch.rand(*batch, *shape), torch.rand(*batch, *shape)
        label = torch.ones((*batch, *(shape[:1] if by_joint else ())), dtype=torch.bool)
        torch.testing.assert_close(function(a, b, label), function(a, b))
        assert function(a, b).shape == batch


def test_half_types_are_summed_in_single_precision():
    a = torch.full((1, 2048), 8.0, dtype=torch.float16)
    loss = feature_loss(a, -a)
    assert loss.dtype == torch.float32
    assert loss.item() == 2048 * 16**2  # beyond what float16 can hold


def test_stages_of_heatmaps_add_up():
    stages, truth, valid = [make((21, 3, 4), seed) for seed in range(3)], make((21, 3, 4), 9), make_labels(True)
    expected = sum(heatmap_loss(stage, truth, valid) for stage in stages)
    torch.testing.assert_close(heatmap_loss(tuple(stages), truth, valid), expected)
    torch.testing.assert_close(heatmap_loss(stages[-1], truth), heatmap_loss([stages[-1]], truth))
    with pytest.raises(ValueError, match="at least one stage"):
        heatmap_loss([], truth)


def test_articulation_is_measured_in_the_unit_interval():
    """From one border of the crop to the other is 2 in the crop frame and 1 in Eq. 8."""
    left = torch.zeros(1, 21, 3)
    left[0, 4, 0] = -1
    assert articulation_loss(left, -left).item() == 1
    moved_px = torch.zeros(1, 21, 2)
    moved_px[0, 4, 0] = 64
    assert joints2d_refine_loss(moved_px, torch.zeros(1, 21, 2), image_size=64).item() == 1


def test_silhouette_loss_counts_differing_pixels():
    mask = torch.zeros(1, 8, 8)
    mask[0, :4] = 1
    assert silhouette_loss(mask, mask.mT).item() == 32
    assert silhouette_loss(mask, mask.mT, reduction="mean").item() == 0.5


# --- Eq. 10 and Eq. 7 ---------------------------------------------------------------------------------------


def loop_gate(estimate: Tensor, truth: Tensor, valid: Tensor, tau: float, mode: str) -> list[float]:
    result = []
    for one, one_gt, flags in zip(estimate.tolist(), truth.tolist(), valid.tolist(), strict=True):
        distances = [math.dist(p, q) for p, q, f in zip(one, one_gt, flags, strict=True) if f]
        if mode == "mean_distance":
            below = bool(distances) and sum(distances) / len(distances) < tau
        else:
            below = bool(distances) and sum(d**2 for d in distances) * 21 / len(distances) < tau
        result.append(float(below))
    return result


@pytest.mark.parametrize("mode", ["mean_distance", "squared_norm"])
def test_gate_equals_a_loop(mode):
    """40 instances whose deviation passes the threshold somewhere on the way."""
    size = torch.linspace(0.5, 1.5, 40, dtype=torch.float64)[:, None, None]
    estimate = size * torch.randn(40, 21, 2, dtype=torch.float64)
    truth = torch.zeros_like(estimate)
    valid = torch.rand(40, 21) < 0.7
    valid[0] = False
    tau = {"mean_distance": 1.25, "squared_norm": 42.0}[mode]
    expected = loop_gate(estimate, truth, valid, tau, mode)
    assert 5 < sum(expected) < 35
    truth[~valid] = NAN
    assert silhouette_gate(estimate, truth, valid, tau, mode).tolist() == expected


def test_gate_reads_tau_as_documented():
    """All joints 10 px off: the mean is below 15 px, the squared norm of 2100 square pixels is not below 15."""
    truth = torch.zeros(1, 21, 2)
    estimate = truth + torch.tensor([6.0, 8.0])
    assert silhouette_gate(estimate, truth).tolist() == [1]
    assert silhouette_gate(1.5 * estimate, truth).tolist() == [0]  # 15 px are not below 15 px
    assert silhouette_gate(estimate, truth, mode="squared_norm").tolist() == [0]
    assert silhouette_gate(0.05 * estimate, truth, mode="squared_norm").tolist() == [1]  # 21 / 4 square pixels
    assert silhouette_gate(estimate, truth, mode="constant").item() == pytest.approx(0.01)


def test_gate_is_shut_where_nothing_says_that_the_hand_is_aligned():
    truth = torch.zeros(3, 21, 2)
    estimate = truth.clone()
    estimate[1] = NAN
    valid = torch.ones(3, 21, dtype=torch.bool)
    valid[2] = False
    assert silhouette_gate(estimate, truth, valid).tolist() == [1, 0, 0]


@pytest.mark.parametrize("mode", ["mean_distance", "squared_norm", "constant"])
def test_gate_never_carries_a_gradient(mode):
    estimate = torch.zeros(2, 21, 2, requires_grad=True)
    assert not silhouette_gate(estimate, estimate + 1, mode=mode).requires_grad


def test_total_loss_is_the_weighted_sum():
    terms = {"articulation": torch.tensor([1.0, 2]), "laplacian": torch.tensor([3.0, 4]), "silhouette": torch.ones(2)}
    weights = {"laplacian": 0.5, "silhouette": torch.tensor([1.0, 0])}
    assert total_loss(terms, weights).tolist() == [1 + 1.5 + 1, 2 + 2]
    assert total_loss(terms).tolist() == [5, 7]
    assert total_loss(terms | {"refine": torch.tensor([NAN, NAN])}, {"refine": 0}).tolist() == [5, 7]


def test_total_loss_gives_no_gradient_to_weights_and_none_through_closed_gates():
    error = torch.tensor([4.0, 0.0], requires_grad=True)
    gate = torch.tensor([1.0, 0.0], requires_grad=True)
    total = total_loss({"silhouette": 1 / error}, {"silhouette": gate})
    assert total.tolist() == [0.25, 0]  # 1/0 behind the closed gate
    terms = {"silhouette": torch.tensor([1.0, NAN], requires_grad=True), "laplacian": error * 2}
    total_loss(terms, {"silhouette": gate}).sum().backward()
    assert terms["silhouette"].grad.tolist() == [1, 0]
    assert error.grad.tolist() == [2, 2]
    assert gate.grad is None


@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_a_closed_gate_stops_the_gradient_of_the_renderer(mode):
    """Eqs. 7, 9 and 10 together: only the aligned instance hears of its mask."""
    triangle = torch.tensor([[2.0, 2, 1], [9, 3, 1], [4, 10, 1]], dtype=torch.float64)
    verts = triangle.repeat(2, 1, 1).requires_grad_()
    rendered = silhouette(verts, torch.tensor([[0, 1, 2]]), 12, mode=mode)
    mask_gt = torch.zeros(2, 12, 12, dtype=torch.float64)
    mask_gt[:, 3:11, 3:11] = 1
    joints = torch.zeros(2, 21, 2)
    gate = silhouette_gate(joints, joints + torch.tensor([0.0, 99.0])[:, None, None])
    total = total_loss({"silhouette": silhouette_loss(rendered, mask_gt)}, {"silhouette": gate})
    total.sum().backward()
    assert verts.grad[0].any()
    assert not verts.grad[1].any()


# --- Laplacian and IoU --------------------------------------------------------------------------------------


def test_laplacian_of_a_square_by_hand():
    """A unit square cut along a diagonal: right angles face the diagonal (cot 90 = 0), 45 degrees its sides."""
    verts = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.float64)
    laplacian = cotangent_laplacian(verts, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    expected = torch.tensor(
        [[-1.0, 0.5, 0, 0.5], [0.5, -1, 0.5, 0], [0, 0.5, -1, 0.5], [0.5, 0, 0.5, -1]], dtype=torch.float64
    )
    torch.testing.assert_close(laplacian, expected, rtol=0, atol=1e-12)


def test_laplacian_rows_sum_to_zero_and_flat_meshes_cost_only_their_border():
    grid = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij"), -1).reshape(-1, 2)
    verts = torch.cat([grid, torch.zeros(25, 1)], 1).double()
    corner = [5 * i + j for i in range(4) for j in range(4)]
    faces = torch.tensor([t for c in corner for t in ((c, c + 5, c + 6), (c, c + 6, c + 1))])
    laplacian = cotangent_laplacian(verts, faces)
    torch.testing.assert_close(laplacian.sum(1), torch.zeros(25, dtype=torch.float64), rtol=0, atol=1e-12)
    inner = [5 * i + j for i in range(1, 4) for j in range(1, 4)]
    assert (laplacian @ verts)[inner].abs().max() < 1e-12


def test_laplacian_loss_is_the_mean_length_and_ignores_rigid_motion():
    verts = torch.randn(2, 6, 3, dtype=torch.float64)
    laplacian = torch.randn(6, 6, dtype=torch.float64)
    laplacian = laplacian - torch.diag(laplacian.sum(1))
    expected = []
    for hand in verts:
        lengths = [math.sqrt(sum(float(laplacian[i] @ hand[:, c]) ** 2 for c in range(3))) for i in range(6)]
        expected.append(sum(lengths) / 6)
    torch.testing.assert_close(laplacian_loss(verts, laplacian).tolist(), expected)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -1, 2], [1, 0, -3], [-2, 3, 0]], dtype=torch.float64))
    moved = verts @ turn.T + torch.tensor([1.0, 2, 3], dtype=torch.float64)
    torch.testing.assert_close(laplacian_loss(moved, laplacian), laplacian_loss(verts, laplacian))
    assert torch.autograd.gradcheck(laplacian_loss, (verts.requires_grad_(), laplacian))


def test_mask_iou_loss_equals_a_loop_over_pixels():
    a, b = make((5, 6), 0), make((5, 6), 1)
    expected = []
    for one, other in zip(a, b, strict=True):
        both = either = 0.0
        for i, j in itertools.product(range(5), range(6)):
            p, q = float(one[i, j]), float(other[i, j])
            both, either = both + p * q, either + p + q - p * q
        expected.append(1 - both / either)
    assert mask_iou_loss(a, b).tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(mask_iou_loss, (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_silhouette_iou_loss_of_two_squares(batch):
    """A 4 x 4 square of two triangles against a mask two columns further right: 8 pixels of 24 in common."""
    square = torch.tensor([[2.0, 2, 1], [6, 2, 1], [6, 6, 1], [2, 6, 1]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    mask = torch.zeros(8, 10, dtype=torch.float64)
    mask[2:6, 4:8] = 1
    loss = silhouette_iou_loss(square.expand(*batch, 4, 3), faces, mask.expand(*batch, 8, 10))
    torch.testing.assert_close(loss, torch.full(batch, 1 - 8 / 24, dtype=torch.float64))


def test_silhouette_iou_loss_outside_of_the_image_is_one_and_has_no_gradient():
    square = torch.tensor([[-9.0, 2, 1], [-5, 2, 1], [-5, 6, 1]], dtype=torch.float64, requires_grad=True)
    loss = silhouette_iou_loss(square, torch.tensor([[0, 1, 2]]), torch.ones(4, 4, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, square)
    assert loss.item() == 1
    assert not gradient.any()


# --- What is refused ----------------------------------------------------------------------------------------


def test_bad_arguments_are_refused_by_name():
    joints = torch.zeros(2, 21, 3)
    with pytest.raises(TypeError, match="joints_crop_gt: expected a floating-point tensor, got ndarray"):
        articulation_loss(joints, joints.numpy())
    with pytest.raises(TypeError, match=r"mask: expected .* got a tensor of torch.bool"):
        silhouette_loss(torch.ones(4, 4, dtype=torch.bool), torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"joints_crop_gt \(1, 21, 3\): expected one shape"):
        articulation_loss(joints, joints[:1])
    with pytest.raises(ValueError, match=r"valid: expected a tensor of bool \(2, 21\), got .*\(2,\)"):
        articulation_loss(joints, joints, torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"has_mask: expected a tensor of bool \(2,\), got .*float32"):
        feature_loss(joints[..., 0], joints[..., 0], torch.ones(2))
    with pytest.raises(ValueError, match="reduction is 'max'"):
        articulation_loss(joints, joints, reduction="max")
    with pytest.raises(ValueError, match="image_size"):
        joints2d_refine_loss(joints[..., :2], joints[..., :2], image_size=0)
    with pytest.raises(ValueError, match="mode is 'median'"):
        silhouette_gate(joints[..., :2], joints[..., :2], mode="median")
    with pytest.raises(ValueError, match="tau_px"):
        silhouette_gate(joints[..., :2], joints[..., :2], tau_px=NAN)


def test_bad_terms_and_weights_are_refused_by_name():
    with pytest.raises(ValueError, match="at least one loss"):
        total_loss({})
    with pytest.raises(ValueError, match="shilouette weigh no term; the terms are silhouette"):
        total_loss({"silhouette": torch.ones(2)}, {"shilouette": 1.0})
    with pytest.raises(ValueError, match=r"got b \(3,\)"):
        total_loss({"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(ValueError, match=r"weight \(3,\)"):
        total_loss({"a": torch.ones(2)}, {"a": torch.ones(3)})


def test_the_laplacian_keeps_its_digits_under_autocast():
    model = HandModel.default()
    laplacian = cotangent_laplacian(model.v_template, model.faces)
    verts = 10 * model.v_template + 0.001 * torch.randn(778, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = laplacian_loss(verts, laplacian)
    torch.testing.assert_close(found, laplacian_loss(verts, laplacian))


# --- Maps that are distributions ------------------------------------------------------------------------------


def test_cross_entropy_of_maps_by_hand():
    """Two cells and the outside: truth (1/2, 1/4, 1/4), found (1/4, 1/4, 1/2), of mass 4."""
    truth = torch.tensor([[[[2.0, 1.0]]]], dtype=torch.float64)
    found = torch.tensor([[[[1.0, 1.0]]]], dtype=torch.float64)
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    torch.testing.assert_close(heatmap_entropy_loss(found, truth, 4.0), torch.tensor([by_hand], dtype=torch.float64))
    torch.testing.assert_close(heatmap_entropy_loss(truth, truth, 4.0), torch.zeros(1, dtype=torch.float64))


def test_cross_entropy_counts_annotated_joints_alone_and_pulls_from_far_away():
    truth = torch.zeros(1, 2, 1, 3)
    truth[..., 0] = 4.0
    logits = torch.tensor([[[[-60.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]]], requires_grad=True)
    maps = 4 * torch.cat([logits.flatten(2), torch.zeros(1, 2, 1)], -1).softmax(-1)[..., :3].unflatten(2, (1, 3))
    valid = torch.tensor([[True, False]])
    loss = heatmap_entropy_loss(maps, truth, 4.0, valid)
    loss.sum().backward()
    assert loss.item() == pytest.approx(60 + math.log(3), rel=1e-5)
    torch.testing.assert_close(logits.grad[0, 0, 0, 0], torch.tensor(-1.0))  # share 0 instead of 1
    assert (logits.grad[0, 1] == 0).all()
    with pytest.raises(ValueError, match="mass: expected a positive number, got 0"):
        heatmap_entropy_loss(maps, truth, 0)


# --- Silhouettes in cells -------------------------------------------------------------------------------------


def test_a_seen_silhouette_is_compared_with_the_covered_share_of_its_cells():
    """Cells of 3 x 3 pixels, one by one in float64; the second of three hands has no mask."""
    log_odds, masks = 8 * make((2, 2), 1)[:3] - 4, make((6, 6), 2)[:3]
    expected = []
    for odds, mask in zip(log_odds.tolist(), masks.tolist(), strict=True):
        nats = 0.0
        for i, j in itertools.product(range(2), range(2)):
            share = sum(mask[3 * i + k][3 * j + m] for k in range(3) for m in range(3)) / 9
            seen = 1 / (1 + math.exp(-odds[i][j]))
            nats -= (share * math.log(seen) + (1 - share) * math.log(1 - seen)) / 4
        expected.append(nats)
    found = seen_silhouette_loss(log_odds, masks)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    has_mask = torch.tensor([True, False, True])
    torch.testing.assert_close(seen_silhouette_loss(log_odds, masks, has_mask), found * has_mask, rtol=0, atol=0)
    torch.testing.assert_close(seen_silhouette_loss(log_odds[0], masks[0]), found[0])


def test_a_sure_mistake_about_the_silhouette_is_finite_and_pulls():
    log_odds = torch.full((1, 2, 2), -200.0, requires_grad=True)
    loss = seen_silhouette_loss(log_odds, torch.ones(1, 4, 4))
    loss.sum().backward()
    assert loss.item() == pytest.approx(200)
    torch.testing.assert_close(log_odds.grad, torch.full((1, 2, 2), -0.25))


def test_silhouettes_that_do_not_fit_their_cells_are_refused_by_name():
    log_odds = torch.zeros(2, 4, 4)
    with pytest.raises(TypeError, match=r"masks: expected a floating-point tensor, got a tensor of torch\.bool"):
        seen_silhouette_loss(log_odds, torch.ones(2, 8, 8, dtype=torch.bool))
    with pytest.raises(TypeError, match="log_odds: expected a floating-point tensor, got list"):
        seen_silhouette_loss([0.0], torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match=r"masks: expected one for each of log_odds \(2, 4, 4\), got \(3, 8, 8\)"):
        seen_silhouette_loss(log_odds, torch.ones(3, 8, 8))
    for size in ((10, 10), (8, 4), (2, 2)):
        with pytest.raises(ValueError, match="masks: expected squares of a multiple of 4 pixels"):
            seen_silhouette_loss(log_odds, torch.ones(2, *size))
