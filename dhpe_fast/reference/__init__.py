"""Pure-torch twins of every op: the readable truth the kernels are tested against.

Each twin has the name, the arguments and the defaults of its op in :mod:`dhpe_fast.ops`, is differentiable by
autograd, and is written from the formula, not from the kernel. `join_meshes` is no twin but the op itself.
"""

from dhpe_fast.reference.interpolate import interpolate
from dhpe_fast.reference.join_meshes import JoinedMeshes, join_meshes
from dhpe_fast.reference.lbs import LbsBasis, lbs
from dhpe_fast.reference.rasterize import Fragments, rasterize
from dhpe_fast.reference.refine import refine_descend, refine_gradient, refine_mask
from dhpe_fast.reference.sample_texture import sample_texture
from dhpe_fast.reference.silhouette import silhouette
from dhpe_fast.reference.visibility_gradient import visibility_gradient

__all__ = [
    "Fragments",
    "JoinedMeshes",
    "LbsBasis",
    "interpolate",
    "join_meshes",
    "lbs",
    "rasterize",
    "refine_descend",
    "refine_gradient",
    "refine_mask",
    "sample_texture",
    "silhouette",
    "visibility_gradient",
]
