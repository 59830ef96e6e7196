"""Beyond one hand: large meshes, batches, images and faces, whose work the GPU divides in other ways than a hand's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from meshes import sphere

from dhpe_fast import ops

MODES = ("nmr", "edge", "soft")


def fan(n_faces: int, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """An ellipse (V, 3) px in the middle of the image whose faces all meet in one vertex, the last."""
    angle = np.arange(n_faces) * 2 * np.pi / n_faces + 0.01
    rim = np.stack([0.5 + 0.45 * np.cos(angle), 0.5 + 0.35 * np.sin(angle), 0.1 + 0.01 * np.sin(3 * angle)], -1)
    at = np.arange(n_faces)
    faces = np.stack([at, (at + 1) % n_faces, np.full_like(at, n_faces)], -1)
    return torch.tensor(np.concatenate([rim, [[0.5, 0.5, 0.05]]]) * size), torch.tensor(faces)


def gradient(function: Callable[[torch.Tensor], torch.Tensor], verts_px: torch.Tensor, deterministic=False):
    leaf = verts_px.clone().requires_grad_()
    torch.use_deterministic_algorithms(deterministic)
    try:
        function(leaf).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    return leaf.grad


def weights(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """The same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(like)


# ---- Batches ---------------------------------------------------------------------------------------------


def test_what_an_image_shows_does_not_depend_on_the_batch_around_it(device):
    verts, faces = sphere((100.0, 90.0, 300.0), 80.0, n_rings=20)
    shift = torch.linspace(-30, 30, 16)[:, None, None]
    verts = (verts + shift * torch.tensor([1.0, 0.3, 0.0])).float().to(device)
    faces = faces.to(device)
    together = ops.rasterize(verts, faces, 200)
    for image in (0, 9, 15):
        for one, all_of_them in zip(ops.rasterize(verts[image], faces, 200), together, strict=True):
            assert torch.equal(one, all_of_them[image])
    for mode in MODES:
        mask = ops.silhouette(verts[:, :, :], faces, 200, mode=mode)
        assert torch.equal(ops.silhouette(verts[9], faces, 200, mode=mode), mask[9])


# ---- Sums over many faces --------------------------------------------------------------------------------


