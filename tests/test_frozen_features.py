"""The fast copy of F gives what F gives; the feature term's value and slope are those of the formula."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dhpe_fast.nets import FeatureExtractor, folded_convolution
from dhpe_fast.nets.frozen_features import FrozenFeatures, MaskedFeatures, box_filter

S = 64


def trained(depth: int, dtype: torch.dtype = torch.float32) -> FeatureExtractor:
    """Random weights and statistics: batch norms that do something, and are in training mode."""
    network = FeatureExtractor(depth)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.3, 1.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.to(dtype).train()


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, S, S, dtype=torch.float64, generator=generator)


@pytest.fixture(scope="module")
def mask() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, S, S, dtype=torch.float64, generator=generator)


@pytest.fixture(scope="module")
def network() -> FeatureExtractor:
    torch.manual_seed(0)
    return trained(18, torch.float64)


def forth_and_back(network: Callable[[Tensor], Tensor], images: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    features = network(images)
    return features.detach(), torch.autograd.grad(features, images, upstream)[0]


@pytest.mark.parametrize("depth", [18, 50])
def test_features_and_their_gradient_are_those_of_the_network_in_eval_mode(depth, images):
    network = trained(depth, torch.float64)
    frozen = FrozenFeatures(network)
    upstream = torch.randn(2, frozen.n_features, dtype=torch.float64)
    found, found_gradient = forth_and_back(frozen, images, upstream)
    expected, expected_gradient = forth_and_back(copy.deepcopy(network).eval(), images, upstream)
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False], ids=["oneDNN", "torch"])
@pytest.mark.parametrize("depth", [18, 50])
def test_so_they_are_in_single_precision_whoever_convolves(depth, fused, images, monkeypatch):
    """Measured at most 2e-6 of the largest feature, and 1e-3 of the gradient, which jumps where a rectifier flips."""
    if not fused:
        monkeypatch.setattr(folded_convolution, "one_dnn_fuses", lambda device, dtype: False)
    elif not folded_convolution.one_dnn_fuses(torch.device("cpu"), torch.float32):
        pytest.skip("this torch has no oneDNN")
    network = trained(depth)
    upstream = torch.randn(2, network.n_features)
    frozen = FrozenFeatures(network)
    for _ in range(2):  # the second time, weights are packed already
        found, found_gradient = forth_and_back(frozen, images.float(), upstream)
    expected, expected_gradient = forth_and_back(copy.deepcopy(network).eval(), images.float(), upstream)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert float((found_gradient - expected_gradient).norm()) < 1e-2 * float(expected_gradient.norm())


def test_a_torch_whose_one_dnn_ops_changed_goes_without(monkeypatch):
    """float64 it has never known; of float32, a convolution that forgets its sum is told by the trial."""
    agrees = folded_convolution._one_dnn_agrees.__wrapped__
    assert not agrees(torch.float64)
    if not folded_convolution.one_dnn_fuses(torch.device("cpu"), torch.float32):
        pytest.skip("this torch has no oneDNN")
    assert agrees(torch.float32)
    kind = folded_convolution._OneDnnConvolution
    convolve = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, x, *, relu, add=None: convolve(self, x, relu=relu))
    assert not agrees(torch.float32)


def test_the_network_stays_as_it_was(network, images):
    before = copy.deepcopy(network.state_dict())
    frozen = FrozenFeatures(network, "bfloat16")
    forth_and_back(frozen, images.float(), torch.ones(2, 512))
    assert network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.dtype == before[name].dtype
    assert all(part.is_contiguous() for part in network.parameters())


def test_later_training_does_not_reach_the_copy(images):
    network = trained(18, torch.float64)
    frozen = FrozenFeatures(network)
    before = frozen(images)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    network.mean.zero_()
    assert torch.equal(frozen(images), before)


@pytest.mark.parametrize(
    ("precision", "features_off", "gradient_off"),
    [("float32", 1e-5, 1e-4), ("bfloat16", 3e-2, 0.3), ("float16", 5e-3, 0.12)],
)
def test_precisions_round_by_their_digits(network, images, precision, features_off, gradient_off):
    """Relative to the largest feature, and to the length of the gradient, which jumps where a rectifier flips.

    Measured on the gradient: 0.16 for bfloat16, 0.06 for float16.
    """
    upstream = torch.randn(2, 512, dtype=torch.float64)
    expected, expected_gradient = forth_and_back(FrozenFeatures(network), images, upstream)
    frozen = FrozenFeatures(network, precision)
    assert frozen.precision == getattr(torch, precision)
    found, gradient = forth_and_back(frozen, images.float(), upstream)
    assert found.dtype == torch.float64
    assert float((found - expected).abs().max()) < features_off * float(expected.abs().max())
    assert float((gradient - expected_gradient).norm()) < gradient_off * float(expected_gradient.norm())


def test_autocast_of_the_caller_changes_nothing(network, images):
    frozen = FrozenFeatures(network, "float32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = frozen(images)
    assert torch.equal(found, frozen(images))


def term_by_hand(network: Callable[[Tensor], Tensor], images: Tensor, mask: Tensor) -> Tensor:
    return (network(images) - network(images * mask[:, None])).square().sum(1)


@pytest.mark.parametrize("feature_size", [None, S])
def test_value_and_slope_are_those_of_the_formula(network, images, mask, feature_size):
    reference = copy.deepcopy(network).eval()
    leaf = mask.clone().requires_grad_()
    expected = term_by_hand(reference, images, leaf)
    (expected_slope,) = torch.autograd.grad(expected.sum(), leaf)
    term = MaskedFeatures(FrozenFeatures(network), images, feature_size)
    with torch.no_grad():  # the caller's mode does not matter
        value, slope = term(mask)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(slope, expected_slope, rtol=1e-7, atol=1e-10)
    assert torch.equal(term.value(mask), value)
    assert not value.requires_grad
    assert not slope.requires_grad


def test_at_the_whole_crop_the_term_and_its_slope_are_zero(network, images):
    value, slope = MaskedFeatures(FrozenFeatures(network), images)(torch.ones(2, S, S, dtype=torch.float64))
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(slope, torch.zeros_like(slope))


def smooth_features() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 5), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


@pytest.mark.parametrize("feature_size", [48, 32, 23])
def test_the_slope_of_a_smaller_crop_is_that_by_the_whole_mask(images, mask, feature_size):
    """Central differences along a random direction of the mask, with a smooth F."""
    term = MaskedFeatures(smooth_features(), images, feature_size)
    value, slope = term(mask)
    direction = torch.randn_like(mask)
    step = 1e-5
    ahead, behind = term.value(mask + step * direction), term.value(mask - step * direction)
    assert float(value.min()) > 0
    torch.testing.assert_close((slope * direction).sum((1, 2)), (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-7)


def test_half_types_do_not_underflow(network, images):
    """A mask that is almost right: in float16 the gradients of its tiny term would vanish, were they not scaled."""
    mask = torch.ones(2, S, S, dtype=torch.float64)
    mask[:, 20:24, 30:34] = 0.9
    _, expected = MaskedFeatures(FrozenFeatures(network), images)(mask)
    _, slope = MaskedFeatures(FrozenFeatures(network, "float16"), images.float())(mask.float())
    assert slope.dtype == torch.float32
    similarity = torch.cosine_similarity(slope.double().flatten(1), expected.flatten(1))
    assert float(similarity.min()) > 0.9


def test_any_network_will_do(images, mask):
    """F need not be a ResNet."""
    features = smooth_features()
    value, slope = MaskedFeatures(features, images)(mask)
    torch.testing.assert_close(value, term_by_hand(features, images, mask).detach())
    assert slope.shape == mask.shape


def test_other_crops_take_the_place_of_the_first_ones(network, images, mask):
    frozen = FrozenFeatures(network)
    first, second = MaskedFeatures(frozen, images, 32), MaskedFeatures(frozen, images[1:], 32)
    before = first(mask)
    for found, expected in zip(first.on(*second.tensors)(mask[1:]), second(mask[1:]), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(first(mask), before, strict=True):
        assert torch.equal(found, expected)


def test_boxes_average():
    """5 pixels to 2 boxes of 2.5; rows sum to one."""
    expected = torch.tensor([[2, 2, 1, 0, 0], [0, 0, 1, 2, 2]]).double() / 5
    torch.testing.assert_close(box_filter(5, 2), expected)
    torch.testing.assert_close(box_filter(224, 97).sum(1), torch.ones(97).double())
    torch.testing.assert_close(box_filter(7, 7), torch.eye(7).double())


def test_bad_arguments_are_named(network, images, mask):
    with pytest.raises(ValueError, match=r"precision: .* 'half'"):
        FrozenFeatures(network, "half")
    with pytest.raises(TypeError, match=r"features: .* Sequential"):
        FrozenFeatures(nn.Sequential(network))
    with pytest.raises(ValueError, match=r"images: .*\(1, 3, 8, 9\)"):
        MaskedFeatures(network, torch.zeros(1, 3, 8, 9))
    for feature_size in (0, S + 1, 32.0, True):
        with pytest.raises(ValueError, match="feature_size"):
            MaskedFeatures(FrozenFeatures(network), images, feature_size)
    term = MaskedFeatures(FrozenFeatures(network), images)
    for call in (term, term.value):
        with pytest.raises(ValueError, match=r"mask: .*\(1, 64, 64\)"):
            call(mask[:1])


def test_f_and_its_frozen_copy_average_larger_images_down_alike():
    torch.manual_seed(0)
    features = FeatureExtractor(18, input_size=32).double().eval()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    smaller = images.detach().unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5))
    torch.testing.assert_close(features(images), features(smaller))
    frozen = FrozenFeatures(features)
    torch.testing.assert_close(frozen(images), features(smaller))
    found, expected = (torch.autograd.grad(f(images).square().sum(), images)[0] for f in (frozen, features))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="features_size: expected None or a whole number of pixels >= 32, got 16"):
        FeatureExtractor(18, input_size=16)
