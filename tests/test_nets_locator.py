"""The locator's maps: what a cell says, what mirrored maps say, and what an untrained network says."""

from __future__ import annotations

import math

import pytest
import torch

from dhpe_fast.nets.locate import candidates, without_doubles
from dhpe_fast.nets.locator import Locator, LocatorMaps


def empty_maps(rows: int = 4, columns: int = 6) -> LocatorMaps:
    """Nothing anywhere; every cell's box is a square of 64 pixels about the cell's centre."""
    one, two = torch.zeros(1, 1, rows, columns), torch.zeros(1, 2, rows, columns)
    return LocatorMaps(one - 10, one, two, two.clone())


def test_a_cell_tells_a_box_by_its_offset_and_size():
    maps = empty_maps()
    maps.offset[0, :, 1, 2] = torch.tensor((0.25, -0.5))  # of 8 pixels
    maps.log_size[0, :, 1, 2] = torch.tensor((math.log(0.5), math.log(0.25)))  # of 64 pixels
    # Cell (1, 2) has its centre at x = 20, y = 12; the box is 32 wide and 16 high about (22, 8).
    assert maps.boxes_px()[0, :, 1, 2].tolist() == pytest.approx([6, 0, 38, 16])


def test_a_peak_is_found_once_with_its_side():
    maps = empty_maps()
    maps.hand[0, 0, 1, 2], maps.hand[0, 0, 1, 3] = 2.0, 1.0  # a hand, and its slope
    maps.left[0, 0, 1, 2] = -0.5
    maps.hand[0, 0, 3, 5], maps.left[0, 0, 3, 5] = 3.0, 0.5
    [found] = candidates(maps)
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-2))])
    assert found.left.tolist() == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))])
    assert found.boxes_px[1].tolist() == pytest.approx([20 - 32, 12 - 32, 20 + 32, 12 + 32])


def test_without_any_chance_nothing_is_proposed():
    [found] = candidates(empty_maps())
    assert found.boxes_px.shape == (0, 4)


def test_of_boxes_of_one_hand_the_surest_stays():
    maps = empty_maps(8, 40)
    maps.hand[0, 0, 3, 3], maps.hand[0, 0, 3, 5], maps.hand[0, 0, 3, 30] = 1.0, 2.0, 0.5
    kept = without_doubles(candidates(maps)[0])
    assert kept.scores.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.5))])
    assert kept.boxes_px[:, 0].tolist() == pytest.approx([5.5 * 8 - 32, 30.5 * 8 - 32])


def test_mirrored_maps_tell_the_mirrored_boxes_of_the_other_side():
    torch.manual_seed(0)
    maps = LocatorMaps(*(torch.randn(1, channels, 3, 5) for channels in (1, 1, 2, 2)))
    mirrored, width = maps.mirrored(), 5 * 8
    left, top, right, bottom = maps.boxes_px()[0].flip(2)
    torch.testing.assert_close(mirrored.boxes_px()[0], torch.stack([width - right, top, width - left, bottom]))
    torch.testing.assert_close(mirrored.hand[0, 0], maps.hand[0, 0].flip(1))
    torch.testing.assert_close(mirrored.left[0, 0], -maps.left[0, 0].flip(1))


def test_an_untrained_network_expects_few_hands_about_each_cell():
    network = Locator(4).eval()
    with torch.no_grad():
        maps = network(torch.rand(2, 3, 64, 96))
    assert maps.hand.shape == maps.left.shape == (2, 1, 8, 12)
    assert maps.offset.shape == maps.log_size.shape == (2, 2, 8, 12)
    assert float(maps.hand.sigmoid().mean()) < 0.1
    assert float(maps.left.abs().max()) == float(maps.offset.abs().max()) == float(maps.log_size.abs().max()) == 0


def test_the_spec_makes_the_same_network():
    network = Locator(6)
    again = Locator.from_spec(network.spec())
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }


def test_the_shipped_size_is_what_a_processor_can_run():
    assert 0.5e6 < sum(p.numel() for p in Locator().parameters()) < 2e6


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 60)])
def test_other_pictures_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 32"):
        Locator(4)(torch.zeros(shape))


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="width"):
        Locator(5)
