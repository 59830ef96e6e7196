"""Pictures of hands, drawn with this package's rasterizer: no OpenGL, no display, any image size.

Colours are sRGB in [0, 1] or uint8; images are RGB. Directions are in the camera frame (x right, y down, z
away).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from torch import Tensor

from dhpe_fast.conventions import FINGERS, STD_PARENTS
from dhpe_fast.hand.camera import WeakPerspective
from dhpe_fast.image import read_image
from dhpe_fast.shading import CLAY, DAYLIGHT, SKIN, STUDIO, Lighting, Material, round_off, shade

if TYPE_CHECKING:
    from dhpe_fast.hand_fit import HandFit

__all__ = [
    "CLAY",
    "DAYLIGHT",
    "FINGER_COLORS",
    "SKIN",
    "STUDIO",
    "Lighting",
    "Material",
    "composite",
    "contact_sheet",
    "draw_skeleton",
    "overlay",
    "picture_of",
    "round_off",
    "shade",
    "six_views",
    "turntable",
]

FINGER_COLORS: dict[str, tuple[int, int, int]] = {
    "thumb": (244, 98, 86),
    "index": (250, 176, 48),
    "middle": (84, 196, 106),
    "ring": (64, 150, 246),
    "little": (176, 108, 240),
}
"""sRGB, 0 to 255."""
WRIST_COLOR = (236, 236, 240)


# --- Overlays -----------------------------------------------------------------------------------------------


def overlay(
    image: np.ndarray | Tensor,  # as image.read_image takes it
    fit: HandFit | Sequence[HandFit],
    *,
    alpha: float = 0.9,
    draw_joints: bool = True,
    draw_keypoints: bool = False,
    material: Material = CLAY,
    fast: bool = False,
) -> np.ndarray:
    """Draws fitted hands over their photograph, uint8 RGB of its size.

    Args:
        image: the picture that was fitted, an array, tensor, or path.
        fit: one hand or several.
        alpha: opacity of the mesh, 0 to 1.
        draw_joints: draw the projected skeleton, in finger colours.
        draw_keypoints: draw the 2D keypoints that were fitted, as rings.
        material: look of the mesh.
        fast: for video: without shadows, light at the vertices only, in a fraction of the time.

    Raises:
        ValueError: if the image is not one that can be read, or `alpha` is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha}")
    picture = read_image(image)
    fits = list(fit) if isinstance(fit, Sequence) else [fit]
    for hand in fits:
        if alpha > 0:
            verts_m, faces = hand.model.close_wrist(hand.verts_m), hand.model.faces_closed
            verts_m, faces = verts_m.detach().cpu(), faces.cpu()
            if not fast:
                verts_m, faces, _ = round_off(verts_m, faces)
            look = {"lighting": DAYLIGHT, "supersample": 2} if fast else {}
            layer = shade(verts_m, faces, hand.camera, picture.shape[:2], material=material, **look)
            picture = composite(picture, layer, alpha)
    for hand in fits:
        if draw_joints:
            depth = hand.joints_m[:, 2].detach().cpu().numpy()
            picture = draw_skeleton(picture, hand.joints2d_px.detach().cpu().numpy(), depth)
        if draw_keypoints:
            picture = _draw_rings(picture, hand.keypoints2d_px.detach().cpu().numpy())
    return picture


def composite(
    image: np.ndarray,  # (H, W, 3) uint8
    layer: np.ndarray,  # (H, W, 4) straight alpha, [0, 1]
    alpha: float = 1.0,
) -> np.ndarray:
    """Lays a picture of ``shade`` over an image; a new uint8 image."""
    picture = np.array(image, order="C")
    drawn = layer[..., 3] > 0
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
    if len(rows):
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        opacity = alpha * layer[window][..., 3:]
        mixed = picture[window] * (1 - opacity) + 255.0 * layer[window][..., :3] * opacity
        picture[window] = np.rint(np.clip(mixed, 0, 255))
    return picture


