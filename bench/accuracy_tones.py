"""Bias across skin tones: the same generated scenes drawn with six tones, from light to dark, everything else alike.

Differences between tones are then differences of the same hands, and their intervals small.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np
import torch
from accuracy_generated import (
    FIT,
    HOW,
    JOINTS2D,
    REGRESSION,
    as_it_is_read,
    aucs_of_hands,
    fitted,
    of_joints2d,
    of_params,
)
from accuracy_hands import (
    TEST_SEED,
    WORK,
    Tested,
    batches_of,
    crops_of,
    draw,
    half_width,
    held_out_hands,
    plan_of_tests,
    tested,
)
from common import run_facts, write_result

from dhpe_fast.config import Synthesis
from dhpe_fast.data import Dataset
from dhpe_fast.data.pictures import SKIN_TONES
from dhpe_fast.scores import Measured, distances_mm, distances_px

TONES = tuple(np.linspace(0, 1, len(SKIN_TONES)).tolist())
"""Places in ``SKIN_TONES``, 0 (light) to 1 (dark)."""


def tones(arguments: Namespace) -> None:
    """Measures, prints the table, writes bench/results/accuracy_tones.json."""
    networks = tested(arguments.run, arguments.config)
    plan = networks.config.data.synthesize
    by_tone = [measured(networks, drawn(plan, arguments.hands, tone)) for tone in TONES]
    rows = [row(tone, found, by_tone) for tone, found in zip(TONES, by_tone, strict=True)]
    for own in rows:
        print("  ".join(f"{key} {value:.3f}" for key, value in own.items() if value is not None))
    facts = {"run": run_facts(), "networks": networks.name, "hands": arguments.hands, "seed": TEST_SEED}
    facts |= {"skin_tones": SKIN_TONES}
    print(f"-> {write_result(arguments.name, {**facts, 'rows': rows})}")


def drawn(plan: Synthesis, count: int, tone: float) -> Dataset:
    """The first test scenes, everybody in them of one tone; drawn if they are not there."""
    folder = WORK / f"tones-{plan.size_px}px-seed{TEST_SEED}-{count}" / f"{tone:.1f}"
    draw(folder, plan_of_tests(plan, count), tone=tone)
    return held_out_hands(folder)


def measured(networks: Tested, hands: Dataset) -> dict[str, Measured]:
    """2D joints of f_J2D, regression and fit of all hands, in their crops."""
    parts: dict[str, list[Measured]] = {}
    for batch in batches_of(crops_of(hands, networks.config)):
        with torch.no_grad():
            evidence = networks.model.estimate_evidence(batch.images)
            estimate = networks.model.estimate_mesh(evidence)
        parts.setdefault(JOINTS2D, []).append(of_joints2d(batch, evidence.joints2d_px))
        parts.setdefault(REGRESSION, []).append(of_params(networks.model, batch, estimate.h))
        parts.setdefault(FIT, []).append(fitted(networks.model, batch, as_it_is_read(networks.model, batch)))
    return {name: Measured.joined(found) for name, found in parts.items()}


def row(tone: float, found: dict[str, Measured], all_tones: list[dict[str, Measured]]) -> dict[str, Any]:
    """Scores of one tone; the differences are to the mean of all tones, scene by scene, with 95 % intervals."""
    offsets = [distances_px(own[JOINTS2D], HOW).nanmean(-1) for own in all_tones]
    errors = [distances_mm(own[FIT], HOW).nanmean(-1) for own in all_tones]
    own_px = distances_px(found[JOINTS2D], HOW).nanmean(-1) - torch.stack(offsets).mean(0)
    own_mm = distances_mm(found[FIT], HOW).nanmean(-1) - torch.stack(errors).mean(0)
    known = own_mm.isfinite()
    return {
        "tone": tone,
        "joints2d_px": float(distances_px(found[JOINTS2D], HOW).nanmean()),
        "joints2d_difference_px": float(own_px.mean()),
        "joints2d_half_width_px": half_width(own_px),
        "regression_epe_mm": float(distances_mm(found[REGRESSION], HOW).nanmean()),
        "fit_epe_mm": float(distances_mm(found[FIT], HOW)[found[FIT].finite].nanmean()),
        "fit_difference_mm": float(own_mm[known].mean()),
        "fit_half_width_mm": half_width(own_mm[known]),
        "fit_auc_20_50": float(aucs_of_hands(distances_mm(found[FIT], HOW)).mean()),
        "fit_iou": found[FIT].pixels.iou,
        "fit_missing": int((~found[FIT].finite).sum()),
    }
