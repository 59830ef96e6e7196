"""Mean pose and principal components of natural poses."""

from __future__ import annotations

import numpy as np

from dhpe_fast.hand.anatomy import angles_from_pose, pose_from_angles, sample_poses


def pose_components(axes: np.ndarray, rng: np.random.Generator, count: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (45,) and orthonormal components (45, 45), largest variance first, of drawn poses.

    The coordinates that natural poses never use (hinges turned aside) come last, one for each component.
    """
    poses = sample_poses(axes, count, rng)
    angles = angles_from_pose(axes, poses).reshape(count, 45)
    angles = angles - angles.mean(0)
    used = np.flatnonzero(angles.std(0) > 1e-9)
    unused = np.setdiff1d(np.arange(45), used)
    _, _, directions = np.linalg.svd(angles[:, used], full_matrices=False)
    rows = np.zeros((45, 45))
    rows[: len(used), used] = directions
    rows[np.arange(len(used), 45), unused] = 1.0
    largest = np.abs(rows).argmax(1)
    rows *= np.sign(rows[np.arange(45), largest])[:, None]
    # The axes are orthonormal, so the components stay so as axis-angles.
    return poses.mean(0), pose_from_angles(axes, rows.reshape(45, 15, 3))
