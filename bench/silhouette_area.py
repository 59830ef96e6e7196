"""Is the area of the "edge" silhouette that of the hand, and what do the silhouettes' modes cost?

    python bench/silhouette_area.py --n 500

Random hands at 224 x 224. The true area comes from a hard raster with 16 x 16 points a pixel; printed are the mean and
the largest deviation of each mode's sum from it, in percent, and milliseconds for one hand, forward and with backward.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from common import run_facts, summary, write_result

from dhpe_fast.data import render_hands
from dhpe_fast.ops import rasterize, silhouette

SIZE = 224
MODES = ("edge", "nmr", "soft")


def area_deviation_percent(
    verts_px: torch.Tensor,  # (V, 3)
    faces: torch.Tensor,  # (F, 3)
    points: int,
) -> dict[str, float]:
    """Of every mode, against points x points samples a pixel."""
    finer = verts_px * torch.tensor([points, points, 1.0])
    true = float((rasterize(finer, faces, SIZE * points).face_index >= 0).sum()) / points**2
    return {m: 100 * (float(silhouette(verts_px, faces, SIZE, mode=m).double().sum()) / true - 1) for m in MODES}


def times_ms(
    verts_px: torch.Tensor,  # (V, 3)
    faces: torch.Tensor,  # (F, 3)
    mode: str,
    repeats: int,
) -> dict[str, list[float]]:
    """Forward alone, and with backward, call by call."""
    leaf = verts_px.clone().requires_grad_()
    weight = torch.randn(SIZE, SIZE)
    times: dict[str, list[float]] = {"forward": [], "with_backward": []}
    for _ in range(repeats):
        start = time.perf_counter()
        silhouette(verts_px, faces, SIZE, mode=mode)
        times["forward"].append(1000 * (time.perf_counter() - start))
        leaf.grad = None
        start = time.perf_counter()
        silhouette(leaf, faces, SIZE, mode=mode).backward(weight)
        times["with_backward"].append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    """Runs the benchmark, prints the tables, writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500, help="how many hands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=int, default=16, help="samples of the true area along a pixel's side")
    parser.add_argument("--repeats", type=int, default=200, help="timed calls")
    arguments = parser.parse_args()
    if min(arguments.n, arguments.points, arguments.repeats) < 1:
        parser.error("all numbers must be at least 1")
    torch.set_num_threads(1)
    deviation: dict[str, list[float]] = {mode: [] for mode in MODES}
    for hand in render_hands(arguments.n, arguments.seed, image_size=(SIZE, SIZE)):
        verts_px = torch.cat([hand.camera.project(hand.verts_m), hand.verts_m[:, 2:]], 1).float()
        faces = hand.model.faces.int()
        for mode, percent in area_deviation_percent(verts_px, faces, arguments.points).items():
            deviation[mode].append(percent)
    result: dict[str, Any] = {}
    print(f"{arguments.n} hands at {SIZE} x {SIZE}, {arguments.points}^2 points a pixel, one thread")
    print(f"{'':<8}{'mean %':>10}{'largest %':>11}{'forward ms':>12}{'+ backward':>12}   (least: forward, + backward)")
    for mode in MODES:
        percent = np.asarray(deviation[mode])
        times = times_ms(verts_px, faces, mode, arguments.repeats)
        medians = {name: summary(values) | {"least": min(values)} for name, values in times.items()}
        result[mode] = {"mean_percent": percent.mean(), "largest_percent": np.abs(percent).max(), "ms": medians}
        forward, both = medians["forward"], medians["with_backward"]
        print(
            f"{mode:<8}{percent.mean():>10.4f}{np.abs(percent).max():>11.4f}{forward['median']:>12.3f}"
            f"{both['median']:>12.3f}   ({forward['least']:.3f}, {both['least']:.3f})"
        )
    path = write_result("silhouette_area", {"run": run_facts(), "arguments": vars(arguments), "result": result})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
