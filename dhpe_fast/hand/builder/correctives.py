"""Pose-dependent corrective directions.

For each joint, poses over its range are skinned to a better target than linear blending: dual quaternions keep the
knuckle's radius (Kavan et al. 2008), the flexion crease is kept from folding through itself by the bisecting plane of
the two segments, and what is left of the lost volume is given back as a bulge around the joint.  The difference to
linear blending, carried back to the rest pose, is regressed on the joint's own nine pose features.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from ..anatomy import ABDUCTION, FLEXION, RANGE_OF_MOTION_RAD, TWIST
from .anthropometry import PARENTS
from .geometry import averaging_matrix, face_normals, vertex_normals, volume
from .rig import bone_transforms, pose_features, skin
from .shape_space import RestHand

_RIDGE = 2e-3
_CREASE_SLOPE = 0.30
_MAX_BULGE_M = 0.0030


def _to_quaternions(turned: np.ndarray) -> np.ndarray:
    quats = Rotation.from_matrix(turned).as_quat()[:, [3, 0, 1, 2]]
    return quats * np.where(quats[:, :1] < 0.0, -1.0, 1.0)


def _multiply(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    w = p[..., 0] * q[..., 0] - (p[..., 1:] * q[..., 1:]).sum(-1)
    xyz = p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + np.cross(p[..., 1:], q[..., 1:])
    return np.concatenate([w[..., None], xyz], axis=-1)


def dual_quaternion_skin(
    verts_m: np.ndarray, weights: np.ndarray, pose: np.ndarray, joints_m: np.ndarray
) -> np.ndarray:
    """Skin rest vertices (V, 3) by blended unit dual quaternions."""
    turned, moved = bone_transforms(pose, joints_m)
    real = _to_quaternions(turned)
    dual = 0.5 * _multiply(np.concatenate([np.zeros((16, 1)), moved], axis=1), real)
    pivot = real[weights.argmax(1)]
    sign = np.where(pivot @ real.T < 0.0, -1.0, 1.0) * weights
    blend, blend_dual = sign @ real, sign @ dual
    length = np.linalg.norm(blend, axis=1, keepdims=True)
    blend, blend_dual = blend / length, blend_dual / length
    conjugate = blend * np.array([1.0, -1.0, -1.0, -1.0])
    shift = 2.0 * _multiply(blend_dual, conjugate)[:, 1:]
    rotated = _multiply(_multiply(blend, np.hstack([np.zeros((len(verts_m), 1)), verts_m])), conjugate)[:, 1:]
    return rotated + shift


class JointCorrector:
    """Targets for one joint bent alone, everything else at rest."""

    def __init__(self, hand: RestHand, joint: int) -> None:
        self.hand, self.joint = hand, joint
        axis, nail, along = hand.axes[joint - 1]
        parent = PARENTS[joint]
        before = hand.joints_m[joint] - hand.joints_m[parent]
        # The palm's own direction at a knuckle is that of the straight finger, as is the thumb base's.
        self.before = before / np.linalg.norm(before) if parent else along
        self.along, self.center = along, hand.joints_m[joint]
        offset = hand.verts_m - self.center
        self.station = offset @ along
        self.palmar = np.clip(-(offset @ nail) / 0.004, 0.0, 1.0)
        share = hand.weights[:, self.carried()].sum(1)
        self.share = share
        moved = 4.0 * share * (1.0 - share)
        average = averaging_matrix(hand.faces, len(hand.verts_m))
        near = np.exp(-((offset**2).sum(1)) / (2.0 * 0.016**2))
        self.ring = average @ (average @ (moved * near))

    def carried(self) -> list[int]:
        """The joint and the joints beyond it."""
        joints = [self.joint]
        while joints[-1] % 3:
            joints.append(joints[-1] + 1)
        return joints

    def target(self, pose: np.ndarray) -> np.ndarray:  # (V, 3)
        """Return the posed target vertices."""
        hand = self.hand
        posed = dual_quaternion_skin(hand.verts_m, hand.weights, pose, hand.joints_m)
        if self.joint != 13:
            posed = self._crease(posed, pose)
        return self._keep_volume(posed)

    def _crease(self, posed_m: np.ndarray, pose: np.ndarray) -> np.ndarray:
        turned, _ = bone_transforms(pose, self.hand.joints_m)
        after = turned[self.joint] @ self.along
        plane = self.before + after
        plane /= np.linalg.norm(plane)
        depth = (posed_m - self.center) @ plane
        limit = _CREASE_SLOPE * self.station
        wanted = np.where(self.station < 0.0, np.minimum(depth, limit), np.maximum(depth, limit))
        near = np.clip(1.6 - np.abs(self.station) / 0.013, 0.0, 1.0)
        member = np.clip(4.0 * self.share, 0.0, 1.0) if self.joint % 3 == 1 else self._own_digit()
        return posed_m + ((wanted - depth) * near * self.palmar * member)[:, None] * plane

    def _own_digit(self) -> np.ndarray:
        first = self.joint - (self.joint - 1) % 3
        return (self.hand.weights[:, first : first + 3].sum(1) > 0.5).astype(float)

    def _keep_volume(self, posed_m: np.ndarray) -> np.ndarray:
        hand = self.hand
        rest = volume(hand.verts_m, hand.faces)
        height = 0.0
        normals = vertex_normals(posed_m, hand.faces)
        corner = np.zeros(len(posed_m))
        flat = np.linalg.norm(face_normals(posed_m, hand.faces), axis=1) / 6.0
        for k in range(3):
            np.add.at(corner, hand.faces[:, k], flat)
        slope = float((corner * self.ring).sum())
        for _ in range(3):
            bulged = posed_m + (height * self.ring)[:, None] * normals
            height += (rest - volume(bulged, hand.faces)) / slope
            height = float(np.clip(height, -_MAX_BULGE_M, _MAX_BULGE_M))
        return posed_m + (height * self.ring)[:, None] * normals


def _training_angles(joint: int) -> np.ndarray:  # (n, 3)
    low, high = RANGE_OF_MOTION_RAD[joint - 1].T
    flexions = np.linspace(low[FLEXION], high[FLEXION], 13)
    abductions = np.linspace(low[ABDUCTION], high[ABDUCTION], 3)
    twists = np.linspace(low[TWIST], high[TWIST], 3)
    return np.array([(f, a, t) for f in flexions for a in abductions for t in twists])


def pose_directions(hand: RestHand) -> np.ndarray:  # (V, 3, 135)
    """Regress the corrective offsets of each joint on its pose features."""
    directions = np.zeros((len(hand.verts_m), 3, 135))
    for joint in range(1, 16):
        corrector = JointCorrector(hand, joint)
        features, offsets = [], []
        for angles in _training_angles(joint):
            pose = np.zeros(45)
            pose[3 * joint - 3 : 3 * joint] = angles @ hand.axes[joint - 1]
            turned, _ = bone_transforms(pose, hand.joints_m)
            blended = np.einsum("vj,jab->vab", hand.weights, turned)
            gap = corrector.target(pose) - skin(hand.verts_m, hand.weights, pose, hand.joints_m)
            offsets.append(np.linalg.solve(blended, gap[..., None])[..., 0])
            features.append(pose_features(pose)[9 * joint - 9 : 9 * joint])
        design, right = np.array(features), np.array(offsets).reshape(len(features), -1)
        gram = design.T @ design + _RIDGE * len(design) * np.eye(9)
        solution = np.linalg.solve(gram, design.T @ right).reshape(9, -1, 3)
        near = np.linalg.norm(solution, axis=(0, 2)) > 1e-5
        directions[near, :, 9 * joint - 9 : 9 * joint] = solution.transpose(1, 2, 0)[near]
    return directions
