"""The table of docs/kernels.md: what was measured on GPUs, held against their measured limits."""

from __future__ import annotations

import json

from result_files import RESULTS, Result, markdown, number, plural

NEVER = "Never run: no GPU so far. `make gpu-bench`, on a machine with one, writes this table."


def kernels_table() -> str:
    """Every row of roofline_gpu.py, of every device."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("roofline_gpu_*.json"))]
    return "\n\n".join(_of_device(result) for result in results) or NEVER


def _of_device(result: Result) -> str:
    run, limits = result["run"], result["limits"]
    about = (
        f"{run['device']}, torch {run['torch']}, commit {run['commit']}, {run['date'][:10]}. Measured limits: copying "
        f"{number(limits['copy_gb_s'])} GB/s read and written, float32 {number(limits['float32_gflop_s'])} GFLOP/s, "
        f"float64 {number(limits['float64_gflop_s'])} GFLOP/s, a launch {number(1000 * limits['launch_ms'])} µs."
    )
    head = ("work", "floor, µs", "by", "measured, µs", "x floor", "GB/s", "GFLOP/s", "fits L2")
    rows = [
        (_work(row), number(1000 * row["floor_ms"]), row["by"], number(1000 * row["median_ms"]),
         number(row["times_floor"]), number(row["gb_s"]), number(row["gflop_s"]), "yes" if row["fits_l2"] else "")
        for row in result["rows"]
    ]  # fmt: skip
    return f"{about}\n\n{markdown(head, *rows)}"


def _work(row: dict) -> str:
    direction = "with backward" if row["direction"] == "backward" else "forward"
    size = f", {row['image_size']} px" if "image_size" in row else ""
    return f"{row['job']}, {plural(row['batch'], 'hand')}{size}, {direction}"
