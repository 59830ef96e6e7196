"""A trainer's steps and epochs: gradients, precision, order, new views, what is frozen, and which weights are best."""

from __future__ import annotations

import json
import math
import pickle
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")

from small_run import ALONE, BATCHES, EPOCHS, changed, small_batch, small_run_changes
from test_nets_pose2d import tiny_arrays

from dhpe_fast.config import load_config
from dhpe_fast.data import EpochSampler
from dhpe_fast.nets.mesh_estimator import initial_hand
from dhpe_fast.train import TrainingDivergedError, build_model, loop
from dhpe_fast.train.checkpoint import CheckpointError
from dhpe_fast.train.distributed import World
from dhpe_fast.train.loop import Trainer


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return load_config("tiny", small_run_changes(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def batch(config):
    return small_batch(config)


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_weights(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)


# --- Steps ----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_changes_no_weight_and_stops_the_run_if_it_stays(config, batch, tmp_path):
    torch.manual_seed(0)
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
    poisoned = replace(batch, images=torch.full_like(batch.images, torch.nan))
    before = weights_of(trainer.model)
    for _ in range(config.optimisation.max_skipped_steps - 1):
        trainer._step(poisoned, BATCHES)
    assert_same_weights(trainer.model, before)
    with pytest.raises(TrainingDivergedError, match=r"not finite 10 times running.*articulation nan"):
        trainer._step(poisoned, BATCHES)


def test_a_step_is_skipped_by_all_processes_if_one_of_them_has_to(config, batch, tmp_path, monkeypatch):
    """What the other has: a loss of infinity. The mean of both decides, in each of them."""
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
    before = weights_of(trainer.model)
    rounds = []

    def mean(_, values):
        rounds.append(len(values))
        theirs = values.clone()
        theirs[0] = torch.inf
        return (values + theirs) / 2

    monkeypatch.setattr(World, "mean", mean)
    trainer._step(batch, BATCHES)
    assert trainer.progress.skipped_in_a_row == 1
    assert_same_weights(trainer.model, before)
    assert len(rounds) == 1  # all numbers of a step in one message


def test_a_step_clips_both_gradients_and_follows_the_schedule(config, batch, tmp_path):
    config = changed(config, "optimisation", gradient_clip=1e-3, warmup_steps=1)
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_convolutions_of_a_step_run_in_the_configured_precision(config, batch, tmp_path, precision):
    config = changed(config, "optimisation", precision=precision)
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
    seen = []
    convolution = next(m for m in trainer.model.features.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, inputs, output: seen.append(output))
    trainer._step(batch, BATCHES)
    assert [output.dtype for output in seen] == [getattr(torch, precision)]
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_weights_have_the_layout_of_the_images_and_are_saved_in_the_usual_one(config, tmp_path):
    from safetensors.torch import load_file

    torch.manual_seed(0)
    model = build_model(config)
    before = weights_of(model)
    trainer = Trainer(config, tmp_path, ALONE, model)
    kernels = [value for value in trainer.model.parameters() if value.dim() == 4]
    assert kernels
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in kernels)
    trainer._save("last")
    saved = load_file(tmp_path / "checkpoints/last/model.safetensors")
    for name, value in before.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=0)


# --- What is trained ------------------------------------------------------------------------------------------


