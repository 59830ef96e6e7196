"""Mean pose and principal components of natural poses."""

from __future__ import annotations

import numpy as np

from ..anatomy import sample_poses


def pose_components(
    axes: np.ndarray, rng: np.random.Generator, count: int = 6000
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean pose (45,) and the orthonormal components (45, 45), largest variance first, of drawn poses."""
    poses = sample_poses(axes, count, rng)
    mean = poses.mean(0)
    _, _, rows = np.linalg.svd(poses - mean, full_matrices=True)
    largest = np.abs(rows).argmax(1)
    return mean, rows * np.sign(rows[np.arange(45), largest])[:, None]
