"""Random hands with a known answer: natural poses and shapes, seen from anywhere, drawn if wanted."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.data.pictures import draw_hand
from dhpe_fast.hand import CropBox, HandModel, HandParams, Pinhole, WeakPerspective
from dhpe_fast.hand.anatomy import joint_axes, sample_poses
from dhpe_fast.ops import rasterize
from dhpe_fast.rotation import quaternion_to_matrix

BETA_LIMIT = 2.0
"""Shapes are drawn from a normal distribution cut off at this many standard deviations."""
SPAN = (0.45, 0.75)
"""Longer side of the hand's bounding box, by the shorter side of the image."""
NEAREST_M = 0.08
"""No vertex is closer to a pinhole camera, and a hand that would be is further away and smaller."""
FOCAL = (0.9, 1.6)
"""Focal length of pinhole cameras, by the longer side of the image."""


@dataclass(frozen=True, eq=False)
class RenderedHand:
    """One view of a hand of which everything is known; tensors are on the CPU, of the type of the model."""

    side: str
    """'right' or 'left'."""
    camera: WeakPerspective | Pinhole
    """Projects the camera frame to the image."""
    verts_m: Tensor
    """(778, 3) camera frame; its origin is the middle MCP joint for a weak-perspective camera."""
    joints_m: Tensor
    """(21, 3) STD order, same frame."""
    joints2d_px: Tensor
    """(21, 2) ``camera.project(joints_m)``."""
    mask: Tensor
    """(H, W) bool, pixels whose centres the mesh covers."""
    params: HandParams
    """B = 1, in the crop frame. Of a pinhole view, scale and trans are those of the weak-perspective camera
    at the middle MCP joint, and the rest is exact."""
    crop: CropBox
    """The square that the crop frame spans."""
    model: HandModel
    """The model of which `params` are."""
    image: np.ndarray | None = None
    """(H, W, 3) uint8 RGB."""


def render_hands(
    n: int,
    seed: int,
    model: HandModel | None = None,
    image_size: tuple[int, int] = (256, 256),
    *,
    camera: Literal["weak", "pinhole", "mixed"] = "weak",
    pictures: bool = False,
) -> list[RenderedHand]:
    """Draws n random hands: natural poses, shapes, any viewpoint, anywhere inside the image.

    Poses come from ``anatomy.sample_poses``, betas from a normal distribution cut off at two standard
    deviations, rotations uniformly from all there are. All mesh vertices lie inside the image. The same seed
    gives the same hands.

    Args:
        n: how many.
        seed: of the random numbers.
        model: the hand; None is the right default hand.
        image_size: (height, width).
        camera: weak perspective, pinhole, or either with the same chance.
        pictures: draw ``image``, too: skin of any tone under random light before a blurred background.

    Raises:
        ValueError: if `n` is negative, the image is smaller than 16 pixels, or `camera` is none of these.
    """
    height, width = image_size
    if n < 0 or min(height, width) < 16:
        raise ValueError(f"n, image_size: expected n >= 0 and sides >= 16 pixels, got {n} and {image_size}")
    if camera not in ("weak", "pinhole", "mixed"):
        raise ValueError(f"camera: expected 'weak', 'pinhole' or 'mixed', got {camera!r}")
    model = HandModel.default() if model is None else model
    if model.faces.device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    rng = np.random.default_rng(seed)
    axes = joint_axes(_array(model.rest_joints_m()), _array(model.rest_tips_m()), model.side)
    poses = sample_poses(axes, n, rng)
    betas = np.clip(rng.normal(size=(n, 10)), -BETA_LIMIT, BETA_LIMIT)
    quats = rng.normal(size=(n, 4))
    quats *= np.where(quats[:, :1] < 0, -1, 1) / np.linalg.norm(quats, axis=1, keepdims=True)
    is_pinhole = rng.random(n) < {"weak": 0.0, "pinhole": 1.0, "mixed": 0.5}[camera]
    hands = []
    for pose, beta, quat, pinhole in zip(poses, betas, quats, is_pinhole, strict=True):
        posed = PosedHand(*(torch.from_numpy(part).to(model.hands_mean) for part in (pose, beta, quat)))
        view = place(model, posed, image_size, rng, pinhole=bool(pinhole))
        image = draw_hand(model, view.verts_m, view.camera, image_size, rng) if pictures else None
        hands.append(view if image is None else RenderedHand(**{**vars(view), "image": image}))
    return hands


@dataclass(frozen=True, eq=False)
class PosedHand:
    """What a hand does, whoever looks at it."""

    pose: Tensor
    """(45,) absolute axis-angle."""
    betas: Tensor
    """(10,)"""
    quat: Tensor
    """(4,) unit, turns the model frame to the camera's axes."""


