"""Fixtures shared by the whole suite: devices, seeds, and what a missing GPU means."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

SHARED_HANDS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hands"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Turns `needs_cuda` into a skip without a GPU, unless the run owes one (DHPE_REQUIRE_CUDA=1)."""
    if torch.cuda.is_available() or os.environ.get("DHPE_REQUIRE_CUDA") == "1":
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; set DHPE_REQUIRE_CUDA=1 to make this a failure")
    for item in items:
        if "needs_cuda" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device an op has kernels for."""
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["f32", "f64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype an op has kernels for."""
    return request.param


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_order():
    """Seeds each test alike, and gives the global generators back as they were."""
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)


@pytest.fixture(scope="session")
def hand_photographs() -> Path:
    """The folder of annotated real photographs, which is not part of the project."""
    if not SHARED_HANDS.is_dir():
        pytest.skip("the annotated photographs in ../shared/data/hands are not on this machine")
    return SHARED_HANDS
