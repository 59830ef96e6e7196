"""Data with known answers: readers of public data sets, crops and batches of them, and rendered hands.

``open_dataset`` gives samples, ``HandCrops`` and ``make_loader`` make batches of them, and ``apply_colour`` finishes
these on the device that trains.
"""

from dhpe_fast.data.augmentation import CropAugmentation
from dhpe_fast.data.batch import Appearance, HandBatch
from dhpe_fast.data.colour import apply_colour
from dhpe_fast.data.crop import CropItem, make_crop
from dhpe_fast.data.errors import DatasetError, MissingDataError
from dhpe_fast.data.formats import open_dataset
from dhpe_fast.data.loader import HandCrops, collate, make_loader
from dhpe_fast.data.rendered import RenderedHand, render_hands
from dhpe_fast.data.sample import Dataset, Labels, Sample
from dhpe_fast.data.sampler import EpochSampler

__all__ = [
    "Appearance",
    "CropAugmentation",
    "CropItem",
    "Dataset",
    "DatasetError",
    "EpochSampler",
    "HandBatch",
    "HandCrops",
    "Labels",
    "MissingDataError",
    "RenderedHand",
    "Sample",
    "apply_colour",
    "collate",
    "make_crop",
    "make_loader",
    "open_dataset",
    "render_hands",
]