def place(
    model: HandModel,
    hand: PosedHand,
    image_size: tuple[int, int],
    rng: np.random.Generator,
    *,
    pinhole: bool = False,
    span: float | None = None,
) -> RenderedHand:
    """Puts a hand before a random camera, somewhere in the image with all its vertices inside.

    Args:
        model: the hand's model.
        hand: pose, shape and orientation.
        image_size: (height, width).
        rng: source of the random numbers.
        pinhole: whether the camera is a pinhole; else it is weak-perspective.
        span: longer side of the hand's bounding box by the shorter side of the image; None is random.
    """
    mesh = model(hand.pose[None], hand.betas[None])
    verts_m = (mesh.verts_m[0] - mesh.joints_m[0, MIDDLE_MCP]) @ quaternion_to_matrix(hand.quat).T
    # All random numbers are drawn whether used or not, so that views differ only in what was asked for.
    free_span, focal, *place_in = rng.uniform((SPAN[0], FOCAL[0], 0, 0), (SPAN[1], FOCAL[1], 1, 1))
    span_px = (free_span if span is None else span) * min(image_size)
    if pinhole:
        return view_of(model, hand, *_pinhole_view(verts_m, image_size, span_px, focal, place_in), image_size)
    return view_of(model, hand, _weak_view(verts_m, image_size, span_px, place_in), None, image_size)


def view_of(
    model: HandModel,
    hand: PosedHand,
    camera: WeakPerspective | Pinhole,
    root_m: Tensor | None,  # (3,) camera frame
    image_size: tuple[int, int],
) -> RenderedHand:
    """What a camera sees of a hand.

    Args:
        model: the hand's model.
        hand: pose, shape and orientation.
        camera: the camera.
        root_m: where a pinhole camera has the middle MCP joint; None for a weak-perspective camera.
        image_size: (height, width).
    """
    mesh = model(hand.pose[None], hand.betas[None])
    turn = quaternion_to_matrix(hand.quat)
    root = mesh.joints_m[0, MIDDLE_MCP]
    verts_m, joints_m = (mesh.verts_m[0] - root) @ turn.T, (mesh.joints_m[0] - root) @ turn.T
    weak = camera
    if root_m is not None:
        verts_m, joints_m = verts_m + root_m, joints_m + root_m
        weak = camera.weak_perspective_at(root_m)
    joints2d_px = camera.project(joints_m)
    crop = CropBox.from_points(joints2d_px)
    return RenderedHand(
        side=model.side,
        camera=camera,
        verts_m=verts_m,
        joints_m=joints_m,
        joints2d_px=joints2d_px,
        mask=_mask(verts_m, model.faces, camera, image_size),
        params=_params(hand, root, turn, crop, weak),
        crop=crop,
        model=model,
    )


def _weak_view(verts_m: Tensor, image_size: tuple[int, int], span_px: float, place_in: list[float]) -> WeakPerspective:
    low, high = verts_m[:, :2].min(0).values, verts_m[:, :2].max(0).values
    scale = span_px / float((high - low).max())
    corner_px = _free_corner(scale * (high - low), image_size, place_in)
    return WeakPerspective(scale, tuple((corner_px - scale * low).tolist()))


def _pinhole_view(
    verts_m: Tensor, image_size: tuple[int, int], span_px: float, focal: float, place_in: list[float]
) -> tuple[Pinhole, Tensor]:
    """A camera, and where the root of the hand is in its frame."""
    height, width = image_size
    focal_px = focal * max(image_size)
    camera = Pinhole(focal_px, focal_px, width / 2, height / 2)
    extent_m = float((verts_m.max(0).values - verts_m.min(0).values)[:2].max())
    # A hand that reaches for the camera must not reach it.
    depth_m = max(focal_px * extent_m / span_px, NEAREST_M - float(verts_m[:, 2].min()))
    offset_m = verts_m.new_tensor((0, 0, depth_m))
    # Moving the hand across the image changes its outline a little, so the place is found in a few steps.
    for _ in range(8):
        points_px = camera.project(verts_m + offset_m)
        low, high = points_px.min(0).values, points_px.max(0).values
        move_px = _free_corner(high - low, image_size, place_in) - low
        offset_m = offset_m + torch.cat([move_px * (depth_m / focal_px), move_px.new_zeros(1)])
    return camera, offset_m


def _free_corner(box_px: Tensor, image_size: tuple[int, int], place_in: list[float]) -> Tensor:
    """Top left corner of a box that lies in the image, at least a fiftieth of its side from the border."""
    margin = 0.02 * min(image_size)
    room = box_px.new_tensor((image_size[1], image_size[0])) - 2 * margin - box_px
    return margin + room * room.new_tensor(place_in)


def _params(hand: PosedHand, root_m: Tensor, turn: Tensor, crop: CropBox, weak: WeakPerspective) -> HandParams:
    """The view in the crop frame, where ``scale * R @ root_m + trans`` is the root's image, at depth 0."""
    scale = weak.scale_px_per_m * 2 / crop.size_px
    root = crop.to_crop(root_m.new_tensor(weak.trans_px))
    trans = torch.cat([root, root.new_zeros(1)]) - scale * (turn @ root_m)
    return HandParams(hand.pose[None], hand.betas[None], hand.quat[None], trans.new_tensor([[scale]]), trans[None])


def _mask(verts_m: Tensor, faces: Tensor, camera: WeakPerspective | Pinhole, image_size: tuple[int, int]) -> Tensor:
    verts_px = torch.cat([camera.project(verts_m), verts_m[:, 2:]], dim=1)
    return rasterize(verts_px[None], faces, tuple(image_size)).face_index[0] >= 0


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()
