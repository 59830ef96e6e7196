"""Pose-dependent corrective directions.

For each joint, poses over its range are skinned to a better target than linear blending: dual quaternions
keep the knuckle's radius (Kavan et al. 2008), the flexion crease is kept from folding through itself by the
bisecting plane of the two segments, and what is left of the lost volume is given back as a bulge around the
joint. The difference to linear blending, carried back to the rest pose, is regressed on the joint's own nine
pose features; the knuckles of the four fingers are regressed together, since they share the webs.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from dhpe_fast.conventions import MANO16_PARENTS
from dhpe_fast.hand.anatomy import ABDUCTION, FLEXION, RANGE_OF_MOTION_RAD, TWIST
from dhpe_fast.hand.builder.geometry import averaging_matrix, face_normals, vertex_normals, volume
from dhpe_fast.hand.builder.rig import bone_transforms, pose_features, skin
from dhpe_fast.hand.builder.shape_space import RestHand

_RIDGE = 2e-3
_CREASE_SLOPE = 0.30
_MAX_BULGE_M = 0.0030
_KNUCKLE_HEIGHT_M = 0.0018

KNUCKLES = (1, 4, 7, 10)
_KNUCKLE_POSES = 160
_KNUCKLE_REACH_M = 0.030


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
        across, nail, along = hand.axes[joint - 1]
        parent = MANO16_PARENTS[joint]
        before = hand.joints_m[joint] - hand.joints_m[parent]
        # The palm's own direction at a knuckle is that of the straight finger, as is the thumb base's.
        self.before = before / np.linalg.norm(before) if parent else along
        self.along, self.center = along, hand.joints_m[joint]
        offset = hand.verts_m - self.center
        self.distance = np.linalg.norm(offset - np.clip(offset @ along, 0.0, 0.02)[:, None] * along, axis=1)
        self.station = offset @ along
        aside = (offset @ across / 0.0055) ** 2
        crest = (1.0 - 0.35 * aside) * np.exp(-0.5 * (aside + ((self.station + 0.001) / 0.0065) ** 2))
        self.crest = crest * np.clip((offset @ nail) / 0.005, 0.0, 1.0)
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
            posed = self.crease(posed, pose)
        return self._keep_volume(posed)

    def crease(self, posed_m: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Keep the skin on the palm's side of the joint on its own side of the bisecting plane."""
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

    def knuckle(self, posed_m: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Let the metacarpal's head stand out on the back of a bent knuckle and the valleys beside it sink."""
        bend = float(pose[3 * self.joint - 3 : 3 * self.joint] @ self.hand.axes[self.joint - 1, FLEXION])
        height = _KNUCKLE_HEIGHT_M * np.sin(np.clip(bend, 0.0, np.pi / 2)) * self.crest
        return posed_m + height[:, None] * vertex_normals(posed_m, self.hand.faces)

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


def _fit(features: np.ndarray, offsets: np.ndarray) -> np.ndarray:  # (n_features, V, 3)
    """Ridge regression of offsets (n, V, 3) on features (n, n_features); no offset without a feature."""
    n, width = features.shape
    gram = features.T @ features + _RIDGE * n * np.eye(width)
    return np.linalg.solve(gram, features.T @ offsets.reshape(n, -1)).reshape(width, -1, 3)


def _rest_offsets(hand: RestHand, pose: np.ndarray, target_m: np.ndarray) -> np.ndarray:  # (V, 3)
    """Return the rest-pose offsets with which linear blending of a pose gives the target vertices."""
    turned, _ = bone_transforms(pose, hand.joints_m)
    blended = np.einsum("vj,jab->vab", hand.weights, turned)
    gap = target_m - skin(hand.verts_m, hand.weights, pose, hand.joints_m)
    return np.linalg.solve(blended, gap[..., None])[..., 0]


def _hinge_directions(hand: RestHand, joint: int) -> np.ndarray:  # (9, V, 3)
    """Correctives of one joint from poses in which it bends alone."""
    corrector = JointCorrector(hand, joint)
    features, offsets = [], []
    for angles in _training_angles(joint):
        pose = np.zeros(45)
        pose[3 * joint - 3 : 3 * joint] = angles @ hand.axes[joint - 1]
        offsets.append(_rest_offsets(hand, pose, corrector.target(pose)))
        features.append(pose_features(pose)[9 * joint - 9 : 9 * joint])
    return _fit(np.array(features), np.array(offsets))


def _knuckle_angles(rng: np.random.Generator) -> np.ndarray:  # (n, 4, 3)
    """Knuckle poses in anatomical coordinates: together, each on its own, and one finger alone."""
    limits = RANGE_OF_MOTION_RAD[np.array(KNUCKLES) - 1]
    low, high = limits[..., 0], limits[..., 1]
    n = _KNUCKLE_POSES
    share = np.repeat(rng.random((n, 1, 3)), 4, axis=1)
    share[:, :, 1:] = rng.random((n, 4, 2))
    together = low + np.clip(share + 0.04 * rng.standard_normal((n, 4, 3)), 0.0, 1.0) * (high - low)
    apart = low + rng.random((n // 2, 4, 3)) * (high - low)
    alone = (low + rng.random((n // 2, 4, 3)) * (high - low)) * np.eye(4)[np.arange(n // 2) % 4][..., None]
    return np.concatenate([together, apart, alone])


def _knuckle_directions(hand: RestHand, rng: np.random.Generator) -> np.ndarray:  # (36, V, 3)
    """Correctives of the four knuckles together: the skin between two fingers follows both.

    Each vertex listens to the knuckles near it only.
    """
    correctors = [JointCorrector(hand, joint) for joint in KNUCKLES]
    columns = np.concatenate([np.arange(9 * joint - 9, 9 * joint) for joint in KNUCKLES])
    features, offsets = [], []
    for angles in _knuckle_angles(rng):
        pose = np.zeros((15, 3))
        for joint, components in zip(KNUCKLES, angles, strict=True):
            pose[joint - 1] = components @ hand.axes[joint - 1]
        pose = pose.reshape(45)
        target = dual_quaternion_skin(hand.verts_m, hand.weights, pose, hand.joints_m)
        for corrector in correctors:
            target = corrector.knuckle(corrector.crease(target, pose), pose)
        offsets.append(_rest_offsets(hand, pose, target))
        features.append(pose_features(pose)[columns])
    features, offsets = np.array(features), np.array(offsets)
    near = np.stack([corrector.distance < _KNUCKLE_REACH_M for corrector in correctors], axis=1)
    result = np.zeros((36, len(hand.verts_m), 3))
    for group in np.unique(near[near.any(1)], axis=0):
        members = np.flatnonzero((near == group).all(1))
        rows = np.flatnonzero(np.repeat(group, 9))
        result[np.ix_(rows, members)] = _fit(features[:, rows], offsets[:, members])
    return result


def pose_directions(hand: RestHand, rng: np.random.Generator) -> np.ndarray:  # (V, 3, 135)
    """Regress the corrective offsets of each joint on its pose features."""
    directions = np.zeros((len(hand.verts_m), 3, 135))
    solutions = {joint: _hinge_directions(hand, joint) for joint in range(1, 16) if joint not in KNUCKLES}
    together = _knuckle_directions(hand, rng)
    solutions |= {joint: together[9 * k : 9 * k + 9] for k, joint in enumerate(KNUCKLES)}
    for joint, solution in solutions.items():
        near = np.linalg.norm(solution, axis=(0, 2)) > 1e-5
        directions[near, :, 9 * joint - 9 : 9 * joint] = solution.transpose(1, 2, 0)[near]
    return directions
