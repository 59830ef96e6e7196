"""No op has a forward-mode derivative: each says so, where torch would silently take tangents for zeros."""

from __future__ import annotations

import inspect

import pytest
import torch
from op_calls import NAMES, op_calls
from torch.autograd import forward_ad

from dhpe_fast import ops
from dhpe_fast.hand import HandModel

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # torch.func.jvp's
CALLS = op_calls(torch.float64)
REFUSED = r"has no kernel for forward-mode derivatives|forward AD with .* that does not support it"
"""By us, and by torch for what `sample_texture` is made of."""
OWN_KERNELS = [name for name in NAMES if name != "sample_texture"]


def test_every_op_is_here():
    named = {*NAMES, "silhouette"} - {"nmr", "edge", "soft"}
    # join_meshes puts tensors side by side: torch has every derivative of it. refine_* have none of any kind.
    others = {"join_meshes", "refine_mask", "refine_gradient", "refine_descend"}
    assert {name for name in ops.__all__ if name.islower()} == named | others
    assert set(CALLS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_tangent_is_refused_however_it_comes(name):
    function, leaf, _ = CALLS[name]
    tangent = torch.ones_like(leaf)
    ways = {
        "jvp": lambda: torch.func.jvp(function, (leaf,), (tangent,)),
        "jacfwd": lambda: torch.func.jacfwd(lambda t: function(leaf + t).sum())(leaf.new_zeros(1)),
        "jvp in jvp": lambda: torch.func.jvp(
            lambda outer: torch.func.jvp(lambda inner: function(outer) + inner.sum(), (leaf,), (tangent,))[0],
            (leaf,),
            (tangent,),
        ),
    }
    for way in ways.values():
        with pytest.raises(NotImplementedError, match=REFUSED):
            way()
    for requires_grad in (False, True):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(leaf.clone().requires_grad_(requires_grad), tangent)
            with pytest.raises(NotImplementedError, match=REFUSED):
                function(dual)


@pytest.mark.parametrize("name", NAMES)
def test_a_tangent_of_the_incoming_gradient_is_refused(name):
    function, leaf, _ = CALLS[name]
    leaf = leaf.clone().requires_grad_()
    result = function(leaf)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones_like(result), torch.ones_like(result))
        with pytest.raises(NotImplementedError, match=REFUSED):
            torch.autograd.grad(result, leaf, dual)


@pytest.mark.parametrize("name", OWN_KERNELS)
def test_what_has_no_tangent_passes(name):
    """Constants, and tensors cut from their tangents, are no business of forward mode."""
    function, leaf, _ = CALLS[name]
    expected = function(leaf)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(leaf, torch.ones_like(leaf))
        assert torch.equal(function(leaf), expected)
        assert torch.equal(function(dual.detach()), expected)
    value, tangent = torch.func.jvp(lambda t: function(t.detach()).sum() + t.sum(), (leaf,), (torch.ones_like(leaf),))
    assert tangent == leaf.numel()
    assert value == expected.sum() + leaf.sum()


WITH_TWIN = {
    "lbs": "lbs",
    "rasterize": "rasterize",
    "interpolate": "interpolate",
    "edge": "silhouette",
    "soft": "silhouette",
}
"""Ops whose twin has derivatives of every kind (the others' derivative is one by name only), and what it is called."""


@pytest.mark.parametrize(("name", "public"), WITH_TWIN.items())
def test_the_message_names_a_twin_that_has_the_derivative(name, public):
    function, leaf, twin = CALLS[name]
    direction = torch.linspace(-1, 1, leaf.numel(), dtype=leaf.dtype).reshape(leaf.shape)
    with pytest.raises(NotImplementedError, match=rf"{public} has no .*; its twin dhpe_fast\.reference\.{public} has"):
        torch.func.jvp(function, (leaf,), (direction,))
    _, derivative = torch.func.jvp(twin, (leaf,), (direction,))
    step = 1e-6 * direction
    expected = (function(leaf + step) - function(leaf - step)) / 2e-6
    torch.testing.assert_close(derivative, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "public"), WITH_TWIN.items())
def test_the_message_names_a_twin_that_has_second_derivatives(name, public):
    function, leaf, twin = CALLS[name]
    direction = torch.linspace(-1, 1, leaf.numel(), dtype=leaf.dtype).reshape(leaf.shape)

    def gradient(implementation, at: torch.Tensor, create_graph: bool = False) -> torch.Tensor:
        return torch.autograd.grad(implementation(at).square().sum(), at, create_graph=create_graph)[0]

    at = leaf.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=rf"{public} is differentiable once: .*reference\.{public} has"):
        torch.autograd.grad(gradient(function, at, create_graph=True), at, direction)
    (second,) = torch.autograd.grad(gradient(twin, at, create_graph=True), at, direction)
    before, after = (gradient(function, (leaf + s * direction).requires_grad_()) for s in (-1e-6, 1e-6))
    expected = (after - before) / 2e-6
    torch.testing.assert_close(second, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_compiled_programs_refuse_it_too():
    function, leaf, _ = CALLS["lbs"]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(leaf), function(leaf))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=REFUSED):
        compiled(forward_ad.make_dual(leaf, torch.ones_like(leaf)))


def test_the_hand_model_is_no_way_around():
    model, pose = HandModel.default(), torch.zeros(45)
    for function in (
        lambda p: model(p).verts_m,
        model.joints_m,
        lambda p: model.decode(torch.cat([p, torch.ones(18)])).verts_m,
    ):
        with pytest.raises(NotImplementedError, match="lbs has no kernel for forward-mode derivatives"):
            torch.func.jvp(function, (pose,), (torch.ones(45),))


def test_a_tangent_of_the_constants_is_refused():
    model = HandModel.default(dtype=torch.float64)

    def scaled(scale: torch.Tensor) -> torch.Tensor:
        basis = model.basis
        fields = {name: getattr(basis, name) for name in inspect.signature(ops.LbsBasis).parameters}
        scaled = ops.LbsBasis(**fields | {"v_template": basis.v_template * scale})
        return ops.lbs(torch.zeros(16, 3, dtype=torch.float64), torch.zeros(10, dtype=torch.float64), scaled)[0]

    one = torch.ones((), dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="lbs has no kernel for forward-mode derivatives"):
        torch.func.jvp(scaled, (one,), (one,))
