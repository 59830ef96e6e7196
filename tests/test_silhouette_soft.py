"""The "soft" silhouette: Liu et al.'s formula, its reach, its exact gradient."""

from __future__ import annotations

import inspect
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


@pytest.fixture(params=SILHOUETTES)
def soft(request, device):
    """Calls one implementation on one device."""
    return silhouette_call(request.param, device, "soft")


def kernel(verts_px, faces, image_size, **options) -> torch.Tensor:
    return ops.silhouette(verts_px, faces, image_size, mode="soft", **options)


def by_loops(verts_px, faces, image_size, sigma) -> torch.Tensor:
    """The formula of the paper, pixel by pixel and face by face."""
    corners = verts_px[:, :2].tolist()
    mask = torch.zeros(image_size, dtype=torch.float64)
    for row in range(image_size[0]):
        for column in range(image_size[1]):
            missed = 1.0
            for face in faces.tolist():
                distance, inside = distance_to_outline((column + 0.5, row + 0.5), [corners[i] for i in face])
                missed *= 1 - 1 / (1 + math.exp(-(1 if inside else -1) * distance**2 / sigma))
            mask[row, column] = 1 - missed
    return mask


def distance_to_outline(point, triangle) -> tuple[float, bool]:
    distances, sides = [], []
    for k in range(3):
        (ax, ay), (bx, by) = triangle[k], triangle[(k + 1) % 3]
        ux, uy, ex, ey = point[0] - ax, point[1] - ay, bx - ax, by - ay
        t = min(max((ux * ex + uy * ey) / (ex * ex + ey * ey), 0.0), 1.0)
        distances.append(math.hypot(ux - t * ex, uy - t * ey))
        sides.append(ex * uy - ey * ux)
    return min(distances), all(s > 0 for s in sides) or all(s < 0 for s in sides)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 20.0])
def test_the_image_is_that_of_the_formula(soft, dtype, sigma):
    verts, faces = soup(6, 12, 2, spread=1.5)
    expected = by_loops(verts, faces, (12, 10), sigma)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    mask = soft(verts.to(dtype), faces, (12, 10), sigma=sigma)
    torch.testing.assert_close(mask.double(), expected, atol=tolerance, rtol=0)


def test_it_is_one_half_on_the_outline_and_fades_with_the_square_of_the_distance(soft):
    # Centres of column 4 lie on the left side of a large triangle.
    triangle = torch.tensor([[4.5, -90, 1], [4.5, 110, 1], [90, 10, 1]], dtype=torch.float64)
    row = soft(triangle, [[0, 1, 2]], (1, 9), sigma=2.0)[0]
    expected = [1 / (1 + math.exp(-(1 if x >= 4 else -1) * (x - 4) ** 2 / 2.0)) for x in range(9)]
    torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))


def test_sigma_in_the_units_of_the_paper(soft):
    # Scaling the image by 2 and sigma by 4 gives the same values at the same places.
    verts, faces = soup(4, 10, 3)
    at = torch.tensor([2.0, 2.0, 1.0])
    small = soft(verts, faces, 10, sigma=1.5)
    shifted = torch.tensor([-0.5, -0.5, 0.0])
    large = soft(verts * at + shifted, faces, 20, sigma=6.0)
    torch.testing.assert_close(large[::2, ::2], small)


def test_beyond_its_reach_there_is_nothing(soft):
    triangle = torch.tensor([[2.0, 2, 1], [2, 6, 1], [6, 2, 1]])
    mask = kernel(triangle, torch.tensor([[0, 1, 2]]), (8, 40))
    assert (mask[:, 12:] == 0).all()
    assert soft(triangle, [[0, 1, 2]], (8, 40))[:, 12:].max() < 1e-7


def test_faces_that_do_not_draw(soft):
    triangle = torch.tensor([[2.0, 2, 1], [2, 6, 1], [6, 2, 1]])
    assert soft(triangle, [[2, 1, 0]], 8).sum() > 0
    assert soft(triangle, [[2, 1, 0]], 8, fill_back=False).sum() == 0
    assert soft(triangle, [[0, 1, 2]], 8, z_near=1.5).sum() == 0
    assert soft(triangle, [[0, 1, 1]], 8).sum() == 0
    broken = triangle.clone()
    broken[1, 1] = math.nan
    assert soft(broken, [[0, 1, 2]], 8).sum() == 0


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_any_leading_batch_and_half_types(soft, batch):
    verts, faces = soup(5, 20, 0)
    verts = verts + torch.randn(*batch, 1, 3, dtype=verts.dtype)
    mask = soft(verts, faces, (20, 24))
    assert mask.shape == (*batch, 20, 24)
    if batch == (2, 3):
        assert torch.equal(mask[1, 2], soft(verts[1, 2], faces, (20, 24)))
    assert soft(verts.half(), faces, (20, 24)).dtype == torch.float16


