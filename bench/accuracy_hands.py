"""What accuracy is measured on, and of: generated hands of a seed of their own, drawn where they are absent; networks.

Test hands are drawn as the training hands of the networks are, but from ``TEST_SEED``: on the evaluation split of the
networks' own set training has validated.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from result_files import RESULTS
from torch import Tensor
from tqdm import tqdm

from dhpe_fast import pretrained
from dhpe_fast.atomic_write import write_whole
from dhpe_fast.config import ConfigError, Synthesis, TrainConfig, load_config
from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.data import Dataset, DatasetError, HandBatch, HandCrops, Sample, apply_colour, make_loader, open_dataset
from dhpe_fast.data.files import RECIPE_FILE
from dhpe_fast.data.joint0 import with_joint0
from dhpe_fast.data.normalize import Square
from dhpe_fast.data.recipe import differences, read_recipe
from dhpe_fast.data.synthetic import write_synthetic
from dhpe_fast.hand_fit import HandFit
from dhpe_fast.nets import DHPE
from dhpe_fast.train import LAST, load_model

WORK = Path("runs/bench-accuracy")
"""Where hands that are drawn anew, trainings and what one command leaves to the next go."""
TEST_SEED = 20_000
"""Of all test hands. Nothing is trained or validated on a set of this seed, and no threshold is chosen on one."""
N_TEST = 2000
"""Test hands that are drawn."""
N_TRAINING = 200
"""Training hands, and as many of the evaluation split, that are drawn where the networks' own set is not there."""
CHECKED_PICTURES = 20
"""So many of the test pictures are in the checksum: labels say nothing of how a hand is drawn."""


@dataclass(frozen=True)
class Tested:
    """Networks, and the configuration they were trained with."""

    name: str
    config: TrainConfig
    model: DHPE


def tested(run: Path | None, config: str) -> Tested:
    """The networks of a run after its last epoch, or those that ship with the package and their configuration.

    Raises:
        pretrained.WeightsError, CheckpointError, ConfigError: if there are none, or a file is damaged.
    """
    if run is not None:
        own, model = load_model(run, LAST)
        return Tested(run.name, own, model.eval())
    own, model = load_config(config), pretrained.dhpe()
    if asdict(own.model) != model.spec():
        raise ConfigError(f"config: {config} has other networks than those of the package, {model.spec()}")
    checksum = pretrained.shipped.manifest()["dhpe.pt"]["sha256"]
    return Tested(f"dhpe_fast/weights/dhpe.pt, SHA-256 {checksum[:12]}", own, model)


def hands_to_test(plan: Synthesis) -> Path:
    """The folder of the test hands, drawn by a plan, but from ``TEST_SEED``; they are drawn if they are not there.

    Raises:
        SystemExit: if what is there was drawn otherwise, or the plan has the test hands' seed.
    """
    if plan.seed == TEST_SEED:
        raise SystemExit(f"data.synthesize.seed: {TEST_SEED} is that of the test hands; nothing is trained on them")
    folder = WORK / f"test-hands-{plan.size_px}px-seed{TEST_SEED}"
    draw(folder, plan_of_tests(plan, N_TEST))
    return folder


def plan_of_tests(plan: Synthesis, count: int) -> Synthesis:
    """So many test hands: natural poses and empty hands, whatever is trained on, so that scores can be compared."""
    return replace_plan(plan, seed=TEST_SEED, n_training=0, n_evaluation=count, gestures=0.0, held=0.0)


def own_hands(plan: Synthesis, root: Path | None = None) -> Path:
    """The folder of the set that networks are trained and validated on; a small one where there is none.

    Args:
        plan: by which it is to have been drawn, whatever the number of its pictures.
        root: of a set that is there; None is the plan's.

    Raises:
        SystemExit: if it was drawn otherwise.
    """
    folder = plan.root if root is None else root
    if root is not None or (folder / RECIPE_FILE).is_file():
        check_drawn(folder, plan, but=("n_training", "n_evaluation"))
        return folder
    few = {name: min(N_TRAINING, getattr(plan, name)) for name in ("n_training", "n_evaluation")}
    folder = WORK / f"hands-{plan.size_px}px-seed{plan.seed}"
    draw(folder, replace_plan(plan, **few))
    return folder


