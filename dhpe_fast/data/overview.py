"""A first look at a data set: what the labels say in a few lines, and whether all files can be read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.sample import Dataset


def overview(dataset: Dataset) -> dict[str, str]:
    """Heading -> text, from the labels alone."""
    labels = dataset.labels
    n, n_left = len(dataset), int((labels.sides == "left").sum())
    annotated = np.isfinite(labels.joints_m).all(axis=-1)
    rows = {"hands": f"{n}: {n_left} left, {n - n_left} right"}
    if dataset.image_size is not None:
        rows["images"] = f"{dataset.image_size[1]} x {dataset.image_size[0]} px (width x height)"
    rows["masks"] = "yes" if labels.mask_files is not None else "no"
    rows["joints"] = f"{annotated.sum() / n:.1f} of 21 annotated, {labels.visible.sum() / n:.1f} visible on average"
    rows["joint 0"] = labels.joint0
    depths_m = labels.joints_m[annotated][:, 2]
    if len(depths_m):
        low, middle, high = np.percentile(depths_m, (1, 50, 99))
        rows["depth"] = f"{middle:.2f} m, 98 % of joints within {low:.2f} to {high:.2f} m"
    whole = labels.joints_m[annotated.all(axis=1)]
    if len(whole):
        bones = np.linalg.norm(np.diff(whole[:, 1:].reshape(-1, 5, 4, 3), axis=2), axis=-1)
        rows["finger bones"] = f"{1000 * np.median(bones.mean(axis=(1, 2))):.1f} mm long on average, of the median hand"
    return rows


def unreadable_files(dataset: Dataset, on_sample: Callable[[], None] | None = None) -> list[str]:
    """Decodes every image and mask; what is wrong with those that cannot be used.

    Args:
        dataset: whose files to read.
        on_sample: called after every sample, for instance to move a progress bar.
    """
    faults = []
    for sample in dataset:
        for read in (sample.read_image, sample.read_mask):
            try:
                read()
            except DatasetError as error:
                faults.append(str(error))
        if on_sample is not None:
            on_sample()
    return faults
