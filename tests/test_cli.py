"""The command line, run as a user runs it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from typer.testing import CliRunner

from dhpe_fast import __version__, cli, cli_fit, doctor
from dhpe_fast.conventions import joint_permutation
from dhpe_fast.data.demo import DEMO_ANSWER, DEMO_IMAGE, load_demo
from dhpe_fast.image import read_image
from dhpe_fast.io import save_image


def run(*arguments: object) -> tuple[int, str]:
    """Exit code, and what was printed to both streams."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_help_names_the_commands_without_loading_torch():
    code = "import sys, dhpe_fast.cli; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
    exit_code, output = run("--help")
    assert exit_code == 0
    assert all(command in output for command in ("fit", "demo", "doctor"))
    assert run("--version") == (0, f"dhpe-fast {__version__}\n")


def test_demo_writes_its_files_and_prints_its_errors(tmp_path):
    exit_code, output = run("demo", "-o", tmp_path / "new" / "out")
    assert exit_code == 0, output
    folder = tmp_path / "new" / "out"
    assert sorted(file.name for file in folder.iterdir()) == ["demo.glb", "demo.json", "demo_overlay.png"]
    assert read_image(folder / "demo_overlay.png").shape == load_demo().image.shape
    values = {line.split("  ")[0]: line.split()[-2] for line in output.splitlines() if line.endswith((" px", " mm"))}
    assert float(values["2D joints, mean error"]) < 4
    assert float(values["3D joints, PA-MPJPE"]) < 12


def test_fit_writes_overlay_mesh_and_parameters_of_each_picture(tmp_path):
    keypoints = load_demo().keypoints2d_px
    images = {}
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name, load_demo().image)
        images[name] = {"keypoints": keypoints.tolist(), "side": "left" if name == "b.png" else "right"}
    (tmp_path / "k.json").write_text(json.dumps({"images": images}))
    out = tmp_path / "out"
    exit_code, output = run(
        "fit", tmp_path / "a.png", tmp_path / "b.png", "-o", out, "--keypoints", tmp_path / "k.json",
        "--format", "ply", "--format", "obj", "--iterations", 5,
    )  # fmt: skip
    assert exit_code == 0, output
    suffixes = ("_overlay.png", ".ply", ".obj", ".json")
    assert sorted(file.name for file in out.iterdir()) == sorted(s + x for s in "ab" for x in suffixes)
    assert len(trimesh.load(out / "a.ply", process=False).vertices) == 778
    assert [json.loads((out / f"{s}.json").read_text())["side"] for s in "ab"] == ["right", "left"]


def test_the_order_and_the_hand_of_the_call_are_used(tmp_path):
    table = list(joint_permutation("std", "rhd"))
    np.save(tmp_path / "k.npy", load_demo().keypoints2d_px[table])
    arguments = ("fit", DEMO_IMAGE, "-o", tmp_path, "--keypoints", tmp_path / "k.npy", "--hand", "left")
    assert run(*arguments, "--order", "rhd")[0] == 0
    record = json.loads((tmp_path / "hand.json").read_text())
    assert record["side"] == "left"
    np.testing.assert_allclose(record["keypoints2d_px"], load_demo().keypoints2d_px, atol=0.01)


