"""Mirroring a view of a hand, so that a left hand is seen as a right one and back.

Everything is reflected in the vertical plane through the camera's axis: x becomes -x in space, and W - x in
an image of width W, whose pixel centres are at half numbers. A hand of parameters h seen by a camera looks
like the mirrored parameters on the mirrored model (``HandModel.mirrored``) seen by the mirrored camera. Every
function is its own inverse and returns new data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.hand.camera import CropBox, Pinhole, WeakPerspective
from dhpe_fast.hand.params import HandParams

Camera = TypeVar("Camera", Pinhole, WeakPerspective, CropBox)
Picture = TypeVar("Picture", np.ndarray, Tensor)


@dataclass(frozen=True, eq=False)
class HandView:
    """What is known of one view; every part but the image's width may be missing."""

    width_px: int
    """Width of the image."""
    image: np.ndarray | Tensor | None = None
    """Array (H, W) or (H, W, C), or tensor (..., H, W)."""
    mask: np.ndarray | Tensor | None = None
    """Array (H, W), or tensor (..., H, W)."""
    joints2d_px: Tensor | None = None
    """(..., 2) pixels."""
    joints3d_m: Tensor | None = None
    """(..., 3) metres in the camera frame; or any points, or vertices."""
    params: HandParams | None = None
    camera: Pinhole | WeakPerspective | None = None
    box: CropBox | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.width_px, int) or self.width_px < 1:
            raise ValueError(f"HandView.width_px: expected a whole number >= 1, got {self.width_px!r}")
        for name in ("image", "mask"):
            picture = getattr(self, name)
            if picture is not None and picture.shape[_width_axis(picture, name)] != self.width_px:
                raise ValueError(
                    f"HandView.{name} has shape {tuple(picture.shape)}, expected a width of {self.width_px}"
                )


def mirror_view(view: HandView) -> HandView:
    """The mirrored view, part by part; its own inverse."""
    width = view.width_px
    return HandView(
        width_px=width,
        image=None if view.image is None else mirror_image(view.image),
        mask=None if view.mask is None else mirror_image(view.mask),
        joints2d_px=None if view.joints2d_px is None else mirror_points_px(view.joints2d_px, width),
        joints3d_m=None if view.joints3d_m is None else mirror_points_m(view.joints3d_m),
        params=None if view.params is None else mirror_params(view.params),
        camera=None if view.camera is None else mirror_camera(view.camera, width),
        box=None if view.box is None else mirror_camera(view.box, width),
    )


def mirror_image(
    image: Picture,  # array (H, W[, C]) or tensor (..., H, W)
) -> Picture:
    """The image or mask with its columns in reverse order."""
    axis = _width_axis(image, "image")
    return image.flip(axis) if isinstance(image, Tensor) else np.ascontiguousarray(np.flip(image, axis))


def mirror_points_px(
    points_px: Tensor,  # (..., 2)
    width_px: float,
) -> Tensor:
    """Points of the image, x to width - x."""
    _check_last(points_px, 2, "points_px")
    return torch.stack([width_px - points_px[..., 0], points_px[..., 1]], dim=-1)


def mirror_points_m(
    points_m: Tensor,  # (..., 3)
) -> Tensor:
    """Points in space, x to -x: joints, vertices, translations. Joints keep their order, faces turn over."""
    _check_last(points_m, 3, "points_m")
    return points_m * points_m.new_tensor((-1.0, 1.0, 1.0))


def mirror_pose(
    pose: Tensor,  # (..., 3 k) axis-angle of k joints
) -> Tensor:
    """Rotations reflected: the axis-angle (x, y, z) of each joint becomes (x, -y, -z)."""
    if pose.dim() == 0 or pose.shape[-1] % 3:
        raise ValueError(f"pose: expected axis-angles (..., 3 k), got {tuple(pose.shape)}")
    return pose * pose.new_tensor((1.0, -1.0, -1.0)).repeat(pose.shape[-1] // 3)


def mirror_params(params: HandParams) -> HandParams:
    """The parameters with which the mirrored model gives the mirrored mesh; shape and scale stay."""
    return HandParams(
        pose=mirror_pose(params.pose),
        shape=params.shape.clone(),
        quat=params.quat * params.quat.new_tensor((1.0, 1.0, -1.0, -1.0)),
        scale=params.scale.clone(),
        trans=mirror_points_m(params.trans),
    )


def mirror_camera(camera: Camera, width_px: float) -> Camera:
    """The camera, or the crop box, of the mirrored image."""
    if isinstance(camera, Pinhole):
        k1, k2, p1, p2, k3 = camera.dist
        # p2 multiplies r^2 + 2 x^2 in x and x y in y, so it changes sign with x; p1 and the radial terms do
        # not.
        return replace(camera, cx=width_px - camera.cx, dist=(k1, k2, p1, -p2, k3))
    if isinstance(camera, WeakPerspective):
        return replace(camera, trans_px=(width_px - camera.trans_px[0], camera.trans_px[1]))
    if isinstance(camera, CropBox):
        return replace(camera, center_px=(width_px - camera.center_px[0], camera.center_px[1]))
    raise TypeError(f"camera: expected a Pinhole, a WeakPerspective or a CropBox, got {type(camera).__name__}")


def _width_axis(picture: np.ndarray | Tensor, name: str) -> int:
    if isinstance(picture, Tensor) and picture.dim() >= 2:
        return -1
    if isinstance(picture, np.ndarray) and picture.ndim in (2, 3):
        return 1
    shape = tuple(getattr(picture, "shape", ()))
    raise ValueError(
        f"{name}: expected an array (H, W[, C]) or a tensor (..., H, W), got {type(picture).__name__} {shape}"
    )


def _check_last(points: Tensor, width: int, name: str) -> None:
    if not isinstance(points, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(points).__name__}")
    if points.shape[-1:] != (width,):
        raise ValueError(f"{name}: expected (..., {width}), got {tuple(points.shape)}")
