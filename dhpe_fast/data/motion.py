"""A moving hand with a known answer: a sequence of views whose pose, rotation, place and size change smoothly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from dhpe_fast.data.pictures import draw_hand
from dhpe_fast.data.rendered import BETA_LIMIT, PosedHand, RenderedHand, view_of
from dhpe_fast.hand import HandModel, Pinhole, WeakPerspective
from dhpe_fast.hand.anatomy import joint_axes, sample_poses
from dhpe_fast.rotation import axis_angle_to_matrix, matrix_to_quaternion, quaternion_to_matrix

CONTROL_S = 0.8
"""Time between two control points of the motion: a natural pose, a rotation, a place and a size each."""
TURN_RAD = 0.6
"""Largest component of a rotation away from the one that the sequence swings about."""
HAND_PX = (0.4, 0.6)
"""Size of a flat hand, wrist to middle fingertip, by the shorter side of the image."""
PLACE = (0.4, 0.6)
"""Range of the middle MCP joint, by the sides of the image."""
FLAT_HAND_M = 0.19
FOCAL = 1.2
"""Focal length of a pinhole camera, by the longer side of the image."""


def moving_hand(
    n_frames: int,
    seed: int,
    model: HandModel | None = None,
    image_size: tuple[int, int] = (240, 320),
    *,
    fps: float = 30.0,
    camera: Literal["weak", "pinhole"] = "weak",
    pictures: bool = False,
) -> Iterator[RenderedHand]:
    """The views of a hand in motion, frame by frame; the same seed gives the same motion.

    All that moves follows uniform cubic B-splines, twice continuously differentiable, through random control points;
    the poses are averages of natural ones, and the shape stays.

    Args:
        n_frames: how many.
        seed: of the random numbers.
        model: the hand; None is the right default hand.
        image_size: (height, width).
        fps: frames each second.
        camera: weak perspective, or a pinhole camera at rest.
        pictures: draw ``image``, too; light, skin and background stay from frame to frame.

    Raises:
        ValueError: if `n_frames` or `fps` is not positive, or `camera` is neither of these.
    """
    if n_frames < 1 or not fps > 0:
        raise ValueError(f"n_frames, fps: expected n_frames >= 1 and fps > 0, got {n_frames} and {fps}")
    if camera not in ("weak", "pinhole"):
        raise ValueError(f"camera: expected 'weak' or 'pinhole', got {camera!r}")
    return _views(n_frames, seed, HandModel.default() if model is None else model, image_size, fps, camera, pictures)


def _views(
    n_frames: int,
    seed: int,
    model: HandModel,
    image_size: tuple[int, int],
    fps: float,
    camera: str,
    pictures: bool,
) -> Iterator[RenderedHand]:
    rng = np.random.default_rng(seed)
    height, width = image_size
    times = np.arange(n_frames) / (fps * CONTROL_S)
    n_controls = int(times[-1]) + 4
    axes = joint_axes(model.rest_joints_m().double().numpy(), model.rest_tips_m().double().numpy(), model.side)
    poses = spline(sample_poses(axes, n_controls, rng), times)
    turns = spline(rng.uniform(-TURN_RAD, TURN_RAD, (n_controls, 3)), times)
    sizes_px = spline(rng.uniform(*HAND_PX, (n_controls, 1)), times)[:, 0] * min(image_size)
    roots_px = spline(rng.uniform(*PLACE, (n_controls, 2)), times) * (width, height)
    betas = torch.from_numpy(np.clip(rng.normal(size=10), -BETA_LIMIT, BETA_LIMIT)).to(model.hands_mean)
    base = quaternion_to_matrix(torch.from_numpy(rng.normal(size=4)))
    focal_px = FOCAL * max(image_size)
    pinhole = Pinhole(focal_px, focal_px, width / 2, height / 2)
    for pose, turn, size_px, root_px in zip(poses, turns, sizes_px, roots_px, strict=True):
        rotation = axis_angle_to_matrix(torch.from_numpy(turn)) @ base
        hand = PosedHand(torch.from_numpy(pose).to(betas), betas, matrix_to_quaternion(rotation).to(betas))
        scale = size_px / FLAT_HAND_M
        if camera == "weak":
            view = view_of(model, hand, WeakPerspective(scale, tuple(root_px)), None, image_size)
        else:
            root_m = pinhole.unproject(torch.from_numpy(root_px), focal_px / scale)
            view = view_of(model, hand, pinhole, root_m.to(betas), image_size)
        if pictures:
            drawn = draw_hand(model, view.verts_m, view.camera, image_size, np.random.default_rng(seed))
            view = RenderedHand(**{**vars(view), "image": drawn})
        yield view


def spline(
    controls: np.ndarray,  # (N, D)
    times: np.ndarray,  # (T,) in [0, N - 3)
) -> np.ndarray:
    """The uniform cubic B-spline of the control points at these times, (T, D); a point is near control ``time + 1``."""
    first = np.floor(times).astype(int)
    u = (times - first)[:, None]
    weights = (1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3
    return sum(weight * controls[first + k] for k, weight in enumerate(weights)) / 6
