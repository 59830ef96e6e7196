"""Evidence sources by name, and the checks around a source of the caller's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from dhpe_fast.evidence.given import given_boxes
from dhpe_fast.evidence.hand_evidence import EvidenceSource, HandEvidence
from dhpe_fast.evidence.mediapipe import MediaPipeEvidence


def evidence_source(evidence: Literal["auto", "mediapipe"] | EvidenceSource) -> CheckedSource:
    """The source of a name, or the caller's own source, with its input and its answer checked.

    Args:
        evidence: "mediapipe"; "auto", which is MediaPipe as long as the package ships no networks of its own; or a
            callable of the protocol :class:`EvidenceSource`.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if it is neither a name nor callable.
        ImportError: if the source needs a package that is not installed, with the command that installs it.
    """
    if isinstance(evidence, str):
        if evidence not in ("auto", "mediapipe"):
            raise ValueError(f"evidence: expected 'auto', 'mediapipe' or a callable, got {evidence!r}")
        return CheckedSource(_shared_mediapipe())
    if not callable(evidence):
        raise TypeError(f"evidence: expected 'auto', 'mediapipe' or a callable, got {type(evidence).__name__}")
    return CheckedSource(evidence)


@dataclass(frozen=True)
class CheckedSource:
    """A source whose boxes and answers are checked."""

    source: EvidenceSource

    def __call__(
        self,
        image_rgb: np.ndarray,  # (H, W, 3) uint8
        boxes: Any = None,  # (N, 4) left, top, right, bottom
    ) -> list[HandEvidence]:
        """The hands found.

        Raises:
            ValueError, TypeError: for bad boxes; TypeError if the source answers something else than a list of
                HandEvidence.
        """
        if boxes is not None:
            boxes = given_boxes(boxes, image_rgb.shape[:2])
        hands = list(self.source(image_rgb, boxes))
        for hand in hands:
            if not isinstance(hand, HandEvidence):
                raise TypeError(f"evidence: the source answered with a {type(hand).__name__}, expected HandEvidence")
        return hands


@lru_cache(maxsize=1)
def _shared_mediapipe() -> MediaPipeEvidence:
    # Starting MediaPipe's graph takes longer than finding a hand with it.
    return MediaPipeEvidence()
