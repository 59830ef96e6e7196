"""One hand cut out of its image: the paper's square or a varied one, with labels in the crop frame.

Every crop is of a right hand: a left one is mirrored on the way, image, mask, labels and camera alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from dhpe_fast.conventions import BORDER_GREY, CROP_SIZE_PX, MIDDLE_MCP
from dhpe_fast.data.augmentation import CropAugmentation, Look, SquareJitter, draw_look, draw_square_jitter
from dhpe_fast.data.checks import project
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.joint0 import Joint0, palm_visibility, with_joint0
from dhpe_fast.data.normalize import Square, normalize
from dhpe_fast.data.sample import Sample
from dhpe_fast.hand import CropBox
from dhpe_fast.hand.mirror import mirror_camera

_MIRROR = np.array((-1.0, 1.0, 1.0))
_MAX_SAMPLES = 16
_PAPER = CropAugmentation()


@dataclass(frozen=True, eq=False)
class CropItem:
    """One crop with its labels; fields as in ``batch.HandBatch``, NaN where not annotated."""

    name: str
    image: np.ndarray
    """(S, S, 3) uint8 RGB."""
    mask: np.ndarray | None
    """(S, S) uint8, 0 or 1."""
    joints_crop: np.ndarray
    """(21, 3)"""
    valid: np.ndarray
    """(21,) bool"""
    visible: np.ndarray
    """(21,) bool"""
    joints_m: np.ndarray
    """(21, 3)"""
    camera: np.ndarray
    """(4,) fx, fy, cx, cy"""
    center_px: tuple[float, float]
    size_px: float
    angle: float
    root_depth_m: float
    mirrored: bool
    joint0: Joint0
    look: Look | None = None
    """What is still to be done to the image; None if nothing."""
    verts_m: np.ndarray | None = None
    """(778, 3)"""
    index: int = 0
    """Of the item in ``HandCrops``."""


def make_crop(
    sample: Sample,
    size: int = CROP_SIZE_PX,
    rng: np.random.Generator | None = None,
    augmentation: CropAugmentation = _PAPER,
    joint0: Joint0 = "palm",
    *,
    wrist_rule: str = "ring",
) -> CropItem:
    """Cuts the hand of `sample` out of its image.

    The square is the paper's, centred on the middle MCP with a side of 1.5 times the longer side of the joints'
    bounding box, or the sample's own if it has one; `augmentation` moves, resizes and turns it. The image is
    resampled bilinearly, averaged over each pixel's area where it is made smaller, and ``BORDER_GREY`` beyond its
    border; the mask is where at least half of a pixel is the hand.

    Args:
        sample: the hand.
        size: side of the crop, pixels.
        rng: source of the random numbers; None leaves the augmentation out.
        augmentation: ranges of the random numbers.
        joint0: what joint 0 of the labels is to be; also the square's bounding box takes it so.
        wrist_rule: how to get the wrist of a palm, a key of ``joint0.WRIST_OF_PALM``.

    Raises:
        DatasetError: if a file cannot be used, or the labels give no square.
        ValueError: if an argument is wrong, or the camera has lens distortion.
    """
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size: expected a whole number of pixels >= 1, got {size!r}")
    image, mask = sample.read_image(), sample.read_mask()
    if mask is not None and mask.shape != image.shape[:2]:
        raise DatasetError(
            f"{sample.mask_file}: is {mask.shape[1]} x {mask.shape[0]} pixels (width x height), but "
            f"{sample.image_file} {image.shape[1]} x {image.shape[0]}"
        )
    jitter = SquareJitter() if rng is None else draw_square_jitter(augmentation, rng)
    look = draw_look(augmentation, rng) if rng is not None and augmentation.varies_look else None
    width = image.shape[1]
    placed = _placed(sample, width, jitter, joint0, wrist_rule)
    mirrored, square = sample.side == "left", placed.square
    to_image = _image_of_crop(square, jitter.angle, width if mirrored else None)
    visible = palm_visibility(sample.visible) if (sample.joint0, joint0) == ("wrist", "palm") else sample.visible
    valid = np.isfinite(placed.joints_crop).all(axis=1)
    return CropItem(
        name=sample.name,
        image=_resample(image, to_image, square.size_px, size, BORDER_GREY),
        mask=None if mask is None else _mask(mask, to_image, square.size_px, size),
        joints_crop=placed.joints_crop,
        valid=valid,
        visible=visible & valid,
        joints_m=placed.joints_m,
        camera=placed.camera,
        center_px=square.center_px,
        size_px=square.size_px,
        angle=jitter.angle,
        root_depth_m=placed.root_depth_m,
        mirrored=mirrored,
        joint0=joint0,
        look=look,
        verts_m=None if sample.verts_m is None else sample.verts_m * (_MIRROR if mirrored else 1.0),
    )


def joints_in_crop(
    sample: Sample,
    joint0: Joint0 = "palm",
    *,
    wrist_rule: str = "ring",
) -> np.ndarray:
    """``joints_crop`` (21, 3) of ``make_crop`` without augmentation; no picture is read.

    Raises:
        DatasetError, ValueError: as ``make_crop``, but for what is wrong with pictures.
    """
    # Image and square are mirrored about the same line, so that in the crop it does not matter where that is.
    width = 0 if sample.image_size is None else sample.image_size[1]
    return _placed(sample, width, SquareJitter(), joint0, wrist_rule).joints_crop


@dataclass(frozen=True, eq=False)
class _Placed:
    """The labels of a crop, mirrored if the hand is a left one."""

    square: CropBox
    camera: np.ndarray
    joints_m: np.ndarray
    joints_crop: np.ndarray
    root_depth_m: float


def _placed(sample: Sample, width: int, jitter: SquareJitter, joint0: Joint0, wrist_rule: str) -> _Placed:
    if any(sample.camera.dist):
        raise ValueError(f"camera of {sample.name}: has lens distortion; undistort images and labels first")
    mirrored = sample.side == "left"
    view = mirror_camera(sample.camera, width) if mirrored else sample.camera
    camera = np.array((view.fx, view.fy, view.cx, view.cy))
    joints_m = with_joint0(sample.joints_m, sample.joint0, joint0, wrist_rule) * (_MIRROR if mirrored else 1.0)
    square = _jittered(_square(sample, joints_m, camera, width), jitter)
    root_depth_m = root_depth(joints_m)
    joints_crop = normalize(
        torch.from_numpy(joints_m),
        torch.from_numpy(camera),
        Square(
            *(torch.tensor(value, dtype=torch.float64) for value in (square.center_px, square.size_px, jitter.angle))
        ),
        torch.tensor(root_depth_m, dtype=torch.float64),
    ).numpy()
    return _Placed(square, camera, joints_m, joints_crop, root_depth_m)


def root_depth(
    joints_m: np.ndarray,  # (21, 3)
) -> float:
    """Depth of the middle MCP, or if it is not annotated the mean depth of the joints that are; NaN without any."""
    depths_m = joints_m[:, 2]
    if np.isfinite(depths_m[MIDDLE_MCP]):
        return float(depths_m[MIDDLE_MCP])
    known = depths_m[np.isfinite(depths_m)]
    return float(known.mean()) if len(known) else math.nan


def _square(sample: Sample, joints_m: np.ndarray, camera: np.ndarray, width: int) -> CropBox:
    if sample.crop is not None:
        return mirror_camera(sample.crop, width) if sample.side == "left" else sample.crop
    places_px = project(joints_m, camera)
    known = np.isfinite(places_px).all(axis=1)
    if not known[MIDDLE_MCP] or known.sum() < 2:
        raise DatasetError(
            f"{sample.name}: has no annotated middle MCP with another joint about it, so that there is no square to "
            "crop; give the sample one (Sample.crop)"
        )
    # In place of a joint that is not known, the middle MCP does not change the bounding box.
    return CropBox.from_points(np.where(known[:, None], places_px, places_px[MIDDLE_MCP]))


def _jittered(square: CropBox, jitter: SquareJitter) -> CropBox:
    x, y = (square.size_px * shift for shift in jitter.shift)
    left, top = square.center_px
    return replace(square, center_px=(left + x, top + y), size_px=square.size_px * jitter.scale)


def _image_of_crop(square: CropBox, angle: float, mirror_width: int | None) -> np.ndarray:
    """(2, 3): from places in the crop, [0, 1] over it, to pixels of the image file."""
    cos, sin = math.cos(angle) * square.size_px, math.sin(angle) * square.size_px
    x, y = square.center_px
    matrix = np.array([[cos, -sin, x - 0.5 * (cos - sin)], [sin, cos, y - 0.5 * (sin + cos)]])
    if mirror_width is not None:
        matrix[0] = -matrix[0]
        matrix[0, 2] += mirror_width
    return matrix


def _resample(image: np.ndarray, to_image: np.ndarray, size_px: float, size: int, border: int) -> np.ndarray:
    samples = min(max(math.ceil(size_px / size - 1e-6), 1), _MAX_SAMPLES)
    grid = size * samples
    # Index j of the grid is at (j + 0.5) / grid of the crop; index i of the image has its centre at i + 0.5.
    matrix = np.empty((2, 3))
    matrix[:, :2] = to_image[:, :2] / grid
    matrix[:, 2] = to_image[:, 2] + 0.5 * matrix[:, :2].sum(axis=1) - 0.5
    crop = cv2.warpAffine(
        image,
        matrix,
        (grid, grid),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(border,) * 3,
    )
    return crop if samples == 1 else cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)


def _mask(mask: np.ndarray, to_image: np.ndarray, size_px: float, size: int) -> np.ndarray:
    cover = _resample(mask.view(np.uint8) * np.uint8(255), to_image, size_px, size, 0)
    return (cover >= 128).view(np.uint8)
