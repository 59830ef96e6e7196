"""Torch as small solvers need it, whatever the caller has set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

_lock = threading.Lock()
_users = 0
_threads_before = 1
"""Of the thread that came when nobody else was within `plain_torch`."""


class _Visit(threading.local):
    """How deep a thread is within `plain_torch`, and how many threads its work had before."""

    depth = 0
    threads_before = 1


_visit = _Visit()


def full_precision(device: torch.device) -> AbstractContextManager:
    """Matrix products in the type of their factors; autocast would round them to a half type, by three digits."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def out_of_half(
    tensor: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What a layer before made a half type because of autocast, in the type of the constants that it meets."""
    is_half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.to(dtype) if is_half and torch.is_autocast_enabled(tensor.device.type) else tensor


@contextmanager
def plain_torch() -> Iterator[None]:
    """No inference mode, no gradients unless asked for, no autocast, factory calls on the CPU, one thread.

    What is cached in here serves any later call, in any mode. Matrices of a solver are far too small to share among
    threads, and on a busy machine waiting for the other threads costs a hundred times the work.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        # Only where it changes something: within `torch.device`, every call into torch takes a detour through Python.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            stack.enter_context(full_precision(torch.device(kind)))
        stack.enter_context(_one_thread())
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """Each thread of the caller has a number of its own, so each gets its own back.

    A thread that torch meets for the first time takes the number that was set last anywhere: while others are in here,
    a count of one is theirs, and what the first of them had is given back instead.
    """
    global _users, _threads_before
    if _visit.depth == 0:
        with _lock:
            before = torch.get_num_threads()
            if _users == 0:
                _threads_before = before
            _visit.threads_before = _threads_before if before == 1 else before
            _users += 1
            torch.set_num_threads(1)
    _visit.depth += 1
    try:
        yield
    finally:
        _visit.depth -= 1
        if _visit.depth == 0:
            with _lock:
                _users -= 1
                torch.set_num_threads(_visit.threads_before)
