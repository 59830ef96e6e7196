"""Pictures: what is drawn where, in which colour, over what; and that nothing of the caller's is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_fit import known_fit

from dhpe_fast import shading, viz
from dhpe_fast.hand import HandModel, Pinhole, WeakPerspective

GREY = shading.Material((0.5, 0.5, 0.5))


def tetrahedron() -> tuple[torch.Tensor, torch.Tensor]:
    """A small closed mesh around the origin, outward counter-clockwise, metres."""
    verts_m = torch.tensor([[0, -0.5, 0], [0.5, 0.5, -0.3], [-0.5, 0.5, -0.3], [0.0, 0.3, 0.6]])
    return verts_m, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def square(color_top=(1.0, 0, 0), color_bottom=(0, 0, 1.0)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A unit square facing the camera, red above and blue below."""
    verts_m = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0.0]])
    faces = torch.tensor([[0, 2, 1], [0, 3, 2]])
    return verts_m, faces, torch.tensor([color_top, color_top, color_bottom, color_bottom])


# --- Shading ------------------------------------------------------------------------------------------------


def test_a_square_covers_exactly_its_pixels():
    verts_m, faces, _ = square()
    layer = viz.shade(verts_m, faces, WeakPerspective(8, (10, 6)), (12, 20))
    expected = np.zeros((12, 20))
    expected[2:10, 6:14] = 1
    np.testing.assert_allclose(layer[..., 3], expected, atol=1e-6)
    assert layer.dtype == np.float32
    assert (layer[..., :3][expected == 0] == 0).all()


def test_half_covered_pixels_are_half_transparent_and_keep_their_colour():
    verts_m, faces, _ = square()
    layer = viz.shade(verts_m, faces, WeakPerspective(8, (10.5, 6)), (12, 20), supersample=4)
    assert layer[6, 6, 3] == pytest.approx(0.5)
    np.testing.assert_allclose(layer[6, 6, :3], layer[6, 7, :3], atol=0.02)


def test_vertex_colours_are_where_their_vertices_are():
    verts_m, faces, colors = square()
    layer = viz.shade(verts_m, faces, WeakPerspective(40, (25, 25)), (50, 50), vertex_colors=colors)
    top, bottom = layer[8, 25], layer[42, 25]
    assert top[0] > 2 * top[2]
    assert bottom[2] > 2 * bottom[0]


@pytest.mark.parametrize("lighting", [shading.STUDIO, shading.DAYLIGHT], ids=["per pixel", "per vertex"])
def test_a_pattern_is_finer_than_the_vertices(lighting):
    """Dark left of its middle, as a square of half the albedo, and as the square without a pattern right of it."""
    verts_m, faces, _ = square()
    grey, matt = torch.full((4, 3), 0.6), shading.Material((1, 1, 1), specular=0, rim=0)

    def drawn(vertex_colors):
        options = {"material": matt, "lighting": lighting, "vertex_colors": vertex_colors}
        return viz.shade(verts_m, faces, WeakPerspective(20, (12, 12)), (24, 24), **options)

    halved = (0.5 ** (1 / shading.GAMMA)) * grey
    places = 2 * verts_m[:, [1, 0, 2]]  # a space of its own, in which the picture's columns are y
    found = drawn(shading.Patterned(grey, places, lambda at: torch.where(at[:, 1:2] < 0, 0.5, 1.0).expand(-1, 3)))
    np.testing.assert_allclose(found[:, :12], drawn(halved)[:, :12], atol=1e-3)
    np.testing.assert_allclose(found[:, 12:], drawn(grey)[:, 12:], atol=1e-3)
    assert np.abs(drawn(halved) - drawn(grey)).max() > 0.1


@pytest.mark.parametrize("lighting", [shading.STUDIO, shading.DAYLIGHT], ids=["per pixel", "per vertex"])
def test_a_pattern_of_ones_changes_nothing(lighting):
    verts_m, faces = tetrahedron()
    colors = torch.rand(4, 3)
    options = {"camera": WeakPerspective(20, (15, 15)), "image_size": (30, 30), "lighting": lighting}
    plain = viz.shade(verts_m, faces, vertex_colors=colors, **options)
    patterned = viz.shade(verts_m, faces, vertex_colors=shading.Patterned(colors, verts_m, torch.ones_like), **options)
    np.testing.assert_allclose(patterned, plain, atol=1e-6)


def test_the_side_towards_the_light_is_brighter():
    verts_m, faces = HandModel.default().v_template, HandModel.default().faces
    camera = WeakPerspective(300, (40, 40))
    lights = {
        name: shading.Lighting(key=(x, 0, -0.3), fill_color=(0, 0, 0), shadows=False)
        for name, x in (("left", -1.0), ("right", 1.0))
    }
    left, right = (viz.shade(verts_m, faces, camera, (80, 80), lighting=light) for light in lights.values())
    change = (left - right)[..., 1]
    covered = left[..., 3] > 0.99
    columns = np.broadcast_to(np.arange(80), covered.shape)
    # Each covered row: weight of brightening under the left light lies left of that under the right one.
    assert columns[covered & (change > 0.1)].mean() < columns[covered & (change < -0.1)].mean()


