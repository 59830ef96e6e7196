"""Silhouettes: neural_renderer's published gradients, its formula in loops, and twin against kernels."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import hostile_faces, hostile_verts, small_images, soup, sphere

from dhpe_fast import ops, reference

TOLERANCE = {torch.float32: {"rtol": 2e-3, "atol": 2e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-10}}


class Implementation:
    """One way to call silhouette: arguments are moved to its device."""

    def __init__(self, name: str):
        self.function = reference.silhouette if name == "twin" else ops.silhouette
        self.device = torch.device("cuda" if name == "cuda" else "cpu")

    def __call__(self, verts_px, faces, image_size, **options) -> torch.Tensor:
        faces = torch.as_tensor(faces).reshape(-1, 3).to(self.device)
        return self.function(torch.as_tensor(verts_px).to(self.device), faces, image_size, **options)

    def gradient(self, verts_px, faces, image_size, grad_mask, **options) -> torch.Tensor:
        leaf = torch.as_tensor(verts_px).clone().requires_grad_()
        mask = self(leaf, faces, image_size, **options)
        mask.backward(torch.as_tensor(grad_mask).to(mask))
        return leaf.grad


@pytest.fixture(params=["twin", "cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def silhouette(request: pytest.FixtureRequest) -> Implementation:
    return Implementation(request.param)


# ---- The formula, in loops, in neural_renderer's own frame ------------------------------------------------


def nmr_by_loops(
    verts_ndc: torch.Tensor,  # (V, 2), y up
    faces: list[list[int]],
    visible: list[list[int]],  # (S, S) face seen in the raster, row 0 at y = -1, or -1
    grad: list[list[float]],  # (S, S) in the raster
    eps: float,
) -> torch.Tensor:  # (V, 2) with respect to NDC
    """Kato et al.'s gradient on a square raster, pixel by pixel, for faces that run counter-clockwise."""
    size = len(visible)
    result = torch.zeros_like(verts_ndc)
    raster = (0.5 * (verts_ndc * size + size - 1)).tolist()
    for face_id, face in enumerate(faces):
        for k in range(3):
            ids = face[k], face[(k + 1) % 3], face[(k + 2) % 3]
            for axis in (0, 1):
                pull = scan_edge([raster[i] for i in ids], axis, face_id, visible, grad, eps)
                result[ids[0], 1 - axis] += pull[0]
                result[ids[1], 1 - axis] += pull[1]
    return result


def scan_edge(points, axis, face_id, visible, grad, eps) -> list[float]:
    """dL/dm of p0 and p1. Axis 0 scans columns and moves in y, axis 1 scans rows and moves in x."""
    size = len(visible)
    (s0, m0), (s1, m1), (s2, m2) = ((p[axis], p[1 - axis]) for p in points)
    out = (-1 if s0 < s1 else 1) if axis == 0 else (1 if s0 < s1 else -1)
    pull = [0.0, 0.0]

    def at(image, line, d):
        return image[d][line] if axis == 0 else image[line][d]

    def alpha(line, d):
        return 1.0 if at(visible, line, d) >= 0 else 0.0

    for line in range(max(math.ceil(min(s0, s1)), 0), min(math.floor(max(s0, s1)), size - 1) + 1):
        crossing = m0 + (m1 - m0) * (line - s0) / (s1 - s0)
        d_in = math.floor(crossing) if out > 0 else math.ceil(crossing)
        d_out = d_in + out
        if not (0 <= d_in < size and 0 <= d_out < size):
            continue
        accepted = []
        if at(visible, line, d_in) == face_id:
            for d in range(d_out, size if out > 0 else -1, out):
                accepted.append((d, (alpha(line, d) - alpha(line, d_in)) * at(grad, line, d)))
        if (line - s0) * (line - s2) < 0:
            other = m0 + (m2 - m0) * (line - s0) / (s2 - s0)
        else:
            other = m1 + (m2 - m1) * (line - s1) / (s2 - s1)
        limit = max(math.ceil(other), 0) if out > 0 else min(math.floor(other), size - 1)
        for d in range(d_in, limit - out, -out):
            if at(visible, line, d) == face_id:
                accepted.append((d, (alpha(line, d) - alpha(line, d_out)) * at(grad, line, d)))
        for d, delta in accepted:
            if delta <= 0:
                continue
            for k, denominator in enumerate((s1 - line, line - s0)):
                if denominator == 0:
                    continue
                move = (s1 - s0) / denominator * (d - crossing) * 2 / size
                pull[k] -= delta / (move + eps if move > 0 else move - eps)
    return pull


