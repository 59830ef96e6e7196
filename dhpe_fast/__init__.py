"""dhpe-fast: a dense 3D hand from one RGB image.

    >>> import dhpe_fast
    >>> hand = dhpe_fast.fit(image, keypoints=joints2d_px)      # the job as a whole
    >>> model = dhpe_fast.HandModel.default()                   # or its parts

The names below are loaded at their first use: `import dhpe_fast` costs nothing, and `dhpe-fast doctor` can
speak where the compiled part is missing. Frames, units and joint orders: :mod:`dhpe_fast.conventions`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dhpe_fast.fit import fit
    from dhpe_fast.hand import HandModel, HandParams
    from dhpe_fast.hand_fit import HandFit
    from dhpe_fast.nets import DHPE
    from dhpe_fast.video import fit_video

__all__ = ["DHPE", "HandFit", "HandModel", "HandParams", "__version__", "fit", "fit_video"]

_HOME = {
    "DHPE": "dhpe_fast.nets",
    "HandFit": "dhpe_fast.hand_fit",
    "HandModel": "dhpe_fast.hand",
    "HandParams": "dhpe_fast.hand",
    "fit": "dhpe_fast.fit",
    "fit_video": "dhpe_fast.video",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `dhpe_fast.fit` the function where an import of the submodule would bind the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.fit if name == "fit" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
