"""How the cost of the ops grows: hands in a batch, pixels of an image, faces of a mesh.

    python bench/scaling.py              # measures, writes bench/results/scaling.json and draws it
    python bench/scaling.py --draw       # draws bench/results/scaling.png from the file

Skinning for 1 to 4,096 hands; rasterization and silhouettes of one hand for images of 64 to 1,024 pixels a side, and
at 224 for 1.5 to 186 thousand faces (the same surface, every face cut into equal parts). Peers are drawn where they are
at hand; none goes on after a size at which a call takes longer than two seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import raster_peers
from bench_lbs import IMPLEMENTATIONS, posing_call
from bench_lbs import PEERS as LBS_PEERS
from bench_raster import MODES, timed_call, work_of
from common import RESULTS, noise_warning, run_facts, summary, time_ms, write_result
from scaling_plot import draw
from scene import Scene, hands_in_view, with_finer_faces
from timings import Case

BATCHES = tuple(2**k for k in range(13))
IMAGE_SIZES = (64, 128, 256, 512, 1024)
FACE_PARTS = (1, 2, 3, 4, 6, 8, 11)
FACES_IMAGE_SIZE = 224
RASTER_JOBS = ("rasterize", *MODES)
DIRECTIONS = ("forward", "backward")
TOO_LONG_MS = 2000.0

Point = dict[str, Any]
"""implementation, direction, what grows, and the time: a row of the result file."""


def lbs_points(seconds: float) -> Iterator[Point]:
    """Times of batches of hands."""
    for implementation in ("ops.lbs", *LBS_PEERS):
        try:
            pose_hand = IMPLEMENTATIONS[implementation]("cpu")
        except pytest.skip.Exception as absent:
            print(absent)
            continue
        for direction in DIRECTIONS:
            for batch in BATCHES:
                times = time_ms(posing_call(pose_hand, "cpu", direction, batch), seconds)
                yield {"implementation": implementation, "direction": direction, "batch": batch, **summary(times)}
                if min(times) > TOO_LONG_MS:
                    break


def raster_points(scenes: list[Scene], seconds: float) -> Iterator[Point]:
    """Times of every job in scenes of growing cost."""
    for job in RASTER_JOBS:
        peers = [peer for peer in raster_peers.at_hand("cpu") if raster_peers.does(job, peer)]
        for implementation in ("ops", *peers):
            for direction in DIRECTIONS:
                for scene in scenes:
                    call = timed_call(
                        work_of(job, implementation, scene), Case("cpu", job, direction, 1, implementation)
                    )
                    times = time_ms(call, seconds)
                    yield {
                        "job": job, "implementation": implementation, "direction": direction,
                        "image_size": scene.image_size, "faces": len(scene.faces), **summary(times),
                    }  # fmt: skip
                    if min(times) > TOO_LONG_MS:
                        break


def measure(seconds: float) -> dict[str, list[Point]]:
    """All three series, in milliseconds a call."""
    hand = hands_in_view(1, FACES_IMAGE_SIZE)
    return {
        "batch": list(lbs_points(seconds)),
        "image_size": list(raster_points([hands_in_view(1, size) for size in IMAGE_SIZES], seconds)),
        "faces": list(raster_points([with_finer_faces(hand, parts) for parts in FACE_PARTS], seconds)),
    }


def main() -> None:
    """Measures, unless only the picture is asked for; draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="only draw what the result file holds")
    parser.add_argument("--seconds", type=float, default=0.25, help="budget of each point")
    arguments = parser.parse_args()
    if not arguments.draw:
        sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where peers.py is
        points = measure(arguments.seconds)
        print(f"{noise_warning()}-> {write_result('scaling', {'run': run_facts(), 'unit': 'ms', 'points': points})}")
    print(f"-> {draw(json.loads((RESULTS / 'scaling.json').read_text()), RESULTS / 'scaling.png')}")


if __name__ == "__main__":
    main()
