"""How good trained networks are on a data set: the paper's measures (Sec. 4), as numbers, plots and pictures."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dhpe_fast.atomic_write import write_whole
from dhpe_fast.config import DataSource, TrainConfig
from dhpe_fast.conventions import H_LAYOUT
from dhpe_fast.data import Dataset, HandBatch, HandCrops, apply_colour, make_loader, open_dataset
from dhpe_fast.hand import HandModel, WeakPerspective
from dhpe_fast.io import save_image
from dhpe_fast.metrics import ALIGNMENTS, pck_curve
from dhpe_fast.nets import DHPE
from dhpe_fast.nets.mesh_estimator import initial_hand
from dhpe_fast.plots import Curve, pck_plot
from dhpe_fast.published_results import AUC, SEGMENTATION
from dhpe_fast.refinement import Refiner
from dhpe_fast.scores import TRUE_DEPTH, Comparison, Measured, distances_mm, scores
from dhpe_fast.shading import CLAY, shade
from dhpe_fast.train import LAST, load_model, open_crops
from dhpe_fast.train.checkpoint import find_checkpoint, load_state
from dhpe_fast.viz import composite, contact_sheet, draw_skeleton

MEAN_SKELETON, MEAN_POSE, REGRESSION, REFINED = "mean skeleton", "mean-pose hand", "regression", "refined"
"""What is measured: two answers that do not look at the image, the mean of the training skeletons in the crop and the
hand in its mean pose, upright, which an untrained network sees everywhere; f_DHPE; and f_DHPE after Eq. 11."""

FINGERTIPS_ONLY = ("dexter_object",)
"""Data sets that know no other joints."""

_BASELINE_CROPS = 1000
_SHEET_ROWS = 8
_CURVE_MM = {False: np.linspace(0, 50, 101), True: np.linspace(0, 100, 101)}


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure, and how."""

    source: DataSource | None = None
    """The data set; None is the first of the configuration's validation sets."""
    refinement: bool = True
    """Whether to measure Eq. 11, too."""
    alignment: str | None = None
    """How estimates are placed before they are compared: a key of ``metrics.ALIGNMENTS`` other than "none", or
    ``TRUE_DEPTH``; None is "root", or for data sets that know fingertips only, ``TRUE_DEPTH``."""
    visible_only: bool = False
    """Whether joints count only where they are annotated as visible, as in Zimmermann and Brox's evaluation; in all
    measures of joints."""
    limit: int | None = None
    """Measure only so many samples, spread evenly."""
    checkpoint: str = LAST
    """Not the best one: that was chosen on the validation sets, which in the shipped configurations are test sets."""
    batch_size: int = 16
    workers: int = 1
    device: str | None = None
    """Where to compute; None is a GPU where there is one."""


