"""Training of the locator: targets, loss and measurement, on whole pictures that are composed while it runs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from dhpe_fast.config import LocatorConfig
from dhpe_fast.data.hand_layers import read_layers, write_layers
from dhpe_fast.data.synthetic import SPLITS
from dhpe_fast.data.whole_pictures import LabelledPicture, WholePictures, turned
from dhpe_fast.metrics.detection import Detections, match
from dhpe_fast.nets.locate import candidates
from dhpe_fast.nets.locator import REFERENCE_PX, STRIDE, Locator
from dhpe_fast.train.run_folder import Resume
from dhpe_fast.train.stream import Task, train_stream

_PEAK_WIDTH = 0.12
"""Standard deviation of a target's peak, by the geometric mean of the sides of the box."""
_MIN_PEAK_CELLS = 0.7
_MEASURED_BATCH = 64
_USES = ((0, 0), (40, 1), (100, 2), (200, 7))
"""Each picture is in so many batches: so many steps after its first, and in which of the ``turned`` ways."""


def train_locator(
    config: LocatorConfig, run: str | os.PathLike[str], *, resume: Resume = False, device: str | None = None
) -> Path:
    """Trains the locator; the layers are drawn first where they are not there. See ``train.stream.train_stream``."""
    _draw_layers(config)
    evaluation = open_pictures(config, "evaluation")
    held_out = [evaluation[number] for number in range(config.data.n_measured)]
    task = Task(locator_loss, lambda step: batches(config, step), lambda network: measure(network, held_out))
    return train_stream(run, lambda: Locator(config.width), task, config, resume=resume, device=device)


def open_pictures(config: LocatorConfig, split: str) -> WholePictures:
    """The pictures of a split: "training", or "evaluation", made of layers of its own."""
    data = config.data
    count = data.n_training if split == "training" else data.n_evaluation
    layers = read_layers(data.root, split, seed=data.seed, count=count)
    backgrounds = None if data.backgrounds is None else os.fspath(data.backgrounds)
    size = (data.size_px, data.size_px)
    return WholePictures(layers, split, seed=config.seed, backgrounds=backgrounds, size_px=size)


def batches(config: LocatorConfig, step: int = 0) -> Iterator[dict[str, Tensor]]:
    """The training batches from a step on, without end; the same for any number of workers."""
    workers = config.data.workers
    parts = DataLoader(
        _Parts(config, step),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # leaves the global one alone
    )
    stream = iter(parts)  # one of each worker, in turn
    while True:
        yield joined([next(stream) for _ in range(max(workers, 1))])


class _Parts(IterableDataset):
    """Of every batch, what each worker makes of it."""

    def __init__(self, config: LocatorConfig, step: int) -> None:
        self.config, self.step = config, step

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        share = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return parts_of(open_pictures(self.config, "training"), self.config.optimisation.batch_size, self.step, *share)


