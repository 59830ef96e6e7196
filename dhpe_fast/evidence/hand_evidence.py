"""What every evidence source hands to the fit: the 2D joints of one hand, how far to trust them, and its silhouette."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np

from dhpe_fast.conventions import JOINT_NAMES, N_JOINTS_STD
from dhpe_fast.hand.camera import CropBox

MIN_JOINTS = 4
"""Fewer seen joints than these leave the place, scale and rotation of a hand undetermined."""
MIN_EXTENT_PX = 1.0
"""Joints within one pixel are no picture of a hand; mostly they are normalised coordinates given as pixels."""


@dataclass(frozen=True, eq=False)
class SeenSilhouette:
    """Where a source sees a hand, in the cells of a square of the image.

    Raises:
        ValueError: for another shape, or values that are not finite or outside [0, 1].
    """

    shares: np.ndarray
    """(n, n) float32 in [0, 1]: how much of each cell is the hand, or how likely it is the hand; rows from the top."""
    square: CropBox

    def __post_init__(self) -> None:
        shares = np.array(self.shares, dtype=np.float32)
        if shares.ndim != 2 or shares.shape[0] != shares.shape[1] or not shares.size:
            raise ValueError(f"SeenSilhouette.shares: expected (n, n), got {shares.shape}")
        if not (np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1):
            raise ValueError("SeenSilhouette.shares: expected finite numbers in [0, 1]")
        object.__setattr__(self, "shares", shares)

    def at(
        self,
        points_px: np.ndarray,  # (H, W, 2) places in the image
    ) -> np.ndarray:
        """Its values (H, W) float32 at places in the image, between the centres of cells bilinear.

        Of what is beyond the square nothing is known: values go on as they are at its border.
        """
        n = len(self.shares)
        cells = (points_px - np.array(self.square.top_left_px)) * (n / self.square.size_px) - 0.5
        cells = cells.astype(np.float32)  # OpenCV counts centres at whole numbers
        return cv2.remap(self.shares, cells[..., 0], cells[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True, eq=False)
class HandEvidence:
    """The 2D joints of one hand in an image; checked and copied when it is made.

    Raises:
        ValueError: for another shape; a confidence outside [0, 1]; a trusted joint that is not finite; fewer than
            four trusted joints, or all of them at one point; an unknown side; a score outside [0, 1]; a noise that is
            negative or not finite.
    """

    joints2d_px: np.ndarray
    """(21, 2) float64, pixels of the image, STD order; NaN where the confidence is 0."""
    confidence: np.ndarray
    """(21,) float64 in [0, 1]; 0 is a joint that was not seen."""
    side: Literal["right", "left"] | None = None
    """Which hand it is, if the source can tell."""
    score: float = 1.0
    """How sure the source is that this is a hand, in [0, 1]."""
    noise_px: float | None = None
    """Standard deviation of the coordinates of a joint of confidence 1, pixels; of confidence c it is larger by
    1 / sqrt(c). None where the source does not know."""
    silhouette: SeenSilhouette | None = None
    """Where it sees the hand, if it does."""

    def __post_init__(self) -> None:
        joints, confidence = checked_joints(self.joints2d_px, self.confidence, "HandEvidence")
        if self.side not in ("right", "left", None):
            raise ValueError(f"HandEvidence.side: expected 'right', 'left' or None, got {self.side!r}")
        score = float(self.score)
        if not 0 <= score <= 1:
            raise ValueError(f"HandEvidence.score: expected a number in [0, 1], got {self.score!r}")
        object.__setattr__(self, "joints2d_px", joints)
        object.__setattr__(self, "confidence", confidence)
        object.__setattr__(self, "score", score)
        if self.noise_px is not None:
            noise_px = float(self.noise_px)
            if not 0 <= noise_px < math.inf:
                raise ValueError(f"HandEvidence.noise_px: expected pixels >= 0 or None, got {self.noise_px!r}")
            object.__setattr__(self, "noise_px", noise_px)


class EvidenceSource(Protocol):
    """Finds hands in an image: the 2D joints which the fit explains.

    Called with the image, (H, W, 3) uint8 RGB, and the boxes to look in, (N, 4) float64 left, top, right, bottom in
    pixels, or None to look everywhere. With boxes the answer is in their order, at most one hand for each.
    """

    def __call__(self, image_rgb: np.ndarray, boxes: np.ndarray | None) -> list[HandEvidence]: ...


def checked_joints(
    joints2d_px: np.ndarray,  # (21, 2)
    confidence: np.ndarray,  # (21,)
    what: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Copies as float64, with NaN at joints of zero confidence; `what` opens the messages of the errors."""
    joints = np.array(joints2d_px, dtype=np.float64)
    confidence = np.array(confidence, dtype=np.float64)
    if joints.shape != (N_JOINTS_STD, 2) or confidence.shape != (N_JOINTS_STD,):
        raise ValueError(
            f"{what}: expected joints ({N_JOINTS_STD}, 2) and confidences ({N_JOINTS_STD},), "
            f"got {joints.shape} and {confidence.shape}"
        )
    outside = ~((confidence >= 0) & (confidence <= 1))
    if outside.any():
        j = int(outside.argmax())
        raise ValueError(
            f"{what}: the confidence of {JOINT_NAMES[j]} (joint {j}) is {confidence[j]:g}, expected [0, 1]"
        )
    seen = confidence > 0
    broken = seen & ~np.isfinite(joints).all(axis=1)
    if broken.any():
        j = int(broken.argmax())
        raise ValueError(
            f"{what}: {JOINT_NAMES[j]} (joint {j}) is at {joints[j].tolist()} with confidence {confidence[j]:g}; "
            "expected finite pixels, or confidence 0 for a joint that was not seen"
        )
    if seen.sum() < MIN_JOINTS:
        raise ValueError(
            f"{what}: {int(seen.sum())} joints have a confidence above 0, at least {MIN_JOINTS} are needed"
        )
    extent = float(np.ptp(joints[seen], axis=0).max())
    if extent < MIN_EXTENT_PX:
        raise ValueError(
            f"{what}: all joints lie within {extent:g} px, so they span no hand; expected pixels of the image, not "
            "normalised coordinates"
        )
    joints[~seen] = np.nan
    return joints, confidence