def depth_gradient(verts_px: torch.Tensor, faces: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What dz receives from sum(depth), (V,) float64: depth = sum of bary z, and seen from afar bary is free of z."""
    seen = ops.rasterize(verts_px, faces, size)
    hit = seen.face_index >= 0
    grad = torch.zeros(len(verts_px), dtype=torch.float64, device=verts_px.device)
    return grad.index_add(0, faces[seen.face_index[hit].long()].reshape(-1), seen.bary[hit].double().reshape(-1))


def assert_depth_gradient(verts_px: torch.Tensor, faces: torch.Tensor, size: tuple[int, int]) -> None:
    expected = depth_gradient(verts_px, faces, size)
    for deterministic in (False, True):
        grad = gradient(lambda leaf: ops.rasterize(leaf, faces, size).depth.sum(), verts_px, deterministic)
        torch.testing.assert_close(grad[:, 2].double(), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_a_vertex_in_which_all_faces_meet_receives_the_sum_over_them(device):
    verts, faces = fan(6000, 96.0)
    assert_depth_gradient(verts.float().to(device), faces.to(device), (96, 96))


def test_faces_as_large_as_the_image_and_small_ones_receive_their_sums(device):
    size = (300, 420)
    small, small_faces = sphere((200.0, 150.0, 500.0), 30.0, n_rings=4)
    large = torch.tensor([[-60.0, -90, 900], [800, -40, 1000], [-80, 700, 800], [430, 310, 950]], dtype=torch.float64)
    verts = torch.cat([small, large]).float().to(device)
    large_faces = torch.tensor([[0, 1, 2], [1, 3, 2]]) + len(small)
    assert_depth_gradient(verts, torch.cat([small_faces, large_faces]).to(device), size)


@pytest.mark.parametrize("mode", MODES)
def test_sums_in_a_fixed_order_repeat_bit_for_bit_in_large_meshes(device, mode):
    verts, faces = fan(6000, 96.0)
    verts = torch.stack([verts, verts * 1.1]).float().to(device)
    weight = weights((2, 96, 96), verts)

    def loss(leaf):
        return (ops.silhouette(leaf, faces.to(device), 96, mode=mode) * weight).sum()

    first, second = (gradient(loss, verts, deterministic=True) for _ in range(2))
    assert torch.equal(first, second)
    free = gradient(loss, verts)
    torch.testing.assert_close(first, free, rtol=1e-3, atol=1e-4 * float(free.abs().max()))


# ---- Rows with many contour edges ------------------------------------------------------------------------


def comb(n_teeth: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Upright strips that reach beyond the image: their left and right ends (n, 2), vertices and faces."""
    ends = np.sort(rng.random(2 * n_teeth) * (width + 8) - 4).reshape(-1, 2)
    left, right = ends.T
    corners = [(left, -3.0), (right, -2.0), (left, 9.0), (right, 10.0)]
    verts = np.stack([np.stack([x, np.full_like(x, y), np.full_like(x, 5.0)], -1) for x, y in corners], 1)
    faces = np.array([[0, 2, 1], [1, 2, 3]]) + 4 * np.arange(n_teeth)[:, None, None]
    return ends, torch.tensor(verts.reshape(-1, 3)), torch.tensor(faces.reshape(-1, 3))


@pytest.mark.parametrize("n_teeth", [20, 1000, 3000])
def test_rows_with_thousands_of_contour_edges_are_covered_by_what_lies_between_them(device, n_teeth):
    width, height = 200, 4
    ends, verts, faces = comb(n_teeth, width, np.random.default_rng(n_teeth))
    verts, faces = verts.to(device), faces.to(device)
    expected = sum(
        np.clip(right - np.arange(width), 0, 1) - np.clip(left - np.arange(width), 0, 1) for left, right in ends
    )
    mask = ops.silhouette(verts, faces, (height, width), mode="edge")
    torch.testing.assert_close(mask.cpu(), torch.tensor(expected).expand(height, width), rtol=0, atol=1e-12)
    weight = weights((height, width), verts)
    # Moving an end to the right uncovers or covers what its pixel column holds.
    column = np.floor(ends).astype(int)
    inside = (column >= 0) & (column < width)
    pull = np.where(inside, weight.sum(0).cpu().numpy()[np.clip(column, 0, width - 1)], 0) * [-1, 1]
    for deterministic in (False, True):
        grad = gradient(
            lambda leaf: (ops.silhouette(leaf, faces, (height, width), mode="edge") * weight).sum(),
            verts,
            deterministic,
        )
        of_teeth = grad.reshape(n_teeth, 2, 2, 3).sum(1)  # what the upper and the lower end of a side share
        torch.testing.assert_close(of_teeth[:, :, 0].cpu(), torch.tensor(pull), rtol=1e-9, atol=1e-9)


# ---- 200,000 faces on four million pixels ----------------------------------------------------------------

LARGE = 2048


def large_mesh(shuffled: bool) -> tuple[torch.Tensor, torch.Tensor]:
    verts, faces = sphere((1000.3, 1100.7, 5000.0), 930.0, n_rings=224)
    order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(2)) if shuffled else slice(None)
    return verts.float(), faces[order]


@pytest.mark.needs_cuda
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_gpu_draws_a_large_mesh_as_the_cpu_does_bit_for_bit(shuffled):
    verts, faces = large_mesh(shuffled)
    assert len(faces) > 200_000
    expected = ops.rasterize(verts, faces, LARGE, cull_backfaces=True)
    seen = ops.rasterize(verts.cuda(), faces.cuda(), LARGE, cull_backfaces=True)
    for ours, theirs in zip(seen, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("mode", MODES)
def test_the_gpu_draws_the_silhouette_of_a_large_mesh_as_the_cpu_does(mode):
    verts, faces = large_mesh(shuffled=True)
    expected = ops.silhouette(verts, faces, LARGE, mode=mode)
    mask = ops.silhouette(verts.cuda(), faces.cuda(), LARGE, mode=mode)
    torch.testing.assert_close(mask.cpu(), expected, rtol=0, atol={"nmr": 0, "edge": 1e-6, "soft": 1e-3}[mode])


@pytest.mark.needs_cuda
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("loss_of", ["depth", *MODES])
def test_the_gpu_adds_up_the_gradient_of_a_large_mesh_as_the_cpu_does(loss_of, deterministic):
    verts, faces = large_mesh(shuffled=True)

    def loss(leaf):
        on_device = faces.to(leaf.device)
        if loss_of == "depth":
            picture = ops.rasterize(leaf, on_device, LARGE).depth
        else:
            picture = ops.silhouette(leaf, on_device, LARGE, mode=loss_of)
        return (picture * weights((LARGE, LARGE), leaf)).sum()

    expected = gradient(loss, verts)
    grad = gradient(loss, verts.cuda(), deterministic)
    torch.testing.assert_close(grad.cpu(), expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max()))
