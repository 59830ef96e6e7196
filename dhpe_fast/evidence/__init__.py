"""Who supplies what is seen of a hand: the caller, or a source that looks at the image."""

from __future__ import annotations

from dhpe_fast.evidence.given import given_boxes, given_hands
from dhpe_fast.evidence.hand_evidence import EvidenceSource, HandEvidence, SeenSilhouette
from dhpe_fast.evidence.networks import NetworkEvidence
from dhpe_fast.evidence.sources import SourceName, evidence_source

__all__ = [
    "EvidenceSource",
    "HandEvidence",
    "NetworkEvidence",
    "SeenSilhouette",
    "SourceName",
    "evidence_source",
    "given_boxes",
    "given_hands",
]
