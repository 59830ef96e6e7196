"""From which mean peak on a hand is reported (``networks.MIN_CONFIDENCE``): what each choice finds and invents.

    python bench/evidence_threshold.py --data DATA --pictures 200

Whole generated pictures, nothing given, of the set on which the networks were validated: not of the test hands. A find
is right if its box and that of a labelled hand of its side overlap by half. The F-measure is the harmonic mean of
precision (finds that are right) and recall (labelled hands with pixels in the picture that are found).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from accuracy_hands import box_of, data_facts, held_out_hands, own_hands
from accuracy_whole import FOUND, in_picture
from common import run_facts, write_result
from tqdm import tqdm

from dhpe_fast.boxes import box_iou
from dhpe_fast.config import load_config
from dhpe_fast.evidence import HandEvidence, NetworkEvidence
from dhpe_fast.evidence.networks import MIN_CONFIDENCE

THRESHOLDS = np.round(np.arange(0.20, 0.71, 0.025), 3)


def main() -> None:
    """Prints the table, writes bench/results/accuracy_evidence_threshold.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the validation pictures; the configuration's without it")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    root = own_hands(load_config("dhpe").data.synthesize, arguments.data)
    both = [held_out_hands(root, arguments.pictures, hand=side) for side in ("left", "right")]
    source = NetworkEvidence(min_confidence=0.0, max_hands=100)
    scores, right, hands = [], [], 0
    for index in tqdm(range(len(both[0])), "whole pictures", disable=None):
        known = in_picture(both, index)
        hands += len(known)
        for find in source(both[0][index].read_image()):
            scores.append(find.score)
            right.append(any(_is_of(find, hand.side, box_of(hand.joints2d_px)) for hand in known))
    rows = [row(threshold, np.array(scores), np.array(right), hands) for threshold in THRESHOLDS]
    for one in rows:
        print("  ".join(f"{key} {value:.3f}" for key, value in one.items()))
    best = max(rows, key=lambda one: one["f_measure"])["threshold"]
    print(f"highest F-measure at {best}; the package has {MIN_CONFIDENCE}")
    facts = {"run": run_facts(), "data": data_facts(root, both[0]), "hands": hands, "chosen": MIN_CONFIDENCE}
    print(f"-> {write_result('accuracy_evidence_threshold', {**facts, 'rows': rows})}")


def row(threshold: float, scores: np.ndarray, right: np.ndarray, hands: int) -> dict[str, float]:
    """What a threshold reports."""
    kept = scores >= threshold
    found, reported = int((kept & right).sum()), int(kept.sum())
    precision, recall = found / max(reported, 1), found / max(hands, 1)
    f_measure = 2 * precision * recall / max(precision + recall, 1e-9)
    return {"threshold": float(threshold), "precision": precision, "recall": recall, "f_measure": f_measure}


def _is_of(find: HandEvidence, side: str, box: np.ndarray) -> bool:
    return find.side == side and float(box_iou(box_of(find.joints2d_px), box)) >= FOUND


if __name__ == "__main__":
    main()
