"""Where it fails: of every so many test hands the worst, and the worst of every kind. By rule, not chosen.

``accuracy.py generated`` has left how far the fit is off, hand by hand. Kinds are told by the labels
(``accuracy_hands.kinds_of``) and, where whole pictures were measured, by what was found in them.
"""

from __future__ import annotations

import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from accuracy_generated import as_it_is_read, fit_of
from accuracy_hands import (
    WORK,
    Tested,
    crops_of,
    data_facts,
    half_width,
    hands_to_test,
    held_out_hands,
    kinds_of,
    plot_path,
    tested,
)
from common import run_facts, write_result
from PIL import Image

import dhpe_fast
from dhpe_fast.atomic_write import write_whole
from dhpe_fast.data import HandCrops, apply_colour
from dhpe_fast.data.loader import collate
from dhpe_fast.viz import contact_sheet, draw_skeleton

TILE_PX = 128
MAX_BYTES, COLORS = 300_000, 128
COLUMNS = 5


def failures(arguments: Namespace) -> None:
    """Prints the table of kinds, writes bench/results/accuracy_failures.json and two sheets beside it."""
    kept = WORK / "generated.npz"
    if not kept.is_file():
        raise SystemExit(f"failures: there is no {kept}; run `python bench/accuracy.py generated` first")
    columns = np.load(kept)
    networks = tested(arguments.run, arguments.config)
    root = hands_to_test(networks.config.data.synthesize)
    errors_mm = columns["fit_epe_mm"]
    hands = held_out_hands(root, len(errors_mm))
    crops = crops_of(hands, networks.config)
    facts = data_facts(root, hands)
    if (str(columns["networks"]), str(columns["sha256"])) != (networks.name, facts["sha256"]):
        raise SystemExit(
            f"failures: {kept} is of other networks or hands; run `python bench/accuracy.py generated` anew"
        )
    kinds = [kinds_of(sample) for sample in hands]
    rows = by_kind(kinds, errors_mm)
    for row in rows:
        error, half = row["epe_mm"] or float("nan"), row["half_width_mm"] or float("nan")
        print(f"{row['kind']:<18}{row['hands']:>6} hands  {error:6.1f} +- {half:.1f} mm")
    worst = [int(index) for index in worst_of_each(errors_mm, arguments.each)]
    sheets = {
        "worst": sheet(networks, crops, worst, [f"{errors_mm[k]:.0f} mm" for k in worst]),
        "kinds": sheet(networks, crops, [row["worst"] for row in rows], [row["kind"] for row in rows]),
    }
    if "whole_found" in columns:
        sheets["whole"], of_whole = whole_sheet(crops, columns)
        rows += of_whole
    for name, picture in sheets.items():
        write_small(plot_path(f"{arguments.name}_{name}"), picture)
    head = {"run": run_facts(), "networks": networks.name, "data": facts}
    rule = {"each": arguments.each, "worst": worst, "kinds": rows}
    print(f"-> {write_result(arguments.name, head | rule)}")


def by_kind(kinds: list[list[str]], errors_mm: np.ndarray) -> list[dict[str, Any]]:
    """Mean error of the hands of each kind, most frequent kind first; a hand may be of several kinds."""
    rows = []
    for kind in sorted({kind for own in kinds for kind in own}):
        of_kind = np.array([k for k, own in enumerate(kinds) if kind in own])
        errors, known = errors_mm[of_kind], np.isfinite(errors_mm[of_kind])
        rows.append(
            {
                "kind": kind,
                "hands": len(of_kind),
                "missing": int((~known).sum()),
                "epe_mm": float(errors[known].mean()) if known.any() else None,
                "half_width_mm": half_width(errors),
                "worst": int(of_kind[np.argmax(np.where(known, errors, -1.0))]),
            }
        )
    return sorted(rows, key=lambda row: -row["hands"])


def worst_of_each(errors_mm: np.ndarray, each: int) -> np.ndarray:
    """Of every `each` hands in their order, the one that is farthest off; those without an estimate are worst."""
    starts = range(0, len(errors_mm) - each + 1, each)
    return np.array([start + int(np.argmax(errors_mm[start : start + each])) for start in starts])


def sheet(networks: Tested, crops: HandCrops, chosen: list[int], titles: list[str]) -> np.ndarray:
    """Crop with the true joints, and crop with the fit, side by side."""
    tiles = []
    for index in chosen:
        batch = apply_colour(collate([crops[0, index]]))
        found = fit_of(networks.model, batch, as_it_is_read(networks.model, batch), 0)
        image = crops[0, index].image
        truth = draw_skeleton(image, batch.joints2d_px[0].double().numpy())
        tiles.append(np.hstack([_tile(truth), _tile(image if found is None else found.overlay(image))]))
    return contact_sheet(tiles, titles, COLUMNS, gap_px=4)


def whole_sheet(crops: HandCrops, columns: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Whole pictures: the first ones that were missed, and of which the side was swapped."""
    is_found, side_right = columns["whole_found"], columns["whole_side_right"]
    groups = {"missed": np.flatnonzero(~is_found), "side swapped": np.flatnonzero(is_found & ~side_right)}
    tiles, titles, rows = [], [], []
    for kind, members in groups.items():
        rows.append({"kind": kind, "pictures": len(is_found), "share": float(len(members) / len(is_found))})
        for index in members[:COLUMNS].tolist():
            image = crops.sample(index).read_image()
            drawn = image
            for fit in dhpe_fast.fit(image, evidence="networks"):
                drawn = fit.overlay(drawn)
            truth = draw_skeleton(image, crops.sample(index).joints2d_px)
            tiles.append(np.hstack([_tile(truth), _tile(drawn)]))
            titles.append(kind)
    if not tiles:
        return np.full((TILE_PX, TILE_PX, 3), 255, np.uint8), rows
    return contact_sheet(tiles, titles, COLUMNS, gap_px=4), rows


def write_small(path: Path, picture: np.ndarray) -> None:
    """A PNG of at most ``MAX_BYTES``, of ``COLORS`` colours, and made smaller until it is."""
    for percent in range(100, 20, -8):
        size = [round(side * percent / 100) for side in picture.shape[1::-1]]
        small = Image.fromarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
        stream = io.BytesIO()
        small.quantize(COLORS, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        if stream.tell() <= MAX_BYTES:
            break
    write_whole(path, stream.getvalue())


def _tile(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
