"""Weights of the package: written small, read lazily and once, and never taken when they are not what was shipped."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dhpe_fast import pretrained
from dhpe_fast.nets import DHPE
from dhpe_fast.pretrained import MANIFEST, WeightsError, WeightsFolder, packed, unpacked

AGAIN = r"write the network with `dhpe-fast export` again"
TINY = {"depth": 18, "image_size": 32, "pose2d_width": 0.0625, "pose2d_stages": 2, "pose2d_input_size": 64}


@pytest.fixture(scope="module")
def network() -> DHPE:
    """Random weights, with batch statistics as a training leaves them: of many magnitudes."""
    torch.manual_seed(0)
    network = DHPE(**TINY)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.copy_(10 ** torch.linspace(-7, 2, len(layer.running_var)))
            layer.weight.data.copy_(layer.running_var.sqrt())
    return network.eval()


@pytest.fixture(scope="module")
def data(network) -> bytes:
    return packed(network, network.spec())


def write(folder: Path, data: bytes, name: str = "dhpe", **facts) -> WeightsFolder:
    """A folder as the package's, with one network."""
    (folder / f"{name}.pt").write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **facts}
    (folder / MANIFEST).write_text(json.dumps({f"{name}.pt": entry}))
    return WeightsFolder(folder)


# --- The file --------------------------------------------------------------------------------------------------------


def test_half_precision_halves_the_file_and_hardly_moves_the_output(network, data):
    n_bytes = sum(4 * tensor.numel() for tensor in network.state_dict().values())
    assert len(data) < 0.51 * n_bytes
    again, images = unpacked(DHPE.from_spec, data), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        evidence = network.estimate_evidence(images)
        # Of the same evidence: a rounding may turn which of two equal cells is the largest.
        outputs = [
            (one.features(images), one.pose2d(images)[-1], one.project(one.estimate_mesh(evidence).h).verts)
            for one in (network, again)
        ]
    for expected, found in zip(*outputs, strict=True):
        assert 0 < float((found - expected).abs().max() / expected.abs().max()) < 2e-3


def test_a_network_read_is_float32_frozen_and_in_evaluation_mode(data):
    network = unpacked(DHPE.from_spec, data)
    assert not network.training
    assert all(parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in network.parameters())


def linear(spec) -> torch.nn.Linear:
    return torch.nn.Linear(**spec)


@pytest.mark.parametrize(
    ("scale", "kept"),
    [(1.0, torch.float16), (1e-3, torch.float16), (1e6, torch.float32), (1e-7, torch.float32), (0.0, torch.float16)],
)
def test_matrices_that_half_precision_cannot_hold_stay_float32(scale, kept):
    spec = {"in_features": 8, "out_features": 8}
    layer = linear(spec).requires_grad_(False)
    layer.weight.data.mul_(scale)
    layer.bias.data.fill_(1e-9)
    data = packed(layer, spec)
    again = unpacked(linear, data)
    error = (again.weight - layer.weight).abs().max()
    assert float(error) <= 2**-11 * float(layer.weight.abs().max())
    torch.testing.assert_close(again.bias, layer.bias, rtol=0, atol=0)
    content = torch.load(io.BytesIO(data), weights_only=True)
    assert content["state"]["weight"].dtype == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no network"),
        ({"spec": {}, "state": [torch.zeros(3)]}, "holds no network"),
        ({"spec": {"in_features": 2, "out_features": 3}, "state": {"bias": 1.0, "weight": 2.0}}, "not of tensors"),
        ({"spec": {"in_features": 2, "out_features": 3}, "state": {0: torch.zeros(3)}}, "not of tensors"),
        ({"spec": {"out_features": 3}, "state": {}}, "is of another version, its spec is not taken"),
        ({"spec": {"in_features": 2, "out_features": 3}, "state": {"bias": torch.zeros(3)}}, r"first \['weight'\]"),
        (
            {
                "spec": {"in_features": 2, "out_features": 3},
                "state": {"bias": torch.zeros(3), "weight": torch.ones(3, 9)},
            },
            r"1 tensors differ, the first \['weight'\]",
        ),
    ],
)
def test_what_is_no_network_of_this_version_is_refused(content, message):
    stream = io.BytesIO()
    torch.save(content, stream)
    with pytest.raises(ValueError, match=message):
        unpacked(linear, stream.getvalue())


# --- The folder ------------------------------------------------------------------------------------------------------


def test_a_network_is_read_once_for_all_threads(tmp_path, data, monkeypatch):
    folder = write(tmp_path, data)
    readers, together = [], threading.Barrier(4, timeout=10)
    monkeypatch.setattr(pretrained, "unpacked", lambda *given: readers.append(1) or unpacked(*given))

    def ask(_):
        together.wait()
        return folder.network("dhpe")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len(readers) == 1
    assert all(one is found[0] for one in found)


