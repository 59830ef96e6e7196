"""Posing hands: the skinning op and what stands on it, beside its twin, manopth and smplx.

    pytest bench/bench_lbs.py --benchmark-only
    OMP_NUM_THREADS=2 DHPE_MANOPTH=path/to/manopth DHPE_SMPLX=path/to/smplx python bench/bench_lbs.py

The job is the same for all: axis-angles of 16 joints and ten betas in, 778 vertices and the joints out, float32,
a flat mean, no pose components. `forward` runs without gradients, `backward` is a forward and the gradients of pose and
betas for a given gradient of vertices and joints. Peers that are not at hand are left out; ratios are to those of the
same run. The table is printed and goes to bench/results/lbs.json.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from common import run_facts, write_result
from torch import Tensor

from dhpe_fast.compat import smplx as compat_smplx
from dhpe_fast.compat.manopth import ManoLayer
from dhpe_fast.hand import HandModel
from dhpe_fast.ops import lbs
from dhpe_fast.reference import lbs as lbs_twin

BATCHES = (1, 32, 1024)
PEERS = ("manopth", "smplx")
DEVICES = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))

Pose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Full pose (B, 48) and betas (B, 10) to vertices and joints."""


def _ops(device: str) -> Pose:
    basis = HandModel.default().to(device).basis
    return lambda pose, betas: lbs(pose.view(-1, 16, 3), betas, basis)


def _twin(device: str) -> Pose:
    basis = HandModel.default().to(device).basis
    return lambda pose, betas: lbs_twin(pose.view(-1, 16, 3), betas, basis)


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


@dataclass(frozen=True)
class Row:
    """One timing."""

    device: str
    direction: str
    batch: int
    implementation: str
    median_ms: float
    iqr_ms: float
    rounds: int


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    """Collects the timings of the run; prints them and writes the result file at its end."""
    collected: list[Row] = []
    yield collected
    if collected:
        table = with_ratios(collected)
        print(f"\n{as_text(table)}")
        print(f"-> {write_result('lbs', {'facts': run_facts(collected[-1].device), 'rows': table})}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.benchmark(max_time=1.0, min_rounds=5, warmup=True, warmup_iterations=5)
def test_pose_hands(benchmark: Any, rows: list[Row], device: str, direction: str, batch: int, implementation: str):
    pose_hand = IMPLEMENTATIONS[implementation](device)
    generator = torch.Generator().manual_seed(0)
    pose = (0.3 * torch.randn(batch, 48, generator=generator)).to(device)
    betas = torch.randn(batch, 10, generator=generator).to(device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward() -> None:
        with torch.no_grad():
            pose_hand(pose, betas)
        wait()

    outputs = pose_hand(pose, betas)
    upstream = [torch.randn(output.shape, generator=generator).to(device) for output in outputs]

    def backward() -> None:
        torch.autograd.grad(pose_hand(pose, betas), (pose, betas), upstream)
        wait()

    if direction == "backward":
        pose.requires_grad_(), betas.requires_grad_()
    benchmark.group = f"{device} {direction} B={batch}"
    benchmark(forward if direction == "forward" else backward)
    if benchmark.stats is not None:  # None under --benchmark-disable
        stats = benchmark.stats.stats
        rows.append(Row(device, direction, batch, implementation, 1e3 * stats.median, 1e3 * stats.iqr, stats.rounds))


def with_ratios(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as dictionaries, with how many times faster each is than the peers of the same job."""
    jobs = {(row.device, row.direction, row.batch, row.implementation): row.median_ms for row in rows}
    table = []
    for row in rows:
        peers_ms = {peer: jobs.get((row.device, row.direction, row.batch, peer)) for peer in PEERS}
        ratios = {f"times_{peer}": ms / row.median_ms for peer, ms in peers_ms.items() if ms is not None}
        table.append(vars(row) | ratios)
    return table


def as_text(table: list[dict[str, Any]]) -> str:
    """One line for each row: job, implementation, milliseconds, and how many times faster than each peer."""
    lines = [f"{'job':24}{'implementation':16}{'median ms':>11}{'IQR ms':>10}" + "".join(f"{p:>10}" for p in PEERS)]
    for row in table:
        job = f"{row['device']} {row['direction']} B={row['batch']}"
        ratios = [row.get(f"times_{peer}") for peer in PEERS]
        shown = "".join(f"{'-' if ratio is None else f'{ratio:.2f}x':>10}" for ratio in ratios)
        lines.append(f"{job:24}{row['implementation']:16}{row['median_ms']:11.4f}{row['iqr_ms']:10.4f}{shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(
        pytest.main([__file__, "--benchmark-only", "--benchmark-columns=median,iqr,rounds", "-q", "-s", *sys.argv[1:]])
    )
