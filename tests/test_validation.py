"""The scores of an epoch's end, once more by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataset_files import write_rhd

pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")

from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.data import HandCrops, collate, open_dataset
from dhpe_fast.nets import DHPE
from dhpe_fast.train.distributed import World
from dhpe_fast.train.validation import validate

SIZE, HANDS, TAU_PX = 56, 3, 75.0
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Pixels of a 56 crop are four of a 224 one; one joint of one hand is not annotated."""
    crops = HandCrops(open_dataset("rhd", write_rhd(tmp_path_factory.mktemp("rhd"), HANDS).root, "train"), SIZE)
    batch = collate([crops[0, k] for k in range(HANDS)])
    valid = batch.valid.clone()
    valid[1, 7] = False
    return replace(batch, valid=valid)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = {"depth": 18, "image_size": SIZE, "pose2d_width": 0.0625, "pose2d_stages": 1, "pose2d_input_size": 64}
    return DHPE(**options).eval()


def test_scores_of_a_batch_by_hand(model, batch):
    found = validate(model, [batch], ALONE, TAU_PX)
    with torch.no_grad():
        output = model(batch.images.float() / 255)
    distances_mm, offsets_px, heatmap_px, ious = [], [], [], []
    for k in range(HANDS):
        known = batch.valid[k].numpy()
        joints = output.projection.joints[k].double().numpy()
        fx, fy, cx, cy = batch.camera[k].double().numpy()
        size_px, root_m = float(batch.size_px[k]), float(batch.root_depth_m[k])
        u, v = (batch.center_px[k].numpy() + size_px / 2 * joints[:, :2]).T
        z = root_m + (joints[:, 2] - joints[MIDDLE_MCP, 2]) * (size_px / 2 / (0.5 * (fx + fy)) * root_m)
        place = np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], axis=1)
        truth = batch.joints_m[k].double().numpy()
        apart = (place - place[MIDDLE_MCP]) - (truth - truth[MIDDLE_MCP])
        distances_mm.append(1000 * np.linalg.norm(apart, axis=1)[known].mean())
        truth_px = 112 * (batch.joints_crop[k, :, :2].numpy() + 1)
        offsets_px.append(np.linalg.norm(112 * (joints[:, :2] + 1) - truth_px, axis=1)[known].mean())
        seen_px = 4 * output.evidence.joints2d_px[k].numpy()
        heatmap_px.append(np.linalg.norm(seen_px - truth_px, axis=1)[known].mean())
        mask, hand = output.projection.mask[k].numpy() > 0.5, batch.masks[k].numpy() > 0
        ious.append((mask & hand).sum() / (mask | hand).sum())
    assert found["epe_mm"] == pytest.approx(np.mean(distances_mm), rel=1e-4)
    assert found["joints2d_px"] == pytest.approx(np.mean(offsets_px), rel=1e-4)
    assert found["heatmap_px"] == pytest.approx(np.mean(heatmap_px), rel=1e-4)
    assert found["iou"] == pytest.approx(np.mean(ious), rel=1e-4)
    below = np.array(offsets_px) < TAU_PX
    assert 0 < below.mean() < 1, offsets_px
    assert found["below_tau"] == pytest.approx(below.mean())


def test_an_estimate_that_is_not_finite_is_infinitely_far_away(model, batch):
    class Broken(SimpleNamespace):
        image_size = SIZE

        def eval(self):
            return self

        def __call__(self, images):
            output = model(images)
            output.projection.joints[0] = torch.nan
            return output

    found = validate(Broken(), [batch], ALONE, TAU_PX)
    assert (found["epe_mm"], found["joints2d_px"]) == (np.inf, np.inf)
    assert found["below_tau"] < 1
