"""Rendered hands: that the answer which comes with them is the right one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.data import RenderedHand, render_hands
from dhpe_fast.data.demo import DEMO_ANSWER, load_demo
from dhpe_fast.hand import HandModel, Pinhole, WeakPerspective
from dhpe_fast.io import read_keypoints

SIZE = (96, 128)


@pytest.fixture(scope="module", params=["weak", "pinhole"])
def hands(request) -> list[RenderedHand]:
    return render_hands(6, 1, image_size=SIZE, camera=request.param)


def test_joints_are_those_of_the_mesh_projected_by_the_camera(hands):
    for hand in hands:
        torch.testing.assert_close(hand.camera.project(hand.joints_m), hand.joints2d_px)
        mesh = hand.model(hand.params.pose, hand.params.shape)
        lengths = [torch.linalg.vector_norm(x - x[MIDDLE_MCP], dim=1) for x in (mesh.joints_m[0], hand.joints_m)]
        torch.testing.assert_close(*lengths, atol=1e-6, rtol=1e-4)


def test_parameters_give_the_same_hand_in_the_crop_frame(hands):
    for hand in hands:
        mesh = hand.model.decode(hand.params)
        root = hand.joints_m[MIDDLE_MCP]
        around_root = (mesh.verts_m[0] - mesh.joints_m[0, MIDDLE_MCP]) / hand.params.scale
        torch.testing.assert_close(around_root, hand.verts_m - root, atol=1e-6, rtol=1e-4)
        root_px = hand.crop.from_crop(mesh.joints_m[0, MIDDLE_MCP])
        torch.testing.assert_close(root_px, hand.joints2d_px[MIDDLE_MCP], atol=1e-3, rtol=0)
        if isinstance(hand.camera, WeakPerspective):
            torch.testing.assert_close(hand.crop.from_crop(mesh.joints_m[0]), hand.joints2d_px, atol=1e-3, rtol=0)


def test_weak_perspective_hands_have_their_origin_at_the_middle_mcp(hands):
    for hand in hands:
        at_origin = bool((hand.joints_m[MIDDLE_MCP].abs() < 1e-7).all())
        assert at_origin == isinstance(hand.camera, WeakPerspective)
        if isinstance(hand.camera, Pinhole):
            assert float(hand.verts_m[:, 2].min()) > 0.05


def test_all_vertices_are_inside_the_image_and_of_the_mask(hands):
    for hand in hands:
        points_px = hand.camera.project(hand.verts_m)
        assert float(points_px.min()) >= 0
        assert (points_px.max(0).values <= torch.tensor([SIZE[1], SIZE[0]])).all()
        assert hand.mask.shape == SIZE
        rows, columns = torch.nonzero(hand.mask).unbind(1)
        assert float(columns.min()) == pytest.approx(float(points_px[:, 0].min()), abs=2)
        assert float(rows.max()) == pytest.approx(float(points_px[:, 1].max()), abs=2)


def test_the_same_seed_gives_the_same_hands_and_another_one_others():
    first, again, other = (render_hands(2, seed, image_size=SIZE, pictures=True) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[1].image, again[1].image)
    torch.testing.assert_close(first[1].verts_m, again[1].verts_m, rtol=0, atol=0)
    assert (first[1].verts_m - other[1].verts_m).abs().max() > 1e-3


def test_poses_shapes_and_viewpoints_vary_as_documented():
    hands = render_hands(60, 0, image_size=(32, 32))
    betas = torch.cat([hand.params.shape for hand in hands])
    assert float(betas.abs().max()) <= 2
    assert 0.7 < float(betas.std()) < 1.1
    # The palm's normal of a uniformly turned hand has no preferred direction.
    quats = torch.cat([hand.params.quat for hand in hands])
    torch.testing.assert_close(torch.linalg.vector_norm(quats, dim=1), torch.ones(60))
    facing = torch.stack([hand.joints_m[5] - hand.joints_m[0] for hand in hands])
    assert float(torch.nn.functional.normalize(facing, dim=1).mean(0).abs().max()) < 0.3


def test_a_left_model_gives_left_hands():
    (hand,) = render_hands(1, 0, HandModel.default("left"), SIZE)
    assert hand.side == hand.model.side == "left"


def test_a_picture_shows_skin_where_the_mask_is():
    hands = render_hands(4, 5, image_size=(64, 64), camera="mixed", pictures=True)
    for hand in hands:
        assert hand.image.shape == (64, 64, 3)
        assert hand.image.dtype == np.uint8
        inside = hand.image[hand.mask.numpy()].astype(float).mean(0)
        assert inside[0] > inside[2]  # skin is redder than blue, whatever its tone


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="n >= 0"):
        render_hands(-1, 0)
    with pytest.raises(ValueError, match=r"\(8, 64\)"):
        render_hands(1, 0, image_size=(8, 64))
    with pytest.raises(ValueError, match="camera"):
        render_hands(1, 0, camera="fisheye")
    assert render_hands(0, 0) == []


# --- The sample picture -------------------------------------------------------------------------------------


def test_the_sample_picture_comes_with_a_consistent_answer():
    demo = load_demo()
    assert demo.image.shape == (480, 480, 3)
    np.testing.assert_allclose(demo.camera.project(demo.joints_m).numpy(), demo.keypoints2d_px, atol=0.01)
    tips = torch.cdist(demo.joints_m[[4, 8, 12, 16, 20]], demo.verts_m).min(1).values
    assert float(tips.max()) < 1e-5
    x, y = demo.camera.project(demo.verts_m).long().unbind(1)
    skin = demo.image[y.numpy(), x.numpy()].astype(float)
    assert (skin[:, 0] > skin[:, 2]).mean() > 0.95


def test_the_sample_answer_is_a_keypoint_file():
    keypoints = read_keypoints(DEMO_ANSWER)
    assert keypoints.side == json.loads(DEMO_ANSWER.read_text())["side"]
    np.testing.assert_array_equal(keypoints.joints2d_px, load_demo().keypoints2d_px)
