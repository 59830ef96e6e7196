"""Evidence sources by name, and the checks around a source of the caller's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from dhpe_fast.evidence.given import given_boxes
from dhpe_fast.evidence.hand_evidence import EvidenceSource, HandEvidence
from dhpe_fast.evidence.mediapipe import MediaPipeEvidence
from dhpe_fast.evidence.networks import NetworkEvidence, Side

SourceName = Literal["auto", "networks", "mediapipe"]
"""Sources that come with the package."""


def evidence_source(
    evidence: SourceName | EvidenceSource,
    *,
    side: Side | None = None,
    device: torch.device | str = "cpu",
) -> CheckedSource:
    """The source of a name, or the caller's own source, with its input and its answer checked.

    Args:
        evidence: "networks", the package's own; "mediapipe"; "auto", which is MediaPipe where it can be loaded and the
            package's own networks elsewhere; or a callable of the protocol :class:`EvidenceSource`.
        side: of all hands, where it is known; the networks then look for those alone.
        device: where the networks compute.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if it is neither a name nor callable.
        ImportError: if MediaPipe is asked for and not installed, with the command that installs it.
    """
    if isinstance(evidence, str):
        if evidence not in _SOURCES:
            raise ValueError(f"evidence: expected {_NAMES} or a callable, got {evidence!r}")
        return CheckedSource(_SOURCES[evidence](side, str(device)))
    if not callable(evidence):
        raise TypeError(f"evidence: expected {_NAMES} or a callable, got {type(evidence).__name__}")
    return CheckedSource(evidence)


@dataclass(frozen=True)
class CheckedSource:
    """A source whose boxes and answers are checked; it runs without gradients."""

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
        with torch.no_grad():
            hands = list(self.source(image_rgb, boxes))
        for hand in hands:
            if not isinstance(hand, HandEvidence):
                raise TypeError(f"evidence: the source answered with a {type(hand).__name__}, expected HandEvidence")
        return hands


@lru_cache(maxsize=1)
def _shared_mediapipe() -> MediaPipeEvidence:
    # Starting MediaPipe's graph takes longer than finding a hand with it.
    return MediaPipeEvidence()


def _networks(side: Side | None, device: str) -> NetworkEvidence:
    return NetworkEvidence(side=side, device=device)


def _mediapipe(side: Side | None, device: str) -> MediaPipeEvidence:
    return _shared_mediapipe()


def _best(side: Side | None, device: str) -> EvidenceSource:
    return _shared_mediapipe() if _has_mediapipe() else _networks(side, device)


@lru_cache(maxsize=1)
def _has_mediapipe() -> bool:
    try:
        _shared_mediapipe()
    except ImportError:
        return False
    return True


_SOURCES: dict[str, Callable[[Side | None, str], EvidenceSource]] = {
    "auto": _best,
    "networks": _networks,
    "mediapipe": _mediapipe,
}
_NAMES = ", ".join(map(repr, _SOURCES))
