"""SplitMix64 against the published algorithm in whole numbers of any length."""

from __future__ import annotations

import torch

from dhpe_fast.data.splitmix import GOLDEN_GAMMA, mix64

MASK = 2**64 - 1


def mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_sequence_of_a_seed():
    """The first numbers of seed 1234567, as in the reference implementation (Vigna 2015)."""
    counters = 1234567 + GOLDEN_GAMMA * torch.arange(1, 4)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(x) & MASK for x in mix64(counters)] == expected
    assert [mixed(int(counter) & MASK) for counter in counters] == expected


def test_all_sixty_four_bits():
    numbers = torch.tensor([0, 1, -1, 2**62, -(2**63), 2**63 - 1])
    given = numbers.clone()
    assert [int(x) & MASK for x in mix64(numbers)] == [mixed(int(x) & MASK) for x in given]
    assert torch.equal(numbers, given)
