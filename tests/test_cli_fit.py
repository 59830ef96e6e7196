"""`dhpe-fast fit` on folders and videos, run as a user runs it."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from dhpe_fast import cli, cli_fit, hand_tracker
from dhpe_fast.data.demo import load_demo
from dhpe_fast.data.motion import moving_hand
from dhpe_fast.image import read_image
from dhpe_fast.io import save_image
from dhpe_fast.video_file import VideoReader, video_writer

N_FRAMES = 8
FIGURES = r"(\d+\.\d\d) mm before smoothing, (\d+\.\d\d) mm after; (\d+\.\d\d) px before, (\d+\.\d\d) px after"


def run(*arguments: object) -> tuple[int, str]:
    """Exit code, and what was printed to both streams."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of a hand, clip.mp4 and clip.avi, with its keypoints in clip.npy."""
    folder = tmp_path_factory.mktemp("clip")
    views = list(moving_hand(N_FRAMES, 0, image_size=(120, 160), pictures=True))
    noise = np.random.default_rng(0).normal(0, 0.7, (N_FRAMES, 21, 2))
    np.save(folder / "clip.npy", np.stack([view.joints2d_px.numpy() for view in views]) + noise)
    for suffix in (".mp4", ".avi"):
        with video_writer(folder / f"clip{suffix}", 25) as out:
            for view in views:
                out.write(view.image)
    return folder


def test_a_video_gives_an_overlay_and_a_line_for_each_frame(clip, tmp_path):
    exit_code, output = run(
        "fit", clip / "clip.mp4", "-o", tmp_path, "--keypoints", clip / "clip.npy", "--hand", "right", "--profile"
    )
    assert exit_code == 0, output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clip_hands.jsonl", "clip_overlay.mp4"]
    drawn, given = list(VideoReader(tmp_path / "clip_overlay.mp4")), list(VideoReader(clip / "clip.mp4"))
    assert len(drawn) == len(given) == N_FRAMES
    assert all(2 < np.abs(a.astype(int) - b).mean() < 60 for a, b in zip(drawn, given, strict=True))
    lines = [json.loads(line) for line in (tmp_path / "clip_hands.jsonl").read_text().splitlines()]
    assert lines[0]["fps"] == 25
    assert [line["frame"] for line in lines[1:-1]] == list(range(N_FRAMES))
    figures = [float(value) for value in re.search(FIGURES, output).groups()]
    assert figures[1] < figures[0]
    assert figures[3] < figures[2]
    assert figures[0] == pytest.approx(lines[-1]["summary"]["jitter"]["before_mm"], abs=0.01)
    assert f"clip: track 0, right hand, in {N_FRAMES} frames" in output
    stages = [row.split()[0] for row in output.splitlines() if re.search(r"\d\.\d\d +\d+\.\d\d$", row)]
    assert stages[0] == "decode"
    assert {"evidence", "refine", "smooth", "write"} <= set(stages)
    assert "draw" not in stages, "frames are drawn in threads while others are fitted"
    assert re.search(r"clip: drawing took \d+\.\d\d ms a frame", output)
    assert "ignored" not in output
    assert stages[-1] == "total"
    assert "1 of 1 files fitted" in output


def test_without_smoothing_the_jitter_stays(clip, tmp_path):
    arguments = ("fit", clip / "clip.mp4", "-o", tmp_path, "--keypoints", clip / "clip.npy")
    exit_code, output = run(*arguments, "--no-smooth")
    assert exit_code == 0, output
    figures = re.search(FIGURES, output).groups()
    assert figures[0] == figures[1]
    assert figures[2] == figures[3]


def test_options_of_pictures_are_said_to_be_ignored(clip, tmp_path):
    arguments = ("fit", clip / "clip.mp4", "-o", tmp_path, "--keypoints", clip / "clip.npy")
    exit_code, output = run(*arguments, "--iterations", 7, "--format", "obj", "--format", "glb")
    assert exit_code == 0, output
    for name in ("--iterations", "--format"):
        assert f"clip: is a video, {name} is for pictures and was ignored" in output


