"""Iterations as CUDA graphs: the same numbers as step by step where there is a GPU, and clear words elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dhpe_fast.refinement.cuda_graph import WARM_UP_STEPS, GraphedIteration


def half_way(state: tuple[Tensor, ...], constants: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Half of the way to a target, and a counter."""
    place, count = state
    (target,) = constants
    return place + 0.5 * (target - place), count + 1


def start(device: str | torch.device = "cpu") -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return (torch.zeros(3, device=device), torch.zeros((), dtype=torch.int64, device=device)), (
        torch.tensor([1.0, 2.0, -4.0], device=device),
    )


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_steps_follow_one_another(device, iterations):
    iteration = GraphedIteration(half_way)
    (place, count), constants = start(device)
    for _ in range(2):  # the second call replays what the first one recorded
        found, steps = iteration((place, count), constants, iterations)
        torch.testing.assert_close(found, (1 - 0.5**iterations) * constants[0])
        assert int(steps) == iterations
    assert torch.equal(place, torch.zeros(3, device=device))
    assert found.data_ptr() != place.data_ptr()


def test_on_the_cpu_it_says_why_nothing_is_replayed():
    iteration = GraphedIteration(half_way)
    assert iteration.reason is None
    iteration(*start())
    assert iteration.reason == "CUDA graphs need all tensors on a CUDA device, some are on: cpu"


def test_a_step_that_changes_shapes_is_refused(device):
    def growing(state, constants):
        return (torch.cat([state[0], state[0]]), state[1])

    with pytest.raises(ValueError, match=r"step: .*\(3,\).*\(6,\)"):
        GraphedIteration(growing)(*start(device))
    with pytest.raises(ValueError, match=r"iterations: .* -1"):
        GraphedIteration(half_way)(*start(device), iterations=-1)


@pytest.mark.needs_cuda
def test_other_shapes_are_recorded_anew_and_other_values_are_not():
    recorded = []

    def step(state, constants):
        recorded.append(tuple(state[0].shape))
        return half_way(state, constants)

    iteration = GraphedIteration(step)
    (place, count), (target,) = start("cuda")
    iteration((place, count), (target,), 5)
    runs = len(recorded)
    found, _ = iteration((place, count), (3 * target,), 2)
    assert len(recorded) == runs
    assert iteration.reason is None
    torch.testing.assert_close(found, 0.75 * 3 * target)
    iteration((place.repeat(2), count), (target.repeat(2),), 1)
    assert len(recorded) == 2 * runs


@pytest.mark.needs_cuda
def test_a_step_that_waits_for_the_device_runs_eagerly_and_the_reason_is_kept():
    def waiting(state, constants):
        assert state[0].sum().item() < 100
        return half_way(state, constants)

    iteration = GraphedIteration(waiting)
    for _ in range(2):
        found, _ = iteration(*start("cuda"), iterations=2)
        torch.testing.assert_close(found, 0.75 * start("cuda")[1][0])
        assert iteration.reason.startswith("the step cannot be recorded in a CUDA graph: ")


@pytest.mark.needs_cuda
def test_what_lacked_memory_is_tried_again():
    runs = []

    def hungry(state, constants):
        runs.append(len(runs))
        if len(runs) == 1:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return half_way(state, constants)

    iteration = GraphedIteration(hungry)
    found, _ = iteration(*start("cuda"), iterations=2)
    torch.testing.assert_close(found, 0.75 * start("cuda")[1][0])
    assert iteration.reason.startswith("no memory to record the step in a CUDA graph: ")
    found, _ = iteration(*start("cuda"), iterations=2)
    assert iteration.reason is None
    assert len(runs) == 1 + 2 + WARM_UP_STEPS + 1
    torch.testing.assert_close(found, 0.75 * start("cuda")[1][0])