def first_training_hands(root: Path, count: int) -> Path:
    """A set of the first so many training hands of a drawn one and all of its test hands; files stay where they are.

    Raises:
        SystemExit: if there is one of another set already.
    """
    folder = WORK / f"{root.name}-first-{count}"
    recipe = read_recipe(root) | {"n_training": count}
    if (folder / RECIPE_FILE).is_file():
        _refuse(folder, differences(read_recipe(folder), recipe))
        return folder
    labels = "anno_training.pickle"
    (folder / "training").mkdir(parents=True, exist_ok=True)
    known = pickle.loads((root / "training" / labels).read_bytes())
    write_whole(folder / "training" / labels, pickle.dumps({number: known[number] for number in range(count)}))
    pictures = [f"training/{kind}/{number:05d}.png" for kind in ("color", "mask", "depth") for number in range(count)]
    for part in ("evaluation", *pictures):
        (folder / part).parent.mkdir(exist_ok=True)
        if not (folder / part).exists():
            (folder / part).symlink_to((root / part).resolve())
    write_whole(folder / RECIPE_FILE, (json.dumps(recipe) + "\n").encode())
    return folder


def draw(folder: Path, plan: Synthesis, **more: Any) -> None:
    """Draws a set by a plan, unless it is there; `more` are further arguments of ``write_synthetic``.

    Raises:
        SystemExit: if what is there was drawn otherwise.
    """
    if (folder / RECIPE_FILE).is_file():
        check_drawn(folder, plan, **more)
        return
    total = plan.n_training + plan.n_evaluation
    print(f"drawing {total} hands into {folder}", file=sys.stderr, flush=True)
    with tqdm(total=total, disable=None) as bar:
        write_synthetic(folder, **_arguments(plan), **more, on_image=bar.update)


def check_drawn(folder: Path, plan: Synthesis, *, but: Sequence[str] = (), **more: Any) -> None:
    """Refuses a set that another plan, or another version of the generator, has drawn; the keys `but` may differ."""
    try:
        recipe = read_recipe(folder)
    except DatasetError as error:
        raise SystemExit(f"{folder}: is no drawn set: {error}") from None
    _refuse(folder, differences(recipe, _arguments(plan) | more, but=but))


def _arguments(plan: Synthesis) -> dict[str, Any]:
    return plan.model_dump(exclude={"root"}, mode="json")


def _refuse(folder: Path, faults: str) -> None:
    if faults:
        raise SystemExit(f"{folder}: was drawn with {faults}; remove it to have it drawn anew, or give another one")


def replace_plan(plan: Synthesis, **changes: Any) -> Synthesis:
    """The plan with other values."""
    return plan.model_copy(update=changes)


def held_out_hands(root: Path, count: int | None = None, **options: Any) -> Dataset:
    """The first so many test hands of a drawn set: they are drawn independently of each other."""
    hands = open_dataset("rhd", root, "test", **options)
    return hands if count is None else hands[: min(count, len(hands))]


def crops_of(hands: Dataset, config: TrainConfig) -> HandCrops:
    """Their crops, as the networks take them: the paper's square around the true joints."""
    return HandCrops(hands, config.model.image_size, joint0=config.model.joint0)


def batches_of(crops: HandCrops, batch_size: int = 50, workers: int = 0) -> Iterator[HandBatch]:
    """All crops in their order."""
    keys = [
        [(0, k) for k in range(start, min(start + batch_size, len(crops)))]
        for start in range(0, len(crops), batch_size)
    ]
    for batch in tqdm(make_loader(crops, keys, workers), "measuring", disable=None):
        yield apply_colour(batch)


def data_facts(root: Path, hands: Dataset) -> dict[str, Any]:
    """Which hands, for a result file: how they were drawn, and a checksum of all labels and the first pictures."""
    wanted = {key: value for key, value in read_recipe(root).items() if key != "n_training"}
    checksum = hashlib.sha256(np.ascontiguousarray(hands.labels.joints_m.astype("<f4")).tobytes())
    for index in range(min(CHECKED_PICTURES, len(hands))):
        checksum.update(np.ascontiguousarray(hands[index].read_image()).tobytes())
    return {"recipe": wanted, "split": hands.split, "hands": len(hands), "sha256": checksum.hexdigest()[:16]}


# ---- Fits beside labels ----------------------------------------------------------------------------------------------


