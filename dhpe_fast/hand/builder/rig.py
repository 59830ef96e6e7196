"""Skinning weights, joint regressor and a float64 linear blend skinning for the builder."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls
from scipy.spatial.transform import Rotation

from dhpe_fast.conventions import MANO16_PARENTS
from dhpe_fast.hand.anatomy import FINGERS
from dhpe_fast.hand.builder.anthropometry import DIGITS, Skeleton
from dhpe_fast.hand.builder.geometry import averaging_matrix
from dhpe_fast.hand.builder.surface import HandSurface
from dhpe_fast.hand.builder.topology import HandMesh

MAX_INFLUENCES = 4


def _smoothstep(value: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _segment_distance(points_m: np.ndarray, start_m: np.ndarray, stop_m: np.ndarray) -> np.ndarray:
    axis = stop_m - start_m
    along = np.clip((points_m - start_m) @ axis / (axis @ axis), 0.0, 1.0)
    return np.linalg.norm(points_m - start_m - along[:, None] * axis, axis=1)


def _digit_members(mesh: HandMesh, surface: HandSurface) -> dict[str, np.ndarray]:
    """How much each vertex belongs to each finger (sums to one over the fingers; one on its own rings)."""
    verts = mesh.verts_m
    distance = {}
    for digit in FINGERS:
        _, side, up = surface.tubes[digit].local(verts).T
        distance[digit] = np.hypot(side, up)
    stacked = np.stack([distance[digit] for digit in FINGERS], axis=1)
    share = np.exp(-(stacked - stacked.min(1, keepdims=True)) / 0.0022)
    share /= share.sum(1, keepdims=True)
    members = {digit: share[:, column].copy() for column, digit in enumerate(FINGERS)}
    for digit in FINGERS:
        own = np.concatenate([*mesh.rings[digit][1:], [mesh.tips[digit]]])
        for other in FINGERS:
            members[other][own] = 1.0 if other == digit else 0.0
        thumb = np.concatenate([*mesh.rings["thumb"][2:], [mesh.tips["thumb"]]])
        members[digit][thumb] = 0.0
    return members


def _thumb_share(mesh: HandMesh, skeleton: Skeleton, arc_m: np.ndarray) -> np.ndarray:
    """How much the thumb's metacarpal carries each vertex."""
    verts = mesh.verts_m
    base, knuckle = skeleton.chain("thumb")[:2]
    near = _segment_distance(verts, base, knuckle)
    wrist = skeleton.joints_m[0]
    ends = {digit: skeleton.chain(digit)[0] for digit in FINGERS}
    far = np.min([_segment_distance(verts, skeleton.carpals_m[d], ends[d]) for d in FINGERS], axis=0)
    far = np.minimum(far, _segment_distance(verts, wrist + np.array([0.03, 0, 0]), wrist))
    share = _smoothstep(far - near, -0.011, 0.014) * _smoothstep(arc_m, -0.010, 0.016)
    own = np.concatenate([*mesh.rings["thumb"][2:], [mesh.tips["thumb"]]])
    share[own] = 1.0
    return share


def skinning_weights(mesh: HandMesh, surface: HandSurface) -> np.ndarray:  # (V, 16)
    """Compute smooth, local weights: blends a finger thickness wide, at most four bones a vertex."""
    verts, skeleton = mesh.verts_m, surface.skeleton
    weights = np.zeros((len(verts), 16))
    members = _digit_members(mesh, surface)
    for number, digit in enumerate(DIGITS):
        arc = surface.tubes[digit].local(verts)[:, 0]
        lengths = np.linalg.norm(np.diff(skeleton.chain(digit), axis=0), axis=1)
        second, third = lengths[0], lengths[0] + lengths[1]
        thick = 0.0100 if digit == "thumb" else 0.0096 * min(1.0, lengths[1] / 0.0235)
        if digit == "thumb":
            first = _thumb_share(mesh, skeleton, arc)
        else:
            first = members[digit] * _smoothstep(arc, -0.0125, 0.0135)
        own = np.zeros(len(verts))
        own[np.concatenate([*mesh.rings[digit][1:], [mesh.tips[digit]]])] = 1.0
        bend = own * _smoothstep(arc, second - thick, second + thick)
        tip = own * _smoothstep(arc, third - 0.92 * thick, third + 0.92 * thick)
        joint = 1 + 3 * number
        weights[:, joint] = first * (1.0 - bend)
        weights[:, joint + 1] = first * bend * (1.0 - tip)
        weights[:, joint + 2] = first * bend * tip
    total = weights.sum(1)
    weights /= np.maximum(total, 1.0)[:, None]
    weights[:, 0] = 1.0 - weights.sum(1)
    return _limit(_diffuse(mesh, weights))


