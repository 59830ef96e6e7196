"""The lifter: what it promises whatever its weights are, its examples, and its loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dhpe_fast.conventions import H_LAYOUT, MIDDLE_MCP
from dhpe_fast.data.lifting import HandSampler, HandSampling
from dhpe_fast.hand import HandModel, HandParams
from dhpe_fast.nets.lifter import Lifter, LifterSpec, initial_hands, placed
from dhpe_fast.rotation import axis_angle_to_matrix

SPEC = LifterSpec(width=32, blocks=2, hypotheses=3)
CLEAN = HandSampling(pinhole=0, noise=0, finger_noise=0, outliers=0, missing=0)


@pytest.fixture(scope="module")
def model():
    return HandModel.default()


@pytest.fixture(scope="module")
def lifter(model):
    torch.manual_seed(0)
    return Lifter(SPEC, model).double().eval()


def some_joints(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 21, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# --- The network ----------------------------------------------------------------------------------------------


def test_shapes_and_what_an_answer_is(lifter):
    lifted = lifter(some_joints())
    shapes = [tuple(part.shape) for part in (lifted.pose, lifted.betas, lifted.rotation, lifted.log_probability)]
    assert shapes == [(4, 3, 45), (4, 3, 10), (4, 3, 3, 3), (4, 3)]
    torch.testing.assert_close(lifted.log_probability.exp().sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.det(lifted.rotation), torch.ones(4, 3, dtype=torch.float64))


def test_a_turned_moved_and_scaled_image_gives_the_turned_hand(lifter):
    joints, angle = some_joints(), 2.4
    turn = axis_angle_to_matrix(torch.tensor([0.0, 0.0, angle], dtype=torch.float64))
    there = lifter(3.0 * joints @ turn[:2, :2].T + torch.tensor([5.0, -1.0]))
    here = lifter(joints)
    torch.testing.assert_close(there.pose, here.pose)
    torch.testing.assert_close(there.betas, here.betas)
    torch.testing.assert_close(there.log_probability, here.log_probability)
    torch.testing.assert_close(there.rotation, turn @ here.rotation)
    torch.testing.assert_close(there.noise, 3.0 * here.noise)


def test_missing_joints_do_not_count_whatever_they_are(lifter):
    joints, confidence = some_joints(), torch.ones(4, 21, dtype=torch.float64)
    confidence[:, [3, 20]] = 0
    other = joints.clone()
    other[:, 3] = torch.nan
    other[:, 20] = 1e6
    first, second = lifter(joints, confidence), lifter(other, 0.3 * confidence)
    torch.testing.assert_close(first.pose, second.pose, rtol=0, atol=0)
    torch.testing.assert_close(first.rotation, second.rotation, rtol=0, atol=0)
    assert not torch.allclose(first.pose, lifter(joints).pose)


@pytest.mark.parametrize("joints", [torch.zeros(1, 21, 2), torch.ones(1, 21, 2) * 1e-20], ids=["zero", "one point"])
def test_joints_that_span_nothing_give_finite_hands(model, joints):
    h, log_probability = initial_hands(Lifter(SPEC, model), model, joints, torch.zeros(1, 21))
    assert bool(h.isfinite().all())
    assert bool(log_probability.isfinite().all())


def test_initial_hands_lie_on_their_joints(model, lifter):
    """Scale and translation are the best there are: any other ones bring the joints farther away."""
    joints = HandSampler(model, CLEAN).batch(4, np.random.default_rng(1)).joints
    h, _ = initial_hands(lifter.float(), model, joints)
    lifter.double()

    def distance(h: torch.Tensor) -> torch.Tensor:
        image = model.decode(HandParams.from_packed(h.flatten(0, 1))).joints_m[..., :2].unflatten(0, h.shape[:2])
        return (image - joints[:, None]).square().sum((-2, -1))

    best = distance(h)
    ahead = h[..., H_LAYOUT["scale"]][..., 0] > 0  # not those views that would have to be mirrored
    assert bool(ahead.any())
    for part, change in (("scale", 0.5), ("scale", -0.5), ("trans", 0.1), ("trans", -0.1)):
        other = h.clone()
        other[..., H_LAYOUT[part]] += change
        assert bool((distance(other) > best)[ahead].all())
    decoded = model.decode(HandParams.from_packed(h[0]))
    torch.testing.assert_close(
        decoded.joints_m[:, MIDDLE_MCP, 2], torch.zeros(len(decoded.joints_m)), rtol=0, atol=1e-5
    )


def test_placed_finds_the_similarity_that_was_applied():
    points = torch.randn(21, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weight = torch.ones(21, dtype=torch.float64)
    weight[5] = 0
    image = 7.0 * points[:, :2] + torch.tensor([0.3, -0.2])
    image[5] = 100.0
    scale, trans = placed(points, image, weight)
    torch.testing.assert_close(scale, torch.tensor([7.0], dtype=torch.float64))
    torch.testing.assert_close(trans, torch.tensor([0.3, -0.2], dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((1, 21, 2)),), TypeError, "joints: expected a torch.Tensor, got ndarray"),
        ((torch.zeros(21, 2),), ValueError, r"joints: expected .*\(B, 21, 2\), got \(21, 2\)"),
        ((torch.zeros(1, 21, 2, dtype=torch.int32),), ValueError, "joints: expected a floating-point.*int32"),
        ((torch.zeros(1, 21, 2), torch.zeros(1, 20)), ValueError, r"confidence: expected \(1, 21\).*\(1, 20\)"),
        ((torch.zeros(1, 21, 2), 1.0), TypeError, "confidence: expected a torch.Tensor, got float"),
    ],
)
def test_bad_input_is_named(lifter, arguments, error, message):
    with pytest.raises(error, match=message):
        lifter(*arguments)


@pytest.mark.parametrize("options", [{"width": 0}, {"blocks": 1.5}, {"hypotheses": True}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}: expected a whole number >= 1"):
        LifterSpec(**options)


# --- The examples ---------------------------------------------------------------------------------------------


def test_clean_examples_are_hands_seen_without_perspective(model):
    batch = HandSampler(model, CLEAN).batch(16, np.random.default_rng(0))
    assert len(batch) == 16
    assert bool((batch.confidence == 1).all())
    torch.testing.assert_close(batch.joints, batch.exact_joints)
    # Image and space agree up to scale and place; poses and betas decode to the joints up to a rotation.
    scale, trans = placed(batch.joints_m, batch.joints, batch.confidence)
    image = batch.joints_m[..., :2] * scale[..., None] + trans[:, None]
    torch.testing.assert_close(image, batch.joints, rtol=0, atol=1e-5)
    decoded = model.joints_m(batch.pose, batch.betas)
    torch.testing.assert_close(
        torch.cdist(decoded, decoded), torch.cdist(batch.joints_m, batch.joints_m), atol=1e-4, rtol=0
    )
    # The crop is that of a fit: the box of the joints, with its margin.
    extent = batch.joints.amax(1) - batch.joints.amin(1)
    torch.testing.assert_close(extent.amax(1), torch.full((16,), 2 / 1.5), rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.joints.amax(1), -batch.joints.amin(1), rtol=0, atol=1e-5)


def test_the_same_random_numbers_give_the_same_examples(model):
    first, second = (HandSampler(model, HandSampling()).batch(8, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first.joints, second.joints)
    assert torch.equal(first.pose, second.pose)


def test_disturbances_are_as_large_and_as_many_as_they_say(model):
    n = 2000
    noisy = HandSampler(model, HandSampling(pinhole=0, noise=0.05, finger_noise=0, outliers=0, missing=0))
    batch = noisy.batch(n, np.random.default_rng(0))
    # Standard deviation 2 * 0.05 * u^2 crop units with u uniform: mean square 0.01 / 5. The crop grows a little.
    found = float((batch.joints - batch.exact_joints).square().mean())
    assert found == pytest.approx(0.002, rel=0.15)
    assert float(batch.noise.square().mean()) == pytest.approx(found, rel=0.1)
    missing = HandSampler(model, HandSampling(missing=0.5)).batch(n, np.random.default_rng(0))
    lost = 21 - missing.confidence.sum(1)
    assert float((lost > 0).float().mean()) == pytest.approx(0.48, abs=0.05)
    assert float(lost.max()) <= 13
    assert bool((missing.joints[missing.confidence == 0] == 0).all())
    near = HandSampler(model, HandSampling(pinhole=1, noise=0, outliers=0, missing=0)).batch(
        200, np.random.default_rng(0)
    )
    scale, trans = placed(near.joints_m, near.joints, near.confidence)
    image = near.joints_m[..., :2] * scale[..., None] + trans[:, None]
    assert 0.02 < float((image - near.joints).norm(dim=-1).mean()) < 0.2


@pytest.mark.parametrize(("name", "value"), [("noise", -0.1), ("missing", 1.5), ("nearness", math.nan)])
def test_bad_sampling_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        HandSampling(**{name: value})


def test_examples_are_of_right_hands():
    with pytest.raises(ValueError, match="model: expected a right hand, got a left one"):
        HandSampler(HandModel.default("left"), CLEAN)
