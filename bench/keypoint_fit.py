"""How exact and how fast a hand is recovered from its 2D joints: rendered hands with a known answer.

    python bench/keypoint_fit.py --n 200 --seed 0 --noise-px 0

Joints are projected exactly (plus noise, if asked for), the default hand is fitted to them, and the result is
compared with the hand that was drawn. The figures: reprojection error against the exact joints in percent of
their bounding box's longer side; PA-MPJPE and the same for vertices in millimetres; time of a fit.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from common import run_facts, summary, write_result

import dhpe_fast
from dhpe_fast.data import render_hands
from dhpe_fast.metrics import pa_mpjpe_mm

IMAGE_SIZE = (256, 256)


def measure(n: int, seed: int, noise_px: float, camera: str, device: str) -> dict[str, Any]:
    """Fits n hands; returns the lists of errors and times."""
    blank = np.zeros((*IMAGE_SIZE, 3), dtype=np.uint8)
    rng = np.random.default_rng(seed + 1)
    hands = render_hands(n, seed, image_size=IMAGE_SIZE, camera=camera)
    columns: dict[str, list[float]] = {"error2d_percent": [], "pa_mpjpe_mm": [], "pa_mpvpe_mm": [], "time_ms": []}
    for number, hand in enumerate(hands):
        exact_px = hand.joints2d_px.double().numpy()
        given_px = exact_px + rng.normal(0, 1, exact_px.shape) * noise_px
        if number == 0:
            dhpe_fast.fit(blank, keypoints=given_px, hand=hand.side, device=device)
        start = time.perf_counter()
        found = dhpe_fast.fit(blank, keypoints=given_px, hand=hand.side, device=device)
        columns["time_ms"].append(1000 * (time.perf_counter() - start))
        offset_px = np.linalg.norm(found.joints2d_px.cpu().double().numpy() - exact_px, axis=1)
        columns["error2d_percent"].append(100 * offset_px.mean() / np.ptp(exact_px, axis=0).max())
        columns["pa_mpjpe_mm"].append(float(pa_mpjpe_mm(found.joints_m.cpu(), hand.joints_m)))
        columns["pa_mpvpe_mm"].append(float(pa_mpjpe_mm(found.verts_m.cpu(), hand.verts_m)))
    return columns


def main() -> None:
    """Runs the benchmark, prints the table, writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="how many hands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise-px", type=float, default=0.0, help="standard deviation of each coordinate")
    parser.add_argument("--camera", choices=("weak", "pinhole", "mixed"), default="weak")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.n < 1:
        parser.error("--n must be at least 1")
    torch.set_num_threads(arguments.threads)
    columns = measure(arguments.n, arguments.seed, arguments.noise_px, arguments.camera, arguments.device)
    table = {name: summary(values) for name, values in columns.items()}
    print(f"{arguments.n} hands, noise {arguments.noise_px:g} px, {arguments.camera} camera, {arguments.device}")
    print(f"{'':<18}{'median':>10}{'IQR':>10}{'p90':>10}")
    for name, row in table.items():
        print(f"{name:<18}{row['median']:>10.3f}{row['iqr']:>10.3f}{row['p90']:>10.3f}")
    worst = np.argsort(columns["pa_mpjpe_mm"])[::-1][:5]
    print("worst hands:", ", ".join(f"{i} ({columns['pa_mpjpe_mm'][i]:.1f} mm)" for i in worst))
    name = f"keypoint_fit_{arguments.camera}_noise{arguments.noise_px:g}px_{arguments.device.replace(':', '')}"
    facts = run_facts(arguments.device)
    path = write_result(name, {"run": facts, "arguments": vars(arguments), "summary": table})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