def fit_in_crop(
    fit: HandFit,
    square: Square,
    joint0: str,
    mirrored_width: int | None = None,
) -> np.ndarray:
    """Joints (21, 3) of a fit in the crop frame of a square: where they are in the image, and depth in its unit.

    Args:
        fit: by a weak-perspective camera, whose scale makes metres pixels in depth, too.
        square: of batch shape (), in the image, or in the mirrored one.
        joint0: what joint 0 is to be; the package's hand has the wrist.
        mirrored_width: of the image in pixels where the square is in the mirrored one.
    """
    places_px = fit.joints2d_px.double().numpy().copy()
    if mirrored_width is not None:
        places_px[:, 0] = mirrored_width - places_px[:, 0]
    depth_px = fit.joints_m[:, 2:].double().numpy() * fit.camera.scale_px_per_m
    joints_px = with_joint0(np.concatenate([places_px, depth_px], axis=1), "wrist", joint0)
    center_px, half_px = square.center_px.double(), 0.5 * float(square.size_px)
    upright = Square(center_px, square.size_px.double(), square.angle.double())
    places = upright.to_crop(torch.from_numpy(joints_px[:, :2])).numpy()
    return np.concatenate([places, joints_px[:, 2:] / half_px], axis=1)


def whole_crop(size: int) -> Square:
    """The square of a crop which is itself the image."""
    middle = torch.full((2,), size / 2, dtype=torch.float64)
    return Square(middle, torch.tensor(float(size), dtype=torch.float64))


def box_of(points_px: np.ndarray) -> np.ndarray:  # (N, 2) -> (4,)
    """Left, top, right, bottom of the points that are known."""
    known = points_px[np.isfinite(points_px).all(axis=1)]
    return np.concatenate([known.min(axis=0), known.max(axis=0)])


def longer_side(box: np.ndarray) -> float:
    """Of a box, pixels."""
    return float((box[2:] - box[:2]).max())


# ---- What a test hand is like, by its labels -------------------------------------------------------------------------

FIST = 0.55
"""A finger's reach by the length of its bones below which it is bent; of a fist, on average over the four fingers."""
HIDDEN = 0.5
"""Share of the joints that are seen below which a hand is half hidden."""
SECOND_HAND_PX = 0.02
"""Pixels of another hand, by those of the labelled one, from which there are two."""


def reach(joints_m: np.ndarray) -> float:  # (21, 3)
    """Distance of fingertip and knuckle by the length of the three bones between, mean over the four fingers."""
    fingers = joints_m[5:].reshape(4, 4, 3)
    bones = np.linalg.norm(np.diff(fingers, axis=1), axis=-1).sum(axis=1)
    return float((np.linalg.norm(fingers[:, -1] - fingers[:, 0], axis=-1) / bones).mean())


def kinds_of(sample: Sample) -> list[str]:
    """The kinds of pictures a test hand belongs to."""
    kinds = []
    if reach(sample.joints_m) < FIST:
        kinds.append("fist")
    if float(sample.visible.mean()) < HIDDEN:
        kinds.append("half hidden")
    if _second_hand(sample):
        kinds.append("second hand")
    if pointing(sample.joints_m) > 0.8:
        kinds.append("along the view")
    return kinds or ["plain"]


def pointing(joints_m: np.ndarray) -> float:  # (21, 3)
    """Cosine of the angle between the hand, wrist to middle MCP, and the line of sight."""
    along = joints_m[MIDDLE_MCP] - joints_m[0]
    sight = joints_m[MIDDLE_MCP]
    return float(abs(along @ sight) / (np.linalg.norm(along) * np.linalg.norm(sight)))


def _second_hand(sample: Sample) -> bool:
    ids = cv2.imread(str(sample.mask_file), cv2.IMREAD_GRAYSCALE)
    low, high = sample.mask_ids
    own = (ids >= low) & (ids <= high)
    other = (ids >= 2) & ~own
    return bool(other.sum() > SECOND_HAND_PX * max(int(own.sum()), 1))


# ---- Uncertainty -----------------------------------------------------------------------------------------------------


def half_width(values: Tensor | np.ndarray) -> float | None:
    """Half of the 95 % interval of a mean over independent hands, taken as normal; None of fewer than two."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(1.96 * known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None


def keep(name: str, **arrays: np.ndarray) -> Path:
    """Writes what one command leaves to the next: hand by hand, beside the result file."""
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{name}.npz"
    np.savez(path, **arrays)
    return path


def plot_path(name: str) -> Path:
    """Where a picture beside the results goes."""
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / f"{name}.png"