def test_one_bad_picture_is_reported_and_the_others_go_on(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    save_image(tmp_path / "good.png", load_demo().image)
    entry = {"keypoints": load_demo().keypoints2d_px.tolist()}
    (tmp_path / "k.json").write_text(json.dumps({"bad.png": entry, "good.png": entry, "none.png": entry}))
    names = ("bad.png", "none.png", "good.png", "unnamed.png")
    save_image(tmp_path / "unnamed.png", load_demo().image)
    out = tmp_path / "out"
    exit_code, output = run("fit", *(tmp_path / name for name in names), "-o", out, "--keypoints", tmp_path / "k.json")
    assert exit_code == 1
    assert re.search(r"(right|left) hand, joints \d+\.\d\d px on average from the (seen|given) ones", output)
    assert "1 of 4 pictures fitted" in output
    assert all(name in output for name in ("bad.png", "none.png", "unnamed.png"))
    assert "no such file" in output
    assert sorted(file.name for file in out.iterdir()) == ["good.glb", "good.json", "good_overlay.png"]


def test_pictures_of_one_name_do_not_overwrite_each_other(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        save_image(tmp_path / folder / "a.png", load_demo().image)
    (tmp_path / "k.json").write_text(json.dumps({"a.png": load_demo().keypoints2d_px.tolist()}))
    images = [tmp_path / folder / "a.png" for folder in ("x", "y")]
    assert run("fit", *images, "-o", tmp_path / "out", "--keypoints", tmp_path / "k.json")[0] == 0
    assert {"a.glb", "a-2.glb"} <= {file.name for file in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keypoints", "none.json"), "none.json: no such file"),
        (("--order", "rhd"), "--order: needs --keypoints"),
        (("--mano", "none.pkl"), "none.pkl"),
        (("--keypoints", str(DEMO_ANSWER), "--device", "abacus"), "abacus"),
    ],
)
def test_what_fails_for_every_picture_is_said_in_one_line(tmp_path, arguments, message):
    exit_code, output = run("fit", DEMO_IMAGE, "-o", tmp_path / "out", *arguments)
    assert exit_code == 1
    assert message in output
    assert "Traceback" not in output


def test_one_set_of_keypoints_does_not_serve_two_pictures(tmp_path):
    exit_code, output = run("fit", DEMO_IMAGE, DEMO_IMAGE, "-o", tmp_path, "--keypoints", DEMO_ANSWER)
    assert exit_code == 1
    assert "the keypoints of one picture, but 2 were given" in output


# --- Doctor -------------------------------------------------------------------------------------------------


def test_the_doctor_finds_a_sound_installation():
    exit_code, output = run("doctor")
    assert exit_code == 0, output
    assert all(word in output for word in ("torch", "opencv", "mediapipe", "processor", "lbs on cpu", "All is well"))


def test_the_doctor_notices_a_wrong_op(monkeypatch):
    from dhpe_fast import ops

    right = ops.lbs
    monkeypatch.setattr(ops, "lbs", lambda *inputs: tuple(1.01 * result for result in right(*inputs)))
    findings = doctor.examine()
    assert [finding.name for finding in findings if not finding.ok] == ["lbs on cpu"]
    exit_code, output = run("doctor")
    assert exit_code == 1
    assert "! lbs on cpu" in output


def test_the_doctor_speaks_where_the_compiled_part_is_missing(monkeypatch):
    def missing():
        raise ImportError("dhpe-fast's compiled module could not be loaded")

    monkeypatch.setattr(doctor, "_kernels", missing)
    exit_code, output = run("doctor")
    assert exit_code == 1
    assert "could not be loaded" in output
    assert "torch" in output


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_terminal_shows_how_far_several_pictures_are(monkeypatch, is_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    images = [Path("a.png"), Path("b.png")]
    assert list(cli_fit.progress(images)) == images
    assert ("fitting" in stream.getvalue()) == is_terminal
    assert list(cli_fit.progress(images[:1])) == images[:1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", DEMO_IMAGE, "--hand", "rigth"), "--hand: expected auto, left or right, got 'rigth'"),
        (("fit", DEMO_IMAGE, "--evidence", "magic"), "--evidence: expected auto, networks or mediapipe, got 'magic'"),
        (("fit", DEMO_IMAGE, "--format", "stl"), "--format: expected glb, obj, ply or npz, got 'stl'"),
        (("fit", DEMO_IMAGE, "--device", "gpu"), "--device: expected cpu, cuda or cuda:NUMBER, got 'gpu'"),
        (
            ("fit", DEMO_IMAGE, "--keypoints", DEMO_ANSWER, "--evidence", "networks"),
            "--evidence: is for files without --keypoints, which already say where the joints are",
        ),
        (("fit", DEMO_IMAGE, "-o", "{file}/x"), "--output: the folder '{file}/x' cannot be made (Not a directory)"),
        (("fit", DEMO_IMAGE, "-o", "{file}"), "--output: the folder '{file}' cannot be made (File exists)"),
        (("demo", "-o", "{file}/x"), "--output: the folder '{file}/x' cannot be made (Not a directory)"),
        (("eval", "nosuchrun"), "RUN: 'nosuchrun' is no folder of a training run, it has no config.yaml"),
        (("export", "no", "--name", "dhpe", "-o", "x"), "RUN: 'no' is no folder of a training run"),
        (("synth", "{file}/x/y"), "ROOT: the folder '{file}/x' cannot be made (Not a directory)"),
        (
            ("train", "--config", "tiny", "-o", "{file}/x"),
            "--output: the folder '{file}/x' cannot be made (Not a directory)",
        ),
        (("train", "--config", "tiny", "--device", "gpu"), "--device: expected cpu, cuda or cuda:NUMBER, got 'gpu'"),
        (
            ("train", "--config", "tiny", "--set", "foo.bar"),
            "overrides (--set): 'foo.bar': expected section.key=value",
        ),
    ],
)
def test_what_a_user_mistypes_is_one_line_that_names_it(tmp_path, monkeypatch, arguments, message):
    if arguments[0] not in ("fit", "demo"):
        pytest.importorskip("pydantic", reason="the extra `train` is not installed")
        pytest.importorskip("tensorboard", reason="the extra `train` is not installed")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.touch()
    exit_code, output = run(*(str(argument).format(file=file) for argument in arguments))
    assert exit_code == 1
    assert output.startswith("dhpe-fast: " + message.format(file=file)), output
    assert output.count("\n") == 1
    assert [left.name for left in tmp_path.iterdir()] == ["file"]
