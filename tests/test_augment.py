"""New views of a hand: the colours it keeps, the numbers it is drawn from, and the labels that come with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dhpe_fast import augment
from dhpe_fast.augment import (
    SHAPE_RANGE,
    AugmentedCrops,
    Instances,
    TextureRenderer,
    _Smoothed,
    draw_instances,
    instance_params,
    propose_instances,
)
from dhpe_fast.conventions import H_LAYOUT, MIDDLE_MCP
from dhpe_fast.data import CropAugmentation, HandCrops, collate, open_dataset, render_hands
from dhpe_fast.data.synthetic import write_synthetic
from dhpe_fast.hand import HandModel
from dhpe_fast.nets.mesh_estimator import initial_hand
from dhpe_fast.ops import rasterize
from dhpe_fast.rotation import axis_angle_to_quaternion, quaternion_to_matrix

SIZE = 96


@pytest.fixture(scope="module")
def seen():
    """Crops of pictures whose answer is known: images (B, 3, S, S), h (B, 63), and the model."""
    hands = render_hands(3, seed=5, image_size=(192, 192), pictures=True)
    crops = [torch.from_numpy(hand.crop.crop_image(hand.image, SIZE)).permute(2, 0, 1).float() / 255 for hand in hands]
    return torch.stack(crops), torch.cat([hand.params.packed() for hand in hands]), hands[0].model


def proposals(seen, n_per_seed=2) -> Instances:
    return propose_instances(seen[1], torch.arange(len(seen[1])), epoch=4, n_per_seed=n_per_seed, seed=0)


def test_a_hand_drawn_from_where_it_was_seen_looks_as_it_did(seen):
    images, h, model = seen
    renderer, verts = TextureRenderer(model), model.decode(h).verts_m
    drawn, coverage = renderer.render(renderer.texture(images, verts), verts, SIZE)
    inside = coverage == 1
    assert inside.sum() > 0.05 * inside.numel()
    difference = (drawn - images).abs().amax(1)[inside]
    assert float(difference.median()) < 0.02
    assert float(difference.quantile(0.8)) < 0.1


def test_colours_stay_on_the_skin_when_the_hand_turns(seen):
    """Each vertex gets a colour that tells which it is; from another side it must be found where that vertex is."""
    _, h, model = seen
    verts = model.decode(h[:1]).verts_m
    template = model.v_template
    marks = (template - template.min(0).values) / (template.max(0).values - template.min(0).values)
    renderer = TextureRenderer(model)
    image, coverage = painted(model, verts, marks)
    texture = renderer.texture((image + (1 - coverage) * 0.5), verts)
    turn = quaternion_to_matrix(axis_angle_to_quaternion(torch.tensor([[0.0, 0.35, 0.0]])))
    verts_turned = verts @ turn.transpose(-1, -2)
    drawn, alpha = renderer.render(texture, verts_turned, SIZE)
    expected, _ = painted(model, verts_turned, marks)
    inside = alpha[0] == 1
    difference = (drawn - expected).abs().amax(1)[0][inside]
    # The sides that come into view are guessed; the rest is known.
    assert float(difference.quantile(0.6)) < 0.08


def painted(model, verts, colors):
    size = 2 * SIZE
    verts_px = torch.cat([(verts[..., :2] + 1) * size / 2, verts[..., 2:]], -1)
    fragments = rasterize(verts_px, model.faces, size)
    face = fragments.face_index[0].long().clamp_min(0)
    picture = (colors[model.faces.long()][face] * fragments.bary[0][..., None]).sum(-2).permute(2, 0, 1)[None]
    covered = (fragments.face_index >= 0).float()[:, None]
    pool = torch.nn.functional.avg_pool2d
    return pool(picture * covered, 2), pool(covered, 2)


def test_hidden_skin_takes_on_the_colours_around_it(seen):
    images, h, model = seen
    texture = TextureRenderer(model).texture(images, model.decode(h).verts_m)
    weight, colors = texture.vertex_values[..., 3], texture.vertex_values[..., 4:]
    for hand in range(len(h)):
        shown, hidden = colors[hand][weight[hand] > 0.9], colors[hand][weight[hand] == 0]
        assert len(shown) > 50
        assert len(hidden) > 100
        low, high = shown.amin(0) - 0.02, shown.amax(0) + 0.02
        assert ((hidden >= low) & (hidden <= high)).all()


def test_filled_in_colours_are_the_minimum(seen):
    """Against the dense system, in float64, of seen_i |x_i - c_i|^2 and 0.05 |x_i - x_j|^2 along the edges."""
    faces = seen[2].faces
    torch.manual_seed(0)
    weight = torch.rand(2, 778, 1, dtype=torch.float64)
    weight[:, 300:] = 1e-4
    right = weight * torch.rand(2, 778, 3, dtype=torch.float64)
    matrix = torch.diag_embed(weight[..., 0])
    for i, j in {tuple(sorted((face[k], face[k - 1]))) for face in faces.tolist() for k in range(3)}:
        for row, column, value in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            matrix[:, row, column] += 0.05 * value
    leaves = [x.clone().requires_grad_() for x in (weight, right)]
    dense = torch.linalg.solve(matrix.detach() + torch.diag_embed(leaves[0][..., 0] - weight[..., 0]), leaves[1])
    upstream = torch.randn_like(right)
    expected = torch.autograd.grad((dense * upstream).sum(), leaves)
    neighbours = TextureRenderer(seen[2])._neighbours
    found = _Smoothed.apply(*leaves, neighbours)
    gradients = torch.autograd.grad((found * upstream).sum(), leaves)
    for one, other in zip((found, *gradients), (dense, *expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.detach().abs().max()))
    alone = _Smoothed.apply(weight[1:].float(), right[1:].float(), neighbours)
    together = _Smoothed.apply(weight.float(), right.float(), neighbours)
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)


def test_a_hand_beside_the_image_has_finite_colours(seen):
    images, h, model = seen
    verts = model.decode(h).verts_m + torch.tensor((9.0, 0, 0))
    texture = TextureRenderer(model).texture(images, verts)
    assert texture.vertex_values.isfinite().all()
    assert (texture.vertex_values[..., 3] == 0).all()


def test_colours_and_vertices_receive_gradients(seen):
    images, h, model = seen
    images = images[:1].clone().requires_grad_()
    verts = model.decode(h[:1]).verts_m.detach().requires_grad_()
    renderer = TextureRenderer(model)
    drawn, _ = renderer.render(renderer.texture(images, verts.detach()), verts, SIZE)
    (drawn * torch.rand_like(drawn)).sum().backward()
    for leaf in (images, verts):
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


def test_proposals_are_uniform_in_shape_and_angle_and_keep_the_pose(seen):
    h = seen[1][:1].expand(400, 63)
    found = propose_instances(h, torch.arange(400), epoch=2, n_per_seed=3, seed=1)
    assert len(found) == 1200
    betas = found.betas.numpy()
    assert np.abs(betas).max() <= SHAPE_RANGE
    deciles = np.histogram(betas, bins=10, range=(-SHAPE_RANGE, SHAPE_RANGE))[0] / betas.size
    np.testing.assert_allclose(deciles, 0.1, atol=0.012)
    # About the middle of three axes by a uniform angle: sin of it is the entry (0, 2) of Rx Ry Rz.
    entry = quaternion_to_matrix(found.turn)[:, 0, 2].numpy()
    assert abs((np.abs(entry) < np.sin(np.pi / 4)).mean() - 0.5) < 0.05
    params = instance_params(found[:5], seen[2])
    torch.testing.assert_close(params[:, H_LAYOUT["pose"]], h[:5, H_LAYOUT["pose"]])


def test_a_new_hand_has_the_new_shape_and_is_turned_further_in_the_crop(seen):
    """R' = R(turn) R(quat): the turn is about the axes of the crop, not about those of the hand."""
    h, model = seen[1], seen[2]
    found = propose_instances(h, torch.arange(3), epoch=7, n_per_seed=2, seed=3)
    params = instance_params(found, model).double().numpy()
    np.testing.assert_array_equal(params[:, H_LAYOUT["shape"]], found.betas.numpy())
    assert np.abs(found.betas.numpy() - h[found.source][:, H_LAYOUT["shape"]].numpy()).max(1).min() > 0.5
    for row in range(6):
        before = h[found.source[row], H_LAYOUT["quat"]].double().numpy()
        expected = rotation_of(found.turn[row].double().numpy()) @ rotation_of(before)
        np.testing.assert_allclose(rotation_of(params[row, H_LAYOUT["quat"]]), expected, atol=1e-5)


