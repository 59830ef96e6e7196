"""torch.compile: every op is one graph, forward and backward, in which sizes and options may vary."""

from __future__ import annotations

import pytest
import torch
from op_calls import NAMES, DrawnHand, hands, op_calls

CALLS = op_calls()


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NAMES)
def test_every_op_is_one_graph_forward_and_backward(name: str) -> None:
    """With all numbers left open, sizes and options alike."""
    function, leaf, _ = CALLS[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    gradients = []
    for implementation in (function, compiled):
        at = leaf.clone().requires_grad_()
        result = implementation(at)
        (result * torch.linspace(-1, 1, result.numel()).reshape(result.shape)).sum().backward()
        gradients.append(at.grad)
    assert gradients[0].any()
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(compiled(leaf), function(leaf))


def test_a_batch_that_varies_does_not_compile_anew() -> None:
    module = DrawnHand("nmr")
    module(hands(1))  # the model's constants
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, backend=counting, fullgraph=True, dynamic=True)
    for batch in (2, 3, 15, 16, 7):
        torch.testing.assert_close(compiled(hands(batch)), module(hands(batch)))
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
def test_inductor_gives_the_eager_values_and_gradients() -> None:
    module = DrawnHand("edge")
    compiled = torch.compile(module, fullgraph=True)
    results = []
    for function in (module, compiled):
        h = hands(2).requires_grad_()
        mask, joints_m = function(h)
        (mask.square().mean() + joints_m.square().mean()).backward()
        results.append((mask.detach(), joints_m.detach(), h.grad))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