def parts_of(
    pictures: WholePictures, batch_size: int, step: int, worker: int, workers: int
) -> Iterator[dict[str, Tensor]]:
    """Those pictures of each batch from a step on which are this worker's, ``collate``d, and their ``places`` (P,).

    Composing a picture takes longer than learning from it. So a batch has pictures that are new and some of earlier
    batches, which are now mirrored or turned. All uses of a picture are the same worker's, which keeps it until the
    last one.
    """
    composed: dict[int, LabelledPicture] = {}
    new, last = -(-batch_size // len(_USES)), max(lag for lag, _ in _USES)
    for now in itertools.count(step):
        part, places = [], []
        for k in range(batch_size):
            lag, symmetry = _USES[k // new]
            number = (now - lag + last) * new + k % new
            if number % workers != worker:
                continue
            picture = composed.pop(number) if number in composed else pictures[number]
            if k + new < batch_size:  # it is used again
                composed[number] = picture
            part.append(turned(picture, symmetry))
            places.append(k)
        yield (collate(part) if part else {}) | {"places": torch.tensor(places, dtype=torch.long)}


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The batch of these parts, each picture at its place."""
    parts = [part for part in parts if len(part["places"])]
    places = torch.cat([part["places"] for part in parts])
    most = max(part["counts"].shape[1] for part in parts)
    batch = {}
    for name, first in parts[0].items():
        if name != "places":
            shape = first.shape[1:] if name == "images" else (most, *first.shape[2:])
            batch[name] = first.new_zeros(len(places), *shape)
            for part in parts:
                values = part[name]
                batch[name][part["places"], : values.shape[1]] = values
    return batch


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)


def collate(pictures: Sequence[LabelledPicture]) -> dict[str, Tensor]:
    """Images (B, 3, H, W) uint8 and boxes_px, is_left, counts of the hands (B, M, ...), filled up with zeros."""
    most = max(1, *(len(picture.boxes_px) for picture in pictures))
    boxes = np.zeros((len(pictures), most, 4), np.float32)
    flags = np.zeros((2, len(pictures), most), bool)
    for k, picture in enumerate(pictures):
        n = len(picture.boxes_px)
        boxes[k, :n], flags[0, k, :n], flags[1, k, :n] = picture.boxes_px, picture.is_left, picture.counts
    images = torch.from_numpy(np.stack([picture.image for picture in pictures])).permute(0, 3, 1, 2)
    is_left, counts = torch.from_numpy(flags)
    return {"images": images, "boxes_px": torch.from_numpy(boxes), "is_left": is_left, "counts": counts}


def locator_loss(network: Locator, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Terms of the loss: of the heat map, the sides, the offsets and the sizes.

    The first is the focal loss of Law and Deng 2018 (CornerNet, Eq. 1), which counts cells near a peak less; cells of
    hands that may or may not be found count nothing. The others, a cross entropy and absolute differences, are means
    over the cells where the heat is above a half, weighted by it.
    """
    images = batch["images"].to(next(network.parameters()).device)
    maps = network(images.float().div(255).contiguous(memory_format=torch.channels_last))
    boxes, is_left, counts = (batch[name].to(images.device) for name in ("boxes_px", "is_left", "counts"))
    target = Target.of(boxes, is_left, counts, maps.hand.shape[2:])
    hand, heat, log_p = maps.hand[:, 0], target.heat, functional.logsigmoid(maps.hand[:, 0])
    p = hand.sigmoid()
    found = (1 - p) ** 2 * log_p * (heat == 1)
    other = (1 - heat) ** 4 * p**2 * (log_p - hand) * ((heat < 1) & ~target.ignored)
    weight = torch.where(heat > 0.5, heat, 0.0)[:, None]
    total = weight.sum().clamp(min=1)
    sides = functional.binary_cross_entropy_with_logits(maps.left, target.left[:, None], reduction="none")
    return {
        "heat": -(found + other).sum() / counts.sum().clamp(min=1),
        "side": 0.5 * (weight * sides).sum() / total,
        "offset": 0.5 * (weight * (maps.offset - target.offset).abs()).sum() / total,
        "size": (weight * (maps.log_size - target.log_size).abs()).sum() / total,
    }


@dataclass(frozen=True)
class Target:
    """What the maps should be."""

    heat: Tensor
    """(B, h, w) 1 at the cells of the centres, falling off about them"""
    ignored: Tensor
    """(B, h, w) bool: on a hand that may be found or not"""
    left: Tensor
    """(B, h, w) 1 where the nearest hand is a left one"""
    offset: Tensor
    """(B, 2, h, w) of that hand"""
    log_size: Tensor
    """(B, 2, h, w) of that hand"""

    @classmethod
    def of(
        cls,
        boxes_px: Tensor,  # (B, M, 4)
        is_left: Tensor,  # (B, M)
        counts: Tensor,  # (B, M)
        cells: tuple[int, int],
    ) -> Target:
        """Of the hands of a batch; those of no size are none."""
        cells_of = boxes_px / STRIDE
        size = (cells_of[..., 2:] - cells_of[..., :2]).clamp(min=1e-3)
        centre = (cells_of[..., 2:] + cells_of[..., :2]) / 2
        y, x = (torch.arange(n, device=boxes_px.device) + 0.5 for n in cells)
        dx = x - centre[..., None, 0:1]  # (B, M, 1, w)
        dy = y[:, None] - centre[..., None, 1:2]  # (B, M, h, 1)
        sigma = (_PEAK_WIDTH * size.prod(-1).sqrt()).clamp(min=_MIN_PEAK_CELLS)[..., None, None]
        peak = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2))
        peak = torch.where((dx.abs() <= 0.5) & (dy.abs() <= 0.5), 1.0, peak.clamp(max=0.999))
        peak = peak * counts[..., None, None]
        heat, whose = peak.max(1)
        inside = (dx.abs() <= size[..., None, 0:1] / 2) & (dy.abs() <= size[..., None, 1:2] / 2)
        exists = boxes_px[..., 2] > boxes_px[..., 0]
        ignored = (inside & (exists & ~counts)[..., None, None]).any(1)

        def of_nearest(values: Tensor) -> Tensor:  # (B, M, ...) to (B, h, w)
            return values.expand_as(peak).gather(1, whose[:, None])[:, 0]

        log_size = (size * (STRIDE / REFERENCE_PX)).log()[..., None, None].unbind(2)
        return cls(
            heat=heat,
            ignored=ignored,
            left=of_nearest(is_left[..., None, None].to(heat)),
            offset=torch.stack([of_nearest(-dx), of_nearest(-dy)], 1),
            log_size=torch.stack([of_nearest(side) for side in log_size], 1),
        )


@torch.no_grad()
def measure(network: Locator, pictures: Sequence[LabelledPicture]) -> dict[str, float]:
    """Of one look at each picture: average precision at an IoU of a half, and at the best threshold, other measures."""
    device = next(network.parameters()).device
    detections = []
    for first in range(0, len(pictures), _MEASURED_BATCH):
        part = pictures[first : first + _MEASURED_BATCH]
        images = collate(part)["images"].to(device).float().div(255).contiguous(memory_format=torch.channels_last)
        detections += [
            Detections(
                boxes=found.boxes_px,
                scores=found.scores,
                is_left=found.left > 0.5,
                boxes_gt=picture.boxes_px,
                is_left_gt=picture.is_left,
                counts_gt=picture.counts,
                has_unlabelled=picture.has_unlabelled,
            )
            for found, picture in zip(candidates(network(images)), part, strict=True)
        ]
    matches = match(detections)
    return matches.summary(matches.best_threshold() if len(matches.scores) else 1.0)


def _draw_layers(config: LocatorConfig) -> None:
    data = config.data
    if all((data.root / f"{split}.npz").exists() for split in SPLITS):
        return
    with tqdm(desc="drawing layers", total=data.n_training + data.n_evaluation, disable=None) as shown:
        write_layers(data.root, data.n_training, data.n_evaluation, seed=data.seed, on_layer=shown.update)
