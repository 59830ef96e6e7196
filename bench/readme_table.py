"""Writes README.md's table of measurements from the files in bench/results, so that no figure can drift from them.

    python bench/readme_table.py            # rewrites the table
    python bench/readme_table.py --check    # exit code 1 if README.md says something else

Peers are timed in the same run as what is compared with them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- measured: bench/readme_table.py writes this -->", "<!-- end of measured -->"


def main() -> int:
    """Rewrites or checks the table; the exit code."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{README}: the marks {BEGIN!r} and {END!r} are missing")
    fresh = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        return int(fresh != text)
    README.write_text(fresh)
    return 0


def table() -> str:
    """The table in Markdown."""
    rows = [("what", "figure", "command"), ("---", "---", "---")]
    rows += [*_fit_rows(), *_silhouette_rows(), *_lbs_rows()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _fit_rows() -> list[tuple[str, str, str]]:
    result = _read("keypoint_fit_weak_noise0px_cpu")
    n, figures = result["arguments"]["n"], result["summary"]
    command = f"`bench/keypoint_fit.py`, {_machine(result['run'])}"
    error, space, time = (figures[key] for key in ("error2d_percent", "pa_mpjpe_mm", "time_ms"))
    return [
        (f"fit to the exact 2D joints of {n} rendered hands: 2D error, median (90 %)",
         f"{error['median']:.2f} % ({error['p90']:.2f} %) of the hand's box", command),
        ("the same: joints after Procrustes alignment, median (90 %)",
         f"{space['median']:.1f} mm ({space['p90']:.1f} mm)", command),
        ("the same: whole `fit`, default hand, median", f"{time['median']:.0f} ms", command),
    ]  # fmt: skip


def _silhouette_rows() -> list[tuple[str, str, str]]:
    result = _read("silhouette_area")
    command = f"`bench/silhouette_area.py`, {_machine(result['run'])}"
    rows = []
    for mode, figures in result["result"].items():
        ms = figures["ms"]
        rows.append((
            f"silhouette of a hand, 224 x 224, `{mode}`: forward; with backward",
            f"{ms['forward']['median']:.2f} ms; {ms['with_backward']['median']:.2f} ms", command,
        ))  # fmt: skip
    bias = result["result"]["edge"]
    rows.append((
        f"area of the `edge` silhouette against the true one, {result['arguments']['n']} hands: mean; worst",
        f"{abs(bias['mean_percent']):.4f} %; {abs(bias['largest_percent']):.4f} %", command,
    ))  # fmt: skip
    return rows


def _lbs_rows() -> list[tuple[str, str, str]]:
    result = _read("lbs")
    command = f"`bench/bench_lbs.py`, {_machine(result['facts'])}"
    rows = []
    for direction, name in (("forward", "forward"), ("backward", "with backward")):
        for batch in (1, 32, 1024):
            (ours,) = (
                row
                for row in result["rows"]
                if (row["direction"], row["batch"], row["implementation"]) == (direction, batch, "ops.lbs")
            )
            peers = ", ".join(
                f"{ours[f'times_{peer}']:.1f} x {peer}" for peer in ("manopth", "smplx") if ours.get(f"times_{peer}")
            )
            rows.append(
                (
                    f"skinning `ops.lbs`, {batch} hand{'s' * (batch > 1)}, {name}",
                    f"{ours['median_ms']:.3g} ms: {peers}",
                    command,
                )
            )
    return rows


def _machine(run: dict[str, Any]) -> str:
    threads = run["threads"]
    return f"{run['processor']}, {threads} thread{'s' if threads > 1 else ''}"


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


if __name__ == "__main__":
    sys.exit(main())
