"""Evaluation: scores against independent sums, what is written, and the protocols' switches."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_files import write_dexter_object
from typer.testing import CliRunner

pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("matplotlib", reason="the extra `train` is not installed")

from dhpe_fast.cli import app
from dhpe_fast.config import DataSource, load_config, save_config
from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.data import open_dataset
from dhpe_fast.data.synthetic import write_synthetic
from dhpe_fast.evaluate import MEAN_HAND, REFINED, REGRESSION, EvaluationOptions, as_text, evaluate
from dhpe_fast.image import read_image
from dhpe_fast.plots import progress_plot
from dhpe_fast.published_results import AUC, SEGMENTATION
from dhpe_fast.train import BEST, CheckpointError, build_model, load_model, open_crops
from dhpe_fast.train.checkpoint import save_checkpoint

SAMPLES = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Networks as they start, in the folder of a run."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_synthetic(folder / "set", 8, SAMPLES, seed=4, size_px=64, workers=1)
    source = f"{{format: rhd, root: {folder / 'set'}, split: %s}}"
    config = load_config(
        "tiny",
        [
            f"data.train=[{source % 'train'}]",
            f"data.validation=[{source % 'test'}]",
            "data.synthesize=null",
            "model={depth: 18, image_size: 48, pose2d_width: 0.0625, pose2d_stages: 1, pose2d_input_size: 64}",
            "refinement={iterations: 3, step_size: 0.001}",
        ],
    )
    torch.manual_seed(0)
    run = folder / "run"
    run.mkdir()
    save_config(config, run / "config.yaml")
    save_checkpoint(run, BEST, build_model(config), {})
    return run


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "out"
    found = evaluate(run, output, EvaluationOptions(batch_size=4, workers=0, device="cpu"))
    return found, output


def test_what_is_written(report):
    found, output = report
    assert sorted(file.name for file in output.iterdir()) == ["evaluation.json", "hands.png", "pck.png"]
    assert json.loads((output / "evaluation.json").read_text()) == json.loads(json.dumps(found))
    assert found["samples"] == SAMPLES
    rows, columns = SAMPLES, 5
    sheet = read_image(output / "hands.png")
    assert sheet.shape[0] > rows * 48
    assert columns * 48 < sheet.shape[1] < columns * 60


def test_scores_are_those_of_the_definitions(run, report):
    """EPE, PCK area and masks once more, hand by hand, from the networks' own output."""
    config, model = load_model(run)
    crops = open_crops(config, training=False)
    distances, same, united = [], 0, 0
    for index in range(SAMPLES):
        item = crops[0, index]
        image = torch.from_numpy(item.image).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            output = model(image)
        joints = output.projection.joints[0].double().numpy()
        fx, fy, cx, cy = item.camera
        u, v = (item.center_px + item.size_px / 2 * joints[:, :2]).T
        # One unit of the crop frame is half of its side, seen at the root's depth.
        unit_m = item.size_px / 2 / (0.5 * (fx + fy)) * item.root_depth_m
        z = item.root_depth_m + (joints[:, 2] - joints[MIDDLE_MCP, 2]) * unit_m
        found = np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], axis=1)
        offsets = (found - found[MIDDLE_MCP]) - (item.joints_m - item.joints_m[MIDDLE_MCP])
        distances.append(1000 * np.linalg.norm(offsets, axis=1))
        mask = output.projection.mask[0].numpy() > 0.5
        same += (mask & (item.mask > 0)).sum()
        united += (mask | (item.mask > 0)).sum()
    distances = np.array(distances)
    scores = report[0]["scores"][REGRESSION]
    assert scores["epe_mm"] == pytest.approx(distances.mean(), rel=1e-4)
    limits = np.linspace(0, 50, 20)
    curve = [(distances <= limit).mean() for limit in limits]
    area = sum((curve[k] + curve[k + 1]) / 2 for k in range(19)) / 19
    assert scores["auc_zb2017_0_50"] == pytest.approx(area, abs=1e-3)
    assert scores["iou"] == pytest.approx(same / united, rel=1e-3)


def test_the_mean_hand_is_one_answer_for_all(run, report):
    config, _ = load_model(run)
    training, held_out = open_crops(config, training=True), open_crops(config, training=False)
    mean = np.mean([training[0, k].joints_crop for k in range(8)], axis=0)
    pixels = [np.linalg.norm((held_out[0, k].joints_crop - mean)[:, :2], axis=1).mean() * 112 for k in range(SAMPLES)]
    assert report[0]["scores"][MEAN_HAND]["joints2d_px"] == pytest.approx(np.mean(pixels), rel=1e-4)