def rotation_of(quaternion: np.ndarray) -> np.ndarray:
    """(3, 3) of (w, x, y, z): v + 2 w (u x v) + 2 u x (u x v) for each unit vector v."""
    w, *u = quaternion / np.linalg.norm(quaternion)
    columns = [v + 2 * w * np.cross(u, v) + 2 * np.cross(u, np.cross(u, v)) for v in np.eye(3)]
    return np.stack(columns, axis=1)


def test_proposals_do_not_depend_on_their_batch(seen):
    together = proposals(seen)
    alone = propose_instances(seen[1][1:2], torch.tensor([1]), epoch=4, n_per_seed=2, seed=0)
    for name, value in alone.state().items():
        torch.testing.assert_close(value, together.state()[name][2:4])


def test_no_number_of_a_proposal_tells_another(seen):
    """Neither of its own, nor of its neighbours by seed, epoch, source or number: correlations of 2000 pairs."""
    h, source = seen[1][:1].expand(2000, 63), torch.arange(2000)

    def betas(**changes) -> np.ndarray:
        found = propose_instances(h, source, **({"epoch": 2, "n_per_seed": 2, "seed": 1} | changes))
        return found.betas.numpy().reshape(2000, 2, 10)

    first = betas()
    rows = [first[:, 0], first[:, 1], np.roll(first[:, 0], 1, 0), betas(epoch=3)[:, 0], betas(seed=2)[:, 0]]
    correlation = np.corrcoef(np.concatenate(rows, axis=1).T)
    assert np.abs(correlation - np.eye(50)).max() < 0.1  # 4.5 standard deviations


