"""The objective of a mini-batch against its parts, and the scores of a validation."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("safetensors", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")

from small_run import ALONE, small_batch, small_run_changes

from dhpe_fast.config import load_config
from dhpe_fast.losses import articulation_loss, feature_loss
from dhpe_fast.nets import heatmap_targets
from dhpe_fast.train import build_model
from dhpe_fast.train.objective import TrainingObjective
from dhpe_fast.train.validation import validate


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return load_config("tiny", small_run_changes(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def batch(config):
    return small_batch(config)


def test_total_is_the_weighted_sum_of_its_terms(config, batch):
    torch.manual_seed(0)
    weights = {"articulation": 2.0, "silhouette": 0.3, "feature": 0.5, "pose_prior": 0.01, "shape_prior": 0.1}
    open_gate = config.loss.gate.model_copy(update={"tau_px": 1e4})
    loss = config.loss.model_copy(update={**weights, "gate": open_gate})
    objective = TrainingObjective(build_model(config).eval(), loss)
    with torch.no_grad():
        found = objective(batch)
        masked = objective.model.features(batch.images * batch.masks[:, None])
        terms = objective.terms(batch, found.output, masked)
        gate = objective.gate(batch, found.output)
    assert gate.tolist() == [1, 1, 1, 1]
    expected = 0.0
    for name, term in terms.items():
        for row in range(4):
            factor = float(gate[row]) if name == "silhouette" else 1.0
            expected += getattr(loss, name) * factor * float(term[row]) / 4
    assert float(found.total) == pytest.approx(expected, rel=1e-5)
    assert set(terms) == {
        "articulation", "laplacian", "silhouette", "heatmap", "refine", "feature", "pose_prior", "shape_prior"
    }  # fmt: skip


def test_terms_are_those_of_the_equations(config, batch):
    torch.manual_seed(0)
    model = build_model(config).eval()
    objective = TrainingObjective(model, config.loss)
    with torch.no_grad():
        found = objective(batch)
        masked = model.features(batch.images * batch.masks[:, None])
        feature = feature_loss(found.output.evidence.features, masked, reduction="mean").mean()
        articulation = articulation_loss(found.output.projection.joints, batch.joints_crop, batch.valid).mean()
    torch.testing.assert_close(found.terms["feature"], feature)
    torch.testing.assert_close(found.terms["articulation"], articulation)


def test_every_iteration_of_the_2d_refiner_is_compared_with_the_truth(config, batch):
    """Eq. 6: squared distances in the unit interval, summed over iterations, joints and coordinates, in float64."""
    torch.manual_seed(0)
    objective = TrainingObjective(build_model(config).eval(), config.loss)
    with torch.no_grad():
        found = objective(batch)
    steps = [step.joints2d_px.double() / 32 for step in found.output.estimate.steps]
    assert len(steps) == 3
    truth, expected = batch.joints2d_px.double() / 32, 0.0
    for row in range(4):
        for joints in steps:
            for joint in range(21):
                if batch.valid[row, joint]:
                    expected += float(((joints[row, joint] - truth[row, joint]) ** 2).sum()) / 4
    assert float(found.terms["refine"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "opens", "closes"),
    # Eq. 10 with tau = 15 in a 224 crop. Distances halve in one of half the size, their squares are a quarter:
    # 7.5 px, and sum_21 d^2 = 3.75, so d = 0.4226 px.
    [("mean_distance", 7.4, 7.6), ("squared_norm", 0.42, 0.425)],
)
def test_the_gate_is_the_same_in_crops_of_any_size(config, batch, mode, opens, closes):
    gate = config.loss.gate.model_copy(update={"mode": mode})
    halved = config.model_copy(update={"model": replace(config.model, image_size=112)})
    objective = TrainingObjective(build_model(halved), config.loss.model_copy(update={"gate": gate}))
    seen = replace(batch, images=torch.zeros(4, 3, 112, 112), valid=torch.ones(4, 21, dtype=torch.bool))
    shift_px = torch.tensor([opens, closes, opens, closes])
    joints = seen.joints_crop.clone()
    joints[..., 0] += (shift_px / 56)[:, None]  # 56 px are 1 in a crop of 112
    output = SimpleNamespace(projection=SimpleNamespace(joints=joints))
    assert objective.gate(seen, output).tolist() == [1, 0, 1, 0]


def test_hands_without_labels_teach_nothing(config, batch):
    torch.manual_seed(0)
    objective = TrainingObjective(build_model(config).eval(), config.loss)
    unlabelled = replace(
        batch,
        valid=torch.zeros_like(batch.valid),
        has_mask=torch.zeros_like(batch.has_mask),
        joints_crop=torch.full_like(batch.joints_crop, torch.nan),
    )
    objective(unlabelled).total.backward()
    gradients = [p.grad for p in objective.model.pose2d.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        output = objective(unlabelled).output
        terms = objective.terms(unlabelled, output, output.evidence.features + 1)
    assert all(float(terms[name].abs().sum()) == 0 for name in ("articulation", "silhouette", "feature", "refine"))


def test_the_mesh_terms_leave_the_2d_network_alone(config, batch):
    torch.manual_seed(0)
    objective = TrainingObjective(build_model(config), config.loss.model_copy(update={"heatmap": 0.0}))
    objective(batch).total.backward()
    assert all(p.grad is None or not p.grad.any() for p in objective.model.pose2d.parameters())
    assert any(p.grad is not None and p.grad.any() for p in objective.model.features.parameters())


def test_half_precision_changes_the_networks_and_nothing_after_them(config, batch):
    torch.manual_seed(0)
    objective = TrainingObjective(build_model(config).eval(), config.loss.model_copy(update={"pose_prior": 0.01}))
    with torch.no_grad():
        full = objective(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = objective(batch)
            terms = objective.terms(batch, full.output, full.output.evidence.features)
    assert float(half.total) == pytest.approx(float(full.total), rel=0.05)
    for name in ("articulation", "laplacian", "silhouette", "refine", "pose_prior"):
        torch.testing.assert_close(terms[name].mean(), full.terms[name], msg=name)


def test_the_masked_crops_share_the_statistics_of_the_whole_ones(config, batch):
    torch.manual_seed(0)
    objective = TrainingObjective(build_model(config), config.loss).train()
    calls = []
    objective.model.features.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0]))
    one_without = replace(batch, has_mask=torch.tensor([True, True, False, True]))
    objective(one_without)
    assert [len(images) for images in calls] == [8]
    torch.testing.assert_close(calls[0][4], batch.images[0] * batch.masks[0])
    torch.testing.assert_close(calls[0][6], batch.images[2])


def test_validation_sees_the_networks_as_they_are_used(config, batch):
    """With the running statistics of batch normalisation, which stay as they are."""
    torch.manual_seed(0)
    model = build_model(config).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = validate(model, [batch], ALONE, 15.0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)
    assert found == validate(model.eval(), [batch], ALONE, 15.0)


def test_mirrored_hands_are_to_have_no_joints(config, batch):
    """Half of the batch is mirrored: its maps are compared with zeros, and of the others nothing changes."""
    alone = dict.fromkeys(("articulation", "laplacian", "feature", "silhouette", "refine"), 0)
    torch.manual_seed(0)
    model = build_model(config).eval()
    objectives = [
        TrainingObjective(model, config.loss.model_copy(update={**alone, "other_side": share})) for share in (0, 0.5)
    ]
    half = len(batch) // 2
    maps = model.pose2d(torch.cat([batch.images[:half].flip(-1), batch.images[half:]]))
    zeros = [stage[:half].square().mean((1, 2, 3)) for stage in maps]
    targets = heatmap_targets(batch.joints2d_px, batch.valid, maps[-1].shape[-1], config.model.image_size)
    others = [(stage - targets)[half:].square().mean((1, 2, 3)) for stage in maps]
    assert batch.valid.all()
    expected = torch.cat([sum(zeros), sum(others)]).mean()
    torch.testing.assert_close(objectives[1](batch).total, expected)
    assert objectives[0](batch).total != expected


def test_f_j2d_alone_learns_the_silhouette_of_the_hands_as_it_sees_them(config, batch):
    """A mirrored hand has a mirrored mask; one without a mask is not compared."""
    alone = dict.fromkeys(("articulation", "laplacian", "feature", "silhouette", "refine"), 0)
    unet = {"pose2d": "unet", "pose2d_width": 0.125, "pose2d_input_size": 32, "pose2d_silhouette": True}
    torch.manual_seed(0)
    model = build_model(config.model_copy(update={"model": replace(config.model, **unet)})).eval()
    loss = config.loss.model_copy(update={**alone, "other_side": 0.5, "heatmap": 3.0, "seen_silhouette": 2.0})
    seen = replace(batch, has_mask=torch.tensor([True, True, True, False]))
    assert seen.masks[:3].any((1, 2)).all()
    images = torch.cat([seen.images[:2].flip(-1), seen.images[2:]])
    with torch.no_grad():
        log_odds = model.estimate_joints2d_and_silhouette(images)[2].double()
        found = TrainingObjective(model, loss)(seen)
        without = TrainingObjective(model, loss.model_copy(update={"seen_silhouette": 0.0}))(seen)
    expected = 0.0
    for row in range(3):
        mask = seen.masks[row].flip(-1) if row < 2 else seen.masks[row]
        for i in range(8):
            for j in range(8):  # cells of 4 x 4 pixels
                share = mask[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].double().mean()
                told = log_odds[row, i, j].sigmoid()
                expected -= float(share * told.log() + (1 - share) * (1 - told).log()) / 64 / 4
    assert float(found.terms["seen_silhouette"]) == pytest.approx(expected, rel=1e-5)
    assert set(without.terms) == {"heatmap"}
    assert float(found.total) == pytest.approx(2 * expected + float(without.total), rel=1e-5)
    assert float(without.total) == pytest.approx(3 * float(found.terms["heatmap"]), rel=1e-5)
    torch.testing.assert_close(found.joints2d_px, without.joints2d_px)
