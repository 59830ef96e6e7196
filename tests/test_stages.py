"""The table of stages says what was measured."""

from __future__ import annotations

import time

from dhpe_fast.stages import StageClock, stage_table


def test_a_clock_gives_its_laps_to_their_stages():
    clock = StageClock({"read": 5.0})
    time.sleep(0.02)
    clock.lap("refine")
    copied = clock.copy()
    time.sleep(0.02)
    copied.lap("refine")
    assert clock.stages_ms["read"] == 5.0
    assert 15 < clock.stages_ms["refine"] < 1000
    assert copied.stages_ms["refine"] > clock.stages_ms["refine"] + 15


def test_one_hand_has_one_column_and_a_total():
    assert stage_table([{"read": 1.25, "first_estimate": 2.5, "refine": 10.0}]).splitlines() == [
        "stage                  ms",
        "decode               1.25",
        "first estimate       2.50",
        "refine              10.00",
        "total               13.75",
    ]


def test_a_few_have_a_column_each_and_many_are_summed_up():
    few = stage_table([{"read": 1.0}, {"read": 2.0, "draw": 4.0}], title="picture").splitlines()
    assert [line.split() for line in few] == [
        ["picture", "ms,", "0", "ms,", "1"],
        ["decode", "1.00", "2.00"],
        ["draw", "0.00", "4.00"],
        ["total", "1.00", "6.00"],
    ]
    many = stage_table([{"read": float(n)} for n in range(1, 6)]).splitlines()
    assert many[0].split() == ["stage", "median", "ms", "worst", "ms"]
    assert many[1].split() == ["decode", "3.00", "5.00"]
    assert stage_table([]) == "stage: nothing was measured"
