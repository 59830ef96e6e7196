"""How far the ops are from what the processor can do.

    python bench/roofline.py

The peaks are measured (peaks.py says how), operations and bytes are counted on paper (work_counts.py says what counts).
The floor of a call is the larger of two times: its operations at the peak rate, and its bytes at the rate of the
nearest cache that holds them, or of memory. Printed is the share of that floor in the measured time, for one thread
and for two; beside it, what the same call takes without its load, skinning 16 vertices instead of 778 or drawing one
face: checks, allocations, autograd, kinematics.

The last table is about a single hand, whose 1.4 MB of float32 blend shapes do not fit the L2 cache of most cores. The
number of pose directions grows (with the number of joints), and the time of the vertices with it: what a further
direction takes says at which rate the basis is read. With two threads each reads one half.
All goes to bench/results/roofline.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import work_counts
from bench_raster import IMAGE_SIZE, MODES, sigma_px, timed_call, work_of
from common import noise_warning, run_facts, summary, time_ms, write_result
from peaks import Caches, Peaks, caches, measure_peaks, torch_threads
from scene import Scene, hands_in_view
from timings import Case
from work_counts import Work

from dhpe_fast.hand import HandModel
from dhpe_fast.ops import lbs
from dhpe_fast.reference import LbsBasis

BATCHES = (1, 32, 1024)
THREADS = (1, 2)
JOINTS = (2, 4, 8, 12, 16, 24, 32, 48, 64)
FEW_VERTS = 16
SECONDS = 0.3

Row = dict[str, Any]


def floor(work: Work, peak: Peaks, sizes: Caches) -> tuple[float, str]:
    """Milliseconds that the call takes at least, and what limits it."""
    arithmetic = work.operations / (peak.fma_gflop_s * 1e6) * (1 if work.fused else 2)
    own = work.bytes_of_each_thread
    in_a_core = own + (work.bytes_moved - own) / peak.threads
    if in_a_core <= sizes.l2:
        rate, place = peak.read_l2_gb_s, "L2"
    elif work.bytes_moved <= sizes.l3:
        rate, place = peak.read_l3_gb_s, "L3"
    else:
        rate, place = peak.copy_memory_gb_s, "memory"
    moving = work.bytes_moved / (rate * 1e6)
    return (arithmetic, "arithmetic") if arithmetic > moving else (moving, f"bytes, {place}")


def lbs_rows(peak: Peaks, sizes: Caches) -> list[Row]:
    """Skinning, one row for each direction and batch."""
    basis = HandModel.default().basis
    rows = []
    for direction, count in (
        ("forward", work_counts.lbs_forward),
        ("backward", work_counts.lbs_forward_and_backward),
    ):
        for batch in BATCHES:
            call = _median_ms(lbs_call(with_verts(basis, FEW_VERTS), direction, batch))
            row = {"job": "lbs", "direction": direction, "batch": batch, "call_ms": call}
            rows.append(row | _compare(count(basis, batch), peak, sizes, lbs_call(basis, direction, batch)))
    return rows


def raster_rows(peak: Peaks, sizes: Caches) -> list[Row]:
    """Rasterization and silhouettes of one hand."""
    scene = hands_in_view(1, IMAGE_SIZE)
    one_face = replace(scene, faces=scene.faces[:1].contiguous())
    rows = []
    for direction, count in (
        ("forward", work_counts.raster_forward),
        ("backward", work_counts.raster_forward_and_backward),
    ):
        for job in ("rasterize", *MODES):
            call = _median_ms(_raster_call(one_face, job, direction))
            row = {"job": job, "direction": direction, "batch": 1, "call_ms": call}
            work = count(job, scene, sigma_px(IMAGE_SIZE))
            rows.append(row | _compare(work, peak, sizes, _raster_call(scene, job, direction)))
    return rows


def direction_rows(threads: int) -> list[Row]:
    """One hand, more and more pose directions: the time of its vertices, apart from that of the call and the joints."""
    rows = []
    with torch_threads(threads):
        for joints in JOINTS:
            basis = with_joints(HandModel.default().basis, joints)
            whole, call = (_median_ms(lbs_call(one, "forward", 1)) for one in (basis, with_verts(basis, FEW_VERTS)))
            basis_mb = sum(part.numel() * part.element_size() for part in basis.tensors) / 1e6
            rows.append(
                {
                    "threads": threads, "joints": joints, "pose_directions": len(basis.posedirs),
                    "basis_mb": basis_mb, "call_us": 1000 * call, "verts_us": 1000 * (whole - call),
                }
            )  # fmt: skip
    return rows


def reading_rates(rows: list[Row], l2_mb: float) -> Row:
    """Of one thread count: microseconds without directions, and GB/s of further ones, within L2 and beyond it.

    Least squares over the bases which a thread's share of fits L2, and over those which are a quarter larger or more.
    """
    threads = rows[0]["threads"]
    result: Row = {"threads": threads}
    for name, chosen in (
        ("within_l2", [row for row in rows if row["basis_mb"] / threads <= l2_mb]),
        ("beyond_l2", [row for row in rows if row["basis_mb"] / threads >= 1.25 * l2_mb]),
    ):
        if len(chosen) < 2:
            continue
        slope, start = np.polyfit([row["basis_mb"] for row in chosen], [row["verts_us"] for row in chosen], 1)
        result[f"{name}_gb_s"] = 1000 / slope
        if name == "within_l2":
            result["without_directions_us"] = start
    return result


def with_verts(basis: LbsBasis, n_verts: int) -> LbsBasis:
    """The first vertices of a hand."""
    return replace(
        basis,
        v_template=basis.v_template[:n_verts].contiguous(),
        shapedirs=basis.shapedirs[:, :n_verts].contiguous(),
        posedirs=basis.posedirs[:, :n_verts].contiguous(),
        skin_joints=basis.skin_joints[:n_verts].contiguous(),
        skin_weights=basis.skin_weights[:n_verts].contiguous(),
    )


def with_joints(basis: LbsBasis, n_joints: int) -> LbsBasis:
    """The vertices of a hand on another skeleton: chains of three joints that start from the root."""
    generator = torch.Generator().manual_seed(0)
    parents = torch.tensor([0 if j % 3 == 1 else j - 1 for j in range(n_joints)], dtype=torch.int32)
    n_verts, n_shape = len(basis.v_template), len(basis.shapedirs)
    return replace(
        basis,
        posedirs=1e-3 * torch.randn(9 * (n_joints - 1), n_verts, 3, generator=generator),
        joint_template=0.1 * torch.randn(n_joints, 3, generator=generator),
        joint_shapedirs=0.01 * torch.randn(n_shape, n_joints, 3, generator=generator),
        skin_joints=basis.skin_joints % n_joints,
        parents=parents,
    )


def lbs_call(basis: LbsBasis, direction: str, batch: int) -> Callable[[], Any]:
    """Skinning of random poses, without gradients or forth and back."""
    generator = torch.Generator().manual_seed(0)
    pose = 0.3 * torch.randn(batch, len(basis.parents), 3, generator=generator)
    betas = torch.randn(batch, len(basis.shapedirs), generator=generator)
    if direction == "forward":
        return torch.no_grad()(lambda: lbs(pose, betas, basis))
    pose.requires_grad_(), betas.requires_grad_()
    upstream = [torch.randn(output.shape, generator=generator) for output in lbs(pose, betas, basis)]
    return lambda: torch.autograd.grad(lbs(pose, betas, basis), (pose, betas), upstream)


def _raster_call(scene: Scene, job: str, direction: str) -> Callable[[], None]:
    return timed_call(work_of(job, "ops", scene), Case("cpu", job, direction, 1, "ops"))


def _compare(work: Work, peak: Peaks, sizes: Caches, call: Callable[[], Any]) -> Row:
    measured = summary(time_ms(call, SECONDS))
    floor_ms, limit = floor(work, peak, sizes)
    return {
        "threads": peak.threads, "mega_operations": work.operations / 1e6, "megabytes": work.bytes_moved / 1e6,
        "floor_ms": floor_ms, "limit": limit, "measured_ms": measured["median"], "iqr_ms": measured["iqr"],
        "share": floor_ms / measured["median"],
    }  # fmt: skip


def _median_ms(call: Callable[[], Any]) -> float:
    return summary(time_ms(call, SECONDS))["median"]


def as_text(result: dict[str, Any]) -> str:
    """The tables."""
    peaks = result["peaks"]
    lines = [f"{'peak':22}" + "".join(f"{peak['threads']:>8} thread{'s' * (peak['threads'] > 1)}" for peak in peaks)]
    names = [name for name in peaks[0] if name != "threads"]
    lines += [f"{name:22}" + "".join(f"{peak[name]:>15.0f}" for peak in peaks) for name in names]
    head = f"{'work':28}{'threads':>8}{'Mop':>10}{'MB':>8}{'floor ms':>10}  {'limit':14}"
    lines += ["", f"{head}{'ms':>9}{'share':>7}{'call ms':>9}"]
    for row in result["rows"]:
        work = f"{row['job']} {row['direction']} B={row['batch']}"
        figures = f"{row['threads']:>8}{row['mega_operations']:>10.2f}{row['megabytes']:>8.2f}{row['floor_ms']:>10.4f}"
        times = f"{row['measured_ms']:>9.4f}{100 * row['share']:>6.0f}%{row['call_ms']:>9.4f}"
        lines.append(f"{work:28}{figures}  {row['limit']:14}{times}")
    lines += ["", f"{'pose directions':>16}{'basis MB':>10}{'threads':>9}{'call us':>9}{'vertices us':>13}"]
    for row in result["directions"]:
        times = f"{row['call_us']:>9.1f}{row['verts_us']:>13.1f}"
        lines.append(f"{row['pose_directions']:>16}{row['basis_mb']:>10.2f}{row['threads']:>9}{times}")
    lines += ["", *(", ".join(f"{name} {value:.4g}" for name, value in row.items()) for row in result["reading"])]
    return "\n".join(lines)


def main() -> int:
    """Measures, prints the tables, writes the result file."""
    sizes = caches()
    peaks = [measure_peaks(threads) for threads in THREADS]
    if peaks[1].read_l2_gb_s < 1.2 * peaks[0].read_l2_gb_s:
        rates = " and ".join(f"{peak.read_l2_gb_s:.0f}" for peak in peaks)
        print(
            f"one thread and two read {rates} GB/s from L2: this machine is not quiet, or has one core", file=sys.stderr
        )
        return 1
    rows: list[Row] = []
    for peak in peaks:
        with torch_threads(peak.threads):
            rows += lbs_rows(peak, sizes) + raster_rows(peak, sizes)
    directions = [direction_rows(threads) for threads in THREADS]
    result = {
        "run": run_facts(),
        "caches": asdict(sizes),
        "peaks": [asdict(peak) for peak in peaks],
        "rows": rows,
        "directions": [row for series in directions for row in series],
        "reading": [reading_rates(series, sizes.l2 / 1e6) for series in directions],
    }
    print(noise_warning() + as_text(result))
    print(f"-> {write_result('roofline', result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
