"""Dexter+Object (Sridhar et al., ECCV 2016): six sequences of a hand with a cuboid, for tests only.

::

    dexter+object/
      data/{Grasp1,Grasp2,Occlusion,Pinch,Rigid,Rotate}/
        color/Color_0001.bmp ...              640 x 480
        annotations/Grasp13D.txt              named SEQUENCE3D.txt

A label file has a line for each image, in the order of the sorted names. Fields are separated by ';', each is
'x,y,z' in millimetres; the first five are the tips of thumb to little finger, what follows are corners of the cuboid.
Their frame is that of the depth camera with x and y turned round: (-x, -y, z) is in OpenCV's. There are no other
joints and no masks, and all hands are left hands. 3,145 images; of a tip that the depth camera missed, z is 32001.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dhpe_fast.conventions import N_JOINTS_STD, STD_TIPS
from dhpe_fast.data.checks import check_inside_image, project
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.files import canonical_split, existing_file, existing_folder, list_files, one_of
from dhpe_fast.data.sample import Dataset, Labels
from dhpe_fast.hand import CropBox

SEQUENCES = ("Grasp1", "Grasp2", "Occlusion", "Pinch", "Rigid", "Rotate")
IMAGE_SIZE = (480, 640)
COLOUR_INTRINSICS = (587.45209, 600.67456, 325.0, 249.0)
"""fx, fy, cx, cy of the colour camera; pixel centres at integers."""
DEPTH_TO_COLOUR_ROTATION = ((0.9999, 0.0034, 0.0161), (-0.0033, 1.0, -0.0079), (-0.0162, 0.0079, 0.9998))
DEPTH_TO_COLOUR_TRANSLATION_M = (0.0190473, -0.0018514, -0.0047501)
VALID_DEPTH_M = (0.1, 2.0)
"""Tips outside of this range of z are not measured."""
TIPS_BOX_MARGIN = 2.2
"""Side of the square by the longer side of the tips' bounding box, where no boxes are given."""
HAND_M = 0.26
"""Least side of that square, in space at the depth of the tips: the palm is somewhere about them."""
_TIP_SPREAD_M = (0.01, 0.25)


def read_dexter_object(
    root: str | os.PathLike[str],
    split: str = "test",
    *,
    boxes: str | os.PathLike[str] | None = None,
    box_margin: float = 1.0,
    annotations: str = "{sequence}3D.txt",
    sequences: Sequence[str] = SEQUENCES,
    check: Literal["sample", "all", "none"] = "sample",
    integer_centers: bool = True,
    image_size: tuple[int, int] = IMAGE_SIZE,
) -> Dataset:
    """The images with the fingertips in the frame of the colour camera; all other joints are NaN.

    As the tips do not say where the palm is, each sample has the square to crop: the given box, or else a square
    around the tips that should hold the hand, ``TIPS_BOX_MARGIN`` times as long as their bounding box and at least
    ``HAND_M`` of space. An image without any tip has that of the nearest one in its sequence.

    Args:
        root: the folder with ``data``, or ``data`` itself.
        split: only 'test', as all sequences are.
        boxes: CSV file with columns img_name ('Grasp1/color/Color_0001.bmp'), x, y, w, h: left, top, width, height
            of the hand in pixels, for each image.
        box_margin: side of the square by the longer side of such a box.
        annotations: name of a sequence's label file in its folder ``annotations``; cleaned labels go by
            'my_{sequence}3D.txt'.
        sequences: names of the sequences to read.
        check: 'none' leaves out the checks of units and places; the others are the same here.
        integer_centers: whether the intrinsics count pixel centres at integer coordinates, as calibrations do.
        image_size: (height, width) that all images must have.

    Raises:
        MissingDataError: if a folder, a label file, or boxes are missing.
        DatasetError: if a label file is not as above, or has another number of lines than there are images; if labels
            are not in millimetres.
        ValueError: if an argument is none of the above.
    """
    if canonical_split(split) != "test":
        raise ValueError(f"split: Dexter+Object has only test sequences, got {split!r}")
    one_of(check, ("sample", "all", "none"), "check")
    root = existing_folder(root, "the folder of Dexter+Object, with data")
    data = root / "data" if (root / "data").is_dir() else root
    given = None if boxes is None else _read_boxes(Path(boxes), box_margin)
    fx, fy, cx, cy = COLOUR_INTRINSICS
    shift = 0.5 if integer_centers else 0.0
    camera = np.array((fx, fy, cx + shift, cy + shift))
    names, files, tips, crops = [], [], [], []
    for sequence in sequences:
        one_of(sequence, SEQUENCES, "sequences")
        folder = existing_folder(data / sequence, f"the sequence {sequence} of Dexter+Object")
        pictures = list_files(folder / "color", (".bmp", ".png", ".jpg"), f"the images of {sequence}")
        labels_file = folder / "annotations" / annotations.format(sequence=sequence)
        tips_m = _to_colour_frame(_read_tips(labels_file))
        if len(pictures) != len(tips_m):
            raise DatasetError(
                f"{folder / 'color'}: holds {len(pictures)} images, expected {len(tips_m)}, one for each line of "
                f"{labels_file}"
            )
        tips_px = project(tips_m, camera)
        if check != "none":
            _check_tips(tips_m, labels_file)
            check_inside_image(tips_px, image_size, labels_file)
        own_names = [f"{sequence}/color/{picture}" for picture in pictures]
        crops += _crops_around(tips_m, tips_px, labels_file) if given is None else _given(given, own_names, boxes)
        names += own_names
        files += [folder / "color" / picture for picture in pictures]
        tips.append(tips_m)
    if not tips:
        raise ValueError("sequences: expected at least one name of a sequence, got none")
    joints_m = np.full((len(names), N_JOINTS_STD, 3), np.nan)
    joints_m[:, STD_TIPS] = np.concatenate(tips)
    labels = Labels(
        names=names,
        image_files=files,
        sides=["left"] * len(names),
        joints_m=joints_m,
        joints2d_px=project(joints_m, camera),
        visible=np.isfinite(joints_m).all(axis=-1),
        cameras=np.tile(camera, (len(names), 1)),
        joint0="wrist",
        crops=crops,
    )
    return Dataset("dexter_object", "test", labels, image_size=image_size)


