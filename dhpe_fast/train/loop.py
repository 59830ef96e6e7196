"""The training loop."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dhpe_fast.augment import AugmentedCrops, Instances, propose_instances
from dhpe_fast.config import ConfigError, TrainConfig, load_config, save_config
from dhpe_fast.data import EpochSampler, HandBatch, HandCrops, apply_colour, make_loader, open_dataset
from dhpe_fast.data.backgrounds import background_files
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.synthetic import read_recipe, write_synthetic
from dhpe_fast.hand import HandModel
from dhpe_fast.nets import DHPE
from dhpe_fast.train.checkpoint import (
    BEST,
    LAST,
    CheckpointError,
    Progress,
    find_checkpoint,
    load_state,
    load_weights,
    pack_progress,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from dhpe_fast.train.distributed import World, check_device, world
from dhpe_fast.train.log import RunLog
from dhpe_fast.train.objective import Objective, TrainingObjective
from dhpe_fast.train.validation import picture_grid, validate


class TrainingDivergedError(RuntimeError):
    """Too many steps running had a loss or gradient that is not finite."""


def train(
    config: TrainConfig,
    run: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str | None = None,
) -> Path:
    """Trains the networks of a configuration.

    The folder `run` receives ``config.yaml``, ``metrics.jsonl``, ``tensorboard/`` and ``checkpoints/{last,best}``.
    Started by ``torchrun``, all processes share the work: the batch size is that of all together, and the result is
    that of one process up to rounding.

    Rule for numbers that are not finite: a step whose loss or gradient norm is not finite in any process changes no
    weight; after ``optimisation.max_skipped_steps`` of them running, the run stops with an error.

    Args:
        config: what to train, on what.
        run: a folder that does not exist, or the run to resume.
        resume: go on from the last checkpoint of `run`, exactly as if it had never stopped; from the beginning where
            there is none yet.
        device: where to compute; None is the GPU of this process, or the CPU.

    Returns:
        The folder of the best checkpoint.

    Raises:
        ConfigError: if `run` exists and is not to be resumed, or was made by another configuration.
        TrainingDivergedError: see above.
        CheckpointError, ValueError, OSError: if a checkpoint, a data set or a weight file is missing or damaged.
    """
    run = Path(run)
    _check_folder(run, config, resume)
    check_device(device)
    torch.manual_seed(config.seed)
    model = build_model(config)
    _draw_data(config)  # takes long: whatever can be refused is refused before
    with world(device) as processes:
        trainer = Trainer(config, run, processes, model)
        _make_folder(run, config, processes)
        if resume:
            trainer.resume()
        trainer.run_epochs()
    return run / "checkpoints" / BEST


def load_model(run: str | os.PathLike[str], checkpoint: str = BEST) -> tuple[TrainConfig, DHPE]:
    """The configuration and the networks of a run, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: if there is no such checkpoint, or it is damaged.
        ConfigError: if the run's configuration is missing or damaged.
    """
    run = Path(run)
    config = load_config(run / "config.yaml")
    folder = find_checkpoint(run, checkpoint)
    if folder is None:
        raise CheckpointError(f"{run}: there is no checkpoint {checkpoint!r}; train first")
    model = build_model(config, initial_weights=False)
    load_weights(folder, model)
    return config, model.eval()


def build_model(config: TrainConfig, *, initial_weights: bool = True) -> DHPE:
    """The networks of a configuration, with the weights it starts from."""
    hand = HandModel.default() if config.start.mano is None else HandModel.from_mano(config.start.mano)
    model = DHPE.from_spec(asdict(config.model), hand)
    if initial_weights and config.start.imagenet is not None:
        model.features.load_imagenet(config.start.imagenet)
    if initial_weights and config.start.posenet is not None:
        model.pose2d.load_zb_weights(config.start.posenet)
    return model


def open_crops(config: TrainConfig, *, training: bool, augmented: bool = False) -> HandCrops:
    """The crops of the training or of the validation sets, randomly changed or as they are."""
    sources = config.data.train if training else config.data.validation
    datasets = [open_dataset(source.format, source.root, source.split, **source.options) for source in sources]
    augmentation = config.data.crop if augmented else None
    return HandCrops(datasets, config.model.image_size, augmentation, config.seed, config.model.joint0)


class Trainer:
    """A run: networks, optimiser, data and progress."""

    def __init__(self, config: TrainConfig, run: Path, processes: World, model: DHPE) -> None:
        self.config, self.run, self.processes = config, run, processes
        model = model.to(processes.device)
        # Without Eq. 3 nothing trains f_J2D.
        model.pose2d.requires_grad_(config.loss.heatmap > 0)
        self.model = model
        self.objective = processes.distributed(TrainingObjective(model, config.loss).to(processes.device))
        # Two norms are clipped: the heat maps of f_J2D and the mesh do not share a weight (Sec. 3.3).
        pose2d = [parameter for parameter in model.pose2d.parameters() if parameter.requires_grad]
        theirs = {id(parameter) for parameter in model.pose2d.parameters()}
        mesh = [parameter for parameter in model.parameters() if id(parameter) not in theirs]
        groups = [{"params": group} for group in (mesh, pose2d) if group]
        self.optimizer = torch.optim.Adam(groups, lr=config.optimisation.learning_rate)
        self.statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.dim() == 1]
        if config.self_supervision.instances_per_seed and config.self_supervision.backgrounds is not None:
            background_files(config.self_supervision.backgrounds)  # missing ones are told now, not after epochs
        self.crops, self.held_out = (
            open_crops(config, training=True, augmented=True),
            open_crops(config, training=False),
        )
        # For the processes that draw new instances.
        self.hand = copy.deepcopy(model.hand).cpu()
        self.instances = Instances.empty()  # those trained on
        self.proposed: list[Instances] = []  # those of this epoch, which join at its end
        self.progress = Progress()
        self.log: RunLog | None = None
        self.started = 0.0  # the epoch, or what is left of it after resuming

    def resume(self) -> None:
        """Takes up the last checkpoint, if there is one."""
        folder = find_checkpoint(self.run, LAST)
        if folder is None:
            return
        state = load_state(folder)
        load_weights(folder, self.model)
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self.instances = Instances.from_state(state["instances"])
        if self.processes.is_first:  # those of all processes; which of them proposed what does not matter
            self.proposed = [Instances.from_state(state["proposed"])]
        set_rng_state(state["rng"])

    def run_epochs(self) -> None:
        """Trains until the last epoch is done."""
        if self.processes.is_first:
            self.log = RunLog(self.run, self.progress.step, self.progress.epoch)
        try:
            for epoch in range(self.progress.epoch, self.config.optimisation.epochs):
                self._train_epoch(epoch)
                self._end_epoch(epoch)
        finally:
            if self.log is not None:
                self.log.close()

    def _train_epoch(self, epoch: int) -> None:
        self.started = time.perf_counter()
        data, first = self._training_set(), self.progress.batch
        sampler = self._sampler(len(data), shuffle=True)
        sampler.set_epoch(epoch, first)
        self.objective.train()
        loader = make_loader(data, sampler, self.config.data.workers)
        for batch in self._shown(loader, epoch, first, sampler.batches_per_epoch):
            self._step(apply_colour(batch.to(self.processes.device)), sampler.batches_per_epoch)
            if self.progress.step % self.config.checkpoint_every == 0:
                self._save(LAST)

    def _step(self, batch: HandBatch, batches_per_epoch: int) -> None:
        options, progress = self.config.optimisation, self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(progress.batch / batches_per_epoch)
        before = [buffer.clone() for buffer in self.statistics]
        with self._autocast():
            objective: Objective = self.objective(batch)
        self.optimizer.zero_grad(set_to_none=True)
        objective.total.backward()
        clip = math.inf if options.gradient_clip is None else options.gradient_clip
        norms = [torch.nn.utils.clip_grad_norm_(group["params"], clip) for group in self.optimizer.param_groups]
        progress.step, progress.batch = progress.step + 1, progress.batch + 1
        if self.processes.all_true(bool(torch.stack([objective.total.detach(), *norms]).isfinite().all())):
            self.optimizer.step()
            progress.skipped_in_a_row = 0
            self._propose(batch, objective)
        else:
            self._skip(objective, before)
        self._record(batch, objective, norms)

    def _skip(self, objective: Objective, statistics: list[torch.Tensor]) -> None:
        """Nothing of the step stays: neither weights nor what batch normalisation has noted on the way."""
        for buffer, value in zip(self.statistics, statistics, strict=True):
            buffer.copy_(value)
        self.progress.skipped_in_a_row += 1
        if self.progress.skipped_in_a_row >= self.config.optimisation.max_skipped_steps:
            terms = ", ".join(f"{name} {float(value):g}" for name, value in objective.terms.items())
            raise TrainingDivergedError(
                f"step {self.progress.step}: the loss or its gradient was not finite {self.progress.skipped_in_a_row} "
                f"times running, the last time with {terms}; lower the learning rate, or go back to a checkpoint"
            )

    def _propose(self, batch: HandBatch, objective: Objective) -> None:
        options = self.config.self_supervision
        if options.instances_per_seed == 0 or self.progress.epoch < options.start_epoch:
            return
        seeds = batch.index < len(self.crops)  # instances are no seeds of further ones
        found = propose_instances(
            objective.output.estimate.h.detach()[seeds].float().cpu(),
            batch.index[seeds].cpu(),
            epoch=self.progress.epoch,
            n_per_seed=options.instances_per_seed,
            seed=self.config.seed,
        )
        self.proposed.append(found)

    def _end_epoch(self, epoch: int) -> None:
        found = sum(self.processes.gather(_joined(self.proposed)), self.instances)
        self.instances = found.newest(self.config.self_supervision.max_instances)
        self.proposed = []
        self.progress.epoch, self.progress.batch = epoch + 1, 0
        sampler = self._sampler(len(self.held_out), shuffle=False)
        loader = make_loader(self.held_out, sampler, self.config.data.workers)
        scores = validate(self.model, loader, self.processes, self.config.loss.gate.tau_px)
        if self.log is not None:
            facts = {"instances": len(self.instances), "seconds": time.perf_counter() - self.started}
            self.log.scalars("validation", self.progress.step, scores, epoch=epoch, **facts)
        # The first epoch counts even where joints are not annotated in space.
        if scores["epe_mm"] < self.progress.best_epe_mm or find_checkpoint(self.run, BEST) is None:
            self.progress.best_epe_mm = scores["epe_mm"]
            self._save(BEST)
        self._save(LAST)

    def _training_set(self) -> HandCrops | AugmentedCrops:
        if len(self.instances) == 0:
            return self.crops
        return AugmentedCrops(self.crops, self.instances, self.hand, self.config.self_supervision.backgrounds)

    def _sampler(self, length: int, *, shuffle: bool) -> EpochSampler:
        return EpochSampler(
            length,
            self.config.seed,
            self.processes.rank,
            self.processes.size,
            self.config.optimisation.batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
        )

    def _learning_rate(self, part_of_epoch: float) -> float:
        options, progress = self.config.optimisation, self.progress
        rate = options.learning_rate * min(1.0, (progress.step + 1) / (options.warmup_steps + 1))
        if options.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * (progress.epoch + part_of_epoch) / options.epochs))
        return rate

    def _autocast(self) -> torch.autocast:
        enabled = self.config.optimisation.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _record(self, batch: HandBatch, objective: Objective, norms: list[torch.Tensor]) -> None:
        names = list(objective.terms)
        values = torch.stack([objective.total.detach(), *(objective.terms[name].float() for name in names)])
        values = self.processes.mean(values).tolist()
        if self.log is None:
            return
        step = self.progress.step
        scalars = dict(zip(["total", *names], values, strict=True))
        scalars |= dict(zip(("gradient_norm", "gradient_norm_pose2d"), map(float, norms), strict=False))
        scalars["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.log.scalars("train", step, scalars, epoch=self.progress.epoch)
        if step % self.config.picture_every == 0:
            self.log.picture("train", step, picture_grid(batch, objective.output))

    def _save(self, name: str) -> None:
        proposed = sum(self.processes.gather(_joined(self.proposed)), Instances.empty())
        if self.processes.is_first:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "progress": pack_progress(self.progress),
                "instances": self.instances.state(),
                "proposed": proposed.state(),
                "rng": rng_state(),
            }
            save_checkpoint(self.run, name, self.model, state)
        self.processes.wait()

    def _shown(self, loader: Iterable[HandBatch], epoch: int, first: int, total: int) -> Iterator[HandBatch]:
        title = f"epoch {epoch + 1}/{self.config.optimisation.epochs}"
        # None: only where someone looks at a terminal.
        hidden = None if self.processes.is_first else True
        return tqdm(loader, title, initial=first, total=total, disable=hidden)


def _joined(parts: list[Instances]) -> Instances:
    return Instances.cat(parts) if parts else Instances.empty()


def _draw_data(config: TrainConfig) -> None:
    """Makes the run's own data, unless it is there; the first process draws, before any of them waits for a reply.

    Raises:
        ConfigError: if what is there was drawn otherwise, or not drawn at all.
    """
    plan = config.data.synthesize
    if plan is None:
        return
    wanted = plan.model_dump(exclude={"root"}) | {"backgrounds": None}
    if plan.root.exists():
        _check_drawn(plan.root, wanted)
        return
    if os.environ.get("RANK", "0") != "0":
        while not plan.root.exists():  # if the first one fails, torchrun ends the others
            time.sleep(1)
        return
    with tqdm(total=plan.n_training + plan.n_evaluation, desc=f"drawing {plan.root}", disable=None) as bar:
        write_synthetic(plan.root, **wanted, on_image=bar.update)


def _check_drawn(root: Path, wanted: dict[str, Any]) -> None:
    try:
        drawn = read_recipe(root)
    except DatasetError as error:
        raise ConfigError(f"data.synthesize: {root} is there and was not drawn for this run: {error}") from None
    other = [key for key in {**wanted, **drawn} if drawn.get(key) != wanted.get(key)]
    if other:
        faults = ", ".join(f"{key}: {drawn.get(key)!r} instead of {wanted.get(key)!r}" for key in other)
        raise ConfigError(
            f"data.synthesize: the data set in {root} was drawn with {faults}; choose another root, or remove it"
        )


def _check_folder(run: Path, config: TrainConfig, resume: bool) -> None:
    """Refuses a folder that is another run's."""
    saved = run / "config.yaml"
    if resume and saved.is_file():
        if load_config(saved) != config:
            raise ConfigError(f"{run}: was made with another configuration, see {saved}; resume with that one")
    elif run.exists() and any(run.iterdir()):
        raise ConfigError(f"{run}: exists already; resume it, or choose another folder")


def _make_folder(run: Path, config: TrainConfig, processes: World) -> None:
    processes.wait()  # until every process has looked
    if processes.is_first:
        run.mkdir(parents=True, exist_ok=True)
        save_config(config, run / "config.yaml")
    processes.wait()
