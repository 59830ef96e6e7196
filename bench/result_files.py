"""What the pages read from the files in bench/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")

Result = dict[str, Any]
Row = dict[str, Any]


def read(name: str) -> Result | None:
    """A result file; None where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def own_row(result: Result, job: str, direction: str, batch: int) -> Row:
    """The row of this package's op in a pytest benchmark on the CPU."""
    (row,) = (
        row
        for row in result["rows"]
        if (row["device"], row["direction"], row["batch"]) == ("cpu", direction, batch)
        and row["implementation"] in ("ops", "ops.lbs")
        and row.get("job", "lbs") == job
    )
    return row


def ratios(row: Row) -> dict[str, float]:
    """How many times faster than each peer of the same run."""
    return {key.removeprefix("times_"): value for key, value in row.items() if key.startswith("times_")}


def machine(run: Row) -> str:
    """The processor and how much of it took part, and what was measured."""
    return f"{run['processor']}, {plural(run['threads'], 'thread')}, {run['commit']}"


def plural(count: int, noun: str) -> str:
    """1 hand, 2 hands, 1,024 hands."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def number(value: float) -> str:
    """Three digits: 0.0123, 12.3, 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".removesuffix(".")


def markdown(*rows: tuple[str, ...]) -> str:
    """A table; the first row is its head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *body))
