"""Data with known answers: readers of public data sets, crops and batches of them, and rendered hands."""

from dhpe_fast.data.batch import Appearance, HandBatch
from dhpe_fast.data.errors import DatasetError, MissingDataError
from dhpe_fast.data.rendered import RenderedHand, render_hands
from dhpe_fast.data.sample import Dataset, Labels, Sample

__all__ = [
    "Appearance",
    "Dataset",
    "DatasetError",
    "HandBatch",
    "Labels",
    "MissingDataError",
    "RenderedHand",
    "Sample",
    "render_hands",
]
