"""Numbers that papers report, for tables and plots beside one's own: copied from the named sources, not measured."""

from __future__ import annotations

from typing import NamedTuple


class PublishedAuc(NamedTuple):
    """Area under the PCK curve of one method on one data set."""

    dataset: str
    """Format name of the data set."""
    method: str
    auc: float
    range_mm: tuple[float, float]
    """Thresholds over which it is taken."""
    source: str
    """Where the number was read."""


class PublishedSegmentation(NamedTuple):
    """Pixel scores of hand masks over a data set, in [0, 1]."""

    dataset: str
    method: str
    iou: float
    precision: float
    recall: float
    f1: float
    source: str


PAPER = "Baek et al. 2019"

_SECOND_HAND = "second hand: comparison tables in repositories of later methods, not checked against the method's paper"

AUC = (
    PublishedAuc("rhd", PAPER, 0.926, (20, 50), _SECOND_HAND),
    PublishedAuc("rhd", "Zimmermann & Brox 2017", 0.675, (20, 50), _SECOND_HAND),
    PublishedAuc("rhd", "Spurr et al. 2018", 0.849, (20, 50), _SECOND_HAND),
    PublishedAuc("rhd", "Yang et al. 2019", 0.943, (20, 50), _SECOND_HAND),
    PublishedAuc("rhd", "Cai et al. 2018", 0.887, (20, 50), _SECOND_HAND),
    PublishedAuc("rhd", "Ge et al. 2019", 0.920, (20, 50), _SECOND_HAND),
    PublishedAuc("rhd", "Zhang et al. 2019", 0.901, (20, 50), _SECOND_HAND),
    PublishedAuc("stb", PAPER, 0.995, (20, 50), _SECOND_HAND),
    PublishedAuc("stb", "Zimmermann & Brox 2017", 0.948, (20, 50), _SECOND_HAND),
    PublishedAuc("stb", "Spurr et al. 2018", 0.983, (20, 50), _SECOND_HAND),
    PublishedAuc("stb", "Mueller et al. 2018", 0.965, (20, 50), _SECOND_HAND),
    PublishedAuc("stb", "Panteleris et al. 2018", 0.941, (20, 50), _SECOND_HAND),
    PublishedAuc("stb", "Iqbal et al. 2018", 0.994, (20, 50), _SECOND_HAND),
    PublishedAuc("stb", "Cai et al. 2018", 0.994, (20, 50), _SECOND_HAND),
    PublishedAuc("stb", "Ge et al. 2019", 0.998, (20, 50), _SECOND_HAND),
    PublishedAuc("dexter_object", PAPER, 0.65, (0, 100), _SECOND_HAND),
    PublishedAuc("dexter_object", "Iqbal et al. 2018 (RGB)", 0.711, (0, 100), _SECOND_HAND),
    PublishedAuc("dexter_object", "Mueller et al. 2018", 0.56, (0, 100), _SECOND_HAND),
)
"""Dexter+Object is scored at the five fingertips; what range and alignment each paper used there is not settled."""

SEGMENTATION = (
    PublishedSegmentation("rhd", PAPER, 0.6513, 0.8282, 0.7531, 0.7888, "Baek et al. 2019, Table 2"),
    PublishedSegmentation("rhd", "Zimmermann & Brox 2017", 0.3540, 0.3652, 0.9206, 0.5229, "Baek et al. 2019, Table 2"),
    PublishedSegmentation(
        "rhd", "Urooj & Borji 2018, fine-tuned", 0.5268, 0.7165, 0.6655, 0.6900, "Baek et al. 2019, Table 2"
    ),
)
