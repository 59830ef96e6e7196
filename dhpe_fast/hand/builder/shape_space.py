"""The ten shape directions: principal components of sampled anatomical variation.

Hands are sampled from a factor model on the logarithms of bone-wise length, breadth and depth. Its loadings
give the pooled coefficients of variation and correlations of the published measures (see ``anthropometry``):
hand length 6 %, hand breadth 8 %, hand thickness 10 %, correlation of length and breadth about 0.7, finger
proportions 2 to 4 % (Garrett 1971, Buryanov & Kotiuk 2010). Each sample stretches the mean hand bone by bone,
blended as in skinning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dhpe_fast.conventions import MANO16_PARENTS, N_SHAPE
from dhpe_fast.hand.anatomy import ABDUCTION, FLEXION, TWIST
from dhpe_fast.hand.builder.anthropometry import DIGITS
from dhpe_fast.hand.builder.geometry import averaging_matrix, vertex_normals

# Standard deviations of the independent factors' effect on log-measures.
# Palm columns: length, breadth, thickness.
_PALM_FACTORS = {
    "size": (0.056, 0.058, 0.062),
    "sturdy": (-0.004, 0.048, 0.052),
    "full": (0.0, 0.010, 0.040),
    "long_fingers": (-0.022, -0.006, 0.0),
    "broad_palm": (0.0, 0.028, -0.008),
    "thick_palm": (0.0, 0.0, 0.042),
}
# Digit columns: length, breadth, depth.
_DIGIT_FACTORS = {
    "size": (0.056, 0.052, 0.054),
    "sturdy": (-0.004, 0.050, 0.050),
    "full": (0.0, 0.034, 0.038),
    "long_fingers": (0.036, -0.008, -0.008),
    "slim_fingers": (0.0, -0.034, -0.030),
}
# Effects on the length of single digits, in the order of DIGITS (index, middle, little, ring, thumb).
_LENGTH_FACTORS = {
    "digit_ratio": (0.020, 0.0, -0.004, -0.020, 0.0),
    "little_length": (0.0, 0.0, 0.036, 0.006, 0.0),
    "middle_length": (-0.006, 0.016, 0.0, -0.006, 0.0),
    "thumb_length": (0.0, 0.0, 0.0, 0.0, 0.038),
}
_PHALANX_FACTORS = {"proximal": (0.024, -0.018, -0.022), "distal": (-0.006, -0.012, 0.030)}
_TAPER = (0.022, -0.004, -0.030)  # breadth and depth of the three segments
_THUMB_BREADTH = 0.042
_JOINT_SIZE_M = 0.00045
_THENAR_M = 0.0011


@dataclass(frozen=True)
class RestHand:
    """The mean hand that samples deform: vertices, faces, joints, axes (15, 3, 3), skinning weights."""

    verts_m: np.ndarray
    faces: np.ndarray
    joints_m: np.ndarray
    axes: np.ndarray
    weights: np.ndarray


def _bone_scales(rng: np.random.Generator) -> np.ndarray:  # (16, 3)
    """Sample one hand's scale of each bone: length, breadth, depth."""
    names = {*_PALM_FACTORS, *_DIGIT_FACTORS, *_LENGTH_FACTORS, *_PHALANX_FACTORS, "taper", "thumb_breadth"}
    z = {name: rng.standard_normal() for name in sorted(names)}
    log = np.zeros((16, 3))
    for name, loading in _PALM_FACTORS.items():
        log[0] += z[name] * np.array(loading)
    for name, loading in _DIGIT_FACTORS.items():
        log[1:] += z[name] * np.array(loading)
    for number in range(len(DIGITS)):
        rows = slice(1 + 3 * number, 4 + 3 * number)
        for name, per_digit in _LENGTH_FACTORS.items():
            log[rows, 0] += z[name] * per_digit[number]
        for name, per_segment in _PHALANX_FACTORS.items():
            log[rows, 0] += z[name] * np.array(per_segment) * (0.0 if DIGITS[number] == "thumb" else 1.0)
        log[rows, 0] += 0.010 * rng.standard_normal()
        log[rows, 1:] += z["taper"] * np.array(_TAPER)[:, None]
        log[rows, 1:] += 0.008 * rng.standard_normal()
    log[13:, 1:] += z["thumb_breadth"] * _THUMB_BREADTH
    return np.exp(log)


def _stretch(hand: RestHand, blend: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale each bone in its own frame about its own joint and blend; joints ride on their parents."""
    palm = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    frames = np.concatenate([palm[None], hand.axes[:, [TWIST, FLEXION, ABDUCTION]]])
    maps = np.einsum("jka,jk,jkb->jab", frames, scales, frames)
    places = [hand.joints_m[0]]
    for joint in range(1, 16):
        parent = MANO16_PARENTS[joint]
        places.append(places[parent] + maps[parent] @ (hand.joints_m[joint] - hand.joints_m[parent]))
    joints = np.array(places)
    verts = np.einsum("vj,jab,vb->va", blend, maps, hand.verts_m)
    verts += blend @ (joints - np.einsum("jab,jb->ja", maps, hand.joints_m))
    return verts, joints


def _bulges(hand: RestHand) -> np.ndarray:  # (2, V)
    """Where thick joints and a strong thumb muscle raise the skin: smooth masks in [0, 1]."""
    knobs = np.zeros(len(hand.verts_m))
    for joint in (2, 3, 5, 6, 8, 9, 11, 12, 14, 15):
        parent = MANO16_PARENTS[joint]
        knobs = np.maximum(knobs, 4.0 * hand.weights[:, joint] * hand.weights[:, parent])
    belly = hand.joints_m[13] + 0.45 * (hand.joints_m[14] - hand.joints_m[13]) + np.array([0.0, -0.014, -0.005])
    thenar = np.exp(-(((hand.verts_m - belly) ** 2).sum(1)) / (2 * 0.014**2))
    return np.stack([knobs, thenar])


def sample_shapes(hand: RestHand, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw hands: vertices (count, V, 3) and joints (count, 16, 3)."""
    average = averaging_matrix(hand.faces, len(hand.verts_m))
    blend = hand.weights
    for _ in range(2):
        # Stretches change more slowly along the skin than bending does.
        blend = 0.5 * blend + 0.5 * (average @ blend)
    normals = vertex_normals(hand.verts_m, hand.faces)
    knobs, thenar = _bulges(hand)
    verts, joints = [], []
    for _ in range(count):
        stretched, moved = _stretch(hand, blend, _bone_scales(rng))
        lift = rng.standard_normal() * _JOINT_SIZE_M * knobs + rng.standard_normal() * _THENAR_M * thenar
        verts.append(stretched + lift[:, None] * normals)
        joints.append(moved)
    return np.array(verts), np.array(joints)


def shape_directions(hand: RestHand, shapes_m: np.ndarray) -> np.ndarray:  # (V, 3, 10)
    """Return the principal directions of sampled shapes, scaled so that coefficients have unit variance.

    The sign is chosen so that a positive coefficient enlarges the hand.
    """
    flat = shapes_m.reshape(len(shapes_m), -1)
    flat = flat - flat.mean(0)
    _, spread, directions = np.linalg.svd(flat, full_matrices=False)
    scale = spread[:N_SHAPE] / np.sqrt(len(flat) - 1)
    outward = (hand.verts_m - hand.joints_m[0]).reshape(-1)
    signs = np.where(directions[:N_SHAPE] @ outward < 0.0, -1.0, 1.0)
    return ((signs * scale)[:, None] * directions[:N_SHAPE]).T.reshape(-1, 3, N_SHAPE)
