"""Texture lookup: the convention by hand-computed texels, op against twin, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dhpe_fast import ops, reference


@pytest.fixture(params=["twin", "cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def sample_texture(request: pytest.FixtureRequest):
    function = reference.sample_texture if request.param == "twin" else ops.sample_texture
    device = torch.device("cuda" if request.param == "cuda" else "cpu")

    def call(texture, uv, face_index=None):
        return function(texture.to(device), uv.to(device), None if face_index is None else face_index.to(device)).cpu()

    return call


RAMP = torch.tensor([[0.0, 10, 20, 30], [100, 110, 120, 130]])[..., None]  # 2 rows, 4 columns


@pytest.mark.parametrize(
    ("u", "v", "expected"),
    [
        (0.125, 0.25, 0.0),  # the centre of texel [0, 0]
        (0.875, 0.25, 30.0),
        (0.125, 0.75, 100.0),  # v runs down
        (0.25, 0.25, 5.0),  # half way between two texels
        (0.5, 0.5, 65.0),  # the middle of the texture
        (0.0, 0.0, 0.0),  # the border sees the nearest texel
        (1.0, 1.0, 130.0),
        (-3.0, 0.25, 0.0),
        (0.5, 7.0, 115.0),
    ],
)
def test_hand_computed_lookups(sample_texture, dtype, u, v, expected):
    uv = torch.tensor([[[u, v]]], dtype=dtype)
    torch.testing.assert_close(sample_texture(RAMP.to(dtype), uv), torch.full((1, 1, 1), expected, dtype=dtype))


def test_pixels_without_a_face_are_zero(sample_texture):
    face_index = torch.tensor([[0, -1, 5]], dtype=torch.int32)
    colors = sample_texture(RAMP + 1, torch.full((1, 3, 2), 0.5), face_index)
    torch.testing.assert_close(colors[..., 0], torch.tensor([[66.0, 0.0, 66.0]]))


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2), (0,), (2, 0)])
@pytest.mark.parametrize("shared", [False, True])
def test_any_leading_batch_and_a_common_texture(sample_texture, dtype, batch, shared):
    texture = torch.randn(*(() if shared else batch), 5, 7, 3, dtype=dtype)
    uv = torch.rand(*batch, 6, 4, 2, dtype=dtype) * 1.4 - 0.2
    colors = sample_texture(texture, uv)
    assert colors.shape == (*batch, 6, 4, 3)
    assert colors.dtype == dtype
    for index in np.ndindex(*batch):
        alone = sample_texture(texture if shared else texture[index], uv[index])
        torch.testing.assert_close(alone, colors[index])


@pytest.mark.parametrize("shared", [False, True])
def test_values_and_gradients_equal_those_of_the_twin(device, dtype, shared):
    texture = torch.randn(*(() if shared else (2,)), 5, 7, 3, dtype=dtype)
    uv = torch.rand(2, 9, 8, 2, dtype=dtype) * 1.4 - 0.2
    face_index = torch.randint(-1, 2, (2, 9, 8), dtype=torch.int32)
    weights = torch.randn(2, 9, 8, 3, dtype=dtype)
    results = []
    for function, where in ((reference.sample_texture, "cpu"), (ops.sample_texture, device)):
        leaves = [t.detach().to(where).requires_grad_() for t in (texture, uv)]
        colors = function(*leaves, face_index.to(where))
        (colors * weights.to(where)).sum().backward()
        results.append([t.detach().cpu() for t in (colors, leaves[0].grad, leaves[1].grad)])
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    for mine, twin in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, twin, **tolerance)


@pytest.mark.parametrize("function", [reference.sample_texture, ops.sample_texture], ids=["twin", "op"])
def test_gradcheck(device, function):
    texture = torch.randn(4, 5, 2, dtype=torch.float64, device=device, requires_grad=True)
    # Coordinates off the texels' centres, where the slope changes.
    uv = (torch.randint(0, 20, (3, 3, 2), device=device) / 20 + 0.013).double().requires_grad_()
    assert torch.autograd.gradcheck(function, (texture, uv))


def test_the_gradient_reaches_the_vertices(device):
    verts = torch.tensor([[0.3, 0.4, 2.0], [7.2, 1.1, 3.0], [2.7, 6.9, 4.0]], dtype=torch.float64, device=device)
    faces = torch.tensor([[0, 2, 1]], device=device)
    uv = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.4, 0.8]], dtype=torch.float64, device=device)
    # A texture whose lookup is linear between the outermost texels: no kink for the finite differences.
    ramp = torch.arange(20.0, dtype=torch.float64, device=device).reshape(4, 5, 1)

    def image(verts):
        seen = ops.rasterize(verts, faces, 8)
        return ops.sample_texture(ramp, ops.interpolate(uv, faces, seen), seen.face_index)

    assert torch.autograd.gradcheck(image, (verts.requires_grad_(),), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types(sample_texture, half):
    uv = torch.rand(3, 4, 2).to(half)
    colors = sample_texture(RAMP.to(half), uv)
    assert colors.dtype == half
    assert torch.equal(colors, sample_texture(RAMP, uv.float()).to(half))


def test_one_texel_is_everywhere(sample_texture):
    colors = sample_texture(torch.full((1, 1, 2), 3.0), torch.rand(4, 4, 2) * 9 - 4)
    assert torch.equal(colors, torch.full((4, 4, 2), 3.0))


def test_deterministic_algorithms_give_the_same_gradient_twice(device):
    texture, uv = torch.randn(5, 7, 3, device=device), torch.rand(20, 20, 2, device=device)
    grads = []
    for _ in range(2):
        leaf = texture.clone().requires_grad_()
        torch.use_deterministic_algorithms(True)
        try:
            ops.sample_texture(leaf, uv).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        grads.append(leaf.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("texture", "uv", "face_index", "error", "message"),
    [
        (torch.zeros(2, 2, 3, dtype=torch.uint8), torch.zeros(4, 4, 2), None, TypeError, "texture must be a floating"),
        (torch.zeros(2, 2), torch.zeros(4, 4, 2), None, ValueError, r"texture has shape \(2, 2\)"),
        (torch.zeros(2, 2, 2, 3), torch.zeros(4, 4, 2), None, ValueError, r"texture has shape \(2, 2, 2, 3\)"),
        (torch.zeros(0, 2, 3), torch.zeros(4, 4, 2), None, ValueError, "it holds no texel"),
        (torch.zeros(2, 2, 3), torch.zeros(4, 2), None, ValueError, r"uv has shape \(4, 2\)"),
        (torch.zeros(2, 2, 3), torch.zeros(4, 4, 2).double(), None, ValueError, "they must agree"),
        (torch.zeros(2, 2, 3), torch.zeros(4, 4, 2), torch.zeros(4, 3), ValueError, r"face_index has shape \(4, 3\)"),
    ],
)
def test_errors_name_the_argument(texture, uv, face_index, error, message):
    for implementation in (ops.sample_texture, reference.sample_texture):
        with pytest.raises(error, match=message):
            implementation(texture, uv, face_index)
