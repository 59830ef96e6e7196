"""Two small trainings on drawn hands: what the networks learn in minutes on a CPU, and what the gate of Eq. 10 does.

    python bench/training.py [WORKING_FOLDER]

Trains the configuration `tiny` once as it is and once with a constant weight of the silhouette (the paper's Fig. 5(f)),
and measures both on held-out hands, with and without testing refinement. A run that is there already is resumed; where
both have ended, they are measured anew, and the result keeps what it says of the machine that trained them. Figures go
to bench/results/training.json, pictures beside it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from common import RESULTS, run_facts, write_result
from result_files import read

from dhpe_fast.config import load_config
from dhpe_fast.evaluate import EvaluationOptions, as_text, evaluate
from dhpe_fast.plots import progress_plot
from dhpe_fast.train import read_log, train

RUNS = {"gated": (), "constant": ("loss.gate.mode=constant",)}


def main(folder: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, trained = [], False
    for name, changes in RUNS.items():
        data = folder / "data"
        splits = {part: f"[{{format: rhd, root: {data}, split: {split}}}]" for part, split in SPLITS.items()}
        places = [f"data.{part}={source}" for part, source in splits.items()]
        config = load_config("tiny", [*places, f"data.synthesize.root={data}", *changes])
        trained |= len(read_log(folder / name, "validation")) < config.optimisation.epochs
        train(config, folder / name, resume="auto", device=device)
        minutes = sum(line["seconds"] for line in read_log(folder / name, "validation")) / 60
        report = evaluate(folder / name, folder / f"{name}-evaluation", EvaluationOptions(device=device))
        print(f"{name}: {minutes:.1f} minutes\n{as_text(report)}")
        rows.append({"run": name, "minutes": minutes, "scores": report["scores"], "samples": report["samples"]})
    logs = {name: read_log(folder / name, "validation") for name in RUNS}
    progress_plot(RESULTS / "training_gate.png", logs)
    shutil.copyfile(folder / "gated-evaluation" / "hands.png", RESULTS / "training_hands.png")
    curves = {name: [{key: line[key] for key in KEPT} for line in lines] for name, lines in logs.items()}
    facts, before = run_facts(device), read("training")
    origin = {"run": facts} if trained or before is None else {"run": before["run"], "evaluated": facts}
    print(f"-> {write_result('training', {**origin, 'rows': rows, 'curves': curves})}")


SPLITS = {"train": "train", "validation": "test"}
KEPT = ("epoch", "epe_mm", "joints2d_px", "heatmap_px", "iou", "below_tau")

if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench-training"))
