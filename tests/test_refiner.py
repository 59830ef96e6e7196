"""Eq. 11 prepared for many batches, and the knobs of its feature term."""

from __future__ import annotations

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from test_frozen_features import trained
from torch import Tensor, nn

from dhpe_fast.data import render_hands
from dhpe_fast.hand import HandModel
from dhpe_fast.nets import FeatureExtractor, FrozenFeatures, MaskedFeatures, Projector
from dhpe_fast.refinement import BALANCED, EnergyWeights, Refiner, refine

S = 32
OPTIONS = {"iterations": 5, "block_scales": BALANCED, "weights": EnergyWeights(feature=1e-3)}


@pytest.fixture(scope="module")
def model() -> HandModel:
    return HandModel.default(dtype=torch.float64)


@pytest.fixture(scope="module")
def network() -> FeatureExtractor:
    torch.manual_seed(0)
    return trained(18, torch.float64)


@pytest.fixture(scope="module")
def dhpe(model, network) -> SimpleNamespace:
    return SimpleNamespace(hand=model, features=network, project=Projector(model, S, silhouette_mode="edge"))


def crops(model: HandModel, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, parameters near the truth, 2D joints of two hands."""
    truth = torch.cat([hand.params.packed() for hand in render_hands(2, seed, model, image_size=(S, S))])
    projection = Projector(model, S, silhouette_mode="edge")(truth)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, 3, S, S, dtype=torch.float64, generator=generator)
    images = projection.mask[:, None] * (0.6 + 0.4 * noise) + (1 - projection.mask[:, None]) * 0.3 * noise
    start = truth + 0.05 * torch.randn(truth.shape, dtype=torch.float64, generator=generator)
    return images, start, (projection.joints[..., :2] + 1) / 2 * S


@pytest.fixture(scope="module")
def batch(model) -> tuple[Tensor, Tensor, Tensor]:
    return crops(model, 3)


def test_the_frozen_copy_refines_like_the_network_itself(dhpe, batch):
    """The compiled path runs the copy, the other one the network by autograd."""
    found, expected = (refine(dhpe, *batch, **OPTIONS, fused=fused) for fused in (True, False))
    torch.testing.assert_close(found.h, expected.h, rtol=1e-7, atol=1e-8)
    for name, rows in expected.energy.items():
        torch.testing.assert_close(found.energy[name], rows, rtol=1e-7, atol=1e-9)
    assert dhpe.features.training
    assert not torch.equal(found.h, refine(dhpe, *batch, **OPTIONS | {"weights": EnergyWeights(feature=0.0)}).h)


@pytest.mark.parametrize("interval", [1, 2, 3, 7])
def test_a_refiner_does_what_refine_does_batch_after_batch(dhpe, model, interval):
    # Where a crop is masked out, F sees the same everywhere: rounding decides to which of equal pixels a max pooling
    # hands the gradient. A mask that moves away from where F was run gets there.
    tolerance = {"rtol": 1e-7, "atol": 1e-8} if interval == 1 else {"rtol": 2e-4, "atol": 1e-4}
    options = OPTIONS | {"feature_interval": interval}
    refiner = Refiner(dhpe, **options)
    for n in (2, 1):
        images, start, joints2d_px = (tensor[:n] for tensor in crops(model, 3 + n))
        found = refiner(images, start, joints2d_px)
        expected = refine(dhpe, images, start, joints2d_px, **options, fused=False)
        assert found.energy["total"].shape == (6, n)
        torch.testing.assert_close(found.h, expected.h, **tolerance)
        torch.testing.assert_close(found.energy["total"], expected.energy["total"], **tolerance)
    reason = "CUDA graphs need all tensors on a CUDA device, some are on: cpu"
    assert refiner.not_recorded == (reason if interval <= 5 else "there is nothing to record")


def test_a_refiner_says_why_nothing_is_recorded(dhpe, batch):
    refiner = Refiner(dhpe, **OPTIONS | {"weights": EnergyWeights(feature=0.0)})
    assert refiner.not_recorded == "no batch was refined yet"
    refiner(*batch)
    assert refiner.not_recorded == "there is nothing to record"


def test_a_refiner_keeps_no_batch(dhpe, batch):
    refiner = Refiner(dhpe, **OPTIONS)
    pixels = batch[0].numpy().copy()
    kept = weakref.ref(pixels)
    refiner(torch.from_numpy(pixels), *batch[1:])
    del pixels
    gc.collect()
    assert kept() is None


@pytest.mark.needs_cuda
def test_a_refiner_replays_on_cuda(dhpe, model, batch):
    """The second batch goes through the graph that the first one recorded."""
    on_cuda = SimpleNamespace(
        hand=copy.deepcopy(model).cuda(),
        features=copy.deepcopy(dhpe.features).cuda(),
        project=Projector(copy.deepcopy(model).cuda(), S, silhouette_mode="edge"),
    )
    refiner = Refiner(on_cuda, **OPTIONS)
    for seed in (3, 4):
        tensors = crops(model, seed)
        found = refiner(*(tensor.cuda() for tensor in tensors))
        assert refiner.not_recorded is None
        expected = refine(dhpe, *tensors, **OPTIONS)
        torch.testing.assert_close(found.h.cpu(), expected.h, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.energy["total"].cpu(), expected.energy["total"], rtol=1e-6, atol=1e-7)


def test_later_training_does_not_reach_a_refiner(dhpe, network, batch):
    mine = SimpleNamespace(**vars(dhpe) | {"features": copy.deepcopy(network)})
    refiner = Refiner(mine, **OPTIONS)
    before = refiner(*batch).h
    for parameter in mine.features.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(refiner(*batch).h, before)
    assert not torch.equal(refine(mine, *batch, **OPTIONS).h, before)


def test_knobs_are_those_of_the_feature_term(dhpe, network, batch):
    images, start, joints2d_px = batch
    for knobs, term in (
        ({"feature_size": 16}, MaskedFeatures(FrozenFeatures(network), images, 16)),
        ({"feature_precision": "bfloat16"}, MaskedFeatures(FrozenFeatures(network, "bfloat16"), images)),
    ):
        found = refine(dhpe, images, start, joints2d_px, **OPTIONS, **knobs)
        expected = refine(dhpe, images, start, joints2d_px, **OPTIONS, masked_features=term)
        torch.testing.assert_close(found.h, expected.h, rtol=1e-9, atol=1e-10)
        assert not torch.equal(found.h, refine(dhpe, images, start, joints2d_px, **OPTIONS).h)
        assert (found.energy["total"][-1] < found.energy["total"][0]).all()


def test_f_ref_sees_whole_crops_whatever_the_cnn_of_the_term_sees(dhpe, network, batch):
    images, start, joints2d_px = batch
    seen = []

    def refiner(joints2d: Tensor, features: Tensor, h: Tensor, joints_norm: Tensor) -> Tensor:
        seen.append(features)
        return joints2d

    mine = SimpleNamespace(**vars(dhpe), mesh_estimator=SimpleNamespace(refiner=refiner))
    refine(mine, images, start, joints2d_px, **OPTIONS, update_joints2d=True, feature_size=16)
    expected = copy.deepcopy(network).eval()(images)
    assert len(seen) == 5
    torch.testing.assert_close(seen[0], expected)


def test_knobs_out_of_range_are_named(dhpe, batch):
    for options, message in (
        ({"feature_size": 0}, "feature_size"),
        ({"feature_size": 16.0}, "feature_size"),
        ({"feature_size": S + 1}, rf"feature_size.* 1 to {S}, got {S + 1}"),
        ({"feature_precision": "half"}, r"feature_precision: .*'float16', got 'half'"),
    ):
        with pytest.raises(ValueError, match=message):
            refine(dhpe, *batch, **OPTIONS, **options)
    smooth = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with pytest.raises(ValueError, match=r"feature_precision: .* F is a Sequential"):
        refine(SimpleNamespace(**vars(dhpe) | {"features": smooth}), *batch, feature_precision="bfloat16")