def to_ndc(verts_px: torch.Tensor, size: int) -> torch.Tensor:
    return torch.stack([2 * verts_px[:, 0] / size - 1, 1 - 2 * verts_px[:, 1] / size], 1)


def to_px(verts_ndc: torch.Tensor, size: int) -> torch.Tensor:
    x, y = (verts_ndc[:, 0] + 1) * size / 2, (1 - verts_ndc[:, 1]) * size / 2
    return torch.stack([x, y, torch.ones_like(x)], 1)


def expected_gradient(verts_px, faces, size, grad_mask, eps=1e-4) -> torch.Tensor:
    """The loops' answer with respect to pixels, back faces reversed as fill_back does."""
    seen = reference.rasterize(verts_px, faces, size).face_index
    ndc = to_ndc(verts_px, size)
    counter_clockwise = []
    for face in faces.tolist():
        (ax, ay), (bx, by), (cx, cy) = (ndc[i].tolist() for i in face)
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        counter_clockwise.append(face if area > 0 else face[::-1])
    grad_ndc = nmr_by_loops(ndc, counter_clockwise, seen.flip(0).tolist(), grad_mask.flip(0).tolist(), eps)
    chain = torch.tensor([2 / size, -2 / size], dtype=torch.float64)
    return torch.cat([grad_ndc * chain, torch.zeros(len(verts_px), 1, dtype=torch.float64)], 1)


# ---- neural_renderer's own test vectors -------------------------------------------------------------------

