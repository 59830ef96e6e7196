"""Geometry keeps float32 under autocast: the answers are those without it, whatever half types come in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from op_calls import NAMES, op_calls
from torch import Tensor

from dhpe_fast import ops
from dhpe_fast.compat import neural_renderer, smplx
from dhpe_fast.compat.manopth import ManoLayer
from dhpe_fast.hand import HandModel, HandParams
from dhpe_fast.rotation import axis_angle_to_matrix, axis_angle_to_quaternion, matrix_to_rotation_6d

CALLS = op_calls()
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def model() -> HandModel:
    return HandModel.default()


@pytest.fixture(params=HALF, ids=["f16", "bf16"])
def half(request) -> torch.dtype:
    return request.param


def autocast(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype)


def value_and_gradient(
    function: Callable[[Tensor], Tensor], at: Tensor, forward_in: AbstractContextManager | None = None
) -> tuple[Tensor, Tensor]:
    leaf = at.clone().requires_grad_()
    with forward_in or nullcontext():
        result = function(leaf)
    weights = torch.linspace(-1, 1, result.numel()).reshape(result.shape)
    (result.float() * weights).sum().backward()
    return result.detach(), leaf.grad


def test_autocast_is_what_these_tests_think() -> None:
    with autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


# --- The ops ---


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_computed_as_ever(name: str, half: torch.dtype) -> None:
    function, leaf, twin = CALLS[name]
    value, gradient = value_and_gradient(function, leaf)
    with autocast(half):
        same_value, same_gradient = value_and_gradient(function, leaf)
        twins = twin(leaf)
    assert torch.equal(same_value, value)
    torch.testing.assert_close(same_gradient, gradient, rtol=0, atol=0)
    torch.testing.assert_close(twins, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_half_types_are_cast_up_and_results_are_float32(name: str, half: torch.dtype) -> None:
    function, leaf, twin = CALLS[name]
    given = leaf.to(half)
    value, gradient = value_and_gradient(function, given.float())
    with autocast(half):
        found, found_gradient = value_and_gradient(function, given)
        assert twin(given).dtype == torch.float32
    assert found.dtype == torch.float32
    assert torch.equal(found, value)
    assert found_gradient.dtype == half, "gradients reach the leaf in its own type"
    assert torch.equal(found_gradient, gradient.to(half))
    assert gradient.any()


ALL_HALF = {"rasterize", "nmr", "edge", "soft", "visibility_gradient"}
"""Ops whose only floating-point arguments are those made from the leaf."""


@pytest.mark.parametrize("name", NAMES)
def test_without_autocast_the_type_is_the_arguments(name: str, half: torch.dtype) -> None:
    """Half types alone give half types; beside float32, as the other arguments here are, they give float32."""
    function, leaf, twin = CALLS[name]
    given = leaf.to(half)
    expected = function(given.float())
    for implementation in (function, twin):
        found = implementation(given)
        assert found.dtype == (half if name in ALL_HALF else torch.float32)
        if implementation is function:
            assert torch.equal(found, expected.to(found.dtype))


def test_a_half_image_beside_float32_vertices_stays_half_but_under_autocast() -> None:
    verts_px = torch.tensor([[1.0, 1, 1], [1, 7, 1], [7, 1, 1]], requires_grad=True)
    faces = torch.tensor([[0, 1, 2]])
    image, index = torch.rand(8, 8, 2), ops.rasterize(verts_px.detach(), faces, 8).face_index
    attached = ops.visibility_gradient(image.bfloat16(), index, verts_px, faces)
    assert attached.dtype == torch.bfloat16
    attached.float().square().sum().backward()
    assert verts_px.grad.any()
    with autocast():
        assert ops.visibility_gradient(image.bfloat16(), index, verts_px, faces).dtype == torch.float32


def test_float64_does_not_mix() -> None:
    model = HandModel.default(dtype=torch.float64)
    for half in HALF:
        with autocast(), pytest.raises(ValueError, match=r"pose is torch\.b?float16, .*the basis torch\.float64"):
            ops.lbs(torch.zeros(16, 3, dtype=half), torch.zeros(10, dtype=torch.float64), model.basis)
    with autocast():
        assert model(torch.zeros(45, dtype=torch.float64)).verts_m.dtype == torch.float64


# --- The hand model ---


def methods(model: HandModel) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Every method that computes geometry, as a function of one float32 tensor."""
    generator = torch.Generator().manual_seed(0)
    pose, h = torch.randn(2, 45, generator=generator) * 0.4, torch.randn(2, 63, generator=generator) * 0.4
    matrices = axis_angle_to_matrix(pose.unflatten(-1, (15, 3)))
    verts = torch.randn(2, 778, 3, generator=generator)
    return {
        "forward": (lambda x: model(x).verts_m, pose),
        "forward, joints": (lambda x: model(x).joints_m, pose),
        "forward, matrices": (lambda x: model(x).verts_m, matrices),
        "forward, quaternions": (lambda x: model(x).verts_m, axis_angle_to_quaternion(pose.unflatten(-1, (15, 3)))),
        "forward, 6D": (lambda x: model(x).verts_m, matrix_to_rotation_6d(matrices)),
        "joints_m": (model.joints_m, pose),
        "decode": (lambda x: model.decode(x).verts_m, h),
        "decode, joints": (lambda x: model.decode(x).joints_m, h),
        "pose_from_pca": (model.pose_from_pca, pose[:, :12]),
        "pca_from_pose": (model.pca_from_pose, pose),
        "regress_joints": (model.regress_joints, verts),
        "rest_joints_m": (model.rest_joints_m, pose[:, :10]),
        "rest_tips_m": (model.rest_tips_m, pose[:, :10]),
        "close_wrist": (model.close_wrist, verts),
    }


