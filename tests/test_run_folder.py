"""Whose folder a run may use: mistyped and foreign ones are refused, and so are changes of what is learnt."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")

from dhpe_fast.config import ConfigError, load_config, save_config
from dhpe_fast.train.distributed import World
from dhpe_fast.train.run_folder import check_shared, claim_folder, learning_changes

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def config():
    return load_config("tiny")


@pytest.fixture
def run(config, tmp_path):
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


def test_a_mistyped_run_is_not_started(config, run):
    with pytest.raises(ConfigError, match=r"rum: is no run to resume, there is no .*rum/config\.yaml; .*'auto'"):
        claim_folder(run.with_name("rum"), config, True, ALONE)
    assert not run.with_name("rum").exists()
    claim_folder(run, config, True, ALONE)


def test_a_scheduler_gives_the_same_command_every_time(config, run):
    claim_folder(run.with_name("new"), config, "auto", ALONE)
    claim_folder(run, config, "auto", ALONE)
    run.with_name("other").mkdir()
    (run.with_name("other") / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="exists already"):
        claim_folder(run.with_name("other"), config, "auto", ALONE)
    with pytest.raises(ValueError, match="resume: expected True, False or 'auto', got 'yes'"):
        claim_folder(run, config, "yes", ALONE)


def test_what_does_not_change_the_learning_may_differ():
    saved = load_config("paper", ["start.mano=a/MANO_RIGHT.pkl"])
    other = load_config(
        "paper",
        [
            "start.mano=b/MANO_RIGHT.pkl",
            "start.imagenet=elsewhere/resnet50.pth",
            "self_supervision.backgrounds=elsewhere/nyu",
            "data.workers=3",
            "checkpoint_every=7",
            "picture_every=8",
            "refinement.iterations=9",
            "refinement.block_scales={pose: 2.0}",
            "optimisation.epochs=90",
        ],
    )
    sources = tuple(source.model_copy(update={"root": "/mnt" / source.root}) for source in saved.data.train)
    other = other.model_copy(update={"data": other.data.model_copy(update={"train": sources})})
    assert saved.optimisation.schedule == "constant"
    assert learning_changes(saved, other) == []


def test_every_other_change_is_named_with_both_values(config, run):
    assert config.optimisation.schedule == "cosine"
    other = load_config(
        "tiny",
        ["seed=7", "optimisation.epochs=13", "start.mano=MANO_RIGHT.pkl", "model.depth=34", "loss.gate.mode=constant"],
    )
    sources = (*config.data.train, config.data.train[0])
    other = other.model_copy(update={"data": other.data.model_copy(update={"train": sources})})
    with pytest.raises(ConfigError) as caught:
        claim_folder(run, other, "auto", ALONE)
    lines = str(caught.value).splitlines()
    assert "another configuration" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "seed: was 0, is 7",
        "model.depth: was 18, is 34",
        "start.mano: was None, is 'MANO_RIGHT.pkl'",
        "loss.gate.mode: was 'mean_distance', is 'constant'",
        "optimisation.epochs: was 12, is 13",
        "data.train.1.format: was None, is 'rhd'",
        "data.train.1.root: was None, is 'data/synthetic_tiny'",
        "data.train.1.split: was None, is 'train'",
    ]


# --- Many processes -------------------------------------------------------------------------------------------


class Threads(World):
    """Processes of a test, which are threads: what one hands in, all of them get."""

    def __init__(self, rank: int, board: dict, barrier: threading.Barrier) -> None:
        super().__init__(rank, barrier.parties, torch.device("cpu"))
        object.__setattr__(self, "_board", board)
        object.__setattr__(self, "_barrier", barrier)

    def gather(self, value):
        self._board[self.rank] = value
        self._barrier.wait()
        values = [self._board[rank] for rank in range(self.size)]
        self._barrier.wait()
        return values

    def from_first(self, value):
        return self.gather(value)[0]

    def wait(self) -> None:
        self.gather(None)


def in_threads(calls) -> list[Exception | None]:
    """Runs call k, which takes a world, as process k."""
    barrier, board, errors = threading.Barrier(len(calls), timeout=20), {}, [None] * len(calls)

    def started(rank: int) -> None:
        try:
            calls[rank](Threads(rank, board, barrier))
        except ValueError as error:
            errors[rank] = error

    threads = [threading.Thread(target=started, args=(rank,)) for rank in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_processes_on_one_disk_find_what_the_first_writes(tmp_path):
    call = lambda processes: check_shared(tmp_path / "runs", "the run", processes)  # noqa: E731
    assert in_threads([call, call, call]) == [None] * 3
    assert list((tmp_path / "runs").iterdir()) == []


def test_machines_without_a_shared_disk_are_told_so(tmp_path):
    calls = [
        lambda processes, folder=folder: check_shared(tmp_path / folder, "the run", processes, patience_s=0.2)
        for folder in ("here", "here", "there")
    ]
    errors = in_threads(calls)
    for error, folder in zip(errors, ("here", "here", "there"), strict=True):
        assert isinstance(error, ConfigError)
        assert str(error).startswith(f"the run: what process 0 writes into {tmp_path / folder} does not appear")
        assert "process 2 on " in str(error)
    assert list((tmp_path / "here").iterdir()) == []


def test_all_processes_hear_the_first_ones_refusal(config, run):
    """Also one that sees no folder yet, for instance because its file system is slow."""
    (run / "config.yaml").write_text("no: configuration\n")
    errors = in_threads([lambda processes: claim_folder(run, config, True, processes)] * 2)
    assert [type(error) for error in errors] == [ConfigError] * 2
    assert "is no training configuration" in str(errors[1])


def test_the_first_process_says_which_checkpoint_is_the_last(config, tmp_path, monkeypatch):
    from dhpe_fast.train import loop

    trainer = object.__new__(loop.Trainer)
    trainer.run, trainer.processes = tmp_path, replace(ALONE)
    asked = []
    monkeypatch.setattr(World, "from_first", lambda _, value: asked.append(value))
    (tmp_path / "checkpoints" / "last").mkdir(parents=True)
    (tmp_path / "checkpoints" / "last" / "state.pt").touch()
    trainer.resume()  # the first one has found none: the file here is not opened
    assert asked == [tmp_path / "checkpoints" / "last"]