# ---- The gradient -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_gradcheck(seed):
    verts, faces = soup(5, 9, seed, spread=1.6)
    assert torch.autograd.gradcheck(lambda v: kernel(v, faces, (9, 8), sigma=0.7), verts.requires_grad_())


@pytest.mark.parametrize("make", [lambda: soup(30, 20, 1, 1.6), lambda: sphere((10.3, 9.1, 5.0), 7.0)])
@pytest.mark.parametrize("sigma", [0.2, 3.0])
def test_kernels_equal_the_twin(device, dtype, make, sigma):
    verts, faces = make()
    verts = verts.to(dtype)
    weight = torch.randn(20, 24, dtype=dtype)
    results = []
    for function, where in ((ops.silhouette, device), (reference.silhouette, torch.device("cpu"))):
        leaf = verts.clone().requires_grad_()
        mask = function(leaf.to(where), faces.to(where), (20, 24), mode="soft", sigma=sigma)
        (mask * weight.to(where)).sum().backward()
        results.append((mask.detach().cpu(), leaf.grad))
    tolerance = 4e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(results[0][0], results[1][0], atol=tolerance, rtol=0)
    torch.testing.assert_close(results[0][1], results[1][1], atol=20 * tolerance, rtol=0)


def test_descent_finds_a_target_beyond_the_outline(device):
    verts, faces = sphere()
    faces = faces.to(device)
    target = kernel(verts.to(device), faces, 32, sigma=9.0)
    offset = torch.tensor([4.3, -3.6, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        (kernel((verts + offset).to(device), faces, 32, sigma=9.0) - target).square().sum().backward()
        optimizer.step()
    assert offset.detach().norm() < 0.2


# ---- Contracts --------------------------------------------------------------------------------------------


def test_op_and_twin_have_one_signature():
    assert inspect.signature(ops.silhouette) == inspect.signature(reference.silhouette)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1e-7, 1e7, math.nan, math.inf])
def test_errors_name_sigma(sigma):
    with pytest.raises(ValueError, match=r"sigma is .*, expected 1e-06 to 1e\+06"):
        kernel(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), 4, sigma=sigma)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device, dtype, requires_grad):
    verts, faces = soup(5, 12, 0)
    verts = torch.stack([verts, verts + 1]).to(device, dtype).requires_grad_(requires_grad)
    faces = faces.to(device)
    torch.library.opcheck(torch.ops.dhpe_fast.silhouette_soft.default, (verts, faces, 12, 14, None, True, 1.0))
    if not requires_grad:
        mask, missed = torch.ops.dhpe_fast.silhouette_soft(verts, faces, 12, 14, 0.5, False, 2.0)
        arguments = (torch.randn_like(mask), missed, verts, faces, 0.5, False, 2.0, True)
        torch.library.opcheck(torch.ops.dhpe_fast._silhouette_soft_backward.default, arguments)


def test_results_do_not_depend_on_the_number_of_threads():
    verts, faces = jittered_grid()
    verts = torch.stack([verts, verts + 2, verts - 3]).float()
    weight = torch.randn(3, 96, 64)
    threads = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 7):
            torch.set_num_threads(n_threads)
            leaf = verts.clone().requires_grad_()
            mask = kernel(leaf, faces, (96, 64))
            (mask * weight).sum().backward()
            results.append((mask.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for mask, grad in results[1:]:
        assert torch.equal(mask, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_deterministic_algorithms_give_the_same_gradient_twice(device):
    verts, faces = sphere()
    verts, faces = verts.float().to(device), faces.to(device)
    weight = torch.randn(32, 32, device=device)
    grads = []
    for deterministic in (False, True, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            leaf = verts.clone().requires_grad_()
            (kernel(leaf, faces, 32) * weight).sum().backward()
            grads.append(leaf.grad)
        finally:
            torch.use_deterministic_algorithms(False)
    assert torch.equal(grads[1], grads[2])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    verts=hostile_verts,
    faces=hostile_faces,
    size=small_images,
    sigma=st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_hostile_meshes_give_finite_gradients(verts, faces, size, sigma, dtype):
    leaf = verts.to(dtype).requires_grad_()
    mask = kernel(leaf, faces, size, sigma=sigma)
    assert ((mask >= 0) & (mask <= 1)).all()
    (mask * torch.randn(size, dtype=dtype)).sum().backward()
    assert torch.isfinite(leaf.grad).all()