def test_reading_leaves_the_callers_torch_as_it_was_and_is_not_moved_by_it(tmp_path, network, data):
    folder = write(tmp_path, data)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"):
            found = folder.network("dhpe")
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    weight = found.pose2d.trunk[0].weight
    assert (weight.dtype, weight.device.type, weight.is_inference()) == (torch.float32, "cpu", False)
    torch.testing.assert_close(weight, network.pose2d.trunk[0].weight, rtol=1e-3, atol=1e-5)


def test_damage_is_named_with_the_remedy(tmp_path, data):
    folder, file = write(tmp_path, data), tmp_path / "dhpe.pt"
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    for damaged, what in ((bytes(changed), "its SHA-256 is"), (data[:-9], f"bytes instead of {len(data)}")):
        file.write_bytes(damaged)
        with pytest.raises(WeightsError, match=rf"dhpe\.pt: .*{what}.*{AGAIN}"):
            folder.network("dhpe")
        assert [line.ok for line in folder.describe() if line.name == "dhpe"] == [False]
    file.unlink()
    with pytest.raises(WeightsError, match=rf"dhpe\.pt: cannot be read \(No such file.*{AGAIN}"):
        folder.network("dhpe")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("[]", "is no manifest"),
        ('{"dhpe.pt": 3}', "is no manifest"),
        ("{}", "has no checksum of it"),
        ('{"dhpe.pt": {"bytes": 3}}', "has no checksum of it"),
    ],
)
def test_a_damaged_manifest_is_named_with_the_remedy(tmp_path, data, text, message):
    folder = write(tmp_path, data)
    (tmp_path / MANIFEST).unlink() if text is None else (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(WeightsError, match=rf"{message}.*{AGAIN}"):
        folder.network("dhpe")
    (line,) = (line for line in folder.describe() if line.name == "dhpe")
    assert not line.ok


def test_weights_of_another_version_are_named_although_their_checksum_is_right(tmp_path):
    folder = write(tmp_path, packed(torch.nn.Linear(2, 3), {"in_features": 2}))
    with pytest.raises(
        WeightsError,
        match=rf"dhpe\.pt: is of another version, its spec is not taken \(DHPE: unknown option.*{AGAIN}",
    ):
        folder.network("dhpe")


def test_a_folder_describes_its_networks(tmp_path, data):
    folder = write(tmp_path, data, accuracy={"2D error, % of the box": 4.126, "hands": 200, "b": 1, "c": 1})
    lines = {line.name: line for line in folder.describe()}
    assert lines["dhpe"].ok
    assert lines["dhpe"].text == f"{len(data) / 1e6:.1f} MB; 2D error, % of the box: 4.13; hands: 200; b: 1"
    assert (lines["lifter"].ok, lines["lifter"].text) == (True, "not part of this build")
    assert (folder.has("dhpe"), folder.has("lifter")) == (True, False)


def test_a_folder_is_named_by_a_path_or_a_string(tmp_path, data):
    write(tmp_path, data)
    assert not WeightsFolder(str(tmp_path)).network("dhpe").training
    with pytest.raises(WeightsError, match=rf"lifter\.pt: .*{AGAIN}"):
        WeightsFolder(str(tmp_path)).network("lifter")


def test_a_state_of_no_tensors_is_named_with_the_remedy(tmp_path):
    for state in ({"weight": 1.0}, 3, None):
        stream = io.BytesIO()
        torch.save({"spec": TINY, "state": state}, stream)
        with pytest.raises(WeightsError, match=rf"dhpe\.pt: holds no network.*{AGAIN}"):
            write(tmp_path, stream.getvalue()).network("dhpe")


def test_a_network_is_promised_where_the_manifest_names_it(tmp_path, data):
    folder = write(tmp_path, data)
    assert (folder.promises("dhpe"), folder.promises("lifter")) == (True, False)
    (tmp_path / "dhpe.pt").unlink()
    assert folder.promises("dhpe")  # and asking for it says that it is missing
    (tmp_path / MANIFEST).write_text("{")
    assert folder.promises("lifter")  # nobody knows: asking for it says what is wrong
    (tmp_path / MANIFEST).unlink()
    assert not folder.promises("lifter")


def test_an_unknown_name_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match="name: expected one of dhpe, lifter, locator, got 'hand'"):
        write(tmp_path, data, "hand").network("hand")


# --- What ships ------------------------------------------------------------------------------------------------------


def test_what_ships_is_mended_as_it_was_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained.shipped, "folder", tmp_path)
    with pytest.raises(WeightsError, match=r"run `pip install --force-reinstall --no-deps \.` in a checkout"):
        pretrained.shipped.manifest()


def test_what_ships_is_whole_and_small():
    if not (pretrained.shipped.folder / MANIFEST).is_file():
        pytest.skip("this build has no weights")
    names = {Path(file).stem for file in pretrained.shipped.manifest()}
    assert names
    for name in names:
        assert not pretrained.shipped.network(name).training
    assert all(line.ok for line in pretrained.describe() if line.name in names)
    assert sum(file.stat().st_size for file in pretrained.shipped.folder.iterdir()) <= 40e6
