"""The paper's measures on generated test hands: baselines, networks, Eq. 11, and what ``fit`` makes of the networks."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_hands import (
    Tested,
    batches_of,
    crops_of,
    data_facts,
    fit_in_crop,
    half_width,
    hands_to_test,
    held_out_hands,
    keep,
    own_hands,
    plot_path,
    tested,
    whole_crop,
)
from accuracy_whole import END_TO_END, WholePictures, measure_whole
from common import run_facts, write_result
from torch import Tensor
from torch.nn.functional import pad

import dhpe_fast
from dhpe_fast import pretrained
from dhpe_fast.conventions import BORDER_GREY
from dhpe_fast.data import HandBatch, HandCrops, open_dataset
from dhpe_fast.evidence import HandEvidence, SeenSilhouette
from dhpe_fast.evidence.networks import WIDEST, Reading, Seen, joints_and_peaks, seen_in_scales
from dhpe_fast.hand import CropBox
from dhpe_fast.hand_fit import HandFit
from dhpe_fast.metrics import auc, pck_curve
from dhpe_fast.nets import DHPE
from dhpe_fast.nets.mesh_estimator import initial_hand
from dhpe_fast.plots import Curve, pck_plot
from dhpe_fast.refinement import Refiner
from dhpe_fast.scores import Comparison, Measured, distances_mm, distances_px, scores

MEAN_SKELETON, MEAN_POSE = "mean skeleton", "mean-pose hand"
REGRESSION, REFINED, FIT = "regression, f_DHPE", "after Eq. 11", "fit"
SAME_HANDS = "regression, the same hands"
"""The regression of those hands alone that Eq. 11 refines."""
HOW = Comparison()
"""Root-aligned, all 21 joints; Zimmermann and Brox's alignment (root and one bone) is given beside it."""
ALSO = "zb2017"
JOINTS2D = "f_J2D"
"""Its 2D joints alone: no hand in space."""
MEAN_OF = 1000
"""Training hands of which the mean skeleton is."""
LIMITS_MM = np.linspace(0, 50, 101)


def generated(arguments: Namespace) -> None:
    """Measures, prints the table, writes bench/results/accuracy_generated.json and its PCK curves."""
    networks = tested(arguments.run, arguments.config)
    plan = networks.config.data.synthesize
    root = hands_to_test(plan)
    hands = held_out_hands(root, arguments.hands)
    crops = crops_of(hands, networks.config)
    rows = measure(networks, crops, _mean_skeleton(own_hands(plan, arguments.data), networks), arguments.refined)
    whole = None
    if arguments.end_to_end and pretrained.available("locator") and pretrained.available("dhpe"):
        whole = measure_whole(root, crops, min(arguments.end_to_end, len(hands)))
        rows[END_TO_END] = whole.found
    offsets_px = distances_px(rows.pop(JOINTS2D), HOW)
    table = [table_row(name, found) for name, found in rows.items()]
    print(as_text(table))
    result = {
        "run": run_facts(),
        "networks": networks.name,
        "data": data_facts(root, hands),
        "given": {"crop": "labels", "side": "labels", "root_depth": "labels"},
        "refinement": {"iterations": networks.config.refinement.iterations},
        "rows": table,
        "joints2d": {
            "mean_px": float(offsets_px.nanmean()),
            "half_width_px": half_width(offsets_px.nanmean(-1)),
            "median_px": float(offsets_px.nanmedian()),
        },
        "end_to_end": None if whole is None else whole.summary(),
    }
    _keep(rows, whole, networks.name, result["data"]["sha256"])
    pck = plot_path(f"{arguments.name}_pck")
    curves = [
        Curve(name, LIMITS_MM, pck_curve(distances_mm(found, HOW), LIMITS_MM))
        for name, found in rows.items()
        if name != SAME_HANDS
    ]
    pck_plot(pck, curves, title=f"{len(hands):,} generated test hands, root-aligned")
    print(f"-> {write_result(arguments.name, result)}, {pck}")


def measure(networks: Tested, crops: HandCrops, mean_skeleton: Tensor, n_refined: int) -> dict[str, Measured]:
    """All answers to all crops; that of Eq. 11 to the first `n_refined`."""
    model, parts = networks.model, {}
    refiner = Refiner(model, **vars(networks.config.refinement))
    mean_pose = initial_hand(model.hand, networks.config.model.joint0).packed()
    done = 0
    for batch in batches_of(crops):
        _add(parts, MEAN_SKELETON, Measured.of(batch, mean_skeleton.expand(len(batch), -1, -1)))
        _add(parts, MEAN_POSE, of_params(model, batch, mean_pose.expand(len(batch), -1)))
        with torch.no_grad():
            evidence = model.estimate_evidence(batch.images)
            estimate = model.estimate_mesh(evidence)
        regressed = of_params(model, batch, estimate.h)
        _add(parts, REGRESSION, regressed)
        _add(parts, JOINTS2D, of_joints2d(batch, evidence.joints2d_px))
        if done < n_refined:
            refined = refiner(batch.images, estimate.h, estimate.joints2d_px)
            # Refinement answers to everything; where there was no estimate, there is none to refine.
            h = torch.where(estimate.h.isfinite().all(-1, keepdim=True), refined.h, torch.nan)
            _add(parts, SAME_HANDS, regressed)
            _add(parts, REFINED, of_params(model, batch, h))
        _add(parts, FIT, fitted(model, batch, as_it_is_read(model, batch)))
        done += len(batch)
    return {name: Measured.joined(found) for name, found in parts.items()}


def of_params(model: DHPE, batch: HandBatch, h: Tensor) -> Measured:  # (B, 63)
    """The hands of h, joints and mask."""
    with torch.no_grad():
        projection = model.project(h)
    return Measured.of(batch, projection.joints, projection.mask > 0.5)


