"""How often does a hand find its pose from its silhouette alone, with each mode's gradient?

    python bench/silhouette_recovery.py --starts 100

A rigid hand is turned, scaled and moved away from its target, and brought back by Adam on the squared difference of
masks: six parameters, rotation (3), log scale, x, y. Starts lie within 20 degrees, 10 % of scale and 10 px of an image
of 224 x 224. Found means: rotation within 2 degrees, scale within 2 %, position within 1 px. Each start has a hand of
its own.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch
from common import run_facts, write_result

from dhpe_fast.data import render_hands
from dhpe_fast.ops import silhouette
from dhpe_fast.rotation import axis_angle_to_matrix

SIZE = 224
MODES = ("edge", "nmr", "soft")
MAX_ANGLE_DEG, MAX_SCALE, MAX_SHIFT_PX = 20.0, 0.1, 10.0
FOUND = {"angle_deg": 2.0, "scale_percent": 2.0, "shift_px": 1.0}


def place(
    verts: torch.Tensor,  # (V, 3) px around the origin
    x: torch.Tensor,  # (6,) axis-angle, log scale, position in tenths of the image
) -> torch.Tensor:  # (V, 3) px
    """The hand in the image."""
    middle = x.new_tensor([SIZE / 2, SIZE / 2, 0])
    shift = torch.cat([SIZE / 10 * x[4:], x.new_zeros(1)])
    return verts @ axis_angle_to_matrix(x[:3]).T * x[3].exp() + middle + shift


def random_start(generator: torch.Generator) -> torch.Tensor:  # (6,)
    """Any axis; angle, scale and both shifts uniform within their limits."""
    axis = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
    angle, scale, *shift = (torch.rand(4, generator=generator) * 2 - 1).tolist()
    position = [MAX_SHIFT_PX * s / (SIZE / 10) for s in shift]
    return torch.cat(
        [axis * math.radians(MAX_ANGLE_DEG) * angle, torch.tensor([math.log1p(MAX_SCALE * scale), *position])]
    )


def recover(
    verts: torch.Tensor,  # (V, 3)
    faces: torch.Tensor,  # (F, 3)
    start: torch.Tensor,  # (6,)
    mode: str,
    steps: int,
    learning_rate: float,
) -> dict[str, float]:
    """What is left of the deviation."""
    target = silhouette(place(verts, torch.zeros(6)), faces, SIZE, mode="edge" if mode == "soft" else mode)
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=learning_rate)
    decay = 0.01 ** (1 / steps)
    for step in range(steps):
        sigma = 20.0 * (0.5 / 20.0) ** (step / steps)  # of "soft": from far to sharp
        optimizer.param_groups[0]["lr"] = learning_rate * decay**step
        optimizer.zero_grad()
        mask = silhouette(place(verts, x), faces, SIZE, mode=mode, sigma=sigma)
        (mask - target).square().sum().backward()
        optimizer.step()
    end = x.detach()
    return {
        "angle_deg": math.degrees(float(end[:3].norm())),
        "scale_percent": 100 * abs(math.expm1(float(end[3]))),
        "shift_px": float((SIZE / 10 * end[4:]).norm()),
    }


def main() -> None:
    """Runs the experiment, prints the table, writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    arguments = parser.parse_args()
    if arguments.starts < 1 or arguments.steps < 1:
        parser.error("--starts and --steps must be at least 1")
    torch.set_num_threads(1)
    hands = render_hands(arguments.starts, arguments.seed, image_size=(SIZE, SIZE))
    generator = torch.Generator().manual_seed(arguments.seed)
    starts = [random_start(generator) for _ in hands]
    result: dict[str, Any] = {}
    print(f"{'':<8}{'found %':>9}{'angle deg: median':>19}{'p90':>8}{'shift px: median':>18}")
    for mode in arguments.modes:
        ends = []
        for hand, start in zip(hands, starts, strict=True):
            verts = hand.verts_m.float() - hand.verts_m.float().mean(0)
            verts = verts * (0.4 * SIZE / verts.abs().max())
            faces = hand.model.faces.int()
            ends.append(recover(verts, faces, start, mode, arguments.steps, arguments.learning_rate))
        found = [all(end[name] <= limit for name, limit in FOUND.items()) for end in ends]
        angles, shifts = ([end[name] for end in ends] for name in ("angle_deg", "shift_px"))
        rate = 100 * sum(found) / len(found)
        result[mode] = {"found_percent": rate, "ends": ends}
        median, p90 = np.percentile(angles, (50, 90))
        print(f"{mode:<8}{rate:>9.0f}{median:>19.2f}{p90:>8.2f}{np.median(shifts):>18.2f}", flush=True)
    path = write_result("silhouette_recovery", {"run": run_facts(), "arguments": vars(arguments), "result": result})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
