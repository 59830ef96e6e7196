"""How far the CUDA kernels are from what the GPU can do.

    python bench/roofline_gpu.py

What the GPU can do is measured by torch's own kernels: copying far more than its L2 cache holds (bytes read and bytes
written both count), a product of large float32 matrices without tensor cores (in float64 the library may use them), and
a kernel that adds one number, call after call, which is what the shortest of launches takes from torch (a CUDA graph
launches faster). Operations and bytes of the ops are counted
on paper (work_counts.py says what counts), those of a batch from its first hands. The floor of a call is the longest of
three times: its operations at the measured rate, its bytes at the measured rate, and one launch. Times are between
events of the device. All is float32.

A call whose bytes fit the L2 cache may be faster than its floor by bytes: the rows say whether they fit. Where the
kernels compile without fused multiplications and additions, the arithmetic rate is half; `edge` computes in float64,
and its operations are held against that rate. Goes to bench/results/roofline_gpu_DEVICE.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
import work_counts
from bench_lbs import IMPLEMENTATIONS, posing_call
from bench_raster import MODES, sigma_px, timed_call, work_of
from common import DEVICE, device_times_ms, noise_warning, run_facts, summary, time_ms, write_result
from scene import hands_in_view
from timings import Case
from work_counts import Work

from dhpe_fast.hand import HandModel

LBS_BATCHES = (1, 32, 256, 1024, 8192, 65536)
BATCHES = (1, 32, 256)
IMAGE_SIZES = (224, 512, 1024)
JOBS = ("rasterize", *MODES)
DIRECTIONS = ("forward", "backward")
COUNTED = 16
"""Hands of a batch whose work is counted; the others are taken for as many of the same."""
NOT_FUSED = ("rasterize", "nmr")
FLOAT64 = ("edge",)
COPIED_BYTES, PRODUCT_SIDE, PRODUCT_SIDE_64 = 2**30, 8192, 4096

Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What a device does at most, measured."""

    copy_gb_s: float
    """read and written"""
    float32_gflop_s: float
    float64_gflop_s: float
    launch_ms: float
    l2_bytes: int


def times_ms(call: Callable[[], Any], seconds: float, device: str) -> list[float]:
    """Milliseconds of single calls, by the device's own clock where it has one."""
    return device_times_ms(call, seconds) if device == "cuda" else time_ms(call, seconds)


def measure_limits(
    device: str,
    seconds: float,
    copied_bytes: int = COPIED_BYTES,
    sides: tuple[int, int] = (PRODUCT_SIDE, PRODUCT_SIDE_64),
) -> Limits:
    """The fastest copy and products of many; the median launch."""
    number = torch.ones(1, device=device)
    launch_ms = summary(times_ms(lambda: number.add_(1), seconds, device))["median"]
    float32, float64 = (
        _product_gflop_s(side, dtype, seconds, device)
        for side, dtype in zip(sides, (torch.float32, torch.float64), strict=True)
    )
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0
    return Limits(_copy_gb_s(copied_bytes, seconds, device), float32, float64, launch_ms, l2_bytes)


