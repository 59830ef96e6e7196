"""Posing hands: the skinning op and what stands on it, beside its twin, manopth and smplx.

    pytest bench/bench_lbs.py --benchmark-only
    DHPE_MANOPTH=path/to/manopth DHPE_SMPLX=path/to/smplx pytest bench/bench_lbs.py --benchmark-only

The job is the same for all: axis-angles of 16 joints and ten betas in, 778 vertices and the joints out, float32,
a flat mean, no pose components. `forward` runs without gradients, `backward` is a forward and the gradients of pose and
betas for a given gradient of vertices and joints. On a GPU, the twin is also timed as `torch.compile` makes it. Peers
that are not at hand are left out; ratios are to those of the same run. The table is printed and goes to
bench/results/lbs.json.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import DEVICE
from timings import Case, Timings
from torch import Tensor

from dhpe_fast.compat import smplx as compat_smplx
from dhpe_fast.compat.manopth import ManoLayer
from dhpe_fast.hand import HandModel
from dhpe_fast.ops import lbs
from dhpe_fast.reference import lbs as lbs_twin

RESULT = "lbs"
BATCHES = (1, 32, 1024) if DEVICE == "cpu" else (1, 32, 256, 1024, 8192, 65536)
DIRECTIONS = ("forward", "backward")
PEERS = ("manopth", "smplx")

Pose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Full pose (B, 48) and betas (B, 10) to vertices and joints."""


def _ops(device: str) -> Pose:
    basis = HandModel.default().to(device).basis
    return lambda pose, betas: lbs(pose.view(-1, 16, 3), betas, basis)


def _twin(device: str) -> Pose:
    basis = HandModel.default().to(device).basis
    return lambda pose, betas: lbs_twin(pose.view(-1, 16, 3), betas, basis)


def _compiled_twin(device: str, **options: Any) -> Pose:
    basis = HandModel.default().to(device).basis
    torch._dynamo.reset()  # every batch is compiled for itself, and only so many of one function are kept
    compiled = torch.compile(lbs_twin, dynamic=False, **options)
    return lambda pose, betas: compiled(pose.view(-1, 16, 3), betas, basis)


def _hand_model(device: str) -> Pose:
    hand = HandModel.default().to(device)

    def pose_hand(pose: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        mesh = hand(pose[:, 3:], betas, pose[:, :3])
        return mesh.verts_m, mesh.joints_m

    return pose_hand


def _manopth(layer: torch.nn.Module) -> Pose:
    return lambda pose, betas: layer(pose, betas)


def _smplx(model: torch.nn.Module) -> Pose:
    def pose_hand(pose: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        output = model(betas=betas, global_orient=pose[:, :3], hand_pose=pose[:, 3:])
        return output.vertices, output.joints

    return pose_hand


MANOPTH_OPTIONS = {"use_pca": False, "flat_hand_mean": True}
# Without a translation: the lighter job.
SMPLX_OPTIONS = {"use_pca": False, "flat_hand_mean": True, "create_transl": False}


def _manopth_itself(device: str) -> Pose:
    import peers  # in tests/, which only pytest finds

    arrays = HandModel.default(dtype=torch.float64).arrays()
    return _manopth(peers.manopth_layer(arrays, **MANOPTH_OPTIONS).to(device))


def _smplx_itself(device: str) -> Pose:
    import peers

    arrays = HandModel.default(dtype=torch.float64).arrays()
    with contextlib.redirect_stdout(io.StringIO()):
        return _smplx(peers.smplx_model(arrays, **SMPLX_OPTIONS).to(device))


IMPLEMENTATIONS: dict[str, Callable[[str], Pose]] = {
    "ops.lbs": _ops,
    "HandModel": _hand_model,
    "compat.manopth": lambda device: _manopth(ManoLayer(mano_root=None, **MANOPTH_OPTIONS).to(device)),
    "compat.smplx": lambda device: _smplx(compat_smplx.MANO(None, **SMPLX_OPTIONS).to(device)),
    "reference.lbs": _twin,
    "manopth": _manopth_itself,
    "smplx": _smplx_itself,
}
if DEVICE == "cuda":
    IMPLEMENTATIONS["reference.lbs, torch.compile"] = _compiled_twin


OWN_CASES = len(BATCHES) * len(DIRECTIONS) * (len(IMPLEMENTATIONS) - len(PEERS))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pose_hands(benchmark: Any, timings: Timings, direction: str, batch: int, implementation: str):
    case = Case(DEVICE, "lbs", direction, batch, implementation)
    with timings.within_memory(case):
        timings.measure(benchmark, case, posing_call(IMPLEMENTATIONS[implementation](DEVICE), DEVICE, direction, batch))


def posing_call(pose_hand: Pose, device: str, direction: str, batch: int) -> Callable[[], Any]:
    """The call that is timed: random poses, without gradients or forth and back."""
    generator = torch.Generator().manual_seed(0)
    pose = (0.3 * torch.randn(batch, 48, generator=generator)).to(device)
    betas = torch.randn(batch, 10, generator=generator).to(device)
    if direction == "forward":
        return torch.no_grad()(lambda: pose_hand(pose, betas))
    pose.requires_grad_(), betas.requires_grad_()
    with torch.no_grad():
        outputs = pose_hand(pose, betas)
    upstream = [torch.randn(output.shape, generator=generator).to(device) for output in outputs]
    return lambda: torch.autograd.grad(pose_hand(pose, betas), (pose, betas), upstream)


if __name__ == "__main__":
    columns = "--benchmark-columns=median,iqr,rounds"
    sys.exit(pytest.main([__file__, "--benchmark-only", columns, "-q", *sys.argv[1:]]))
