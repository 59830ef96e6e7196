"""Torch's settings within a solver, and that every thread of the caller finds its own as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dhpe_fast.torch_settings import plain_torch

WAIT_S = 30.0


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    """In the test's own thread, and in those that torch meets later."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def within(entered: threading.Event, may_leave: threading.Event) -> Callable[[], tuple[int, int]]:
    """A visit that ends when it may: its number of threads inside and afterwards."""

    def visit() -> tuple[int, int]:
        with plain_torch():
            entered.set()
            assert may_leave.wait(WAIT_S)
            inside = torch.get_num_threads()
        return inside, torch.get_num_threads()

    return visit


def test_one_thread_inside_and_as_before_outside():
    with plain_torch():
        assert torch.get_num_threads() == 1
        with plain_torch():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_overlapping_visits_give_each_thread_its_own_number_back(first_leaves_first):
    """The caller's thread has 3; a new one arrives while it is inside, where torch tells it 1."""
    entered, may_leave = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with plain_torch():
            other = pool.submit(within(entered, may_leave))
            assert entered.wait(WAIT_S)
            if not first_leaves_first:
                may_leave.set()
                assert other.result(WAIT_S) == (1, 3)
        assert torch.get_num_threads() == 3
        may_leave.set()
        assert other.result(WAIT_S) == (1, 3)
        assert pool.submit(torch.get_num_threads).result(WAIT_S) == 3
    assert torch.get_num_threads() == 3


def test_threads_with_different_numbers_keep_them():
    entered, may_leave = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.set_num_threads, 2).result(WAIT_S)
        other = pool.submit(within(entered, may_leave))
        assert entered.wait(WAIT_S)
        with plain_torch():
            may_leave.set()
            assert other.result(WAIT_S) == (1, 2)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3


def test_an_error_inside_gives_the_number_back():
    with pytest.raises(ZeroDivisionError), plain_torch():
        _ = 1 / 0
    assert torch.get_num_threads() == 3
