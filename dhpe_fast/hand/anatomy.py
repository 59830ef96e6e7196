"""Anatomical axes, ranges of motion and natural poses of a hand model, float64 numpy.

Units are metres and radians; joints are the 16 kinematic joints of a MANO-like model (wrist, index, middle,
little, ring, thumb), and a pose (45,) is the axis-angle of joints 1..15 in the model's rest axes.

Anatomical coordinates of a joint are the components of its rotation vector in the rows of its axes:

* flexion: positive curls the segment towards the palm (the thumb: across the palm towards the fingers);
* abduction: positive turns the segment to the radial side, towards the thumb's side of the hand (the thumb:
  palmar abduction, out of the plane of the palm);
* twist: along the bone, positive supinates the nail towards the ulnar side.

The same coordinates mean the same movement on both hands: a left hand's axes are the mirror images of a right
hand's (as axial vectors), so its twist axis points towards the wrist.

Sources of the ranges: American Academy of Orthopaedic Surgeons 1965, *Joint Motion*; Norkin & White 2016,
*Measurement of Joint Motion*; Hume et al. 1990, *Functional range of motion of the joints of the hand*, J.
Hand Surg. 15A; Ingram et al. 2008, *The statistics of natural hand movements*, Exp. Brain Res. 188 (coupling
of joints).
"""

from __future__ import annotations

import numpy as np

FINGERS = ("index", "middle", "little", "ring")
"""The four fingers in the order of the kinematic joints; the thumb's joints 13..15 follow."""

FLEXION, ABDUCTION, TWIST = range(3)

THUMB_ROLL_RAD = np.deg2rad(55.0)
"""How far the thumb's nail is turned from the back of the hand towards the radial side at rest."""

DIP_PER_PIP = 0.67
"""Flexion of the distal joint per flexion of the proximal interphalangeal joint (Ingram et al. 2008)."""


def _range_of_motion_rad() -> np.ndarray:  # (15, 3, 2)
    hinge = (-2.0, 2.0)
    abduction = {
        "index": (-18.0, 22.0),
        "middle": (-18.0, 18.0),
        "ring": (-20.0, 16.0),
        "little": (-28.0, 18.0),
    }
    degrees = []
    for finger in FINGERS:
        degrees.append(((-25.0, 90.0), abduction[finger], (-5.0, 5.0)))
        degrees.append(((-5.0, 110.0), hinge, hinge))
        degrees.append(((-10.0, 80.0), hinge, hinge))
    degrees.append(((-25.0, 45.0), (-25.0, 35.0), (-35.0, 15.0)))
    degrees.append(((-10.0, 60.0), (-10.0, 10.0), (-10.0, 5.0)))
    degrees.append(((-15.0, 80.0), hinge, hinge))
    return np.deg2rad(np.array(degrees))


RANGE_OF_MOTION_RAD = _range_of_motion_rad()
"""(15, 3, 2) lowest and highest flexion, abduction and twist of joints 1..15, from the flat rest pose."""


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    if not length > 1e-9:
        raise ValueError("joints_m: two joints that span an axis coincide, so the axis has no direction")
    return vector / length


