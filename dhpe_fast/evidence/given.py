"""What the caller knows: 2D joints and boxes, checked and brought to the package's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from dhpe_fast.conventions import N_JOINTS_STD, joint_permutation
from dhpe_fast.evidence.hand_evidence import HandEvidence, checked_joints


def given_hands(
    keypoints: Any,  # (21, 2 | 3) or (N, 21, 2 | 3)
    *,
    order: str = "std",
    image_size: tuple[int, int] | None = None,
) -> tuple[list[HandEvidence], bool]:
    """The evidence in keypoints which the caller gives.

    Convention: pixels of the image, x right and y down, the centre of pixel (i, j) at (j + 0.5, i + 0.5). A third
    column is the joint's confidence in [0, 1]; 0 means not seen, and its coordinates are then ignored. Without that
    column, a joint whose two coordinates are NaN was not seen and every other joint has confidence 1.

    Args:
        keypoints: array, tensor or nested list of numbers; it is copied.
        order: the joint order of `keypoints`, a key of ``conventions.JOINT_ORDERS``.
        image_size: height and width of the image, to refuse keypoints that lie elsewhere; None does not.

    Returns:
        The evidence of each hand, and whether `keypoints` was a single hand (no leading N).

    Raises:
        TypeError: if `keypoints` are not numbers.
        ValueError: naming the hand and joint: another shape or order; a confidence outside [0, 1]; a trusted joint
            that is not finite; fewer than four trusted joints, or all of them at one point; with `image_size` a hand
            of which nothing is in the image, which is no longer its hand.
    """
    table = list(joint_permutation(order))
    values = _numbers(keypoints, "keypoints")
    if values.ndim not in (2, 3) or values.shape[-2] != N_JOINTS_STD or values.shape[-1] not in (2, 3):
        raise ValueError(
            f"keypoints: expected ({N_JOINTS_STD}, 2), ({N_JOINTS_STD}, 3) with confidences, or a leading N for N "
            f"hands, got {values.shape}"
        )
    single = values.ndim == 2
    hands = []
    for n, hand in enumerate(values[None] if single else values):
        hand = hand[table]
        confidence = hand[:, 2] if hand.shape[1] == 3 else np.where(np.isnan(hand).all(axis=1), 0.0, 1.0)
        name = "keypoints" if single else f"keypoints[{n}]"
        joints, confidence = checked_joints(hand[:, :2], confidence, name)
        if image_size is not None:
            _check_in_image(joints[confidence > 0], image_size, name)
        hands.append(HandEvidence(joints, confidence, score=float(confidence[confidence > 0].mean())))
    return hands, single


def _check_in_image(
    joints_px: np.ndarray,  # (N, 2)
    image_size: tuple[int, int],
    name: str,
) -> None:
    """A hand may reach beyond the image; but some part of the box around its joints has to be in it."""
    (left, top), (right, bottom) = joints_px.min(axis=0), joints_px.max(axis=0)
    height, width = image_size
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise ValueError(
            f"{name}: all joints lie outside of the image of {width} x {height} pixels, x from {left:.4g} to "
            f"{right:.4g} and y from {top:.4g} to {bottom:.4g}; are they pixels of this image?"
        )


def given_boxes(
    boxes: Any,  # (N, 4) or (4,) left, top, right, bottom
    image_size: tuple[int, int],
) -> np.ndarray:
    """The caller's boxes as (N, 4) float64 left, top, right, bottom, pixels.

    Args:
        boxes: array, tensor or nested list of numbers; one box may come without the leading N.
        image_size: height and width of the image.

    Raises:
        TypeError: if `boxes` are not numbers.
        ValueError: naming the box: another shape; not finite; right <= left or bottom <= top (the corners of another
            convention, (x, y, width, height) say); no overlap with the image.
    """
    values = _numbers(boxes, "boxes")
    if values.shape == (4,):
        values = values[None]
    if values.ndim != 2 or values.shape[1] != 4:
        raise ValueError(f"boxes: expected (N, 4) left, top, right, bottom, got {values.shape}")
    height, width = image_size
    for n, (left, top, right, bottom) in enumerate(values):
        given = f"boxes[{n}]: ({left:g}, {top:g}, {right:g}, {bottom:g})"
        if not np.isfinite(values[n]).all():
            raise ValueError(f"{given} is not finite")
        if right <= left or bottom <= top:
            raise ValueError(f"{given} is empty; expected left < right and top < bottom")
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise ValueError(f"{given} lies outside of the image of {width} x {height} pixels")
    return values


def _numbers(value: Any, name: str) -> np.ndarray:
    """A float64 copy on the host."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    try:
        array = np.array(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected a regular array of numbers ({error})") from None
    if array.size and array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected numbers, got {array.dtype}")
    return array.astype(np.float64)
