"""What every benchmark shares: where and on what it ran, how calls are timed, and how times are summed up."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dhpe_fast
from dhpe_fast.doctor import cpu_name

RESULTS = Path(__file__).with_name("results")
DEVICE = os.environ.get("DHPE_BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
"""What a benchmark measures: the GPU where there is one."""
MIN_ROUNDS, MAX_ROUNDS = 3, 20000
QUIET_BUSY = 0.1
"""Up to this share of the processors' time may go to others while nothing is measured yet."""


def run_facts(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Machine, versions, commit and date, for the head of a result file.

    `busy_before` is the share of all processors' time that others took just before; None where it is not known.
    """
    device = torch.device(device)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "dhpe_fast": dhpe_fast.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "busy_before": _BUSY_BEFORE,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def rounds_within(seconds: float, call: Callable[[], Any]) -> int:
    """How many calls fit into so many seconds, by the second of two; at least 3. The two also warm up."""
    call()
    start = time.perf_counter()
    call()
    return min(max(int(seconds / max(time.perf_counter() - start, 1e-7)), MIN_ROUNDS), MAX_ROUNDS)


def time_ms(call: Callable[[], Any], seconds: float, device: torch.device | str = "cpu") -> list[float]:
    """Milliseconds of each of as many calls as fit into so many seconds, after a tenth as many that do not count.

    On CUDA, waits for the device within the measured time.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else _do_nothing
    rounds = rounds_within(seconds, lambda: (call(), wait()))
    for _ in range(rounds // 10):
        call()
    wait()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        wait()
        times.append(1000 * (time.perf_counter() - start))
    return times


def device_times_ms(call: Callable[[], Any], seconds: float) -> list[float]:
    """Milliseconds that the GPU takes for each of as many calls as fit into so many seconds, by its own clock.

    Calls are queued without waiting in between: what the CPU does counts only where it cannot keep the GPU busy.
    """
    rounds = rounds_within(seconds, lambda: (call(), torch.cuda.synchronize()))
    for _ in range(rounds // 10):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in itertools.pairwise(events)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, interquartile range and 90th percentile."""
    low, median, high, p90 = np.percentile(np.asarray(values, dtype=np.float64), (25, 50, 75, 90))
    return {"median": float(median), "iqr": float(high - low), "p90": float(p90)}


def noise_warning() -> str:
    """Says so where somebody else was at work before this process started; empty where not."""
    if _BUSY_BEFORE is None or _BUSY_BEFORE <= QUIET_BUSY:
        return ""
    return f"NOT A QUIET MACHINE: {_BUSY_BEFORE:.0%} busy before this run. Keep no figures of it.\n"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Writes bench/results/NAME.json, on a GPU NAME_device.json, and returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = result_path(name)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def result_path(name: str) -> Path:
    """Where a result goes: figures of another device never replace those of the CPU."""
    if DEVICE == "cpu":
        return RESULTS / f"{name}.json"
    device = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name().lower())
    return RESULTS / f"{name}_{device}.json"


def _do_nothing() -> None:
    """In place of waiting for a device."""


def _commit() -> str | None:
    """The commit, marked if sources differ from it; None outside of a checkout.

    Result files, and the pages made from them, change while benchmarks run one after another: they are no sources.
    """
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results", ":!README.md", ":!docs"
    )
    return f"{commit}+changes" if commit and changed else commit


def _busy_share(seconds: float) -> float | None:
    """The share of all processors' time that is not idle while this process waits; Linux alone tells."""

    def ticks() -> np.ndarray:
        first = Path("/proc/stat").read_text().split("\n", 1)[0]
        return np.array(first.split()[1:9], dtype=np.float64)  # user nice system idle iowait irq softirq steal

    try:
        before = ticks()
        time.sleep(seconds)
        spent = ticks() - before
    except OSError:
        return None
    return round(float(1 - spent[3:5].sum() / max(spent.sum(), 1.0)), 3)


_BUSY_BEFORE = _busy_share(0.5)
