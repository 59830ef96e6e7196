"""RHD, the Rendered Hand pose Dataset (Zimmermann and Brox, ICCV 2017), as published in RHD_published_v2.

::

    RHD_published_v2/
      training/    anno_training.pickle    color/%05d.png  mask/%05d.png     41,258 images of 320 x 320
      evaluation/  anno_evaluation.pickle  color/%05d.png  mask/%05d.png      2,728

The pickle maps an image's number to ``xyz`` (42, 3) in metres, camera frame (x right, y down, z forward), ``uv_vis``
(42, 3) pixels and visibility, and ``K`` (3, 3). The left hand's 21 joints come first; within a finger, joints run
from the tip to the base; joint 0 is the wrist. Mask values: left hand 2..17, right hand 18..33.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from dhpe_fast.conventions import joint_permutation
from dhpe_fast.data.checks import (
    CHECKS,
    check_hand_size,
    check_in_front,
    check_principal_point,
    check_reprojection,
    entries_to_check,
)
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.files import RECIPE_FILE, canonical_split, existing_folder, match_files, one_of
from dhpe_fast.data.pickled_arrays import read_pickle
from dhpe_fast.data.sample import Dataset, Labels, decode_file
from dhpe_fast.hand.mano_pickle import ArrayRecord

Hand = Literal["dominant", "dominant_by_mask", "left", "right"]
HANDS = ("dominant", "dominant_by_mask", "left", "right")
MASK_IDS = {"left": (2, 17), "right": (18, 33)}
_FOLDERS = {"train": "training", "test": "evaluation"}
_SHAPES = {"xyz": (42, 3), "uv_vis": (42, 3), "K": (3, 3)}


def read_rhd(
    root: str | os.PathLike[str],
    split: str,
    hand: Hand = "dominant",
    *,
    check: Literal["sample", "all", "none"] = "sample",
    integer_centers: bool = False,
    image_size: tuple[int, int] | None = None,
) -> Dataset:
    """One hand of each image of RHD, or of a drawn data set in its layout (``synthetic.write_synthetic``).

    The data set's name is 'rhd', or 'synthetic' where ``root/recipe.json`` says that it was drawn.

    Args:
        root: the folder with ``training`` and ``evaluation``.
        split: 'train' or 'test'.
        hand: which hand of an image: 'dominant' is the one with more visible joints, the right one if both have the
            same number (Yang et al. 2020); 'dominant_by_mask' is the one with more pixels in the mask, the rule of
            Zimmermann and Brox, for which all masks are read; the rules disagree in a few images. 'left' and
            'right' take that one, visible or not.
        check: which entries must have 3D labels that project to the 2D ones: up to 200 evenly spread ones, all,
            or none.
        integer_centers: whether the labels count pixel centres at integer coordinates. They are taken not to, as
            the principal point of the rendered images is (160, 160), the middle of 320 pixels.
        image_size: (height, width) that all images must have; None is that of the first one. RHD has (320, 320).

    Raises:
        MissingDataError: if a folder, the pickle, or images are missing.
        DatasetError: if the pickle is cut off or asks for more than arrays; if an entry has another form; if there
            are images without an entry; if labels do not project, or are not in metres; if the principal points are
            not about the middle of the images, as of images that were resized.
        ValueError: if an argument is none of the above.
    """
    split = canonical_split(split)
    one_of(hand, HANDS, "hand")
    one_of(check, CHECKS, "check")
    own_split = _FOLDERS[split]
    folder = existing_folder(Path(root) / own_split, f"the {split} split of RHD (root: RHD_published_v2)")
    file = folder / f"anno_{own_split}.pickle"
    ids, xyz_m, uv_vis, matrices = _read_annotations(file)
    pictures = [f"{number:05d}.png" for number in ids]
    match_files(folder / "color", pictures, file, "images")
    match_files(folder / "mask", pictures, file, "masks", exact=False)

    visible = uv_vis[..., 2] == 1
    mask_files = [folder / "mask" / picture for picture in pictures]
    is_left = _is_left(hand, visible, mask_files)
    # (N, 21) joints of the chosen hand in STD order.
    joints = 21 * (~is_left[:, None]) + np.array(joint_permutation("rhd"))
    rows = np.arange(len(ids))[:, None]
    shift = 0.5 if integer_centers else 0.0
    names = [f"{own_split}/{number:05d}" for number in ids]
    labels = Labels(
        names=names,
        image_files=[folder / "color" / picture for picture in pictures],
        sides=np.where(is_left, "left", "right"),
        joints_m=xyz_m[rows, joints],
        joints2d_px=uv_vis[rows, joints, :2] + shift,
        visible=visible[rows, joints],
        cameras=np.stack([matrices[:, 0, 0], matrices[:, 1, 1], *(matrices[:, :2, 2] + shift).T], axis=1),
        joint0="wrist",
        mask_files=mask_files,
        mask_ids=np.where(is_left[:, None], MASK_IDS["left"], MASK_IDS["right"]),
    )
    if image_size is None:
        image_size = _image_size(folder / "color" / pictures[0])
    if check != "none":
        check_principal_point(labels.cameras, image_size, file)
        few = labels.take(entries_to_check(len(ids), check))
        check_in_front(few.joints_m, few.names, file)
        check_hand_size(few.joints_m, file, "metres")
        check_reprojection(few.joints_m, few.joints2d_px, few.cameras, few.names, file)
    name = "synthetic" if (Path(root) / RECIPE_FILE).is_file() else "rhd"
    return Dataset(name, split, labels, image_size=image_size)


def _read_annotations(file: Path) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the images, xyz (N, 42, 3), uv_vis (N, 42, 3) and K (N, 3, 3)."""
    what = "the annotations of RHD, a dict of image number to a dict of xyz, uv_vis and K"
    entries = read_pickle(file, what)
    if not isinstance(entries, dict) or not entries:
        raise DatasetError(f"{file}: holds {_describe(entries)}, expected {what}")
    columns: dict[str, list[np.ndarray]] = {key: [] for key in _SHAPES}
    ids = [_image_number(number, file) for number in entries]
    for number, entry in zip(ids, entries.values(), strict=True):
        for key, shape in _SHAPES.items():
            columns[key].append(_entry_array(entry, key, shape, f"{file}: entry {number}"))
    order = np.argsort(ids)
    xyz_m, uv_vis, matrices = (np.stack(columns[key])[order].astype(np.float64) for key in _SHAPES)
    skewed = np.abs(matrices[:, 0, 1]) + np.abs(matrices[:, 1, 0]) + np.abs(matrices[:, 2] - (0, 0, 1)).sum(1) > 1e-6
    bad = skewed | ~(matrices[:, [0, 1], [0, 1]] > 0).all(1)
    if bad.any():
        raise DatasetError(
            f"{file}: entry {ids[order[np.argmax(bad)]]}: K is {matrices[np.argmax(bad)].tolist()}, "
            "expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"
        )
    return [ids[i] for i in order], xyz_m, uv_vis, matrices