def of_joints2d(batch: HandBatch, joints2d_px: Tensor) -> Measured:  # (B, 21, 2) pixels of the crop
    """2D joints alone, to be measured in the image."""
    places = 2 * joints2d_px / batch.size - 1
    return Measured.of(batch, torch.cat([places, torch.zeros_like(places[..., :1])], dim=-1))


def as_it_is_read(model: DHPE, batch: HandBatch) -> Seen:
    """What ``NetworkEvidence`` reads at last, in turns and scales; beyond the crop, all that there is, it is grey."""
    margin = round(0.5 * (WIDEST - 1) * batch.size)
    with torch.no_grad():
        return seen_in_scales(model, pad(batch.images, (margin,) * 4, value=BORDER_GREY / 255))


def fitted(model: DHPE, batch: HandBatch, seen: Seen) -> Measured:
    """What ``fit`` makes of the 2D joints that f_J2D sees in each crop, and of how sure it is of them."""
    joints = torch.full((len(batch), 21, 3), torch.nan)
    masks = torch.zeros(batch.masks.shape, dtype=torch.bool)
    for index in range(len(batch)):
        found = fit_of(model, batch, seen, index)
        if found is not None:
            joints[index] = torch.from_numpy(fit_in_crop(found, whole_crop(batch.size), batch.joint0)).float()
            masks[index] = found.mask
    return Measured.of(batch, joints, masks)


def fit_of(model: DHPE, batch: HandBatch, seen: Seen, index: int) -> HandFit | None:
    """``fit`` to one crop, a right hand's; None where too few joints are seen."""
    image = (batch.images[index] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    evidence = evidence_in_crop(model, seen, index)
    if evidence is None:
        return None
    (found,) = dhpe_fast.fit(image, evidence=lambda image, boxes: [evidence], hand="right")
    return found


def evidence_in_crop(model: DHPE, seen: Seen, index: int) -> HandEvidence | None:
    """What is seen in one crop, as ``NetworkEvidence`` hands it over; None of no hand."""
    size = model.image_size
    square = CropBox((size / 2, size / 2), size)
    (joints,), (peaks,) = joints_and_peaks(seen.heatmaps[index, None], model.spec()["joint0"])
    silhouette = None if seen.silhouettes is None else SeenSilhouette(seen.silhouettes[index].numpy(), square)
    try:
        return Reading(0.5 * size * (joints + 1), peaks, "right", float(peaks.mean()), square, silhouette).evidence()
    except ValueError:  # all joints are at one place
        return None


def table_row(name: str, found: Measured, how: Comparison = HOW) -> dict[str, Any]:
    """The scores of one answer, with half of their 95 % intervals over hands."""
    form = name != MEAN_SKELETON  # of no hand's form, so that nothing can be learnt from its distance in form
    own = scores(found, how, form=form)
    distances = distances_mm(found, how)
    beside = distances_mm(found, how, ALSO)
    finite = found.finite.all()
    return {
        "name": name,
        "hands": len(found.joints_m),
        "missing": int((~found.finite).sum()),
        **{key: value if np.isfinite(value) else None for key, value in own.items()},
        f"auc_20_50_{ALSO}": auc(beside, "zb2017_20_50"),
        "auc_20_50_half_width": half_width(aucs_of_hands(distances)),
        "epe_half_width_mm": half_width(distances.nanmean(-1)) if finite else None,
        "joints2d_median_px": float(distances_px(found, how).nanmean(-1).median()),
    }


def aucs_of_hands(distances: Tensor) -> np.ndarray:  # (S, 21) -> (S,)
    """AUC, 20 to 50 mm, of each hand alone: where all have the same joints, their mean is that of the set."""
    return np.array([auc(row[None], "zb2017_20_50") for row in distances])


COLUMNS = {
    "auc_zb2017_20_50": "AUC 20-50",
    "auc_zb2017_0_50": "AUC 0-50",
    "epe_mm": "EPE mm",
    "pa_mpjpe_mm": "PA mm",
    "joints2d_px": "2D px",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}


def as_text(table: list[dict[str, Any]]) -> str:
    """For the terminal."""
    lines = [f"{'':<24}{'hands':>7}" + "".join(f"{title:>11}" for title in COLUMNS.values())]
    for row in table:
        cells = ("-" if row.get(key) is None else f"{row[key]:.3f}" for key in COLUMNS)
        lines.append(f"{row['name']:<24}{row['hands']:>7}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def _mean_skeleton(root: Path, networks: Tested) -> Tensor:
    """The mean (1, 21, 3) of training skeletons in their crops; over many orientations it shrinks to a point."""
    hands = open_dataset("rhd", root, "train")
    crops = crops_of(hands[: min(MEAN_OF, len(hands))], networks.config)
    skeletons = np.stack([crops.joints_crop(index) for index in range(len(crops))])
    return torch.from_numpy(np.nanmean(skeletons, axis=0)).float()[None]


def _keep(rows: dict[str, Measured], whole: WholePictures | None, networks: str, sha256: str) -> None:
    """Leaves to ``failures`` how far each hand is off, of which networks and hands."""
    columns = {"networks": np.array(networks), "sha256": np.array(sha256)}
    columns |= {"fit_epe_mm": distances_mm(rows[FIT], HOW).nanmean(-1).numpy()}
    if whole is not None:
        columns["whole_epe_mm"] = distances_mm(whole.found, HOW).nanmean(-1).numpy()
        columns |= {"whole_found": whole.is_found, "whole_side_right": whole.side_right}
    keep("generated", **columns)


def _add(parts: dict[str, list[Measured]], name: str, found: Measured) -> None:
    parts.setdefault(name, []).append(found)
