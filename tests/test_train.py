"""Training: the objective against its parts, resuming after a kill, many processes as one, and what a run refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")

from dhpe_fast.config import ConfigError, Synthesis, load_config
from dhpe_fast.data import apply_colour, collate
from dhpe_fast.data.synthetic import write_synthetic
from dhpe_fast.losses import articulation_loss, feature_loss
from dhpe_fast.train import LAST, CheckpointError, TrainingDivergedError, load_model, loop, open_crops, read_log, train
from dhpe_fast.train.distributed import World
from dhpe_fast.train.loop import Trainer, build_model
from dhpe_fast.train.objective import TrainingObjective

EPOCHS, BATCHES = 3, 4
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    """A run of seconds, as changes of a shipped one: 3 epochs of 4 batches of 4; new views from the second on."""
    root = tmp_path_factory.mktemp("data") / "set"
    write_synthetic(root, 16, 4, seed=1, size_px=64, max_angle_deg=40, workers=1)
    source = f"{{format: rhd, root: {root}, split: %s}}"
    return [
        f"data.train=[{source % 'train'}]",
        f"data.validation=[{source % 'test'}]",
        "data.synthesize=null",
        "data.workers=0",
        "model={depth: 18, image_size: 32, pose2d_width: 0.0625, pose2d_stages: 2, pose2d_input_size: 64}",
        f"optimisation={{epochs: {EPOCHS}, batch_size: 4, learning_rate: 0.0003, schedule: cosine, warmup_steps: 2}}",
        "self_supervision={start_epoch: 1, instances_per_seed: 1, max_instances: 8}",
        "checkpoint_every=3",
        "picture_every=5",
    ]


@pytest.fixture(scope="module")
def config(changes):
    return load_config("tiny", changes)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The run from beginning to end in this process."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(config, run, device="cpu")
    return run


@pytest.fixture(scope="module")
def batch(config):
    crops = open_crops(config, training=True)
    return apply_colour(collate([crops[0, k] for k in range(4)]))


def command(changes, run, *more, launcher=()) -> list[str]:
    options = [part for change in changes for part in ("--set", change)]
    name = ["-m", "dhpe_fast.cli", "train", "--config", "tiny", "--device", "cpu", "--output", str(run)]
    return [sys.executable, *launcher, *name, *options, *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def losses(run) -> list[dict[str, float]]:
    return [{key: line[key] for key in line if key != "kind"} for line in read_log(run, "train")]


def assert_same_losses(run, other, tolerance: float) -> None:
    ours, theirs = losses(run), losses(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=tolerance, abs=tolerance), f"step {one['step']}"


# --- The objective --------------------------------------------------------------------------------------------


def test_total_is_the_weighted_sum_of_its_terms(config, batch):
    torch.manual_seed(0)
    weights = {"articulation": 2.0, "feature": 0.5, "pose_prior": 0.01, "shape_prior": 0.1}
    loss = config.loss.model_copy(update=weights)
    objective = TrainingObjective(build_model(config).eval(), loss)
    with torch.no_grad():
        found = objective(batch)
        masked = objective.model.features(batch.images * batch.masks[:, None])
        terms = objective.terms(batch, found.output, masked)
        gate = objective.gate(batch, found.output)
    expected = 0.0
    for name, term in terms.items():
        for row in range(4):
            factor = float(gate[row]) if name == "silhouette" else 1.0
            expected += getattr(loss, name) * factor * float(term[row]) / 4
    assert float(found.total) == pytest.approx(expected, rel=1e-5)
    assert set(terms) == {
        "articulation", "laplacian", "silhouette", "heatmap", "refine", "feature", "pose_prior", "shape_prior"
    }  # fmt: skip


def test_terms_are_those_of_the_equations(config, batch):
    torch.manual_seed(0)
    model = build_model(config).eval()
    objective = TrainingObjective(model, config.loss)
    with torch.no_grad():
        found = objective(batch)
        masked = model.features(batch.images * batch.masks[:, None])
        feature = feature_loss(found.output.evidence.features, masked, reduction="mean").mean()
        articulation = articulation_loss(found.output.projection.joints, batch.joints_crop, batch.valid).mean()
    torch.testing.assert_close(found.terms["feature"], feature)
    torch.testing.assert_close(found.terms["articulation"], articulation)


def test_hands_without_labels_teach_nothing(config, batch):
    torch.manual_seed(0)
    objective = TrainingObjective(build_model(config).eval(), config.loss)
    unlabelled = replace(
        batch,
        valid=torch.zeros_like(batch.valid),
        has_mask=torch.zeros_like(batch.has_mask),
        joints_crop=torch.full_like(batch.joints_crop, torch.nan),
    )
    objective(unlabelled).total.backward()
    gradients = [p.grad for p in objective.model.pose2d.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        output = objective(unlabelled).output
        terms = objective.terms(unlabelled, output, output.evidence.features + 1)
    assert all(float(terms[name].abs().sum()) == 0 for name in ("articulation", "silhouette", "feature", "refine"))


def test_the_mesh_terms_leave_the_2d_network_alone(config, batch):
    torch.manual_seed(0)
    objective = TrainingObjective(build_model(config), config.loss.model_copy(update={"heatmap": 0.0}))
    objective(batch).total.backward()
    assert all(p.grad is None or not p.grad.any() for p in objective.model.pose2d.parameters())
    assert any(p.grad is not None and p.grad.any() for p in objective.model.features.parameters())


def test_half_precision_changes_the_networks_and_nothing_after_them(config, batch):
    torch.manual_seed(0)
    objective = TrainingObjective(build_model(config).eval(), config.loss.model_copy(update={"pose_prior": 0.01}))
    with torch.no_grad():
        full = objective(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = objective(batch)
            terms = objective.terms(batch, full.output, full.output.evidence.features)
    assert float(half.total) == pytest.approx(float(full.total), rel=0.05)
    for name in ("articulation", "laplacian", "silhouette", "refine", "pose_prior"):
        torch.testing.assert_close(terms[name].mean(), full.terms[name], msg=name)


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


def test_the_weights_load_into_a_network_that_sees_the_same(config, finished, batch):
    found, model = load_model(finished, LAST)
    assert found == config
    assert not model.training
    with torch.no_grad():
        first, second = model(batch.images), load_model(finished, LAST)[1](batch.images)
    torch.testing.assert_close(first.estimate.h, second.estimate.h, rtol=0, atol=0)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(changes, finished, tmp_path):
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
    subprocess.run(command(changes, run, "--resume"), env=environment(), check=True, capture_output=True)
    assert_same_losses(run, finished, 1e-6)
    ours, theirs = (read_log(folder, "validation")[-1]["epe_mm"] for folder in (run, finished))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_two_processes_are_one(changes, tmp_path):
    # Small steps: rounding errors, of sums in another order, are not to grow on the way.
    changes = [*changes, "optimisation={epochs: 1, batch_size: 4, learning_rate: 0.000001}"]
    train(load_config("tiny", changes), tmp_path / "one", device="cpu")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        command(changes, tmp_path / "two", launcher=launcher),
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert len(losses(tmp_path / "two")) == BATCHES
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        # A rounding error more or less decides on which side of zero an activation falls: that shows in the gradient.
        assert two.pop("gradient_norm") == pytest.approx(one.pop("gradient_norm"), rel=5e-3)
        assert two == pytest.approx(one, rel=1e-4, abs=1e-4)
    ours, theirs = (read_log(tmp_path / name, "validation")[0]["epe_mm"] for name in ("two", "one"))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_loss_that_is_not_finite_changes_no_weight_and_stops_the_run_if_it_stays(config, batch, tmp_path):
    torch.manual_seed(0)
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
    poisoned = replace(batch, images=torch.full_like(batch.images, torch.nan))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for _ in range(config.optimisation.max_skipped_steps - 1):
        trainer._step(poisoned, BATCHES)
    for name, value in trainer.model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)
    with pytest.raises(TrainingDivergedError, match=r"not finite 10 times running.*articulation nan"):
        trainer._step(poisoned, BATCHES)


def test_a_step_clips_both_gradients_and_follows_the_schedule(config, batch, tmp_path):
    changed = config.optimisation.model_copy(update={"gradient_clip": 1e-3, "warmup_steps": 1})
    trainer = Trainer(config.model_copy(update={"optimisation": changed}), tmp_path, ALONE, build_model(config))
    rates = []
    for _ in range(3):
        trainer._step(batch, BATCHES)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        for group in trainer.optimizer.param_groups:
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in group["params"] if p.grad is not None))
            assert norm == pytest.approx(1e-3, rel=1e-2)
    assert trainer.objective.training
    full = 3e-4
    expected = [full / 2, *(full * 0.5 * (1 + math.cos(math.pi * k / (EPOCHS * BATCHES))) for k in (1, 2))]
    assert rates == pytest.approx(expected)


def test_seeds_of_new_views_are_training_crops_alone(config, batch, tmp_path):
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
    trainer._step(replace(batch, index=torch.tensor([3, 40, 1, 16])), BATCHES)
    assert trainer.proposed == []  # before the first epoch of Sec. 3.5
    trainer.progress.epoch = 1
    trainer._step(replace(batch, index=torch.tensor([3, 40, 1, 16])), BATCHES)
    assert [part.source.tolist() for part in trainer.proposed] == [[3, 1]]


def test_a_worse_epoch_does_not_replace_the_best(config, tmp_path, monkeypatch):
    errors = iter([40.0, 50.0, 30.0])
    monkeypatch.setattr(loop, "validate", lambda *_: {"epe_mm": next(errors)})
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
    best = []
    for epoch in range(3):
        trainer.progress.step = epoch
        trainer._end_epoch(epoch)
        best.append(torch.load(tmp_path / "checkpoints/best/state.pt", weights_only=True)["progress"]["step"])
    assert best == [0, 0, 2]


def test_the_masked_crops_share_the_statistics_of_the_whole_ones(config, batch):
    torch.manual_seed(0)
    objective = TrainingObjective(build_model(config), config.loss).train()
    calls = []
    objective.model.features.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0]))
    one_without = replace(batch, has_mask=torch.tensor([True, True, False, True]))
    objective(one_without)
    assert [len(images) for images in calls] == [8]
    torch.testing.assert_close(calls[0][4], batch.images[0] * batch.masks[0])
    torch.testing.assert_close(calls[0][6], batch.images[2])


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


def test_without_heat_maps_the_2d_network_stays_as_it_is(changes, tmp_path):
    changes = [*changes, "loss.heatmap=0", "optimisation={epochs: 1, batch_size: 4}"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        command(changes, tmp_path / "run", launcher=launcher),
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert len(losses(tmp_path / "run")) == BATCHES
    assert "gradient_norm_pose2d" not in losses(tmp_path / "run")[0]


# --- Refusals -------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_not_overwritten(config, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="exists already; resume it"):
        train(config, finished)
    with pytest.raises(ConfigError, match="another configuration"):
        train(config.model_copy(update={"seed": 7}), finished, resume=True)
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_data_that_was_drawn_otherwise_is_not_trained_on(config, tmp_path):
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