def _image_number(key: Any, file: Path) -> int:
    if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < 100_000:
        raise DatasetError(f"{file}: has the key {key!r:.40}, expected the numbers of images")
    return key


def _entry_array(entry: Any, key: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), ArrayRecord):
        found = f"keys {sorted(map(str, entry))}" if isinstance(entry, dict) else _describe(entry)
        raise DatasetError(f"{where}: has {found}, expected arrays xyz, uv_vis and K")
    try:
        array = entry[key].array()
    except ValueError as error:
        raise DatasetError(f"{where}: {key} {error}") from error
    if array.shape != shape:
        raise DatasetError(f"{where}: {key} is an array {array.shape}, expected {shape}")
    return array


def _is_left(hand: str, visible: np.ndarray, mask_files: list[Path]) -> np.ndarray:
    if hand in ("left", "right"):
        return np.full(len(visible), hand == "left")
    if hand == "dominant":
        counts = visible.reshape(-1, 2, 21).sum(axis=2)
        return counts[:, 0] > counts[:, 1]
    return np.array([_left_covers_more(file) for file in mask_files])


def _left_covers_more(mask_file: Path) -> bool:
    mask = decode_file(mask_file, cv2.IMREAD_GRAYSCALE)
    left, right = (int(((mask >= low) & (mask <= high)).sum()) for low, high in (MASK_IDS["left"], MASK_IDS["right"]))
    return left > right


def _image_size(file: Path) -> tuple[int, int]:
    height, width = decode_file(file, cv2.IMREAD_GRAYSCALE).shape
    return height, width


def _describe(value: Any) -> str:
    return f"a {type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else f"a {type(value).__name__}"
