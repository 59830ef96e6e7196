"""The comparison of kernels with what a GPU can do: its sums are right, and all of it that needs no GPU runs."""

from __future__ import annotations

import json

import bench_lbs
import pytest
import readme_gpu
import roofline_gpu
import timings
import torch
from bench_raster import sigma_px
from roofline_gpu import Limits, compared, floor, lbs_work, measure_limits, raster_work
from scene import hands_in_view
from timings import Case, Timings
from work_counts import Work, raster_forward

LIMITS = Limits(copy_gb_s=1000.0, float32_gflop_s=10_000.0, float64_gflop_s=1000.0, launch_ms=0.002, l2_bytes=10**6)


def test_the_floor_is_the_longest_of_three_times():
    assert floor(Work(0, 0), LIMITS) == (0.002, "launch")
    assert floor(Work(1e9, 0), LIMITS) == (pytest.approx(0.1), "arithmetic")
    assert floor(Work(1e9, 0, fused=False), LIMITS) == (pytest.approx(0.2), "arithmetic")
    assert floor(Work(1e9, 0), LIMITS, is_float64=True) == (pytest.approx(1.0), "arithmetic")
    assert floor(Work(1e9, 1e9), LIMITS) == (pytest.approx(1.0), "bytes")


def test_rates_are_of_the_median():
    row = compared(Work(4e9, 1e6), [1.0, 3.0, 2.0], LIMITS)
    assert (row["gb_s"], row["gflop_s"]) == (pytest.approx(0.5), pytest.approx(2000))
    assert row["times_floor"] == pytest.approx(2.0 / 0.4)
    assert row["fits_l2"]
    assert not compared(Work(0, 1e6 + 1), [1.0], LIMITS)["fits_l2"]


def test_a_batch_is_counted_by_its_first_hands(monkeypatch):
    monkeypatch.setattr(roofline_gpu, "COUNTED", 2)
    few = raster_forward("nmr", hands_in_view(2, 48), sigma_px(48))
    work = raster_work("nmr", "forward", 32, 48)
    assert (work.operations, work.bytes_moved, work.fused) == (16 * few.operations, 16 * few.bytes_moved, False)
    assert raster_work("soft", "backward", 1, 48).fused
    assert lbs_work("backward", 2).operations > lbs_work("forward", 2).operations


def test_every_row_is_measured():
    """On the CPU, in small: what differs on a GPU is the clock."""
    limits = measure_limits("cpu", 0.0, 2**16, (16, 8))
    assert all(value > 0 for value in (limits.copy_gb_s, limits.float32_gflop_s, limits.float64_gflop_s))
    found = list(roofline_gpu.rows(limits, "cpu", 0.0, lbs_batches=(1, 2), batches=(1,), image_sizes=(32,)))
    assert len(found) == 2 * 2 + 4 * 2
    assert all(row["median_ms"] > 0 and row["floor_ms"] > 0 for row in found)
    assert json.loads(json.dumps(found)) == found
    text = roofline_gpu.as_text(limits, found)
    assert "lbs backward B=2" in text
    assert "edge forward B=1 32px" in text


def test_what_a_gpu_has_no_memory_for_is_left_out(monkeypatch, capsys):
    def posing_call(pose_hand, device, direction, batch):
        if batch == 2:
            raise torch.OutOfMemoryError
        return bench_lbs.posing_call(pose_hand, device, direction, batch)

    monkeypatch.setattr(roofline_gpu, "posing_call", posing_call)
    found = roofline_gpu.rows(LIMITS, "cpu", 0.0, lbs_batches=(1, 2, 3), batches=(), image_sizes=())
    assert [row["batch"] for row in found] == [1, 3, 1, 3]
    assert capsys.readouterr().err.count("left out, more memory than the device has: {'job': 'lbs'") == 2


def test_the_page_has_a_table_for_every_device(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_gpu, "RESULTS", tmp_path)
    assert readme_gpu.kernels_table().startswith("Never run")
    row = {"job": "edge", "direction": "backward", "batch": 32, "image_size": 512}
    row |= compared(Work(4e9, 1e6), [2.0], LIMITS)
    run = {"device": "Some GPU", "torch": "2.13.0", "commit": "abc", "date": "2026-01-01T00:00:00"}
    result = {"run": run, "limits": vars(LIMITS), "rows": [row]}
    (tmp_path / "roofline_gpu_some_gpu.json").write_text(json.dumps(result))
    about, _, _, _, line = readme_gpu.kernels_table().splitlines()
    assert about.startswith("Some GPU, torch 2.13.0, commit abc, 2026-01-01. Measured limits: copying 1,000 GB/s")
    assert line == "| edge, 32 hands, 512 px, with backward | 400 | arithmetic | 2,000 | 5.00 | 0.500 | 2,000 | yes |"


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_without_a_gpu_it_says_so(capsys):
    assert roofline_gpu.main() == 1
    assert "no GPU" in capsys.readouterr().err


def test_torch_compile_takes_the_twin():
    """As the benchmark compiles it on a GPU."""
    pose, betas = 0.1 * torch.randn(2, 48), torch.randn(2, 10)
    found = bench_lbs._compiled_twin("cpu", backend="eager")(pose, betas)
    for ours, twins in zip(found, bench_lbs._twin("cpu")(pose, betas), strict=True):
        torch.testing.assert_close(ours, twins)


def test_what_a_gpu_has_no_memory_for_counts_as_run(monkeypatch):
    written = {}
    monkeypatch.setattr(timings, "write_result", lambda name, result: written.update(result))
    collected = Timings("none", (), own_cases=1)
    case = Case("cpu", "rasterize", "forward", 256, "ops", 1024)
    with pytest.raises(pytest.skip.Exception, match="more memory"), collected.within_memory(case):
        raise torch.OutOfMemoryError
    collected.finish()
    assert written["too_large"] == [vars(case)]


def test_image_sizes_are_told_apart_and_compared_with_peers_of_their_own(monkeypatch):
    collected = Timings("none", ("theirs",), own_cases=9)
    for size, ours, theirs in ((224, 1.0, 3.0), (512, 2.0, 8.0)):
        for name, ms in (("ops", ours), ("theirs", theirs)):
            case = Case("cpu", "edge", "forward", 1, name, size)
            collected.taken.append(timings.Timing(case, ms, 0.1, 7))
    found = [row["times_theirs"] for row in collected.rows() if row["implementation"] == "ops"]
    assert found == [3.0, 4.0]
    assert "edge forward B=1 512px" in collected.finish()
