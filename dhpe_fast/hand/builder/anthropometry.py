"""Published measurements of the adult hand and the rest skeleton laid out from them.

Millimetres in the tables (as published), metres in everything returned by a function. The mean hand is the
mixed-sex mean: the average of the male and the female population mean, with the pooled standard deviation
``sqrt((sd_m**2 + sd_f**2) / 2 + ((mean_m - mean_f) / 2)**2)``.

Sources
    * Gordon et al. 1989, *1988 Anthropometric Survey of U.S. Army Personnel*, NATICK/TR-89/044: hand length,
      breadth and circumference, wrist circumference (male, female).
    * Greiner 1991, *Hand Anthropometry of U.S. Army Personnel*, NATICK/TR-92/011: digit breadths, crotch
      heights.
    * Garrett 1971, *The adult human hand: some anthropometric and biomechanical considerations*, Human
      Factors 13(2): breadths and depths of the finger joints.
    * Pheasant 1996, *Bodyspace*: hand thickness at the metacarpals, finger thickness.
    * Buryanov & Kotiuk 2010, *Proportions of hand segments*, Int. J. Morphology 28(3): lengths of the
      metacarpals, phalanges and finger-tip soft tissue.

Frame: MANO's right hand. Fingers point to -x, the thumb side to +z, the palm faces -y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dhpe_fast.conventions import FINGERS as TIP_ORDER
from dhpe_fast.hand.anatomy import FINGERS

DIGITS = (*FINGERS, "thumb")
"""The five digits in the order of the kinematic joints (MANO's)."""

# Male mean, male SD, female mean, female SD; millimetres (Gordon et al. 1989, Pheasant 1996).
BODY_MEASURES_MM = {
    "hand_length": (193.8, 9.8, 180.5, 9.7),
    "hand_breadth": (90.4, 4.2, 79.4, 3.8),
    "hand_circumference": (213.8, 9.7, 186.2, 8.6),
    "wrist_circumference": (174.3, 8.2, 151.4, 7.1),
    "hand_thickness": (33.0, 2.0, 28.0, 2.0),
}

# Metacarpal, proximal, middle, distal phalanx, soft tissue beyond the bone; millimetres (Buryanov & Kotiuk).
SEGMENT_LENGTHS_MM = {
    "thumb": (46.22, 31.57, 21.67, 5.67),
    "index": (68.12, 39.78, 22.38, 15.82, 3.84),
    "middle": (64.60, 44.63, 26.33, 17.40, 3.95),
    "ring": (58.00, 41.37, 25.65, 17.30, 3.95),
    "little": (53.69, 32.74, 18.11, 15.96, 3.73),
}

# Breadth of the digits at the proximal and distal interphalangeal joint (thumb: at its one interphalangeal
# joint) in millimetres: rounded mixed-sex values in the range of Garrett 1971 and Greiner 1991.
JOINT_BREADTHS_MM = {
    "thumb": (21.0,),
    "index": (19.3, 16.8),
    "middle": (19.4, 17.0),
    "ring": (18.2, 15.9),
    "little": (16.2, 14.2),
}


def pooled(measure: str) -> tuple[float, float]:
    """Return the mixed-sex mean and standard deviation of a body measure, in metres."""
    mean_m, sd_m, mean_f, sd_f = BODY_MEASURES_MM[measure]
    sd = np.sqrt((sd_m**2 + sd_f**2) / 2.0 + ((mean_m - mean_f) / 2.0) ** 2)
    return (mean_m + mean_f) / 2000.0, float(sd) / 1000.0


# Where the knuckles lie and where the digits point: distance from the wrist joint along the hand, towards
# the thumb side and towards the back of the hand (millimetres), then the spread angle (positive towards the
# thumb) and the pitch of each segment (positive towards the back), in degrees.
_KNUCKLES_MM = {
    "index": (91.5, 23.0, 1.5),
    "middle": (95.0, 2.0, 3.5),
    "ring": (89.5, -18.0, 1.5),
    "little": (80.5, -35.5, -3.0),
}
_SPREAD_DEG = {"index": 6.5, "middle": 0.5, "ring": -6.0, "little": -14.5}
_PITCH_DEG = {
    "index": (-1.0, -5.0, -9.0),
    "middle": (-1.0, -5.0, -9.0),
    "ring": (-1.0, -6.0, -10.0),
    "little": (-1.0, -6.0, -10.0),
}
_WRIST_M = (0.095, 0.006, 0.006)
_THUMB_BASE_MM = (23.0, 20.0, -9.0)
# Distal, thumb-side and dorsal parts of the thumb's three segment directions: about 40 degrees off the index.
_THUMB_DIRECTIONS = ((0.74, 0.56, -0.38), (0.83, 0.45, -0.32), (0.88, 0.40, -0.25))
_THUMB_ROLL_DEG = 55.0


@dataclass(frozen=True)
class Skeleton:
    """The rest skeleton of the mean hand, in metres.

    Attributes:
        joints_m: (16, 3) rotation centres in kinematic order.
        tips_m: Finger-tip apex of each digit, by name, (3,) each.
        carpals_m: Proximal end of the four finger metacarpals, by name, (3,) each.
        dorsal: Unit vector from palm to back of each digit at rest, by name, (3,) each.
    """

    joints_m: np.ndarray
    tips_m: dict[str, np.ndarray]
    carpals_m: dict[str, np.ndarray]
    dorsal: dict[str, np.ndarray]

    def chain(self, digit: str) -> np.ndarray:  # (4, 3)
        """Return the three joints of a digit and its tip."""
        first = 1 + 3 * DIGITS.index(digit)
        return np.vstack([self.joints_m[first : first + 3], self.tips_m[digit]])

    def tips(self) -> np.ndarray:  # (5, 3)
        """Return the tips from thumb to little."""
        return np.array([self.tips_m[digit] for digit in TIP_ORDER])


def _vector(distal: float, radial: float, dorsal: float) -> np.ndarray:
    return np.array([-distal, dorsal, radial])


def _finger(digit: str, wrist: np.ndarray) -> list[np.ndarray]:
    knuckle = wrist + _vector(*_KNUCKLES_MM[digit]) / 1000.0
    spread = np.deg2rad(_SPREAD_DEG[digit])
    lengths = SEGMENT_LENGTHS_MM[digit]
    points = [knuckle]
    for length, pitch_deg in zip((lengths[1], lengths[2], lengths[3] + lengths[4]), _PITCH_DEG[digit], strict=True):
        pitch = np.deg2rad(pitch_deg)
        direction = _vector(np.cos(spread) * np.cos(pitch), np.sin(spread) * np.cos(pitch), np.sin(pitch))
        points.append(points[-1] + direction * length / 1000.0)
    return points


def _thumb(wrist: np.ndarray) -> list[np.ndarray]:
    points = [wrist + _vector(*_THUMB_BASE_MM) / 1000.0]
    metacarpal, proximal, distal, soft = SEGMENT_LENGTHS_MM["thumb"]
    for length, parts in zip((metacarpal, proximal, distal + soft), _THUMB_DIRECTIONS, strict=True):
        direction = _vector(*parts)
        points.append(points[-1] + direction / np.linalg.norm(direction) * length / 1000.0)
    return points


def mean_skeleton() -> Skeleton:
    """Lay out the rest skeleton of the mean adult hand."""
    wrist = np.array(_WRIST_M)
    chains = {digit: _finger(digit, wrist) for digit in FINGERS}
    chains["thumb"] = _thumb(wrist)
    joints = np.array([wrist] + [point for digit in DIGITS for point in chains[digit][:3]])
    carpals = {}
    for digit in FINGERS:
        # The metacarpals fan out from a carpus about half as wide as the knuckles.
        offset = chains[digit][0] - wrist
        length = SEGMENT_LENGTHS_MM[digit][0] / 1000.0
        start = wrist + np.array([-0.022, 0.002, 0.42 * offset[2]])
        axis = chains[digit][0] - start
        carpals[digit] = chains[digit][0] - axis * min(1.0, length / np.linalg.norm(axis))
    roll = np.deg2rad(_THUMB_ROLL_DEG)
    dorsal = {digit: np.array([0.0, 1.0, 0.0]) for digit in FINGERS}
    dorsal["thumb"] = np.array([0.0, np.cos(roll), np.sin(roll)])
    return Skeleton(joints, {digit: chains[digit][3] for digit in DIGITS}, carpals, dorsal)
