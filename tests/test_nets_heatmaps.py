"""Heat maps: targets by the formula, and joints read back from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dhpe_fast.nets import heatmap_targets, joints_from_heatmaps

SIDE, CELLS = 256, 32
ALL = torch.ones(1, 21, dtype=torch.bool)


def joints_px(n: int = 1, low: float = 0.0, high: float = SIDE) -> torch.Tensor:
    return low + (high - low) * torch.rand(n, 21, 2)


def test_targets_are_the_formula_at_the_centres_of_cells():
    joints = joints_px(2)
    targets = heatmap_targets(joints, ALL.expand(2, -1), CELLS, SIDE)
    assert targets.shape == (2, 21, CELLS, CELLS)
    for b, j, row, column in [(0, 0, 0, 0), (1, 20, 31, 3), (0, 9, 15, 16), (1, 4, 8, 31)]:
        x, y = (joints[b, j] - torch.tensor([8 * column + 4.0, 8 * row + 4.0])).tolist()
        assert targets[b, j, row, column].item() == pytest.approx(math.exp(-(x * x + y * y) / 25**2), abs=1e-6)


def test_the_width_follows_the_crop_unless_it_is_given():
    """25 px at 256; the same picture at half the size has the same map."""
    joints = joints_px()
    expected = heatmap_targets(joints, ALL, CELLS, SIDE)
    torch.testing.assert_close(heatmap_targets(joints / 2, ALL, CELLS, SIDE // 2), expected)
    torch.testing.assert_close(heatmap_targets(joints / 2, ALL, CELLS, SIDE // 2, 12.5), expected)


def test_joints_that_are_not_known_have_maps_of_zeros():
    joints, valid = joints_px(), ALL.clone()
    valid[0, 3] = False
    joints[0, 5] = torch.nan
    joints[0, 6] = torch.inf
    targets = heatmap_targets(joints, valid, CELLS, SIDE)
    empty = (targets == 0).flatten(2).all(-1)[0]
    assert empty.nonzero()[:, 0].tolist() == [3, 5, 6]
    assert targets.isfinite().all()


def test_a_joint_beyond_the_border_is_found_where_it_is_nearest():
    joints = torch.full((1, 21, 2), 100.0)
    joints[0, 0] = torch.tensor([-10.0, 300.0])
    found = joints_from_heatmaps(heatmap_targets(joints, ALL, CELLS, SIDE), SIDE)
    assert found[0, 0].tolist() == [4, 252]


@pytest.mark.parametrize("anchor", ["center", "corner"])
@pytest.mark.parametrize("size", [224, 256, 64])
def test_joints_come_back_to_half_a_cell(anchor, size):
    joints = joints_px(4, 0.1 * size, 0.9 * size)
    maps = heatmap_targets(joints, ALL.expand(4, -1), CELLS, size, anchor=anchor)
    found = joints_from_heatmaps(maps, size, anchor=anchor)
    assert (found - joints).abs().max() <= size / CELLS / 2 * 1.0001
    assert found.dtype == torch.float32


def test_subpixel_steps_find_them_within_a_twentieth_of_a_cell():
    joints = joints_px(4, 0.1 * SIDE, 0.9 * SIDE)
    maps = heatmap_targets(joints, ALL.expand(4, -1), CELLS, SIDE)
    found = joints_from_heatmaps(maps, SIDE, subpixel=True)
    assert (found - joints).abs().max() < 0.05 * SIDE / CELLS


def test_the_top_of_a_parabola_is_found_exactly():
    grid = torch.arange(8.0)
    maps = torch.zeros(1, 21, 8, 8) + 5 - (grid - 3.3) ** 2 - 0.5 * (grid[:, None] - 4.8) ** 2
    torch.testing.assert_close(
        joints_from_heatmaps(maps, 8, subpixel=True)[0, 0], torch.tensor([3.8, 5.3]), rtol=0, atol=1e-5
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([0.0, 1.0, 1e-38, 1e38]))
def test_the_subpixel_step_is_at_most_half_a_cell_and_none_at_the_border(seed, n, size):
    """Whatever the values: flat maps, opposite borders at once, numbers near the ends of float32."""
    maps = size * torch.randint(-2, 3, (1, 21, n, n), generator=torch.Generator().manual_seed(seed)).float()
    cell, moved = (joints_from_heatmaps(maps, n, subpixel=subpixel) for subpixel in (False, True))
    assert moved.isfinite().all()
    assert (moved - cell).abs().max() <= 0.5
    border = (cell < 1) | (cell > n - 1)
    assert (moved == cell)[border].all()


def test_upsampling_first_as_zimmermann_and_brox_finds_the_corner_of_the_same_cell():
    """TensorFlow 1's bilinear resizing from 32 to 256 reads the map at index / 8, clamped; the arg max is a pixel."""
    maps = torch.rand(1, 21, CELLS, CELLS, dtype=torch.float64).numpy()
    source = np.arange(SIDE) / 8
    low = source.astype(int)
    high, part = np.minimum(low + 1, CELLS - 1), source - low
    rows = maps[:, :, low] * (1 - part)[:, None] + maps[:, :, high] * part[:, None]
    large = rows[..., low] * (1 - part) + rows[..., high] * part
    best = large.reshape(21, -1).argmax(-1)
    expected = np.stack([best % SIDE, best // SIDE], -1) + 0.5
    np.testing.assert_allclose(joints_from_heatmaps(torch.from_numpy(maps), SIDE, anchor="corner")[0], expected)


def test_equal_values_give_the_first_cell_by_rows():
    assert joints_from_heatmaps(torch.ones(1, 21, 4, 4), 4)[0, 0].tolist() == [0.5, 0.5]


def test_no_gradient_flows():
    maps = torch.rand(2, 21, 4, 4, requires_grad=True)
    assert not joints_from_heatmaps(maps, 64, subpixel=True).requires_grad


def test_the_callers_tensors_stay():
    joints, valid = torch.full((1, 21, 2), torch.nan), ALL.clone()
    heatmap_targets(joints, valid, CELLS, SIDE)
    assert joints.isnan().all()
    assert valid.all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: joints_from_heatmaps(np.zeros((1, 21, 4, 4)), 64), TypeError, "heatmaps: expected a floating-point"),
        (lambda: joints_from_heatmaps(torch.zeros(1, 20, 4, 4), 64), ValueError, r"heatmaps: expected \(B, 21, n, n\)"),
        (lambda: joints_from_heatmaps(torch.zeros(1, 21, 4, 5), 64), ValueError, r"got \(1, 21, 4, 5\)"),
        (lambda: joints_from_heatmaps(torch.zeros(1, 21, 4, 4), 0), ValueError, "image_size: expected a positive"),
        (lambda: joints_from_heatmaps(torch.zeros(1, 21, 4, 4), 9, anchor="left"), ValueError, "anchor: expected"),
        (lambda: heatmap_targets(torch.zeros(1, 21, 3), ALL, 8, 64), ValueError, r"joints2d_px: expected \(B, 21, 2\)"),
        (lambda: heatmap_targets(torch.zeros(1, 21, 2).int(), ALL, 8, 64), TypeError, "joints2d_px: expected a float"),
        (lambda: heatmap_targets(joints_px(), ALL.float(), 8, 64), TypeError, "valid: expected a bool tensor"),
        (lambda: heatmap_targets(joints_px(2), ALL, 8, 64), ValueError, r"valid: expected \(2, 21\) as joints2d_px"),
        (lambda: heatmap_targets(joints_px(), ALL, 8, 64, 0.0), ValueError, "sigma_px: expected a positive number"),
        (lambda: heatmap_targets(joints_px(), ALL, 0, 64), ValueError, "size: expected a positive whole number"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