@pytest.mark.parametrize("method", methods(HandModel.default()))
def test_the_hand_is_the_same_under_autocast(model: HandModel, method: str, half: torch.dtype) -> None:
    function, at = methods(model)[method]
    value, gradient = value_and_gradient(function, at)
    found, found_gradient = value_and_gradient(function, at, forward_in=autocast(half))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("method", methods(HandModel.default()))
def test_the_hand_of_half_parameters(model: HandModel, method: str, half: torch.dtype) -> None:
    """As a network under autocast hands them over: float32 with autocast, their own type without, computed alike."""
    function, at = methods(model)[method]
    given = at.to(half)
    value, gradient = value_and_gradient(function, given.float())
    found, found_gradient = value_and_gradient(function, given, forward_in=autocast(half))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-7)
    assert found_gradient.dtype == half
    torch.testing.assert_close(found_gradient, gradient.to(half))
    assert function(given).dtype == half
    torch.testing.assert_close(function(given), value.to(half))


# --- The drop-ins ---


def drop_ins() -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Every call of theirs that multiplies matrices, as a function of one float32 tensor."""
    generator = torch.Generator().manual_seed(0)
    coeffs, points = torch.randn(2, 51, generator=generator) * 0.4, torch.randn(2, 7, 3, generator=generator)
    matrices = axis_angle_to_matrix(coeffs[:, :48].unflatten(1, (16, 3))) + 0.1
    K, R = torch.tensor([[[64.0, 0, 32], [0, 64, 32], [0, 0, 1]]]), axis_angle_to_matrix(torch.ones(1, 3))
    camera = K, R, torch.tensor([[[0.0, 0, 9]]]), torch.full((1, 5), 0.01), 64
    hand = smplx.create(None, use_pca=True, num_pca_comps=12, batch_size=2)
    hands = {
        "components": (ManoLayer(mano_root=None, ncomps=45), coeffs[:, :48]),
        "6D": (ManoLayer(mano_root=None, ncomps=45, root_rot_mode="rot6d"), coeffs),
        "matrices": (ManoLayer(mano_root=None, use_pca=False, joint_rot_mode="rotmat"), matrices),
    }
    return {
        **{f"manopth, {mode}": (lambda x, layer=layer: layer(x)[0], at) for mode, (layer, at) in hands.items()},
        "smplx, components": (lambda x: hand(hand_pose=x).vertices, coeffs[:, :12]),
        "smplx, shape": (lambda x: hand.forward_shape(x).vertices, coeffs[:, :10]),
        "neural_renderer, look_at": (lambda x: neural_renderer.look_at(x, [1.0, 2.0, -3.0]), points),
        "neural_renderer, projection": (lambda x: neural_renderer.projection(x, *camera), points),
    }


@pytest.mark.parametrize("call", drop_ins())
def test_drop_ins_are_the_same_under_autocast(call: str, half: torch.dtype) -> None:
    function, at = drop_ins()[call]
    value, gradient = value_and_gradient(function, at)
    found, found_gradient = value_and_gradient(function, at, forward_in=autocast(half))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-6 * float(value.abs().max()))
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("call", [call for call in drop_ins() if not call.endswith("look_at")])
def test_drop_ins_take_what_autocast_made_half(call: str, half: torch.dtype) -> None:
    function, at = drop_ins()[call]
    given = at.to(half)
    value, _ = value_and_gradient(function, given.float())
    found, found_gradient = value_and_gradient(function, given, forward_in=autocast(half))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-6 * float(value.abs().max()))
    assert found_gradient.dtype == half


def test_mixed_parameters(model: HandModel) -> None:
    pose, betas, orient = torch.randn(2, 45) * 0.4, torch.randn(10), torch.randn(3)
    exact = model(pose.bfloat16().float(), betas, orient)
    with autocast():
        assert torch.equal(model(pose.bfloat16(), betas, orient).verts_m, exact.verts_m)
    assert torch.equal(model(pose.bfloat16(), betas, orient).verts_m, exact.verts_m)
    mixed = model(pose, betas.half(), orient.bfloat16()).verts_m
    assert torch.equal(mixed, model(pose, betas.half().float(), orient.bfloat16().float()).verts_m)


def test_a_network_trains_through_the_hand_and_its_silhouette(model: HandModel) -> None:
    """A linear layer under autocast gives bfloat16; from there on everything is float32, back to its weights."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 63)
    with torch.no_grad():
        layer.weight.mul_(0.1)
        layer.bias.copy_(HandParams.initial(model).packed()[0])
        layer.bias[55:60] += torch.tensor([1.0, 0, 0, 0, 8.0])
    features = torch.randn(2, 8)
    with autocast():
        h = layer(features)
        assert h.dtype == torch.bfloat16
        verts = model.decode(h).verts_m
        assert verts.dtype == torch.float32
        verts_px = (verts + torch.tensor([1.0, 1, 0])) * 16
        losses = [ops.silhouette(verts_px, model.faces, 32, mode=mode).mean() for mode in ("nmr", "edge", "soft")]
        assert {loss.dtype for loss in losses} == {torch.float32}
    sum(losses).backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()


def test_autocast_within_a_compiled_graph(model: HandModel) -> None:
    h = torch.randn(2, 63) * 0.3

    def decode(h: Tensor) -> Tensor:
        return model.decode(h).verts_m

    with autocast():
        compiled = torch.compile(decode, fullgraph=True, backend="eager")(h)
    torch.testing.assert_close(compiled, decode(h), rtol=1e-6, atol=1e-7)
