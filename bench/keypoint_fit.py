"""How exact and how fast a hand is recovered from its 2D joints, by where the search starts: answers are known.

    python bench/keypoint_fit.py --n 200 --seed 0 --noise 0 2 4 --start lifter alignments mean

Joints of rendered hands are projected exactly, plus noise in percent of the crop's side, and the default hand is fitted
to them. Starts: ``lifter`` is what ``fit`` does, the network's hypotheses and a few alignments; ``alignments`` what it
does without the network's weights; ``mean`` the mean hand alone, upright, palm to the camera, in the joints' box. All
are refined alike. ``--doubt`` hands the joints over as an evidence source does: they are then believed as far as the
lifter takes them for those of a hand, instead of to the pixel.

The figures: reprojection error against the exact joints in percent of their bounding box's longer side; PA-MPJPE and
the same for vertices in millimetres; the energy that was reached; time of a fit. And of annotated photographs, if
their folder is there, the distance from the annotation in percent of the box.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import noise_warning, run_facts, summary, write_result

import dhpe_fast
from dhpe_fast import first_estimate, pretrained
from dhpe_fast.alignment import StartViews, initial_states
from dhpe_fast.conventions import MIDDLE_MCP, N_SHAPE
from dhpe_fast.data import render_hands
from dhpe_fast.data.rendered import RenderedHand
from dhpe_fast.evidence import HandEvidence
from dhpe_fast.first_estimate import Starts
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.derived_models import derived
from dhpe_fast.hand_fit import HandFit
from dhpe_fast.metrics import pa_mpjpe_mm
from dhpe_fast.refinement.gauss_newton import Evidence2d, HandConstants, HandState

IMAGE_SIZE = (256, 256)
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hands"
INDEX_MCP, LITTLE_MCP = 5, 17
WIDTHS = {"error2d_percent": "2D error, %", "pa_mpjpe_mm": "PA-MPJPE, mm", "energy": "energy", "time_ms": "time, ms"}


def alignments(model: HandModel, hand: HandConstants, evidence: Evidence2d) -> Starts:
    """What ``fit`` starts from where the package has no lifter."""
    views = derived(model, "start views", lambda: StartViews.of(hand))
    return Starts(initial_states(views, evidence, first_estimate.ALIGNMENTS_ALONE))


def mean_hand(model: HandModel, hand: HandConstants, evidence: Evidence2d) -> Starts:
    """The mean hand, fingers up and palm to the camera, as large as the joints' box and in its middle."""
    pose, betas = hand.prior.mean[None], hand.prior.mean.new_zeros(1, N_SHAPE)
    joints_m = model.joints_m(pose.to(model.hands_mean), betas.to(model.hands_mean))[0].double()
    rotation = _palm_to_camera(joints_m, model.side)
    points = (joints_m @ rotation.T)[:, :2]
    seen = evidence.joints[evidence.confidence > 0]
    low, high = points.amin(0), points.amax(0)
    box_low, box_high = seen.amin(0), seen.amax(0)
    scale = (box_high - box_low).max() / (high - low).max()
    trans = 0.5 * (box_low + box_high) - scale * 0.5 * (low + high)
    return Starts(HandState(pose, betas, rotation[None], torch.cat([scale.log()[None], trans])[None]))


STARTS: dict[str, Callable[..., Starts]] = {
    "lifter": first_estimate.starts,
    "alignments": alignments,
    "mean": mean_hand,
}


def recovered(given_px: np.ndarray, side: str, device: str, doubt: bool) -> HandFit:
    """The hand of these joints, which are believed, or doubted as those of a network are."""
    blank = np.zeros((*IMAGE_SIZE, 3), dtype=np.uint8)
    if not doubt:
        return dhpe_fast.fit(blank, keypoints=given_px, hand=side, device=device)
    seen = HandEvidence(given_px, np.ones(len(given_px)), side, 1.0)
    (found,) = dhpe_fast.fit(blank, evidence=lambda image, boxes: [seen], device=device)
    return found


