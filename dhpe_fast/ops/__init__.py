"""The ops: tensors in, tensors out, on CPU and CUDA, float32 and float64; compiled, but for `sample_texture` and
`join_meshes`.

Each op here has a pure-torch twin of the same name and signature in :mod:`dhpe_fast.reference`; `join_meshes`, which is
plain torch, is the same function in both. What holds for all:

Types. Half types (float16, bfloat16) are computed in float32. They may stand beside float32, and then the result is
float32; alone they give a result of their own type. float64 stands beside float64 only.

Autocast. The same computation: no op, and no method of :class:`dhpe_fast.hand.HandModel`, works in a half type, as a
mesh in bfloat16 is off by millimetres and pixels. What layers before made half is cast up, and results are float32,
like those of torch's own ops that autocast keeps in float32. Leaves of half types receive gradients of their type. As
torch recommends, call backward outside of autocast: within it, the matrix products of the hand model (not the ops)
are differentiated in a half type.

Derivatives. In reverse mode, once. Second derivatives and those of forward mode (torch.func.jvp, jacfwd, linearize,
torch.autograd.forward_ad) raise a NotImplementedError, which names the twin where that has them. torch.func.grad,
vjp and jacrev do not work with ops of torch.library, which torch says by a RuntimeError: use torch.autograd.grad.
The ops refine_* take gradients themselves and have none.

Tracing. Every op is one node of a graph, forward and backward, for torch.compile (fullgraph=True) and torch.export,
with any size free to vary but an image's. A process that loads an exported program imports dhpe_fast.ops first.
"""

from dhpe_fast.ops.interpolate import interpolate
from dhpe_fast.ops.join_meshes import JoinedMeshes, join_meshes
from dhpe_fast.ops.lbs import LbsBasis, lbs
from dhpe_fast.ops.rasterize import Fragments, rasterize
from dhpe_fast.ops.refine import (
    Descent,
    EnergyWeights,
    FeatureTerm,
    PriorTables,
    RefineEnergy,
    RefineModel,
    SparseMatrix,
    refine_descend,
    refine_gradient,
    refine_mask,
)
from dhpe_fast.ops.sample_texture import sample_texture
from dhpe_fast.ops.silhouette import silhouette
from dhpe_fast.ops.visibility_gradient import visibility_gradient

__all__ = [
    "Descent",
    "EnergyWeights",
    "FeatureTerm",
    "Fragments",
    "JoinedMeshes",
    "LbsBasis",
    "PriorTables",
    "RefineEnergy",
    "RefineModel",
    "SparseMatrix",
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
