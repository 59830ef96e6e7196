"""Which hand a MANO file holds, and whether a left one has the known fault in its shape directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dhpe_fast.conventions import FINGERS, MANO16_JOINT_NAMES

SIDES = ("right", "left")
_JOINT = {name: index for index, name in enumerate(MANO16_JOINT_NAMES)}


def find_side(arrays: Mapping[str, np.ndarray], path: Path) -> str:
    """'right' or 'left', from the file's name and from the direction of the fingers, which must not disagree.

    In MANO's frame the fingers of a right hand point to -x and those of a left hand to +x. A name decides
    where it holds exactly one of the words.

    Raises:
        ValueError: if name and geometry disagree, or neither tells.
    """
    words = {side for side in SIDES if re.search(side, path.stem, re.IGNORECASE)}
    named = words.pop() if len(words) == 1 else None
    joints_m = arrays["J_regressor"] @ arrays["v_template"]
    bases = [_JOINT[f"{finger}_mcp"] for finger in FINGERS[1:]]
    along_m = joints_m[bases].mean(0) - joints_m[0]
    shown = None
    if abs(along_m[0]) > 0.5 * np.linalg.norm(along_m):
        shown = "right" if along_m[0] < 0 else "left"
    if named and shown and named != shown:
        raise ValueError(
            f"{path}: the name says {named}, but the fingers point to {'-x' if shown == 'right' else '+x'} "
            f"as those of a {shown} hand; pass side='right' or side='left'"
        )
    if not (named or shown):
        raise ValueError(f"{path}: cannot tell a right from a left hand; pass side='right' or side='left'")
    return named or shown


def shapedirs_x_sign_is_wrong(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the x components of the shape directions have the wrong sign, as in the released MANO_LEFT.pkl.

    Betas are independent with unit variance, so the covariance of two lengths over the modelled population is
    the product of their derivatives by beta, summed over the betas. In people hand length and hand breadth
    are positively correlated. Length runs along x and breadth along z, so a wrong sign in x turns that
    covariance negative.
    """
    joints_m = arrays["J_regressor"] @ arrays["v_template"]  # (16, 3)
    joint_dirs_m = np.einsum("jv,vcs->jcs", arrays["J_regressor"], arrays["shapedirs"])  # (16, 3, 10)

    def derivative(start: str, end: str) -> np.ndarray:
        """Of the distance between two joints by each beta, (10,)."""
        across_m = joints_m[_JOINT[end]] - joints_m[_JOINT[start]]
        return (across_m / max(np.linalg.norm(across_m), 1e-12)) @ (
            joint_dirs_m[_JOINT[end]] - joint_dirs_m[_JOINT[start]]
        )

    length = derivative("wrist", "middle_dip")
    breadth = derivative("little_mcp", "index_mcp")
    return float(length @ breadth) < 0


def flip_shapedirs_x(shapedirs: np.ndarray) -> np.ndarray:
    """A copy of shapedirs (778, 3, 10) with the sign of its x components changed."""
    return shapedirs * np.array([-1.0, 1.0, 1.0])[:, None]
