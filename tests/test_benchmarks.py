"""The benchmarks time what they say, compare what is alike, and count what is on paper."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest
import readme_table
import torch
import work_counts
from bench_raster import JOBS, check_same_picture, timed_call, work_of
from common import QUIET_BUSY, RESULTS, rounds_within, time_ms
from peaks import Caches, Peaks
from raster_peers import PEERS, RENDERINGS, at_hand, ndc
from readme_goals import FASTEST, Goal
from roofline import floor, reading_rates, with_joints, with_verts
from scene import Scene, hands_in_view, with_finer_faces
from timings import Case, Timing, Timings
from work_counts import Work

from dhpe_fast.hand import HandModel
from dhpe_fast.ops import lbs


def triangle(image_size: int = 8) -> Scene:
    """Corners (1, 1), (4, 1), (1, 5): the centres in its box are 3 x 4."""
    verts_px = torch.tensor([[[1.0, 1.0, 1.0], [4.0, 1.0, 1.0], [1.0, 5.0, 1.0]]])
    return Scene(verts_px, torch.tensor([[0, 1, 2]], dtype=torch.int32), image_size)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_says_where_and_on_what_it_was_measured(path):
    run = json.loads(path.read_text())["run"]
    assert {"date", "commit", "dhpe_fast", "torch", "numpy", "python", "processor", "threads", "device"} <= run.keys()


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("job", JOBS)
def test_every_job_runs_forth_and_back(job, direction):
    work = work_of(job, "ops", hands_in_view(2, 32))
    timed_call(work, Case("cpu", job, direction, 2, "ops"))()
    assert all(leaf.grad is None and not leaf.requires_grad for leaf in work.leaves)


@pytest.mark.parametrize("job", [job for job in JOBS if job != "soft"])
def test_twins_draw_the_same_picture(job):
    scene = hands_in_view(1, 24)
    check_same_picture(work_of(job, "reference", scene), work_of(job, "ops", scene))


@pytest.mark.parametrize("job", JOBS)
def test_another_picture_is_noticed(job):
    scene = hands_in_view(1, 48)
    moved = replace(scene, verts_px=scene.verts_px + torch.tensor([4.0, 0.0, 0.0]))
    with pytest.raises(AssertionError, match="only 0"):
        check_same_picture(work_of(job, "ops", moved), work_of(job, "ops", scene))


def test_peers_are_given_the_corners_of_the_image_where_they_expect_them():
    corners = torch.tensor([[[0.0, 0.0, 16.0], [8.0, 8.0, 16.0]]])
    assert ndc(corners, 8, -1, -1).tolist() == [[[1, 1, 2], [-1, -1, 2]]]  # PyTorch3D
    assert ndc(corners, 8, 1, 1).tolist() == [[[-1, -1, 2], [1, 1, 2]]]  # nvdiffrast
    assert ndc(corners, 8, 1, -1).tolist() == [[[-1, 1, 2], [1, -1, 2]]]  # neural_renderer, SoftRas
    assert {peer for _, peer in RENDERINGS} == set(PEERS)


def test_a_peer_that_takes_seconds_an_image_is_not_given_a_batch(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # all are installed
    assert at_hand("cpu") == ("pytorch3d", "drtk")
    assert at_hand("cpu", 32) == ("drtk",)
    assert at_hand("cuda", 32) == PEERS


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_finer_faces_are_the_same_surface(parts):
    scene = hands_in_view(2, 64)
    finer = with_finer_faces(scene, parts)
    assert len(finer.faces) == parts**2 * len(scene.faces)
    torch.testing.assert_close(areas(finer).sum(-1), areas(scene).sum(-1))
    assert euler(finer) == euler(scene) == 1  # open at the wrist: a disc


def areas(scene: Scene) -> torch.Tensor:  # (B, F), of the projected faces
    a, b, c = scene.verts_px[:, scene.faces.long(), :2].double().unbind(2)
    u, w = b - a, c - a
    return (u[..., 0] * w[..., 1] - u[..., 1] * w[..., 0]).abs() / 2


def euler(scene: Scene) -> int:
    sides = torch.stack([scene.faces, scene.faces.roll(1, 1)], -1).reshape(-1, 2)
    return scene.verts_px.shape[1] - len(sides.sort(1).values.unique(dim=0)) + len(scene.faces)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_figures_are_of_a_commit_and_times_of_a_quiet_machine(file):
    run = json.loads(file.read_text())["run"]
    assert re.fullmatch("[0-9a-f]{7,}", run["commit"])
    if file.stem.startswith("accuracy_"):  # errors, which are the same on a busy machine
        return
    # Older files have the load of the minute before: 0.5 is what one idle machine makes of having just been used.
    assert run["busy_before"] <= QUIET_BUSY if "busy_before" in run else run["load_before"] <= 0.5


def test_skinning_is_counted_by_hand():
    """Two vertices, two joints, one shape and nine pose directions, one slot."""
    basis = with_verts(with_joints(HandModel.default().basis, 2), 2)
    basis = replace(
        basis, shapedirs=basis.shapedirs[:1], joint_shapedirs=basis.joint_shapedirs[:1],
        skin_joints=basis.skin_joints[:, :1], skin_weights=basis.skin_weights[:, :1],
    )  # fmt: skip
    work = work_counts.lbs_forward(basis, 3)
    numbers = 6 + 6 + 54 + 6 + 6 + 2 + 2 + 2  # template, shape, pose, joints, their shape, slots, weights, parents
    assert work.operations == 3 * (2 * 6 * 10 + 2 * (2 * 12 + 18) + 150 * 2)
    assert work.bytes_moved == 4 * (numbers + 3 * (6 + 1) + 3 * (6 + 6))
    assert work.bytes_of_each_thread == 4 * numbers


def test_rasterization_is_counted_by_hand():
    scene = triangle()
    mesh_bytes = 4 * (9 + 3)
    assert work_counts.raster_forward("rasterize", scene, 1.0) == Work(
        25 * 12 + 60, mesh_bytes + 4 * 5 * 64, fused=False
    )
    # Rows 1 to 5 meet the contour: one edge in the first row, two in the rows below, of which one reaches row 5.
    edges = {"top": (1, 4), "left": (5, 5), "slanted": (5, 8)}  # rows, pixels
    rows, pixels = (sum(edge[i] for edge in edges.values()) for i in (0, 1))
    assert work_counts.raster_forward("edge", scene, 1.0).operations == 10 + 30 * rows + 10 * pixels + 2 * 64
    # Columns' centres 1 to 3 lie on the top and on the slanted edge, rows' 1 to 4 on the left and on the slanted one.
    both = work_counts.raster_forward_and_backward("nmr", scene, 1.0)
    assert both.operations - work_counts.raster_forward("nmr", scene, 1.0).operations == 6 * 8 * (2 * 3 + 2 * 4)


def test_the_floor_is_that_of_the_nearest_place_which_holds_the_bytes():
    peak, sizes = Peaks(2, 100.0, 50.0, 20.0, 10.0, 1000.0), Caches(10**6, 10**7)
    assert floor(Work(1e9, 1.0), peak, sizes) == (1.0, "arithmetic")
    assert floor(Work(1e9, 1.0, fused=False), peak, sizes) == (2.0, "arithmetic")
    assert floor(Work(0, 1e6), peak, sizes) == (0.01, "bytes, L2")
    assert floor(Work(0, 1e6 + 1, bytes_of_each_thread=1e6), peak, sizes)[1] == "bytes, L3"
    assert floor(Work(0, 2e7), peak, sizes) == (2.0, "bytes, memory")


def test_reading_rates_are_slopes():
    """10 us to begin with, 100 GB/s within L2 and 50 beyond it."""
    rows = [
        {"threads": 1, "basis_mb": mb, "verts_us": 10 + 10 * min(mb, 1) + 20 * max(mb - 1, 0)} for mb in (0.5, 1, 2, 4)
    ]
    rates = reading_rates(rows, 1.0)
    assert rates["within_l2_gb_s"] == pytest.approx(100)
    assert rates["beyond_l2_gb_s"] == pytest.approx(50)
    assert rates["without_directions_us"] == pytest.approx(10)


def test_other_skeletons_are_skinned():
    basis = with_joints(HandModel.default().basis, 24)
    verts_m, _ = lbs(torch.zeros(1, 24, 3), torch.zeros(1, 10), basis)
    torch.testing.assert_close(verts_m[0], basis.v_template)


def test_a_goal_compares_with_the_peers_at_hand():
    row = {"median_ms": 2.0, "times_manopth": 10.0, "times_smplx": 6.0}
    goal = Goal("forward", 1, times={"manopth": 10, FASTEST: 12})
    assert not goal.is_met(row)
    assert goal.needed_ms(row) == 1.0  # half the time would be 12 times faster than smplx
    assert Goal("forward", 1, ms=2.5, times={"manopth": 10, "drtk": 6}).is_met(row)
    assert not Goal("forward", 1, ms=1.5).is_met(row)


def test_ratios_are_to_peers_of_the_same_case():
    timings = Timings("none", ("theirs",), own_cases=3)
    cases = [("forward", "ours", 2.0), ("forward", "theirs", 10.0), ("backward", "ours", 4.0)]
    timings.taken = [Timing(Case("cpu", "job", d, 1, name), ms, 0.1, 7) for d, name, ms in cases]
    ours, theirs, alone = timings.rows()
    assert (ours["times_theirs"], theirs["times_theirs"], "times_theirs" in alone) == (5, 1, False)
    assert "left as it was" in timings.finish()  # two of three cases
    assert not (RESULTS / "none.json").exists()


def test_as_many_rounds_as_fit_but_three():
    calls = []
    assert rounds_within(0.0, lambda: calls.append(0)) == 3
    assert len(time_ms(lambda: calls.append(0), 0.0)) == 3
    assert len(calls) == 2 + 2 + 3  # a tenth of three rounds is none


def test_networks_stand_beside_answers_that_do_not_look_at_the_image(monkeypatch):
    """The mean skeleton has no form to compare; a score that is not finite is null."""
    scores = {
        "mean skeleton": {"epe_mm": 47.6, "joints2d_px": 41.9},
        "mean-pose hand": {"epe_mm": 52.3, "pa_mpjpe_mm": 15.4, "joints2d_px": 40.1},
        "regression": {"epe_mm": None, "pa_mpjpe_mm": 14.6, "joints2d_px": 20.5},
        "refined": {"epe_mm": 24.3, "pa_mpjpe_mm": 15.0, "joints2d_px": 19.4},
    }
    rows = [{"run": name, "minutes": 9.0, "samples": 200, "scores": scores} for name in ("gated", "constant")]
    run = {"processor": "one", "threads": 2, "commit": "abc"}
    monkeypatch.setattr(readme_table, "read", lambda _: {"run": run, "rows": rows})
    head, _, epe, form, *_ = readme_table.training().splitlines()
    assert head.startswith("| 200 held-out hands | mean skeleton | mean-pose hand | networks | refined, Eq. 11 |")
    assert epe.split("|")[2:6] == [" 47.6 ", " 52.3 ", "  ", " 24.3 "]
    assert form.split("|")[2:6] == ["  ", " 15.4 ", " 14.6 ", " 15.0 "]


def test_a_figure_that_drifted_is_noticed_and_mended(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    begin, end = "<!-- measured: goals; bench/readme_table.py writes this -->", "<!-- end of measured -->"
    page.write_text(f"before\n{begin}\n1 ms\n{end}\nafter\n")
    monkeypatch.setattr(readme_table, "PAGES", (page,))
    monkeypatch.setattr(sys, "argv", ["readme_table.py", "--check"])
    assert readme_table.main() == 1
    assert "1 ms" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["readme_table.py"])
    assert readme_table.main() == 0
    assert page.read_text() == f"before\n{begin}\n{readme_table.goals()}\n{end}\nafter\n"
    monkeypatch.setattr(sys, "argv", ["readme_table.py", "--check"])
    assert readme_table.main() == 0