def joint_axes(
    joints_m: np.ndarray,  # (16, 3)
    tips_m: np.ndarray,  # (5, 3)
    side: str = "right",
) -> np.ndarray:  # (15, 3, 3)
    """Construct the anatomical axes of joints 1..15 from rest joints.

    Args:
        joints_m: Rest joints in kinematic order, model frame.
        tips_m: Finger tips: thumb, index, middle, ring, little.
        side: ``"right"`` or ``"left"``; the joints alone cannot tell palm from back.

    Returns:
        Unit axes as rows: flexion, abduction, twist; each (3, 3) block is a rotation matrix.

    Raises:
        ValueError: For another shape or side, non-finite joints, or joints that coincide.
    """
    joints = np.asarray(joints_m, dtype=np.float64)
    tips = np.asarray(tips_m, dtype=np.float64)
    if joints.shape != (16, 3):
        raise ValueError(f"joints_m: expected shape (16, 3), got {joints.shape}")
    if tips.shape != (5, 3):
        raise ValueError(f"tips_m: expected shape (5, 3), got {tips.shape}")
    if side not in ("right", "left"):
        raise ValueError(f'side: expected "right" or "left", got {side!r}')
    if not (np.isfinite(joints).all() and np.isfinite(tips).all()):
        raise ValueError("joints_m, tips_m: expected finite coordinates")
    hand = 1.0 if side == "right" else -1.0
    index, little = joints[1] - joints[0], joints[7] - joints[0]
    back = _unit(-hand * np.cross(index, little))
    radial = _unit(joints[1] - joints[7])
    thumb_back = np.cos(THUMB_ROLL_RAD) * back + np.sin(THUMB_ROLL_RAD) * radial
    axes = np.zeros((15, 3, 3))
    for digit, tip in enumerate((1, 2, 4, 3, 0)):
        chain = np.vstack([joints[1 + 3 * digit : 4 + 3 * digit], tips[tip]])
        up = thumb_back if digit == 4 else back
        for segment in range(3):
            along = _unit(chain[segment + 1] - chain[segment])
            nail = _unit(up - along * (along @ up))
            # Turning about `nail x along` takes `along` to the palm on either hand; axes are axial vectors.
            axes[3 * digit + segment] = (np.cross(nail, along), hand * nail, hand * along)
    return axes


