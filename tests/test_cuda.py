"""What must hold for every op on a GPU: the CPU's answer, streams, graphs, a second device; and whole jobs.

Each op's own tests say more about it. `make gpu-check` runs all of them, and these under compute-sanitizer as well.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_fit import known_fit
from op_calls import NAMES, DrawnHand, hands, op_calls
from torch import Tensor

import dhpe_fast
from dhpe_fast.config import load_config
from dhpe_fast.data.demo import load_demo
from dhpe_fast.train import read_log, train

pytestmark = pytest.mark.needs_cuda
SOLVER_TOLERANCE_M = {"black": 1e-4, "demo": 1e-3}
"""float32 meshes on two devices, and a solver that stops by a tolerance; with a camera the distance follows, too."""


def value_and_gradient(function, leaf: Tensor) -> tuple[Tensor, Tensor]:
    leaf = leaf.detach().requires_grad_()
    value = function(leaf)
    weights = torch.linspace(-1, 1, value.numel(), dtype=value.dtype, device=value.device).reshape(value.shape)
    (gradient,) = torch.autograd.grad((value * weights).sum(), leaf)
    return value.detach(), gradient


def assert_same(found: Tensor, expected: Tensor) -> None:
    tolerance = 1e-4 if expected.dtype == torch.float32 else 1e-9
    scale = expected.abs().max().clamp_min(1e-12)
    torch.testing.assert_close(found.cpu() / scale.cpu(), expected.cpu() / scale.cpu(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_cpu(dtype, name):
    on_cpu, on_gpu = op_calls(dtype)[name], op_calls(dtype, "cuda")[name]
    expected = value_and_gradient(on_cpu.function, on_cpu.leaf)
    found = value_and_gradient(on_gpu.function, on_gpu.leaf)
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_repeats_itself_when_asked(name):
    call = op_calls(torch.float32, "cuda")[name]
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (value_and_gradient(call.function, call.leaf) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_follows_the_stream_it_is_called_on(name):
    """Work that is queued before and behind it on two streams at once, with no wait between queueing and reading."""
    call = op_calls(torch.float32, "cuda")[name]
    expected = value_and_gradient(call.function, call.leaf)
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    torch.cuda.synchronize()
    for stream in streams:
        with torch.cuda.stream(stream):
            late = torch.full_like(call.leaf, torch.nan)
            torch.cuda._sleep(20_000_000)  # the leaf is still NaN for some milliseconds
            late.copy_(call.leaf)
            results.append([x.clone() for x in value_and_gradient(call.function, late)])
    torch.cuda.synchronize()
    for found in results:
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_replays_it(name):
    call = op_calls(torch.float32, "cuda")[name]
    leaf = call.leaf.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as capture wants it
        value_and_gradient(call.function, leaf)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_gradient(call.function, leaf)
    leaf.mul_(0.9)
    graph.replay()
    for found, expected in zip(captured, value_and_gradient(call.function, leaf), strict=True):
        assert_same(found, expected)


@pytest.mark.slow
def test_inductor_gives_the_eager_values_and_gradients():
    torch._dynamo.reset()
    module = DrawnHand("edge").cuda()
    compiled = torch.compile(module, fullgraph=True)

    def joined(function):
        def call(h: Tensor) -> Tensor:
            mask, joints_m = function(h)
            return torch.cat([mask.flatten(1), joints_m.flatten(1)], dim=1)

        return call

    h = hands(2).cuda()
    expected = value_and_gradient(joined(module), h)
    for a, b in zip(value_and_gradient(joined(compiled), h), expected, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_the_device_of_its_arguments(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    call, other = op_calls(torch.float32, "cuda:0")[name], op_calls(torch.float32, "cuda:1")[name]
    expected, found = value_and_gradient(call.function, call.leaf), value_and_gradient(other.function, other.leaf)
    assert all(t.device == torch.device("cuda:1") for t in found)
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("picture", ["black", "demo"])
def test_a_fit_is_the_cpus(picture):
    if picture == "demo":
        demo = load_demo()
        given = {"image": demo.image, "keypoints": demo.keypoints2d_px, "camera": demo.camera}
    else:
        given = {"image": np.zeros((240, 320, 3), np.uint8), "keypoints": known_fit().joints2d_px}
    on_cpu, on_gpu = (dhpe_fast.fit(**given, hand="right", device=device) for device in ("cpu", "cuda"))
    assert on_gpu.verts_m.is_cuda
    torch.testing.assert_close(on_gpu.joints_m.cpu(), on_cpu.joints_m, rtol=0, atol=SOLVER_TOLERANCE_M[picture])
    assert on_gpu.residuals["joints2d_px"] == pytest.approx(on_cpu.residuals["joints2d_px"], abs=0.05)


@pytest.mark.slow
def test_250_steps_of_training_learn_something(tmp_path):
    places = [f"data.synthesize.root={tmp_path / 'data'}"]
    for part, split in {"train": "train", "validation": "test"}.items():
        places.append(f"data.{part}=[{{format: rhd, root: {tmp_path / 'data'}, split: {split}}}]")
    config = load_config("tiny", [*places, "optimisation.epochs=4"])
    train(config, tmp_path / "run", device="cuda")
    lines = read_log(tmp_path / "run", "validation")
    assert lines[-1]["epe_mm"] < lines[0]["epe_mm"]
