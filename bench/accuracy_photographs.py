"""Annotated photographs, and renderings of RHD: what each evidence source sees in them, and what the fit makes of it.

The folder has ``annotations.json``: ``images``, each with ``file``, ``keypoints`` (21 of x, y, visible in pixels, STD
order) and, for a left hand, ``hand``. Errors are mean distances to the annotated joints, in percent of the longer side
of their bounding box.
"""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_hands import box_of, longer_side
from common import run_facts, write_result

import dhpe_fast
from dhpe_fast import pretrained
from dhpe_fast.hand_fit import HandFit, Side
from dhpe_fast.image import read_image
from dhpe_fast.io import save_image
from dhpe_fast.viz import contact_sheet, draw_skeleton

GIVEN = "annotated joints"
ELSEWHERE = 50.0
"""Percent of the box: joints further away than this are of something else than the annotated hand."""


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph and what is known of one hand in it."""

    file: Path
    image: np.ndarray
    """(H, W, 3) uint8"""
    joints2d_px: np.ndarray
    """(21, 2); NaN where it is not annotated"""
    side: Side

    @property
    def box_px(self) -> float:
        """Longer side of the joints' bounding box."""
        return longer_side(box_of(self.joints2d_px))


Source = Callable[[Photograph], list[HandFit]]


def photographs(arguments: Namespace) -> None:
    """Measures, prints the table, writes bench/results/accuracy_photographs.json and, if wished, overlays."""
    if not (arguments.folder / "annotations.json").is_file():
        print(f"photographs: skipped, there is no {arguments.folder / 'annotations.json'}")
        return
    known, sources = read_photographs(arguments.folder), sources_at_hand()
    rows = []
    for name, source in sources.items():
        for photograph in known:
            fits = source(photograph)
            rows.append({"source": name, "photograph": photograph.file.stem, **compared(photograph, fits)})
            print(as_text(rows[-1]))
            if arguments.output is not None:
                arguments.output.mkdir(parents=True, exist_ok=True)
                save_image(arguments.output / f"{photograph.file.stem}_{slug(name)}.png", overlay(photograph, fits))
    if arguments.output is not None:
        print(f"overlays in {arguments.output}")
    print(f"-> {write_result(arguments.name, {'run': run_facts(), 'rows': rows})}")


def read_photographs(folder: Path) -> list[Photograph]:
    """The photographs of a folder, in the order of their annotations."""
    found = []
    for entry in json.loads((folder / "annotations.json").read_text())["images"]:
        joints = np.array(entry["keypoints"], dtype=np.float64)
        places = np.where(joints[:, 2:] > 0, joints[:, :2], np.nan)
        file = folder / entry["file"]
        found.append(Photograph(file, read_image(file), places, entry.get("hand", "right")))
    return found


def sources_at_hand() -> dict[str, Source]:
    """The annotation itself, which shows what the fit alone costs, and whoever can look at a photograph here."""
    sources: dict[str, Source] = {
        GIVEN: lambda photo: [dhpe_fast.fit(photo.image, keypoints=photo.joints2d_px, hand=photo.side)]
    }
    if importlib.util.find_spec("mediapipe") is not None:
        sources["MediaPipe"] = lambda photo: dhpe_fast.fit(photo.image, evidence="mediapipe")
    if pretrained.available("locator") and pretrained.available("dhpe"):
        sources["own networks"] = lambda photo: dhpe_fast.fit(photo.image, evidence="networks")
    return sources


def compared(photograph: Photograph, fits: list[HandFit]) -> dict[str, Any]:
    """The hand that is nearest to the annotated one, and how far the others are from it."""
    row: dict[str, Any] = {"hands": len(fits), "found": "none"}
    if not fits:
        return row
    errors = [error_percent(photograph, fit.keypoints2d_px.double().numpy()) for fit in fits]
    nearest = int(np.argmin(errors))
    fit = fits[nearest]
    return row | {
        "found": "elsewhere" if errors[nearest] > ELSEWHERE else "the hand",
        "evidence_percent": errors[nearest],
        "joints_seen": int((fit.confidence > 0).sum()),
        "mean_confidence": float(fit.confidence.mean()),
        "fit_percent": error_percent(photograph, fit.joints2d_px.double().numpy()),
        "side": fit.side,
        "side_right": fit.side == photograph.side,
        "score": fit.score,
    }


def error_percent(photograph: Photograph, joints2d_px: np.ndarray) -> float:  # (21, 2)
    """Mean distance of the joints that both know."""
    offsets_px = np.linalg.norm(joints2d_px - photograph.joints2d_px, axis=1)
    return 100 * float(np.nanmean(offsets_px)) / photograph.box_px


def overlay(photograph: Photograph, fits: list[HandFit]) -> np.ndarray:
    """The photograph with the annotated joints, and with all hands that were fitted, around the annotated one."""
    drawn = photograph.image
    for fit in fits:
        drawn = fit.overlay(drawn, draw_keypoints=True)
    pictures = [draw_skeleton(photograph.image, photograph.joints2d_px), drawn]
    left, top, right, bottom = box_of(photograph.joints2d_px)
    margin = 1.2 * photograph.box_px
    rows = slice(max(int(top - margin), 0), int(bottom + margin) + 1)
    columns = slice(max(int(left - margin), 0), int(right + margin) + 1)
    return contact_sheet([*(picture[rows, columns] for picture in pictures), drawn], ["annotated", "fitted", "all"])


def slug(name: str) -> str:
    """For a file name."""
    return name.lower().replace(" ", "-")


def as_text(row: dict[str, Any]) -> str:
    """A line for the terminal."""
    line = f"{row['source']:<18}{row['photograph']:<26}{row['found']:<10}"
    if row["found"] == "none":
        return line
    return (
        f"{line}evidence {row['evidence_percent']:5.1f} %  fit {row['fit_percent']:5.1f} %  "
        f"{row['side']}{'' if row['side_right'] else ' (wrong)'}, {row['hands']} in all"
    )