def test_predictions_that_are_not_finite_are_no_seeds(seen):
    h = seen[1].clone()
    h[1, 3] = torch.nan
    found = propose_instances(h, torch.arange(3), epoch=0, n_per_seed=2, seed=0)
    assert found.source.tolist() == [0, 0, 2, 2]


def test_new_hands_fill_their_crop_around_the_root(seen):
    images, _, model = seen
    found = proposals(seen)
    drawn, masks, verts = draw_instances(images[found.source], found, model)
    joints = model.regress_joints(verts)
    joints[:, 0] = (joints[:, 0] + joints[:, MIDDLE_MCP]) / 2
    assert drawn.shape == (6, 3, SIZE, SIZE)
    assert drawn.amin() >= 0
    assert drawn.amax() <= 1
    torch.testing.assert_close(joints[:, MIDDLE_MCP], torch.zeros(6, 3), atol=1e-5, rtol=0)
    extent = (joints.amax(1) - joints.amin(1))[:, :2].amax(1)
    torch.testing.assert_close(extent, torch.full((6,), 2 / 1.5))
    verts = model.decode(instance_params(found, model)).verts_m
    verts_px = torch.cat([(verts[..., :2] + 1) * SIZE / 2, verts[..., 2:]], -1)
    hard = (rasterize(verts_px, model.faces, SIZE).face_index >= 0).float()
    assert float((masks != hard).float().mean()) < 0.02
    assert set(masks.unique().tolist()) == {0.0, 1.0}


def test_the_same_numbers_give_the_same_picture(seen):
    images, _, model = seen
    found = proposals(seen)
    first = draw_instances(images[found.source], found, model)
    again = draw_instances(images[found.source[2:3]], Instances.from_state(found.state())[2:3], model)
    torch.testing.assert_close(again[0][0], first[0][2])


