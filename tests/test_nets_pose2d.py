"""f_J2D: Zimmermann and Brox's PoseNet, by its published sizes and a forward pass written in NumPy from their rules."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dhpe_fast.hand import UnsafePickleError
from dhpe_fast.nets import Pose2DNet

TINY = {"width": 1 / 32, "input_size": 16}
RHD_FROM_STD = [0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17]
"""Each finger tip first; its own inverse."""

# (layer, kernel, in, out) of the published network.
TRUNK = [
    ("conv1_1", 3, 3, 64),
    ("conv1_2", 3, 64, 64),
    ("conv2_1", 3, 64, 128),
    ("conv2_2", 3, 128, 128),
    ("conv3_1", 3, 128, 256),
    ("conv3_2", 3, 256, 256),
    ("conv3_3", 3, 256, 256),
    ("conv3_4", 3, 256, 256),
    ("conv4_1", 3, 256, 512),
    ("conv4_2", 3, 512, 512),
    ("conv4_3", 3, 512, 256),
    ("conv4_4", 3, 256, 256),
    ("conv4_5", 3, 256, 256),
    ("conv4_6", 3, 256, 256),
    ("conv4_7", 3, 256, 128),
]
STAGES = [[("conv5_1", 1, 128, 512), ("conv5_2", 1, 512, 21)]] + [
    [
        (f"conv{n}_1", 7, 149, 128),
        *[(f"conv{n}_{k}", 7, 128, 128) for k in (2, 3, 4, 5)],
        (f"conv{n}_6", 1, 128, 128),
        (f"conv{n}_7", 1, 128, 21),
    ]
    for n in (6, 7)
]
CONVOLUTIONS = [*TRUNK, *STAGES[0], *STAGES[1], *STAGES[2]]


def tiny_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of the network of 1/32 width, under the names and in the layout of their files."""
    rng = np.random.default_rng(seed)
    thin = {3: 3, 21: 21, 149: 21 + 4}
    arrays = {}
    for layer, kernel, c_in, c_out in CONVOLUTIONS:
        shape = (kernel, kernel, thin.get(c_in, c_in // 32), thin.get(c_out, c_out // 32))
        spread = 1.4 / np.sqrt(kernel * kernel * shape[2])
        arrays[f"PoseNet2D/{layer}/weights"] = rng.normal(0, spread, shape).astype(np.float32)
        arrays[f"PoseNet2D/{layer}/biases"] = rng.normal(0, 0.1, shape[3]).astype(np.float32)
    return arrays


def posenet_in_numpy(arrays: dict[str, np.ndarray], image: np.ndarray) -> list[np.ndarray]:
    """Score maps (n, n, 21) in RHD order of an image (H, W, 3) in [0, 255], in float64 and TensorFlow's layout."""

    def conv(x: np.ndarray, layer: str) -> np.ndarray:
        weights, biases = (arrays[f"PoseNet2D/{layer}/{kind}"].astype(float) for kind in ("weights", "biases"))
        kernel = len(weights)
        # SAME: as many zeros as keep the size, the odd one at the bottom and right.
        before = (kernel - 1) // 2
        padded = np.pad(x, [(before, kernel - 1 - before)] * 2 + [(0, 0)])
        out = np.zeros((*x.shape[:2], weights.shape[3])) + biases
        for row in range(x.shape[0]):
            for column in range(x.shape[1]):
                window = padded[row : row + kernel, column : column + kernel]
                out[row, column] += np.einsum("hwi,hwio->o", window, weights)
        return out

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0.01 * x)

    x = image / 255 - 0.5
    for layer, *_ in TRUNK:
        x = relu(conv(x, layer))
        if layer in ("conv1_2", "conv2_2", "conv3_4"):
            x = x.reshape(len(x) // 2, 2, len(x) // 2, 2, -1).max((1, 3))
    encoding, maps = x, []
    for stage in STAGES:
        x = np.concatenate([maps[-1], encoding], -1) if maps else encoding
        for layer, *_ in stage[:-1]:
            x = relu(conv(x, layer))
        maps.append(conv(x, stage[-1][0]))
    return maps


# --- The network ---


def test_the_published_network_has_its_published_size():
    with torch.device("meta"):
        network, first = Pose2DNet(), Pose2DNet(stages=1)
    assert sum(p.numel() for p in network.parameters()) == 17_518_847
    assert sum(p.numel() for p in first.parameters()) == 9_187_541
    shapes = {name.split(".")[-2]: p.shape for name, p in network.named_parameters() if name.endswith("weight")}
    assert shapes == {layer: (out, c_in, k, k) for layer, k, c_in, out in CONVOLUTIONS}


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_one_map_for_each_stage_and_joint_at_an_eighth_of_the_input(stages):
    network = Pose2DNet(width=1 / 32, stages=stages, input_size=32)
    maps = network(torch.rand(2, 3, 24, 24))
    assert [tuple(m.shape) for m in maps] == [(2, 21, 4, 4)] * stages
    assert network.heatmap_size == 4


def test_crops_are_resized_to_the_input():
    """A smooth crop has nearly the same maps at any size."""
    network = Pose2DNet(width=1 / 16, input_size=64)
    ramp = torch.linspace(0, 1, 65)[:-1]
    large = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.full((64, 64), 0.3)])[None]
    small = torch.nn.functional.avg_pool2d(large, 2)
    with torch.no_grad():
        expected, got = network(large)[-1], network(small)[-1]
        shrunk = network(torch.nn.functional.interpolate(large, scale_factor=2, mode="bilinear"))[-1]
    spread = expected.std()
    assert (got - expected).abs().max() < 0.1 * spread
    assert (shrunk - expected).abs().max() < 0.1 * spread


