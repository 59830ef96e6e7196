"""Training of the lifter on drawn hands: each one is seen once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dhpe_fast.config import LifterConfig, LifterLoss
from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.data.lifting import HandSampler, LiftingBatch
from dhpe_fast.hand import HandModel
from dhpe_fast.metrics import pa_mpjpe_mm
from dhpe_fast.nets.lifter import LiftedHands, Lifter, placed
from dhpe_fast.torch_settings import full_precision
from dhpe_fast.train.distributed import check_device
from dhpe_fast.train.run_folder import Resume
from dhpe_fast.train.stream import Task, train_stream

NOISE_LEVELS = (0.0, 0.02, 0.04)
"""Standard deviations of the joints that are measured, by the side of the crop."""
LEAST_NOISE = 0.004
"""Below this, crop units, noise is as good as none."""
ROOT = slice(MIDDLE_MCP, MIDDLE_MCP + 1)


def train_lifter(
    config: LifterConfig, run: str | os.PathLike[str], *, resume: Resume = False, device: str | None = None
) -> Path:
    """Trains the lifter of the default right hand; see ``train.stream.train_stream``."""
    hand = HandModel.default()
    sampler, where = HandSampler(hand, config.data), check_device(device)
    moved = HandModel.default().to(where)

    def batches(start: int) -> Iterator[LiftingBatch]:
        for step in itertools.count(start):
            yield sampler.batch(config.optimisation.batch_size, np.random.default_rng((config.seed, 0, step))).to(where)

    def objective(lifter: nn.Module, batch: LiftingBatch) -> dict[str, Tensor]:
        return lifting_loss(moved, lifter(batch.joints, batch.confidence), batch, config.loss)

    held_out = _held_out(hand, config)

    def validate(lifter: nn.Module) -> dict[str, float]:
        scores = {}
        for noise, batch in held_out.items():
            found = lifting_errors(moved, lifter, batch.to(where))
            scores |= {f"{name}_noise{100 * noise:g}": value for name, value in found.items()}
        return scores

    task = Task(objective, batches, validate)
    return train_stream(run, lambda: Lifter(config.model, hand), task, config, resume=resume, device=device)


def lifting_loss(model: HandModel, lifted: LiftedHands, batch: LiftingBatch, loss: LifterLoss) -> dict[str, Tensor]:
    """The weighted terms, () each: of each hand's closest hypothesis, and with a small share of all others."""
    joints_m = _turned_joints(model, lifted)
    with full_precision(joints_m.device):
        scale, trans = placed(joints_m, batch.exact_joints[:, None], torch.ones_like(joints_m[..., 0]))
    image = joints_m[..., :2] * scale[..., None] + trans[..., None, :]
    offset_m = joints_m - joints_m[..., ROOT, :] - batch.joints_m[:, None]
    terms = {
        "joints3d": loss.joints3d * _length(offset_m).mean(-1) / 0.1,
        "joints2d": loss.joints2d * _length(image - batch.exact_joints[:, None]).mean(-1),
        "pose": loss.pose * (lifted.pose - batch.pose[:, None]).abs().mean(-1),
        "betas": loss.betas * (lifted.betas - batch.betas[:, None]).square().mean(-1),
    }  # (B, K) each
    closest = sum(terms.values()).detach().argmin(1)
    k = lifted.pose.shape[1]
    share = torch.full_like(lifted.log_probability, loss.relaxation / max(k - 1, 1))
    share = share.scatter(1, closest[:, None], 1.0 if k == 1 else 1 - loss.relaxation)
    judged = {name: (share * term).sum(1).mean() for name, term in terms.items()}
    score = -lifted.log_probability.gather(1, closest[:, None]).mean()
    noise = (lifted.noise.log() - batch.noise.clamp_min(LEAST_NOISE).log()).abs().mean()
    return judged | {"score": loss.score * score, "noise": loss.noise * noise}


def lifting_errors(model: HandModel, lifter: nn.Module, batch: LiftingBatch) -> dict[str, float]:
    """Medians over the hands, millimetres, of the likeliest hypothesis and of the best one.

    ``epe``: mean distance of the joints with the roots at one place; ``pa_mpjpe``: after Procrustes alignment;
    ``noise``: what the network takes for the standard deviation of the joints, crop units.
    """
    lifted = lifter(batch.joints, batch.confidence)
    joints_m = _turned_joints(model, lifted)
    offset_m = joints_m - joints_m[..., ROOT, :] - batch.joints_m[:, None]
    epe = 1000 * _length(offset_m).mean(-1)
    aligned = pa_mpjpe_mm(joints_m, batch.joints_m[:, None].expand_as(joints_m))
    likeliest = lifted.log_probability.argmax(1, keepdim=True)
    scores = {"noise": float(lifted.noise.median())}
    for name, errors in (("epe_mm", epe), ("pa_mpjpe_mm", aligned)):
        scores[name] = float(errors.gather(1, likeliest).median())
        scores[f"best_{name}"] = float(errors.amin(1).median())
    return scores


def _turned_joints(model: HandModel, lifted: LiftedHands) -> Tensor:  # (B, K, 21, 3)
    joints_m = model.joints_m(lifted.pose, lifted.betas)
    with full_precision(joints_m.device):
        return joints_m @ lifted.rotation.transpose(-1, -2)


def _length(offset: Tensor) -> Tensor:
    """Of the last axis; with a gradient where it is zero."""
    return (offset.square().sum(-1) + 1e-12).sqrt()


def _held_out(hand: HandModel, config: LifterConfig) -> dict[float, LiftingBatch]:
    """The same hands at each level of noise: complete, and without perspective."""
    batches = {}
    for noise in NOISE_LEVELS:
        clean = replace(config.data, noise=0.0, finger_noise=0.0, outliers=0.0, missing=0.0, pinhole=0.0)
        batch = HandSampler(hand, clean).batch(config.validation_hands, np.random.default_rng((config.seed, 1)))
        joints = batch.joints + 2 * noise * torch.from_numpy(
            np.random.default_rng((config.seed, 2)).normal(size=batch.joints.shape)
        )
        batches[noise] = replace(batch, joints=joints.float())
    return batches
