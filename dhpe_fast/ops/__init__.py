"""The compiled ops: tensors in, tensors out, on CPU and CUDA, float32 and float64.

Each op here has a pure-torch twin of the same name and signature in :mod:`dhpe_fast.reference`.
"""

from dhpe_fast.ops.lbs import LbsBasis, lbs
from dhpe_fast.ops.rasterize import Fragments, rasterize
from dhpe_fast.ops.silhouette import silhouette

__all__ = ["Fragments", "LbsBasis", "lbs", "rasterize", "silhouette"]
