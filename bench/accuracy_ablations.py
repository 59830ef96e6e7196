"""The paper's ablations (Fig. 5): networks trained without one part each, by the project's own command and budget.

All variants share the 2D pose network of one run, which none of them changes, and differ from ``full`` by the overrides
of ``VARIANTS`` only. Each is measured with and without testing refinement on the same test hands, so that differences
are taken hand by hand; their intervals are over test hands, and say nothing of what another seed would have trained.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accuracy_generated import HOW, LIMITS_MM, of_params, table_row
from accuracy_hands import (
    WORK,
    Tested,
    batches_of,
    crops_of,
    data_facts,
    first_training_hands,
    half_width,
    hands_to_test,
    held_out_hands,
    own_hands,
    plot_path,
)
from common import DEVICE, run_facts, write_result

from dhpe_fast.config import TrainConfig, load_config
from dhpe_fast.data import HandCrops, open_dataset
from dhpe_fast.data.recipe import read_recipe
from dhpe_fast.metrics import pck_curve
from dhpe_fast.plots import Curve, pck_plot, progress_plot
from dhpe_fast.refinement import Refiner
from dhpe_fast.scores import Measured, distances_mm
from dhpe_fast.train import LAST, load_model, read_log, train

FULL, CONSTANT = "full", "constant weight of the shape loss"
VARIANTS: dict[str, tuple[str, ...]] = {
    FULL: (),
    "without f_Ref": ("model.use_refiner=false",),
    # The paper's "w/o 2D losses", Kanazawa et al.'s framework: no evidence in 2D but features that no 2D loss has seen.
    "without f_Ref and 2D evidence": ("model.use_refiner=false", "model.use_joints2d=false", "loss.feature=0"),
    "without self-made instances": ("self_supervision.instances_per_seed=0",),
    CONSTANT: ("loss.gate.mode=constant",),
    "without the shape loss": ("loss.silhouette=0",),
}
NETWORKS, REFINED = "networks", "refined"
SHOWN = ("epe_mm", "pa_mpjpe_mm", "auc_zb2017_20_50", "joints2d_px", "iou")


def ablations(arguments: Namespace) -> None:
    """Trains what is not trained yet, prints the table, writes bench/results/accuracy_ablations.json and its plots."""
    plan = load_config(arguments.config, arguments.changes).data.synthesize
    test_root = hands_to_test(plan)
    folder = WORK / "ablations" if arguments.folder is None else arguments.folder
    rows, sets, errors, logs = [], {}, {}, {}
    for name, overrides in wanted(arguments.variants).items():
        config = variant(arguments, overrides)
        run = folder / name.replace(" ", "-")
        train(config, run, resume="auto", device=DEVICE)
        _, model = load_model(run, LAST)
        hands = held_out_hands(test_root, arguments.hands)
        sets[name] = measure(Tested(name, config, model.eval()), crops_of(hands, config), arguments.refined)
        errors[name] = {stage: distances_mm(own, HOW).nanmean(-1).numpy() for stage, own in sets[name].items()}
        logs[name] = read_log(run, "validation")
        rows.append(
            {
                "variant": name,
                "overrides": list(overrides),
                "steps": int(logs[name][-1]["step"]),
                "minutes": sum(line["seconds"] for line in logs[name]) / 60,
                "scores": {stage: table_row(stage, own) for stage, own in sets[name].items()},
                "difference": {stage: difference(errors[name][stage], errors[FULL][stage]) for stage in sets[name]},
            }
        )
        print(as_text(rows[-1]))
    _plot(arguments.name, sets, logs)
    facts = {"run": run_facts(), "data": data_facts(test_root, hands), "config": arguments.config}
    facts["trained_on"] = read_recipe(config.data.train[0].root)
    gain = difference(errors[FULL][NETWORKS][: len(errors[FULL][REFINED])], errors[FULL][REFINED])
    print(f"-> {write_result(arguments.name, {**facts, 'refinement_gain': gain, 'rows': rows})}")


def _plot(name: str, sets: dict[str, dict[str, Measured]], logs: dict[str, list[dict[str, Any]]]) -> None:
    """PCK of all variants without testing refinement, and Fig. 5(f): what the gate of Eq. 10 does over the epochs."""
    curves = [
        Curve(variant, LIMITS_MM, pck_curve(distances_mm(found[NETWORKS], HOW), LIMITS_MM))
        for variant, found in sets.items()
    ]
    pck_plot(plot_path(f"{name}_pck"), curves, title="variants, without testing refinement")
    gates = {variant: logs[variant] for variant in (FULL, CONSTANT) if variant in logs}
    if CONSTANT in gates:
        progress_plot(plot_path(f"{name}_gate"), gates)


def wanted(names: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """The variants of these names, the full one first; all without names.

    Raises:
        SystemExit: if there is no such variant.
    """
    unknown = [name for name in names or () if name not in VARIANTS]
    if unknown:
        raise SystemExit(f"ablations: no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    return {name: own for name, own in VARIANTS.items() if names is None or name in (FULL, *names)}


def variant(arguments: Namespace, overrides: tuple[str, ...]) -> TrainConfig:
    """The configuration of one variant, with as many epochs as come nearest to the wanted number of steps."""
    changes = [*arguments.changes]
    if arguments.pose2d is not None:
        changes += [f"start.pose2d={arguments.pose2d}", "loss.heatmap=0"]
    config = load_config(arguments.config, [*changes, *overrides])
    root = own_hands(config.data.synthesize, arguments.data)
    if arguments.training_hands is not None:
        root = first_training_hands(root, arguments.training_hands)
    for part, split in SPLITS.items():
        changes.append(f"data.{part}=[{{format: rhd, root: {root}, split: {split}}}]")
    changes.append("data.synthesize=null")  # the hands are there
    epochs = epochs_for(arguments.steps_per_variant, len(open_dataset("rhd", root, "train")), config)
    changes += [f"optimisation.epochs={epochs}", f"self_supervision.start_epoch={start_of_instances(epochs)}"]
    return load_config(arguments.config, [*changes, *overrides])


SPLITS = {"train": "train", "validation": "test"}


def start_of_instances(epochs: int) -> int:
    """New instances are proposed from the epoch before the middle on, so that half of the epochs train on them."""
    return max(0, epochs // 2 - 1)


def epochs_for(steps: int, n_training: int, config: TrainConfig) -> int:
    """Epochs whose steps come nearest to so many. Self-made instances make epochs longer: then there are fewer."""
    return min(range(1, steps + 1), key=lambda epochs: abs(steps_of(epochs, n_training, config) - steps))


def steps_of(epochs: int, n_training: int, config: TrainConfig) -> int:
    """Steps of so many epochs over training hands and what is proposed from each of them in epochs before."""
    plan, first = config.self_supervision, start_of_instances(epochs)
    proposed = [max(0, epoch - first) * plan.instances_per_seed * n_training for epoch in range(epochs)]
    hands = [n_training + min(count, plan.max_instances) for count in proposed]
    return sum(count // config.optimisation.batch_size for count in hands)


def measure(networks: Tested, crops: HandCrops, n_refined: int) -> dict[str, Measured]:
    """The networks' answers to all crops, and those to the first `n_refined` after Eq. 11."""
    model, parts = networks.model, {NETWORKS: [], REFINED: []}
    refiner = Refiner(model, **vars(networks.config.refinement))
    done = 0
    for batch in batches_of(crops):
        with torch.no_grad():
            estimate = model.estimate_mesh(model.estimate_evidence(batch.images))
        parts[NETWORKS].append(of_params(model, batch, estimate.h))
        if done < n_refined:
            refined = refiner(batch.images, estimate.h, estimate.joints2d_px)
            parts[REFINED].append(of_params(model, batch, refined.h))
        done += len(batch)
    return {stage: Measured.joined(found) for stage, found in parts.items()}


def difference(errors_mm: np.ndarray, full_mm: np.ndarray) -> dict[str, float]:
    """Mean error minus that of ``full``, hand by hand, and half of its 95 % interval over test hands."""
    own = errors_mm - full_mm
    return {"epe_mm": float(own.mean()), "half_width_mm": half_width(own)}


def as_text(row: dict[str, Any]) -> str:
    """Two lines for the terminal."""
    lines = []
    for stage, scores in row["scores"].items():
        own, cells = row["difference"][stage], "".join(f"  {key} {scores[key]:.3f}" for key in SHOWN)
        gap = f"{own['epe_mm']:+.2f} +- {own['half_width_mm']:.2f} mm"
        lines.append(f"{row['variant']:<36}{stage:<10}{gap}{cells}  ({row['steps']} steps, {row['minutes']:.1f} min)")
    return "\n".join(lines)
