"""FreiHAND (Zimmermann et al., ICCV 2019), as published in FreiHAND_pub_v2.

::

    FreiHAND_pub_v2/
      training/rgb/%08d.jpg    training/mask/%08d.jpg    evaluation/rgb/%08d.jpg         224 x 224
      training_K.json  training_xyz.json  training_scale.json  training_verts.json
      evaluation_K.json  evaluation_scale.json  [evaluation_xyz.json  evaluation_verts.json, released later]

32,560 training labels with four versions of each image, one block of files after the other: on the green screen
('gs'), harmonised ('hom'), and two colourised ones ('sample', 'auto'); masks only for the first block, as all
versions show the same hand. Each JSON file is a list over the labels: K (3, 3), xyz (21, 3) metres in the camera
frame, verts (778, 3), scale = distance from middle MCP to middle PIP. Right hands only; joint 0 is the wrist.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dhpe_fast.conventions import MIDDLE_MCP, N_JOINTS_STD, N_VERTS
from dhpe_fast.data.checks import check_hand_size, check_in_front, check_inside_image, entries_to_check, project
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.files import as_array, canonical_split, existing_folder, match_files, one_of, read_json
from dhpe_fast.data.sample import Dataset, Labels
from dhpe_fast.hand import CropBox

Version = Literal["gs", "hom", "sample", "auto"]
VERSIONS = ("gs", "hom", "sample", "auto")
IMAGE_SIZE = (224, 224)
MASK_IDS = (128, 255)
"""Masks are JPEG files, so that their grey values are only about 0 and 255."""
_FOLDERS = {"train": "training", "test": "evaluation"}
_SCALE_TOLERANCE_M = 1e-3


def read_freihand(
    root: str | os.PathLike[str],
    split: str,
    version: Version | Sequence[Version] = "gs",
    *,
    verts: bool = False,
    check: Literal["sample", "all", "none"] = "sample",
    integer_centers: bool = False,
    image_size: tuple[int, int] = IMAGE_SIZE,
) -> Dataset:
    """The hands of one or more versions of the training images, or of the evaluation images.

    Evaluation images without published labels come with NaN joints, and the whole image as their crop.

    Args:
        root: the folder with the JSON files.
        split: 'train' or 'test'.
        version: of the training images: 'gs', 'hom', 'sample', 'auto', or several of them, one after the other.
        verts: also read the vertices of the mesh, if published (for training 1.3 GB of JSON).
        check: which entries are looked at for places and sizes: up to 200, all, or none.
        integer_centers: whether K counts pixel centres at integer coordinates. It is taken not to, as principal
            points of the images are (112, 112), the middle of 224 pixels.
        image_size: (height, width) that all images must have.

    Raises:
        MissingDataError: if a folder, a JSON file, or images are missing.
        DatasetError: if a JSON file is cut off, or of another form or length than the others; if labels are not in
            metres, or not in front of the camera.
        ValueError: if an argument is none of the above.
    """
    split = canonical_split(split)
    one_of(check, ("sample", "all", "none"), "check")
    versions = (version,) if isinstance(version, str) else tuple(version)
    for name in versions:
        one_of(name, VERSIONS, "version")
    root = existing_folder(root, "the folder of FreiHAND, with training_K.json (FreiHAND_pub_v2)")
    own_split = _FOLDERS[split]
    file = root / f"{own_split}_xyz.json"
    matrices = _read_list(root / f"{own_split}_K.json", (None, 3, 3))
    n = len(matrices)
    is_labelled = split == "train" or file.is_file()
    joints_m = _read_list(file, (n, N_JOINTS_STD, 3)) if is_labelled else np.full((n, N_JOINTS_STD, 3), np.nan)
    scales_m = _read_list(root / f"{own_split}_scale.json", (n,))
    verts_m = None
    if verts and (split == "train" or (root / f"{own_split}_verts.json").is_file()):
        verts_m = _read_list(root / f"{own_split}_verts.json", (n, N_VERTS, 3)).astype(np.float32)
    shift = 0.5 if integer_centers else 0.0
    cameras = np.stack([matrices[:, 0, 0], matrices[:, 1, 1], *(matrices[:, :2, 2] + shift).T], axis=1)
    if check != "none" and is_labelled:
        _check_labels(joints_m, scales_m, cameras, check, image_size, file)

    blocks = [VERSIONS.index(name) for name in versions] if split == "train" else [0]
    rgb = existing_folder(root / own_split / "rgb", f"the {split} images of FreiHAND")
    pictures = [f"{block * n + i:08d}.jpg" for block in blocks for i in range(n)]
    match_files(rgb, pictures, root / f"{own_split}_K.json", "images", exact=split == "test")
    mask_files = None
    if split == "train":
        masks = [f"{i:08d}.jpg" for i in range(n)]
        match_files(root / own_split / "mask", masks, file, "masks", exact=False)
        mask_files = [root / own_split / "mask" / mask for mask in masks] * len(blocks)
    count = len(pictures)
    whole = CropBox((image_size[1] / 2, image_size[0] / 2), max(image_size))
    repeat = np.tile(np.arange(n), len(blocks))
    labels = Labels(
        names=[f"{own_split}/{picture.removesuffix('.jpg')}" for picture in pictures],
        image_files=[rgb / picture for picture in pictures],
        sides=["right"] * count,
        joints_m=joints_m[repeat],
        joints2d_px=project(joints_m, cameras)[repeat],
        visible=np.full((count, N_JOINTS_STD), is_labelled),
        cameras=cameras[repeat],
        joint0="wrist",
        mask_files=mask_files,
        mask_ids=np.tile(MASK_IDS, (count, 1)),
        verts_m=None if verts_m is None else verts_m[repeat],
        crops=None if is_labelled else [whole] * count,
    )
    return Dataset("freihand", split, labels, image_size=image_size)


def _read_list(file: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    what = "a JSON list over the labels of FreiHAND"
    return as_array(read_json(file, what), shape, file, what)


def _check_labels(
    joints_m: np.ndarray,  # (N, 21, 3)
    scales_m: np.ndarray,  # (N,)
    cameras: np.ndarray,  # (N, 4)
    check: str,
    image_size: tuple[int, int],
    file: Path,
) -> None:
    few = entries_to_check(len(joints_m), check)
    check_in_front(joints_m[few], [f"entry {i}" for i in few], file)
    check_hand_size(joints_m[few], file, "metres")
    check_inside_image(project(joints_m[few], cameras[few]), image_size, file)
    bones_m = np.linalg.norm(joints_m[few, MIDDLE_MCP] - joints_m[few, MIDDLE_MCP + 1], axis=-1)
    bad = ~(np.abs(bones_m - scales_m[few]) <= _SCALE_TOLERANCE_M)
    if bad.any():
        first = few[np.argmax(bad)]
        raise DatasetError(
            f"{file}: {int(bad.sum())} of {len(few)} entries, first entry {first}, have another distance from middle "
            f"MCP to PIP ({bones_m[np.argmax(bad)]:.5f} m) than the file of scales says ({scales_m[first]:.5f} m)"
        )
