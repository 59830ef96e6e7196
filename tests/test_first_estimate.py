"""Where a fit starts: with the lifter and without, for either side, and that its weights are what they should be."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import dhpe_fast
from dhpe_fast import first_estimate, pretrained
from dhpe_fast.data import render_hands
from dhpe_fast.evidence import HandEvidence
from dhpe_fast.first_estimate import expecting, lifted_starts, starts
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.mirror import mirror_pose
from dhpe_fast.metrics import pa_mpjpe_mm
from dhpe_fast.nets.lifter import Lifter, LifterSpec
from dhpe_fast.projection import ScaledOrthographic
from dhpe_fast.refinement.gauss_newton import Evidence2d, HandConstants, HandState

BLANK = np.zeros((256, 256, 3), np.uint8)


@pytest.fixture(scope="module")
def hands():
    return render_hands(12, 3)


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return Lifter(LifterSpec(width=16, blocks=1, hypotheses=4), HandModel.default()).eval().requires_grad_(False)


@pytest.fixture
def with_lifter(monkeypatch):
    """The package has this lifter, or with None none."""

    def put(lifter):
        monkeypatch.setattr(pretrained, "available", lambda name: lifter is not None)
        monkeypatch.setattr(pretrained, "lifter", lambda: lifter)

    return put


def evidence_of(hand) -> Evidence2d:
    """The joints in the crop of a fit."""
    joints = hand.crop.to_crop(hand.joints2d_px.double())
    return Evidence2d(joints, torch.ones(21, dtype=torch.float64), None)


def joints_of(model: HandModel, state: HandState) -> torch.Tensor:
    joints_m = model.joints_m(state.pose.float(), state.betas.float()).double()
    return joints_m @ state.rotation.transpose(1, 2)


def test_with_a_lifter_there_are_its_likeliest_hypotheses_and_a_few_alignments(hands, untrained, with_lifter):
    model = HandModel.default()
    hand = HandConstants.of(model)
    with_lifter(untrained)
    both = starts(model, hand, evidence_of(hands[0])).state
    assert len(both.pose) == first_estimate.LIKELIEST + first_estimate.ALIGNMENTS
    assert {part.dtype for part in (both.pose, both.betas, both.rotation, both.cam)} == {torch.float64}
    with_lifter(None)
    alone = starts(model, hand, evidence_of(hands[0])).state
    assert len(alone.pose) == first_estimate.ALIGNMENTS_ALONE
    torch.testing.assert_close(both.pose[first_estimate.LIKELIEST :], alone.pose[: first_estimate.ALIGNMENTS])
    torch.testing.assert_close(both.cam[first_estimate.LIKELIEST :], alone.cam[: first_estimate.ALIGNMENTS])


def test_a_left_model_gets_the_mirrored_hypotheses(hands, untrained):
    right, left = HandModel.default(), HandModel.default("left")
    evidence = evidence_of(hands[1])
    flip = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    ours = lifted_starts(untrained, right, evidence).state
    theirs = lifted_starts(untrained, left, Evidence2d(evidence.joints * flip, evidence.confidence, None)).state
    torch.testing.assert_close(theirs.pose, mirror_pose(ours.pose))
    torch.testing.assert_close(theirs.betas, ours.betas)
    expected = joints_of(right, ours) * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(joints_of(left, theirs), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(theirs.cam, ScaledOrthographic().mirrored(ours.cam), rtol=0, atol=1e-5)


def test_the_prior_expects_what_the_lifter_says_halfway(hands, untrained, with_lifter):
    model = HandModel.default()
    hand, evidence = HandConstants.of(model), evidence_of(hands[0])
    with_lifter(untrained)
    start = starts(model, hand, evidence)
    torch.testing.assert_close(start.pose, start.state.pose[0])
    moved = expecting(hand, start)
    torch.testing.assert_close(moved.prior.mean, 0.5 * (hand.prior.mean + start.pose))
    torch.testing.assert_close(moved.compiled_hand.mean, moved.prior.mean)
    assert float(moved.prior.energy(moved.prior.mean)) == 0 < float(moved.prior.energy(hand.prior.mean))
    broken = replace(start, pose=start.pose * torch.nan)
    assert expecting(hand, broken) is hand
    with_lifter(None)
    assert expecting(hand, starts(model, hand, evidence)) is hand


def test_bad_hypotheses_do_no_harm(hands, untrained, with_lifter):
    """The start is only a start: beside an untrained network the alignments find the hand."""
    with_lifter(untrained)
    errors = []
    for hand in hands:
        found = dhpe_fast.fit(BLANK, keypoints=hand.joints2d_px.double().numpy(), hand="right")
        assert found.residuals["joints2d_box"] < 0.01
        errors.append(float(pa_mpjpe_mm(found.joints_m, hand.joints_m)))
    assert np.median(errors) < 4


def test_a_hypothesis_that_is_not_finite_does_no_harm(hands, untrained, with_lifter):
    broken = Lifter(untrained.options, HandModel.default()).eval().requires_grad_(False)
    broken.last[1].bias.fill_(torch.nan)
    with_lifter(broken)
    found = dhpe_fast.fit(BLANK, keypoints=hands[0].joints2d_px.double().numpy(), hand="right")
    assert found.residuals["joints2d_box"] < 0.01


@pytest.mark.skipif(not pretrained.available("lifter"), reason="this build has no weights of the lifter")
def test_the_weights_of_the_package_start_near_the_answer(hands):
    """Without any refinement: nearer than a hand span's tenth, after alignment, and on the joints in the image."""
    model, errors = HandModel.default(), []
    for hand in hands:
        evidence = evidence_of(hand)
        state = lifted_starts(pretrained.lifter(), model, evidence).state
        joints_m = joints_of(model, state)
        errors.append(float(pa_mpjpe_mm(joints_m, hand.joints_m.double()[None].expand_as(joints_m)).amin()))
        image = ScaledOrthographic().project(joints_m, state.cam)[..., :2]
        assert float((image - evidence.joints).norm(dim=-1).mean(1).amin()) < 0.12
    assert np.median(errors) < 6


