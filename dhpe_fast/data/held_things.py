"""Things in hands: placed in the palm, across it, as one holds a stick, a bottle or a fruit, and drawn around it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dhpe_fast.conventions import FINGER_MCPS, MIDDLE_MCP
from dhpe_fast.data.thing_meshes import ThingMesh, random_held
from dhpe_fast.hand import Pinhole
from dhpe_fast.ops import rasterize
from dhpe_fast.rotation import axis_angle_to_quaternion, quaternion_to_matrix
from dhpe_fast.shading import Lighting

_FLESH_M = 0.010
"""From the bones of the palm to its skin."""
_THICKEST_M = 0.035
"""Half the thickness of the largest thing that is held."""
_NEAREST_M = 0.05
"""To the camera."""
_TILT_RAD = 0.5
"""Standard deviation of a thing's direction about the line of the knuckles."""


def held_thing(
    side: str,
    joints_m: Tensor,  # (21, 3) STD order, camera frame
    rng: np.random.Generator,
) -> ThingMesh | None:
    """Something that this hand may hold, where it would be; None if that reaches the camera.

    Whether the fingers close around it is not looked at.
    """
    thing = random_held(rng)
    knuckles = joints_m[FINGER_MCPS[0]] - joints_m[FINGER_MCPS[-1]]
    normal = torch.linalg.cross(joints_m[MIDDLE_MCP] - joints_m[0], knuckles)
    palm = normalize(normal if side == "left" else -normal, dim=0)
    along = normalize(knuckles - (knuckles @ palm) * palm, dim=0)
    points_m = thing.verts_m
    half_m = float(points_m[:, 1:].abs().quantile(0.9))
    points_m = points_m * min(1.0, _THICKEST_M / half_m)
    half_m = min(half_m, _THICKEST_M)
    frame = torch.stack([along, palm, torch.linalg.cross(along, palm)], dim=1)  # (3, 3) columns
    roll = torch.tensor((rng.uniform(-np.pi, np.pi), 0.0, 0.0))
    tilt = torch.from_numpy(rng.normal(0, _TILT_RAD, 3) * (0, 1, 1)).float()
    turn = frame @ _rotation(tilt) @ _rotation(roll)
    mcps = torch.tensor(FINGER_MCPS)
    center = 0.5 * (joints_m[mcps].mean(0) + joints_m[mcps + 1].mean(0)) + (half_m + _FLESH_M) * palm
    slide = rng.uniform(-0.3, 0.3) * float(points_m[:, 0].max() - points_m[:, 0].min())
    placed_m = points_m @ turn.T + center + slide * turn[:, 0]
    return replace(thing, verts_m=placed_m) if placed_m[:, 2].min() > _NEAREST_M else None


def thing_layers(
    thing: ThingMesh,
    depth_m: np.ndarray,  # (H, W) of the hands, infinite where none is
    camera: Pinhole,
    light: Lighting,
    supersample: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The whole thing, to be drawn behind the hands, and what of it is before them, each float32 (H, W, 4)."""
    size, points_m = depth_m.shape, thing.verts_m
    layer = thing.drawn(camera, size, light, supersample)
    points_px = torch.cat([camera.project(points_m), points_m[:, 2:]], 1)
    seen = rasterize(points_px[None], thing.faces.int(), size, perspective=True, z_near=0.01)
    its_depth = np.where(seen.face_index[0].numpy() >= 0, seen.depth[0].numpy(), np.inf)
    # A pixel at its edge, covered in part, has no depth of its own: it gets that of the nearest one beside it.
    its_depth = cv2.erode(its_depth, np.ones((3, 3), np.uint8))
    return layer, layer * (its_depth < depth_m)[..., None]


def _rotation(axis_angle: Tensor) -> Tensor:  # (3,) -> (3, 3)
    return quaternion_to_matrix(axis_angle_to_quaternion(axis_angle))
