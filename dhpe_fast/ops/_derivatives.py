"""What the ops' derivatives have in common: reverse mode, once; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_libraries = []  # torch drops what was registered through a library that is gone


def register_derivative(
    op: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    *,
    name: str | None = None,
    has_twin: bool = True,
) -> None:
    """Makes `op` differentiable by ``torch.library.register_autograd``, and `_{op}_backward` a dead end.

    Args:
        op: name of the op in torch.ops.dhpe_fast.
        backward: as for ``register_autograd``; calls `_{op}_backward`.
        setup_context: as for ``register_autograd``.
        name: of the public function; None is `op`.
        has_twin: whether ``dhpe_fast.reference`` computes what is refused here.
    """
    name = name or op
    twin = f"; its twin dhpe_fast.reference.{name} has" if has_twin else ""

    def refuse_double_backward(ctx, *grads):
        raise NotImplementedError(f"{name} is differentiable once: it has no kernel for second derivatives{twin}")

    no_tangents = f"{name} has no kernel for forward-mode derivatives (torch.func.jvp, forward_ad){twin}"
    for kernel, function, setup in ((op, backward, setup_context), (f"_{op}_backward", refuse_double_backward, None)):
        library = _ReverseMode(no_tangents)
        torch.library.register_autograd(f"dhpe_fast::{kernel}", function, setup_context=setup, lib=library)
        _libraries.append(library)


def needs_no_derivative(*tensors: Tensor) -> bool:
    """Whether nobody can ask for a derivative by these tensors, so that an op may skip what only a gradient needs.

    Within a transform of torch.func or a trace, a tensor does not tell: the answer is no.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None:  # make_fx, jit.trace
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


class _ReverseMode(torch.library.Library):
    """Puts a refusal of forward mode before the autograd kernel that is registered through it.

    The kernels of ``register_autograd`` know reverse mode only and take tensors with tangents for constants: the
    derivative would come out as zero, silently. The refusal stands in the kernel, not in the public functions, so that
    it also meets compiled programs and every level of nested transforms. Outside of forward mode it reads one integer.
    """

    def __init__(self, refusal: str) -> None:
        super().__init__("dhpe_fast", "FRAGMENT")
        self.refusal = refusal

    def impl(self, op_name: str, fn: Callable[..., Any], dispatch_key: str = "", **options: Any) -> None:
        def kernel(keyset, *args):
            if forward_ad._current_level >= 0 and any(_has_tangent(value) for value in args):
                raise NotImplementedError(self.refusal)
            return fn(keyset, *args)

        super().impl(op_name, kernel, dispatch_key, **options)


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None