def test_the_stages_of_a_frame_are_those_of_all_its_hands():
    times = [
        {"read": 2.0, "evidence": 1.0, "refine": 5.0},
        {"read": 2.0, "evidence": 1.0, "refine": 4.0, "render": 1.0},
    ]
    hands = tuple(SimpleNamespace(fit=SimpleNamespace(timings_ms=one)) for one in times)
    stages = cli_fit._stages_of(SimpleNamespace(hands=hands))
    assert stages == {"read": 2.0, "evidence": 1.0, "refine": 9.0, "render": 1.0}


@pytest.mark.parametrize(("n_entries", "n_fitted"), [(N_FRAMES - 1, N_FRAMES - 1), (N_FRAMES + 1, N_FRAMES)])
def test_what_was_fitted_stays_where_an_entry_is_missing_or_left(clip, tmp_path, n_entries, n_fitted):
    known = np.load(clip / "clip.npy")
    np.save(tmp_path / "k.npy", np.concatenate([known, known])[:n_entries])
    out = tmp_path / "out"
    exit_code, output = run("fit", clip / "clip.mp4", "-o", out, "--keypoints", tmp_path / "k.npy")
    assert exit_code == 1
    assert "clip.mp4: keypoints: " in output
    summary = json.loads((out / "clip_hands.jsonl").read_text().splitlines()[-1])["summary"]
    assert summary["frames"] == len(list(VideoReader(out / "clip_overlay.mp4"))) == n_fitted
    assert summary["fault"].startswith("keypoints: ")


