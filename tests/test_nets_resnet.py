"""F: the ResNets of torchvision, by names, shapes and values, without torchvision."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhpe_fast.nets import FeatureExtractor

N_PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}
"""torchvision's, less those of the classifier (features x 1000 + 1000)."""
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def expected_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """What torchvision's state_dict holds of a ResNet without fc, from Table 1 of He et al. 2016."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_bn(conv: str, bn: str, out_channels: int, in_channels: int, kernel: int) -> None:
        shapes[f"{conv}.weight"] = (out_channels, in_channels, kernel, kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{bn}.{name}"] = (out_channels,)
        shapes[f"{bn}.num_batches_tracked"] = ()

    conv_bn("conv1", "bn1", 64, 3, 7)
    channels = 64
    for layer, n_blocks in enumerate(BLOCKS[depth]):
        inner = 64 * 2**layer
        outer = inner if depth < 50 else 4 * inner
        for block in range(n_blocks):
            name = f"layer{layer + 1}.{block}"
            if depth < 50:
                plan = [(inner, channels, 3), (outer, inner, 3)]
            else:
                plan = [(inner, channels, 1), (inner, inner, 3), (outer, inner, 1)]
            for number, sizes in enumerate(plan, start=1):
                conv_bn(f"{name}.conv{number}", f"{name}.bn{number}", *sizes)
            if block == 0 and (layer > 0 or channels != outer):
                conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", outer, channels, 1)
            channels = outer
    return shapes


def features_by_the_book(weights: dict[str, Tensor], images: Tensor, depth: int) -> Tensor:
    """F(x) in evaluation, function by function from torchvision's names; strides of version 1.5."""

    def bn(name: str, x: Tensor) -> Tensor:
        scale = weights[f"{name}.weight"] / (weights[f"{name}.running_var"] + 1e-5).sqrt()
        shift = weights[f"{name}.bias"] - scale * weights[f"{name}.running_mean"]
        return x * scale[:, None, None] + shift[:, None, None]

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    mean = torch.tensor([0.485, 0.456, 0.406], dtype=images.dtype)[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225], dtype=images.dtype)[:, None, None]
    x = bn("bn1", conv("conv1", (images - mean) / std, 2)).clamp_min(0)
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, 2)
    n_convs, strided = (2, 1) if depth < 50 else (3, 2)
    for layer, n_blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(n_blocks):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = x
            for number in range(1, n_convs + 1):
                y = bn(f"{name}.bn{number}", conv(f"{name}.conv{number}", y, stride if number == strided else 1))
                y = y.clamp_min(0) if number < n_convs else y
            if f"{name}.downsample.0.weight" in weights:
                x = bn(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            x = (x + y).clamp_min(0)
    return x.flatten(2).mean(-1)


def with_random_statistics(network: FeatureExtractor) -> FeatureExtractor:
    """BatchNorm's constants as after some training, so that each of them counts."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("depth", N_PARAMETERS)
def test_names_shapes_and_counts_are_torchvisions(depth):
    with torch.device("meta"):
        network = FeatureExtractor(depth)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == expected_shapes(depth)
    assert sum(p.numel() for p in network.parameters()) == N_PARAMETERS[depth]
    assert network.n_features == (512 if depth < 50 else 2048)


@pytest.mark.parametrize("depth", [18, 50])
def test_features_are_those_of_the_book(depth):
    network = with_random_statistics(FeatureExtractor(depth)).double()
    images = torch.rand(2, 3, 33, 47, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), features_by_the_book(network.state_dict(), images, depth))


def test_memory_format_does_not_matter():
    network = with_random_statistics(FeatureExtractor(18)).double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = network(images)
        got = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected)


def test_zero_init_starts_every_block_as_its_shortcut():
    network = FeatureExtractor(50, zero_init_residual=True)
    assert not any(block.bn3.weight.any() for layer in (network.layer1, network.layer4) for block in layer)
    assert network.layer1[0].bn1.weight.all()
    assert FeatureExtractor(18).layer1[0].bn2.weight.all()


def test_the_first_weights_are_hes():
    weight = FeatureExtractor(18).layer4[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


# --- ImageNet weights ---


def imagenet_like(network: FeatureExtractor, counters: bool = True) -> dict[str, Tensor]:
    """Random tensors with the names of a torchvision file, classifier included."""
    weights = {
        name: torch.rand_like(value) if value.is_floating_point() else torch.tensor(7)
        for name, value in network.state_dict().items()
        if counters or not name.endswith("num_batches_tracked")
    }
    return {**weights, "fc.weight": torch.rand(1000, 512), "fc.bias": torch.rand(1000)}


@pytest.fixture(scope="module")
def network() -> FeatureExtractor:
    return FeatureExtractor(18)


@pytest.fixture(params=["pth", "pth without counters", "safetensors"])
def weight_file(request, network, tmp_path) -> tuple[Path, dict[str, Tensor]]:
    weights = imagenet_like(network, counters="without" not in request.param)
    if request.param == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is not installed")
        from safetensors.torch import save_file

        path = tmp_path / "model.safetensors"
        save_file(weights, path)
    else:
        path = tmp_path / "resnet18.pth"
        torch.save(weights, path)
    return path, weights


def test_imagenet_files_load_without_their_classifier(weight_file):
    path, weights = weight_file
    network = FeatureExtractor(18)
    network.load_imagenet(path)
    for name, value in network.state_dict().items():
        if name in weights:
            torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
        else:
            assert name.endswith("num_batches_tracked")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("layer3.1.conv2.weight"), r"no weights for this ResNet-18: missing layer3.1.conv2.weight"),
        (lambda w: w.update({"stem.weight": torch.zeros(2)}), "unexpected stem.weight"),
        (
            lambda w: w.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}),
            r"wrong shape: conv1.weight \(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)",
        ),
        (lambda w: w["bn1.bias"].fill_(torch.nan), "not finite: bn1.bias"),
        (lambda w: w.update({"epoch": 3}), "expected a dictionary of tensors by name, got one that also holds epoch"),
    ],
    ids=["missing", "unexpected", "shape", "nan", "no tensor"],
)
def test_other_files_are_refused_and_change_nothing(network, tmp_path, spoil, message):
    weights = imagenet_like(network)
    spoil(weights)
    torch.save(weights, tmp_path / "weights.pth")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        network.load_imagenet(tmp_path / "weights.pth")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_weights_of_another_depth_are_refused(network, tmp_path):
    torch.save(imagenet_like(network), tmp_path / "resnet18.pth")
    with torch.device("meta"):
        deeper = FeatureExtractor(34)
    with pytest.raises(ValueError, match=r"ResNet-34: missing layer1.2.conv1.weight, .* and \d+ more"):
        deeper.load_imagenet(tmp_path / "resnet18.pth")


class _Touch:
    """What a harmful pickle would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_in_a_file_is_run(network, tmp_path):
    harmful = tmp_path / "harmful.pth"
    harmful.write_bytes(pickle.dumps({"conv1.weight": _Touch(tmp_path / "touched")}, protocol=2))
    with pytest.raises(ValueError, match=r"harmful.pth: cannot be read as a .pth file of tensors"):
        network.load_imagenet(harmful)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_damaged_and_missing_files(network, tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file of network weights"):
        network.load_imagenet(tmp_path / name)
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    (tmp_path / name).write_bytes(b"no network at all")
    with pytest.raises(ValueError, match=name):
        network.load_imagenet(tmp_path / name)


def test_bad_input_is_refused_by_name(network):
    with pytest.raises(ValueError, match="depth: expected one of 18, 34, 50, 101, 152, got 20"):
        FeatureExtractor(20)
    with pytest.raises(TypeError, match=r"images: .*got a tensor of torch.uint8"):
        network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images: expected \(B, 3, H, W\), got \(3, 32, 32\)"):
        network(torch.zeros(3, 32, 32))
