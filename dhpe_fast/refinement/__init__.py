"""Test-time refinement: solvers that move a hand's parameters towards the evidence of one image.

``refine`` is the paper's descent with its networks (Eq. 11); ``gauss_newton`` needs none, it is what ``fit`` runs.
"""

from dhpe_fast.refinement.descent import (
    BALANCED,
    BlockScales,
    EnergyWeights,
    Refinement,
    RefineOptions,
    refine,
)

__all__ = ["BALANCED", "BlockScales", "EnergyWeights", "RefineOptions", "Refinement", "refine"]