def _read_tips(file: Path) -> np.ndarray:
    """Tips (N, 5, 3) as written, metres; NaN where the depth camera missed them."""
    what = "a line for each image, 'x,y,z;x,y,z;...' with at least 5 fields"
    lines = existing_file(file, what).read_text(encoding="latin1").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows = np.empty((len(lines), 5, 3))
    for number, line in enumerate(lines):
        fields = [field.split(",") for field in line.split(";")[:5]]
        try:
            rows[number] = fields
        except ValueError as error:
            raise DatasetError(f"{file}: line {number + 1} is {line.strip()[:60]!r}, expected {what}") from error
    rows /= 1000
    measured = (rows[..., 2] >= VALID_DEPTH_M[0]) & (rows[..., 2] <= VALID_DEPTH_M[1])
    rows[~measured] = np.nan
    return rows


def _to_colour_frame(tips_m: np.ndarray) -> np.ndarray:
    opencv_m = tips_m * (-1.0, -1.0, 1.0)
    return opencv_m @ np.array(DEPTH_TO_COLOUR_ROTATION).T + DEPTH_TO_COLOUR_TRANSLATION_M


def _check_tips(tips_m: np.ndarray, file: Path) -> None:
    known = np.isfinite(tips_m).all(axis=-1)
    if not known.any():
        raise DatasetError(
            f"{file}: no tip is between {VALID_DEPTH_M[0]} and {VALID_DEPTH_M[1]} m from the camera if the labels are "
            "in millimetres. Are they in another unit?"
        )
    full = tips_m[known.all(axis=1)]
    if len(full):
        spread_m = float(np.median(np.linalg.norm(full - full.mean(axis=1, keepdims=True), axis=-1)))
        if not _TIP_SPREAD_M[0] <= spread_m <= _TIP_SPREAD_M[1]:
            raise DatasetError(
                f"{file}: tips are {spread_m:.4g} m from their middle if the labels are in millimetres; expected "
                f"{_TIP_SPREAD_M[0]} to {_TIP_SPREAD_M[1]} m. Are they in another unit?"
            )


def _crops_around(tips_m: np.ndarray, tips_px: np.ndarray, file: Path) -> list[CropBox]:
    known = np.isfinite(tips_m).all(axis=-1)
    frames = np.flatnonzero(known.any(axis=1))
    if not len(frames):
        raise DatasetError(f"{file}: no tip of the sequence is measured, so that boxes are needed to find the hand")
    squares = {}
    for frame in frames:
        points_px, depth_m = tips_px[frame, known[frame]], float(np.median(tips_m[frame, known[frame], 2]))
        low, high = points_px.min(axis=0), points_px.max(axis=0)
        least_px = HAND_M * COLOUR_INTRINSICS[0] / depth_m
        squares[frame] = CropBox(0.5 * (low + high), max(TIPS_BOX_MARGIN * float((high - low).max()), least_px))
    return [squares[frames[np.argmin(np.abs(frames - i))]] for i in range(len(tips_m))]


def _read_boxes(file: Path, margin: float) -> dict[str, CropBox]:
    what = "boxes, a CSV file with columns img_name, x, y, w, h"
    with open(existing_file(file, what), newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        if not {"img_name", "x", "y", "w", "h"} <= set(rows.fieldnames or ()):
            raise DatasetError(f"{file}: has the columns {rows.fieldnames}, expected {what}")
        boxes = {}
        for row in rows:
            try:
                x, y, w, h = (float(row[key]) for key in ("x", "y", "w", "h"))
                boxes[row["img_name"]] = CropBox((x + w / 2, y + h / 2), margin * max(w, h))
            except (TypeError, ValueError) as error:
                raise DatasetError(f"{file}: line {rows.line_num}: {error}; expected {what}") from error
    return boxes


def _given(boxes: dict[str, CropBox], names: list[str], file: str | os.PathLike[str]) -> list[CropBox]:
    missing = [name for name in names if name not in boxes]
    if missing:
        raise DatasetError(f"{file}: has no box for {len(missing)} of {len(names)} images, first {missing[0]}")
    return [boxes[name] for name in names]