def draw_skeleton(
    image: np.ndarray,  # (H, W, 3) uint8
    joints2d_px: np.ndarray,  # (21, 2) STD order
    depth: np.ndarray | None = None,  # (21,) larger is farther
) -> np.ndarray:
    """Draws bones and joints in finger colours, near over far; a new image. NaN joints are left out."""
    picture = np.ascontiguousarray(image).copy()
    size = _stroke(joints2d_px)
    order = [int(joint) for joint in np.argsort(-(np.zeros(21) if depth is None else depth), kind="stable")]
    known = np.isfinite(joints2d_px).all(1)
    bones = [joint for joint in order if joint and known[joint] and known[STD_PARENTS[joint]]]
    for width, color in ((size + 2 * _border(size), _EDGE_COLOR), (size, None)):
        for joint in bones:
            ends = joints2d_px[STD_PARENTS[joint]], joints2d_px[joint]
            _line(picture, *ends, color or _joint_color(joint), width)
    for joint in order:
        if known[joint]:
            _disc(picture, joints2d_px[joint], _EDGE_COLOR, 0.95 * size + _border(size))
            _disc(picture, joints2d_px[joint], _joint_color(joint), 0.95 * size)
            _disc(picture, joints2d_px[joint], (255, 255, 255), 0.5 * size)
    return picture


def _draw_rings(image: np.ndarray, points_px: np.ndarray) -> np.ndarray:
    picture = image.copy()
    size = _stroke(points_px)
    for joint, point in enumerate(points_px):
        if np.isfinite(point).all():
            for color, width in ((_EDGE_COLOR, 0.35 * size + 2), (_joint_color(joint), 0.35 * size)):
                _ring(picture, point, color, 2.0 * size, width)
    return picture


_EDGE_COLOR = (38, 40, 46)

_SHIFT = 4
_SUBPIXEL = 1 << _SHIFT
"""OpenCV draws at fractions of a pixel when coordinates are given in these units."""


def _stroke(points_px: np.ndarray) -> float:
    """Line width for a hand of this size, pixels."""
    known = points_px[np.isfinite(points_px).all(1)]
    return max(1.0, 0.013 * float(np.ptp(known, axis=0).max())) if len(known) else 1.0


def _border(size: float) -> float:
    return max(0.6, 0.22 * size)


