"""How well the locator finds hands in held-out generated photographs, as it is used: a pyramid, then a closer look.

    python bench/locator.py --run runs/locator --pictures 600

The layers of the run's evaluation split are composed to photographs of 480 x 640 pixels with no, one or two hands. By
the first half of them the threshold of ``nets.locate`` is chosen, where the F-measure with twice the weight on recall
is highest: f_J2D rejects what is no hand, but finds none. Of the second half average precision at an intersection
over union of a half, and at that threshold the other measures. `--weights` takes shipped weights instead of the run's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from common import run_facts, write_result
from tqdm import tqdm

from dhpe_fast import pretrained
from dhpe_fast.config import LocatorConfig, load_config
from dhpe_fast.data.hand_layers import read_layers
from dhpe_fast.data.whole_pictures import LabelledPicture, WholePictures
from dhpe_fast.metrics.detection import Detections, match
from dhpe_fast.nets.locate import THRESHOLD, locate
from dhpe_fast.nets.locator import Locator
from dhpe_fast.train.stream import load_network

SIZE_PX = (480, 640)
SURELY_LEAST = 0.02
"""Least score of a detection that is counted for average precision."""


def detect(network: Locator, picture: LabelledPicture) -> Detections:
    """What is found in a photograph, beside what is there."""
    hands = locate(network, picture.image, max_hands=10, threshold=SURELY_LEAST)
    return Detections(
        np.array([hand.box_px for hand in hands]).reshape(-1, 4),
        np.array([hand.score for hand in hands]),
        np.array([hand.side == "left" for hand in hands], bool),
        picture.boxes_px,
        picture.is_left,
        picture.counts,
        picture.has_unlabelled,
    )


def held_out(config: LocatorConfig) -> WholePictures:
    """Photographs of the run's evaluation layers."""
    data = config.data
    layers = read_layers(data.root, "evaluation", seed=data.seed, count=data.n_evaluation)
    backgrounds = None if data.backgrounds is None else str(data.backgrounds)
    return WholePictures(layers, "evaluation", seed=config.seed + 1, backgrounds=backgrounds, size_px=SIZE_PX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/locator"), help="folder of the training run")
    parser.add_argument("--weights", action="store_true", help="measure the weights that ship")
    parser.add_argument("--pictures", type=int, default=600)
    arguments = parser.parse_args()
    if arguments.pictures < 2:
        parser.error("--pictures: expected at least 2")
    torch.set_num_threads(1)
    config = load_config(arguments.run / "config.yaml")
    network = pretrained.locator() if arguments.weights else load_network(arguments.run, Locator(config.width))
    pictures = held_out(config)
    found = [detect(network, pictures[k]) for k in tqdm(range(arguments.pictures), "photographs", disable=None)]
    half = arguments.pictures // 2
    chosen = match(found[:half]).best_threshold(recall_weight=2.0)
    measured = match(found[half:])
    counts = {"hands": measured.n_hands, "pictures_without_hands": measured.n_empty}
    result = {"chosen_threshold": chosen, **counts, **measured.summary(THRESHOLD)}
    for name, value in result.items():
        print(f"{name:<24}{value:.3f}" if isinstance(value, float) else f"{name:<24}{value}")
    arguments.run = arguments.run.name
    path = write_result("locator", {"run": run_facts(), "arguments": vars(arguments), "result": result})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
