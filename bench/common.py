"""What every benchmark shares: where and on what it ran, and how times are summed up."""

from __future__ import annotations

import datetime
import json
import platform
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


def run_facts(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Machine, versions, commit and date, for the head of a result file."""
    device = torch.device(device)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "dhpe_fast": dhpe_fast.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def time_ms(function: Callable[[], Any], repeats: int, device: torch.device | str = "cpu") -> list[float]:
    """Milliseconds of each call, after one that is not counted; waits for the device around each."""
    device = torch.device(device)
    function()
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        times.append(1000 * (time.perf_counter() - start))
    return times


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, interquartile range and 90th percentile."""
    low, median, high, p90 = np.percentile(np.asarray(values, dtype=np.float64), (25, 50, 75, 90))
    return {"median": float(median), "iqr": float(high - low), "p90": float(p90)}


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Writes bench/results/NAME.json and returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _commit() -> str | None:
    """The commit, marked if files differ from it; None outside of a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit
