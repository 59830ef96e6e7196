"""Training runs: what they leave, resuming after a kill, many processes as one, and what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")

from small_run import BATCHES, losses, small_batch, small_run_changes

from dhpe_fast.config import ConfigError, Synthesis, load_config
from dhpe_fast.data import recipe
from dhpe_fast.train import LAST, CheckpointError, checkpoint, load_model, loop, read_log, train
from dhpe_fast.train.log import RunLog
from dhpe_fast.train.run_facts import read_facts


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    return small_run_changes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def config(changes):
    return load_config("tiny", changes)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The run from beginning to end in this process."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(config, run, device="cpu")
    return run


def command(changes, run, *more, launcher=()) -> list[str]:
    options = [part for change in changes for part in ("--set", change)]
    name = ["-m", "dhpe_fast.cli", "train", "--config", "tiny", "--device", "cpu", "--output", str(run)]
    return [sys.executable, *launcher, *name, *options, *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def assert_same_losses(run, other, tolerance: float) -> None:
    ours, theirs = losses(run), losses(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=tolerance, abs=tolerance), f"step {one['step']}"


# --- Runs -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(config, finished):
    assert load_config(finished / "config.yaml") == config
    for name in ("best", "last"):
        assert {file.name for file in (finished / "checkpoints" / name).iterdir()} == {"model.safetensors", "state.pt"}
    assert sorted(child.name for child in (finished / "checkpoints").iterdir()) == ["best", "last"]
    assert any((finished / "tensorboard").iterdir())
    lines = losses(finished)
    # Four new views for each of the last two epochs' batches: an instance for each of 16 seeds, of which 8 are kept.
    assert len(lines) == BATCHES + BATCHES + (16 + 8) // 4
    assert all(math.isfinite(line["total"]) for line in lines)
    validation = read_log(finished, "validation")
    assert [line["instances"] for line in validation] == [0, 8, 8]
    assert {"epe_mm", "joints2d_px", "iou", "below_tau"} < set(validation[0])
    facts = read_facts(finished)
    assert (facts["network"], facts["steps"]) == ("dhpe", len(lines))
    assert facts["seconds"] == pytest.approx(sum(line["seconds"] for line in validation), abs=0.1)
    assert facts["device"].startswith("cpu")
    assert facts["weights"] > 10_000_000, "ResNet-18 alone has 11 million"
    assert facts["scores"]["epe_mm"] == validation[-1]["epe_mm"]
    assert "seconds" not in facts["scores"]


def test_the_weights_load_into_a_network_that_sees_the_same(config, finished):
    batch = small_batch(config)
    found, model = load_model(finished, LAST)
    assert found == config
    assert not model.training
    with torch.no_grad():
        first, second = model(batch.images), load_model(finished, LAST)[1](batch.images)
    torch.testing.assert_close(first.estimate.h, second.estimate.h, rtol=0, atol=0)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(config, changes, finished, tmp_path):
    run = tmp_path / "killed"
    # After any step will do: between a checkpoint and the next, in the second epoch, with instances proposed.
    last_step = BATCHES + 3
    process = subprocess.Popen(command(changes, run), env=environment(), stderr=subprocess.PIPE)
    try:
        give_up = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len(losses(run)) < last_step:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < give_up
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    assert len(losses(run)) < len(losses(finished))
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "st')  # what a kill in the middle of a line leaves
    train(config, run, resume=True, device="cpu")
    assert_same_losses(run, finished, 1e-6)
    ours, theirs = (read_log(folder, "validation")[-1]["epe_mm"] for folder in (run, finished))
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
def test_two_processes_are_one_and_one_goes_on_with_their_run(changes, tmp_path):
    """The second epoch trains on new views that both have proposed."""
    # Small steps: rounding errors, of sums in another order, are not to grow on the way.
    small_steps = "optimisation={epochs: %d, batch_size: 4, learning_rate: 0.000001}"
    shared = [*changes, "self_supervision={start_epoch: 0, instances_per_seed: 1, max_instances: 8}"]
    two_epochs = load_config("tiny", [*shared, small_steps % 2])
    train(two_epochs, tmp_path / "one", device="cpu")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        command([*shared, small_steps % 1], tmp_path / "two", launcher=launcher),
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert done.stderr.decode().count("the best weights are in") == 1
    assert len(losses(tmp_path / "two")) == BATCHES
    train(two_epochs, tmp_path / "two", resume=True, device="cpu")
    assert len(losses(tmp_path / "two")) == BATCHES + (16 + 8) // 4
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        # A rounding error more or less decides on which side of zero an activation falls: that shows in the gradient.
        assert two.pop("gradient_norm") == pytest.approx(one.pop("gradient_norm"), rel=5e-3)
        assert two == pytest.approx(one, rel=1e-4, abs=1e-4)
    ours, theirs = ([line["epe_mm"] for line in read_log(tmp_path / name, "validation")] for name in ("two", "one"))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """Files, then the folder that holds their names, then the folder in which it is renamed."""
    flushed = []
    monkeypatch.setattr(checkpoint, "_flush_to_disk", lambda path: flushed.append(path.name))
    checkpoint.save_checkpoint(tmp_path, LAST, torch.nn.Linear(2, 2), {"step": 1})
    assert sorted(flushed[:2]) == ["model.safetensors", "state.pt"]
    assert flushed[2:] == [".last.new", "checkpoints"]


def test_two_kills_in_a_row_lose_nothing(tmp_path):
    from dhpe_fast.train.checkpoint import find_checkpoint, save_checkpoint

    model = torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path, LAST, model, {"step": 1})
    folder = tmp_path / "checkpoints"
    (folder / LAST).rename(folder / f".{LAST}.old")  # killed between the renames
    broken = torch.nn.Module()
    broken.state_dict = lambda: {"weight": None}
    with pytest.raises(AttributeError):  # and stopped again while writing the next one
        save_checkpoint(tmp_path, LAST, broken, {"step": 2})
    found = find_checkpoint(tmp_path)
    assert torch.load(found / "state.pt", weights_only=True) == {"step": 1}


# --- Refusals -------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_not_overwritten(config, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="exists already; resume it"):
        train(config, finished)
    with pytest.raises(ConfigError, match="another configuration"):
        train(config.model_copy(update={"seed": 7}), finished, resume=True)
    with pytest.raises(ConfigError, match=r"finishd: is no run to resume, there is no .*config\.yaml"):
        train(config, finished.with_name("finishd"), resume=True)
    assert not finished.with_name("finishd").exists()
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_data_that_was_drawn_otherwise_is_not_trained_on(config, tmp_path, monkeypatch):
    """Of a run that draws its own data: the same recipe is used again, another one is refused by its fields."""
    root = tmp_path / "drawn"
    plan = Synthesis(root=root, n_training=1, n_evaluation=1, seed=2, size_px=48, max_angle_deg=30)

    def drawn(**changes):
        synthesize = plan.model_copy(update=changes)
        loop._draw_data(config.model_copy(update={"data": config.data.model_copy(update={"synthesize": synthesize})}))

    drawn()
    before = (root / "training" / "color" / "00000.png").stat().st_mtime_ns
    drawn()
    assert (root / "training" / "color" / "00000.png").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"drawn was drawn with seed: 2 instead of 3, size_px: 48 instead of 64; "):
        drawn(seed=3, size_px=64)
    monkeypatch.setattr(recipe, "GENERATOR_VERSION", 99)
    with pytest.raises(ConfigError, match=r"generator_version: \d instead of 99; choose another root, or remove"):
        drawn()
    with pytest.raises(ConfigError, match=r"color is there and was not drawn for this run: .*recipe\.json: no such"):
        drawn(root=root / "training" / "color")


def test_a_finished_run_resumes_to_nothing(config, finished):
    before = losses(finished)
    train(config, finished, resume=True, device="cpu")
    assert losses(finished) == before


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt"])
def test_a_damaged_checkpoint_is_named(config, finished, tmp_path, file):
    run = tmp_path / "copy"
    (run / "checkpoints/last").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/last/model.safetensors", "checkpoints/last/state.pt"):
        (run / name).write_bytes((finished / name).read_bytes())
    damaged = run / "checkpoints/last" / file
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=f"{file}: cannot be read"):
        train(config, run, resume=True, device="cpu")


def test_weights_of_other_networks_are_refused(config, finished, tmp_path):
    run = tmp_path / "copy"
    (run / "checkpoints/best").mkdir(parents=True)
    for name in ("model.safetensors", "state.pt"):
        (run / "checkpoints/best" / name).write_bytes((finished / "checkpoints/best" / name).read_bytes())
    text = (finished / "config.yaml").read_text().replace("use_refiner: true", "use_refiner: false")
    (run / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="are not those of this model"):
        load_model(run)


def test_there_is_no_model_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"config.yaml.*cannot be read"):
        load_model(tmp_path)


def test_a_number_that_is_not_finite_is_null_in_the_log_and_read_as_nan(tmp_path):
    log = RunLog(tmp_path, 0, 0)
    log.scalars("validation", 1, {"epe_mm": math.inf, "iou": math.nan, "below_tau": 0.5}, epoch=0)
    log.close()
    for _ in range(2):  # resuming writes the lines anew
        text = (tmp_path / "metrics.jsonl").read_text()
        assert json.loads(text, parse_constant=pytest.fail)["epe_mm"] is None
        (line,) = read_log(tmp_path, "validation")
        assert [math.isnan(line[key]) for key in ("epe_mm", "iou", "below_tau")] == [True, True, False]
        RunLog(tmp_path, 1, 1).close()


def test_metrics_are_one_json_object_a_line(finished):
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["kind"] in ("train", "validation") for line in lines)


def test_shared_batch_statistics_are_those_of_the_whole_batch(monkeypatch):
    """Each process has its part of the batch; what one sums up here stands for what all have summed up."""
    from dhpe_fast.train import distributed

    torch.manual_seed(0)
    whole = torch.randn(6, 3, 5, 4, dtype=torch.float64)
    own = torch.nn.BatchNorm2d(3, dtype=torch.float64).train()
    shared = distributed.SharedBatchNorm2d.convert(torch.nn.Sequential(torch.nn.BatchNorm2d(3, dtype=torch.float64)))[0]
    for layer in (own, shared):
        torch.nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor: None)
    upstream = torch.randn_like(whole)
    results = []
    for layer in (own, shared):
        x = whole.clone().requires_grad_()
        y = layer(x)
        y.backward(upstream)
        results.append((y, x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(two, one)
