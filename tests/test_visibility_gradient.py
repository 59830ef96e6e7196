"""The gradient of outlines: its formula in loops, the silhouette's as its one-channel case, twin against kernels."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import soup, sphere

from dhpe_fast import ops, reference

TOLERANCE = {torch.float32: {"rtol": 2e-3, "atol": 5e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-10}}


class Implementation:
    """One way to call visibility_gradient: arguments are moved to its device."""

    def __init__(self, name: str):
        self.function = reference.visibility_gradient if name == "twin" else ops.visibility_gradient
        self.device = torch.device("cuda" if name == "cuda" else "cpu")

    def gradient(self, image, face_index, verts_px, faces, grad_image, **options) -> torch.Tensor:
        leaf = verts_px.detach().clone().requires_grad_()
        image, face_index, faces = (torch.as_tensor(t).to(self.device) for t in (image, face_index, faces))
        attached = self.function(image, face_index, leaf.to(self.device), faces, **options)
        attached.backward(grad_image.to(self.device))
        return leaf.grad


@pytest.fixture(params=["twin", "cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def visibility(request: pytest.FixtureRequest) -> Implementation:
    return Implementation(request.param)


# ---- The formula, in loops --------------------------------------------------------------------------------


def gradient_by_loops(image, face_index, verts_px, faces, grad, eps) -> torch.Tensor:
    """Every edge of every face, line by line and pixel by pixel; coordinates are counted from pixel centres."""
    result = torch.zeros_like(verts_px)
    corners = verts_px[:, :2] - 0.5
    for face, ids in enumerate(faces.tolist()):
        for k in range(3):
            a, b, c = ids[k], ids[(k + 1) % 3], ids[(k + 2) % 3]
            for axis in (0, 1):  # the edge moves in x over rows, in y over columns
                pixels = [t.transpose(0, 1) if axis else t for t in (image, face_index, grad)]
                points = [(corners[i, 1 - axis].item(), corners[i, axis].item()) for i in (a, b, c)]
                pull = edge_by_loops(*pixels, points, face, eps)
                result[a, axis] += pull[0]
                result[b, axis] += pull[1]
    return result


def edge_by_loops(image, face_index, grad, points, face, eps) -> list[float]:
    (s0, m0), (s1, m1), (s2, m2) = points
    n_lines, length = face_index.shape
    pull = [0.0, 0.0]
    if s0 == s1:
        return pull
    outward = 1 if m2 < m0 + (m1 - m0) * (s2 - s0) / (s1 - s0) else -1
    for line in range(max(math.ceil(min(s0, s1)), 0), min(math.floor(max(s0, s1)), n_lines - 1) + 1):
        crossing = m0 + (m1 - m0) * (line - s0) / (s1 - s0)
        inside = math.floor(crossing) if outward > 0 else math.ceil(crossing)
        outside = inside + outward
        if not (0 <= inside < length and 0 <= outside < length):
            continue
        pulling = []
        if face_index[line, inside] == face:
            pulling += [(d, inside) for d in range(outside, length if outward > 0 else -1, outward)]
        pulling += [
            (d, outside) for d in range(inside, -1 if outward > 0 else length, -outward) if face_index[line, d] == face
        ]
        for d, other in pulling:
            delta = ((image[line, d] - image[line, other]) * grad[line, d]).sum().item()
            if delta <= 0:
                continue
            for end, t in enumerate(((s1 - line) / (s1 - s0), (line - s0) / (s1 - s0))):
                if t > 0:
                    move = (d - crossing) / t
                    pull[end] -= delta / (move + math.copysign(eps * length / 2, move))
    return pull


@pytest.mark.parametrize("n_channels", [1, 3, 4])
@pytest.mark.parametrize("seed", range(2))
def test_random_triangles_equal_the_formula(visibility, dtype, seed, n_channels):
    verts, faces = soup(10, 18, seed, spread=1.6)
    verts = verts.to(dtype)
    face_index = reference.rasterize(verts, faces, (15, 18)).face_index
    image = torch.rand(15, 18, n_channels, dtype=dtype)
    grad_image = torch.randn(15, 18, n_channels, dtype=dtype)
    grad = visibility.gradient(image, face_index, verts, faces, grad_image, eps=1e-2)
    expected = gradient_by_loops(image.double(), face_index, verts.double(), faces, grad_image.double(), 1e-2)
    scale = expected.abs().max()
    torch.testing.assert_close(grad.double() / scale, expected / scale, **TOLERANCE[dtype])


def test_one_pull_by_hand(visibility, dtype):
    # Row 4 (y = 4.5) leaves the triangle through the edge from (1, 9) to (7, 1) at x = 4.375. The white pixel at
    # x = 10.5 wants to be red as the face is: by 1 in the red channel, but not (0.25) in the green one.
    verts = torch.tensor([[1.0, 1, 1], [1, 9, 1], [7, 1, 1]], dtype=dtype)
    face_index = reference.rasterize(verts, torch.tensor([[0, 1, 2]]), (10, 12)).face_index
    red, white = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5])
    image = torch.where((face_index >= 0)[..., None], red, white).to(dtype)
    grad_image = torch.zeros(10, 12, 2, dtype=dtype)
    grad_image[4, 10] = torch.tensor([-1.0, -0.5])
    delta = 1.0 - 0.25
    eps, half = 1e-3, 6.0
    expected = torch.zeros(3, 3, dtype=dtype)
    for vertex, share in ((1, (4.5 - 1) / 8), (2, (9 - 4.5) / 8)):
        expected[vertex, 0] = -delta / ((10.5 - 4.375) / share + eps * half)
    grad = visibility.gradient(image, face_index, verts, torch.tensor([[0, 1, 2]]), grad_image, eps=eps)
    torch.testing.assert_close(grad, expected)


def test_the_mask_alone_is_the_silhouette(visibility, dtype):
    verts, faces = sphere()
    verts = verts.to(dtype)
    grad_mask = torch.randn(32, 32, dtype=dtype)
    leaf = verts.clone().requires_grad_()
    ops.silhouette(leaf, faces, 32).backward(grad_mask)
    face_index = reference.rasterize(verts, faces, 32).face_index
    mask = (face_index >= 0).to(dtype)[..., None]
    grad = visibility.gradient(mask, face_index, verts, faces, grad_mask[..., None])
    scale = leaf.grad.abs().max()
    torch.testing.assert_close(grad / scale, leaf.grad / scale, **TOLERANCE[dtype])


def test_channels_are_weighed_together(visibility):
    # What one channel wants the other forbids: alone they pull, together they do not.
    verts, faces = sphere()
    face_index = reference.rasterize(verts, faces, 32).face_index
    mask = (face_index >= 0).to(verts.dtype)
    image = torch.stack([mask, mask], -1)
    wanted = torch.where(mask > 0, 1.0, -1.0).to(verts.dtype)
    both = torch.stack([wanted, torch.zeros_like(wanted)], -1)
    assert visibility.gradient(image, face_index, verts, faces, both).abs().max() > 0
    opposed = torch.stack([wanted, -2 * wanted], -1)
    assert (visibility.gradient(image, face_index, verts, faces, opposed) == 0).all()


@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_an_image_of_one_colour_pulls_on_nothing(visibility, dtype, n_channels):
    verts, faces = sphere()
    face_index = reference.rasterize(verts, faces, 32).face_index
    image = torch.rand(n_channels, dtype=dtype).expand(32, 32, -1)
    grad_image = torch.randn(32, 32, n_channels, dtype=dtype)
    assert (visibility.gradient(image, face_index, verts.to(dtype), faces, grad_image) == 0).all()


def test_faces_of_other_colours_pull_on_inner_edges(visibility):
    # A red square before a blue one: pixels of the blue one that should be red widen the red one.
    corners = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
    front = torch.cat([corners * 4.2 + 12.1, torch.ones(4, 1, dtype=torch.float64)], 1)
    back = torch.cat([corners * 9.3 + 12.1, 2 * torch.ones(4, 1, dtype=torch.float64)], 1)
    faces = torch.tensor([[0, 1, 2], [2, 1, 3], [4, 5, 6], [6, 5, 7]])
    verts = torch.cat([front, back])
    face_index = reference.rasterize(verts, faces, 24).face_index
    red = ((face_index == 0) | (face_index == 1)).double()
    grad_image = torch.zeros(24, 24, 1, dtype=torch.float64)
    grad_image[12, 18] = -1.0
    grad = visibility.gradient(red[..., None], face_index, verts, faces, grad_image)
    assert (grad[2:4, 0] < 0).any(), "descent moves the red square's right side to the right"
    assert grad[0, 0] == 0, "its left corner stays"


def test_the_image_and_its_gradient_pass_unchanged(visibility, dtype):
    verts, faces = sphere()
    verts = verts.to(visibility.device, dtype).requires_grad_()
    face_index = reference.rasterize(verts.detach(), faces.to(visibility.device), 32).face_index
    image = torch.rand(32, 32, 3, dtype=dtype, device=visibility.device, requires_grad=True)
    weights = torch.randn_like(image)
    attached = visibility.function(image, face_index, verts, faces.to(visibility.device))
    assert torch.equal(attached, image)
    attached.backward(weights)
    assert torch.equal(image.grad, weights)
    assert (verts.grad[:, 2] == 0).all()


@pytest.mark.parametrize("batch", [(), (3,), (2, 2), (0,), (2, 0)])
def test_any_leading_batch(visibility, batch):
    verts, faces = sphere()
    verts = verts + torch.randn(*batch, 1, 3, dtype=verts.dtype)
    face_index = reference.rasterize(verts, faces, (20, 24)).face_index
    image, grad_image = torch.randn(2, *batch, 20, 24, 3, dtype=verts.dtype)
    grad = visibility.gradient(image, face_index, verts, faces, grad_image)
    assert grad.shape == verts.shape
    if batch == (3,):
        for one in range(3):
            alone = visibility.gradient(image[one], face_index[one], verts[one], faces, grad_image[one])
            torch.testing.assert_close(alone, grad[one])


def test_half_types(visibility):
    verts, faces = sphere()
    face_index = reference.rasterize(verts.half().float(), faces, 32).face_index
    image, grad_image = torch.rand(2, 32, 32, 3, dtype=torch.float16)
    grad = visibility.gradient(image, face_index, verts.half(), faces, grad_image)
    expected = visibility.gradient(image.float(), face_index, verts.half().float(), faces, grad_image.float())
    torch.testing.assert_close(grad, expected.half())


def test_op_and_twin_have_one_signature():
    assert inspect.signature(ops.visibility_gradient) == inspect.signature(reference.visibility_gradient)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device, dtype, requires_grad):
    verts, faces = sphere()
    verts = torch.stack([verts, verts + 1]).to(device, dtype)
    faces = faces.to(device)
    face_index = ops.rasterize(verts, faces, (12, 14)).face_index
    image = torch.rand(2, 12, 14, 3, dtype=dtype, device=device)
    if not requires_grad:
        arguments = (torch.randn_like(image), image, face_index, verts, faces, 1e-4, True)
        torch.library.opcheck(torch.ops.dhpe_fast._visibility_gradient_backward.default, arguments)
    arguments = (image.requires_grad_(requires_grad), face_index, verts.requires_grad_(requires_grad), faces, 1e-4)
    torch.library.opcheck(torch.ops.dhpe_fast.visibility_gradient.default, arguments)


def test_results_do_not_depend_on_threads_or_repetition(device):
    verts, faces = sphere(radius=9.0)
    verts = torch.stack([verts, verts + 2, verts - 3]).float()
    face_index = reference.rasterize(verts, faces, (48, 40)).face_index
    image, grad_image = torch.rand(2, 3, 48, 40, 3)
    implementation, threads, results = Implementation(device.type), torch.get_num_threads(), []
    torch.use_deterministic_algorithms(True)
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            results.append(implementation.gradient(image, face_index, verts, faces, grad_image))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_double_backward_is_refused_by_name():
    verts, faces = sphere()
    face_index = reference.rasterize(verts, faces, 32).face_index
    image = torch.rand(32, 32, 1, dtype=verts.dtype, requires_grad=True)
    attached = ops.visibility_gradient(image, face_index, verts.requires_grad_(), faces)
    (grad,) = torch.autograd.grad(attached.pow(2).sum(), verts, create_graph=True)
    with pytest.raises(NotImplementedError, match="visibility_gradient is differentiable once"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": torch.zeros(4, 4, 1, dtype=torch.float64)}, TypeError, "image must be a tensor of the dtype of"),
        ({"image": torch.zeros(4, 4)}, ValueError, r"image has shape \(4, 4\)"),
        ({"image": torch.zeros(4, 4, 65)}, ValueError, "with C of up to 64"),
        ({"image": torch.zeros(2, 4, 4, 1)}, ValueError, r"image has shape \(2, 4, 4, 1\)"),
        ({"face_index": torch.zeros(4, 4, dtype=torch.int64)}, TypeError, "face_index must be an int32 tensor"),
        ({"face_index": torch.zeros(4, 5, dtype=torch.int32)}, ValueError, r"face_index has shape \(4, 5\)"),
        ({"verts_px": torch.zeros(3, 2)}, ValueError, r"verts_px has shape \(3, 2\)"),
        ({"faces": torch.tensor([[0, 1, 3]])}, ValueError, "faces holds 3, expected 0 to 2"),
        ({"eps": 0.0}, ValueError, "eps is 0.0, expected a positive number"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "image": torch.zeros(4, 4, 1),
        "face_index": torch.zeros(4, 4, dtype=torch.int32),
        "verts_px": torch.zeros(3, 3),
        "faces": torch.tensor([[0, 1, 2]]),
        **change,
    }
    for implementation in (ops.visibility_gradient, reference.visibility_gradient):
        with pytest.raises(error, match=message):
            implementation(**arguments)


@settings(max_examples=100, deadline=None)
@given(
    coordinates=st.lists(
        st.one_of(
            st.floats(-40, 60, width=32),
            st.integers(-4, 40).map(lambda n: n / 2),
            st.sampled_from([1e12, -1e12, 1e30]),
        ),
        min_size=15,
        max_size=15,
    ),
    faces=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=6),
    size=st.tuples(st.integers(1, 20), st.integers(1, 30)),
    seed=st.integers(0, 2**31),
)
def test_any_face_index_gives_finite_gradients(coordinates, faces, size, seed):
    generator = torch.Generator().manual_seed(seed)
    face_index = torch.randint(-1, len(faces) + 1, size, generator=generator, dtype=torch.int32)
    image, grad_image = torch.randn(2, *size, 2, generator=generator)
    verts = torch.tensor(coordinates).reshape(5, 3)
    grad = Implementation("cpu").gradient(image, face_index, verts, torch.tensor(faces), grad_image)
    assert torch.isfinite(grad).all()
