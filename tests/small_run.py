"""A training run of seconds, and what its tests read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dhpe_fast.config import TrainConfig
from dhpe_fast.data import HandBatch, apply_colour, collate
from dhpe_fast.data.synthetic import write_synthetic
from dhpe_fast.train import open_crops, read_log
from dhpe_fast.train.distributed import World

EPOCHS, BATCHES = 3, 4
ALONE = World(0, 1, torch.device("cpu"))


def small_run_changes(folder: Path) -> list[str]:
    """As changes of `tiny`: 3 epochs of 4 batches of 4; new views from the second on. Draws its data into `folder`."""
    root = folder / "set"
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


def small_batch(config: TrainConfig) -> HandBatch:
    """Four of its training crops."""
    crops = open_crops(config, training=True)
    return apply_colour(collate([crops[0, k] for k in range(4)]))


def changed(config: TrainConfig, section: str, **changes: Any) -> TrainConfig:
    """`config` with other values in a section."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})


def losses(run: Path) -> list[dict[str, float]]:
    """The numbers of every step."""
    return [{key: line[key] for key in line if key != "kind"} for line in read_log(run, "train")]
