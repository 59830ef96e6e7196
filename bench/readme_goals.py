"""README.md's table of goals: what each op was to reach, what it reached, and what limits it where that is less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from result_files import Result, Row, markdown, number, own_row, plural, ratios

FASTEST = "the faster peer"


@dataclass(frozen=True)
class Goal:
    """Of one call, on the CPU; ratios are to peers of the same run."""

    direction: str
    batch: int
    ms: float | None = None
    times: dict[str, float] = field(default_factory=dict)

    def is_met(self, row: Row) -> bool:
        """Whatever cannot be said, for want of a peer, does not count."""
        fast_enough = all(found >= wanted for found, wanted in self._compared(row))
        return fast_enough and (self.ms is None or row["median_ms"] <= self.ms)

    def needed_ms(self, row: Row) -> float:
        """The time that would meet it."""
        limits = [row["median_ms"] * found / wanted for found, wanted in self._compared(row)]
        return min([*limits, *([] if self.ms is None else [self.ms])])

    def as_text(self) -> str:
        """In words."""
        times = [f"{wanted:g} x {peer}" for peer, wanted in self.times.items()]
        return ", ".join([*([] if self.ms is None else [f"{self.ms:g} ms"]), *times])

    def _compared(self, row: Row) -> list[tuple[float, float]]:
        found = ratios(row)
        if found:
            found[FASTEST] = min(found.values())
        return [(found[peer], wanted) for peer, wanted in self.times.items() if peer in found]


LBS_GOALS = (
    Goal("forward", 1, times={"manopth": 20, FASTEST: 12}),
    Goal("backward", 1, times={"manopth": 15, FASTEST: 12}),
    Goal("forward", 1024, times={"manopth": 15, "smplx": 7}),
    Goal("backward", 1024, times={"manopth": 10, "smplx": 6}),
)
SILHOUETTE_GOALS = (
    Goal("forward", 1, ms=0.15, times={"drtk": 6}),
    Goal("backward", 1, ms=0.5, times={"drtk": 20}),
)
MODES = ("nmr", "edge", "soft")


def goals_table(
    lbs: Result | None, raster: Result | None, roofline: Result | None, more: Sequence[tuple[str, ...]] = ()
) -> str:
    """A row for each goal whose result is there, and `more` rows."""
    rows = [_goal_row("skinning", ("lbs",), goal, lbs, roofline) for goal in LBS_GOALS if lbs]
    rows += [_goal_row("silhouette, 224 x 224", MODES, goal, raster, roofline) for goal in SILHOUETTE_GOALS if raster]
    return markdown(("work on the CPU", "goal", "reached", "where less: the goal here", "of which"), *rows, *more)


def _goal_row(work: str, jobs: tuple[str, ...], goal: Goal, result: Result, roofline: Result | None) -> tuple[str, ...]:
    reached, needed, limits = [], [], []
    for job in jobs:
        row = own_row(result, job, goal.direction, goal.batch)
        name = f"`{job}` " * (len(jobs) > 1)
        compared = "".join(f", {value:.1f} x {peer}" for peer, value in ratios(row).items() if peer in _named(goal))
        reached.append(f"{name}{number(row['median_ms'])} ms{compared}")
        if not goal.is_met(row):
            needed.append(f"{name}{number(goal.needed_ms(row))} ms")
            limits.append(f"{name}{_limit(roofline, job, goal, result['run']['threads'])}")
    absent = [peer for peer in goal.times if peer in result.get("peers_absent", ())]
    missing = f" ({', '.join(absent)}: not at hand)" if absent else ""
    direction = "with backward" if goal.direction == "backward" else "forward"
    what = f"{work}, {plural(goal.batch, 'hand')}, {direction}"
    return what, goal.as_text(), "; ".join(reached) + missing, "; ".join(needed), "; ".join(limits)


def _named(goal: Goal) -> tuple[str, ...]:
    return ("manopth", "smplx") if FASTEST in goal.times else tuple(goal.times)


def _limit(roofline: Result | None, job: str, goal: Goal, threads: int) -> str:
    for row in () if roofline is None else roofline["rows"]:
        if (row["job"], row["direction"], row["batch"], row["threads"]) == (job, goal.direction, goal.batch, threads):
            work = f"its work {number(row['floor_ms'])} ms at the processor's peak ({row['limit']})"
            return f"the call alone {number(row['call_ms'])} ms, {work}"
    return "not measured yet: `python bench/roofline.py`"
