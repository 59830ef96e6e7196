"""The hand: its model, its parameters, the cameras that see it, and its mirror image."""

from dhpe_fast.hand.camera import CropBox, Pinhole, WeakPerspective
from dhpe_fast.hand.mano_file import ModelFileError, UnsafePickleError, read_mano
from dhpe_fast.hand.mirror import HandView, mirror_view
from dhpe_fast.hand.model import HandMesh, HandModel
from dhpe_fast.hand.params import HandParams

__all__ = [
    "CropBox",
    "HandMesh",
    "HandModel",
    "HandParams",
    "HandView",
    "ModelFileError",
    "Pinhole",
    "UnsafePickleError",
    "WeakPerspective",
    "mirror_view",
    "read_mano",
]