def _diffuse(mesh: HandMesh, weights: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Average the weights with their neighbours on the palm, the webs and the thumb's base only."""
    soft = np.zeros(len(weights), dtype=bool)
    for row in mesh.rows[1:]:
        soft[row] = True
    for digit, rings in mesh.rings.items():
        for ring in rings[: 3 if digit == "thumb" else 1]:
            soft[ring] = True
    average = averaging_matrix(mesh.faces, len(weights))
    for _ in range(rounds):
        weights = np.where(soft[:, None], 0.5 * weights + 0.5 * (average @ weights), weights)
    return weights


def _limit(weights: np.ndarray) -> np.ndarray:
    weights = np.where(weights < 4e-3, 0.0, weights)
    floor = np.sort(weights, axis=1)[:, -MAX_INFLUENCES][:, None]
    weights = np.where(weights >= floor, weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def joint_regressor(
    template_m: np.ndarray,  # (V, 3)
    joints_m: np.ndarray,  # (16, 3)
    shapes_m: np.ndarray,  # (S, V, 3)
    shape_joints_m: np.ndarray,  # (S, 16, 3)
    reach_m: np.ndarray,  # (16,)
) -> np.ndarray:  # (16, V)
    """Fit sparse convex rows that give the joints from the vertices, over the template and sampled shapes.

    Non-negative least squares over the vertices within reach; the template and the unit sum weigh most.
    """
    rows = np.zeros((16, len(template_m)))
    for joint in range(16):
        near = np.flatnonzero(np.linalg.norm(template_m - joints_m[joint], axis=1) < reach_m[joint])
        moved = shapes_m[:, near] - template_m[near]
        target = shape_joints_m[:, joint] - joints_m[joint]
        system = [
            1e3 * np.ones((1, len(near))),
            100.0 * (template_m[near] - joints_m[joint]).T / 0.01,
            (moved.transpose(0, 2, 1).reshape(-1, len(near))) / 0.001,
            # A little ridge spreads the load over the ring of vertices.
            0.6 * np.eye(len(near)),
        ]
        right = [np.array([1e3]), np.zeros(3), target.reshape(-1) / 0.001, np.zeros(len(near))]
        solution, _ = nnls(np.vstack(system), np.concatenate(right), maxiter=50 * len(near))
        solution = np.where(solution < 1e-4, 0.0, solution)
        rows[joint, near] = solution / solution.sum()
    return rows


def rotations(pose: np.ndarray) -> np.ndarray:  # (..., 16, 3, 3)
    """Return the rotation matrices of all joints of poses (..., 45) with the root at rest."""
    vectors = pose.reshape(*pose.shape[:-1], 15, 3)
    matrices = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(*vectors.shape[:-1], 3, 3)
    root = np.broadcast_to(np.eye(3), (*matrices.shape[:-3], 1, 3, 3))
    return np.concatenate([root, matrices], axis=-3)


def pose_features(pose: np.ndarray) -> np.ndarray:  # (..., 135)
    """Return R_j - I of joints 1..15, row-major."""
    return (rotations(pose)[..., 1:, :, :] - np.eye(3)).reshape(*pose.shape[:-1], 135)


def bone_transforms(pose: np.ndarray, joints_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return world rotations (16, 3, 3) and translations (16, 3) that carry rest points: x -> R x + t."""
    local = rotations(pose)
    world = [local[0]]
    places = [joints_m[0]]
    for joint in range(1, 16):
        parent = MANO16_PARENTS[joint]
        world.append(world[parent] @ local[joint])
        places.append(places[parent] + world[parent] @ (joints_m[joint] - joints_m[parent]))
    turned = np.array(world)
    return turned, np.array(places) - np.einsum("jab,jb->ja", turned, joints_m)


def skin(verts_m: np.ndarray, weights: np.ndarray, pose: np.ndarray, joints_m: np.ndarray) -> np.ndarray:
    """Linear blend skinning of rest vertices (V, 3) by a pose (45,)."""
    turned, moved = bone_transforms(pose, joints_m)
    blended = np.einsum("vj,jab->vab", weights, turned)
    return np.einsum("vab,vb->va", blended, verts_m) + weights @ moved
