"""The arithmetic of bench/accuracy.py: where fits are beside labels, which hands are of which kind, what is counted."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("pydantic", reason="the extra `train` is not installed")
pytest.importorskip("matplotlib", reason="the extra `train` is not installed")

import accuracy_ablations
import accuracy_failures
import accuracy_generated
from accuracy_hands import (
    box_iou,
    box_of,
    fit_in_crop,
    half_width,
    longer_side,
    pointing,
    reach,
    replace_plan,
    whole_crop,
)
from accuracy_photographs import Photograph, compared, error_percent
from accuracy_whole import FOUND, WholePictures, best_fit

import dhpe_fast
from dhpe_fast.config import load_config
from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.data import render_hands
from dhpe_fast.data.normalize import Square
from dhpe_fast.hand import HandModel


def fit_at(joints2d_px, side="right", confidence=1.0):
    """What the measurements read of a fit."""
    joints = torch.as_tensor(np.asarray(joints2d_px), dtype=torch.float32)
    return SimpleNamespace(
        joints2d_px=joints,
        keypoints2d_px=joints,
        confidence=torch.full((21,), confidence),
        side=side,
        score=0.5,
    )


@pytest.fixture(scope="module")
def left_hand():
    """A drawn left hand seen by a weak-perspective camera, and the fit to its exact 2D joints."""
    (hand,) = render_hands(1, 3, HandModel.default("left"), image_size=(120, 160), camera="weak")
    blank = np.zeros((120, 160, 3), np.uint8)
    return hand, dhpe_fast.fit(blank, keypoints=hand.joints2d_px.double().numpy(), hand="left")


def test_a_fit_is_where_its_joints_are_in_the_mirrored_crop(left_hand):
    """A square of 100 px around (60, 50) of the mirrored image: its unit is 50 px, in depth, too."""
    hand, fit = left_hand
    square = Square(torch.tensor([60.0, 50.0]), torch.tensor(100.0))
    found = fit_in_crop(fit, square, "wrist", mirrored_width=160)
    truth_px = hand.joints2d_px.double().numpy()
    np.testing.assert_allclose(found[:, 0], (160 - truth_px[:, 0] - 60) / 50, atol=0.03)
    np.testing.assert_allclose(found[:, 1], (truth_px[:, 1] - 50) / 50, atol=0.03)
    # As long in crop units as in metres, bone by bone, by one factor: the hand is not sheared.
    lengths = np.linalg.norm(found - found[MIDDLE_MCP], axis=1)
    metres = np.linalg.norm(fit.joints_m.double().numpy() - fit.joints_m[MIDDLE_MCP].double().numpy(), axis=1)
    ratio = lengths[metres > 0] / metres[metres > 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    assert ratio[0] == pytest.approx(fit.camera.scale_px_per_m / 50, rel=1e-4)


def test_joint_0_of_a_fit_is_the_palm_where_labels_have_it(left_hand):
    _, fit = left_hand
    wrist, palm = (fit_in_crop(fit, whole_crop(128), joint0) for joint0 in ("wrist", "palm"))
    np.testing.assert_allclose(palm[0], (wrist[0] + wrist[MIDDLE_MCP]) / 2)
    np.testing.assert_array_equal(palm[1:], wrist[1:])


def test_the_crop_that_is_the_image():
    corners = whole_crop(128).to_crop(torch.tensor([[0.0, 0.0], [128.0, 64.0]], dtype=torch.float64))
    assert corners.tolist() == [[-1, -1], [1, 0]]


def test_boxes():
    box = box_of(np.array([[1.0, 5.0], [4.0, 2.0], [np.nan, 9.0]]))
    assert box.tolist() == [1, 2, 4, 5]
    assert longer_side(np.array([0.0, 0.0, 2.0, 7.0])) == 7
    assert box_iou(box, box) == 1
    assert box_iou(box, box + 1) == pytest.approx(4 / 14)  # 2 x 2 of 9 + 9 - 4
    assert box_iou(box, box + 10) == 0


def test_fists_and_hands_along_the_view_are_told_from_labels():
    joints_m = np.zeros((21, 3))
    joints_m[:, 2] = 1.0
    for finger in range(4):  # knuckle at 0, then bones of 3, 2 and 1 cm
        joints_m[5 + 4 * finger : 9 + 4 * finger, 1] = (0.0, 0.03, 0.05, 0.06)
    assert reach(joints_m) == pytest.approx(1.0)
    joints_m[8::4, 1] = 0.04  # tips bent back by 1 cm: 4 of 6
    assert reach(joints_m) == pytest.approx(4 / 6)
    joints_m[0] = (0.0, 0.0, 1.1)
    assert pointing(joints_m) == pytest.approx(1.0)
    joints_m[0] = (0.1, 0.0, 1.0)
    assert pointing(joints_m) == pytest.approx(0.0)


def test_half_of_the_interval_of_a_mean():
    assert half_width(np.array([1.0, 3.0, np.nan, np.inf])) == pytest.approx(1.96 * np.sqrt(2) / np.sqrt(2))
    assert np.isnan(half_width(np.array([1.0])))


def test_aucs_of_hands_average_to_that_of_the_set():
    distances = torch.from_numpy(np.random.default_rng(0).uniform(0, 80, (7, 21)))
    whole = accuracy_generated.auc(distances, "zb2017_20_50")
    assert accuracy_generated.aucs_of_hands(distances).mean() == pytest.approx(whole)


def test_differences_are_hand_by_hand():
    full = np.array([10.0, 50.0, 20.0])
    found = accuracy_ablations.difference(full + np.array([1.0, 2.0, 3.0]), full)
    assert found["epe_mm"] == pytest.approx(2.0)
    assert found["half_width_mm"] == pytest.approx(1.96 / np.sqrt(3))


@pytest.mark.parametrize("name", accuracy_ablations.VARIANTS)
def test_variants_differ_by_their_overrides_only(name, monkeypatch):
    """And all leave the shared 2D pose network as it is; 2,000 steps of 32 are 32 epochs of 2,000 hands."""
    monkeypatch.setattr(accuracy_ablations, "open_crops", lambda *_, **__: range(2000))
    arguments = Namespace(config="tiny", changes=[], pose2d="runs/pose2d", data=None, steps_per_variant=2000)
    full = accuracy_ablations.variant(arguments, ()).model_dump()
    own = accuracy_ablations.variant(arguments, accuracy_ablations.VARIANTS[name]).model_dump()
    assert own["loss"]["heatmap"] == 0
    assert own["optimisation"] == full["optimisation"]
    assert own["optimisation"]["epochs"] == 32
    changed = {section for section in own if own[section] != full[section]}
    assert changed <= {"model", "loss", "self_supervision"}
    assert bool(changed) == (name != accuracy_ablations.FULL)


def test_the_worst_of_each_are_found_by_rule():
    errors = np.array([1.0, 5.0, 2.0, 7.0, np.inf, 3.0, 9.0])
    assert accuracy_failures.worst_of_each(errors, 3).tolist() == [1, 4]
    rows = accuracy_failures.by_kind([["fist"], ["fist"], ["fist", "plain"], ["plain"], ["plain"]], errors[:5])
    fist, plain = rows
    assert (fist["hands"], fist["epe_mm"], fist["worst"]) == (3, pytest.approx(8 / 3), 1)
    assert (plain["hands"], plain["missing"], plain["worst"]) == (3, 1, 3)


def test_a_sheet_is_made_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    accuracy_failures.write_small(tmp_path / "sheet.png", noise)
    assert (tmp_path / "sheet.png").stat().st_size <= accuracy_failures.MAX_BYTES


def test_the_hand_nearest_to_the_annotation_is_the_one_compared(tmp_path):
    joints = np.stack([np.linspace(0, 100, 21), np.linspace(0, 40, 21)], axis=1)
    photo = Photograph(tmp_path / "a.jpg", np.zeros((9, 9, 3), np.uint8), joints, "left")
    assert error_percent(photo, joints + np.array([3.0, 4.0])) == pytest.approx(5.0)  # 5 px of 100
    assert compared(photo, []) == {"hands": 0, "found": "none"}
    row = compared(photo, [fit_at(joints + 300), fit_at(joints + np.array([0.0, 2.0]), "right")])
    assert (row["hands"], row["found"], row["side_right"]) == (2, "the hand", False)
    assert row["evidence_percent"] == row["fit_percent"] == pytest.approx(2.0)
    assert compared(photo, [fit_at(joints + 300)])["found"] == "elsewhere"


def test_a_hand_of_a_whole_picture_is_found_by_its_box():
    joints = np.stack([np.linspace(0, 10, 21), np.linspace(0, 10, 21)], axis=1)
    near, far = fit_at(joints + 1), fit_at(joints + 50)
    best, overlap = best_fit([far, near], box_of(joints))
    assert best is near
    assert overlap == pytest.approx(81 / 119)
    assert best_fit([], box_of(joints)) == (None, 0.0)
    pictures = WholePictures(
        found=None,
        overlap=np.array([FOUND, 0.4, 0.9, 0.0]),
        side_right=np.array([True, True, False, False]),
        false_finds=np.array([0, 2, 0, 0]),
    )
    summary = pictures.summary()
    assert (summary["found"], summary["side_right"], summary["false_finds_per_picture"]) == (0.5, 0.5, 0.5)


def test_a_plan_is_changed_in_a_copy():
    plan = load_config("tiny").data.synthesize
    assert replace_plan(plan, n_training=3).n_training == 3
    assert plan.n_training == 2000
