"""Attribute interpolation: hand-computed values, gradients through the rasterizer, twin against kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from meshes import soup, sphere

from dhpe_fast import ops, reference
from dhpe_fast.ops.interpolate import _ordered_gradient

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}


@pytest.fixture(params=["twin", "cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def interpolate(request: pytest.FixtureRequest):
    """One way to call interpolate: arguments are moved to its device."""
    function = reference.interpolate if request.param == "twin" else ops.interpolate
    device = torch.device("cuda" if request.param == "cuda" else "cpu")

    def call(attributes, faces, fragments):
        return function(attributes.to(device), faces.to(device), ops.Fragments(*(t.to(device) for t in fragments)))

    return call


def rendered(dtype=torch.float64, batch=()) -> tuple[torch.Tensor, torch.Tensor, ops.Fragments]:
    """A sphere's vertices (*batch, V, 3), its faces, and what a 20 x 24 image sees of it."""
    verts, faces = sphere(centre=(12.0, 10.0, 50.0), radius=8.0)
    verts = verts.to(dtype) + torch.randn(*batch, 1, 3, dtype=dtype)
    return verts, faces, reference.rasterize(verts, faces, (20, 24))


def test_hand_computed_values(interpolate, dtype):
    # The pixel centre (2.5, 1.5) of a right triangle with legs of 8 px: weights 1 - 4/8, 2.5/8, 1.5/8.
    verts = torch.tensor([[0.0, 0, 1], [8, 0, 1], [0, 8, 1]], dtype=dtype)
    faces = torch.tensor([[0, 1, 2]])
    colors = torch.tensor([[8.0, 1], [16, 1], [32, 1]], dtype=dtype)
    image = interpolate(colors, faces, reference.rasterize(verts, faces, 8))
    expected = torch.tensor([8 * 0.5 + 16 * 2.5 / 8 + 32 * 1.5 / 8, 1.0], dtype=dtype)
    torch.testing.assert_close(image[1, 2].cpu(), expected)
    assert (image[7, 7] == 0).all()


def test_faces_of_the_attributes_may_be_others_than_those_of_the_mesh(interpolate):
    # Two triangles share an edge; each has texture coordinates of its own there.
    verts = torch.tensor([[0.0, 0, 1], [8, 0, 1], [0, 8, 1], [8, 8, 1]])
    seen = reference.rasterize(verts, torch.tensor([[0, 2, 1], [1, 2, 3]]), 8)
    values = torch.tensor([[1.0], [1.0], [1.0], [5.0], [5.0], [5.0]])
    image = interpolate(values, torch.tensor([[0, 1, 2], [3, 4, 5]]), seen)[..., 0].cpu()
    torch.testing.assert_close(image, torch.where(seen.face_index == 0, 1.0, 5.0))


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4, 7])
def test_positions_come_back_where_the_pixels_are(interpolate, dtype, n_channels):
    verts, faces, seen = rendered(dtype)
    image = interpolate(verts[:, [0, 1, 2, 0, 1, 2, 0]][:, :n_channels], faces, seen).cpu()
    assert image.shape == (20, 24, n_channels)
    hit = seen.face_index >= 0
    row, column = torch.nonzero(hit, as_tuple=True)
    expected = torch.stack([column + 0.5, row + 0.5, seen.depth[hit]], -1).to(dtype)[:, [0, 1, 2, 0, 1, 2, 0]]
    torch.testing.assert_close(image[hit], expected[:, :n_channels], rtol=1e-5, atol=1e-4)
    assert (image[~hit] == 0).all()


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2), (0,), (2, 0)])
@pytest.mark.parametrize("shared", [False, True])
def test_any_leading_batch_and_common_attributes(interpolate, dtype, batch, shared):
    verts, faces, seen = rendered(dtype, batch)
    values = torch.randn(*(() if shared else batch), verts.shape[-2], 5, dtype=dtype)
    image = interpolate(values, faces, seen)
    assert image.shape == (*batch, 20, 24, 5)
    assert image.dtype == dtype
    for index in np.ndindex(*batch):
        alone = interpolate(values if shared else values[index], faces, ops.Fragments(*(t[index] for t in seen)))
        assert torch.equal(alone, image[index])


@pytest.mark.parametrize("batch", [(), (3,), (0,)])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_equal_those_of_the_twin(device, dtype, batch, shared):
    verts, faces, seen = rendered(dtype, batch)
    values = torch.randn(*(() if shared else batch), verts.shape[-2], 3, dtype=dtype)
    weights = torch.randn(*batch, 20, 24, 3, dtype=dtype)
    grads = []
    for function, where in ((reference.interpolate, "cpu"), (ops.interpolate, device)):
        leaf = values.detach().to(where).requires_grad_()
        bary = seen.bary.detach().to(where).requires_grad_()
        image = function(leaf, faces.to(where), ops.Fragments(seen.face_index.to(where), bary, seen.depth.to(where)))
        (image * weights.to(where)).sum().backward()
        grads.append((leaf.grad.cpu(), bary.grad.cpu()))
    for mine, twin in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(mine, twin, **TOLERANCE[dtype])


