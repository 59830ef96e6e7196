"""Iterations as CUDA graphs: what a step launches is recorded once and replayed, without Python or launch costs.

At batch 1 a full iteration of Eq. 11 is some four hundred small kernels, and launching them one by one takes longer
than they run. A graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(state, constants) -> the next state: as many tensors, of the same shapes and types."""

WARM_UP_STEPS = 3
"""Run before the recording, so that libraries choose their kernels and allocate their workspaces outside of it."""


class GraphedIteration:
    """Runs a step again and again; on CUDA it is recorded in a graph the first time it sees tensors of such shapes.

    A step that is to be recorded must not wait for the device (``.item()``, ``bool(tensor)``, copies to the CPU), and
    must leave state and constants as they are. Where recording is not possible, steps run one by one, and ``reason``
    says why; for tensors of these shapes it is tried again only if memory was short. State and constants are copied
    into memory of the graph's own: the same graph serves other images and hands of the same shapes, one thread at a
    time. Tensors that the step captures from elsewhere, such as weights, must stay where they are.

    Attributes:
        reason: why the steps of the last call were not replayed; None if they were.
    """

    def __init__(self, step: Step) -> None:
        """Keeps the step; nothing runs yet."""
        self.reason: str | None = None
        self._step = step
        self._graph: _Graph | None = None
        self._refused: dict[tuple[object, ...], str] = {}

    def __call__(
        self,
        state: tuple[Tensor, ...],
        constants: tuple[Tensor, ...] = (),
        iterations: int = 1,
        watch: Callable[[tuple[Tensor, ...]], None] = lambda state: None,
    ) -> tuple[Tensor, ...]:
        """The state after so many steps, in memory that is the caller's.

        Args:
            state: where to start.
            constants: what the steps take besides.
            iterations: how many steps.
            watch: is called with the state after each step, and has to copy what it wants to keep.

        Raises:
            ValueError: if a step returns other shapes or types than it was given, or `iterations` is negative.
        """
        if iterations < 0:
            raise ValueError(f"iterations: expected a number >= 0, got {iterations}")
        state, constants = tuple(x.detach() for x in state), tuple(x.detach() for x in constants)
        if iterations == 0:
            return tuple(x.clone() for x in state)
        graph = self._graph_for(state, constants)
        if graph is None:
            for _ in range(iterations):
                state = _checked(self._step(state, constants), state)
                watch(state)
            return state
        return graph.run(state, constants, iterations, watch)

    def _graph_for(self, state: tuple[Tensor, ...], constants: tuple[Tensor, ...]) -> _Graph | None:
        tensors = (*state, *constants)
        elsewhere = sorted({str(x.device) for x in tensors if x.device.type != "cuda"})
        if elsewhere:
            self.reason = f"CUDA graphs need all tensors on a CUDA device, some are on: {', '.join(elsewhere)}"
            return None
        key = tuple((x.shape, x.dtype, x.device) for x in tensors)
        self.reason = self._refused.get(key)
        if self.reason is not None:
            return None
        if self._graph is None or self._graph.key != key:
            self._graph = None  # its memory is free for the next one
            try:
                self._graph = _Graph(self._step, state, constants, key)
            except torch.OutOfMemoryError as error:  # what fills the memory now may be gone at the next call
                self.reason = f"no memory to record the step in a CUDA graph: {str(error).splitlines()[0]}"
            except RuntimeError as error:
                self.reason = f"the step cannot be recorded in a CUDA graph: {str(error).splitlines()[0]}"
                self._refused[key] = self.reason
        return self._graph


class _Graph:
    """One recording, and the memory it reads and writes."""

    def __init__(
        self, step: Step, state: tuple[Tensor, ...], constants: tuple[Tensor, ...], key: tuple[object, ...]
    ) -> None:
        self.key = key
        self._state, self._constants = tuple(x.clone() for x in state), tuple(x.clone() for x in constants)
        device = self._state[0].device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                _checked(step(self._state, self._constants), self._state)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(self._graph):
            for kept, value in zip(self._state, step(self._state, self._constants), strict=True):
                kept.copy_(value)

    def run(
        self,
        state: tuple[Tensor, ...],
        constants: tuple[Tensor, ...],
        iterations: int,
        watch: Callable[[tuple[Tensor, ...]], None],
    ) -> tuple[Tensor, ...]:
        for kept, value in zip((*self._state, *self._constants), (*state, *constants), strict=True):
            kept.copy_(value)
        for _ in range(iterations):
            self._graph.replay()
            watch(self._state)
        return tuple(x.clone() for x in self._state)


def _checked(new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    given, expected = ([(tuple(x.shape), x.dtype) for x in tensors] for tensors in (new, old))
    if given != expected:
        raise ValueError(f"step: expected to get the next state of {expected}, got {given}")
    return new
