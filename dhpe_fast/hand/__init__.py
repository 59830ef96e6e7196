"""The hand: its model, its parameters, and the cameras that see it."""

from dhpe_fast.hand.mano_file import ModelFileError, UnsafePickleError, read_mano
from dhpe_fast.hand.model import HandMesh, HandModel
from dhpe_fast.hand.params import HandParams

__all__ = ["HandMesh", "HandModel", "HandParams", "ModelFileError", "UnsafePickleError", "read_mano"]