def test_a_plate_before_a_wall_casts_its_shadow_away_from_the_light():
    verts_m, faces, _ = square()
    plate = verts_m * 0.3 + torch.tensor([0.0, 0.0, -0.25])
    scene, all_faces = torch.cat([verts_m, plate]), torch.cat([faces, faces + 4])
    camera = WeakPerspective(60, (32, 32))
    light = shading.Lighting(key=(-1.0, 0.0, -1.0), fill_color=(0, 0, 0))
    image = viz.shade(scene, all_faces, camera, (64, 64), material=GREY, lighting=light)[..., 1]
    # The plate spans x of 23 to 41; its shadow is displaced by its distance of 15 pixels to the right.
    assert image[32, 46] < 0.7 * image[32, 14]
    assert image[10, 46] == pytest.approx(image[10, 14], rel=0.1)


def test_large_pictures_drawn_in_bands_equal_those_drawn_at_once(monkeypatch):
    verts_m, faces = tetrahedron()
    camera = WeakPerspective(60, (40, 40))
    whole = viz.shade(verts_m, faces, camera, (80, 80), material=GREY)
    monkeypatch.setattr(shading, "_BAND_SAMPLES", 1000)
    np.testing.assert_allclose(viz.shade(verts_m, faces, camera, (80, 80), material=GREY), whole, atol=1e-6)


def test_pinhole_and_weak_perspective_agree_far_away():
    verts_m, faces = tetrahedron()
    weak = viz.shade(verts_m, faces, WeakPerspective(30, (20, 20)), (40, 40))
    far = viz.shade(verts_m + torch.tensor([0, 0, 1000.0]), faces, Pinhole(30000, 30000, 20, 20), (40, 40))
    np.testing.assert_allclose(far, weak, atol=0.03)


@pytest.mark.parametrize("camera", [WeakPerspective(5, (-50, 20)), Pinhole(50, 50, 20, 20)])
def test_what_is_outside_of_the_image_or_behind_the_camera_draws_nothing(camera):
    verts_m, faces = tetrahedron()
    layer = viz.shade(verts_m - torch.tensor([0, 0, 5.0]), faces, camera, (40, 40))
    assert (layer == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verts_m": torch.zeros(3, 2)}, r"verts_m: .*\(3, 2\)"),
        ({"faces": torch.zeros(3, 3)}, "faces: expected an integer"),
        ({"vertex_colors": torch.zeros(2, 3)}, r"vertex_colors: expected \(4, 3\)"),
        (
            {"vertex_colors": shading.Patterned(torch.zeros(4, 3), torch.zeros(4, 2), torch.ones_like)},
            r"vertex_colors\.places: expected \(4, 3\), got \(4, 2\)",
        ),
        ({"image_size": (0, 5)}, "at least one pixel"),
        ({"supersample": 9}, "supersample"),
    ],
)
def test_bad_scenes_are_refused_by_name(change, message):
    verts_m, faces = tetrahedron()
    scene = {"verts_m": verts_m, "faces": faces, "camera": WeakPerspective(5, (5, 5)), "image_size": (9, 9)}
    with pytest.raises(ValueError, match=message):
        viz.shade(**(scene | change))


# --- Rounding off -------------------------------------------------------------------------------------------