def evaluate(
    run: str | os.PathLike[str], output: str | os.PathLike[str], options: EvaluationOptions | None = None
) -> dict[str, Any]:
    """Measures the networks of a run.

    Writes into the folder `output`, which is made: ``evaluation.json``, ``pck.png`` and ``hands.png`` (crop, estimate,
    refined estimate, mesh, and its shape in the mean pose: as in the paper's Fig. 6).

    Args:
        run: folder of a training run.
        output: folder for the results.
        options: what to measure.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        CheckpointError, ConfigError: if the run has no such checkpoint, or a file is damaged.
        ValueError: if the data set cannot be read, has no sample, or an option is not accepted.
    """
    options = EvaluationOptions() if options is None else options
    config, model = load_model(run, options.checkpoint)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = options.source or config.data.validation[0]
    dataset = open_dataset(source.format, source.root, source.split, **source.options)
    tips_only = dataset.name in FINGERTIPS_ONLY
    options = replace(options, source=source, alignment=_alignment(options.alignment, tips_only), device=str(device))
    crops = HandCrops(dataset, config.model.image_size, joint0=config.model.joint0)
    sets = _measure(model.to(device, memory_format=torch.channels_last), crops, config, options)
    report = _without_nan(_facts(run, config, dataset, options) | _results(sets, dataset.name, options))
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "evaluation.json", (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    _plot(output / "pck.png", sets, options, dataset.name)
    save_image(output / "hands.png", _sheet(model, sets))
    return report


def as_text(report: dict[str, Any]) -> str:
    """The scores of ``evaluate`` as a table."""
    found = report["scores"]
    names = list(dict.fromkeys(key for own in found.values() for key in own))
    data, checkpoint = report["dataset"], report["checkpoint"]
    lines = [
        f"{report['samples']} hands of {data['root']} ({data['name']}), alignment: {report['options']['alignment']}, "
        f"checkpoint: {checkpoint['name']}, after {checkpoint['epochs']} epochs"
    ]
    lines += [f"{name}: {count} estimates are not finite" for name, count in report["not_finite"].items() if count]
    lines.append(f"{'':20}" + "".join(f"{name:>16}" for name in found))
    for key in names:
        values = (own.get(key) for own in found.values())
        cells = (f"{'-':>16}" if value is None else f"{value:16.3f}" for value in values)
        lines.append(f"{key:20}" + "".join(cells))
    return "\n".join(lines)


def _facts(
    run: str | os.PathLike[str], config: TrainConfig, dataset: Dataset, options: EvaluationOptions
) -> dict[str, Any]:
    """What was measured, with what, and what was known beforehand."""
    folder = find_checkpoint(Path(run), options.checkpoint)
    progress = load_state(folder).get("progress", {})
    source = options.source.model_dump(mode="json")
    return {
        "run": os.fspath(run),
        "checkpoint": {
            "name": options.checkpoint,
            "epochs": progress.get("epoch"),
            "steps": progress.get("step"),
        },
        "options": asdict(replace(options, source=None)) | {"source": source},
        "dataset": {"name": dataset.name, **source},
        "given": {"square": _origin_of_square(dataset, options.source), "root_depth": "labels", "side": "labels"},
        "joint0": config.model.joint0,
        "refinement": asdict(config.refinement),
    }


def _origin_of_square(dataset: Dataset, source: DataSource) -> str:
    if dataset.labels.crops is None:
        return "labels"
    if source.options.get("boxes") is not None:
        return f"boxes: {source.options['boxes']}"
    return "labels of the fingertips" if dataset.name in FINGERTIPS_ONLY else "the whole image"


def _results(sets: dict[str, Measured], name: str, options: EvaluationOptions) -> dict[str, Any]:
    found = sets[REGRESSION]
    return {
        "samples": len(found.joints_m),
        "without_labels": found.n_unlabelled,
        "not_finite": {label: int((~own.finite).sum()) for label, own in sets.items()},
        # The mean skeleton is of no hand's form, so that nothing can be learnt from its distance in form.
        "scores": {
            label: scores(own, _comparison(options, name), form=label != MEAN_SKELETON) for label, own in sets.items()
        },
        "published": {
            "auc": [row._asdict() for row in AUC if row.dataset == name],
            "segmentation": [row._asdict() for row in SEGMENTATION if row.dataset == name],
        },
    }


def _without_nan(value: Any) -> Any:
    """JSON knows no number that is not finite; null stands for it."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- Measuring ------------------------------------------------------------------------------------------------


def _measure(model: DHPE, crops: HandCrops, config: TrainConfig, options: EvaluationOptions) -> dict[str, Measured]:
    device = torch.device(options.device)
    mean_skeleton = _mean_skeleton(config).to(device)
    mean_pose = initial_hand(model.hand, config.model.joint0).packed()
    parts: dict[str, list[Measured]] = {MEAN_SKELETON: [], MEAN_POSE: [], REGRESSION: []}
    parts |= {REFINED: []} if options.refinement else {}
    refiner = Refiner(model, **vars(config.refinement)) if options.refinement else None
    for batch in _batches(crops, options, device):
        parts[MEAN_SKELETON].append(Measured.of(batch, mean_skeleton.expand(len(batch), -1, -1)))
        parts[MEAN_POSE].append(_of_params(model, batch, mean_pose.expand(len(batch), -1)))
        (h, joints2d_px), ms = _timed(lambda batch=batch: _regressed(model, batch), device, len(batch))
        parts[REGRESSION].append(_of_params(model, batch, h, ms))
        if refiner is not None:
            refined, more_ms = _timed(
                lambda batch=batch, h=h, joints2d_px=joints2d_px: refiner(batch.images, h, joints2d_px),
                device,
                len(batch),
            )
            # Refinement answers to everything; where there was no estimate, there is none to refine.
            found = torch.where(h.isfinite().all(-1, keepdim=True), refined.h, torch.nan)
            parts[REFINED].append(_of_params(model, batch, found, ms + more_ms))
    return {name: Measured.joined(rows) for name, rows in parts.items()}


def _batches(crops: HandCrops, options: EvaluationOptions, device: torch.device) -> Iterator[HandBatch]:
    chosen = np.arange(len(crops))
    if options.limit is not None:
        if options.limit < 1:
            raise ValueError(f"limit: expected a number of samples >= 1, got {options.limit}")
        chosen = np.unique(np.linspace(0, len(crops) - 1, min(options.limit, len(crops))).round().astype(int))
    pieces = [chosen[k : k + options.batch_size] for k in range(0, len(chosen), options.batch_size)]
    keys = [[(0, int(index)) for index in piece] for piece in pieces]
    for batch in tqdm(make_loader(crops, keys, options.workers), "evaluating", disable=None):
        yield apply_colour(batch.to(device))


@torch.no_grad()
def _regressed(model: DHPE, batch: HandBatch) -> tuple[Tensor, Tensor]:
    estimate = model.estimate_mesh(model.estimate_evidence(batch.images))
    return estimate.h, estimate.joints2d_px


def _mean_skeleton(config: TrainConfig) -> Tensor:
    """The mean (1, 21, 3) of the training skeletons in their crops; over many orientations it shrinks to a point."""
    crops = open_crops(config, training=True, augmented=False)
    chosen = np.unique(np.linspace(0, len(crops) - 1, min(_BASELINE_CROPS, len(crops))).round().astype(int))
    skeletons = np.stack([crops.joints_crop(int(index)) for index in chosen])
    return torch.from_numpy(np.nanmean(skeletons, axis=0)).float()[None]


def _of_params(model: DHPE, batch: HandBatch, h: Tensor, ms: float | None = None) -> Measured:
    with torch.no_grad():
        projection = model.project(h)
    found = Measured.of(batch, projection.joints, projection.mask > 0.5)
    found.ms_per_hand = ms
    joints2d_px = (0.5 * projection.joints[..., :2] + 0.5) * batch.size
    found.examples = [
        (image.cpu(), own_h.cpu(), joints.cpu())
        for image, own_h, joints in zip(batch.images, h, joints2d_px, strict=True)
    ][:_SHEET_ROWS]
    return found


def _timed(function: Callable[[], Any], device: torch.device, n: int) -> tuple[Any, float]:
    """The result, and milliseconds for each of n hands."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = function()
    wait()
    return result, 1000 * (time.perf_counter() - start) / n


# --- Reporting ------------------------------------------------------------------------------------------------


def _alignment(wish: str | None, tips_only: bool) -> str:
    if wish is None:
        return TRUE_DEPTH if tips_only else "root"
    accepted = [TRUE_DEPTH, *(name for name in ALIGNMENTS if name != "none")]
    if tips_only:
        accepted = [TRUE_DEPTH, "centroid_scale", "procrustes"]
    if wish not in accepted:
        what = "of fingertips alone " if tips_only else ""
        raise ValueError(f"alignment {what}is one of {', '.join(accepted)}, got {wish!r}")
    return wish


def _comparison(options: EvaluationOptions, name: str) -> Comparison:
    return Comparison(options.alignment, name in FINGERTIPS_ONLY, options.visible_only)


def _plot(path: Path, sets: dict[str, Measured], options: EvaluationOptions, name: str) -> None:
    tips_only = name in FINGERTIPS_ONLY
    limits = _CURVE_MM[tips_only]
    how = _comparison(options, name)
    curves = [Curve(label, limits, pck_curve(distances_mm(found, how), limits)) for label, found in sets.items()]
    what = "fingertips" if tips_only else "joints"
    published = [row for row in AUC if row.dataset == name]
    pck_plot(path, curves, title=f"{what} of {name}, alignment: {options.alignment}", published=published)


def _sheet(model: DHPE, sets: dict[str, Measured]) -> np.ndarray:
    """A row for each of the first hands: crop, estimate, refined, mesh, and its shape in the mean pose."""
    hand, tiles = model.hand.cpu(), []
    last = sets.get(REFINED, sets[REGRESSION])
    for row, (image, h, joints2d_px) in enumerate(sets[REGRESSION].examples[:_SHEET_ROWS]):
        picture = (image * 255).round().byte().permute(1, 2, 0).numpy()
        tiles += [picture, _overlay(hand, picture, h, joints2d_px)]
        if last is not sets[REGRESSION]:
            _, h, joints2d_px = last.examples[row]
            tiles.append(_overlay(hand, picture, h, joints2d_px))
        white = np.full_like(picture, 255)
        tiles += [_with_mesh(hand, white, h), _with_mesh(hand, white, _in_mean_pose(hand, h))]
    return contact_sheet(tiles, columns=len(tiles) // min(_SHEET_ROWS, len(sets[REGRESSION].examples)), gap_px=4)


def _overlay(hand: HandModel, picture: np.ndarray, h: Tensor, joints2d_px: Tensor) -> np.ndarray:
    if not joints2d_px.isfinite().all():
        return picture
    return draw_skeleton(_with_mesh(hand, picture, h, alpha=0.6), joints2d_px.double().numpy())


def _with_mesh(hand: HandModel, picture: np.ndarray, h: Tensor, alpha: float = 1.0) -> np.ndarray:
    if not h.isfinite().all():
        return picture
    size = picture.shape[0]
    verts = hand.decode(h[None]).verts_m[0]
    layer = shade(verts, hand.faces, WeakPerspective(size / 2, (size / 2, size / 2)), (size, size), material=CLAY)
    return composite(picture, layer, alpha)


def _in_mean_pose(hand: HandModel, h: Tensor) -> Tensor:
    """The shape alone, upright, seen from the palm."""
    params = initial_hand(hand).packed()[0]
    params[H_LAYOUT["shape"]] = h[H_LAYOUT["shape"]]
    return params
