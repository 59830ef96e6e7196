"""STB, the Stereo hand pose Tracking Benchmark (Zhang et al., ICIP 2017), which the paper calls SHD.

::

    STB/
      images/B1Counting/BB_left_0.png BB_right_0.png SK_color_0.png SK_depth_0.png ...   640 x 480, no zero padding
      labels/B1Counting_BB.mat  labels/B1Counting_SK.mat  ...

Twelve sequences, B1 to B6, each Counting and Random, of 1,500 time steps. A label file holds ``handPara``
(3, 21, 1500) in millimetres: palm centre, then little finger to thumb, each from base to tip. BB labels are in the
frame of the left camera of the Bumblebee stereo pair, SK labels in that of the depth camera of the RealSense F200.
All hands are left hands; there are no masks, and no word on visibility.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dhpe_fast.conventions import joint_permutation
from dhpe_fast.data.checks import check_hand_size, check_in_front, check_inside_image, project
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.files import as_array, canonical_split, existing_file, existing_folder, match_files, one_of
from dhpe_fast.data.sample import Dataset, Labels

Camera = Literal["bb_left", "bb_right", "bb_both", "sk"]
CAMERAS = ("bb_left", "bb_right", "bb_both", "sk")
SEQUENCES = {
    "train": tuple(f"B{n}{motion}" for n in range(2, 7) for motion in ("Counting", "Random")),
    "test": ("B1Counting", "B1Random"),
}
"""The split of Zimmermann and Brox, and of nearly everyone since."""
IMAGE_SIZE = (480, 640)

BB_INTRINSICS = (822.79041, 822.79041, 318.47345, 250.31296)
"""fx, fy, cx, cy of both Bumblebee cameras, rectified; pixel centres at integers."""
BB_BASELINE_M = 0.120054
"""The right camera is so far to the right of the left one."""
SK_INTRINSICS = (607.92271, 607.88192, 314.78337, 236.42484)
"""fx, fy, cx, cy of the RealSense's colour camera; pixel centres at integers."""
SK_ROTATION = (0.00531, -0.01196, 0.00301)
"""Axis-angle, radians, of the map from the colour to the depth camera's frame: depth = R @ colour + t."""
SK_TRANSLATION_M = (-0.0240381, -0.0004563, -0.0012326)

_PREFIXES = {"bb_left": "BB_left", "bb_right": "BB_right", "sk": "SK_color"}