@pytest.mark.skipif(not pretrained.available("lifter"), reason="this build has no weights of the lifter")
def test_joints_of_an_evidence_source_are_believed_as_far_as_they_look_like_a_hand(hands):
    """Noise of 4 % of the crop: whoever believes it to the pixel bends the hand. Exact joints are met in both ways."""
    rng = np.random.default_rng(0)

    def errors_mm(noise: float) -> tuple[float, float]:
        found = []
        for hand in hands:
            joints_px = hand.joints2d_px.double().numpy()
            joints_px = joints_px + noise * hand.crop.size_px * rng.normal(size=joints_px.shape)
            seen = HandEvidence(joints_px, np.ones(21), "right", 1.0)
            believed = dhpe_fast.fit(BLANK, keypoints=joints_px, hand="right")
            (doubted,) = dhpe_fast.fit(BLANK, evidence=lambda image, boxes, seen=seen: [seen])
            found.append([float(pa_mpjpe_mm(one.joints_m, hand.joints_m)) for one in (believed, doubted)])
        return tuple(np.median(found, axis=0))

    believed, doubted = errors_mm(0.04)
    assert doubted < 0.8 * believed
    believed, doubted = errors_mm(0.0)
    assert doubted < believed + 1


def test_without_a_lifter_nobody_knows_the_noise(hands, with_lifter):
    with_lifter(None)
    joints_px = hands[0].joints2d_px.double().numpy()
    seen = HandEvidence(joints_px, np.ones(21), "right", 1.0)
    given = dhpe_fast.fit(BLANK, keypoints=joints_px, hand="right")
    (found,) = dhpe_fast.fit(BLANK, evidence=lambda image, boxes: [seen])
    torch.testing.assert_close(found.verts_m, given.verts_m, rtol=0, atol=0)


@pytest.mark.parametrize("file", [None, b"damaged"])
def test_a_lifter_that_is_promised_but_missing_or_damaged_is_an_error(tmp_path, monkeypatch, file):
    """Not a fit that is silently worse."""
    model = HandModel.default()
    evidence = Evidence2d(torch.rand(21, 2, dtype=torch.float64), torch.ones(21, dtype=torch.float64), None)
    monkeypatch.setattr(pretrained, "shipped", pretrained.WeightsFolder(tmp_path))
    (tmp_path / pretrained.MANIFEST).write_text(json.dumps({"lifter.pt": {"bytes": 9, "sha256": ""}}))
    if file is not None:
        (tmp_path / "lifter.pt").write_bytes(file)
    with pytest.raises(pretrained.WeightsError, match=r"lifter\.pt"):
        starts(model, HandConstants.of(model), evidence)
    (tmp_path / pretrained.MANIFEST).write_text("{}")
    alone = starts(model, HandConstants.of(model), evidence)
    assert len(alone.state.pose) == first_estimate.ALIGNMENTS_ALONE
