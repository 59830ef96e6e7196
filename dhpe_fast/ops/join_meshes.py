"""Several meshes in one image: the nearest surface shows, whichever mesh it belongs to."""

from __future__ import annotations

from dhpe_fast.reference.join_meshes import JoinedMeshes, join_meshes

__all__ = ["JoinedMeshes", "join_meshes"]
