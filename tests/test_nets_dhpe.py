"""DHPE as a whole: what Fig. 2 of the paper names is there, gradients go where the paper sends them, and no further."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from dhpe_fast.conventions import H_LAYOUT, MIDDLE_MCP
from dhpe_fast.hand import HandModel
from dhpe_fast.nets import DHPE, DHPEOutput, Evidence

SMALL = {"depth": 18, "image_size": 64, "pose2d_width": 1 / 16, "pose2d_input_size": 64}
SIDE = 64


@pytest.fixture(scope="module")
def hand() -> HandModel:
    return HandModel.default()


@pytest.fixture
def dhpe(hand) -> DHPE:
    return DHPE(hand, **SMALL)


def crops(n: int = 2, side: int = SIDE) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def parameters_with_gradient(dhpe: DHPE) -> set[str]:
    """Of the parts F, f_J2D, f_J3D and f_Ref."""
    parts = {
        "F": dhpe.features,
        "f_J2D": dhpe.pose2d,
        "f_J3D": dhpe.mesh_estimator.regressor,
        "f_Ref": dhpe.mesh_estimator.refiner,
    }
    return {
        name
        for name, part in parts.items()
        if any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in part.parameters())
    }


def test_every_intermediate_of_the_papers_figure_is_returned(dhpe, device):
    out = dhpe.to(device)(crops().to(device))
    assert isinstance(out, DHPEOutput)
    assert out.projection.mask.device.type == device.type
    assert out.evidence.features.shape == (2, 512)
    assert [tuple(maps.shape) for maps in out.evidence.heatmaps] == [(2, 21, 8, 8)] * 3
    assert out.evidence.joints2d_px.shape == (2, 21, 2)
    assert [(tuple(step.h.shape), tuple(step.joints2d_px.shape)) for step in out.estimate.steps] == [
        ((2, 63), (2, 21, 2))
    ] * 3
    assert out.estimate.h is out.estimate.steps[-1].h
    assert out.estimate.joints2d_px is out.estimate.steps[-1].joints2d_px
    assert out.projection.verts.shape == (2, 778, 3)
    assert out.projection.joints.shape == (2, 21, 3)
    assert out.projection.mask.shape == (2, SIDE, SIDE)


def test_the_papers_sizes():
    """ResNet-50 at 224 pixels, heat maps of 32 x 32; f_J2D is thin here, see test_nets_pose2d.py."""
    dhpe = DHPE(pose2d_width=1 / 16).eval()
    assert dhpe.mesh_estimator.regressor.weight.T.shape == (2153, 63)
    assert dhpe.mesh_estimator.refiner.weight.T.shape == (2216, 42)
    with torch.no_grad():
        out = dhpe(crops(1, 224))
    assert out.evidence.features.shape == (1, 2048)
    assert out.evidence.heatmaps[-1].shape == (1, 21, 32, 32)
    assert out.projection.mask.shape == (1, 224, 224)
    assert out.projection.joints[:, MIDDLE_MCP].abs().max() < 0.1


@pytest.mark.parametrize("training", [True, False])
def test_an_untrained_network_sees_an_upright_hand_in_the_middle_of_every_crop(dhpe, training):
    dhpe.train(training)
    with torch.no_grad():
        out = dhpe(crops(4))
    joints = out.projection.joints
    assert joints[:, MIDDLE_MCP].abs().max() < 0.1
    above_the_wrist = joints[:, 0, 1] - joints[:, 12, 1]  # y points down
    assert (above_the_wrist > 0.4).all()
    covered = out.projection.mask.mean((1, 2))
    assert ((covered > 0.1) & (covered < 0.6)).all()


def test_a_mesh_loss_trains_everything_but_the_2d_pose_network(dhpe, device):
    projection = dhpe.to(device)(crops().to(device)).projection
    (projection.joints.square().sum() + projection.mask.sum()).backward()
    assert parameters_with_gradient(dhpe) == {"F", "f_J3D", "f_Ref"}


def test_a_mask_loss_reaches_the_features_through_the_renderer(dhpe):
    dhpe(crops()).projection.mask.sum().backward()
    assert {"F", "f_J3D"} <= parameters_with_gradient(dhpe)


def test_the_heatmap_loss_trains_the_2d_pose_network_alone(dhpe):
    evidence = dhpe.estimate_evidence(crops())
    sum(maps.square().sum() for maps in evidence.heatmaps).backward()
    assert parameters_with_gradient(dhpe) == {"f_J2D"}


def test_the_loss_of_refined_joints_trains_estimator_and_features(dhpe):
    dhpe(crops()).estimate.joints2d_px.square().sum().backward()
    assert parameters_with_gradient(dhpe) == {"F", "f_J3D", "f_Ref"}


def test_each_arrow_is_a_method_and_forward_their_composition(dhpe):
    dhpe.eval()
    with torch.no_grad():
        out = dhpe(crops())
        evidence = dhpe.estimate_evidence(crops())
        estimate = dhpe.estimate_mesh(Evidence(evidence.features, (), evidence.joints2d_px))
        projection = dhpe.project(estimate.h)
    for name in ("verts", "joints", "mask"):
        torch.testing.assert_close(getattr(projection, name), getattr(out.projection, name), rtol=0, atol=0)


def test_evaluation_looks_at_each_crop_alone(dhpe):
    dhpe.eval()
    with torch.no_grad():
        together, alone = dhpe(crops(3)), dhpe(crops(3)[1:2])
    torch.testing.assert_close(alone.estimate.h[0], together.estimate.h[1], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(dhpe(crops(3)).estimate.h, together.estimate.h, rtol=0, atol=0)


def test_a_spec_and_a_state_dict_bring_the_network_back(dhpe, hand):
    spec = json.loads(json.dumps(dhpe.spec()))
    twin = DHPE.from_spec(spec, hand)
    assert twin.spec() == dhpe.spec()
    twin.load_state_dict(dhpe.state_dict())
    with torch.no_grad():
        expected, got = dhpe.eval()(crops()), twin.eval()(crops())
    torch.testing.assert_close(got.projection.verts, expected.projection.verts, rtol=0, atol=0)


def test_no_part_of_a_licensed_hand_goes_into_a_checkpoint(dhpe):
    sizes = {tuple(value.shape) for value in dhpe.state_dict().values()}
    assert not any(778 in size for size in sizes)
    assert not any("hand" in name for name in dhpe.state_dict())


def test_the_callers_hand_is_not_changed(hand):
    before = copy.deepcopy(hand)
    dhpe = DHPE(hand, **SMALL).double()
    assert dhpe.hand.hands_mean.dtype == torch.float64
    assert hand.hands_mean.dtype == before.hands_mean.dtype


def test_copies_share_one_hand_among_their_parts(dhpe):
    """As for a moving average of the weights."""
    twin = copy.deepcopy(dhpe)
    assert twin.hand is twin.mesh_estimator.hand
    assert twin.hand is not dhpe.hand
    with torch.no_grad():
        expected, got = dhpe.eval()(crops()), twin.eval()(crops())
    torch.testing.assert_close(got.projection.verts, expected.projection.verts, rtol=0, atol=0)


@pytest.mark.parametrize("use_joints2d", [True, False])
@pytest.mark.parametrize("use_refiner", [True, False])
def test_the_ablations_of_the_paper(hand, use_joints2d, use_refiner):
    dhpe = DHPE(hand, **SMALL, use_joints2d=use_joints2d, use_refiner=use_refiner)
    assert dhpe.mesh_estimator.regressor.in_features == 512 + 42 * use_joints2d + 63
    out = dhpe(crops())
    if use_refiner:
        assert dhpe.mesh_estimator.refiner.in_features == 42 + 512 + 63 + 63
    else:
        assert dhpe.mesh_estimator.refiner is None
        for step in out.estimate.steps:
            torch.testing.assert_close(step.joints2d_px, out.evidence.joints2d_px)


def test_everything_after_the_convolutions_keeps_its_precision_under_autocast(dhpe, device):
    dhpe.eval().to(device)
    inside = []
    dhpe.features.layer4.register_forward_hook(lambda module, args, output: inside.append(output.dtype))
    dhpe.pose2d.trunk.register_forward_hook(lambda module, args, output: inside.append(output.dtype))
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        out = dhpe(crops().to(device))
    assert inside == [torch.bfloat16] * 2
    for value in (*out.evidence.heatmaps, out.evidence.features, out.evidence.joints2d_px):
        assert value.dtype == torch.float32
    for value in (out.estimate.h, out.estimate.joints2d_px, *vars(out.projection).values()):
        assert value.dtype == torch.float32
    with torch.no_grad():
        again = dhpe.project(out.estimate.h)
    for name in ("verts", "joints", "mask"):
        torch.testing.assert_close(getattr(out.projection, name), getattr(again, name), rtol=0, atol=0)


def test_training_under_autocast_gives_finite_gradients(dhpe, device):
    dhpe.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        out = dhpe(crops().to(device))
        loss = out.projection.joints.square().sum() + out.projection.mask.sum() + out.estimate.joints2d_px.sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in dhpe.parameters() if p.grad is not None)


def test_f_j2d_alone_may_tell_the_silhouette(hand):
    dhpe = DHPE(hand, **SMALL | {"pose2d": "unet", "pose2d_width": 0.25}, pose2d_silhouette=True).eval()
    heatmaps, joints2d_px, log_odds = dhpe.estimate_joints2d_and_silhouette(crops())
    assert log_odds.shape == (2, 16, 16)
    expected_maps, expected_px = dhpe.estimate_joints2d(crops())
    torch.testing.assert_close((heatmaps, joints2d_px), (expected_maps, expected_px), rtol=0, atol=0)
    log_odds.square().sum().backward()
    assert parameters_with_gradient(dhpe) == {"f_J2D"}
    twin = DHPE.from_spec(json.loads(json.dumps(dhpe.spec())), hand)
    twin.load_state_dict(dhpe.state_dict())
    torch.testing.assert_close(twin.eval().estimate_joints2d_and_silhouette(crops())[2], log_odds, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"images: expected crops \(B, 3, 64, 64\), got \(1, 3, 32, 32\)"):
        dhpe.estimate_joints2d_and_silhouette(crops(1, 32))


def test_a_network_without_a_silhouette_says_so(dhpe):
    with pytest.raises(ValueError, match="pose2d_silhouette: this f_J2D tells no silhouette, it was made without"):
        dhpe.estimate_joints2d_and_silhouette(crops())


@pytest.mark.parametrize("part", H_LAYOUT)
def test_no_hand_breaks_the_projection(dhpe, part):
    """Zeros and large numbers in any part of h, the zero quaternion included."""
    h = dhpe.estimate_mesh(Evidence(torch.zeros(3, 512), (), torch.full((3, 21, 2), 32.0))).h.detach().clone()
    h[:, H_LAYOUT[part]] = torch.tensor([0.0, 1e3, -1e3])[:, None]
    h.requires_grad_()
    projection = dhpe.project(h)
    (projection.verts.sum() + projection.joints.sum() + projection.mask.sum()).backward()
    for value in (*vars(projection).values(), h.grad):
        assert value.isfinite().all()


def test_an_empty_batch(dhpe):
    out = dhpe.eval()(crops(0))
    assert out.estimate.h.shape == (0, 63)
    assert out.projection.mask.shape == (0, SIDE, SIDE)


def test_bad_input_is_refused_by_name(dhpe):
    with pytest.raises(TypeError, match=r"images: expected a floating-point tensor.*uint8"):
        dhpe(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images: expected crops \(B, 3, 64, 64\), got \(1, 3, 32, 32\)"):
        dhpe(crops(1, 32))
    with pytest.raises(ValueError, match=r"images: expected \(B, 3, H, W\)"):
        dhpe(torch.zeros(1, SIDE, SIDE, 3))
    with pytest.raises(ValueError, match=r"h: expected \(B, 63\), got \(2, 61\)"):
        dhpe.project(torch.zeros(2, 61))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dpeth": 50}, TypeError, "unknown option 'dpeth'; options are depth, image_size"),
        ({"depth": 20}, ValueError, "depth: expected one of 18, 34, 50, 101, 152, got 20"),
        ({"joint0": "elbow"}, ValueError, "joint0: expected 'palm' or 'wrist', got 'elbow'"),
        ({"silhouette_mode": "hard"}, ValueError, "silhouette_mode: expected one of"),
        ({"iterations": 0}, ValueError, "iterations: expected a whole number >= 1, got 0"),
        ({"pose2d_input_size": 60}, ValueError, "input_size: expected a positive multiple of 8, got 60"),
        ({"image_size": 0}, ValueError, "image_size: expected"),
        ({"pose2d_silhouette": True}, ValueError, "pose2d_silhouette: of pose2d='unet' only, got pose2d='posenet'"),
    ],
)
def test_bad_options_are_refused_by_name(hand, options, error, message):
    with pytest.raises(error, match=message):
        DHPE(hand, **{**SMALL, **options})