def test_broken_videos_are_named_and_what_they_show_is_written(clip, tmp_path):
    whole = (clip / "clip.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "junk.mp4").write_bytes(b"nothing that moves" * 30)
    (tmp_path / "empty.mov").write_bytes(b"")
    out = tmp_path / "out"
    exit_code, output = run("fit", tmp_path / "cut.avi", "-o", out, "--keypoints", clip / "clip.npy")
    assert exit_code == 1
    assert re.search(rf"cut.avi: ends after \d of {N_FRAMES} frames: it is truncated or damaged", output)
    assert sorted(file.name for file in out.iterdir()) == ["cut_hands.jsonl", "cut_overlay.mp4"]
    summary = json.loads((out / "cut_hands.jsonl").read_text().splitlines()[-1])["summary"]
    assert summary["frames"] == len(list(VideoReader(out / "cut_overlay.mp4"))) < N_FRAMES
    exit_code, output = run("fit", tmp_path / "junk.mp4", tmp_path / "empty.mov", "-o", tmp_path / "none")
    assert exit_code == 1
    assert "junk.mp4: is damaged, or no video" in output
    assert "empty.mov: the file is empty" in output
    assert "0 of 2 files fitted" in output
    assert list((tmp_path / "none").iterdir()) == []


def test_keypoints_that_do_not_fit_the_video_are_named(clip, tmp_path):
    np.save(tmp_path / "few.npy", np.load(clip / "clip.npy")[:3])
    exit_code, output = run("fit", clip / "clip.mp4", "-o", tmp_path / "out", "--keypoints", tmp_path / "few.npy")
    assert exit_code == 1
    assert f"keypoints: expected an entry for each of {N_FRAMES} frames, got 3" in output
    assert list((tmp_path / "out").iterdir()) == [], "a video that failed leaves nothing half-written"
    (tmp_path / "none.json").write_text(json.dumps([None] * N_FRAMES))
    exit_code, output = run("fit", clip / "clip.mp4", "-o", tmp_path / "out", "--keypoints", tmp_path / "none.json")
    assert exit_code == 1
    assert "clip.mp4: no hand was found" in output
    both = (clip / "clip.mp4", clip / "clip.avi")
    exit_code, output = run("fit", *both, "-o", tmp_path / "out", "--keypoints", clip / "clip.npy")
    assert exit_code == 1
    assert "holds the keypoints of one video, but 2 files were given" in output


def test_a_folder_is_fitted_in_order_and_one_bad_picture_is_named(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    entry = {"keypoints": load_demo().keypoints2d_px.tolist(), "side": "right"}
    names = ["d.png", "a.png", "c.jpg", "b.png"]
    for name in names:
        save_image(pictures / name, load_demo().image)
    (pictures / "b.png").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("not a picture either")
    (tmp_path / "k.json").write_text(json.dumps({"images": dict.fromkeys(names, entry)}))
    out = tmp_path / "out"
    exit_code, output = run("fit", pictures, "-o", out, "--keypoints", tmp_path / "k.json", "--profile")
    assert exit_code == 1
    assert re.findall(r"^(\w): right hand", output, flags=re.MULTILINE) == ["a", "c", "d"]
    assert "3 of 4 pictures fitted" in output
    assert "b.png: is truncated, or not an image" in output
    stages = {line.split()[0] for line in output.splitlines() if re.search(r"  \d+\.\d\d$", line)}
    assert {"decode", "evidence", "refine", "draw", "write", "total"} <= stages
    assert "solver: Levenberg-Marquardt, compiled, on cpu" in output
    suffixes = (".glb", ".json", "_overlay.png")
    assert sorted(file.name for file in out.iterdir()) == sorted(stem + suffix for stem in "acd" for suffix in suffixes)


def test_several_hands_of_a_picture_are_numbered_and_shown_together(tmp_path):
    demo = load_demo()
    save_image(tmp_path / "two.png", demo.image)
    smaller = 0.5 * demo.keypoints2d_px + 10  # another hand, in a corner
    np.save(tmp_path / "k.npy", np.stack([demo.keypoints2d_px, smaller]))
    out = tmp_path / "out"
    exit_code, output = run("fit", tmp_path / "two.png", "-o", out, "--keypoints", tmp_path / "k.npy")
    assert exit_code == 0, output
    names = {file.name for file in out.iterdir()}
    assert {"two_overlay.png", "two_0_overlay.png", "two_1_overlay.png", "two_0.json", "two_1.json"} <= names
    pictures = [read_image(out / f"two{which}_overlay.png").astype(int) for which in ("", "_0", "_1")]
    together, first, second = (np.abs(picture - demo.image).sum(-1) > 0 for picture in pictures)
    assert (together & first).sum() > 0.95 * first.sum()
    assert (together & second).sum() > 0.95 * second.sum()
    assert json.loads((out / "two_0.json").read_text())["score"] == 1


def test_a_folder_without_pictures_is_said(tmp_path):
    exit_code, output = run("fit", tmp_path, "-o", tmp_path / "out")
    assert exit_code == 1
    assert "the folder holds no pictures and no videos" in output


@pytest.mark.parametrize(("n_frames", "is_terminal"), [(3, True), (3, False), (None, True)])
def test_a_terminal_shows_how_far_a_video_is(monkeypatch, n_frames, is_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with cli_fit._frames_bar(n_frames) as advance:
        for _ in range(3):
            advance()
    assert ("frames" in stream.getvalue()) == (is_terminal and n_frames is not None)


def test_hands_that_cannot_be_fitted_are_counted(clip, tmp_path, monkeypatch):
    def unfit(*_):
        raise ValueError("camera: too near")

    monkeypatch.setattr(hand_tracker, "search_hand", unfit)
    exit_code, output = run("fit", clip / "clip.mp4", "-o", tmp_path, "--keypoints", clip / "clip.npy")
    assert exit_code == 1
    assert f"clip: {N_FRAMES} hands could not be fitted, first frame 0: camera: too near" in output
    assert "clip.mp4: no hand was found" in output


# --- The pool ----------------------------------------------------------------------------------------------------


def test_results_come_in_order_whoever_is_done_first():
    started, together = [], threading.Barrier(2, timeout=10)

    def work(item: int) -> int:
        started.append(item)
        if item < 2:
            together.wait()  # passes only if two are at work at a time
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert list(cli_fit.in_order(work, range(9), workers=2)) == [item * item for item in range(9)]


def test_no_more_than_a_few_items_are_taken_before_their_results_are():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = cli_fit.in_order(lambda item: item, items(), workers=2)
    assert next(results) == 0
    assert len(taken) <= 5
    results.close()
    assert len(taken) <= 5


def test_an_error_of_one_item_comes_when_its_turn_does():
    def work(item: int) -> int:
        return 10 // (2 - item)

    results = cli_fit.in_order(work, range(5), workers=2)
    assert [next(results), next(results)] == [5, 10]
    with pytest.raises(ZeroDivisionError):
        next(results)
