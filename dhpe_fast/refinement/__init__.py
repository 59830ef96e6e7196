"""Test-time refinement: solvers that move a hand's parameters towards the evidence of one image.

``refine`` is the paper's descent with its networks (Eq. 11); ``gauss_newton`` needs none, it is what ``fit`` runs.
"""

from dhpe_fast.ops import EnergyWeights
from dhpe_fast.refinement.descent import Refinement, Refiner, refine
from dhpe_fast.refinement.options import BALANCED, BlockScales, RefineOptions

__all__ = ["BALANCED", "BlockScales", "EnergyWeights", "RefineOptions", "Refinement", "Refiner", "refine"]