def test_the_first_weights_are_xaviers():
    network = Pose2DNet(width=1 / 4)
    weight, bias = network.trunk.conv4_1.weight, network.trunk.conv4_1.bias
    assert weight.abs().max().item() == pytest.approx((6 / (9 * (64 + 128))) ** 0.5, rel=0.01)
    assert bias.tolist() == [pytest.approx(1e-4)] * 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width: expected a number above 0"),
        ({"stages": 0}, "stages: expected a whole number >= 1, got 0"),
        ({"input_size": 100}, "input_size: expected a positive multiple of 8, got 100"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Pose2DNet(**options)


def test_bad_images_are_refused_by_name():
    network = Pose2DNet(**TINY)
    with pytest.raises(ValueError, match=r"images: expected square crops \(B, 3, S, S\), got \(1, 3, 16, 24\)"):
        network(torch.zeros(1, 3, 16, 24))
    with pytest.raises(TypeError, match=r"images: .* got a tensor of torch.uint8"):
        network(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


# --- The authors' weights ---


def python2_pickle(arrays: dict[str, np.ndarray], core: str = "numpy.core") -> bytes:
    """Protocol 2 as Python 2 and NumPy write a dictionary of float32 arrays, opcode by opcode."""

    def string(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    out = b"\x80\x02}("
    for name, array in arrays.items():
        shape = b"(" + b"".join(integer(n) for n in array.shape) + b"t"
        # dtype('f4', 0, 1), then its state (3, '<', None, None, None, -1, -1, 0)
        dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNN" + 2 * integer(-1) + b"K\x00tb"
        rebuilt = f"c{core}.multiarray\n_reconstruct\n".encode() + b"(cnumpy\nndarray\n(K\x00tU\x01btR"
        out += string(name.encode()) + rebuilt
        out += b"(K\x01" + shape + dtype + b"\x89" + string(array.astype("<f4").tobytes()) + b"tb"
    return out + b"u."


def with_lifting_networks(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As in ``posenet3d-rhd-stb.pickle``."""
    fc = np.zeros((4, 3), np.float32)
    return {"PosePrior/fc_xyz/weights": fc, **arrays, "ViewpointNet/fc_vp_ux/biases": np.zeros(1, np.float32)}


WRITERS = {
    "python 2": python2_pickle,
    "python 2, numpy 2": lambda arrays: python2_pickle(arrays, "numpy._core"),
    "python 3, protocol 2": lambda arrays: pickle.dumps(arrays, 2),
    "python 3, protocol 5": lambda arrays: pickle.dumps(arrays, 5),
    "with :0": lambda arrays: python2_pickle({f"{name}:0": array for name, array in arrays.items()}),
    "with the lifting networks": lambda arrays: python2_pickle(with_lifting_networks(arrays)),
}


def write(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "posenet.pickle"
    path.write_bytes(python2_pickle(arrays))
    return path


def test_the_pickle_written_by_hand_is_one():
    arrays = tiny_arrays()
    read = pickle.loads(python2_pickle(arrays), encoding="latin1")
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("writer", WRITERS)
def test_converted_weights_give_the_authors_maps_in_std_order(tmp_path, writer):
    """Every stage; in NumPy joints stay in RHD order throughout, so the permuted inputs of later stages count too."""
    arrays = tiny_arrays()
    (tmp_path / "posenet.pickle").write_bytes(WRITERS[writer](arrays))
    network = Pose2DNet(**TINY)
    network.load_zb_weights(tmp_path / "posenet.pickle")
    image = np.random.default_rng(1).integers(0, 256, (16, 16, 3))
    expected = [maps[..., RHD_FROM_STD] for maps in posenet_in_numpy(arrays, image)]
    with torch.no_grad():
        got = network.double()(torch.from_numpy(image / 255).permute(2, 0, 1)[None])
    for stage in range(3):
        np.testing.assert_allclose(got[stage][0].permute(1, 2, 0), expected[stage], rtol=1e-6, atol=1e-7)
    assert np.std(expected[-1]) > 0.05


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.pop("PoseNet2D/conv6_3/biases"), "missing: conv6_3/biases"),
        (lambda a: a.update({"PoseNet2D/conv9_1/weights": np.zeros(1)}), "unexpected: conv9_1/weights"),
        (lambda a: a.update({"HandSegNet/conv1_1/weights": np.zeros(1)}), "unexpected: HandSegNet/conv1_1/weights"),
        (lambda a: a.update({"PoseNet2D/conv1_1/weights:0": np.zeros(1)}), "conv1_1/weights twice"),
        (
            lambda a: a.update({"PoseNet2D/conv6_1/weights": np.zeros((7, 7, 24, 4))}),
            r"wrong shape: conv6_1/weights \(7, 7, 24, 4\) instead of \(7, 7, 25, 4\)",
        ),
        (lambda a: a["PoseNet2D/conv4_7/biases"].fill(np.inf), "not finite: conv4_7/biases"),
    ],
    ids=["missing", "unknown layer", "unknown network", "twice", "shape", "inf"],
)
def test_other_files_are_refused_and_change_nothing(tmp_path, spoil, message):
    arrays = tiny_arrays()
    spoil(arrays)
    network = Pose2DNet(**TINY)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        network.load_zb_weights(write(tmp_path, arrays))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_numbers_must_be_floating_point(tmp_path):
    arrays = tiny_arrays()
    arrays["PoseNet2D/conv1_1/biases"] = np.zeros(2, np.int64)
    path = tmp_path / "posenet.pickle"
    path.write_bytes(pickle.dumps(arrays, 2))
    with pytest.raises(ValueError, match="no floating-point numbers: conv1_1/biases"):
        Pose2DNet(**TINY).load_zb_weights(path)


def test_no_code_in_a_file_is_run(tmp_path):
    path = tmp_path / "harmful.pickle"
    path.write_bytes(b"\x80\x02cos\nsystem\nU\x04true\x85R.")
    with pytest.raises(UnsafePickleError, match=r"harmful.pickle: refused: the pickle asks for os.system"):
        Pose2DNet(**TINY).load_zb_weights(path)


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "posenet.pickle"
    network = Pose2DNet(**TINY)
    with pytest.raises(FileNotFoundError, match=r"posenet.pickle: no such file of PoseNet weights"):
        network.load_zb_weights(path)
    for content in (b"", python2_pickle(tiny_arrays())[:-200], pickle.dumps([1, 2], 2), pickle.dumps({1: 2}, 2)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"posenet.pickle: "):
            network.load_zb_weights(path)
    path.write_bytes(pickle.dumps({"PoseNet2D/conv1_1/weights": "text"}, 2))
    with pytest.raises(ValueError, match=r"PoseNet2D/conv1_1/weights: holds a str, not an array"):
        network.load_zb_weights(path)