def _copy_gb_s(n_bytes: int, seconds: float, device: str) -> float:
    source, target = (torch.ones(n_bytes // 4, device=device) for _ in range(2))
    return 2 * n_bytes / min(times_ms(lambda: target.copy_(source), seconds, device)) / 1e6


def _product_gflop_s(side: int, dtype: torch.dtype, seconds: float, device: str) -> float:
    a, b, out = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return 2 * side**3 / min(times_ms(lambda: torch.mm(a, b, out=out), seconds, device)) / 1e6
    finally:
        torch.set_float32_matmul_precision(before)


def floor(work: Work, limits: Limits, is_float64: bool = False) -> tuple[float, str]:
    """Milliseconds that a call takes at least, and by what."""
    rate = limits.float64_gflop_s if is_float64 else limits.float32_gflop_s
    of = {
        "launch": limits.launch_ms,
        "arithmetic": work.operations / (rate * 1e6) * (1 if work.fused else 2),
        "bytes": work.bytes_moved / (limits.copy_gb_s * 1e6),
    }
    by = max(of, key=of.__getitem__)
    return of[by], by


def lbs_work(direction: str, batch: int) -> Work:
    """Of skinning so many hands."""
    count = work_counts.lbs_forward if direction == "forward" else work_counts.lbs_forward_and_backward
    return count(HandModel.default().basis, batch)


def raster_work(job: str, direction: str, batch: int, image_size: int) -> Work:
    """Of drawing so many hands."""
    few = min(batch, COUNTED)
    work = _counted(job, direction, few, image_size)
    return replace(
        work,
        operations=work.operations * batch / few,
        bytes_moved=work.bytes_moved * batch / few,
        fused=job not in NOT_FUSED,
    )


@cache
def _counted(job: str, direction: str, batch: int, image_size: int) -> Work:
    count = work_counts.raster_forward if direction == "forward" else work_counts.raster_forward_and_backward
    return count(job, hands_in_view(batch, image_size), sigma_px(image_size))


def rows(
    limits: Limits,
    device: str,
    seconds: float,
    lbs_batches: tuple[int, ...] = LBS_BATCHES,
    batches: tuple[int, ...] = BATCHES,
    image_sizes: tuple[int, ...] = IMAGE_SIZES,
) -> Iterator[Row]:
    """Every case that the device's memory holds: skinning by batch, drawing by batch and image size."""
    for direction in DIRECTIONS:
        for batch in lbs_batches:
            about = {"job": "lbs", "direction": direction, "batch": batch}
            with _within_memory(about):
                call = posing_call(IMPLEMENTATIONS["ops.lbs"](device), device, direction, batch)
                yield about | compared(lbs_work(direction, batch), times_ms(call, seconds, device), limits)
    for job in JOBS:
        for image_size in image_sizes:
            for batch in batches:
                scene = hands_in_view(batch, image_size, device)
                for direction in DIRECTIONS:
                    about = {"job": job, "direction": direction, "batch": batch, "image_size": image_size}
                    with _within_memory(about):
                        call = timed_call(work_of(job, "ops", scene), Case(device, job, direction, batch, "ops"))
                        work = raster_work(job, direction, batch, image_size)
                        yield about | compared(work, times_ms(call, seconds, device), limits, job in FLOAT64)


@contextmanager
def _within_memory(about: Row) -> Iterator[None]:
    """Leaves out what is within where the GPU's memory runs out, and says so."""
    try:
        yield
    except torch.OutOfMemoryError:
        print(f"left out, more memory than the device has: {about}", file=sys.stderr)


def compared(work: Work, times: list[float], limits: Limits, is_float64: bool = False) -> Row:
    """The work, its floor, and the rates that were reached."""
    found, (floor_ms, by) = summary(times), floor(work, limits, is_float64)
    return {
        "mega_operations": work.operations / 1e6, "megabytes": work.bytes_moved / 1e6,
        "fits_l2": work.bytes_moved <= limits.l2_bytes, "floor_ms": floor_ms, "by": by,
        "median_ms": found["median"], "iqr_ms": found["iqr"], "times_floor": found["median"] / floor_ms,
        "gb_s": work.bytes_moved / found["median"] / 1e6, "gflop_s": work.operations / found["median"] / 1e6,
    }  # fmt: skip


def as_text(limits: Limits, found: list[Row]) -> str:
    """The limits and a line for each row."""
    lines = [", ".join(f"{name} {value:.4g}" for name, value in asdict(limits).items())]
    lines.append(f"{'work':36}{'Mop':>11}{'MB':>10}{'floor ms':>10}  {'by':12}{'ms':>9}{'x floor':>9}{'GB/s':>8}")
    for row in found:
        size = f" {row['image_size']}px" if "image_size" in row else ""
        work = f"{row['job']} {row['direction']} B={row['batch']}{size}"
        lines.append(
            f"{work:36}{row['mega_operations']:>11.2f}{row['megabytes']:>10.2f}{row['floor_ms']:>10.4f}  {row['by']:12}"
            f"{row['median_ms']:>9.4f}{row['times_floor']:>9.2f}{row['gb_s']:>8.0f}"
        )
    return "\n".join(lines)


def main() -> int:
    """Measures, prints the table, writes the result file."""
    if DEVICE != "cuda":
        print("no GPU: torch sees no CUDA device; python bench/roofline.py is for the CPU", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="budget of each timing")
    arguments = parser.parse_args()
    limits = measure_limits(DEVICE, arguments.seconds)
    found = list(rows(limits, DEVICE, arguments.seconds))
    print(noise_warning() + as_text(limits, found))
    print(f"-> {write_result('roofline_gpu', {'run': run_facts(DEVICE), 'limits': asdict(limits), 'rows': found})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