@pytest.fixture
def one_process_as_of_many(tmp_path):
    """A group of processes with one member: the module is distributed, and waits for every gradient."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield World(0, 2, torch.device("cpu"))
    torch.distributed.destroy_process_group()


def test_without_heat_maps_the_2d_network_stays_as_it_is(config, batch, tmp_path, one_process_as_of_many):
    config = changed(config, "loss", heatmap=0.0)
    trainer = Trainer(config, tmp_path, one_process_as_of_many, build_model(config))
    pose2d, features = weights_of(trainer.model.pose2d), weights_of(trainer.model.features)
    for _ in range(2):  # the second asks whether all gradients of the first have come
        trainer._step(batch, BATCHES)
    assert_same_weights(trainer.model.pose2d, pose2d)
    with pytest.raises(AssertionError):
        assert_same_weights(trainer.model.features, features)


@pytest.mark.parametrize(
    ("networks", "trained"), [({"use_joints2d": False}, False), ({"iterations": 1}, False), ({}, True)]
)
def test_a_2d_refiner_that_nothing_listens_to_stays_as_it_is(
    config, batch, tmp_path, one_process_as_of_many, networks, trained
):
    config = changed(config, "loss", refine=0.0)
    config = config.model_copy(update={"model": replace(config.model, **networks)})
    trainer = Trainer(config, tmp_path, one_process_as_of_many, build_model(config))
    before = trainer.model.mesh_estimator.refiner.weight.clone()
    for _ in range(2):
        trainer._step(batch, BATCHES)
    assert torch.equal(trainer.model.mesh_estimator.refiner.weight, before) is not trained


def test_a_run_starts_from_the_weights_of_the_2d_network_that_its_configuration_names(config, tmp_path):
    arrays = tiny_arrays()
    (tmp_path / "posenet.pickle").write_bytes(pickle.dumps(arrays, 2))
    networks = replace(config.model, pose2d_width=1 / 32, pose2d_stages=3, pose2d_input_size=16)
    start = config.start.model_copy(update={"posenet": tmp_path / "posenet.pickle"})
    model = build_model(config.model_copy(update={"model": networks, "start": start}))
    first = next(m for m in model.pose2d.modules() if isinstance(m, torch.nn.Conv2d))
    # (3, 3, in, out) in the file. The first layer may fold in how images are scaled: kernels stay proportional.
    expected = torch.from_numpy(arrays["PoseNet2D/conv1_1/weights"]).permute(3, 2, 0, 1)
    cosine = torch.nn.functional.cosine_similarity(first.weight.detach().flatten(), expected.flatten(), dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-5)


# --- Epochs ---------------------------------------------------------------------------------------------------


def test_training_crops_are_varied_and_come_in_another_order_in_each_epoch(config, tmp_path, monkeypatch):
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
    assert trainer.crops.augmentation == config.data.crop
    assert trainer.held_out.augmentation is None
    seen = []
    monkeypatch.setattr(trainer, "_step", lambda batch, _: seen.append(batch.index.tolist()) or 0.0)
    trainer._train_epoch(0)
    trainer._train_epoch(1)
    first, second = ([index for batch in part for index in batch] for part in (seen[:BATCHES], seen[BATCHES:]))
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != sorted(first)
    assert first != second


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_stay_until_the_data_changes(config, tmp_path, monkeypatch, workers):
    """And make the batches of each epoch, from the one on at which a resumed run goes on."""
    trainer = Trainer(changed(config, "data", workers=workers), tmp_path, ALONE, build_model(config))
    seen = []
    monkeypatch.setattr(trainer, "_step", lambda batch, _: seen.extend(batch.index.tolist()) or 0.0)
    trainer.progress.batch = 1
    trainer._train_epoch(0)
    loader = trainer.training_loader
    trainer.progress.batch = 0
    trainer._train_epoch(1)
    assert trainer.training_loader is loader
    h = initial_hand(trainer.hand, "palm").packed()
    trainer.instances = loop.propose_instances(h, torch.tensor([3]), epoch=1, n_per_seed=4, seed=0)
    trainer._train_epoch(2)
    small, large = EpochSampler(16, config.seed, batch_size=4), EpochSampler(20, config.seed, batch_size=4)
    assert seen == [*small.order(0)[4:], *small.order(1), *large.order(2)]


def test_seeds_of_new_views_are_training_crops_alone(config, batch, tmp_path):
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
    trainer._step(replace(batch, index=torch.tensor([3, 40, 1, 16])), BATCHES)
    assert len(trainer._propose()) == 0  # before the first epoch of Sec. 3.5
    trainer.progress.epoch = 1
    trainer._step(replace(batch, index=torch.tensor([3, 40, 1, 16])), BATCHES)
    assert trainer._propose().source.tolist() == [3, 1]
    trainer._step(replace(batch, index=torch.tensor([40, 0, 16, 2])), BATCHES)
    assert trainer._propose().source.tolist() == [3, 1, 0, 2]


NOT_KNOWN = (math.nan,) * 3


@pytest.mark.parametrize(
    ("epe_mm", "joints2d_px", "heatmap_px", "expected"),
    [
        ((40.0, 50.0, 30.0), (3.0, 2.0, 9.0), NOT_KNOWN, [0, 0, 2]),
        # Where no joint is annotated in space, those in the image decide; where none is, the newest are the best.
        (NOT_KNOWN, (3.0, 2.0, 9.0), (9.0, 3.0, 2.0), [0, 1, 1]),
        (NOT_KNOWN, NOT_KNOWN, (3.0, 9.0, 2.0), [0, 0, 2]),
        (NOT_KNOWN, NOT_KNOWN, NOT_KNOWN, [0, 1, 2]),
        ((math.inf, math.inf, 30.0), (3.0, 2.0, 9.0), NOT_KNOWN, [0, 1, 2]),
    ],
    ids=["in space", "in the image", "f_J2D alone", "without labels", "not finite"],
)
def test_a_worse_epoch_does_not_replace_the_best(
    config, tmp_path, monkeypatch, epe_mm, joints2d_px, heatmap_px, expected
):
    names = ("epe_mm", "joints2d_px", "heatmap_px")
    scores = iter(dict(zip(names, row, strict=True)) for row in zip(epe_mm, joints2d_px, heatmap_px, strict=True))
    monkeypatch.setattr(loop, "validate", lambda *_, **__: next(scores))
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
    best = []
    for epoch in range(3):
        trainer.progress.step = epoch
        trainer._end_epoch(epoch)
        best.append(torch.load(tmp_path / "checkpoints/best/state.pt", weights_only=True)["progress"]["step"])
    assert best == expected


def test_an_epoch_counts_the_seconds_before_it_was_interrupted(config, tmp_path, monkeypatch):
    trainer = Trainer(config, tmp_path, ALONE, build_model(config))
    monkeypatch.setattr(trainer, "_step", lambda *_: 0.0)
    monkeypatch.setattr(loop, "validate", lambda *_, **__: {"epe_mm": 1.0})
    trainer.progress.seconds = 1000.0
    trainer._save("last")
    resumed = Trainer(config, tmp_path, ALONE, build_model(config))
    resumed.resume()
    started = time.perf_counter()
    resumed._train_epoch(0)
    took = time.perf_counter() - started
    assert time.perf_counter() - resumed.started == pytest.approx(1000 + took, abs=0.1 + took)
    resumed._end_epoch(0)
    assert resumed.progress.seconds == 0


# --- One network after the other ------------------------------------------------------------------------------

POSE2D_ALONE = dict.fromkeys(("articulation", "laplacian", "feature", "silhouette", "refine"), 0)
UNET = {"pose2d": "unet", "pose2d_width": 0.25, "pose2d_input_size": 32}


def with_unet(config):
    return config.model_copy(update={"model": replace(config.model, **UNET)})


def test_f_j2d_alone_is_trained_then_kept_while_the_others_are(config, batch, tmp_path, monkeypatch):
    """The first run touches f_J2D only; the second starts from it and touches all but that, its statistics, too."""
    first = changed(with_unet(config), "loss", **POSE2D_ALONE)
    model = build_model(first)
    before = weights_of(model)
    monkeypatch.setattr(model, "forward", None)  # nothing but f_J2D may run
    (tmp_path / "first").mkdir()
    trainer = Trainer(first, tmp_path / "first", ALONE, model)
    trainer.run_epochs()
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"pose2d"}
    rows = [json.loads(line) for line in (tmp_path / "first/metrics.jsonl").read_text().splitlines()]
    scores = [row for row in rows if row["kind"] == "validation"]
    assert all(row["heatmap_px"] > 0 and row["epe_mm"] is None for row in scores)

    second = changed(changed(with_unet(config), "loss", heatmap=0), "start", pose2d=tmp_path / "first")
    trainer = Trainer(second, tmp_path / "second", ALONE, build_model(second))
    learned = weights_of(model.pose2d)
    assert_same_weights(trainer.model.pose2d, learned)
    before = weights_of(trainer.model.features)
    trainer._train_epoch(0)
    assert_same_weights(trainer.model.pose2d, learned)
    assert not torch.equal(trainer.model.features.conv1.weight, before["conv1.weight"])


def test_a_start_that_is_no_run_is_named(config, tmp_path):
    with pytest.raises(CheckpointError, match=r"start\.pose2d: .*nowhere is no run"):
        build_model(changed(config, "start", pose2d=tmp_path / "nowhere"))
