"""The training loop."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from dhpe_fast.augment import AugmentedCrops, Instances, propose_instances
from dhpe_fast.config import ConfigError, TrainConfig, load_config
from dhpe_fast.data import EpochSampler, HandBatch, HandCrops, apply_colour, make_loader, open_dataset
from dhpe_fast.data.backgrounds import background_files
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.recipe import differences, read_recipe
from dhpe_fast.data.synthetic import write_synthetic
from dhpe_fast.hand import HandModel
from dhpe_fast.nets import DHPE
from dhpe_fast.train.checkpoint import (
    BEST,
    LAST,
    CheckpointError,
    Progress,
    find_checkpoint,
    load_part,
    load_state,
    load_weights,
    pack_progress,
    save_checkpoint,
)
from dhpe_fast.train.distributed import World, world
from dhpe_fast.train.log import RunLog, read_log
from dhpe_fast.train.objective import Objective, TrainingObjective
from dhpe_fast.train.run_facts import write_facts
from dhpe_fast.train.run_folder import Resume, check_shared, claim_folder, make_folder
from dhpe_fast.train.step_guard import GuardedSteps
from dhpe_fast.train.validation import picture_grid, validate


def train_dhpe(
    config: TrainConfig,
    run: str | os.PathLike[str],
    *,
    resume: Resume = False,
    device: str | None = None,
) -> Path:
    """Trains the paper's networks.

    The folder `run` receives ``config.yaml``, ``metrics.jsonl``, ``tensorboard/`` and ``checkpoints/{last,best}``, and
    at the end ``run.json``: steps, wall time, device, version of torch, number of weights, last scores.
    Started by ``torchrun``, all processes share the work: the batch size is that of all together, and the result is
    that of one process up to rounding. Several machines need `run`, and the data which a run draws itself, on a disk
    that they share.

    Rule for numbers that are not finite: a step whose loss or gradient norm is not finite in any process changes no
    weight; after ``optimisation.max_skipped_steps`` of them running, the run stops with an error.

    Args:
        config: what to train, on what.
        run: a folder that does not exist, or the run to resume.
        resume: go on from the last checkpoint of `run` as if it had never stopped, on the CPU exactly; from the
            beginning where it was stopped before its first one. "auto" starts `run` if it is not there: for schedulers,
            which give the same command every time. Keys that do not change what is learnt may differ from those of the
            run: workers, intervals, refinement, where files are, and the number of epochs at a constant learning rate.
        device: where to compute; None is the GPU of this process, or the CPU.

    Returns:
        The folder of the best checkpoint.

    Raises:
        ConfigError: if `run` exists and is not to be resumed, is to be resumed and is no run, or would learn something
            else with this configuration; it names the keys. If the processes do not share their folders.
        TrainingDivergedError: see above.
        CheckpointError, ValueError, OSError: if a checkpoint, a data set or a weight file is missing or damaged.
    """
    run = Path(run)
    torch.manual_seed(config.seed)
    with world(device) as processes:
        claim_folder(run, config, resume, processes)
        model = build_model(config)
        plan = config.data.synthesize
        if plan is not None and not processes.all_true(plan.root.exists()):
            check_shared(plan.root.parent, "data.synthesize.root", processes)
        _draw_data(config)  # takes long: whatever can be refused is refused before
        trainer = Trainer(config, run, processes, model)
        make_folder(run, config, processes)
        if resume:
            trainer.resume()
        trainer.run_epochs()
        trainer.conclude()
    return run / "checkpoints" / BEST


def load_model(run: str | os.PathLike[str], checkpoint: str = BEST) -> tuple[TrainConfig, DHPE]:
    """The configuration and the networks of a run, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: if there is no such checkpoint, or it is damaged.
        ConfigError: if the run's configuration is missing or damaged.
    """
    run = Path(run)
    config = load_config(run / "config.yaml")
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"{run}: is a run of the {config.network}, expected one of the paper's networks")
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
    if initial_weights and config.start.pose2d is not None:
        folder = find_checkpoint(config.start.pose2d, LAST)
        if folder is None:
            raise CheckpointError(f"start.pose2d: {config.start.pose2d} is no run with a checkpoint")
        load_part(folder, model.pose2d, "pose2d.", new="silhouette.")
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
        # The images are channels-last; with such weights, too, convolutions do not change the layout on the way.
        model = model.to(processes.device, memory_format=torch.channels_last)
        _freeze_untrained(model, config)
        self.model = model
        self.objective = processes.distributed(TrainingObjective(model, config.loss).to(processes.device))
        # Two norms are clipped: the heat maps of f_J2D and the mesh do not share a weight (Sec. 3.3).
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        mesh = [parameter for name, parameter in trained.items() if not name.startswith("pose2d.")]
        pose2d = [parameter for name, parameter in trained.items() if name.startswith("pose2d.")]
        groups = [{"params": group} for group in (mesh, pose2d) if group]
        self.optimizer = torch.optim.Adam(groups, lr=config.optimisation.learning_rate)
        norms = ("gradient_norm", "gradient_norm_pose2d")[: len(groups)]
        self.steps = GuardedSteps(model, self.optimizer, config.optimisation, processes, norms)
        if config.self_supervision.instances_per_seed and config.self_supervision.backgrounds is not None:
            background_files(config.self_supervision.backgrounds)  # missing ones are told now, not after epochs
        self.crops, self.held_out = (
            open_crops(config, training=True, augmented=True),
            open_crops(config, training=False),
        )
        # For the processes that draw new instances.
        self.hand = copy.deepcopy(model.hand).cpu()
        self.instances = Instances.empty()  # those trained on
        self.proposed = Instances.empty()  # those of this epoch, which join at its end
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # hands of which none are made yet, and whose
        self.training_loader: DataLoader | None = None
        self.validation_loader = self._loader(self.held_out, shuffle=False)
        self.progress = Progress()
        self.log: RunLog | None = None
        self.started = 0.0  # the epoch, so much earlier as it had taken before it was resumed

    def resume(self) -> None:
        """Takes up the last checkpoint, if there is one."""
        folder = self.processes.from_first(find_checkpoint(self.run, LAST))
        if folder is None:
            return
        state = load_state(folder)
        load_weights(folder, self.model)
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self.instances = Instances.from_state(state["instances"])
        if self.processes.is_first:  # those of all processes; which of them proposed what does not matter
            self.proposed = Instances.from_state(state["proposed"])

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

    def conclude(self) -> None:
        """Writes ``run.json``, of the epochs and their seconds in the log."""
        if self.processes.is_first:
            epochs = read_log(self.run, "validation")
            scores = {name: value for name, value in epochs[-1].items() if isinstance(value, float)}
            scores.pop("seconds")
            facts = {"steps": self.progress.step, "seconds": round(sum(epoch["seconds"] for epoch in epochs), 3)}
            write_facts(self.run, self.model, self.processes.device, scores, network="dhpe", **facts)

    def _train_epoch(self, epoch: int) -> None:
        self.started = time.perf_counter() - self.progress.seconds
        data, first = self._training_set(), self.progress.batch
        if self.training_loader is None or self.training_loader.dataset is not data:
            self.training_loader = self._loader(data, shuffle=True)  # its workers stay as long as the data
        sampler = self.training_loader.batch_sampler
        sampler.set_epoch(epoch, first)
        self.objective.train()
        if not self.config.loss.heatmap:
            self.model.pose2d.eval()  # it stays as it is, the statistics of its layers as well
        shown = self._shown(self.training_loader, epoch, first, sampler.batches_per_epoch)
        for batch in shown:
            loss = self._step(apply_colour(batch.to(self.processes.device)), sampler.batches_per_epoch)
            shown.set_postfix(loss=f"{loss:.4g}", refresh=False)
            if self.progress.step % self.config.checkpoint_every == 0:
                self.progress.seconds = time.perf_counter() - self.started
                self._save(LAST)

    def _step(self, batch: HandBatch, batches_per_epoch: int) -> float:
        """The loss of a step, after it."""
        progress = self.progress
        with self.steps.begin(progress, self._decay(progress.batch / batches_per_epoch)):
            objective: Objective = self.objective(batch)
        progress.batch += 1
        scalars = self.steps.end(progress, objective.total, objective.terms)
        if progress.skipped_in_a_row == 0:
            self._see(batch, objective)
        self._record(batch, objective, scalars)
        return scalars["total"]

    def _see(self, batch: HandBatch, objective: Objective) -> None:
        """Keeps the predicted hands where they are, of which instances are made when those are asked for."""
        options = self.config.self_supervision
        if objective.output is None:
            return
        if options.instances_per_seed and self.progress.epoch >= options.start_epoch:
            self.seen.append((objective.output.estimate.h.detach().float(), batch.index))

    def _propose(self) -> Instances:
        """The instances of this epoch so far."""
        if self.seen:
            h, index = (torch.cat(part).cpu() for part in zip(*self.seen, strict=True))
            seeds = index < len(self.crops)  # instances are no seeds of further ones
            self.proposed += propose_instances(
                h[seeds],
                index[seeds],
                epoch=self.progress.epoch,
                n_per_seed=self.config.self_supervision.instances_per_seed,
                seed=self.config.seed,
            )
            self.seen = []
        return self.proposed

    def _end_epoch(self, epoch: int) -> None:
        found = sum(self.processes.gather(self._propose()), self.instances)
        self.instances = found.newest(self.config.self_supervision.max_instances)
        self.proposed = Instances.empty()
        self.progress.epoch, self.progress.batch, self.progress.seconds = epoch + 1, 0, 0.0
        scores = validate(
            self.model,
            self.validation_loader,
            self.processes,
            self.config.loss.gate.tau_px,
            heatmap_alone=self.config.loss.heatmap_alone,
        )
        if self.log is not None:
            facts = {"instances": len(self.instances), "seconds": time.perf_counter() - self.started}
            self.log.scalars("validation", self.progress.step, scores, epoch=epoch, **facts)
        if self.progress.takes(scores):
            self._save(BEST)
        self._save(LAST)

    def _training_set(self) -> HandCrops | AugmentedCrops:
        if len(self.instances) == 0:
            return self.crops
        return AugmentedCrops(self.crops, self.instances, self.hand, self.config.self_supervision.backgrounds)

    def _loader(self, data: HandCrops | AugmentedCrops, *, shuffle: bool) -> DataLoader:
        sampler = EpochSampler(
            len(data),
            self.config.seed,
            self.processes.rank,
            self.processes.size,
            self.config.optimisation.batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
        )
        return make_loader(data, sampler, self.config.data.workers)

    def _decay(self, part_of_epoch: float) -> float:
        options = self.config.optimisation
        if options.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (self.progress.epoch + part_of_epoch) / options.epochs))

    def _record(self, batch: HandBatch, objective: Objective, scalars: Mapping[str, float]) -> None:
        if self.log is None:
            return
        step = self.progress.step
        self.log.scalars("train", step, scalars, epoch=self.progress.epoch)
        if step % self.config.picture_every == 0:
            self.log.picture("train", step, picture_grid(batch, objective))

    def _save(self, name: str) -> None:
        proposed = sum(self.processes.gather(self._propose()), Instances.empty())
        if self.processes.is_first:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "progress": pack_progress(self.progress),
                "instances": self.instances.state(),
                "proposed": proposed.state(),
            }
            save_checkpoint(self.run, name, self.model, state)
        self.processes.wait()

    def _shown(self, loader: Iterable[HandBatch], epoch: int, first: int, total: int) -> tqdm:
        title = f"epoch {epoch + 1}/{self.config.optimisation.epochs}"
        # None: only where someone looks at a terminal.
        hidden = None if self.processes.is_first else True
        return tqdm(loader, title, initial=first, total=total, disable=hidden)


def _freeze_untrained(model: DHPE, config: TrainConfig) -> None:
    """What no term of the loss reaches is no parameter of the run: processes would wait for its gradient."""
    if config.loss.heatmap_alone:
        model.requires_grad_(False)
        model.pose2d.requires_grad_(True)
        return
    model.pose2d.requires_grad_(config.loss.heatmap > 0)  # Eq. 3
    refiner = model.mesh_estimator.refiner
    if refiner is not None:  # Eq. 6, or f_J3D, which sees refined joints from its second iteration on
        seen = config.model.iterations > 1 and config.model.use_joints2d
        refiner.requires_grad_(config.loss.refine > 0 or seen)


def _draw_data(config: TrainConfig) -> None:
    """Makes the run's own data, unless it is there; the first process draws, and the others look for it on the disk.

    Raises:
        ConfigError: if what is there was drawn otherwise, or not drawn at all.
    """
    plan = config.data.synthesize
    if plan is None:
        return
    wanted = plan.model_dump(exclude={"root"}, mode="json")
    if plan.root.exists():
        _check_drawn(plan.root, wanted)
        return
    if os.environ.get("RANK", "0") != "0":
        while not plan.root.exists():  # if the first one fails, torchrun ends the others
            time.sleep(1)
        return
    total = plan.n_training + plan.n_evaluation
    print(f"drawing {total} hands into {plan.root}, once; interrupted, it goes on", file=sys.stderr, flush=True)
    with tqdm(total=total, desc=f"drawing {plan.root}", disable=None) as bar:
        write_synthetic(plan.root, **wanted, on_image=bar.update)


def _check_drawn(root: Path, wanted: dict[str, Any]) -> None:
    try:
        drawn = read_recipe(root)
    except DatasetError as error:
        raise ConfigError(f"data.synthesize: {root} is there and was not drawn for this run: {error}") from None
    faults = differences(drawn, wanted)
    if faults:
        raise ConfigError(
            f"data.synthesize: the data set in {root} was drawn with {faults}; choose another root, or remove it to "
            "have it drawn anew"
        )