def test_gradcheck(device):
    verts, faces = soup(6, 8, seed=2)
    seen = ops.Fragments(*(t.to(device) for t in reference.rasterize(verts, faces, 8)))
    faces = faces.to(device)
    values = torch.randn(len(verts), 2, dtype=torch.float64, device=device, requires_grad=True)
    bary = seen.bary.clone().requires_grad_()

    def image(attributes, bary):
        return ops.interpolate(attributes, faces, seen._replace(bary=bary))

    assert torch.autograd.gradcheck(image, (values, bary))


@pytest.mark.parametrize("perspective", [False, True])
def test_the_gradient_reaches_the_vertices_through_the_rasterizer(device, perspective):
    verts = torch.tensor([[0.3, 0.4, 2.0], [7.2, 1.1, 3.0], [2.7, 6.9, 4.0]], dtype=torch.float64, device=device)
    faces = torch.tensor([[0, 2, 1]], device=device)
    colors = torch.randn(3, 3, dtype=torch.float64, device=device)

    def image(verts):
        return ops.interpolate(colors, faces, ops.rasterize(verts, faces, 8, perspective=perspective))

    assert torch.autograd.gradcheck(image, (verts.requires_grad_(),), eps=1e-7, atol=1e-5)


def test_deterministic_algorithms_give_the_same_gradient(device, dtype):
    verts, faces, seen = rendered(dtype, (2,))
    values = torch.randn(verts.shape[-2], 3, dtype=dtype)
    grads = []
    for deterministic in (False, True, True):
        leaf = values.to(device).requires_grad_()
        torch.use_deterministic_algorithms(deterministic)
        try:
            ops.interpolate(leaf, faces.to(device), ops.Fragments(*(t.to(device) for t in seen))).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        grads.append(leaf.grad)
    assert torch.equal(grads[1], grads[2])
    torch.testing.assert_close(grads[0], grads[1], **TOLERANCE[dtype])


@pytest.mark.parametrize("change", ["none", "vertex -1", "vertex V", "face F"])
def test_the_ordered_gradient_is_the_kernels(dtype, change):
    verts, faces, seen = rendered(dtype, (2,))
    n_verts, face_index = verts.shape[-2], seen.face_index.clone()
    if change == "face F":
        face_index[0, 10, 12] = len(faces)
    elif change != "none":
        faces[int(face_index[0, 10, 12]), 1] = -1 if change == "vertex -1" else n_verts
    grad = torch.randn(2, 20, 24, 3, dtype=dtype)
    kernel, _ = torch.ops.dhpe_fast._interpolate_backward(
        grad, torch.randn(2, n_verts, 3, dtype=dtype), faces, face_index, seen.bary, True, False
    )
    ordered = _ordered_gradient(grad, n_verts, faces, face_index, seen.bary)
    torch.testing.assert_close(ordered, kernel, **TOLERANCE[dtype])


