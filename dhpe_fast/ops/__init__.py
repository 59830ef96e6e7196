"""The ops: tensors in, tensors out, on CPU and CUDA, float32 and float64; compiled, but for `sample_texture`.

Each op here has a pure-torch twin of the same name and signature in :mod:`dhpe_fast.reference`.
"""

from dhpe_fast.ops.interpolate import interpolate
from dhpe_fast.ops.lbs import LbsBasis, lbs
from dhpe_fast.ops.rasterize import Fragments, rasterize
from dhpe_fast.ops.sample_texture import sample_texture
from dhpe_fast.ops.silhouette import silhouette
from dhpe_fast.ops.visibility_gradient import visibility_gradient

__all__ = [
    "Fragments",
    "LbsBasis",
    "interpolate",
    "lbs",
    "rasterize",
    "sample_texture",
    "silhouette",
    "visibility_gradient",
]
