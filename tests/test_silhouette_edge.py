"""The "edge" silhouette: exact area of coverage, exact gradient, and what must receive none."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import (
    SILHOUETTES,
    hostile_faces,
    hostile_verts,
    jittered_grid,
    silhouette_call,
    small_images,
    soup,
    sphere,
)

from dhpe_fast import ops, reference
from dhpe_fast.data import render_hands
from dhpe_fast.rotation import axis_angle_to_matrix


@pytest.fixture(params=SILHOUETTES)
def edge(request, device):
    """Calls one implementation on one device."""
    return silhouette_call(request.param, device, "edge")


def kernel(verts_px, faces, image_size, **options) -> torch.Tensor:
    return ops.silhouette(verts_px, faces, image_size, mode="edge", **options)


def gradient(function, verts_px, faces, image_size, weight) -> torch.Tensor:
    leaf = verts_px.clone().requires_grad_()
    (function(leaf, faces, image_size) * weight).sum().backward()
    return leaf.grad


def finite_difference(verts_px, faces, image_size, weight, vertex, axis, step=1e-6, one_sided=False) -> float:
    """Of the kernel in float64; one-sided towards larger coordinates."""
    masks = []
    for side in (1, 0 if one_sided else -1):
        moved = verts_px.clone()
        moved[vertex, axis] += side * step
        masks.append(kernel(moved, faces, image_size))
    return float(((masks[0] - masks[1]) * weight).sum() / (step if one_sided else 2 * step))


def assert_gradient_is_the_derivative(verts_px, faces, image_size, vertices, one_sided=False) -> None:
    weight = torch.randn(image_size, dtype=torch.float64)
    grad = gradient(kernel, verts_px, faces, image_size, weight)
    for vertex in vertices:
        for axis in (0, 1):
            expected = finite_difference(verts_px, faces, image_size, weight, vertex, axis, one_sided=one_sided)
            assert float(grad[vertex, axis]) == pytest.approx(expected, abs=2e-6)
    assert (grad[:, 2] == 0).all()


def supersampled(verts_px, faces, image_size, times: int) -> torch.Tensor:
    """The share of times x times points of each pixel that a face covers."""
    height, width = image_size
    finer = verts_px * torch.tensor([times, times, 1]).to(verts_px)
    covered = ops.rasterize(finer, faces, (height * times, width * times)).face_index >= 0
    return covered.double().reshape(height, times, width, times).mean((1, 3))


def hand_px(seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    hand = render_hands(1, seed, image_size=(size, size))[0]
    verts_px = hand.camera.project(hand.verts_m.double())
    return torch.cat([verts_px, hand.verts_m[:, 2:].double()], 1), hand.model.faces


# ---- The image --------------------------------------------------------------------------------------------


def test_a_vertex_one_rounding_above_the_last_border(edge):
    # The middle between it and the border, at y = 4, rounds to the border, which belongs to no row of pixels.
    top = math.nextafter(4.0, 0.0)
    verts = torch.tensor([[0.0, top, 1], [3, 1, 1], [3, 6, 1]], dtype=torch.float64)
    # Right of x = 3 - 3 (y - 1) / (top - 1) down to y = 4: half of a square of 3 px.
    assert edge(verts, [[0, 1, 2]], 4).sum().item() == pytest.approx(4.5, abs=1e-12)


def test_one_triangle_covers_what_one_computes_by_hand(edge, dtype):
    # The right angle at (1, 1), legs of 2 px: row 0 is empty, row 1 holds 1 - 0 and 1/2, row 2 holds 1/2.
    triangle = torch.tensor([[1, 1, 5], [1, 3, 5], [3, 1, 5]], dtype=dtype)
    expected = torch.zeros(4, 5, dtype=dtype)
    expected[1, 1], expected[1, 2], expected[2, 1] = 1, 0.5, 0.5
    assert torch.equal(edge(triangle, [[0, 1, 2]], (4, 5)), expected)
    assert torch.equal(edge(triangle, [[2, 1, 0]], (4, 5)), expected)
    assert edge(triangle, [[2, 1, 0]], (4, 5), fill_back=False).sum() == 0


def test_a_box_covers_a_share_of_the_pixels_on_its_border(edge):
    box = torch.tensor([[0.25, 1.5, 1], [3.75, 1.5, 1], [0.25, 2.5, 1], [3.75, 2.5, 1]], dtype=torch.float64)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[1] = expected[2] = torch.tensor([0.375, 0.5, 0.5, 0.375], dtype=torch.float64)
    assert torch.equal(edge(box, [[0, 2, 1], [1, 2, 3]], 4), expected)


def test_a_feature_thinner_than_a_pixel_keeps_its_area(edge):
    sliver = torch.tensor([[3.0, 4.1, 1], [17.0, 4.3, 1], [17.0, 4.2, 1]], dtype=torch.float64)
    assert float(edge(sliver, [[0, 1, 2]], 20).sum()) == pytest.approx(0.1 * 14 / 2, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_overlapping_triangles_cover_the_area_of_their_union(edge, seed):
    # The supersampled image misjudges some 1 / 64 of a pixel along each line that crosses it.
    verts, faces = soup(14, 24, seed, spread=1.6)
    error = edge(verts, faces, (24, 20)) - supersampled(verts, faces, (24, 20), 64)
    assert error.abs().max() < 0.03
    assert error.mean().abs() < 1e-4


def test_shared_edges_leave_no_trace(edge, dtype):
    verts, faces = jittered_grid()
    assert torch.equal(edge(verts.to(dtype), faces, 32), torch.ones(32, 32, dtype=dtype))
    turned = torch.where(torch.arange(len(faces))[:, None] % 3 == 0, faces.flip(1), faces)
    assert torch.equal(edge(verts.to(dtype), turned, 32), torch.ones(32, 32, dtype=dtype))


def test_area_of_hands_is_unbiased():
    bias = []
    for seed in range(6):
        verts, faces = hand_px(seed, 112)
        area = float(kernel(verts.float(), faces, 112).double().sum())
        bias.append(area / float(supersampled(verts, faces, (112, 112), 16).sum()) - 1)
    assert max(map(abs, bias)) < 5e-4
    assert abs(sum(bias)) / len(bias) < 1e-4


def test_far_and_broken_vertices_draw_as_in_rasterize(edge):
    far = torch.tensor([[-(2.0**23), -7, 1], [2.0**23, -7, 1], [3, 2.0**23, 1]], dtype=torch.float64)
    assert torch.equal(edge(far, [[0, 1, 2]], 6), torch.ones(6, 6, dtype=torch.float64))
    for value in (math.nan, math.inf, 2.0**25):
        broken = far.clone()
        broken[1, 0] = value
        assert edge(broken, [[0, 1, 2]], 6).sum() == 0
    assert edge(far, [[0, 1, 2]], 6, z_near=2.0).sum() == 0
    assert edge(far, [[0, 0, 2]], 6).sum() == 0


@pytest.mark.parametrize("batch", [(), (2, 3), (0,), (2, 0)])
def test_any_leading_batch_and_half_types(edge, batch):
    verts, faces = sphere()
    verts = verts + torch.randn(*batch, 1, 3, dtype=verts.dtype)
    mask = edge(verts, faces, (20, 24))
    assert mask.shape == (*batch, 20, 24)
    if batch == (2, 3):
        assert torch.equal(mask[1, 2], edge(verts[1, 2], faces, (20, 24)))
    assert edge(verts.half(), faces, (20, 24)).dtype == torch.float16


def test_no_faces(edge):
    assert torch.equal(edge(torch.zeros(2, 0, 3), torch.zeros(0, 3, dtype=torch.int64), (3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width_px", [0.25, 0.01])
def test_many_strips_that_cross_in_one_point(seed, width_px):
    # 60 slanted strips of one width through (15, 0.5), each two faces that end outside of the image's only row. At the
    # height y their left sides lie at 15 + t (y - 0.5): between neighbours in t, the gap g |y - 0.5| is covered up to
    # the width w. The mean over the row is g / 4, or w - w^2 / g where the gap opens (g > 2 w).
    slopes = 8 * (torch.rand(60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5)
    verts, faces = [], []
    for k, t in enumerate(slopes.tolist()):
        ends = (15 - 2.5 * t, -2.0), (15 + 2.5 * t, 3.0)
        verts += [(x + side, y, 1.0) for side in (0, width_px) for x, y in ends]
        faces += [[4 * k, 4 * k + 1, 4 * k + 2], [4 * k + 2, 4 * k + 1, 4 * k + 3]]
    gaps, w = slopes.sort().values.diff().tolist(), width_px
    area = w + sum(g / 4 if g <= 2 * w else w - w * w / g for g in gaps)
    mask = kernel(torch.tensor(verts, dtype=torch.float64), torch.tensor(faces), (1, 32))
    assert mask.sum().item() == pytest.approx(area, abs=1e-11)


@pytest.mark.parametrize("left_px", [0.5, math.nextafter(0.5, 1)])
@pytest.mark.parametrize("right_px", [0.5, math.nextafter(0.5, 1)])
def test_the_gradient_of_a_level_edge_among_many(left_px, right_px):
    # The upper side of a rectangle, level up to one rounding either way, within a row that is cut into cells: above it
    # lie long triangles, below it, in the rectangle 150 faces deep, short ones. Moving an end moves half of 28 px.
    rectangle = [(30.0, right_px, 1.0), (2.0, left_px, 1.0), (2.0, 5.0, 1.0), (30.0, 5.0, 1.0)]
    above = [(x, y + 0.02 * k, 1.0) for k in range(16) for x, y in ((1, 0.05), (31, 0.06), (16, 0.07))]
    inside = [(x + 0.4 * k, y, 1.0) for k in range(64) for x, y in ((3, 0.55), (3.1, 0.95), (3.2, 0.55))]
    verts = torch.tensor(rectangle + above + inside, dtype=torch.float64)
    triangles = torch.arange(4, len(verts)).reshape(-1, 3)
    faces = torch.cat([torch.tensor([[0, 1, 2], [0, 2, 3]]).repeat(150, 1), triangles])
    grad = gradient(kernel, verts, faces, (8, 32), torch.ones(8, 32, dtype=torch.float64))
    assert grad[:4, 1].tolist() == pytest.approx([-14, -14, 14, 14])


# ---- The gradient -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_overlapping_triangles(seed):
    # Off-screen parts, occlusions, crossings and both orientations.
    verts, faces = soup(9, 20, seed, spread=1.6)
    assert_gradient_is_the_derivative(verts, faces, (20, 24), range(len(verts)))


def test_gradient_of_a_hand():
    verts, faces = hand_px(1, 96)
    grad = gradient(kernel, verts, faces, (96, 96), torch.ones(96, 96, dtype=torch.float64))
    on_outline = torch.nonzero(grad.abs().sum(1))[:, 0]
    assert 80 < len(on_outline) < 500
    assert_gradient_is_the_derivative(verts, faces, (96, 96), on_outline[::9].tolist() + list(range(0, 778, 60)))


def test_gradient_of_axis_parallel_edges():
    box = torch.tensor([[3.25, 4.5, 1], [9.75, 4.5, 1], [3.25, 8.25, 1], [9.75, 8.25, 1]], dtype=torch.float64)
    assert_gradient_is_the_derivative(box, torch.tensor([[0, 2, 1], [1, 2, 3]]), (12, 14), range(4))
    overlapping = torch.cat([box, box + torch.tensor([2.0, 1.25, 0.0])])
    faces = torch.tensor([[0, 2, 1], [1, 2, 3], [4, 6, 5], [5, 6, 7]])
    assert_gradient_is_the_derivative(overlapping, faces, (12, 14), range(8))


def test_edges_between_pixels_have_the_derivative_of_moving_down_or_right():
    box = torch.tensor([[3.0, 4.0, 1], [9.0, 4.0, 1], [3.0, 8.0, 1], [9.0, 8.0, 1]], dtype=torch.float64)
    faces = torch.tensor([[0, 2, 1], [1, 2, 3]])
    assert_gradient_is_the_derivative(box, faces, (12, 14), range(4), one_sided=True)


def test_gradients_that_must_be_nothing(device):
    verts, faces = sphere(centre=(16.0, 16.0, 20.0), radius=12.0)
    behind, _ = sphere(centre=(15.0, 17.0, 90.0), radius=7.0)
    both, both_faces = torch.cat([verts, behind]).to(device), torch.cat([faces, faces + len(verts)]).to(device)
    weight = torch.randn(32, 32, dtype=torch.float64, device=device)
    grad = gradient(kernel, both, both_faces, (32, 32), weight)
    assert (grad[len(verts) :] == 0).all(), "inside the union"
    alone = gradient(kernel, verts.to(device), faces.to(device), (32, 32), weight)
    torch.testing.assert_close(grad[: len(verts)], alone)
    distance = (verts[:, :2] - 16).norm(dim=1)
    assert (alone[distance < 10.5] == 0).all(), "faces lie on both sides of these vertices' edges"
    assert alone[distance > 11.9].abs().sum() > 0


def test_moving_the_mesh_keeps_its_area():
    verts, faces = sphere()
    grad = gradient(kernel, verts, faces, (32, 32), torch.ones(32, 32, dtype=torch.float64))
    torch.testing.assert_close(grad.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    area = float(kernel(verts, faces, 32).sum())
    growth = float((grad[:, :2] * (verts[:, :2] - 16)).sum())
    assert growth == pytest.approx(2 * area), "area grows with the square of the size"


@pytest.mark.parametrize("make", [lambda: soup(12, 20, 1, 1.6), lambda: sphere((10.3, 9.1, 5.0), 7.0)])
def test_kernels_equal_the_twin(device, dtype, make):
    verts, faces = make()
    verts, faces = verts.to(dtype), faces.to(device)
    weight = torch.randn(20, 24, dtype=dtype)
    results = []
    for function, where in ((ops.silhouette, device), (reference.silhouette, torch.device("cpu"))):
        leaf = verts.clone().requires_grad_()
        mask = function(leaf.to(where), faces.to(where), (20, 24), mode="edge")
        (mask * weight.to(where)).sum().backward()
        results.append((mask.detach().cpu(), leaf.grad))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(results[0][0], results[1][0], atol=tolerance, rtol=0)
    torch.testing.assert_close(results[0][1], results[1][1], atol=20 * tolerance, rtol=0)


def test_gradcheck():
    verts, faces = soup(5, 9, 4)
    assert torch.autograd.gradcheck(lambda v: kernel(v, faces, (9, 8)), verts.requires_grad_())


# ---- Contracts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device, dtype, requires_grad):
    verts, faces = sphere()
    verts = torch.stack([verts, verts + 1]).to(device, dtype).requires_grad_(requires_grad)
    faces = faces.to(device)
    torch.library.opcheck(torch.ops.dhpe_fast.silhouette_edge.default, (verts, faces, 12, 14, None, True))
    if not requires_grad:
        weight = torch.randn(2, 12, 14, dtype=dtype, device=device)
        arguments = (weight, verts, faces, 0.5, False, True)
        torch.library.opcheck(torch.ops.dhpe_fast._silhouette_edge_backward.default, arguments)


def test_deterministic_algorithms_give_the_same_gradient_twice(device):
    verts, faces = sphere()
    verts, faces = verts.float().to(device), faces.to(device)
    weight = torch.randn(32, 32, device=device)
    grads = []
    for deterministic in (False, True, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            grads.append(gradient(kernel, verts, faces, (32, 32), weight))
        finally:
            torch.use_deterministic_algorithms(False)
    assert torch.equal(grads[1], grads[2])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_results_do_not_depend_on_the_number_of_threads():
    verts, faces = sphere(radius=9.0)
    verts = torch.stack([verts, verts + 2, verts - 3]).float()
    weight = torch.randn(3, 96, 64)
    threads = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            results.append((kernel(verts, faces, (96, 64)), gradient(kernel, verts, faces, (96, 64), weight)))
    finally:
        torch.set_num_threads(threads)
    for mask, grad in results[1:]:
        assert torch.equal(mask, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_double_backward_is_refused_by_name():
    verts, faces = sphere()
    leaf = verts.requires_grad_()
    (grad,) = torch.autograd.grad(kernel(leaf, faces, 32).square().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="silhouette is differentiable once"):
        grad.sum().backward()


@settings(max_examples=150, deadline=None)
@given(
    verts=hostile_verts,
    faces=hostile_faces,
    size=small_images,
    fill_back=st.booleans(),
)
def test_hostile_meshes_are_drawn_where_the_rasterizer_draws(verts, faces, size, fill_back):
    # A pixel and its eight neighbours that are all covered, or all empty, at many points: the exact area agrees, in
    # particular behind edges that coincide, touch or are nearly horizontal.
    leaf = verts.clone().requires_grad_()
    mask = kernel(leaf, faces, size, fill_back=fill_back)
    (mask * torch.randn(size)).sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert ((mask >= 0) & (mask <= 1)).all()
    finer = verts * torch.tensor([8.0, 8.0, 1.0])
    if not (finer[:, :2].abs() <= 2.0**23).all():
        return
    image = (size[0] * 8, size[1] * 8)
    covered = ops.rasterize(finer, faces, image, cull_backfaces=not fill_back).face_index >= 0
    share = covered.float().reshape(size[0], 8, size[1], 8).mean((1, 3))
    assert (mask - share).abs().max() < 0.5
    assert (mask - share).abs().mean() < 0.15


# ---- What it is for ---------------------------------------------------------------------------------------


def test_a_hand_turns_moves_and_grows_back_into_its_silhouette():
    """Six parameters from the silhouette alone, from starts 10 degrees, 5 % and 4 px away."""
    hand = render_hands(1, 3, image_size=(96, 96))[0]
    faces = hand.model.faces
    verts = hand.verts_m.double() - hand.verts_m.double().mean(0)
    verts = verts * 30 / verts.abs().max()

    def place(x: torch.Tensor) -> torch.Tensor:
        shift = torch.cat([48 + 100 * x[4:], torch.zeros(1, dtype=torch.float64)])
        return (verts @ axis_angle_to_matrix(x[:3]).T * x[3].exp() + shift).float()

    target = kernel(place(torch.zeros(6, dtype=torch.float64)), faces, 96)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        axis = torch.nn.functional.normalize(torch.randn(3, generator=generator, dtype=torch.float64), dim=0)
        start = torch.cat([axis * math.radians(10), torch.tensor([0.05, 0.03, -0.03], dtype=torch.float64)])
        x = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.02)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.985)
        for _ in range(250):
            optimizer.zero_grad()
            (kernel(place(x), faces, 96) - target).square().sum().backward()
            optimizer.step()
            schedule.step()
        found = x.detach()
        assert math.degrees(float(found[:3].norm())) < 1
        assert abs(float(found[3])) < 0.01
        assert float(found[4:].abs().max()) < 0.005, "half a pixel"