def test_results_do_not_depend_on_the_number_of_threads():
    verts, faces, seen = rendered(torch.float32, (3,))
    values = torch.randn(verts.shape[-2], 3)
    threads = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            leaf = values.clone().requires_grad_()
            image = ops.interpolate(leaf, faces, seen)
            image.square().sum().backward()
            results.append((image.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for image, grad in results[1:]:
        assert torch.equal(image, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(interpolate, half):
    verts, faces, seen = rendered(torch.float32)
    values = torch.randn(len(verts), 3).to(half)
    rounded = seen._replace(bary=seen.bary.to(half))
    image = interpolate(values, faces, rounded)
    expected = interpolate(values.float(), faces, seen._replace(bary=rounded.bary.float()))
    assert image.dtype == half
    assert torch.equal(image, expected.to(half))


def test_strided_inputs_and_index_dtypes(interpolate):
    verts, faces, seen = rendered()
    values = torch.randn(len(verts), 6, dtype=verts.dtype)
    strided = interpolate(values[:, ::2], faces.int().t().contiguous().t(), seen)
    assert torch.equal(strided, interpolate(values[:, ::2].contiguous(), faces, seen))


# Two faces over four vertices, an id out of range in the second; or a pixel that names a third face.
OUT_OF_RANGE = {
    "vertex -1": ([[0, 1, 2], [1, 2, -1]], 1),
    "vertex V": ([[0, 1, 2], [1, 4, 2]], 1),
    "face F": ([[0, 1, 2], [1, 2, 3]], 2),
    "no faces": ([], 0),
}


@pytest.mark.parametrize("case", OUT_OF_RANGE)
def test_an_id_out_of_range_makes_its_face_empty(interpolate, dtype, case):
    faces, second = OUT_OF_RANGE[case]
    faces = torch.tensor(faces, dtype=torch.int64).reshape(-1, 3)
    bary = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]], dtype=dtype).requires_grad_()
    seen = ops.Fragments(torch.tensor([[0, second, -1]], dtype=torch.int32), bary, bary.new_zeros(1, 3))
    values = torch.tensor([[8.0], [16], [4], [2]], dtype=dtype).requires_grad_()
    image = interpolate(values, faces, seen)
    image.sum().backward()
    seen_by_hand = [] if len(faces) == 0 else [0.5, 0.25, 0.25]
    expected = torch.zeros(4, dtype=dtype)
    expected[: len(seen_by_hand)] = torch.tensor(seen_by_hand, dtype=dtype)
    assert image.flatten().tolist() == [(expected @ values[:, 0].detach()).item(), 0.0, 0.0]
    assert values.grad[:, 0].tolist() == expected.tolist()
    assert bary.grad[0].tolist() == [[8.0, 16, 4] if len(faces) else [0.0] * 3, [0.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device, dtype, shared, requires_grad):
    verts, faces, seen = rendered(dtype, (2,))
    values = torch.randn(1 if shared else 2, verts.shape[-2], 3, dtype=dtype, device=device)
    face_index, bary, faces = seen.face_index.to(device), seen.bary.to(device), faces.to(device)
    values.requires_grad_(requires_grad)
    bary.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.dhpe_fast.interpolate.default, (values, faces, face_index, bary))
    if not requires_grad:
        grad = torch.randn(2, 20, 24, 3, dtype=dtype, device=device)
        for wanted in ((True, True), (True, False), (False, True)):
            arguments = (grad, values, faces, face_index, bary, *wanted)
            torch.library.opcheck(torch.ops.dhpe_fast._interpolate_backward.default, arguments)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["attributes", "bary"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_only_the_gradient_that_is_asked_for_is_computed(device, dtype, wanted, deterministic):
    verts, faces, seen = rendered(dtype, (2,))
    values = torch.randn(verts.shape[-2], 3, dtype=dtype)
    arguments = values.to(device), faces.to(device), ops.Fragments(*(t.to(device) for t in seen))

    def gradients(*wanted: bool) -> list[torch.Tensor | None]:
        leaves = arguments[0].clone().requires_grad_(wanted[0]), arguments[2].bary.clone().requires_grad_(wanted[1])
        ops.interpolate(leaves[0], arguments[1], arguments[2]._replace(bary=leaves[1])).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    torch.use_deterministic_algorithms(deterministic)
    try:
        both, one = gradients(True, True), gradients(*wanted)
    finally:
        torch.use_deterministic_algorithms(False)
    for found, expected, is_wanted in zip(one, both, wanted, strict=True):
        assert (found is not None) == is_wanted
        if is_wanted:
            torch.testing.assert_close(found, expected, **TOLERANCE[dtype])
    kernel = torch.ops.dhpe_fast._interpolate_backward(
        torch.randn(2, 20, 24, 3, dtype=dtype, device=device),
        arguments[0][None],
        arguments[1],
        arguments[2].face_index,
        arguments[2].bary,
        *wanted,
    )
    assert [t.numel() > 0 for t in kernel] == list(wanted)


def test_double_backward_is_refused_by_name():
    verts, faces, seen = rendered()
    leaf = torch.randn(len(verts), 3, dtype=verts.dtype, requires_grad=True)
    image = ops.interpolate(leaf, faces, seen)
    (grad,) = torch.autograd.grad(image.pow(2).sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="interpolate is differentiable once"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"attributes": torch.zeros(3, 2, dtype=torch.uint8)}, TypeError, "attributes must be a floating-point tensor"),
        ({"attributes": torch.zeros(3)}, ValueError, r"attributes has shape \(3,\)"),
        ({"attributes": torch.zeros(2, 3, 4)}, ValueError, r"attributes has shape \(2, 3, 4\)"),
        ({"attributes": torch.zeros(3, 2, dtype=torch.float64)}, ValueError, "they must agree"),
        ({"faces": torch.zeros(1, 3)}, TypeError, "faces must be an int32 or int64 tensor"),
        ({"faces": torch.zeros(3, dtype=torch.int64)}, ValueError, r"faces has shape \(3,\)"),
        ({"bary": torch.zeros(4, 4, 2)}, ValueError, "fragments.bary has shape"),
        ({"face_index": torch.zeros(4, 4, dtype=torch.int64)}, ValueError, "fragments.face_index is torch.int64"),
        ({"face_index": torch.zeros(4, 4)}, TypeError, "fragments.face_index must be an int32"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    face_index = change.get("face_index", torch.zeros(4, 4, dtype=torch.int32))
    seen = ops.Fragments(face_index, change.get("bary", torch.zeros(4, 4, 3)), torch.zeros(4, 4))
    attributes = change.get("attributes", torch.zeros(3, 2))
    for implementation in (ops.interpolate, reference.interpolate):
        with pytest.raises(error, match=message):
            implementation(attributes, change.get("faces", torch.tensor([[0, 1, 2]])), seen)


def test_fragments_are_what_the_rasterizer_returns():
    parts = (torch.zeros(4, 4, dtype=torch.int32), torch.zeros(4, 4, 3), torch.zeros(4, 4))
    for function in (ops.interpolate, reference.interpolate):
        with pytest.raises(TypeError, match="fragments must be what rasterize returned, Fragments, got tuple"):
            function(torch.zeros(3, 2), torch.tensor([[0, 1, 2]]), parts)
