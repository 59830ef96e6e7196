"""The commands around one's own networks; `eval` is in test_evaluate.py."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from dhpe_fast.cli import app
from dhpe_fast.data.recipe import read_recipe

pytest.importorskip("tensorboard", reason="the extra `train` is not installed")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_synth_draws_a_data_set(tmp_path):
    root = tmp_path / "set"
    options = ("--training", 2, "--evaluation", 1, "--size", 48, "--max-angle", 30, "--workers", 1)
    options += ("--gestures", 0.5, "--held", 1)
    done = call("synth", root, *options)
    assert done.exit_code == 0, done.output
    assert "2 training and 1 evaluation images" in done.output
    assert len(list((root / "training" / "color").iterdir())) == 2
    recipe = read_recipe(root)
    assert (recipe["size_px"], recipe["max_angle_deg"], recipe["gestures"], recipe["held"]) == (48, 30, 0.5, 1)
    again = call("synth", root, *options)
    assert again.exit_code == 1
    assert "exists already" in again.output


@pytest.mark.parametrize(
    ("flags", "resume"), [((), False), (("--resume",), True), (("--auto-resume",), "auto")], ids=["", "resume", "auto"]
)
def test_train_says_how_to_resume_and_one_process_says_where_the_weights_are(monkeypatch, flags, resume):
    asked = []
    monkeypatch.setattr("dhpe_fast.train.train", lambda *_, **options: asked.append(options["resume"]) or "run/best")
    assert "the best weights are in run/best" in call("train", "--config", "tiny", *flags).output
    monkeypatch.setenv("RANK", "1")
    assert call("train", "--config", "tiny", *flags).output == ""
    assert asked == [resume, resume]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--config", "huge"), "no shipped configuration"),
        (("train", "--config", "tiny", "--set", "optimisation.epochs=none"), "optimisation.epochs"),
        (("train", "--config", "tiny", "--set", "data.synthesize=null"), "data/synthetic_tiny"),
        (("train", "--config", "tiny", "--device", "gpu"), "device"),
        (("train", "--config", "tiny", "--set", "start.imagenet=none.pth", "--set", "model.depth=18"), "none.pth"),
        (("train", "--config", "tiny", "--set", "start.mano=MANO_RIGHT.pkl"), "MANO_RIGHT.pkl"),
        (("progress", "nowhere"), "nowhere has no finished epoch"),
        (("eval", "nowhere"), "config.yaml"),
        (("synth", "new", "--size", "2"), "size_px"),
    ],
)
def test_refusals_take_one_line_and_leave_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code == 1
    assert message in done.output.replace("\n", " ")
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(monkeypatch):
    import builtins

    real = builtins.__import__

    def without_yaml(name, *arguments, **options):
        if name.split(".")[0] == "yaml":
            raise ModuleNotFoundError("No module named 'yaml'", name="yaml")
        return real(name, *arguments, **options)

    import sys

    for name in [name for name in sys.modules if name == "dhpe_fast.config" or name.split(".")[0] == "yaml"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_yaml)
    done = call("train", "--config", "tiny")
    assert done.exit_code == 1
    assert "yaml is not installed: pip install 'dhpe-fast[train]'" in done.output
