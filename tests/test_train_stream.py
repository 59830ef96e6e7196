"""Training on a stream: resuming, numbers that are not finite, what a run leaves, and which configuration means it."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")

from dhpe_fast import config as configs
from dhpe_fast.config import ConfigError, StreamConfig, StreamOptimisation, load_config
from dhpe_fast.train import CheckpointError, TrainingDivergedError, load_model, networks, read_log, train
from dhpe_fast.train.stream import Task, load_network, train_stream

STEPS = 12


class LineConfig(StreamConfig):
    """Learns a straight line."""

    network: Literal["line"]
    slope: float = 2.0


CONFIG = LineConfig(
    network="line",
    optimisation=StreamOptimisation(steps=STEPS, batch_size=16, learning_rate=0.05, warmup_steps=2),
    checkpoint_every=5,
    log_every=1,
    validate_every=6,
)


def make_network() -> nn.Module:
    """With all that a resumed run has to take up: batch statistics and dropout's random numbers."""
    return nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 1))


def batches(start: int):
    for step in itertools.count(start):
        x = torch.randn(16, 1, generator=torch.Generator().manual_seed(step))
        yield x, 2 * x


def objective(network: nn.Module, batch) -> dict[str, torch.Tensor]:
    x, y = batch
    return {"squared": (network(x) - y).square().mean(), "small": 0.0 * network[0].weight.square().sum()}


def validate(network: nn.Module) -> dict[str, float]:
    assert not network.training
    x = torch.linspace(-1, 1, 9)[:, None]
    return {"error": float((network(x) - 2 * x).detach().abs().mean())}


TASK = Task(objective, batches, validate)


def train_line(config, run, *, resume, device):
    return train_stream(run, make_network, TASK, config, resume=resume, device=device)


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    """The package knows this network."""
    monkeypatch.setitem(configs.NETWORKS, "line", LineConfig)
    monkeypatch.setitem(networks.TRAINERS, LineConfig, train_line)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train_line(CONFIG, run, resume=False, device="cpu") == run / "checkpoints" / "last"
    return run


def test_a_run_leaves_curves_weights_and_what_it_took(finished):
    lines = read_log(finished, "train")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert {"squared", "small", "total", "gradient_norm", "learning_rate"} < set(lines[0])
    assert all(line["total"] == pytest.approx(line["squared"]) for line in lines)
    assert lines[-1]["total"] < lines[0]["total"]
    validation = read_log(finished, "validation")
    assert [line["step"] for line in validation] == [6, STEPS]
    assert 0 < validation[0]["seconds"] < validation[1]["seconds"]
    facts = json.loads((finished / "run.json").read_text())
    assert (facts["network"], facts["steps"], facts["weights"]) == ("line", STEPS, 8 + 8 + 8 + 8 + 8 + 1)
    assert facts["device"].startswith("cpu")
    assert facts["seconds"] > 0
    assert facts["scores"] == {"error": validation[-1]["error"]}
    assert validate(load_network(finished, make_network()))["error"] == pytest.approx(validation[-1]["error"])


def test_the_rate_warms_up_and_ends_at_zero(finished):
    rates = [line["learning_rate"] for line in read_log(finished, "train")]
    expected = [0.05 * min(1, (k + 1) / 3) * 0.5 * (1 + math.cos(math.pi * k / STEPS)) for k in range(STEPS)]
    assert rates == pytest.approx(expected)


