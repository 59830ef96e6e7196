"""Batches of an epoch: the same whatever the number of processes, and wherever a run starts again."""

from __future__ import annotations

import numpy as np
import pytest

from dhpe_fast.data import EpochSampler


def test_an_epoch_is_a_permutation_of_its_own():
    sampler = EpochSampler(103, seed=5, batch_size=10)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == sampler.batches_per_epoch == 10
        assert {key[0] for batch in batches for key in batch} == {epoch}
        epochs.append([key[1] for batch in batches for key in batch])
        assert len(set(epochs[-1])) == 100, "no item twice; three of 103 are left out"
    assert epochs[0] != epochs[1]
    other_seed = [key[1] for batch in EpochSampler(103, seed=6, batch_size=10) for key in batch]
    assert other_seed != epochs[0]


@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_are_slices_of_the_batches_of_one_process(world_size, drop_last):
    alone = EpochSampler(40, 1, batch_size=12, drop_last=drop_last)
    ranks = [EpochSampler(40, 1, rank, world_size, 12, drop_last=drop_last) for rank in range(world_size)]
    for sampler in (alone, *ranks):
        sampler.set_epoch(3)
    shares = [list(sampler) for sampler in ranks]
    assert [len(share) for share in shares] == [len(sampler) for sampler in ranks]
    for number, batch in enumerate(alone):
        together = [key for share in shares if number < len(share) for key in share[number]]
        assert together == batch


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_resumes_in_the_middle_of_an_epoch(rank):
    sampler = EpochSampler(50, 2, rank, 2, 8)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.set_epoch(4, first_batch=4)
    assert list(sampler) == whole[4:]
    assert len(sampler) == 2
    sampler.set_epoch(4, first_batch=6)
    assert list(sampler) == []


def test_evaluation_sees_every_item_in_order():
    sampler = EpochSampler(10, batch_size=4, shuffle=False, drop_last=False)
    assert list(sampler) == [
        [(0, 0), (0, 1), (0, 2), (0, 3)],
        [(0, 4), (0, 5), (0, 6), (0, 7)],
        [(0, 8), (0, 9)],
    ]
    assert len(sampler) == 3


def test_an_iteration_keeps_the_epoch_it_began_with():
    sampler = EpochSampler(8, batch_size=4)
    batches = iter(sampler)
    first = next(batches)
    sampler.set_epoch(1)
    assert {epoch for epoch, _ in first + next(batches)} == {0}


def test_items_are_shuffled_evenly():
    first = [EpochSampler(4, seed, batch_size=4).order(0)[0] for seed in range(400)]
    assert np.bincount(first).min() > 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": -1}, "length: expected a whole number >= 0"),
        ({"length": 5, "batch_size": 6}, "batch_size: 6 is more than the 5 items"),
        ({"length": 50, "batch_size": 9, "world_size": 2}, "expected a multiple of world_size 2, got 9"),
        ({"length": 50, "rank": 2, "world_size": 2}, "rank, world_size: .* got 2, 2"),
        ({"length": 50, "seed": -1}, "seed: "),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(**arguments)


@pytest.mark.parametrize(("epoch", "first", "message"), [(-1, 0, "epoch: "), (0, 11, "first_batch: expected 0 to 10")])
def test_wrong_positions_are_named(epoch, first, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(100, batch_size=10).set_epoch(epoch, first)
