"""Loads the compiled libraries, once; everything that touches `torch.ops.dhpe_fast` imports this module first."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

MINIMUM_TORCH = (2, 10)


class BuildError(ImportError):
    """The compiled part of dhpe-fast is missing or does not fit this torch; the message says what to do."""


def _check_torch_version() -> None:
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < MINIMUM_TORCH:
        raise BuildError(
            f"dhpe-fast needs torch {MINIMUM_TORCH[0]}.{MINIMUM_TORCH[1]} or later and found {torch.__version__}: "
            "run `pip install --upgrade torch`"
        )


def _load_cpu():
    try:
        from dhpe_fast import _C
    except ImportError as error:
        raise BuildError(
            f"dhpe-fast's compiled module could not be loaded ({error}): reinstall it with "
            "`pip install --force-reinstall --no-deps dhpe-fast`, or from a checkout with `pip install .`"
        ) from error
    return _C


def _load_cuda() -> str | None:
    """Loads the CUDA kernels where torch has CUDA; returns why they are not there, or None."""
    if torch.version.cuda is None:
        return "this torch is a CPU build"
    library = Path(build.__file__).with_name("_cuda.so")
    if not library.exists():
        return "dhpe-fast was built without nvcc"
    try:
        # The library is built against any torch, also a CPU one, so it does not name libtorch_cuda as its dependency:
        # the symbols must be global before it is opened.
        ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"), mode=ctypes.RTLD_GLOBAL)
        torch.ops.load_library(library)
    except OSError as error:
        return f"dhpe-fast's CUDA library could not be loaded ({error})"
    return None


def check_kernels(name: str, tensor: Tensor) -> None:
    """Raises BuildError if `tensor` is on a CUDA device for which no kernels were loaded."""
    if tensor.is_cuda and cuda_missing_because is not None:
        raise BuildError(
            f"{name} is on {tensor.device}, but dhpe-fast runs on the CPU only, as {cuda_missing_because}: pass CPU "
            "tensors, or install a torch with CUDA and then build dhpe-fast beside it, with nvcc on the PATH, by "
            "`DHPE_CUDA=ON pip install --force-reinstall --no-deps .`"
        )


_check_torch_version()
build = _load_cpu()
cuda_missing_because = _load_cuda()