PUBLISHED = {
    "a pixel outside that should be covered": (
        [[0.8, 0.8], [0.0, -0.5], [0.2, -0.4]],
        (25, 35, -1.0),
        [[1.6725862, -0.26021874], [1.41986704, -1.64284933], [0, 0]],
        [[1.67258, -0.26022], [1.41987, -1.64285], [0, 0]],
    ),
    "a pixel on the face that should be empty": (
        [[0.8, 0.8], [-0.5, -0.8], [0.8, -0.8]],
        (40, 50, 1.0),
        [[0.98646867, 1.04628897], [-1.03415668, -0.10403691], [3.00094461, -1.55173182]],
        [[0.98643, 1.04630], [-1.03417, -0.10404], [3.00086, -1.55172]],
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_published_with_neural_renderer(silhouette, dtype, case, reverse):
    size = 64
    corners, (row, column, sign), published, exact = PUBLISHED[case]
    verts = to_px(torch.tensor(corners, dtype=dtype), size)
    grad_mask = torch.zeros(size, size, dtype=dtype)
    grad_mask[row, column] = sign
    grad = silhouette.gradient(verts, [[2, 1, 0] if reverse else [0, 1, 2]], size, grad_mask)
    with_respect_to_ndc = grad[:, :2] * torch.tensor([size / 2, -size / 2], dtype=dtype)
    torch.testing.assert_close(with_respect_to_ndc, torch.tensor(published, dtype=dtype), rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(with_respect_to_ndc, torch.tensor(exact, dtype=dtype), rtol=0, atol=1e-5)
    assert (grad[:, 2] == 0).all()


def test_the_module_default_of_neural_renderer_is_reached_by_eps(silhouette):
    corners, (row, column, sign), *_ = PUBLISHED["a pixel on the face that should be empty"]
    grad_mask = torch.zeros(64, 64, dtype=torch.float64)
    grad_mask[row, column] = sign
    verts = to_px(torch.tensor(corners, dtype=torch.float64), 64)
    grad = silhouette.gradient(verts, [[0, 1, 2]], 64, grad_mask, eps=1e-3)
    expected = [[0.98463, 1.04531], [-1.03320, -0.10399], [2.99278, -1.54955]]
    scaled = grad[:, :2] * torch.tensor([32.0, -32.0])
    torch.testing.assert_close(scaled, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


def test_a_crossing_that_rounding_puts_beyond_the_face_still_pulls_its_whole_line(silhouette):
    # Row 90 meets both long edges at vertex 1, its pixels 0 to 72 being covered. In float32 the edge that begins 15,696
    # px further left is found to cross the row at 73.002, past the vertex at 72.99968 (from the first pixel's centre).
    verts = torch.tensor([[-15696.492, 82.866936, 1], [73.49968, 90.5, 1], [-15696.492, 110.5, 1]])
    grad_mask = torch.zeros(224, 224)
    grad_mask[90] = 1.0
    grad = silhouette.gradient(verts, [[0, 1, 2]], 224, grad_mask)
    by_hand = 2 * sum(1 / (72.99968 - d + 1e-4 * 112) for d in range(73))
    assert grad[1, 0].item() == pytest.approx(by_hand, rel=1e-3)


# ---- Against the loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_random_triangles_equal_the_formula(silhouette, dtype, seed):
    # Both orientations, overlapping, some of them partly or wholly off the image.
    size = 20
    verts, faces = soup(12, size, seed, spread=1.6)
    grad_mask = torch.randn(size, size, dtype=torch.float64)
    verts = verts.to(dtype)
    grad = silhouette.gradient(verts, faces, size, grad_mask.to(dtype))
    expected = expected_gradient(verts.double(), faces, size, grad_mask.to(dtype).double())
    scale = expected.abs().max()
    torch.testing.assert_close(grad.double() / scale, expected / scale, **TOLERANCE[dtype])


@pytest.mark.parametrize("shift", [(0.0, 0.0), (9.3, -7.7)])
def test_a_closed_mesh_pulled_towards_a_target_equals_the_formula(silhouette, dtype, shift):
    size = 32
    verts, faces = sphere()
    verts[:, :2] += torch.tensor(shift)
    verts = verts.to(dtype)
    target = reference.silhouette(verts + torch.tensor([3.0, 2.0, 0.0]), faces, size)
    grad_mask = 2 * (reference.silhouette(verts, faces, size) - target) / size**2
    assert (grad_mask > 0).any()
    assert (grad_mask < 0).any()
    grad = silhouette.gradient(verts, faces, size, grad_mask)
    expected = expected_gradient(verts.double(), faces, size, grad_mask.double())
    scale = expected.abs().max()
    torch.testing.assert_close(grad.double() / scale, expected / scale, **TOLERANCE[dtype])
    assert (grad[:, :2].sum(0) < 0).all(), "the descent direction -grad leads to the target"


def test_an_image_that_is_not_square_has_one_unit_for_each_axis(silhouette):
    # Only x moves matter for a pixel right of an upright edge; eps is in units of half the width.
    verts = torch.tensor([[1.2, 1.3, 1], [1.1, 8.9, 1], [5.7, 4.1, 1]], dtype=torch.float64)
    grad_mask = torch.zeros(10, 30, dtype=torch.float64)
    grad_mask[4, 20] = -1.0
    eps = 0.01
    grad = silhouette.gradient(verts, [[0, 1, 2]], (10, 30), grad_mask, eps=eps)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for a, b in ((1, 2), (2, 0)):  # the two edges on the right, where row 4 (y = 4.5) leaves the face
        (xa, ya), (xb, yb) = verts[a, :2].tolist(), verts[b, :2].tolist()
        if not min(ya, yb) < 4.5 < max(ya, yb):
            continue
        crossing = xa + (xb - xa) * (4.5 - ya) / (yb - ya)
        for vertex, share in ((a, (yb - 4.5) / (yb - ya)), (b, (4.5 - ya) / (yb - ya))):
            expected[vertex, 0] -= 1 / ((20.5 - crossing) / share + eps * 30 / 2)
    assert (expected[:, 0] < 0).sum() == 2
    torch.testing.assert_close(grad, expected)


# ---- The mask ---------------------------------------------------------------------------------------------


def test_the_mask_is_where_the_rasterizer_sees_a_face(silhouette, dtype):
    for seed in range(3):
        verts, faces = soup(15, 30, seed)
        verts = verts.to(dtype)
        mask = silhouette(verts, faces, (31, 30))
        assert mask.dtype == dtype
        index = reference.rasterize(verts, faces, (31, 30)).face_index
        assert torch.equal(mask.cpu(), (index >= 0).to(dtype))


def test_fill_back_draws_back_faces_and_pulls_on_them(silhouette):
    front = torch.tensor([[2.2, 2.3, 1], [3.1, 13.2, 1], [12.7, 5.1, 1]], dtype=torch.float64)
    grad_mask = -torch.ones(16, 16, dtype=torch.float64)
    assert silhouette(front, [[0, 1, 2]], 16).sum() > 0
    assert silhouette(front, [[2, 1, 0]], 16, fill_back=False).sum() == 0
    assert (silhouette.gradient(front, [[2, 1, 0]], 16, grad_mask, fill_back=False) == 0).all()
    kept = silhouette.gradient(front, [[0, 1, 2]], 16, grad_mask, fill_back=False)
    both_sides = silhouette.gradient(front, [[2, 1, 0]], 16, grad_mask)
    assert kept.abs().sum() > 0
    torch.testing.assert_close(kept, both_sides)


def test_a_near_plane_makes_the_view_perspective(silhouette):
    verts = torch.tensor([[1.0, 1, 2], [1, 9, 2], [9, 1, 2]])
    assert silhouette(verts, [[0, 1, 2]], 8, z_near=0.1).sum() > 0
    assert silhouette(verts - torch.tensor([0, 0, 1.95]), [[0, 1, 2]], 8, z_near=0.1).sum() == 0
    assert silhouette(verts - torch.tensor([0, 0, 9.0]), [[0, 1, 2]], 8).sum() > 0


def test_axis_parallel_edges_on_pixel_centres_give_finite_gradients(silhouette, dtype):
    # neural_renderer divides by zero here. The square covers the centres 2.5 to 4.5, the target 1.5 to
    # 5.5: its sides must be pulled outwards.
    verts = torch.tensor([[2.5, 2.5, 1], [5.5, 2.5, 1], [2.5, 5.5, 1], [5.5, 5.5, 1]], dtype=dtype)
    grad_mask = torch.zeros(9, 9, dtype=dtype)
    grad_mask[1:6, 1:6] = -1
    grad = silhouette.gradient(verts, [[0, 2, 1], [1, 2, 3]], 9, grad_mask)
    assert torch.isfinite(grad).all()
    assert (grad[[0, 2], 0] > 0).all(), "descent moves the left side to the left"
    assert (grad[[1, 3], 0] < 0).all()
    assert (grad[[0, 1], 1] > 0).all(), "and the upper side up"
    assert (grad[[2, 3], 1] < 0).all()


def test_a_mask_that_fits_is_left_alone(silhouette, dtype):
    verts, faces = sphere()
    mask = silhouette(verts.to(dtype), faces, 32)
    # Covered pixels want to be covered (grad < 0) and empty ones to be empty (grad > 0).
    assert (silhouette.gradient(verts.to(dtype), faces, 32, 1 - 2 * mask) == 0).all()


def test_descent_finds_the_target(device):
    silhouette = Implementation(device.type)
    verts, faces = sphere()
    target = reference.silhouette(verts, faces, 32).to(silhouette.device)
    offset = torch.tensor([3.3, -2.6, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=0.3)
    for _ in range(40):
        optimizer.zero_grad()
        ((silhouette(verts + offset, faces, 32) - target) ** 2).sum().backward()
        optimizer.step()
    assert offset.detach().norm() < 0.7


# ---- Shapes and contracts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,), (2, 2), (0,), (2, 0)])
def test_any_leading_batch(silhouette, batch):
    verts, faces = sphere()
    verts = verts + torch.randn(*batch, 1, 3, dtype=verts.dtype)
    grad_mask = torch.randn(*batch, 20, 24, dtype=verts.dtype)
    mask = silhouette(verts, faces, (20, 24))
    grad = silhouette.gradient(verts, faces, (20, 24), grad_mask)
    assert mask.shape == (*batch, 20, 24)
    assert grad.shape == verts.shape
    if batch == (3,):
        for one in range(3):
            alone = silhouette.gradient(verts[one], faces, (20, 24), grad_mask[one])
            torch.testing.assert_close(alone, grad[one])


def test_no_faces_and_no_vertices(silhouette):
    for n_verts in (0, 3):
        verts = torch.zeros(2, n_verts, 3)
        faces = torch.zeros(0, 3, dtype=torch.int64)
        assert (silhouette(verts, faces, (3, 4)) == 0).all()
        assert (silhouette.gradient(verts, faces, (3, 4), -torch.ones(2, 3, 4)) == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 19), (19, 1)])
def test_one_pixel_wide_images(silhouette, size):
    verts, faces = sphere(centre=(3.2, 0.4, 5.0), radius=2.0)
    grad = silhouette.gradient(verts, faces, size, torch.randn(size, dtype=verts.dtype))
    assert torch.isfinite(grad).all()


def test_half_types_and_strided_gradients(silhouette):
    verts, faces = sphere()
    mask = silhouette(verts.half(), faces, 32)
    assert mask.dtype == torch.float16
    grad_mask = torch.randn(32, 64, dtype=torch.float64)[:, ::2]
    torch.testing.assert_close(
        silhouette.gradient(verts, faces.int(), 32, grad_mask),
        silhouette.gradient(verts, faces, (32, 32), grad_mask.contiguous()),
    )


def test_kernels_equal_the_twin(device, dtype):
    verts, faces = sphere(centre=(40.0, 30.0, 9.0), radius=22.0, n_rings=12)
    verts = verts.to(dtype)
    target = reference.silhouette(verts * torch.tensor([1.1, 0.9, 1.0], dtype=dtype), faces, (61, 83))
    grad_mask = reference.silhouette(verts, faces, (61, 83)) - target
    twin = Implementation("twin").gradient(verts, faces, (61, 83), grad_mask)
    kernel = Implementation(device.type).gradient(verts, faces, (61, 83), grad_mask)
    scale = twin.abs().max()
    torch.testing.assert_close(kernel / scale, twin / scale, **TOLERANCE[dtype])


def test_op_and_twin_have_one_signature():
    assert inspect.signature(ops.silhouette) == inspect.signature(reference.silhouette)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device, dtype, requires_grad):
    verts, faces = sphere()
    verts = torch.stack([verts, verts + 1]).to(device, dtype)
    verts.requires_grad_(requires_grad)
    faces = faces.to(device)
    torch.library.opcheck(torch.ops.dhpe_fast.silhouette_nmr.default, (verts, faces, 12, 14, None, True, 1e-4))
    if not requires_grad:
        mask, index = torch.ops.dhpe_fast.silhouette_nmr(verts, faces, 12, 14, 0.5, False, 1e-4)
        arguments = (-torch.ones_like(mask), index, verts, faces, 1e-4, True)
        torch.library.opcheck(torch.ops.dhpe_fast._silhouette_nmr_backward.default, arguments)


def test_deterministic_algorithms_give_the_same_gradient_twice(device):
    verts, faces = sphere()
    grad_mask = torch.randn(32, 32)
    grads = []
    for deterministic in (False, True, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            grads.append(Implementation(device.type).gradient(verts.float(), faces, 32, grad_mask))
        finally:
            torch.use_deterministic_algorithms(False)
    assert torch.equal(grads[1], grads[2])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


def test_double_backward_is_refused_by_name():
    verts, faces = sphere()
    leaf = verts.requires_grad_()
    mask = ops.silhouette(leaf, faces, 32)
    (grad,) = torch.autograd.grad((mask - 1).pow(2).sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="silhouette is differentiable once"):
        grad.sum().backward()


def test_results_do_not_depend_on_the_number_of_threads():
    verts, faces = sphere(radius=9.0)
    verts = torch.stack([verts, verts + 2, verts - 3]).float()
    grad_mask = torch.randn(3, 96, 64)
    threads = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            results.append(
                (
                    ops.silhouette(verts, faces, (96, 64)),
                    Implementation("cpu").gradient(verts, faces, (96, 64), grad_mask),
                )
            )
    finally:
        torch.set_num_threads(threads)
    for mask, grad in results[1:]:
        assert torch.equal(mask, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"verts_px": torch.zeros(3, 2)}, ValueError, r"verts_px has shape \(3, 2\)"),
        ({"faces": torch.zeros(1, 3)}, TypeError, "faces must be an int32 or int64 tensor"),
        ({"faces": torch.tensor([[0, 1, 3]])}, ValueError, "faces holds 3, expected 0 to 2"),
        ({"image_size": 16385}, ValueError, "image_size is 16385"),
        ({"mode": "soft-ish"}, ValueError, "mode is 'soft-ish', expected one of 'nmr'"),
        ({"z_near": 0.0}, ValueError, "z_near is 0.0"),
        ({"eps": 0.0}, ValueError, "eps is 0.0, expected a positive number"),
        ({"eps": float("nan")}, ValueError, "eps is nan"),
        ({"eps": None}, TypeError, "eps must be a number, got NoneType"),
        ({"z_near": [1.0]}, TypeError, "z_near must be a number, got list"),
        ({"sigma": "1"}, TypeError, "sigma must be a number, got str"),
        ({"image_size": True}, TypeError, "image_size must be an int or .* got True"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"verts_px": torch.zeros(3, 3), "faces": torch.tensor([[0, 1, 2]]), "image_size": 4, **change}
    with pytest.raises(error, match=message):
        ops.silhouette(**arguments)
    with pytest.raises(error, match=message):
        reference.silhouette(**arguments)


@settings(max_examples=150, deadline=None)
@given(
    verts=hostile_verts,
    faces=hostile_faces,
    size=small_images,
    pull=st.sampled_from([-1.0, 1.0]),
)
def test_hostile_meshes_give_finite_gradients(verts, faces, size, pull):
    mask = ops.silhouette(verts, faces, size)
    assert ((mask == 0) | (mask == 1)).all()
    checkered = torch.ones(size)
    checkered[::2, ::3] = -1
    grad = Implementation("cpu").gradient(verts, faces, size, pull * checkered)
    assert torch.isfinite(grad).all()


def test_an_infinite_gradient_stays_in_its_row_and_column():
    verts = torch.tensor([[4, 3, 1], [12, 3.5, 1], [6, 9, 1], [20, 20, 1], [27, 21, 1], [22, 28, 1.0]]).requires_grad_()
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    upstream = torch.zeros(32, 32)
    upstream[4, 20], upstream[31, 31] = -1, -torch.inf  # no edge crosses the last row or column
    ops.silhouette(verts, faces, 32).backward(upstream)
    assert verts.grad.isfinite().all()
    assert verts.grad[:3].any()