def read_stb(
    root: str | os.PathLike[str],
    split: str,
    camera: Camera = "bb_both",
    *,
    sequences: Sequence[str] | None = None,
    check: Literal["sample", "all", "none"] = "sample",
    integer_centers: bool = True,
    image_size: tuple[int, int] = IMAGE_SIZE,
) -> Dataset:
    """The hands that one of the cameras sees, or both of the stereo pair; joint 0 is the palm.

    With 'bb_both', the paper's 30,000 training and 6,000 test images, the left camera's images of a sequence come
    before those of the right one.

    Args:
        root: the folder with ``labels``, and ``images`` or the sequences themselves.
        split: 'train' (B2 to B6) or 'test' (B1).
        camera: 'bb_left', 'bb_right', 'bb_both' or 'sk'.
        sequences: names of the sequences to read instead of those of the split.
        check: 'none' leaves out the checks of units and places; the others are the same here.
        integer_centers: whether the intrinsics count pixel centres at integer coordinates, as calibrations do.
        image_size: (height, width) that all images must have.

    Raises:
        MissingDataError: if a folder, a label file, or images are missing.
        DatasetError: if a label file is cut off or has another array; if the number of images is another; if labels
            are not in millimetres, or not in front of the camera.
        ValueError: if an argument is none of the above.
        ImportError: without SciPy, which reads the label files.
    """
    split = canonical_split(split)
    one_of(camera, CAMERAS, "camera")
    one_of(check, ("sample", "all", "none"), "check")
    root = existing_folder(root, "the folder of STB, with images and labels")
    labels_folder = existing_folder(root / "labels", "the labels of STB")
    images_folder = root / "images" if (root / "images").is_dir() else root
    views = ("bb_left", "bb_right") if camera == "bb_both" else (camera,)
    names, files, joints, intrinsics = [], [], [], []
    for sequence in SEQUENCES[split] if sequences is None else sequences:
        labels_file = labels_folder / f"{sequence}_{'SK' if camera == 'sk' else 'BB'}.mat"
        labels_m = _read_labels(labels_file)
        folder = existing_folder(images_folder / sequence, f"the images of sequence {sequence}")
        for view in views:
            pictures = [f"{_PREFIXES[view]}_{i}.png" for i in range(len(labels_m))]
            _match(folder, pictures, view, labels_file)
            joints_m = to_colour_frame(labels_m, view)
            fx, fy, cx, cy = SK_INTRINSICS if view == "sk" else BB_INTRINSICS
            shift = 0.5 if integer_centers else 0.0
            view_intrinsics = np.tile((fx, fy, cx + shift, cy + shift), (len(labels_m), 1))
            if check != "none":
                own_names = [f"{sequence}/{picture}" for picture in pictures]
                check_in_front(joints_m, own_names, labels_file)
                check_hand_size(joints_m, labels_file, "millimetres")
                check_inside_image(project(joints_m, view_intrinsics), image_size, labels_file)
            names += [f"{sequence}/{picture.removesuffix('.png')}" for picture in pictures]
            files += [folder / picture for picture in pictures]
            joints.append(joints_m)
            intrinsics.append(view_intrinsics)
    if not joints:
        raise ValueError("sequences: expected at least one name of a sequence, got none")
    joints_m, cameras = np.concatenate(joints), np.concatenate(intrinsics)
    labels = Labels(
        names=names,
        image_files=files,
        sides=["left"] * len(names),
        joints_m=joints_m,
        joints2d_px=project(joints_m, cameras),
        visible=np.ones(joints_m.shape[:2], dtype=bool),
        cameras=cameras,
        joint0="palm",
    )
    return Dataset("stb", split, labels, image_size=image_size)


def to_colour_frame(
    labels_m: np.ndarray,  # (..., 3) frame of the left Bumblebee camera, or for 'sk' of the depth camera
    view: Literal["bb_left", "bb_right", "sk"],
) -> np.ndarray:
    """Points (..., 3) in the frame of the camera that took the colour image."""
    if view == "sk":
        return (labels_m - SK_TRANSLATION_M) @ sk_rotation()  # rows times R is R^T @ (d - t)
    return labels_m - ((BB_BASELINE_M, 0.0, 0.0) if view == "bb_right" else (0.0, 0.0, 0.0))


def sk_rotation() -> np.ndarray:
    """R (3, 3) of ``SK_ROTATION`` by Rodrigues' formula; its transpose takes depth points to the colour frame."""
    axis_angle = np.array(SK_ROTATION)
    angle = np.linalg.norm(axis_angle)
    x, y, z = axis_angle / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _read_labels(file: Path) -> np.ndarray:
    """Labels (N, 21, 3), metres, STD order."""
    what = "the labels of STB, handPara (3, 21, N)"
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("reading the labels of STB needs SciPy: pip install 'dhpe-fast[train]'") from error
    existing_file(file, what)
    try:
        contents = loadmat(file, variable_names=["handPara"])
    except Exception as error:  # SciPy lets through whatever a file that is cut off makes fail first
        raise DatasetError(
            f"{file}: is no whole MATLAB file ({type(error).__name__}: {error}), {file.stat().st_size} bytes; "
            f"expected {what}"
        ) from error
    if "handPara" not in contents:
        raise DatasetError(f"{file}: has no variable handPara, expected {what}")
    labels_mm = as_array(contents["handPara"], (3, 21, None), file, "handPara").transpose(2, 1, 0)
    return labels_mm[:, joint_permutation("stb")] / 1000


def _match(folder: Path, pictures: list[str], view: str, labels_file: Path) -> None:
    """The folder also holds the other cameras' images, so that only this one's are counted."""
    match_files(folder, pictures, labels_file, f"{_PREFIXES[view]} images", exact=False)
    extra = folder / f"{_PREFIXES[view]}_{len(pictures)}.png"
    if extra.is_file():
        raise DatasetError(
            f"{extra}: is an image without annotation, expected {len(pictures)} images {_PREFIXES[view]}_*.png as in "
            f"{labels_file}"
        )
