"""Rasterization: hand-computed coverage, analytic depth, finite differences, and twin against kernels."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import jittered_grid, soup, sphere

from dhpe_fast import ops, reference
from dhpe_fast.ops import _library
from dhpe_fast.reference import _arguments

TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-11, "atol": 1e-12}}


class Implementation:
    """One way to call rasterize: arguments are moved to its device, results come back as they are."""

    def __init__(self, name: str):
        self.function = reference.rasterize if name == "twin" else ops.rasterize
        self.device = torch.device("cuda" if name == "cuda" else "cpu")

    def __call__(self, verts_px, faces, image_size, **options) -> ops.Fragments:
        verts_px = torch.as_tensor(verts_px).to(self.device)
        faces = torch.as_tensor(faces).reshape(-1, 3).to(self.device)
        return self.function(verts_px, faces, image_size, **options)


@pytest.fixture(params=["twin", "cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def rasterize(request: pytest.FixtureRequest) -> Implementation:
    return Implementation(request.param)


def picture(face_index: torch.Tensor) -> list[str]:
    return ["".join(".#"[int(i >= 0)] for i in row) for row in face_index.tolist()]


# ---- Which pixels ----------------------------------------------------------------------------------------


def test_a_pixel_on_an_edge_belongs_to_the_face_for_which_it_is_top_or_left(rasterize, dtype):
    # The square through four pixel centres: those on its top and left sides are in, others out.
    verts = torch.tensor([[1.5, 1.5, 0], [4.5, 1.5, 0], [1.5, 4.5, 0], [4.5, 4.5, 0]], dtype=dtype)
    for faces in ([[0, 2, 1], [1, 2, 3]], [[0, 3, 1], [0, 2, 3]], [[0, 1, 2], [1, 3, 2]]):
        assert picture(rasterize(verts, faces, 6).face_index) == [
            "......",
            ".###..",
            ".###..",
            ".###..",
            "......",
            "......",
        ]


def test_hand_computed_coverage_of_a_triangle(rasterize, dtype):
    # Legs x = 0 and y = 0, hypotenuse x + y = 4: centres with j + i + 1 < 4 are in, those on it out.
    verts = torch.tensor([[0, 0, 0], [4, 0, 0], [0, 4, 0]], dtype=dtype)
    assert picture(rasterize(verts, [[0, 1, 2]], (4, 5)).face_index) == ["###..", "##...", "#....", "....."]


@pytest.mark.parametrize("seed", range(3))
def test_a_triangulated_square_covers_each_pixel_once(rasterize, dtype, seed):
    verts, faces = jittered_grid(seed=seed)
    verts = verts.to(dtype)
    each = torch.stack([rasterize(verts, face[None], 32).face_index for face in faces])
    assert ((each >= 0).sum(0) == 1).all()


@pytest.mark.parametrize("seed", range(2))
def test_watertight_where_pixel_centres_lie_on_vertices_and_edges(rasterize, dtype, seed):
    verts, faces = jittered_grid(seed=seed)
    verts = (verts * 2).round() / 2  # half pixels: every second vertex is a pixel centre
    counts = sum(rasterize(verts.to(dtype), face[None], 32).face_index.cpu() + 1 for face in faces)
    assert (counts == 1).all()


def test_front_faces_are_counter_clockwise_on_the_screen(rasterize):
    verts, faces = sphere()
    z = verts[:, 2]
    seen = rasterize(verts, faces, 32, cull_backfaces=True)
    hit = seen.face_index >= 0
    assert hit.any()
    assert (seen.depth[hit] < z.mean()).all(), "outward faces towards the camera stay"
    inside_out = rasterize(verts, faces.flip(1), 32, cull_backfaces=True)
    assert (inside_out.depth[hit] > z.mean()).all(), "of the reversed sphere, the far side stays"
    torch.testing.assert_close(rasterize(verts, faces, 32).face_index, seen.face_index)


def watertight_pairs(n: int) -> Iterator[tuple[torch.Tensor, list[list[int]], tuple[int, int]]]:
    """Quadrilaterals (4, 3), their two triangles, and a pixel whose centre lies on the diagonal but for rounding."""
    rng = np.random.default_rng(5)
    for _ in range(n):
        begin, (row, column) = rng.random(2) * 64, rng.integers(0, 32, 2)
        begin[0] += 2  # so that the diagonal has a direction
        centre = np.array([column + 0.5, row + 0.5])
        end = begin + (centre - begin) * (1.1 + 1.5 * rng.random())
        across = np.array([begin[1] - end[1], end[0] - begin[0]])
        corners = np.stack([begin, end, (begin + end) / 2 + across, (begin + end) / 2 - across])
        ids = rng.permutation(4)  # which end of the diagonal has the lower id, and what lies between
        verts = np.ones((4, 3), np.float32)
        verts[ids, :2] = corners
        a, b, c, d = ids.tolist()
        yield torch.tensor(verts), [[a, b, c], [b, a, d]], (row, column)


def test_no_rounding_opens_a_gap_or_draws_twice_along_a_shared_edge(rasterize):
    for verts, (one, other), (row, column) in watertight_pairs(200):
        draws = sum(rasterize(verts, [face], 32).face_index + 1 for face in (one, other))
        assert draws[row, column] == 1, (verts, row, column)
        assert draws.max() == 1, verts


# ---- Which face ------------------------------------------------------------------------------------------

TWO_COVERING = [[0, 1, 2], [3, 4, 5]]


def two_covering(z0: float, z1: float, dtype=torch.float32) -> torch.Tensor:
    corners = [[-9.0, -9.0], [30.0, -9.0], [-9.0, 30.0]]
    return torch.tensor([[*c, z0] for c in corners] + [[*c, z1] for c in corners], dtype=dtype)


@pytest.mark.parametrize(("z0", "z1", "winner"), [(1, 2, 0), (2, 1, 1), (-3, 1, 0), (1, 1, 0), (-1, -2, 1), (0, 0, 0)])
def test_the_nearest_face_wins_and_the_lower_index_in_a_tie(rasterize, dtype, z0, z1, winner):
    assert (rasterize(two_covering(z0, z1, dtype), TWO_COVERING, 4).face_index == winner).all()


def test_faces_that_pass_through_each_other_swap_where_their_depths_cross(rasterize):
    verts = two_covering(0.0, 2.0)
    verts[:3, 2] = torch.tensor([0.0, 39.0, 0.0])  # z = x + 9 on the first face
    verts[3:, 2] = 9 + 4.0
    expected = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.int32)
    assert (rasterize(verts, TWO_COVERING, 8).face_index.cpu() == expected).all()


# ---- Where on the face, and how far ----------------------------------------------------------------------


def test_orthographic_bary_and_depth_are_linear_in_the_image(rasterize, dtype):
    verts = torch.tensor([[0.0, 0, 1], [8, 0, 3], [0, 8, 9]], dtype=dtype)
    bary, depth = (t[2, 3] for t in rasterize(verts, [[0, 1, 2]], 8)[1:])
    expected = torch.tensor([1 - 6.0 / 8, 3.5 / 8, 2.5 / 8], dtype=dtype, device=bary.device)
    torch.testing.assert_close(bary, expected)
    torch.testing.assert_close(depth, expected @ verts[:, 2].to(bary.device))


def test_perspective_depth_is_where_the_ray_meets_the_plane(rasterize, dtype):
    focal_px, size = 20.0, 16
    corners_m = torch.tensor([[-2.0, -2, 2], [3, -1, 4], [-1, 4, 7]], dtype=torch.float64)
    verts = torch.cat([corners_m[:, :2] / corners_m[:, 2:] * focal_px + size / 2, corners_m[:, 2:]], 1).to(dtype)
    seen = rasterize(verts, [[0, 1, 2]], size, perspective=True)
    normal = torch.linalg.cross(corners_m[1] - corners_m[0], corners_m[2] - corners_m[0])
    hit = torch.nonzero(seen.face_index.cpu() >= 0)
    assert len(hit) > 40
    for i, j in hit.tolist():
        ray = torch.tensor([(j + 0.5 - size / 2) / focal_px, (i + 0.5 - size / 2) / focal_px, 1])
        point = ray.double() * (normal @ corners_m[0]) / (normal @ ray.double())
        torch.testing.assert_close(seen.depth[i, j].cpu().double(), point[2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen.bary[i, j].cpu().double() @ corners_m, point, rtol=1e-5, atol=1e-5)


def test_fill_values_and_convexity(rasterize, dtype):
    verts, faces = soup(20, 24, seed=3)
    seen = rasterize(verts.to(dtype), faces, (20, 24))
    empty = seen.face_index == -1
    assert empty.any()
    assert (seen.bary[empty] == 0).all()
    assert (seen.depth[empty] == 0).all()
    bary = seen.bary[~empty]
    assert (bary >= 0).all()
    torch.testing.assert_close(bary.sum(-1), torch.ones_like(bary[:, 0]))


# ---- What draws nothing ----------------------------------------------------------------------------------


def test_faces_behind_the_near_plane_are_dropped_whole(rasterize):
    for z, drawn in ((2.0, True), (0.5, True), (0.49, False), (0.0, False), (-3.0, False)):
        verts = two_covering(2.0, 9.0)[:3]
        verts[1, 2] = z
        seen = rasterize(verts, [[0, 1, 2]], 4, perspective=True, z_near=0.5)
        assert bool((seen.face_index >= 0).any()) == drawn, z
    verts = two_covering(-2.0, 9.0)[:3]
    assert (rasterize(verts, [[0, 1, 2]], 4).face_index == 0).all(), "orthographic views have no near plane"
    assert (rasterize(verts, [[0, 1, 2]], 4, z_near=-1.0).face_index == -1).all(), "unless asked for"
    assert (rasterize(verts, [[0, 1, 2]], 4, perspective=True).face_index == -1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e38])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_face_with_a_vertex_that_is_no_place_draws_nothing(rasterize, dtype, bad, axis):
    verts = two_covering(1.0, 2.0, dtype)
    verts[0, axis] = bad
    seen = rasterize(verts, TWO_COVERING, 4)
    assert (seen.face_index == 1).all()
    assert all(torch.isfinite(t).all() for t in seen[1:])


def test_degenerate_faces_draw_nothing(rasterize, dtype):
    verts = torch.tensor([[0.5, 0.5, 0], [7.5, 0.5, 0], [3.5, 0.5, 0], [3.5, 0.5, 1]], dtype=dtype)
    faces = [[0, 1, 2], [0, 0, 1], [2, 3, 0], [1, 1, 1], [3, 2, 2]]
    assert (rasterize(verts, faces, 8).face_index == -1).all()


@pytest.mark.parametrize("offset", [(-100.0, 0.0), (100.0, 0.0), (0.0, -1e6), (1.6e7, 1.6e7)])
def test_faces_off_the_screen_draw_nothing_there(rasterize, offset):
    verts = torch.tensor([[0.0, 0, 0], [8, 0, 0], [0, 8, 0]]) + torch.tensor([*offset, 0])
    assert (rasterize(verts, [[0, 1, 2]], 8).face_index == -1).all()


def test_a_face_much_larger_than_the_image_covers_all_of_it(rasterize, dtype):
    verts = torch.tensor([[-1.6e7, -1.6e7, 3], [1.6e7, -1.6e7, 3], [0, 1.6e7, 3]], dtype=dtype)
    seen = rasterize(verts, [[0, 1, 2]], (5, 7))
    assert (seen.face_index == 0).all()
    torch.testing.assert_close(seen.depth, torch.full_like(seen.depth, 3))


# ---- Shapes and layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2), (0,), (2, 0)])
def test_any_leading_batch(rasterize, dtype, batch):
    verts, faces = sphere()
    verts = verts.to(dtype) + torch.randn(*batch, 1, 3, dtype=dtype)
    seen = rasterize(verts, faces, (16, 18))
    assert seen.face_index.shape == (*batch, 16, 18)
    assert seen.face_index.dtype == torch.int32
    assert seen.bary.shape == (*batch, 16, 18, 3)
    assert seen.depth.shape == (*batch, 16, 18)
    assert seen.bary.dtype == seen.depth.dtype == dtype
    for index in np.ndindex(*batch):
        alone = rasterize(verts[index], faces, (16, 18))
        for part, whole in zip(alone, seen, strict=True):
            assert torch.equal(part, whole[index])


def test_no_faces_and_no_vertices(rasterize):
    for n_verts in (0, 3):
        seen = rasterize(torch.zeros(2, n_verts, 3), torch.zeros(0, 3, dtype=torch.int64), 4)
        assert (seen.face_index == -1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (37, 1), (3, 530), (530, 3)])
def test_odd_image_sizes(rasterize, size):
    seen = rasterize(two_covering(1, 2) * torch.tensor([50.0, 50.0, 1]), TWO_COVERING, size)
    assert seen.face_index.shape == size
    assert (seen.face_index == 0).all()


def test_strided_and_expanded_inputs_and_index_dtypes(rasterize):
    verts, faces = sphere()
    plain = rasterize(verts, faces, 32)
    wide = torch.randn(len(verts), 6, dtype=verts.dtype)
    wide[:, ::2] = verts
    strided_faces = faces.int().t().contiguous().t()
    for other in (
        rasterize(wide[:, ::2], strided_faces, 32),
        Implementation.__call__(rasterize, verts.expand(2, -1, -1), faces, (32, 32)),
    ):
        index = other.face_index if other.face_index.dim() == 2 else other.face_index[1]
        assert torch.equal(index, plain.face_index)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(rasterize, half):
    verts, faces = sphere()
    seen = rasterize(verts.to(half), faces, 32)
    expected = rasterize(verts.to(half).float(), faces, 32)
    assert seen.depth.dtype == half
    assert torch.equal(seen.face_index, expected.face_index)
    assert torch.equal(seen.depth, expected.depth.to(half))


def test_inputs_are_left_alone(rasterize):
    verts, faces = sphere()
    verts_before, faces_before = verts.clone(), faces.clone()
    rasterize(verts, faces, 32)
    assert torch.equal(verts, verts_before)
    assert torch.equal(faces, faces_before)


# ---- Twin and kernels agree ------------------------------------------------------------------------------


@pytest.mark.parametrize("perspective", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_kernels_equal_the_twin_bit_for_bit_in_the_index(device, dtype, perspective, seed):
    verts, faces = soup(60, 40, seed)
    verts = verts.to(dtype)
    twin = reference.rasterize(verts, faces, (33, 41), perspective=perspective)
    seen = ops.rasterize(verts.to(device), faces.to(device), (33, 41), perspective=perspective)
    assert torch.equal(seen.face_index.cpu(), twin.face_index)
    torch.testing.assert_close(seen.bary.cpu(), twin.bary, **TOLERANCE[dtype])
    torch.testing.assert_close(seen.depth.cpu(), twin.depth, **TOLERANCE[dtype])


@pytest.mark.parametrize("perspective", [False, True])
def test_gradients_equal_those_of_autograd_through_the_twin(device, dtype, perspective):
    verts, faces = soup(30, 24, seed=5)
    # Slivers amplify rounding: in float32 the comparison is of well-shaped faces.
    if dtype == torch.float32:
        verts, faces = sphere()
    weights = torch.randn(24, 24, 4, dtype=dtype)
    grads = []
    for function, where in ((reference.rasterize, "cpu"), (ops.rasterize, device)):
        leaf = verts.to(where, dtype).requires_grad_()
        seen = function(leaf, faces.to(where), 24, perspective=perspective)
        weighted = torch.cat([seen.bary, seen.depth[..., None]], -1) * weights.to(where)
        weighted.sum().backward()
        grads.append(leaf.grad.cpu())
    scale = grads[0].abs().max()
    torch.testing.assert_close(grads[1] / scale, grads[0] / scale, **TOLERANCE[dtype])


@pytest.mark.parametrize("perspective", [False, True])
def test_gradcheck(device, perspective):
    # Vertices off the pixel grid: no centre comes within a finite difference of an edge.
    verts = torch.tensor(
        [[0.3, 0.4, 2.0], [7.2, 1.1, 3.0], [2.7, 6.9, 4.0], [7.9, 7.7, 2.5]],
        dtype=torch.float64,
        device=device,
    ).requires_grad_()
    faces = torch.tensor([[0, 2, 1], [1, 2, 3]], device=device)

    def bary_and_depth(v: torch.Tensor):
        return ops.rasterize(v, faces, 8, perspective=perspective)[1:]

    assert torch.autograd.gradcheck(bary_and_depth, (verts,), eps=1e-7, atol=1e-5)


def test_gradient_of_a_batch_and_of_unused_outputs(device):
    verts, faces = sphere()
    leaf = torch.stack([verts, verts + 1]).to(device).requires_grad_()
    seen = ops.rasterize(leaf, faces.to(device), 32)
    assert not seen.face_index.requires_grad
    seen.depth[1].sum().backward()
    assert (leaf.grad[0] == 0).all()
    assert leaf.grad[1].abs().sum() > 0
    # Moving the mesh away by 1 adds 1 to every covered depth.
    torch.testing.assert_close(leaf.grad[1, :, 2].sum(), (seen.face_index[1] >= 0).sum().to(leaf.dtype))


def test_deterministic_algorithms_give_the_same_gradient_twice(device):
    verts, faces = sphere()
    grads = []
    for deterministic in (False, True, True):
        leaf = verts.to(device, torch.float32).requires_grad_()
        torch.use_deterministic_algorithms(deterministic)
        try:
            (ops.rasterize(leaf, faces.to(device), 32).bary ** 2).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        grads.append(leaf.grad)
    assert torch.equal(grads[1], grads[2])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_double_backward_is_refused_by_name():
    verts, faces = sphere()
    leaf = verts.requires_grad_()
    (grad,) = torch.autograd.grad(ops.rasterize(leaf, faces, 32).depth.sin().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="rasterize is differentiable once"):
        grad.sum().backward()


# ---- Contracts -------------------------------------------------------------------------------------------


def test_op_and_twin_have_one_signature_and_the_same_limits():
    assert inspect.signature(ops.rasterize) == inspect.signature(reference.rasterize)
    twin = sys.modules["dhpe_fast.reference.rasterize"]
    assert _library.build.max_coordinate_px == twin.MAX_COORDINATE_PX
    assert _library.build.max_depth == twin.MAX_DEPTH
    assert _library.build.min_z_near == _arguments.MIN_Z_NEAR
    assert _library.build.max_image_size == _arguments.MAX_IMAGE_SIZE


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device, dtype, requires_grad):
    verts, faces = sphere()
    verts = torch.stack([verts, verts + 1]).to(device, dtype)
    verts.requires_grad_(requires_grad)
    faces = faces.to(device)
    torch.library.opcheck(torch.ops.dhpe_fast.rasterize.default, (verts, faces, 12, 14, False, None, True))
    torch.library.opcheck(torch.ops.dhpe_fast.rasterize.default, (verts, faces, 12, 14, True, 0.5, False))
    if not requires_grad:
        bary, depth, index = torch.ops.dhpe_fast.rasterize(verts, faces, 12, 14, False, None, True)
        arguments = (bary, depth, index, verts, faces, False, None, True, True)
        torch.library.opcheck(torch.ops.dhpe_fast._rasterize_backward.default, arguments)


def test_which_face_a_pixel_sees_is_no_part_of_the_graph():
    verts, faces = sphere()
    bary, depth, index = torch.ops.dhpe_fast.rasterize(verts[None].requires_grad_(), faces, 8, 8, False, None, False)
    assert [t.requires_grad for t in (bary, depth, index)] == [True, True, False]


@pytest.mark.parametrize(("perspective", "cull_backfaces"), [(True, False), (False, True)])
def test_a_face_index_of_the_callers_may_name_faces_that_draw_nothing(device, dtype, perspective, cull_backfaces):
    """Behind the camera, of no area, seen from behind, or no number: such faces receive no gradient."""
    nan = float("nan")
    verts = [[0, 0, 1], [0, 8, 1], [8, 0, 1], [1, 1, -1], [1, 8, -1], [8, 1, -1], [nan, 0, 1]]
    verts = torch.tensor(verts, dtype=dtype, device=device)[None]
    faces = torch.tensor([[0, 1, 2], [3, 4, 5] if perspective else [0, 2, 1], [0, 0, 1], [0, 1, 6]], device=device)
    options = (perspective, 1e-6 if perspective else None, cull_backfaces, False)
    grad_bary, grad_depth = torch.ones(1, 4, 4, 3, dtype=dtype), torch.ones(1, 4, 4, dtype=dtype)
    for named in ([1, 2, 3], [0, 1, 2, 3, 7, -5]):
        index = torch.tensor(named, dtype=torch.int32).repeat(16)[:16].reshape(1, 4, 4)
        only_first = torch.where(index == 0, 0, -1).int()
        found, expected = (
            torch.ops.dhpe_fast._rasterize_backward(
                grad_bary.to(device), grad_depth.to(device), which.to(device), verts, faces, *options
            )
            for which in (index, only_first)
        )
        torch.testing.assert_close(found, expected)
        assert bool(found.any()) == (0 in named)


@pytest.mark.needs_cuda
def test_cuda_skips_faces_whose_ids_are_out_of_range(dtype):
    verts, _ = soup(3, 16, seed=1)
    verts = verts.to("cuda", dtype)[None]
    good = torch.tensor([[0, 1, 2]], device="cuda")
    bad = torch.tensor([[0, 1, 2], [0, 1, 2**32 + 2], [0, 1, len(verts[0])], [0, -1, 2]], device="cuda")
    seen = [ops.rasterize(verts, faces, 16) for faces in (good, bad)]
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    index = torch.arange(256, device="cuda", dtype=torch.int32).reshape(1, 16, 16) % 4
    grad = torch.ones(1, 16, 16, device="cuda", dtype=dtype)
    found = torch.ops.dhpe_fast._silhouette_nmr_backward(grad, index, verts, bad, 1e-4, False)
    only_first = torch.where(index == 0, 0, 5)  # the others stay covered, by faces that are not there
    expected = torch.ops.dhpe_fast._silhouette_nmr_backward(grad, only_first.int(), verts, good, 1e-4, False)
    torch.testing.assert_close(found, expected)


def test_results_do_not_depend_on_the_number_of_threads():
    verts, faces = soup(200, 150, seed=9)
    threads = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            leaf = verts.float()[None].clone().requires_grad_()
            seen = ops.rasterize(leaf, faces, (150, 130))
            (seen.depth.sum() + (seen.bary**2).sum()).backward()
            results.append((*seen, leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"verts_px": torch.zeros(3, 2)}, ValueError, r"verts_px has shape \(3, 2\)"),
        ({"verts_px": torch.zeros(3)}, ValueError, r"verts_px has shape \(3,\)"),
        (
            {"verts_px": torch.zeros(3, 3, dtype=torch.int64)},
            TypeError,
            "verts_px must be a floating-point tensor",
        ),
        ({"verts_px": [[0.0, 0.0, 0.0]]}, TypeError, "verts_px must be a floating-point tensor, got list"),
        ({"faces": torch.zeros(1, 4, dtype=torch.int64)}, ValueError, r"faces has shape \(1, 4\)"),
        ({"faces": torch.zeros(3, dtype=torch.int64)}, ValueError, r"faces has shape \(3,\)"),
        (
            {"faces": torch.zeros(1, 3)},
            TypeError,
            "faces must be an int32 or int64 tensor, got a torch.float32",
        ),
        ({"faces": torch.tensor([[0, 1, 3]])}, ValueError, "faces holds 3, expected 0 to 2"),
        ({"faces": torch.tensor([[0, -1, 2]]).int()}, ValueError, "faces holds -1, expected 0 to 2"),
        ({"faces": torch.tensor([[0, 2**32, 2]])}, ValueError, "faces holds 4294967296"),
        ({"faces": torch.zeros(1, 3, dtype=torch.int64, device="meta")}, ValueError, "faces is on meta"),
        ({"image_size": 0}, ValueError, "image_size is 0, expected 1 to 16384"),
        ({"image_size": (4, 16385)}, ValueError, "image_size is"),
        ({"image_size": 4.0}, TypeError, "image_size must be an int"),
        ({"image_size": (4, 4, 3)}, TypeError, "image_size must be an int"),
        (
            {"perspective": True, "z_near": 0.0},
            ValueError,
            "z_near is 0.0, expected a number of at least 1e-06",
        ),
        ({"perspective": True, "z_near": float("nan")}, ValueError, "z_near is nan"),
        ({"z_near": float("inf")}, ValueError, "z_near is inf"),
        ({"z_near": "1"}, TypeError, "z_near must be a number, got str"),
        ({"z_near": True}, TypeError, "z_near must be a number, got bool"),
        ({"z_near": torch.ones(2)}, TypeError, "z_near must be a number, got a torch.float32 tensor"),
        ({"image_size": True}, TypeError, "image_size must be an int or .* got True"),
        ({"image_size": (4, False)}, TypeError, "image_size must be an int"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"verts_px": torch.zeros(3, 3), "faces": torch.tensor([[0, 1, 2]]), "image_size": 4, **change}
    with pytest.raises(error, match=message):
        ops.rasterize(**arguments)
    with pytest.raises(error, match=message):
        reference.rasterize(**arguments)


@pytest.mark.parametrize("side", [np.int64(7), np.int32(7), (np.int64(7), 7)])
def test_integers_of_numpy_are_image_sizes(rasterize, side):
    assert rasterize(two_covering(1, 2), TWO_COVERING, side).face_index.shape == (7, 7)


coordinate = st.one_of(
    st.floats(-40, 60, width=32),
    st.floats(width=32),
    st.sampled_from([0.0, 0.5, 7.5, 2.0**24, -(2.0**24), float("nan"), float("inf"), 1e-38, 3e38]),
)


@settings(max_examples=150, deadline=None)
@given(
    coordinates=st.lists(coordinate, min_size=15, max_size=15),
    faces=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), max_size=6),
    size=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    perspective=st.booleans(),
    cull_backfaces=st.booleans(),
)
def test_hostile_meshes_give_finite_results(coordinates, faces, size, perspective, cull_backfaces):
    verts = torch.tensor(coordinates).reshape(5, 3).requires_grad_()
    faces = torch.tensor(faces, dtype=torch.int64).reshape(-1, 3)
    seen = ops.rasterize(verts, faces, size, perspective=perspective, cull_backfaces=cull_backfaces)
    covered = seen.face_index >= 0
    assert ((seen.face_index >= -1) & (seen.face_index < max(len(faces), 1))).all()
    assert torch.isfinite(seen.bary).all()
    assert torch.isfinite(seen.depth).all()
    assert ((seen.bary >= 0) & (seen.bary <= 1 + 1e-6)).all()
    assert (seen.bary.sum(-1)[covered] - 1).abs().le(1e-5).all()
    seen.depth.sum().backward()  # slivers may overflow float32 here, which is no reason to crash
    assert verts.grad.shape == verts.shape
