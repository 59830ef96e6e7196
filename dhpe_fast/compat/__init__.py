"""Drop-ins for other packages: their names, arguments and units over this package's kernels.

Change one import and keep the rest of the project:

* ``from dhpe_fast.compat.manopth import ManoLayer`` for ``from manopth.manolayer import ManoLayer``
* ``from dhpe_fast.compat import smplx`` for ``import smplx`` (hands only)
* ``from dhpe_fast.compat import neural_renderer as nr`` for ``import neural_renderer as nr``

What differs on purpose is listed in ``docs/drop-ins.md``.
"""