def _joint_color(joint: int) -> tuple[int, int, int]:
    return WRIST_COLOR if joint == 0 else FINGER_COLORS[FINGERS[(joint - 1) // 4]]


def _fixed(point_px: np.ndarray) -> tuple[int, int]:
    # OpenCV counts from the centre of the first pixel, which is at (0.5, 0.5) here.
    x, y = np.rint((np.clip(point_px, -1e4, 1e5) - 0.5) * _SUBPIXEL).astype(int)
    return int(x), int(y)


def _line(picture: np.ndarray, a: np.ndarray, b: np.ndarray, color: tuple[int, ...], width: float) -> None:
    cv2.line(picture, _fixed(a), _fixed(b), color, max(1, round(width)), cv2.LINE_AA, _SHIFT)


def _ring(picture: np.ndarray, center: np.ndarray, color: tuple[int, ...], radius: float, width: float) -> None:
    thickness = max(1, round(width))
    cv2.circle(picture, _fixed(center), round(radius * _SUBPIXEL), color, thickness, cv2.LINE_AA, _SHIFT)


def _disc(picture: np.ndarray, center: np.ndarray, color: tuple[int, ...], radius: float) -> None:
    cv2.circle(picture, _fixed(center), round(radius * _SUBPIXEL), color, cv2.FILLED, cv2.LINE_AA, _SHIFT)


# --- Sheets -------------------------------------------------------------------------------------------------

BACKDROP = (246, 247, 249)


def contact_sheet(
    images: Sequence[np.ndarray],  # (H, W, 3) uint8, sizes may differ
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    *,
    gap_px: int = 12,
) -> np.ndarray:
    """Arranges pictures in rows, each centred in a cell of the largest size with its title above; uint8 RGB.

    Raises:
        ValueError: if there are no images, or not as many titles.
    """
    if not images or (titles is not None and len(titles) != len(images)):
        raise ValueError(f"titles: expected one for each of {len(images)} images, at least one; got {titles}")
    columns = min(len(images), columns or int(np.ceil(np.sqrt(len(images)))))
    cell_h, cell_w = (max(image.shape[axis] for image in images) for axis in (0, 1))
    band = 0 if titles is None else max(20, cell_h // 14)
    rows = -(-len(images) // columns)
    step_y, step_x = cell_h + band + gap_px, cell_w + gap_px
    sheet = np.full((rows * step_y + gap_px, columns * step_x + gap_px, 3), BACKDROP, dtype=np.uint8)
    for index, image in enumerate(images):
        y = gap_px + index // columns * step_y
        x = gap_px + index % columns * step_x
        if titles is not None:
            sheet[y : y + band, x : x + cell_w] = _text(titles[index], cell_w, band)
        top, left = y + band + (cell_h - image.shape[0]) // 2, x + (cell_w - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _text(text: str, width: int, height: int) -> np.ndarray:
    # OpenCV's stroke font is drawn large and made small, which smooths it.
    zoom = 4
    band = np.full((height * zoom, width * zoom, 3), BACKDROP, dtype=np.uint8)
    scale = 0.55 * height * zoom / 22
    (needed, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, zoom)
    scale *= min(1.0, (width - 4) * zoom / max(needed, 1))
    origin = (zoom * 2, round(0.68 * height * zoom))
    cv2.putText(band, text, origin, cv2.FONT_HERSHEY_DUPLEX, scale, (52, 56, 64), zoom, cv2.LINE_AA)
    return cv2.resize(band, (width, height), interpolation=cv2.INTER_AREA)


def picture_of(
    verts_m: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    size_px: int = 320,
    *,
    material: Material = CLAY,
) -> np.ndarray:
    """A mesh alone, seen along +z from where it is, filling a square picture; uint8 RGB."""
    low, high = verts_m.min(0).values, verts_m.max(0).values
    scale = 0.88 * size_px / float((high - low)[:2].max())
    center = (0.5 * (low + high)).tolist()
    camera = WeakPerspective(scale, tuple(0.5 * size_px - scale * value for value in center[:2]))
    verts_m, faces, _ = round_off(verts_m, faces)
    layer = shade(verts_m, faces, camera, (size_px, size_px), material=material)
    backdrop = np.full((size_px, size_px, 3), BACKDROP, dtype=np.uint8)
    return composite(backdrop, layer)


def six_views(
    verts_m: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    size_px: int = 320,
    *,
    material: Material = CLAY,
) -> np.ndarray:
    """A mesh from the front and five other sides, as a contact sheet; uint8 RGB."""
    turns = {
        "front": (0, 0),
        "left": (0, 90),
        "back": (0, 180),
        "right": (0, -90),
        "top": (90, 0),
        "bottom": (-90, 0),
    }
    views = [picture_of(_turned(verts_m, *turn), faces, size_px, material=material) for turn in turns.values()]
    return contact_sheet(views, list(turns), columns=3)


def turntable(
    verts_m: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    n_views: int = 24,
    size_px: int = 320,
    *,
    material: Material = CLAY,
) -> list[np.ndarray]:
    """Pictures of a mesh that turns once about the vertical axis, uint8 RGB."""
    angles = (360.0 * view / n_views for view in range(n_views))
    return [picture_of(_turned(verts_m, 0, angle), faces, size_px, material=material) for angle in angles]


def _turned(verts_m: Tensor, pitch_deg: float, yaw_deg: float) -> Tensor:
    """The vertices turned about the vertical axis, then about the horizontal one."""
    pitch, yaw = np.deg2rad((pitch_deg, yaw_deg))
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    return verts_m @ verts_m.new_tensor(about_x @ about_y).T