def pose_from_angles(axes: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    """Turn anatomical coordinates (..., 15, 3) into a pose (..., 45) for joint axes (15, 3, 3)."""
    return np.einsum("...ja,jac->...jc", angles_rad, axes).reshape(*angles_rad.shape[:-2], 45)


def angles_from_pose(axes: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Turn a pose (..., 45) into anatomical coordinates (..., 15, 3); the inverse of ``pose_from_angles``."""
    return np.einsum("...jc,jac->...ja", pose.reshape(*pose.shape[:-1], 15, 3), axes)


# Share of each finger's curl in every finger's (columns), in the order of FINGERS: ring lies beside middle and little.
_ENSLAVING = np.array(
    [
        [0.85, 0.12, 0.00, 0.00],
        [0.15, 0.74, 0.00, 0.14],
        [0.00, 0.00, 0.80, 0.16],
        [0.00, 0.14, 0.20, 0.70],
    ]
)


def _sample_fingers(angles_rad: np.ndarray, rng: np.random.Generator) -> None:
    n = len(angles_rad)
    together = rng.beta(1.0, 1.7, size=(n, 1))
    curl = np.clip(together + rng.normal(0.0, 0.10, size=(n, 4)), 0.0, 1.0)
    # A third of the hands point, pinch or count: some fingers leave the common movement.
    apart = (rng.random((n, 1)) < 0.35) & (rng.random((n, 4)) < 0.45)
    curl = np.where(apart, rng.random((n, 4)), curl)
    # Tendons and skin drag the neighbours along (Zatsiorsky et al. 2000): mix across the hand, index to little.
    curl = curl @ _ENSLAVING
    # Hook (interphalangeal joints lead) against table-top grip (knuckles lead).
    lead = rng.normal(0.0, 0.22, size=(n, 1)) + rng.normal(0.0, 0.08, size=(n, 4))
    spread = rng.normal(0.0, 1.0, size=(n, 1))
    fan = np.deg2rad([8.0, 1.0, -10.0, -4.0])
    for finger in range(4):
        first = 3 * finger
        bend = curl[:, finger]
        knuckle = -0.15 + 1.6 * bend - lead[:, finger]
        middle = -0.05 + 1.80 * bend + lead[:, finger] + rng.normal(0.0, 0.06, n)
        angles_rad[:, first, FLEXION] = knuckle
        angles_rad[:, first + 1, FLEXION] = middle
        angles_rad[:, first + 2, FLEXION] = DIP_PER_PIP * middle + rng.normal(0.0, 0.08, n)
        loose = 1.0 - 0.85 * np.clip(knuckle / 1.4, 0.0, 1.0)
        sway = fan[finger] * spread[:, 0] + rng.normal(0.0, 0.05, n)
        angles_rad[:, first, ABDUCTION] = loose * sway
        angles_rad[:, first, TWIST] = rng.normal(0.0, 0.02, n)


def _sample_thumb(angles_rad: np.ndarray, rng: np.random.Generator) -> None:
    n = len(angles_rad)
    oppose = rng.beta(1.2, 1.4, n)
    bend = np.clip(rng.beta(1.2, 1.8, n) * 0.7 + 0.3 * oppose + rng.normal(0.0, 0.1, n), -0.1, 1.0)
    angles_rad[:, 12, FLEXION] = -0.25 + 0.75 * oppose + rng.normal(0.0, 0.08, n)
    angles_rad[:, 12, ABDUCTION] = rng.normal(0.08, 0.20, n) + 0.15 * oppose
    angles_rad[:, 12, TWIST] = 0.1 - 0.45 * oppose + rng.normal(0.0, 0.06, n)
    angles_rad[:, 13, FLEXION] = -0.08 + 0.95 * bend
    angles_rad[:, 13, ABDUCTION] = rng.normal(0.0, 0.05, n)
    angles_rad[:, 13, TWIST] = rng.normal(-0.03, 0.03, n)
    angles_rad[:, 14, FLEXION] = -0.12 + 1.1 * bend + rng.normal(0.0, 0.2, n)


def sample_poses(
    axes: np.ndarray,  # (15, 3, 3)
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:  # (n, 45)
    """Draw natural poses within ``RANGE_OF_MOTION_RAD``.

    The fingers curl together with individual deviations, the distal joints follow the proximal
    interphalangeal joints, the spread closes as the knuckles bend, and the thumb's joints oppose and bend
    together.
    """
    if n < 0:
        raise ValueError(f"n: expected a count of poses, got {n}")
    angles = np.zeros((n, 15, 3))
    _sample_fingers(angles, rng)
    _sample_thumb(angles, rng)
    angles = np.clip(angles, RANGE_OF_MOTION_RAD[..., 0], RANGE_OF_MOTION_RAD[..., 1])
    return pose_from_angles(axes, angles)


# Degrees: (knuckle flexion, knuckle abduction, PIP, DIP) of a finger.
_STRAIGHT = (0.0, 0.0, 0.0, 0.0)
_FISTED = {
    "index": (78.0, 0.0, 98.0, 58.0),
    "middle": (82.0, 0.0, 99.0, 56.0),
    "ring": (82.0, 0.0, 97.0, 56.0),
    "little": (76.0, 2.0, 88.0, 50.0),
}
_RELAXED = {
    "index": (14.0, 0.0, 26.0, 14.0),
    "middle": (18.0, 0.0, 30.0, 17.0),
    "ring": (21.0, 1.0, 32.0, 18.0),
    "little": (23.0, 4.0, 32.0, 18.0),
}
# Degrees: (CMC flexion, abduction, twist, MCP flexion, IP flexion) of the thumb.
_THUMB_RELAXED = (4.0, 2.0, -4.0, 12.0, 14.0)
_THUMB_OVER_FIST = (20.0, 6.0, -22.0, 36.0, 56.0)
_THUMB_TUCKED = (17.0, 2.0, -24.0, 36.0, 50.0)


def _pose_table() -> dict[str, tuple[dict[str, tuple[float, ...]], tuple[float, ...]]]:
    straight = dict.fromkeys(FINGERS, _STRAIGHT)
    spread = {
        "index": (-6.0, 12.0, 0.0, 0.0),
        "middle": (-6.0, 2.0, 0.0, 0.0),
        "ring": (-6.0, -8.0, 0.0, 0.0),
        "little": (-6.0, -18.0, 0.0, 0.0),
    }
    claw = dict.fromkeys(FINGERS, (-8.0, 0.0, 62.0, 42.0))
    loose = {
        "middle": (12.0, 0.0, 16.0, 9.0),
        "ring": (8.0, -3.0, 12.0, 7.0),
        "little": (2.0, -6.0, 8.0, 5.0),
    }
    victory = {
        "index": (-2.0, 11.0, 2.0, 1.0),
        "middle": (6.0, -4.0, 2.0, 1.0),
        "ring": (70.0, -7.0, 97.0, 56.0),
        "little": (74.0, -6.0, 90.0, 50.0),
    }
    return {
        "flat": (straight, (0.0, 0.0, 0.0, 0.0, 0.0)),
        "relaxed": (_RELAXED, _THUMB_RELAXED),
        "fist": (_FISTED, _THUMB_OVER_FIST),
        "point": (_FISTED | {"index": (6.0, 5.0, 3.0, 2.0), "middle": (78.0, 0.0, 99.0, 56.0)}, _THUMB_TUCKED),
        "ok": (loose | {"index": (49.0, -2.0, 44.0, 22.0)}, (11.0, 9.0, -34.0, 16.0, 22.0)),
        "spread": (spread, (-22.0, -2.0, 6.0, -6.0, -8.0)),
        "thumbs_up": (_FISTED, (-22.0, -14.0, 8.0, -6.0, -10.0)),
        "pinch": (_RELAXED | {"index": (48.0, -2.0, 41.0, 21.0)}, (13.0, 8.0, -34.0, 15.0, 11.0)),
        "victory": (victory, (30.0, -4.0, -22.0, 36.0, 44.0)),
        "claw": (claw, (2.0, 10.0, -6.0, 16.0, 34.0)),
        "index_bent": (straight | {"index": (60.0, 0.0, 70.0, 45.0)}, _THUMB_RELAXED),
        "little_bent": (straight | {"little": (55.0, 2.0, 65.0, 40.0)}, _THUMB_RELAXED),
    }


def sample_gestures(
    axes: np.ndarray,  # (15, 3, 3)
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:  # (n, 45)
    """Draw poses near those of ``named_poses``, within ``RANGE_OF_MOTION_RAD``.

    People point, pinch, count and make fists oftener than ``sample_poses`` does by chance. Each pose lies up to a third
    of the way from a named one to a natural one, and its joints differ by a few degrees.
    """
    named = angles_from_pose(axes, np.stack(list(named_poses(axes).values())))
    natural = angles_from_pose(axes, sample_poses(axes, n, rng))
    angles = named[rng.integers(len(named), size=n)]
    angles = angles + rng.uniform(0, 1 / 3, (n, 1, 1)) * (natural - angles)
    angles = angles + np.deg2rad([6.0, 2.0, 1.0]) * rng.normal(size=(n, 15, 3)) * (
        np.ptp(RANGE_OF_MOTION_RAD, axis=2) > 0.1
    )
    return pose_from_angles(axes, np.clip(angles, RANGE_OF_MOTION_RAD[..., 0], RANGE_OF_MOTION_RAD[..., 1]))


def named_poses(axes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the twelve demo poses by name, each (45,) radians, for joint axes (15, 3, 3)."""
    poses = {}
    for name, (fingers, thumb) in _pose_table().items():
        degrees = np.zeros((15, 3))
        for row, finger in enumerate(FINGERS):
            knuckle, abduction, middle, distal = fingers[finger]
            degrees[3 * row, FLEXION], degrees[3 * row, ABDUCTION] = knuckle, abduction
            degrees[3 * row + 1, FLEXION], degrees[3 * row + 2, FLEXION] = middle, distal
        degrees[12] = thumb[:3]
        degrees[13, FLEXION], degrees[14, FLEXION] = thumb[3:]
        poses[name] = pose_from_angles(axes, np.deg2rad(degrees))
    return poses
