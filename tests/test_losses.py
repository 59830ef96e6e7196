"""Loss terms against loops and hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch

from dhpe_fast.losses import cotangent_laplacian, laplacian_loss, silhouette_iou_loss


def test_laplacian_of_a_square_by_hand():
    """A unit square cut along a diagonal: right angles face the diagonal (cot 90 = 0), 45 degrees its sides."""
    verts = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.float64)
    laplacian = cotangent_laplacian(verts, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    expected = torch.tensor(
        [[-1.0, 0.5, 0, 0.5], [0.5, -1, 0.5, 0], [0, 0.5, -1, 0.5], [0.5, 0, 0.5, -1]], dtype=torch.float64
    )
    torch.testing.assert_close(laplacian, expected, rtol=0, atol=1e-12)


def test_laplacian_rows_sum_to_zero_and_flat_meshes_cost_only_their_border():
    grid = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij"), -1).reshape(-1, 2)
    verts = torch.cat([grid, torch.zeros(25, 1)], 1).double()
    corner = [5 * i + j for i in range(4) for j in range(4)]
    faces = torch.tensor([t for c in corner for t in ((c, c + 5, c + 6), (c, c + 6, c + 1))])
    laplacian = cotangent_laplacian(verts, faces)
    torch.testing.assert_close(laplacian.sum(1), torch.zeros(25, dtype=torch.float64), rtol=0, atol=1e-12)
    inner = [5 * i + j for i in range(1, 4) for j in range(1, 4)]
    assert (laplacian @ verts)[inner].abs().max() < 1e-12


def test_laplacian_loss_is_the_mean_length_and_ignores_rigid_motion():
    verts = torch.randn(2, 6, 3, dtype=torch.float64)
    laplacian = torch.randn(6, 6, dtype=torch.float64)
    laplacian = laplacian - torch.diag(laplacian.sum(1))
    expected = []
    for hand in verts:
        lengths = [math.sqrt(sum(float(laplacian[i] @ hand[:, c]) ** 2 for c in range(3))) for i in range(6)]
        expected.append(sum(lengths) / 6)
    torch.testing.assert_close(laplacian_loss(verts, laplacian).tolist(), expected)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -1, 2], [1, 0, -3], [-2, 3, 0]], dtype=torch.float64))
    moved = verts @ turn.T + torch.tensor([1.0, 2, 3], dtype=torch.float64)
    torch.testing.assert_close(laplacian_loss(moved, laplacian), laplacian_loss(verts, laplacian))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_silhouette_iou_loss_of_two_squares(batch):
    """A 4 x 4 square of two triangles against a mask two columns further right: 8 pixels of 24 in common."""
    square = torch.tensor([[2.0, 2, 1], [6, 2, 1], [6, 6, 1], [2, 6, 1]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    mask = torch.zeros(8, 10, dtype=torch.float64)
    mask[2:6, 4:8] = 1
    loss = silhouette_iou_loss(square.expand(*batch, 4, 3), faces, mask.expand(*batch, 8, 10))
    torch.testing.assert_close(loss, torch.full(batch, 1 - 8 / 24, dtype=torch.float64))


def test_silhouette_iou_loss_outside_of_the_image_is_one_and_has_no_gradient():
    square = torch.tensor([[-9.0, 2, 1], [-5, 2, 1], [-5, 6, 1]], dtype=torch.float64, requires_grad=True)
    loss = silhouette_iou_loss(square, torch.tensor([[0, 1, 2]]), torch.ones(4, 4, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, square)
    assert loss.item() == 1
    assert not gradient.any()
