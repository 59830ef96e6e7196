"""Metrics: hand-computed values, loops and SciPy as the oracles, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation

from dhpe_fast.metrics import (
    ALIGNMENTS,
    AUC_THRESHOLDS,
    SegmentationCounts,
    align_centroid_scale,
    align_root,
    align_root_scale,
    auc,
    epe,
    f_score,
    fingertip_distances_mm,
    jitter,
    joint_distances_mm,
    joint_distances_px,
    mask_iou,
    mpjpe,
    mpvpe_mm,
    pa_mpjpe_mm,
    pa_mpvpe_mm,
    pck_curve,
    procrustes_align,
    second_differences,
)


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
    source.setflags(write=False)
    np.testing.assert_array_equal(pa_mpjpe_mm(source, target), error)


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


def test_the_paper_s_table_2_is_micro_averaged():
    """Its IoU and F1 follow from its precision and recall, as they do for counts of pixels and not for mean scores."""
    for iou, precision, recall, f1 in ((65.13, 82.82, 75.31, 78.88), (52.68, 71.65, 66.55, 69.00)):
        hand, found = 10**6, recall / 100 * 10**6
        counts = SegmentationCounts(round(found), round(found * (100 / precision - 1)), round(hand - found))
        assert 100 * counts.precision == pytest.approx(precision, abs=1e-3)
        assert 100 * counts.recall == pytest.approx(recall, abs=1e-3)
        assert 100 * counts.iou == pytest.approx(iou, abs=0.02)
        assert 100 * counts.f1 == pytest.approx(f1, abs=0.02)


def test_pixels_are_counted_one_by_one_and_add_up():
    rng = np.random.default_rng(0)
    predicted, truth = rng.random((2, 3, 5, 7)) < 0.4
    tp = fp = fn = 0
    for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
        tp, fp, fn = tp + (p and t), fp + (p and not t), fn + (t and not p)
    counts = sum((SegmentationCounts.of(p, t) for p, t in zip(predicted, truth, strict=True)), SegmentationCounts())
    assert counts == SegmentationCounts(tp, fp, fn) == SegmentationCounts.of(torch.from_numpy(predicted), truth)
    assert counts.precision == tp / (tp + fp)
    assert counts.recall == tp / (tp + fn)
    assert counts.iou == tp / (tp + fp + fn)
    assert counts.f1 == pytest.approx(2 * counts.precision * counts.recall / (counts.precision + counts.recall))


def test_scores_of_nothing_are_nan():
    nothing = SegmentationCounts()
    assert all(math.isnan(score) for score in (nothing.iou, nothing.precision, nothing.recall, nothing.f1))
    missed = SegmentationCounts(false_negative=3)
    assert (missed.recall, missed.iou, missed.f1) == (0, 0, 0)
    assert math.isnan(missed.precision)


# --- Alignments ---------------------------------------------------------------------------------------------


def test_root_alignment_shifts():
    predicted, truth = random_points(2, 21), random_points(2, 21, seed=1)
    for root in (0, 9):
        aligned = align_root(predicted, truth, root)
        np.testing.assert_allclose(aligned[:, root], truth[:, root], atol=1e-15)
        np.testing.assert_allclose(np.diff(aligned, axis=1), np.diff(predicted, axis=1), atol=1e-14)


@pytest.mark.parametrize(("root", "bone"), [(9, (9, 10)), (0, (9, 10)), (9, (0, 9))])
def test_root_and_scale_alignment_gives_the_true_length(root, bone):
    predicted, truth = random_points(2, 21), random_points(2, 21, seed=1)
    aligned = align_root_scale(predicted, truth, root, bone)
    for one, hand, true in zip(aligned, predicted, truth, strict=True):
        assert math.dist(one[bone[0]], one[bone[1]]) == pytest.approx(math.dist(true[bone[0]], true[bone[1]]))
        ratio = math.dist(true[bone[0]], true[bone[1]]) / math.dist(hand[bone[0]], hand[bone[1]])
        for j in range(21):
            np.testing.assert_allclose(one[j], true[root] + ratio * (hand[j] - hand[root]), atol=1e-12)


def test_centroid_and_scale_alignment_by_hand():
    """Two tips of five are annotated, 2 apart; predicted they are 4 apart: half the size, around their middle."""
    truth = np.full((5, 3), np.nan)
    truth[1], truth[4] = (1, 0, 5), (-1, 0, 5)
    predicted = np.zeros((5, 3))
    predicted[1], predicted[4], predicted[2] = (0, 2, 1), (0, -2, 1), (3, 0, 1)
    aligned = align_centroid_scale(predicted, truth)
    np.testing.assert_allclose(aligned[[1, 4, 2]], [(0, 1, 5), (0, -1, 5), (1.5, 0, 5)])


@pytest.mark.parametrize("name", ["root_scale", "zb2017", "centroid_scale", "procrustes"])
def test_scaled_and_shifted_copies_are_aligned_exactly(name):
    truth = random_points(4, 21)
    np.testing.assert_allclose(ALIGNMENTS[name](0.3 * truth + 2, truth), truth, atol=1e-12)


def test_hands_without_the_points_that_an_alignment_needs_are_nan():
    predicted, truth = random_points(3, 21), random_points(3, 21, seed=1)
    truth[1, 9] = np.nan  # the root
    truth[2] = np.nan
    for name in ("root", "root_scale"):
        aligned = ALIGNMENTS[name](predicted, truth)
        assert np.isfinite(aligned[0]).all()
        assert np.isnan(aligned[1:]).all()
    truth[1, 1:] = np.nan  # one joint left
    assert np.isnan(align_centroid_scale(predicted, truth)[1:]).all()
    assert np.isnan(procrustes_align(predicted, truth)[2]).all()
    predicted[0] = 1.0  # a point
    assert np.isnan(align_root_scale(predicted, truth)[0]).all()


def test_procrustes_uses_annotated_points_only():
    target, source = random_points(2, 21), random_points(2, 21, seed=1)
    known = [0, 3, 5, 6, 9, 14, 20]
    partial = target.copy()
    partial[1, [j for j in range(21) if j not in known]] = np.nan
    aligned = procrustes_align(source, partial)
    np.testing.assert_allclose(aligned[1, known], procrustes_align(source[1, known], target[1, known]), atol=1e-12)
    np.testing.assert_allclose(aligned[0], procrustes_align(source[0], target[0]), atol=1e-12)
    assert np.isfinite(aligned).all()


def test_reflections_are_allowed_only_if_asked_for():
    right = random_points(21)
    mirrored = 2 * right * (-1, 1, 1) + 3
    np.testing.assert_allclose(procrustes_align(mirrored, right, reflection=True), right, atol=1e-12)
    assert pa_mpjpe_mm(mirrored, right, reflection=True) < 1e-9
    assert pa_mpvpe_mm(mirrored, right) > 100


# --- Distances over a set -----------------------------------------------------------------------------------


def loop_distances_mm(predicted_m, truth_m, visible) -> list[list[float]]:
    return [
        [1000 * math.dist(p, t) if v and t[0] == t[0] else math.nan for p, t, v in zip(*rows, strict=True)]
        for rows in zip(predicted_m.tolist(), truth_m.tolist(), visible.tolist(), strict=True)
    ]


def test_distances_are_those_of_measured_points():
    predicted, truth = random_points(4, 21), random_points(4, 21, seed=1)
    visible = np.random.default_rng(2).random((4, 21)) < 0.6
    truth[1, 3] = np.nan
    truth[2, 4, 0] = np.nan  # one coordinate is enough
    found = joint_distances_mm(predicted, truth, visible=visible)
    np.testing.assert_allclose(found, loop_distances_mm(predicted, truth, visible), rtol=1e-12)
    everywhere = joint_distances_mm(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert isinstance(everywhere, torch.Tensor)
    np.testing.assert_allclose(everywhere, loop_distances_mm(predicted, truth, np.ones((4, 21))), rtol=1e-12)
    pixels = joint_distances_px(predicted[..., :2], truth[..., :2] * 1, visible=visible)
    assert pixels[0, visible[0]][0] == pytest.approx(
        math.dist(predicted[0, visible[0]][0, :2], truth[0, visible[0]][0, :2])
    )


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_distances_are_taken_after_the_alignment(name):
    predicted, truth = random_points(3, 21), random_points(3, 21, seed=1)
    aligned = ALIGNMENTS[name](predicted, truth)
    expected = loop_distances_mm(aligned, truth, np.ones((3, 21)))
    np.testing.assert_allclose(joint_distances_mm(predicted, truth, alignment=name), expected, rtol=1e-12, atol=1e-9)


def test_invisible_joints_still_align():
    """As an annotated but occluded root does in the protocol of Zimmermann and Brox."""
    predicted, truth = random_points(1, 21), random_points(1, 21, seed=1)
    visible = np.ones((1, 21), bool)
    visible[0, 9] = False
    distances = joint_distances_mm(predicted, truth, alignment="root", visible=visible)
    assert np.isnan(distances[0, 9])
    assert np.isfinite(distances[0, [j for j in range(21) if j != 9]]).all()


def test_fingertips_of_dexter_object():
    """Only tips are annotated, one of them not; the other joints of the prediction have no say, whatever they are."""
    predicted, truth = random_points(3, 21), random_points(3, 21, seed=1)
    tips = truth[:, [4, 8, 12, 16, 20]]
    tips[1, 2] = np.nan
    expected = loop_distances_mm(predicted[:, [4, 8, 12, 16, 20]], tips, np.ones((3, 5)))
    np.testing.assert_allclose(fingertip_distances_mm(predicted, tips), expected)
    assert np.isnan(fingertip_distances_mm(predicted, tips)[1, 2])
    full = np.full((3, 21, 3), np.nan)
    full[:, [4, 8, 12, 16, 20]] = tips
    np.testing.assert_allclose(fingertip_distances_mm(predicted, full), expected)
    moved = 2 * truth + 7
    assert np.nanmax(fingertip_distances_mm(moved, tips, alignment="centroid_scale")) < 1e-9
    with pytest.raises(ValueError, match=r"predicted_m: expected \(\*batch, 21, 3\), got \(3, 5, 3\)"):
        fingertip_distances_mm(tips, tips)


def test_end_point_errors_are_means_over_joints():
    """Joint 0 was measured four times, joint 1 twice, joint 2 never."""
    nan = np.nan
    errors = epe(np.array([[1.0, 10, nan], [2, nan, nan], [3, 30, nan], [10, nan, nan]]))
    np.testing.assert_array_equal(errors.joint_means, [4, 20, nan])
    np.testing.assert_array_equal(errors.joint_medians, [2.5, 20, nan])
    np.testing.assert_array_equal(errors.counts, [4, 2, 0])
    assert errors.mean == 12  # not the mean of the six distances
    assert errors.median == 11.25


def loop_pck(distances: np.ndarray, thresholds: list[float]) -> list[float]:
    curve = []
    for threshold in thresholds:
        shares = []
        for joint in distances.T.tolist():
            measured = [d for d in joint if d == d]
            if measured:
                shares.append(sum(d <= threshold for d in measured) / len(measured))
        curve.append(sum(shares) / len(shares))
    return curve


def make_distances() -> np.ndarray:
    rng = np.random.default_rng(0)
    distances = rng.gamma(2.0, 12.0, size=(200, 21))
    distances[rng.random((200, 21)) < rng.random(21)] = np.nan
    distances[:, 5] = np.nan
    return distances


@pytest.mark.parametrize("name", AUC_THRESHOLDS)
def test_curve_and_area_equal_loops(name):
    distances, thresholds = make_distances(), list(AUC_THRESHOLDS[name])
    expected = loop_pck(distances, thresholds)
    np.testing.assert_allclose(pck_curve(distances, name), expected, rtol=1e-12)
    area = sum(
        (t1 - t0) * (p0 + p1) / 2
        for t0, t1, p0, p1 in zip(thresholds, thresholds[1:], expected, expected[1:], strict=False)
    )
    assert auc(distances, name) == pytest.approx(area / (thresholds[-1] - thresholds[0]), rel=1e-12)
    assert auc(torch.from_numpy(distances), name) == auc(distances, thresholds)


def test_thresholds_are_inclusive():
    np.testing.assert_array_equal(pck_curve(np.array([[5.0, 10.0]]), [4.999, 5, 10]), [0, 0.5, 1])


def test_area_under_a_known_curve():
    """All errors 25 mm: nothing is correct below, everything from there on."""
    distances = np.full((3, 21), 25.0)
    assert auc(distances, [0, 25, 50]) == 0.75  # the trapezoid takes half of the first interval
    assert auc(distances, "do_0_100") == pytest.approx(0.755)
    assert auc(np.zeros((3, 21)), "zb2017_0_50") == 1
    assert auc(distances + 100) == 0


def test_the_presets_are_those_of_the_published_code():
    assert {name: len(limits) for name, limits in AUC_THRESHOLDS.items()} == {
        "zb2017_0_50": 20,
        "zb2017_20_50": 12,
        "lin_20_50_15": 15,
        "lin_20_50_20": 20,
        "lin_20_50_100": 100,
        "freihand_0_50_100": 100,
        "do_0_100": 101,
        "zb2017_0_30_px": 20,
    }
    assert AUC_THRESHOLDS["zb2017_20_50"][0] == pytest.approx(21.0526, abs=1e-4)
    assert {limits[-1] for name, limits in AUC_THRESHOLDS.items() if "_50" in name} == {50}


def test_sets_without_a_measurement_are_refused():
    for function in (epe, pck_curve, auc):
        arguments = ([0, 1],) if function is pck_curve else ()
        for nothing in (np.full((4, 21), np.nan), np.zeros((0, 21))):
            with pytest.raises(ValueError, match="nothing was measured"):
                function(nothing, *arguments)
        with pytest.raises(ValueError, match=r"\(S, N\), a row for each hand of the set, got \(21,\)"):
            function(np.zeros(21), *arguments)
    with pytest.raises(ValueError, match="expected one of zb2017_0_50"):
        auc(np.zeros((1, 1)), "zb2017")
    with pytest.raises(ValueError, match="rising"):
        auc(np.zeros((1, 1)), [3, 2])


# --- Meshes -------------------------------------------------------------------------------------------------


def test_vertex_errors_are_those_of_points_in_millimetres():
    predicted, truth = 0.1 * random_points(2, 50), 0.1 * random_points(2, 50, seed=1)
    expected = [1000 * sum(map(math.dist, p, t)) / 50 for p, t in zip(predicted, truth, strict=True)]
    np.testing.assert_allclose(mpvpe_mm(predicted, truth), expected)
    np.testing.assert_allclose(pa_mpvpe_mm(predicted, truth), pa_mpjpe_mm(predicted, truth))


@pytest.mark.parametrize("threshold_mm", [5, 15])
def test_f_score_equals_a_loop(threshold_mm):
    predicted, truth = 0.01 * random_points(3, 40), 0.01 * random_points(3, 40, seed=1)
    expected = []
    for p, t in zip(predicted.tolist(), truth.tolist(), strict=True):
        precision = sum(min(math.dist(a, b) for b in t) < threshold_mm / 1000 for a in p) / 40
        recall = sum(min(math.dist(a, b) for a in p) < threshold_mm / 1000 for b in t) / 40
        expected.append(2 * precision * recall / (precision + recall))
    assert 0.02 < expected[0] < 0.98
    np.testing.assert_allclose(f_score(predicted, truth, threshold_mm), expected, rtol=1e-12)
    assert f_score(predicted[0], truth[0], threshold_mm) == pytest.approx(expected[0])


def test_f_score_at_its_ends():
    mesh = random_points(1, 40)
    assert f_score(mesh, mesh, 5)[0] == 1
    assert f_score(mesh, mesh + 100, 5)[0] == 0
    moved = mesh + np.array([0.005, 0, 0])
    assert f_score(mesh, moved, 4.999)[0] < f_score(mesh, moved, 5.001)[0] == 1
    assert np.isnan(f_score(mesh, np.full_like(mesh, np.nan), 5)[0])
    assert f_score(mesh[:0], mesh[:0], 5).shape == (0,)
    with pytest.raises(ValueError, match="threshold_mm"):
        f_score(mesh, mesh, 0)


# --- What is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [procrustes_align, mpjpe, pa_mpjpe_mm, joint_distances_mm, align_root])
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
    with pytest.raises(ValueError, match=r"(predicted|source)\w*: 1 coordinates are not finite"):
        function(hostile, good)
    hostile[3, 1] = np.inf
    with pytest.raises(ValueError, match=r"(truth|target)\w*: 1 coordinates are not finite"):
        function(good, hostile)


def test_bad_options_are_refused_by_name():
    good = random_points(2, 21)
    with pytest.raises(ValueError, match="alignment: expected one of none, root"):
        joint_distances_mm(good, good, alignment="wrist")
    with pytest.raises(ValueError, match=r"visible: expected bool \(2, 21\), got \(21,\)"):
        joint_distances_mm(good, good, visible=np.ones(21, bool))


def test_one_hand_of_which_nothing_is_annotated_has_no_error():
    predicted, truth = random_points(2, 21), random_points(2, 21, seed=1)
    truth[1] = np.nan
    for function in (mpjpe, pa_mpjpe_mm, mpvpe_mm):
        error = function(predicted, truth)
        assert np.isfinite(error[0])
        assert np.isnan(error[1])


def test_bad_masks_are_refused_by_name():
    mask = np.zeros((4, 4), bool)
    for function in (mask_iou, SegmentationCounts.of):
        with pytest.raises(TypeError, match="truth: expected a bool mask"):
            function(mask, mask.astype(float))
        with pytest.raises(ValueError, match=r"\(3, 4\)"):
            function(mask[:3], mask)


# --- Sequences ---------------------------------------------------------------------------------------------------


def test_jitter_is_the_mean_norm_of_the_second_difference():
    """By hand: x = 0, 1, 4 has the second difference 2; the other point moves uniformly and has none."""
    points = np.zeros((3, 2, 3))
    points[:, 0, 1] = [0, 1, 4]
    points[:, 1, 2] = [5, 4, 3]
    np.testing.assert_allclose(second_differences(points), [[2.0, 0.0]])
    assert jitter(points) == 1.0
    points[2, 0] = np.nan
    assert jitter(points) == 0.0
    assert np.isnan(jitter(points[:2]))


def test_jitter_of_noise_is_what_its_docstring_says():
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 2.0, (400, 21, 3)))
    assert jitter(noise) == pytest.approx(2.0 * np.sqrt(6 * 3), rel=0.1)


def test_jitter_wants_a_sequence_of_points():
    with pytest.raises(ValueError, match=r"points: expected \(T, N, D\), got \(21, 3\)"):
        jitter(np.zeros((21, 3)))
