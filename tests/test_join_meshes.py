"""Several meshes in one image: who is seen, whose silhouette it is, and who receives the gradient."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dhpe_fast import reference
from dhpe_fast.hand import HandModel
from dhpe_fast.ops import join_meshes, rasterize, silhouette

SIZE = 48
SQUARE = torch.tensor([[0, 2, 1], [0, 3, 2]])


def square(left: float, top: float, side: float, z: float) -> torch.Tensor:
    corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]
    return torch.tensor([(x, y, z) for x, y in corners], dtype=torch.float64)


def hands(dtype=torch.float64):
    """Two hands side by side that overlap, the second one nearer, in pixels."""
    template = HandModel.default(dtype=dtype).v_template
    turned = template[:, [2, 0, 1]] * 180
    turned = turned - turned.mean(0)
    first = turned + turned.new_tensor((18.0, 24.0, 100.0))
    return torch.stack([first, first + turned.new_tensor((11.0, 0.0, -60.0))]), HandModel.default().faces


def test_the_nearer_mesh_shows():
    verts = torch.stack([square(4, 4, 20, 2.0), square(14, 14, 20, 1.0)])
    scene = join_meshes(verts, SQUARE)
    seen = rasterize(scene.verts, scene.faces, SIZE)
    mesh = torch.where(seen.face_index >= 0, scene.face_mesh[seen.face_index.long()], -1)
    expected = torch.full((SIZE, SIZE), -1)
    expected[4:24, 4:24] = 0
    expected[14:34, 14:34] = 1
    assert torch.equal(mesh, expected)
    assert seen.depth[20, 20] == 1.0


@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_a_silhouette_is_that_of_the_union(mode):
    verts, faces = hands()
    scene = join_meshes(verts, faces)
    together = silhouette(scene.verts, scene.faces, SIZE, mode=mode)
    alone = silhouette(verts, faces, SIZE, mode=mode)
    overlap = (alone.amin(0) > 0).sum()
    assert overlap > 20
    if mode == "nmr":
        torch.testing.assert_close(together, alone.amax(0))
    else:
        assert (together >= alone.amax(0) - 1e-9).all()
        assert (together <= alone.sum(0).clamp(max=1) + 1e-9).all()


@pytest.mark.parametrize("mode", ["nmr", "edge", "soft"])
def test_meshes_apart_have_the_gradients_that_they_have_alone(mode):
    apart = torch.stack([square(2, 4, 8, 2.0), square(30, 25, 9, 1.0)])
    weights = torch.rand(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    # Of nmr, a pixel pulls on all edges in its row and column: each mesh gets its own rows and columns to see.
    near = torch.zeros(2, SIZE, SIZE, dtype=torch.float64)
    near[0, :16, :16], near[1, 20:40, 26:44] = 1, 1
    leaf = apart.clone().requires_grad_()
    scene = join_meshes(leaf, SQUARE)
    (silhouette(scene.verts, scene.faces, SIZE, mode=mode) * weights * near.sum(0)).sum().backward()
    for number in range(2):
        own = apart[number].clone().requires_grad_()
        (silhouette(own, SQUARE, SIZE, mode=mode) * weights * near[number]).sum().backward()
        assert own.grad.any()
        torch.testing.assert_close(leaf.grad[number], own.grad, rtol=1e-6, atol=1e-9)


def test_what_is_hidden_receives_nothing():
    verts = torch.stack([square(10, 10, 10, 2.0), square(4, 4, 30, 1.0)]).requires_grad_()
    scene = join_meshes(verts, SQUARE)
    silhouette(scene.verts, scene.faces, SIZE, mode="edge").sum().backward()
    assert not verts.grad[0].any()
    assert verts.grad[1].any()


def test_meshes_of_different_sizes_and_batches_of_images():
    triangle = torch.tensor([[[1.0, 1, 1], [9, 1, 1], [1, 9, 1]]]).expand(3, -1, -1)
    other = square(20, 20, 8, 1.0).float().expand(3, -1, -1)
    scene = join_meshes([triangle, other], [torch.tensor([[0, 2, 1]]), SQUARE])
    assert scene.verts.shape == (3, 7, 3)
    assert scene.faces.tolist() == [[0, 2, 1], [3, 5, 4], [3, 6, 5]]
    assert scene.face_mesh.tolist() == [0, 1, 1]
    assert silhouette(scene.verts, scene.faces, SIZE).shape == (3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("verts", "faces", "error", "message"),
    [
        ([], [], ValueError, "expected a tensor, or one for each of 0 >= 1 meshes"),
        (torch.zeros(4, 3), SQUARE, ValueError, r"verts: expected \(\*batch, M, V, 3\)"),
        ([torch.zeros(4, 2)], SQUARE, ValueError, "verts: expected .* got \\(4, 2\\) for mesh 0"),
        ([torch.zeros(4, 3), torch.zeros(2, 4, 3)], SQUARE, ValueError, "for mesh 1"),
        ([torch.zeros(4, 3), torch.zeros(4, 3).double()], SQUARE, ValueError, "mesh 1 is torch.float64"),
        ([torch.zeros(4, 3)], [SQUARE, SQUARE], ValueError, "each of 1 >= 1 meshes, got 2"),
        ([torch.zeros(4, 3)], SQUARE.float(), TypeError, "expected int32 or int64"),
        ([torch.zeros(4, 3)], SQUARE[:, :2], ValueError, r"faces: expected \(F, 3\)"),
        ([torch.zeros(1, 3).expand(2**30, 3)] * 2, SQUARE.int(), ValueError, "2147483648 vertices in all"),
        ([3], SQUARE, TypeError, "verts: expected a tensor or a sequence of tensors, got int"),
    ],
)
def test_refusals(verts, faces, error, message):
    with pytest.raises(error, match=message):
        join_meshes(verts, faces)


@pytest.mark.parametrize("wrong", [4, -1])
def test_a_vertex_of_another_mesh_is_none_of_ones_own(wrong):
    verts = torch.stack([square(4, 4, 20, 2.0), square(14, 14, 20, 1.0)])
    scene = join_meshes(verts, torch.tensor([[0, 2, wrong]]))
    assert scene.faces.tolist() == [[0, 2, -1], [4, 6, -1]]
    with pytest.raises(ValueError, match="faces"):
        rasterize(scene.verts, scene.faces, SIZE)


def test_sizes_follow_from_shapes():
    """No value of a tensor is asked for, which on a GPU would wait for all work before."""
    with FakeTensorMode():
        scene = join_meshes([torch.zeros(4, 3), torch.zeros(5, 3)], [torch.zeros(2, 3).int(), torch.zeros(3, 3).int()])
    assert scene.face_mesh.shape == (5,)


def test_there_is_one_function():
    assert join_meshes is reference.join_meshes, "plain torch already: a twin would be a copy"