def test_the_first_cycle_is_a_run_of_that_many_steps(tmp_path):
    twice = CONFIG.optimisation.model_copy(update={"steps": 2 * STEPS, "cycles": 2})
    runs = []
    for name, config in (("one", CONFIG), ("two", CONFIG.model_copy(update={"optimisation": twice}))):
        train_stream(tmp_path / name, make_network, Task(objective, batches), config, device="cpu")
        runs.append([line["total"] for line in read_log(tmp_path / name, "train")])
        rates = [line["learning_rate"] for line in read_log(tmp_path / name, "train")]
    assert runs[1][:STEPS] == runs[0]
    assert rates[STEPS] == CONFIG.optimisation.learning_rate
    assert rates[-1] == pytest.approx(rates[STEPS - 1])
    assert rates[-1] < 0.1 * rates[STEPS]


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(finished, tmp_path):
    """Killed at step 8, after the checkpoint at 5: what was logged in between is dropped and learnt again."""

    def until_killed(start):
        for step, batch in zip(itertools.count(start), batches(start), strict=False):
            if step == 8:
                raise KeyboardInterrupt
            yield batch

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_stream(run, make_network, replace(TASK, batches=until_killed), CONFIG, device="cpu")
    assert not (run / "run.json").exists()
    torch.manual_seed(99)
    train_line(CONFIG, run, resume=True, device="cpu")
    for kind in ("train", "validation"):
        ours, theirs = read_log(run, kind), read_log(finished, kind)
        assert [line | {"seconds": 0} for line in ours] == [line | {"seconds": 0} for line in theirs]
    whole = load_network(finished, make_network()).state_dict()
    for name, value in load_network(run, make_network()).state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_a_finished_run_that_is_resumed_stays_as_it_is(finished):
    before = (finished / "metrics.jsonl").read_bytes()
    train_line(CONFIG, finished, resume="auto", device="cpu")
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_step_that_is_not_finite_changes_nothing_and_many_end_the_run(tmp_path):
    kept: dict[str, torch.Tensor] = {}

    def poisoned(start):
        yield next(iter(batches(0)))
        kept.update({name: value.clone() for name, value in network.state_dict().items()})
        while True:
            yield torch.full((16, 1), torch.nan), torch.zeros(16, 1)

    network = make_network()
    with pytest.raises(TrainingDivergedError, match=r"step 11: .*not finite 10 times running.*squared nan"):
        train_stream(tmp_path / "run", lambda: network, replace(TASK, batches=poisoned), CONFIG, device="cpu")
    for name, value in network.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_bfloat16_is_the_precision_of_the_layers_not_of_the_weights(tmp_path):
    seen = []

    def watched(network, batch):
        network[0].register_forward_hook(
            lambda module, inputs, output: seen.append((output.dtype, module.weight.dtype))
        )
        return objective(network, batch)

    options = CONFIG.optimisation.model_copy(update={"precision": "bfloat16", "steps": 1})
    config = CONFIG.model_copy(update={"optimisation": options})
    train_stream(tmp_path / "run", make_network, replace(TASK, objective=watched), config, device="cpu")
    assert seen[0] == (torch.bfloat16, torch.float32)


# --- Which configuration, and what is refused -----------------------------------------------------------------

TEXT = "network: line\noptimisation: {steps: 12, batch_size: 16}\n"


def test_the_key_network_chooses_the_configuration_and_the_loop(tmp_path):
    file, run = tmp_path / "line.yaml", tmp_path / "run"
    file.write_text(TEXT)
    config = load_config(file, ["optimisation.steps=2", "slope=3"])
    assert config == LineConfig(network="line", slope=3.0, optimisation=StreamOptimisation(steps=2, batch_size=16))
    assert train(config, run, device="cpu") == run / "checkpoints" / "last"
    assert load_config(run / "config.yaml") == config
    with pytest.raises(ConfigError, match=r"run: is a run of the line"):
        load_model(run)
    with pytest.raises(ConfigError, match=r"optimisation.steps: was 2, is 3"):
        train(load_config(file, ["optimisation.steps=3", "slope=3"]), run, resume=True, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network=circle", r"network: expected .*line, or no such key for the networks of the paper, got 'circle'"),
        ("network=[line]", r"network: expected .*got \['line'\]"),
        ("optimisation.steps=0", "optimisation.steps: .*greater than 0, got 0"),
        ("optimisation.epochs=2", "optimisation.epochs: .*not permitted"),
        ("data={}", "data: .*not permitted"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path, change, message):
    file = tmp_path / "line.yaml"
    file.write_text(TEXT)
    with pytest.raises(ConfigError, match=message):
        load_config(file, [change])


def test_what_is_not_for_this_loop_is_refused(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="config: expected what load_config returns, got dict"):
        train({}, tmp_path / "run")
    with pytest.raises(CheckpointError, match="there is no checkpoint 'last'"):
        load_network(tmp_path, make_network())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process; start it without torchrun"):
        train_line(CONFIG, tmp_path / "run", resume=False, device="cpu")
    assert list(tmp_path.iterdir()) == []
