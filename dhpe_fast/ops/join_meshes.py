"""Several meshes in one image: the nearest surface shows, whichever mesh it belongs to.

There is nothing for a kernel to do: this is the function of :mod:`dhpe_fast.reference`, which needs no twin.
"""

from __future__ import annotations

from dhpe_fast.reference.join_meshes import JoinedMeshes, join_meshes

__all__ = ["JoinedMeshes", "join_meshes"]
