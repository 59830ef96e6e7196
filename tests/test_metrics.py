"""Metrics: hand-computed values, SciPy as the oracle, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation

from dhpe_fast.metrics import mask_iou, mpjpe, pa_mpjpe_mm, procrustes_align


def random_points(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, 3))


def test_a_moved_turned_and_scaled_copy_is_aligned_exactly():
    target = random_points(21)
    turn = Rotation.from_euler("xyz", (0.4, -2.1, 1.3)).as_matrix()
    source = 0.3 * target @ turn.T + (5.0, -2.0, 7.0)
    np.testing.assert_allclose(procrustes_align(source, target), target, atol=1e-13)
    assert pa_mpjpe_mm(source, target) < 1e-9


def test_the_alignment_equals_scipys_where_no_reflection_is_needed():
    target = random_points(21)
    source = target + 0.1 * random_points(21, seed=1)
    a, b = source - source.mean(0), target - target.mean(0)
    turn, correlation = orthogonal_procrustes(a, b)
    assert np.linalg.det(turn) > 0
    expected = a @ turn * (correlation / (a**2).sum()) + target.mean(0)
    np.testing.assert_allclose(procrustes_align(source, target), expected, atol=1e-12)


def test_no_similarity_near_the_result_is_better():
    source, target = random_points(21), random_points(21, seed=1)
    best = ((procrustes_align(source, target) - target) ** 2).sum()
    aligned = procrustes_align(source, target)
    centre = aligned.mean(0)
    rng = np.random.default_rng(2)
    for _ in range(50):
        turn = Rotation.from_rotvec(rng.normal(0, 0.03, 3)).as_matrix()
        moved = (aligned - centre) @ turn.T * rng.normal(1, 0.02) + centre + rng.normal(0, 0.02, 3)
        assert ((moved - target) ** 2).sum() > best


def test_a_mirrored_hand_is_not_aligned_by_a_reflection():
    right = random_points(21)
    left = right * (-1, 1, 1)
    aligned = procrustes_align(left, right)
    assert np.abs(aligned - right).max() > 0.1
    # The handedness stays that of the source: a reflection would turn the sign of this volume.
    assert np.linalg.det(aligned[1:4] - aligned[0]) * np.linalg.det(left[1:4] - left[0]) > 0


def test_without_scale_the_size_stays():
    target = random_points(21)
    aligned = procrustes_align(2 * target, target, scale=False)
    np.testing.assert_allclose(aligned - target.mean(0), 2 * (target - target.mean(0)), atol=1e-12)


def test_a_single_point_moves_to_the_mean_of_the_target():
    target = random_points(21)
    np.testing.assert_allclose(procrustes_align(np.ones((21, 3)), target), np.tile(target.mean(0), (21, 1)))


def test_distances_of_known_points():
    truth = np.zeros((2, 2, 3))
    predicted = np.array([[[3.0, 4, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]])
    np.testing.assert_array_equal(mpjpe(predicted, truth), (3.0, 0.0))


def test_the_aligned_error_is_in_millimetres():
    # Three points on a line, the middle one 3 mm off it: the optimum moves all by a third of it, turns none.
    truth = np.array([[-1.0, 0, 0], [1, 0, 0], [0, 0, 0]])
    predicted = truth + np.array([[0, 0, 0], [0, 0, 0], [0, 0.003, 0]])
    assert pa_mpjpe_mm(predicted, truth) == pytest.approx((1 + 1 + 2) / 3, rel=1e-4)


def test_batches_equal_single_calls_and_tensors_equal_arrays():
    source, target = random_points(3, 2, 21), random_points(3, 2, 21, seed=1)
    error = pa_mpjpe_mm(torch.from_numpy(source), torch.from_numpy(target))
    assert isinstance(error, torch.Tensor)
    assert error.dtype == torch.float64
    assert error.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            assert error[i, j] == pytest.approx(float(pa_mpjpe_mm(source[i, j], target[i, j])), rel=1e-12)
    assert pa_mpjpe_mm(np.zeros((0, 21, 3)), np.zeros((0, 21, 3))).shape == (0,)


def test_float32_points_far_away_are_computed_in_float64():
    target = random_points(21)
    source = (target + 1000).astype(np.float32)
    assert pa_mpjpe_mm(source, source - np.float32(1000)) < 1e-3


def test_iou_of_known_masks():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[:, :2] = True, True
    assert mask_iou(a, b) == pytest.approx(4 / 12)
    assert mask_iou(a, a) == 1
    assert mask_iou(a, ~a) == 0
    empty = np.zeros((2, 4, 4), bool)
    np.testing.assert_array_equal(mask_iou(empty, empty), (1, 1))
    assert mask_iou(torch.from_numpy(a), torch.from_numpy(b)).item() == pytest.approx(4 / 12)


@pytest.mark.parametrize("function", [procrustes_align, mpjpe, pa_mpjpe_mm])
def test_bad_points_are_refused_by_name(function):
    good = random_points(21)
    with pytest.raises(ValueError, match=r"\(20, 3\)"):
        function(good, good[:20])
    with pytest.raises(ValueError, match="N >= 1"):
        function(good[:0], good[:0])
    with pytest.raises(TypeError, match="list"):
        function(good.tolist(), good)
    hostile = good.copy()
    hostile[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 coordinates are not finite"):
        function(good, hostile)


def test_bad_masks_are_refused_by_name():
    mask = np.zeros((4, 4), bool)
    with pytest.raises(TypeError, match="truth: expected a bool mask"):
        mask_iou(mask, mask.astype(float))
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        mask_iou(mask[:3], mask)
