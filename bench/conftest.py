"""The timings of a benchmark, and their tables at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from timings import Timings

TABLES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="module")
def timings(request: pytest.FixtureRequest) -> Iterator[Timings]:
    """Collects the timings of a module, which names its RESULT file, its PEERS and how many OWN_CASES it has."""
    module = request.module
    collected = Timings(module.RESULT, module.PEERS, module.OWN_CASES)
    yield collected
    if collected.taken:
        request.config.stash.setdefault(TABLES, []).append(collected.finish())


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The tables, below pytest-benchmark's own."""
    for table in config.stash.get(TABLES, []):
        terminalreporter.write_line(f"\n{table}")
