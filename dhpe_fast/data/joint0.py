"""Joint 0: the wrist for some data sets, the centre of the palm for others, and the ways between them.

RHD and FreiHAND annotate the wrist, STB the centre of the palm. Zimmermann and Brox (2017), and with them the
paper ("1 for palm and 4 for each finger"), bring all to the palm, as STB has no wrist: that is the default
everywhere. The ways back from palm to wrist are conventions of later papers, and guesses of the anatomy.

Joints are in STD order, NumPy arrays (..., 21, D) with D = 2 (pixels) or 3; NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from dhpe_fast.conventions import FINGER_MCPS, MIDDLE_MCP

Joint0 = Literal["palm", "wrist"]
JOINT0 = ("palm", "wrist")
_RING_MCP = 13


def palm_of_wrist(
    joints: np.ndarray,  # (..., 21, D) STD, joint 0 is the wrist
) -> np.ndarray:
    """Centre of the palm (..., D): halfway from the wrist to the middle MCP (Zimmermann and Brox, 2017)."""
    return 0.5 * (joints[..., 0, :] + joints[..., MIDDLE_MCP, :])


def wrist_from_ring(
    joints: np.ndarray,  # (..., 21, 3) STD, joint 0 is the palm
) -> np.ndarray:
    """Wrist (..., 3) beyond the palm as seen from the ring MCP, twice as far (Ge et al. 2019, Spurr et al. 2018)."""
    return _beyond_palm(joints, _RING_MCP, 2.0)


def wrist_from_middle(
    joints: np.ndarray,  # (..., 21, 3) STD, joint 0 is the palm
) -> np.ndarray:
    """Wrist (..., 3) beyond the palm as seen from the middle MCP, 2.2 times as far (Yang et al. 2020)."""
    return _beyond_palm(joints, MIDDLE_MCP, 2.2)


def wrist_from_mcps(
    joints: np.ndarray,  # (..., 21, 3) STD, joint 0 is the palm
) -> np.ndarray:
    """Wrist (..., 3): mean over the four fingers of the point 2.25 times as far as the palm (Yang et al. 2020)."""
    return np.mean([_beyond_palm(joints, mcp, 2.25) for mcp in FINGER_MCPS], axis=0)


def wrist_from_halfway(
    joints: np.ndarray,  # (..., 21, 3) STD, joint 0 is the palm
) -> np.ndarray:
    """Wrist (..., 3) of which the palm is ``palm_of_wrist``: the exact inverse of that function."""
    return _beyond_palm(joints, MIDDLE_MCP, 2.0)


WRIST_OF_PALM: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ring": wrist_from_ring,
    "middle": wrist_from_middle,
    "mcps": wrist_from_mcps,
    "halfway": wrist_from_halfway,
}
"""Ways to a wrist where only the palm is known; 'ring' is the most used for STB."""


def with_joint0(
    joints: np.ndarray,  # (..., 21, D) STD
    given: Joint0,
    wanted: Joint0,
    wrist_rule: str = "ring",
) -> np.ndarray:
    """The joints (a copy) with joint 0 as wanted.

    Args:
        joints: D = 3, or D = 2 for pixels. A midpoint in the image is not the image of the midpoint: project the
            3D joint where the perspective matters; Zimmermann and Brox take the midpoint of both.
        given: what joint 0 of `joints` is.
        wanted: what it is to be.
        wrist_rule: a key of ``WRIST_OF_PALM``, for palm to wrist.

    Raises:
        ValueError: if a name is unknown.
    """
    for argument, name in (("given", given), ("wanted", wanted)):
        if name not in JOINT0:
            raise ValueError(f"{argument}: expected 'palm' or 'wrist', got {name!r}")
    if wrist_rule not in WRIST_OF_PALM:
        raise ValueError(f"wrist_rule: expected one of {', '.join(WRIST_OF_PALM)}, got {wrist_rule!r}")
    joints = joints.copy()
    if given != wanted:
        joints[..., 0, :] = palm_of_wrist(joints) if wanted == "palm" else WRIST_OF_PALM[wrist_rule](joints)
    return joints


def palm_visibility(
    visible: np.ndarray,  # (..., 21) bool, joint 0 is the wrist
) -> np.ndarray:
    """Visibility (a copy) with that of the palm: either end of the line that it halves is visible."""
    visible = visible.copy()
    visible[..., 0] |= visible[..., MIDDLE_MCP]
    return visible


def _beyond_palm(joints: np.ndarray, mcp: int, factor: float) -> np.ndarray:
    start = joints[..., mcp, :]
    return start + factor * (joints[..., 0, :] - start)