def test_rounding_off_a_sphere_brings_edges_nearer_to_the_sphere():
    # An octahedron, split once by hand: all 18 vertices on the unit sphere.
    axes = torch.eye(3)
    verts = torch.cat([axes, -axes])
    faces = torch.tensor([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    verts, faces, _ = viz.round_off(verts, faces)
    sphere = torch.nn.functional.normalize(verts, dim=1)
    finer, finer_faces, _ = viz.round_off(sphere, faces)
    added = torch.linalg.vector_norm(finer[18:], dim=1)
    chord = torch.linalg.vector_norm((sphere[faces] + sphere[faces].roll(-1, 1)) / 2, dim=-1)
    assert added.min() > chord.min()
    assert (1 - added).abs().max() < 0.4 * (1 - chord).max()
    assert finer_faces.shape == (128, 3)


def test_rounding_off_keeps_flat_faces_flat_and_interpolates_values():
    verts_m, faces, colors = square()
    finer, finer_faces, values = viz.round_off(verts_m, faces, colors)
    assert (finer[:, 2] == 0).all()
    assert (finer[:4] == verts_m).all()
    a, b, c = finer[finer_faces].unbind(1)
    assert float(torch.linalg.cross(b - a, c - a)[:, 2].sum()) == pytest.approx(-2.0)
    assert values[4:].max() <= 1
    assert values[4:].tolist().count([0.5, 0.0, 0.5]) == 3  # left and right edge, and the diagonal


def test_rounding_off_a_closed_hand_leaves_its_wrist_flat():
    model = HandModel.default()
    verts_m = model.close_wrist(model.v_template)
    finer, _, _ = viz.round_off(verts_m, model.faces_closed)
    assert float(finer[:, 0].max()) <= float(verts_m[:, 0].max()) + 2e-4


# --- Overlays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_overlay_covers_the_hand_and_nothing_else(side):
    fit = known_fit(side)
    image = np.full((240, 320, 3), 60, np.uint8)
    picture = viz.overlay(image, fit, draw_joints=False)
    assert picture.dtype == np.uint8
    assert (image == 60).all()
    changed = np.abs(picture.astype(int) - 60).max(2) > 8
    inside = fit.camera.project(fit.verts_m).long()
    assert changed[inside[:, 1], inside[:, 0]].mean() > 0.85
    low, high = inside.amin(0) - 2, inside.amax(0) + 3
    outside = changed.copy()
    outside[low[1] : high[1], low[0] : high[0]] = False
    assert not outside.any()


def test_the_fast_overlay_covers_the_same_pixels_in_nearly_the_same_colours():
    fit = known_fit()
    image = np.full((240, 320, 3), (20, 120, 60), np.uint8)
    best, fast = (viz.overlay(image, fit, alpha=1.0, draw_joints=False, fast=fast) for fast in (False, True))
    covered = [(picture != image).any(-1) for picture in (best, fast)]
    assert (covered[0] ^ covered[1]).sum() < 0.05 * covered[0].sum()
    both = covered[0] & covered[1]
    assert np.abs(best[both].astype(int) - fast[both]).mean() < 30
    np.testing.assert_array_equal(image, np.full((240, 320, 3), (20, 120, 60), np.uint8))


def test_joints_are_drawn_in_the_colours_of_their_fingers():
    fit = known_fit()
    image = np.zeros((240, 320, 3), np.uint8)
    picture = viz.overlay(image, fit, alpha=0)
    for finger, (base, tip) in {"thumb": (3, 4), "little": (19, 20)}.items():
        x, y = ((fit.joints2d_px[base] + fit.joints2d_px[tip]) / 2).tolist()
        np.testing.assert_allclose(picture[int(y), int(x)], viz.FINGER_COLORS[finger], atol=40)


def test_a_joint_lands_on_the_pixel_that_holds_it():
    joints2d_px = np.full((21, 2), np.nan)
    joints2d_px[0] = (20.5, 10.5)  # the centre of pixel (10, 20)
    picture = viz.draw_skeleton(np.zeros((21, 41, 3), np.uint8), joints2d_px)
    brightness = picture.sum(2, dtype=float)
    rows, columns = np.indices(brightness.shape) + 0.5
    center = [(axis * brightness).sum() / brightness.sum() for axis in (columns, rows)]
    np.testing.assert_allclose(center, joints2d_px[0], atol=0.1)


def test_unknown_joints_and_keypoints_are_left_out():
    fit = known_fit()
    fit.joints2d_px = torch.full((21, 2), torch.nan)
    fit.keypoints2d_px = torch.full((21, 2), torch.nan)
    image = np.full((240, 320, 3), 60, np.uint8)
    np.testing.assert_array_equal(viz.overlay(image, fit, alpha=0, draw_keypoints=True), image)


def test_several_hands_are_drawn_together():
    image = np.zeros((240, 320, 3), np.uint8)
    both = viz.overlay(image, [known_fit("right"), known_fit("left")], draw_joints=False)
    single = viz.overlay(image, known_fit("right"), draw_joints=False)
    assert (both.sum(2) > 0).sum() > (single.sum(2) > 0).sum()


def test_a_bad_alpha_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        viz.overlay(np.zeros((240, 320, 3), np.uint8), known_fit(), alpha=1.5)


# --- Sheets -------------------------------------------------------------------------------------------------


def test_a_contact_sheet_holds_every_picture_unchanged():
    images = [np.full((20, 30, 3), 40 * k, np.uint8) for k in range(1, 6)]
    sheet = viz.contact_sheet(images, [f"picture {k}" for k in range(5)], columns=2)
    for image in images:
        assert (sheet == image[0, 0]).all(2).sum() >= 600
    assert sheet.shape[1] < sheet.shape[0]
    with pytest.raises(ValueError, match="titles"):
        viz.contact_sheet(images, ["one"])
    with pytest.raises(ValueError, match="at least one"):
        viz.contact_sheet([])


def test_views_of_a_mesh_fill_their_pictures():
    verts_m, faces = tetrahedron()
    assert viz.six_views(verts_m, faces, 40).ndim == 3
    frames = viz.turntable(verts_m, faces, n_views=4, size_px=40)
    assert [frame.shape for frame in frames] == [(40, 40, 3)] * 4
    assert (np.abs(frames[0].astype(int) - viz.BACKDROP).max(2) > 8).mean() > 0.2
    assert (frames[0] != frames[1]).any()
