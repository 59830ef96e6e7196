"""Where the time of a job goes: a clock with laps, and the table of its stages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

_TITLES = {"read": "decode", "first_estimate": "first estimate"}


class StageClock:
    """Milliseconds between laps, by the wall."""

    def __init__(self, stages_ms: Mapping[str, float] | None = None) -> None:
        self.stages_ms: dict[str, float] = dict(stages_ms or {})
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last lap belongs to this stage."""
        now = time.perf_counter()
        self.stages_ms[stage] = self.stages_ms.get(stage, 0.0) + 1e3 * (now - self._last)
        self._last = now

    def copy(self) -> StageClock:
        """A clock that has seen the same stages, and starts now."""
        return StageClock(self.stages_ms)


def stage_table(
    stages_ms: Sequence[Mapping[str, float]],
    title: str = "stage",
) -> str:
    """The stages as a table in plain text: a row for each stage and the total, a column for each of the given.

    More than four are summed up as their median and worst; a stage that some of them lack counts as zero there.

    Args:
        stages_ms: milliseconds by stage, in the order of the work, of one or several hands, pictures or frames.
        title: heading of the first column.
    """
    if not stages_ms:
        return f"{title}: nothing was measured"
    names = list(dict.fromkeys(name for stages in stages_ms for name in stages))
    rows = {_TITLES.get(name, name): [stages.get(name, 0.0) for stages in stages_ms] for name in names}
    rows["total"] = [sum(stages.values()) for stages in stages_ms]
    headings = ["ms"] if len(stages_ms) == 1 else [f"ms, {index}" for index in range(len(stages_ms))]
    if len(stages_ms) > 4:
        headings = ["median ms", "worst ms"]
        rows = {name: [sorted(values)[len(values) // 2], max(values)] for name, values in rows.items()}
    width = max(len(title), *map(len, rows))
    lines = [f"{title:<{width}}" + "".join(f"  {heading:>9}" for heading in headings)]
    lines += [f"{name:<{width}}" + "".join(f"  {value:>9.2f}" for value in values) for name, values in rows.items()]
    return "\n".join(lines)
