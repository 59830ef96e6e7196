"""Weights of training runs, packed for the package: the same network, and where it comes from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")

from small_run import small_run_changes

from dhpe_fast import cli
from dhpe_fast.config import ConfigError, LifterConfig, load_config, save_config
from dhpe_fast.nets import DHPE
from dhpe_fast.nets.lifter import Lifter
from dhpe_fast.pretrained import MANIFEST, WeightsFolder
from dhpe_fast.train import LAST, checkpoint
from dhpe_fast.train.export import export_run
from dhpe_fast.train.run_facts import write_facts

CPU = torch.device("cpu")


def make_run(run: Path, config, trained: torch.nn.Module, **facts) -> Path:
    """A folder as a finished run leaves it, of random weights."""
    run.mkdir(parents=True)
    save_config(config, run / "config.yaml")
    checkpoint.save_checkpoint(run, LAST, trained, {})
    write_facts(run, trained, CPU, {"error_mm": 1.5, "nothing": float("nan")}, steps=7, seconds=3.25, **facts)
    return run


@pytest.fixture(scope="module")
def lifter_run(tmp_path_factory):
    options = {"steps": 7, "batch_size": 2, "learning_rate": 0.001}
    config = LifterConfig(network="lifter", seed=5, optimisation=options, model={"width": 16, "blocks": 1})
    torch.manual_seed(1)
    return make_run(tmp_path_factory.mktemp("runs") / "lifter", config, Lifter(config.model), network="lifter")


@pytest.fixture(scope="module")
def dhpe_run(tmp_path_factory):
    """A run that starts from another one, as the one of the package does."""
    folder = tmp_path_factory.mktemp("dhpe")
    changes = [f"data.synthesize={{root: {folder / 'set'}, n_training: 16, n_evaluation: 4, seed: 3}}"]
    first = load_config("tiny", [*small_run_changes(folder), *changes, "loss.heatmap=2"])
    torch.manual_seed(1)
    network = DHPE(depth=18, image_size=32, pose2d_width=0.0625, pose2d_stages=2, pose2d_input_size=64)
    make_run(folder / "pose2d", first, network, network="dhpe")
    second = first.model_copy(update={"start": first.start.model_copy(update={"pose2d": folder / "pose2d"})})
    return make_run(folder / "second", second, network, network="dhpe")


def test_an_exported_lifter_is_read_as_it_was_trained(lifter_run, tmp_path):
    file = export_run(lifter_run, "lifter", tmp_path / "weights")
    assert file == tmp_path / "weights" / "lifter.pt"
    found = WeightsFolder(tmp_path / "weights").network("lifter")
    trained = Lifter(load_config(lifter_run / "config.yaml").model)
    checkpoint.load_weights(lifter_run / "checkpoints" / LAST, trained)
    joints = torch.rand(3, 21, 2)
    torch.testing.assert_close(found(joints).pose, trained.eval()(joints).pose, rtol=0, atol=2e-3)


def test_the_manifest_says_where_weights_come_from(lifter_run, tmp_path):
    file = export_run(lifter_run, "lifter", tmp_path)
    entry = json.loads((tmp_path / MANIFEST).read_text())["lifter.pt"]
    assert entry["bytes"] == file.stat().st_size
    assert (entry["seed"], entry["steps"], entry["wall_time_s"], entry["checkpoint"]) == (5, 7, 3.25, "last")
    assert entry["device"].startswith("cpu")
    assert entry["accuracy"] == {"error_mm": 1.5, "nothing": None}
    assert entry["config"]["model"]["width"] == 16
    assert entry["recipe"] == entry["config"]["data"]


def test_a_run_that_starts_from_another_names_both_and_no_folder_of_the_machine(dhpe_run, tmp_path):
    export_run(dhpe_run, "dhpe", tmp_path, accuracy={"AUC": 0.9})
    entry = json.loads((tmp_path / MANIFEST).read_text())["dhpe.pt"]
    assert entry["accuracy"] == {"AUC": 0.9}
    assert entry["config"]["start"]["pose2d"] == "pose2d"
    assert entry["starts_from"]["config"]["loss"]["heatmap"] == 2
    assert entry["starts_from"]["accuracy"] == {"error_mm": 1.5, "nothing": None}
    assert (entry["recipe"]["n_training"], entry["recipe"]["seed"]) == (16, 3), "its plan: another set is on the disk"
    assert str(dhpe_run.parent) not in (tmp_path / MANIFEST).read_text()
    assert WeightsFolder(tmp_path).network("dhpe").image_size == 32


def test_runs_that_start_from_each_other_are_refused(dhpe_run, tmp_path):
    config = load_config(dhpe_run / "config.yaml")
    for name, start in (("one", "other"), ("other", "one")):
        again = config.model_copy(update={"start": config.start.model_copy(update={"pose2d": tmp_path / start})})
        make_run(tmp_path / name, again, DHPE(**asdict(config.model)), network="dhpe")
    with pytest.raises(ValueError, match="starts from a run that started from it"):
        export_run(tmp_path / "one", "dhpe", tmp_path / "weights")


def test_other_networks_of_the_folder_stay(lifter_run, dhpe_run, tmp_path):
    export_run(lifter_run, "lifter", tmp_path)
    export_run(dhpe_run, "dhpe", tmp_path)
    export_run(lifter_run, "lifter", tmp_path, accuracy={})
    folder = WeightsFolder(tmp_path)
    assert list(folder.manifest()) == ["dhpe.pt", "lifter.pt"]
    assert all(line.ok for line in folder.describe())
    assert folder.network("lifter") is not folder.network("dhpe")


def test_an_export_that_fails_leaves_everything_as_it_was(lifter_run, tmp_path, monkeypatch):
    export_run(lifter_run, "lifter", tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_run(lifter_run, "lifter", tmp_path, accuracy={"other": 1})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_cannot_be_exported_is_named(lifter_run, dhpe_run, tmp_path):
    with pytest.raises(ConfigError, match=r"is a run of the network 'lifter', not of 'dhpe'"):
        export_run(lifter_run, "dhpe", tmp_path)
    with pytest.raises(ConfigError, match=r"is a run of the network 'dhpe', not of 'locator'"):
        export_run(dhpe_run, "locator", tmp_path)
    with pytest.raises(ValueError, match="name: expected one of dhpe, lifter, locator, got 'hand'"):
        export_run(lifter_run, "hand", tmp_path)
    with pytest.raises(ValueError, match="checkpoint: a run of the lifter has 'last' alone, got 'best'"):
        export_run(lifter_run, "lifter", tmp_path, checkpoint="best")
    with pytest.raises(ConfigError, match="cannot be read"):
        export_run(tmp_path / "none", "lifter", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_finished_is_named(lifter_run, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last"):
        (run / name).symlink_to(lifter_run / name)
    with pytest.raises(ValueError, match=r"run\.json: cannot be read .*trained to its end\?"):
        export_run(run, "lifter", tmp_path / "weights")
    (run / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="holds list, expected the facts of a run"):
        export_run(run, "lifter", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_the_command_line_exports_and_says_what_it_wrote(lifter_run, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(cli.app, ["export", str(lifter_run), "--name", "lifter", "-o", *arguments])

    done = run(str(tmp_path), "--accuracy", "joints, mm=2.5", "--accuracy", "hands=200")
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path / 'lifter.pt'}, 0.0 MB" in done.output
    assert json.loads((tmp_path / MANIFEST).read_text())["lifter.pt"]["accuracy"] == {"joints, mm": 2.5, "hands": 200}
    done = run(str(tmp_path), "--accuracy", "2.5")
    assert done.exit_code == 1
    assert "--accuracy: expected NAME=VALUE, got '2.5'" in done.output
    np.testing.assert_equal(done.output.count("\n"), 1)
