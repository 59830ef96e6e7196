"""The arithmetic of bench/accuracy.py: where fits are beside labels, which hands are of which kind, what is counted."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("pydantic", reason="the extra `train` is not installed")
pytest.importorskip("matplotlib", reason="the extra `train` is not installed")

import accuracy_ablations
import accuracy_failures
import accuracy_generated
import accuracy_hands
import accuracy_tones
import accuracy_whole
import readme_accuracy
from accuracy_hands import (
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
from dhpe_fast.config import ConfigError, load_config
from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.data import backgrounds, open_dataset, recipe, render_hands
from dhpe_fast.data.normalize import Square
from dhpe_fast.data.synthetic import write_synthetic
from dhpe_fast.evidence.networks import Seen
from dhpe_fast.hand import HandModel
from dhpe_fast.nets import DHPE, heatmap_targets
from dhpe_fast.scores import Measured


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
    assert half_width(np.array([1.0])) is None


def test_aucs_of_hands_average_to_that_of_the_set():
    distances = torch.from_numpy(np.random.default_rng(0).uniform(0, 80, (7, 21)))
    whole = accuracy_generated.auc(distances, "zb2017_20_50")
    assert accuracy_generated.aucs_of_hands(distances).mean() == pytest.approx(whole)


def test_differences_are_hand_by_hand():
    full = np.array([10.0, 50.0, 20.0])
    found = accuracy_ablations.difference(full + np.array([1.0, 2.0, 3.0]), full)
    assert found["epe_mm"] == pytest.approx(2.0)
    assert found["half_width_mm"] == pytest.approx(1.96 / np.sqrt(3))


AS_DRAWN = ["data.synthesize.size_px=64", "data.synthesize.max_angle_deg=180", "data.synthesize.seed=1"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn") / "hands"
    write_synthetic(root, 6, 4, seed=1, size_px=64, workers=1)
    return root


def test_a_fit_to_what_the_labels_say_is_near_the_truth(drawn):
    """Heat maps as f_J2D is to draw them, of left and right hands; joint 0 of the maps and labels is the palm."""
    config = load_config("tiny", ["model.image_size=64"])
    crops = accuracy_hands.crops_of(accuracy_hands.held_out_hands(drawn), config)
    batch = next(accuracy_hands.batches_of(crops))
    assert batch.mirrored.any()
    assert not batch.mirrored.all()
    maps = heatmap_targets(batch.joints2d_px, batch.valid, 32, 64)
    model = SimpleNamespace(image_size=64, spec=lambda: {"joint0": "palm"})
    found = accuracy_generated.fitted(model, batch, Seen(maps, None))
    row = accuracy_generated.table_row("fit", found)
    assert row["missing"] == 0
    assert row["joints2d_px"] < 4
    assert row["epe_mm"] < 25  # what 2D joints leave open
    assert row["iou"] > 0.6


def test_whole_pictures_are_measured_where_their_hands_are(drawn, monkeypatch):
    """By fits to the labels, but of one picture, whose hand is missed, and one with another fit far away."""
    config = load_config("tiny", ["model.image_size=64"])
    crops = accuracy_hands.crops_of(accuracy_hands.held_out_hands(drawn), config)
    fit, calls = dhpe_fast.fit, []

    def from_labels(image, evidence):
        sample = crops.sample(len(calls))
        calls.append(evidence)
        found = fit(image, keypoints=sample.joints2d_px, hand=sample.side)
        elsewhere = fit(image, keypoints=0.2 * sample.joints2d_px, hand=sample.side)
        return [[], [found, elsewhere]][len(calls) - 1] if len(calls) < 3 else [found]

    monkeypatch.setattr(accuracy_whole.dhpe_fast, "fit", from_labels)
    whole = accuracy_whole.measure_whole(drawn, crops, len(crops))
    assert set(calls) == {"networks"}
    assert whole.is_found.tolist() == [False, True, True, True]
    assert whole.side_right.tolist() == [False, True, True, True]
    assert whole.false_finds.tolist() == [0, 1, 0, 0]
    summary = whole.summary()
    assert (summary["found"], summary["side_right"], summary["false_finds_per_picture"]) == (0.75, 1.0, 0.25)
    assert summary["joints2d_of_found_px"] < 8
    row = accuracy_generated.table_row("end to end", whole.found)
    assert row["missing"] == 1
    assert row["epe_mm"] is None  # one hand is infinitely far away
    found_mm = accuracy_generated.distances_mm(whole.found, accuracy_generated.HOW)[1:]
    assert float(found_mm.mean()) < 25
    assert float(whole.found.iou[1:].min()) > 0.5


def test_tones_are_compared_scene_by_scene(drawn):
    """Estimates 2 and 6 px of a 224 crop to the right of the truth, in whichever scene: 2 px on either side of 4."""
    crops = accuracy_hands.crops_of(accuracy_hands.held_out_hands(drawn), load_config("tiny", ["model.image_size=64"]))
    batch = next(accuracy_hands.batches_of(crops))

    def shifted(offset_px):
        joints = batch.joints_crop + torch.tensor([2 * offset_px / 224, 0.0, 0.0])
        found = Measured.of(batch, joints, batch.masks > 0.5)
        return dict.fromkeys((accuracy_generated.JOINTS2D, accuracy_generated.REGRESSION, "fit"), found)

    both = [shifted(2.0), shifted(6.0)]
    light, dark = (accuracy_tones.row(tone, own, both) for tone, own in zip((0.0, 1.0), both, strict=True))
    assert light["joints2d_px"] == pytest.approx(2.0, abs=1e-3)
    assert dark["joints2d_difference_px"] == pytest.approx(2.0, abs=1e-3)
    assert dark["joints2d_half_width_px"] == pytest.approx(0.0, abs=1e-3)  # alike in every scene
    assert (dark["fit_iou"], dark["fit_missing"]) == (1.0, 0)
    assert dark["fit_epe_mm"] < 1  # the roots are at one place, seen in perspective


def test_tones_are_measured_as_fit_reads_the_networks(drawn):
    """By random networks: of every hand there are the joints of f_J2D, those of the regression, and a fit or none."""
    config = load_config("tiny", ["model.image_size=64", "model.pose2d=unet", "model.pose2d_input_size=64"])
    torch.manual_seed(0)
    networks = accuracy_hands.Tested("random", config, DHPE(**asdict(config.model)).eval())
    found = accuracy_tones.measured(networks, accuracy_hands.held_out_hands(drawn, 2))
    assert list(found) == [accuracy_generated.JOINTS2D, accuracy_generated.REGRESSION, accuracy_generated.FIT]
    assert all(len(own.joints_m) == 2 for own in found.values())
    assert found[accuracy_generated.JOINTS2D].finite.all()
    row = accuracy_tones.row(0.0, found, [found, found])
    assert (row["joints2d_difference_px"], row["joints2d_px"] > 0) == (0.0, True)


@pytest.fixture
def budget(drawn, tmp_path, monkeypatch):
    """40 steps on four of the training hands."""
    monkeypatch.setattr(accuracy_hands, "WORK", tmp_path)
    return Namespace(
        config="tiny", changes=AS_DRAWN, pose2d="runs/pose2d", data=drawn, steps_per_variant=40, training_hands=4
    )


@pytest.mark.parametrize("name", accuracy_ablations.VARIANTS)
def test_variants_differ_by_their_overrides_only(name, budget):
    """And all leave the shared 2D pose network as it is."""
    full = accuracy_ablations.variant(budget, ()).model_dump()
    own = accuracy_ablations.variant(budget, accuracy_ablations.VARIANTS[name]).model_dump()
    assert own["loss"]["heatmap"] == 0
    assert str(own["start"]["pose2d"]) == "runs/pose2d"
    assert own["data"] == full["data"]
    changed = {section for section in own if own[section] != full[section]}
    assert changed <= {"model", "loss"} or name == "without self-made instances"
    assert bool(changed) == (name != accuracy_ablations.FULL)


def test_variants_have_about_the_same_steps():
    """100 hands in batches of 10, at most 150 instances: proposed in epoch 1 of 4, they join in the next."""
    config = load_config("tiny", ["optimisation.batch_size=10", "self_supervision.max_instances=150"])
    assert accuracy_ablations.start_of_instances(4) == 1
    assert accuracy_ablations.steps_of(4, 100, config) == 10 + 10 + 20 + 25
    assert accuracy_ablations.epochs_for(65, 100, config) == 4
    alone = load_config("tiny", ["optimisation.batch_size=10", "self_supervision.instances_per_seed=0"])
    assert accuracy_ablations.steps_of(4, 100, alone) == 40
    assert accuracy_ablations.epochs_for(65, 100, alone) in (6, 7)


def test_hands_to_test_are_of_a_seed_of_their_own_and_drawn_once(tmp_path, monkeypatch):
    """What is there is taken if it was drawn by the same arguments and generator alone."""
    monkeypatch.setattr(accuracy_hands, "WORK", tmp_path)
    monkeypatch.setattr(accuracy_hands, "N_TEST", 2)
    plan = load_config("tiny", AS_DRAWN).data.synthesize
    root = accuracy_hands.hands_to_test(plan)
    held_out = accuracy_hands.held_out_hands(root)
    assert (len(held_out), plan.seed) == (2, 1)
    facts = accuracy_hands.data_facts(root, held_out)
    assert facts["recipe"]["seed"] == accuracy_hands.TEST_SEED
    before = (root / "recipe.json").stat().st_mtime_ns
    assert accuracy_hands.hands_to_test(plan) == root
    assert accuracy_hands.hands_to_test(replace_plan(plan, gestures=0.5, held=0.5)) == root, "tests stay the same"
    assert (root / "recipe.json").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match=r"was drawn with max_angle_deg: 180\.0 instead of 90\.0; remove it"):
        accuracy_hands.hands_to_test(replace_plan(plan, max_angle_deg=90.0))
    with pytest.raises(SystemExit, match="is that of the test hands; nothing is trained on them"):
        accuracy_hands.hands_to_test(replace_plan(plan, seed=accuracy_hands.TEST_SEED))
    picture = root / "evaluation" / "color" / "00001.png"
    picture.write_bytes((root / "evaluation" / "color" / "00000.png").read_bytes())
    assert accuracy_hands.data_facts(root, held_out)["sha256"] != facts["sha256"], "labels alone are the same"


def test_own_hands_have_to_be_drawn_as_the_plan_says_whatever_their_number(drawn, monkeypatch):
    plan = load_config("tiny", AS_DRAWN).data.synthesize
    assert plan.n_training != 6
    assert accuracy_hands.own_hands(plan, drawn) == accuracy_hands.own_hands(replace_plan(plan, root=drawn)) == drawn
    with pytest.raises(SystemExit, match="was drawn with seed: 1 instead of 2; remove it"):
        accuracy_hands.own_hands(replace_plan(plan, seed=2), drawn)
    with pytest.raises(SystemExit, match=r"is no drawn set: .*recipe\.json: no such file"):
        accuracy_hands.own_hands(plan, drawn / "training")
    monkeypatch.setattr(recipe, "GENERATOR_VERSION", 99)
    with pytest.raises(SystemExit, match=r"generator_version: \d instead of 99"):
        accuracy_hands.own_hands(plan, drawn)


def test_a_smaller_training_set_is_the_first_part_of_the_whole(budget, drawn):
    root = accuracy_hands.first_training_hands(drawn, 4)
    whole, part = (open_dataset("rhd", folder, "train") for folder in (drawn, root))
    assert (len(whole), len(part)) == (6, 4)
    np.testing.assert_array_equal(part.labels.joints_m, whole.labels.joints_m[:4])
    np.testing.assert_array_equal(part[3].read_image(), whole[3].read_image())
    assert len(accuracy_hands.held_out_hands(root)) == 4


def test_variants_by_name():
    chosen = accuracy_ablations.wanted(["without f_Ref"])
    assert list(chosen) == ["full", "without f_Ref"]
    assert accuracy_ablations.wanted(None) == accuracy_ablations.VARIANTS
    with pytest.raises(SystemExit, match="no variant 'nonsense'; there are full, without f_Ref"):
        accuracy_ablations.wanted(["nonsense"])


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
    assert pictures.is_found.tolist() == [True, False, True, False]
    missed = replace(pictures, overlap=np.zeros(4)).summary()
    assert missed == {"pictures": 4, "found": 0.0, "false_finds_per_picture": 0.5}


def test_a_plan_is_changed_in_a_copy():
    plan = load_config("tiny").data.synthesize
    assert replace_plan(plan, n_training=3).n_training == 3
    assert plan.n_training == 2000


def test_networks_of_the_package_are_named_by_their_checksum(monkeypatch):
    config = load_config("tiny")
    monkeypatch.setattr(accuracy_hands.pretrained, "dhpe", lambda: SimpleNamespace(spec=lambda: asdict(config.model)))
    checksum = hashlib.sha256((Path(dhpe_fast.__file__).parent / "weights" / "dhpe.pt").read_bytes()).hexdigest()
    assert accuracy_hands.tested(None, "tiny").name == f"dhpe_fast/weights/dhpe.pt, SHA-256 {checksum[:12]}"


def test_networks_of_another_configuration_are_refused(monkeypatch):
    """Their crops would be of the wrong size."""
    other = SimpleNamespace(spec=lambda: {"depth": 34})
    monkeypatch.setattr(accuracy_hands.pretrained, "dhpe", lambda: other)
    with pytest.raises(ConfigError, match="tiny has other networks than those of the package"):
        accuracy_hands.tested(None, "tiny")


# ---- The page --------------------------------------------------------------------------------------------------------

RUN = {"commit": "abc1234"}


@pytest.fixture
def shown(monkeypatch):
    """What the tables are made of."""
    results = {}
    monkeypatch.setattr(readme_accuracy, "read", results.get)
    monkeypatch.setattr(readme_accuracy, "RESULTS", Path("nowhere"))
    return results


def test_a_mean_over_hands_without_an_answer_is_left_out(shown):
    known = {"auc_zb2017_20_50": 0.9, "auc_20_50_half_width": 0.0123, "epe_mm": 12.34, "epe_half_width_mm": 0.56}
    rows = [
        {"name": "fit", "hands": 2000, "missing": 0, "iou": 0.8, **known},
        {"name": "fit, end to end", "hands": 500, "missing": 3, "iou": 0.7, **known, "epe_mm": None},
    ]
    whole = {"pictures": 500, "found": 0.97, "side_right": 0.9, "false_finds_per_picture": 0.05}
    whole |= {"epe_of_found_mm": 14.26, "joints2d_of_found_px": 7.77}
    data = {"recipe": {"seed": 0, "size_px": 192, "backgrounds": None}}
    shown["accuracy_generated"] = {
        "run": RUN, "networks": "dhpe.pt", "data": data, "rows": rows, "end_to_end": whole,
        "joints2d": {"mean_px": 6.04, "half_width_px": 0.16, "median_px": 3.14},
    }  # fmt: skip
    table = readme_accuracy.accuracy_table()
    assert "| fit, 2,000 hands | fit, end to end, 500 hands |" in table
    assert "| joints, root aligned, mean error, mm | 12.3 ± 0.6 |  |" in table
    assert "| AUC, 20 to 50 mm | 0.900 ± 0.012 | 0.900 ± 0.012 |" in table
    assert "seed 0, size_px 192; dhpe.pt; commit abc1234. These hands, of seed 0, are those" in table
    assert " The 2D joints of f_J2D are off by 6.0 ± 0.2 px of" in table
    assert "less than 3.1 px. End to end, 500 pictures: the labelled hand is" in table
    assert "97.0 % (these are off by 14.3 mm, 7.8 px of a 224 crop; their side is right in 90.0 %); 0.050 fits" in table
    figures = readme_accuracy.figure_rows()
    assert [figure for _, figure, _ in figures] == ["AUC 0.900; 12.3 mm; 0.800", "AUC 0.900; - mm; 0.700"]


def test_what_shows_no_gain_is_said(shown):
    scores, stages = {"hands": 9, "auc_zb2017_20_50": 0.5, "epe_mm": 20.0}, ("networks", "refined")
    rows = [
        {
            "variant": variant, "overrides": overrides, "steps": 100, "minutes": 2.0,
            "scores": dict.fromkeys(stages, scores),
            "difference": {stage: {"epe_mm": gap, "half_width_mm": 0.5} for stage in stages},
        }
        for variant, overrides, gap in (
            ("full", [], 0.0), ("without a", ["a"], 0.6), ("without b", ["b"], 0.4), ("without c", ["c"], -2.0)
        )
    ]  # fmt: skip
    gain = {"epe_mm": 1.0, "half_width_mm": 0.2}
    shown["accuracy_ablations"] = {"run": RUN, "rows": rows, "refinement_gain": gain}
    table = readme_accuracy.ablations_table()
    assert "Worse by more than the interval: without a, without testing refinement." in table
    assert "Shows no gain of its part in mean error here: without b, without c." in table
    assert "| full | without testing refinement, 9 hands |  | 0.500 |" in table
    assert "| without c | with it, 9 hands | -2.00 ± 0.50 |" in table


def test_photographs_that_show_nothing_are_said(shown):
    found = {"found": "the hand", "evidence_percent": 6.04, "fit_percent": 7.26, "side": "left", "side_right": False}
    shown["accuracy_photographs"] = {
        "run": RUN,
        "rows": [
            {"source": "own", "photograph": "a", "hands": 2, **found},
            {"source": "own", "photograph": "rhd_00111", "hands": 0, "found": "none"},
        ],
    }
    table = readme_accuracy.photographs_table()
    assert "| own | a | the hand | 6.0 | 7.3 | left, wrong | 2 |" in table
    assert "| own | rhd_00111 | none |  |  |  | 0 |" in table
    (what, figure, _), *_ = readme_accuracy.figure_rows()
    assert what.startswith("1 photograph and 1 rendering, own: 2D error")
    assert figure == "7.3 % (other side), none"


def test_scores_that_a_run_keeps_are_said_in_words():
    kept = {"epe_mm": None, "heatmap_px": 15.83, "pa_mpjpe_mm_noise0": 3.241, "best_pa_mpjpe_mm_noise0": 3.0}
    parts = readme_accuracy._figures(kept | {"pa_mpjpe_mm_noise2": 5.0, "my own measure": 2}).split("; ")
    assert parts == [
        "2D joints of f_J2D, px of a 224 crop: 15.8",
        "joints, Procrustes aligned, mm, median of the likeliest hypotheses with noise of 0, 2 % of the crop: 3.24, 5",
        "joints, Procrustes aligned, mm, median of the nearest hypotheses with noise of 0 % of the crop: 3",
        "my own measure: 2",
    ]


def test_where_test_hands_come_from_is_said_by_the_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_accuracy, "MANIFEST", tmp_path / "manifest.json")
    runs = {"recipe": {"seed": 1}, "starts_from": {"recipe": {"seed": 0}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"dhpe.pt": runs}))

    def said(seed):
        return readme_accuracy._test_hands({"data": {"recipe": {"seed": seed}}})

    assert "seed 7, those of training and validation from seed 0, 1: from the same generator" in said(7)
    assert "seed 0, are those on which the networks were validated" in said(0)


def test_the_card_has_the_terms_of_every_photograph_behind_the_hands_and_of_no_other():
    card = (Path(__file__).parents[1] / "docs" / "model-card.md").read_text()
    _, _, table = card.partition("| photograph | terms as stated there |\n|---|---|\n")
    rows = [line.split("|")[1] for line in table.partition("\n\n")[0].splitlines()]
    named = [name.strip() for row in rows for part in row.split(";") for name in part.split(",")]
    assert sorted(named) == sorted(backgrounds._PHOTOGRAPHS)
