"""Pure-torch twins of every op: the readable truth the kernels are tested against.

Each twin has the name, the arguments and the defaults of its op in :mod:`dhpe_fast.ops`, is differentiable by
autograd, and is written from the formula, not from the kernel.
"""

from dhpe_fast.reference.lbs import LbsBasis, lbs

__all__ = ["LbsBasis", "lbs"]
