"""torch.export: hands, silhouettes and both composed, for any batch size, after saving and loading."""

from __future__ import annotations

import io

import pytest
import torch
from op_calls import DrawnHand, hands
from torch import Tensor, nn

from dhpe_fast import ops
from dhpe_fast.hand import HandModel

# torch.export.load's own, in torch 2.10:
pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
MODES = ("nmr", "edge", "soft")


class Silhouette(nn.Module):
    """verts_px (B, V, 3) -> mask (B, 12, 14)."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.register_buffer("faces", HandModel.default().faces)

    def forward(self, verts_px: Tensor) -> Tensor:
        return ops.silhouette(verts_px, self.faces, (12, 14), mode=self.mode, z_near=None)


class Joints(nn.Module):
    """pose of any form -> joints (B, 21, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.hand = HandModel.default()

    def forward(self, pose: Tensor) -> Tensor:
        return self.hand.joints_m(pose)


def exported(module: nn.Module, example: Tensor, strict: bool) -> nn.Module:
    """The module after export with a free batch size, saving and loading."""
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def assert_equal_for_any_batch(loaded: nn.Module, module: nn.Module, make) -> None:
    for batch in (1, 2, 15, 16, 0):  # not only that of the example; 15 and 16 are also numbers of joints
        found, expected = loaded(make(batch)), module(make(batch))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    torch._dynamo.reset()


@pytest.mark.parametrize(("mode", "strict"), [*((mode, False) for mode in MODES), ("nmr", True)])
def test_a_hand_and_its_silhouette_are_one_program(mode: str, strict: bool) -> None:
    module = DrawnHand(mode)
    mask, _ = module(hands(3))
    assert 0.02 < float(mask.mean()) < 0.9
    assert_equal_for_any_batch(exported(module, hands(3), strict), module, hands)


@pytest.mark.parametrize("mode", MODES)
def test_silhouettes_export(mode: str) -> None:
    hand = HandModel.default()

    def verts_px(n: int) -> Tensor:
        return (hand.decode(hands(n)).verts_m + torch.tensor([1.0, 1, 0])) * 6

    module = Silhouette(mode)
    assert_equal_for_any_batch(exported(module, verts_px(2), strict=False), module, verts_px)


@pytest.mark.parametrize(
    ("shape", "strict"), [((45,), False), ((45,), True), ((15, 4), False), ((15, 6), False), ((15, 3, 3), False)]
)
def test_joints_export_from_every_form_of_a_pose(shape: tuple[int, ...], strict: bool) -> None:
    module = Joints()

    def poses(n: int) -> Tensor:
        return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))

    loaded = exported(module, poses(2), strict)
    assert_equal_for_any_batch(loaded, module, poses)
    assert module.hand.joints_m(torch.zeros(45)).shape == (21, 3), "the export left nothing of its own in the model"


def test_an_exported_program_trains() -> None:
    module = DrawnHand("edge")
    loaded = exported(module, hands(2), strict=False)
    gradients = []
    for function in (module, loaded):
        h = hands(3).requires_grad_()
        mask, joints_m = function(h)
        (mask.square().mean() + joints_m.square().mean()).backward()
        gradients.append(h.grad)
    assert gradients[0][:, :45].any()
    torch.testing.assert_close(gradients[1], gradients[0])
