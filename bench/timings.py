"""The timings of one pytest benchmark: taken, compared with peers of the same run, printed, and written to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from common import DEVICE, device_times_ms, noise_warning, result_path, rounds_within, run_facts, write_result

SECONDS = 1.0
"""Budget of a case; at least three rounds are timed."""


@dataclass(frozen=True)
class Case:
    """What is timed: so many hands or images, without gradients ("forward") or with them ("backward": both)."""

    device: str
    job: str
    direction: str
    batch: int
    implementation: str
    image_size: int | None = None
    """Of a square image in pixels; None where there is none."""


@dataclass(frozen=True)
class Timing:
    """Of one case."""

    case: Case
    median_ms: float
    iqr_ms: float
    rounds: int


class Timings:
    """Collects the timings of a run."""

    def __init__(self, result: str, peers: tuple[str, ...], own_cases: int) -> None:
        """Collects for bench/results/RESULT.json.

        Args:
            result: name of the result file.
            peers: implementations that the others are compared with.
            own_cases: how many cases of other implementations than peers a whole run has.
        """
        self.result, self.peers, self.own_cases = result, peers, own_cases
        self.taken: list[Timing] = []
        self.too_large: list[Case] = []
        """Those that the memory of the GPU did not hold."""

    @contextmanager
    def within_memory(self, case: Case) -> Iterator[None]:
        """Skips what is within where the GPU's memory runs out: the case has run, and the result file says so."""
        try:
            yield
        except torch.OutOfMemoryError:
            self.too_large.append(case)
            pytest.skip(f"{case}: more memory than the device has")

    def measure(self, benchmark: Any, case: Case, call: Callable[[], Any]) -> None:
        """Times calls with pytest-benchmark's fixture, on a GPU by the device's clock; calls once where disabled."""
        benchmark.group = _job_of(_entries(case))
        if benchmark.disabled:
            benchmark(call)
            return
        if case.device == "cuda":
            benchmark.pedantic(call)
            times = device_times_ms(call, SECONDS)
            low, median, high = np.percentile(times, (25, 50, 75))
            self.taken.append(Timing(case, float(median), float(high - low), len(times)))
            return
        rounds = rounds_within(SECONDS, call)
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=rounds // 10)
        stats = benchmark.stats.stats
        self.taken.append(Timing(case, 1e3 * stats.median, 1e3 * stats.iqr, rounds))

    def finish(self) -> str:
        """The table as text; writes the result file unless the run was a partial one."""
        rows = self.rows()
        text = noise_warning() + as_text(rows, self.peers, _job_of)
        seen = [*(timing.case for timing in self.taken), *self.too_large]
        if sum(case.implementation not in self.peers for case in seen) < self.own_cases:
            return f"{text}\nnot all cases ran: {result_path(self.result)} is left as it was"
        found = {case.implementation for case in seen}
        facts = run_facts(DEVICE)
        absent = [peer for peer in self.peers if peer not in found]
        result = {"run": facts, "peers_absent": absent, "rows": rows}
        if self.too_large:
            result["too_large"] = [_entries(case) for case in self.too_large]
        path = write_result(self.result, result)
        return "\n".join([text, *([f"not at hand: {', '.join(absent)}"] if absent else []), f"-> {path}"])

    def rows(self) -> list[dict[str, Any]]:
        """The timings as dictionaries, with how many times faster each is than the peers in the same job."""
        of_case = {timing.case: timing.median_ms for timing in self.taken}
        rows = []
        for timing in self.taken:
            peers_ms = {peer: of_case.get(replace(timing.case, implementation=peer)) for peer in self.peers}
            ratios = {f"times_{peer}": ms / timing.median_ms for peer, ms in peers_ms.items() if ms is not None}
            figures = {"median_ms": timing.median_ms, "iqr_ms": timing.iqr_ms, "rounds": timing.rounds}
            rows.append(_entries(timing.case) | figures | ratios)
        return rows


def as_text(rows: list[dict[str, Any]], peers: tuple[str, ...], job_of: Callable[[dict[str, Any]], str]) -> str:
    """One line for each row: job, implementation, milliseconds, and how many times faster than each peer at hand."""
    shown = [peer for peer in peers if any(f"times_{peer}" in row for row in rows)]
    head = f"{'job':34}{'implementation':24}{'median ms':>11}{'IQR ms':>10}"
    lines = [head + "".join(f"{f'x {peer}':>18}" for peer in shown)]
    for row in rows:
        ratios = [row.get(f"times_{peer}") for peer in shown]
        columns = "".join(f"{'-' if ratio is None else f'{ratio:.2f}':>18}" for ratio in ratios)
        lines.append(
            f"{job_of(row):34}{row['implementation']:24}{row['median_ms']:11.4f}{row['iqr_ms']:10.4f}{columns}"
        )
    return "\n".join(lines)


def _entries(case: Case) -> dict[str, Any]:
    return {key: value for key, value in vars(case).items() if value is not None}


def _job_of(row: dict[str, Any]) -> str:
    size = f" {row['image_size']}px" if "image_size" in row else ""
    return f"{row['device']} {row['job']} {row['direction']} B={row['batch']}{size}"