def measure(hands: list[RenderedHand], noise_percent: float, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Fits the hands; the lists of errors, energies and times."""
    rng = np.random.default_rng(arguments.seed + 1)
    names = ("error2d_percent", "pa_mpjpe_mm", "pa_mpvpe_mm", "energy", "time_ms")
    columns: dict[str, list[float]] = {name: [] for name in names}
    for number, hand in enumerate(hands):
        exact_px = hand.joints2d_px.double().numpy()
        given_px = exact_px + rng.normal(0, 1, exact_px.shape) * (0.01 * noise_percent * hand.crop.size_px)
        if number == 0:
            recovered(given_px, hand.side, arguments.device, arguments.doubt)
        start = time.perf_counter()
        found = recovered(given_px, hand.side, arguments.device, arguments.doubt)
        columns["time_ms"].append(1000 * (time.perf_counter() - start))
        offset_px = np.linalg.norm(found.joints2d_px.cpu().double().numpy() - exact_px, axis=1)
        columns["error2d_percent"].append(100 * offset_px.mean() / np.ptp(exact_px, axis=0).max())
        columns["pa_mpjpe_mm"].append(float(pa_mpjpe_mm(found.joints_m.cpu(), hand.joints_m)))
        columns["pa_mpvpe_mm"].append(float(pa_mpjpe_mm(found.verts_m.cpu(), hand.verts_m)))
        columns["energy"].append(found.residuals["energy"])
    return columns


def photographs(folder: Path, device: str) -> dict[str, float]:
    """Distance from the annotated joints in percent of their box, by photograph; empty where they are not there."""
    file = folder / "annotations.json"
    entries = json.loads(file.read_text())["images"] if file.is_file() else []
    errors = {}
    for entry in entries:
        options = {"keypoints": entry["keypoints"], "hand": entry.get("hand", "auto"), "device": device}
        found = dhpe_fast.fit(folder / entry["file"], **options)
        errors[entry["file"]] = 100 * found.residuals["joints2d_box"]
    return errors


def main() -> None:
    """Runs the benchmark, prints the tables, writes a result file for each start and level of noise."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    hands = render_hands(arguments.n, arguments.seed, image_size=IMAGE_SIZE, camera=arguments.camera)
    facts = run_facts(arguments.device)
    print(f"{noise_warning()}{arguments.n} hands, {arguments.camera} camera, {arguments.device}; median (90 %)")
    print(f"{'noise, %':<10}{'start':<12}" + "".join(f"{text:>18}" for text in WIDTHS.values()))
    for noise in arguments.noise:
        for name in arguments.start:
            with mock.patch.object(first_estimate, "starts", STARTS[name]):
                columns = measure(hands, noise, arguments)
            table = {column: summary(values) for column, values in columns.items()}
            cells = "".join(f"{table[key]['median']:>9.2f} ({table[key]['p90']:>6.2f})" for key in WIDTHS)
            print(f"{noise:<10g}{name:<12}{cells}", flush=True)
            result = {"run": facts, "arguments": vars(arguments) | {"noise": noise, "start": name}, "summary": table}
            write_result(_file_name(arguments, noise, name), result)
    for name in arguments.start:
        with mock.patch.object(first_estimate, "starts", STARTS[name]):
            errors = photographs(PHOTOGRAPHS, arguments.device)
        if errors:
            print(f"photographs, {name}: " + ", ".join(f"{file} {error:.2f} %" for file, error in errors.items()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="how many hands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.0], help="standard deviation of coordinates, %% of the crop"
    )
    parser.add_argument("--start", nargs="+", choices=tuple(STARTS), default=list(STARTS))
    parser.add_argument("--camera", choices=("weak", "pinhole", "mixed"), default="weak")
    parser.add_argument("--doubt", action="store_true", help="joints as those of an evidence source")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.n < 1:
        parser.error("--n must be at least 1")
    if "lifter" in arguments.start and not pretrained.available("lifter"):
        sys.exit("--start lifter: the package has no weights of the lifter")
    return arguments


def _file_name(arguments: argparse.Namespace, noise: float, start: str) -> str:
    """What ``fit`` does with given keypoints has no name of its own."""
    level = "0px" if noise == 0 else f"{noise:g}pc"
    name = f"keypoint_fit_{arguments.camera}_noise{level}_{arguments.device.replace(':', '')}"
    return name + ("" if start == "lifter" else f"_{start}") + ("_doubted" if arguments.doubt else "")


def _palm_to_camera(joints_m: torch.Tensor, side: str) -> torch.Tensor:  # (21, 3) -> (3, 3)
    """Model axes to camera axes (y down, z away); seen from the palm, a right hand has its thumb on the right."""
    up = torch.nn.functional.normalize(joints_m[MIDDLE_MCP] - joints_m[0], dim=0)
    radial = joints_m[INDEX_MCP] - joints_m[LITTLE_MCP]
    radial = torch.nn.functional.normalize(radial - (radial @ up) * up, dim=0)
    x = radial if side == "right" else -radial
    return torch.stack([x, -up, torch.linalg.cross(x, -up)])


if __name__ == "__main__":
    main()
