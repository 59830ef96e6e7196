"""Pure-torch twins of every op: the readable truth the kernels are tested against.

Each twin has the name, the arguments and the defaults of its op in :mod:`dhpe_fast.ops`, is differentiable by
autograd, and is written from the formula, not from the kernel.
"""

from dhpe_fast.reference.lbs import LbsBasis, lbs
from dhpe_fast.reference.rasterize import Fragments, rasterize
from dhpe_fast.reference.silhouette import silhouette

__all__ = ["Fragments", "LbsBasis", "lbs", "rasterize", "silhouette"]