@pytest.mark.parametrize(("files", "drawn_at"), [((), 24), (("photo.jpg",), 48)], ids=["drawn", "photographed"])
def test_drawn_backgrounds_are_out_of_focus_and_photographs_are_not(seen, monkeypatch, files, drawn_at):
    sizes = []

    def background(image_size, rng, chosen):
        sizes.append((image_size, chosen))
        return rng.random((*image_size, 3), np.float32)

    monkeypatch.setattr(augment, "random_background", background)
    images = torch.zeros(1, 3, 48, 48)
    drawn, _, _ = draw_instances(images, proposals(seen)[:1], seen[2], files)
    assert sizes == [((drawn_at, drawn_at), files)]
    assert drawn.shape == (1, 3, 48, 48)


def test_the_pool_keeps_the_newest_in_an_order_of_its_own(seen):
    old, new = proposals(seen), propose_instances(seen[1], torch.arange(3), epoch=5, n_per_seed=1, seed=0)
    one, other = (new + old).newest(5), (old[torch.tensor([5, 1, 0, 4, 2, 3])] + new).newest(5)
    assert one.epoch.tolist() == [4, 4, 5, 5, 5]
    for name, value in one.state().items():
        torch.testing.assert_close(value, other.state()[name])
    assert len(Instances.empty() + old) == 6
    assert len(Instances.empty().newest(3)) == 0


def test_of_a_large_epoch_instances_of_all_sources_stay():
    h = torch.zeros(1000, 63)
    found = propose_instances(h, torch.arange(1000), epoch=3, n_per_seed=2, seed=0)
    kept = found.newest(400)
    assert len(kept) == 400
    share = np.histogram(kept.source.numpy(), bins=4, range=(0, 1000))[0] / 400
    np.testing.assert_allclose(share, 0.25, atol=0.08)
    assert set(kept.number.tolist()) == {0, 1}


@pytest.mark.parametrize("joint0", ["palm", "wrist"])
def test_training_items_of_instances(tmp_path, joint0):
    """Image, mask and joints are those of the record, its seed seen as it was in that epoch."""
    write_synthetic(tmp_path / "set", 4, 0, seed=2, size_px=64, workers=1)
    dataset = open_dataset("rhd", tmp_path / "set", "train")
    crops = HandCrops(dataset, 48, CropAugmentation(center=0.2, rotation=0.5, brightness=0.3), seed=1, joint0=joint0)
    model = HandModel.default()
    h = initial_hand(model, joint0).packed().expand(4, 63)
    found = propose_instances(h, torch.arange(4), epoch=5, n_per_seed=1, seed=1)
    items = AugmentedCrops(crops, found, model)
    assert len(items) == 8
    item, seed = items[9, 6], crops[5, 2]
    texture_from = torch.from_numpy(seed.image).permute(2, 0, 1)[None].float() / 255
    drawn, masks, verts = draw_instances(texture_from, found[2:3], model, (), 1, joint0)
    np.testing.assert_array_equal(item.image, (drawn[0] * 255).round().byte().permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(item.mask, masks[0].byte().numpy())
    joints = model.regress_joints(verts)[0].double()
    if joint0 == "palm":
        joints[0] = (joints[0] + joints[MIDDLE_MCP]) / 2
    np.testing.assert_allclose(item.joints_crop, joints.numpy(), atol=1e-5)
    extent = np.ptp(item.joints_crop[:, :2], axis=0).max()
    assert extent == pytest.approx(2 / 1.5, rel=1e-3)
    assert (item.index, item.joint0, item.look is not None) == (6, joint0, True)
    batch = collate([item, items[9, 2]])
    for name in ("joints_m", "camera", "center_px", "size_px", "root_depth_m"):  # no camera took it
        assert getattr(batch, name)[0].isnan().all()
        assert getattr(batch, name)[1].isfinite().all()
    np.testing.assert_array_equal(items[9, 2].image, crops[9, 2].image)
