"""What the knobs of the feature term cost: accuracy of refined hands and time of an iteration.

    python bench/feature_knobs.py RUN

RUN is the folder of a training run, such as `dhpe-fast train --config tiny` leaves. Its networks estimate the hands of
its validation set once; from there, Eq. 11 is run with the options of the run's configuration and one knob turned at a
time: how often the CNN runs, how large the crops are that it sees, its precision. Times are those of one hand, also for
a ResNet-50 with random weights at 224 x 224, whose accuracy says nothing. Goes to bench/results/feature_knobs.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import noise_warning, run_facts, summary, time_ms, write_result
from refine_scene import perturbed_hands
from torch import Tensor

from dhpe_fast.config import TrainConfig
from dhpe_fast.conventions import CROP_SIZE_PX
from dhpe_fast.data import HandBatch, HandCrops, apply_colour, make_loader, open_dataset
from dhpe_fast.metrics import joint_distances_mm, mask_iou
from dhpe_fast.nets import DHPE, FeatureExtractor
from dhpe_fast.refinement import EnergyWeights, Refiner
from dhpe_fast.train import joints_in_metres, load_model

KNOBS: dict[str, dict[str, Any]] = {
    "CNN in every iteration, whole crop, float32": {},
    "CNN in every 2nd iteration": {"feature_interval": 2},
    "CNN in every 5th iteration": {"feature_interval": 5},
    "CNN in every 10th iteration": {"feature_interval": 10},
    "crop of 3/4": {"feature_size": 0.75},
    "crop of 1/2": {"feature_size": 0.5},
    "bfloat16": {"feature_precision": "bfloat16"},
    "5th iteration, crop of 1/2, bfloat16": {
        "feature_interval": 5, "feature_size": 0.5, "feature_precision": "bfloat16",
    },
    "no feature term": {"weights": EnergyWeights(feature=0.0)},
}  # fmt: skip
TIMED_ITERATIONS = 10
BATCH = 16


@dataclass(frozen=True)
class Estimated:
    """Crops with what the networks make of them."""

    batch: HandBatch
    h: Tensor
    joints2d_px: Tensor


def estimates(model: DHPE, config: TrainConfig, limit: int) -> Iterator[Estimated]:
    """The validation crops, evenly chosen, in batches."""
    source = config.data.validation[0]
    dataset = open_dataset(source.format, source.root, source.split, **source.options)
    crops = HandCrops(dataset, config.model.image_size, joint0=config.model.joint0)
    chosen = np.unique(np.linspace(0, len(crops) - 1, min(limit, len(crops))).round().astype(int))
    keys = [[(0, int(index)) for index in chosen[k : k + BATCH]] for k in range(0, len(chosen), BATCH)]
    for loaded in make_loader(crops, keys, 0):
        batch = apply_colour(loaded)
        with torch.no_grad():
            estimate = model.estimate_mesh(model.estimate_evidence(batch.images))
        yield Estimated(batch, estimate.h, estimate.joints2d_px)


def options_of(config: TrainConfig, knob: dict[str, Any], image_size: int) -> dict[str, Any]:
    """The run's options of refinement with a knob turned; sizes are shares of the crop."""
    size = knob.get("feature_size")
    whole = {} if size is None else {"feature_size": round(size * image_size)}
    return vars(config.refinement) | knob | whole


def accuracy(model: DHPE, hands: list[Estimated], options: dict[str, Any] | None) -> dict[str, float]:
    """Over all hands: joints in mm, root aligned, and pixels of a 224 crop, and IoU of the masks."""
    errors_mm, errors_px, ious = [], [], []
    refiner = None if options is None else Refiner(model, **options)
    for found in hands:
        batch, h = found.batch, found.h
        if refiner is not None:
            h = refiner(batch.images, h, found.joints2d_px).h
        with torch.no_grad():
            projection = model.project(h)
        errors_mm.append(joint_distances_mm(joints_in_metres(batch, projection.joints), batch.joints_m))
        offset_px = ((0.5 * projection.joints[..., :2] + 0.5) * batch.size - batch.joints2d_px).norm(dim=-1)
        errors_px.append(offset_px * (CROP_SIZE_PX / batch.size))
        ious.append(mask_iou(projection.mask > 0.5, batch.masks > 0.5))
    joined = {"epe_mm": errors_mm, "joints2d_px": errors_px, "iou": ious}
    return {name: float(torch.cat([part.flatten() for part in parts]).nanmean()) for name, parts in joined.items()}


def iteration_ms(estimator: Any, images: Tensor, h: Tensor, joints2d_px: Tensor, options: dict[str, Any]) -> float:
    """Of one hand: what so many iterations take, less what a call without any takes."""
    medians = []
    for iterations in (0, TIMED_ITERATIONS):
        refiner = Refiner(estimator, **options | {"iterations": iterations})
        times = time_ms(lambda refiner=refiner: refiner(images, h, joints2d_px), SECONDS)
        medians.append(summary(times)["median"])
    return max(medians[1] - medians[0], 0.0) / TIMED_ITERATIONS


SECONDS = 0.4
"""Budget of each timing."""


class LargeEstimator:
    """A ResNet-50 with random weights, beside whatever Eq. 11 needs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.scene = perturbed_hands(1)
        self.features = FeatureExtractor(50, zero_init_residual=True).eval()
        self.hand, self.project = self.scene.hand, self.scene.projector("nmr")


def measure(run: str, limit: int) -> dict[str, Any]:
    """The result."""
    config, model = load_model(run)
    hands = list(estimates(model, config, limit))
    rows = [{"knob": "estimate of the networks, not refined", **accuracy(model, hands, None)}]
    first, large = hands[0], LargeEstimator()
    for name, knob in KNOBS.items():
        options = options_of(config, knob, config.model.image_size)
        row = {"knob": name, **accuracy(model, hands, options)}
        row["ms"] = iteration_ms(model, first.batch.images[:1], first.h[:1], first.joints2d_px[:1], options)
        scene, options = large.scene, options_of(config, knob, large.scene.size)
        row["resnet50_ms"] = iteration_ms(large, scene.images, scene.start, scene.joints2d_px, options)
        rows.append(row)
        print(", ".join(f"{key} {value:.3f}" if key != "knob" else value for key, value in row.items()))
    network = f"ResNet-{config.model.depth} at {config.model.image_size} x {config.model.image_size}, trained"
    samples = sum(len(found.h) for found in hands)
    return {"network": network, "samples": samples, "iterations": config.refinement.iterations, "rows": rows}


def main() -> None:
    """Measures, prints the rows, writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a training run")
    parser.add_argument("--limit", type=int, default=200, help="most hands of the validation set")
    parser.add_argument("--dry", action="store_true", help="write no result file")
    arguments = parser.parse_args()
    result = measure(arguments.run, arguments.limit)
    print(noise_warning(), end="")
    if not arguments.dry:
        print(f"-> {write_result('feature_knobs', {'run': run_facts(), **result})}")


if __name__ == "__main__":
    main()