def test_refinement_is_measured_beside_the_regression(report):
    scores = report[0]["scores"]
    assert list(scores) == [MEAN_HAND, REGRESSION, REFINED]
    assert scores[REFINED]["epe_mm"] != scores[REGRESSION]["epe_mm"]
    assert scores[REFINED]["ms_per_hand"] > scores[REGRESSION]["ms_per_hand"] > 0


def test_published_numbers_go_with_their_data_set(report):
    published = report[0]["published"]
    assert {row["dataset"] for row in published["auc"]} == {"rhd"}
    assert any(row["method"] == "Baek et al. 2019" and row["auc"] == 0.926 for row in published["auc"])
    for row in SEGMENTATION:  # the paper's Table 2 is consistent in itself
        f1 = 2 * row.precision * row.recall / (row.precision + row.recall)
        assert row.f1 == pytest.approx(f1, abs=2e-3)
    assert len({(row.dataset, row.method) for row in AUC}) == len(AUC)


def test_options(run, tmp_path):
    options = EvaluationOptions(
        refinement=False, limit=2, alignment="procrustes", visible_only=True, workers=0, device="cpu"
    )
    found = evaluate(run, tmp_path / "out", options)
    assert (found["samples"], list(found["scores"])) == (2, [MEAN_HAND, REGRESSION])
    assert found["scores"][REGRESSION]["epe_mm"] < 40
    assert "regression" in as_text(found)


def test_the_command(run, tmp_path):
    data = f"rhd:{run.parent / 'set'}:test"
    arguments = ["eval", str(run), "-o", str(tmp_path / "out"), "--data", data, "--no-refine", "--limit", "2"]
    done = CliRunner().invoke(app, [*arguments, "--workers", "0"])
    assert done.exit_code == 0, done.output
    assert "epe_mm" in done.output
    assert (tmp_path / "out" / "pck.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "rhd"], "FORMAT:ROOT:SPLIT"),
        (["--data", "rgbd:here:test"], "rgbd"),
        (["--data", "rhd:nowhere:test"], "nowhere"),
        (["--checkpoint", "other"], "no checkpoint 'other'"),
        (["--alignment", "best"], "alignment is one of none, root"),
    ],
)
def test_the_command_refuses_in_one_line(run, tmp_path, arguments, message):
    done = CliRunner().invoke(app, ["eval", str(run), "-o", str(tmp_path / "out"), "--limit", "1", *arguments])
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_run_without_weights(run, tmp_path):
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(CheckpointError, match="no checkpoint 'best'; train first"):
        evaluate(tmp_path, tmp_path / "out")


def test_a_data_set_that_is_not_there(run, tmp_path):
    source = DataSource(format="rhd", root=tmp_path / "missing", split="test")
    with pytest.raises(ValueError, match="missing"):
        evaluate(run, tmp_path / "out", EvaluationOptions(source=source, device="cpu"))
    assert not (tmp_path / "out").exists()


def test_the_progress_of_runs(tmp_path):
    lines = [{"epoch": epoch, "epe_mm": 50.0 - epoch, "below_tau": 0.1 * epoch} for epoch in range(4)]
    progress_plot(tmp_path / "progress.png", {"gate": lines, "constant": lines[:2]})
    assert read_image(tmp_path / "progress.png").std() > 10
    with pytest.raises(ValueError, match="constant has no finished epoch"):
        progress_plot(tmp_path / "other.png", {"constant": []})
    assert not (tmp_path / "other.png").exists()


def test_fingertips_alone(run, tmp_path):
    """Dexter+Object: five joints, absolute, up to 100 mm; frames without a tip are left out and counted."""
    write_dexter_object(tmp_path / "dexter")
    source = DataSource(format="dexter_object", root=tmp_path / "dexter", split="test")
    options = EvaluationOptions(source=source, refinement=False, workers=0, device="cpu")
    found = evaluate(run, tmp_path / "out", options)
    assert found["alignment"] == "none"
    assert "auc_do_0_100" in found["scores"][REGRESSION]
    assert "auc_zb2017_20_50" not in found["scores"][REGRESSION]
    dataset = open_dataset("dexter_object", tmp_path / "dexter", "test")
    labelled = sum(bool(np.isfinite(dataset[k].joints_m).any()) for k in range(len(dataset)))
    assert (found["samples"], found["without_labels"]) == (labelled, len(dataset) - labelled)
    with pytest.raises(ValueError, match="alignment of fingertips alone is one of none, centroid_scale, procrustes"):
        evaluate(run, tmp_path / "other", replace(options, alignment="root"))


def test_joints_that_are_not_visible_can_be_left_out(run, report, tmp_path):
    options = EvaluationOptions(refinement=False, visible_only=True, workers=0, device="cpu")
    seen = evaluate(run, tmp_path / "out", options)["scores"][REGRESSION]["epe_mm"]
    assert seen != report[0]["scores"][REGRESSION]["epe_mm"]
