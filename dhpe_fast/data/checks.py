"""Plausibility of labels: hands have the size of hands, and 3D labels project to the 2D ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dhpe_fast.data.errors import DatasetError

CHECKS = ("sample", "all", "none")
BONE_M = (0.010, 0.080)
"""Plausible range of the mean length of the 12 bones between the joints of the fingers; an adult's is 0.03 m."""
REPROJECTION_PX = 1.0
"""Largest distance between a 2D label and the projection of the 3D one."""
_SAMPLED = 200


def project(
    joints_m: np.ndarray,  # (N, J, 3)
    cameras: np.ndarray,  # (N, 4) or (4,): fx, fy, cx, cy
) -> np.ndarray:
    """Pixels (N, J, 2)."""
    cameras = np.asarray(cameras)[..., None, :]
    return joints_m[..., :2] / joints_m[..., 2:] * cameras[..., :2] + cameras[..., 2:]


def entries_to_check(n: int, check: str) -> np.ndarray:
    """Indices of the entries to look at: none, up to 200 evenly spread ones, or all."""
    if check == "none":
        return np.zeros(0, dtype=np.int64)
    return np.unique(np.linspace(0, n - 1, n if check == "all" else min(n, _SAMPLED)).round().astype(np.int64))


def check_hand_size(
    joints_m: np.ndarray,  # (N, 21, 3) STD
    file: Path,
    unit: str,
) -> None:
    """Finds labels in the wrong unit by the median hand.

    Raises:
        DatasetError: if its finger bones are not between ``BONE_M`` long.
    """
    if len(joints_m) == 0:
        return
    fingers = joints_m[:, 1:].reshape(-1, 5, 4, 3)
    bones = np.linalg.norm(np.diff(fingers, axis=2), axis=-1).mean(axis=(1, 2))
    length_m = float(np.median(bones))
    if not BONE_M[0] <= length_m <= BONE_M[1]:
        raise DatasetError(
            f"{file}: the bones of the fingers are {length_m:.4g} m long on average if the labels are in {unit}; "
            f"expected {BONE_M[0]} to {BONE_M[1]} m. Are they in another unit?"
        )


def check_in_front(
    joints_m: np.ndarray,  # (N, 21, 3)
    names: Sequence[str],
    file: Path,
) -> None:
    """Finds labels behind the camera.

    Raises:
        DatasetError: if a coordinate is not finite, or a joint is not in front of the camera.
    """
    bad = ~np.isfinite(joints_m).all(axis=(1, 2)) | (joints_m[..., 2] <= 0).any(axis=1)
    if bad.any():
        first = int(np.argmax(bad))
        raise DatasetError(
            f"{file}: {int(bad.sum())} of {len(bad)} entries, first {names[first]}, have joints which are not finite "
            f"or not in front of the camera (smallest z {joints_m[first, :, 2].min():.4g} m); expected z > 0"
        )


def check_reprojection(
    joints_m: np.ndarray,  # (N, 21, 3)
    joints2d_px: np.ndarray,  # (N, 21, 2)
    cameras: np.ndarray,  # (N, 4) fx, fy, cx, cy
    names: Sequence[str],
    file: Path,
) -> None:
    """Finds 3D labels that are not those of the image.

    Raises:
        DatasetError: if one projects farther than ``REPROJECTION_PX`` from the 2D label.
    """
    errors_px = np.linalg.norm(project(joints_m, cameras) - joints2d_px, axis=-1).max(axis=1)
    bad = ~(errors_px <= REPROJECTION_PX)
    if bad.any():
        worst = int(np.argmax(np.where(np.isnan(errors_px), np.inf, errors_px)))
        raise DatasetError(
            f"{file}: the 3D labels of {int(bad.sum())} of {len(bad)} entries do not project to their 2D "
            f"labels; worst is {names[worst]}, {errors_px[worst]:.4g} px away, expected at most {REPROJECTION_PX} px. "
            f"Joint order, units or camera are not those of the data set; check='none' reads it all the same"
        )


def check_principal_point(
    cameras: np.ndarray,  # (N, 4)
    image_size: tuple[int, int],
    file: Path,
) -> None:
    """Finds images that are not of the size for which the intrinsics are.

    Raises:
        DatasetError: if the median principal point is more than 5 % of the size away from the middle of the images,
            (height, width) large.
    """
    height, width = image_size
    x, y = np.median(cameras[:, 2:], axis=0).tolist()
    if abs(x - width / 2) > 0.05 * width or abs(y - height / 2) > 0.05 * height:
        raise DatasetError(
            f"{file}: has principal points about ({x:.1f}, {y:.1f}) px, expected the middle of the images, which are "
            f"{width} x {height} px large (width x height). Were the images resized?"
        )


def check_inside_image(
    joints2d_px: np.ndarray,  # (N, J, 2), NaN where not annotated
    image_size: tuple[int, int],
    file: Path,
) -> None:
    """Finds labels which are not those of the camera, where no 2D labels say so.

    Raises:
        DatasetError: if less than half of the joints project into the image, (height, width) large.
    """
    known = joints2d_px[np.isfinite(joints2d_px).all(axis=-1)]
    inside = ((known >= 0) & (known <= (image_size[1], image_size[0]))).all(axis=-1)
    if len(known) and inside.mean() < 0.5:
        raise DatasetError(
            f"{file}: only {100 * inside.mean():.0f} % of the joints project into the {image_size[1]} x "
            f"{image_size[0]} image, expected nearly all. Camera, frame or units are not those of the data set"
        )
