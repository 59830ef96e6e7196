"""HandParams: the names of h's parts, and what they refuse."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from synthetic_mano import synthetic_mano

from dhpe_fast.hand import HandModel, HandParams


def _h(batch: int = 3) -> torch.Tensor:
    return torch.arange(batch * 63, dtype=torch.float32).view(batch, 63)


def test_packed_and_from_packed_are_inverse_and_in_order() -> None:
    h = _h()
    params = HandParams.from_packed(h)
    assert torch.equal(params.packed(), h)
    row = [params.pose, params.shape, params.quat, params.scale, params.trans]
    assert [part.shape[1] for part in row] == [45, 10, 4, 1, 3]
    assert params.quat[0].tolist() == [55, 56, 57, 58]
    assert params.scale[0].tolist() == [59]
    assert params.trans[0].tolist() == [60, 61, 62]


def test_initial_is_zero_but_for_the_mean_pose() -> None:
    model = HandModel(synthetic_mano(), dtype=torch.float64)
    params = HandParams.initial(model, batch_size=2)
    assert torch.equal(params.pose, model.hands_mean.expand(2, 45))
    assert params.packed()[:, 45:].abs().max() == 0
    assert params.pose.dtype == torch.float64
    assert len(HandParams.initial(model, batch_size=0)) == 0
    with pytest.raises(ValueError, match="batch_size"):
        HandParams.initial(model, batch_size=-1)


def test_indexing_keeps_the_batch_axis() -> None:
    params = HandParams.from_packed(_h(4))
    assert torch.equal(params[1].packed(), _h(4)[1:2])
    assert torch.equal(params[-1].packed(), _h(4)[3:])
    assert torch.equal(params[1:3].packed(), _h(4)[1:3])
    assert torch.equal(params[[2, 0]].packed(), _h(4)[[2, 0]])
    assert torch.equal(params[torch.tensor([True, False, False, True])].packed(), _h(4)[[0, 3]])
    assert [len(one) for one in params] == [1, 1, 1, 1]
    with pytest.raises(IndexError, match="hand 4 of a batch of 4"):
        params[4]


def test_to_and_detach() -> None:
    h = _h().requires_grad_()
    params = HandParams.from_packed(h)
    assert params.to(dtype=torch.float64).packed().dtype == torch.float64
    assert params.packed().requires_grad
    assert not params.detach().packed().requires_grad


def test_fields_cannot_be_replaced() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HandParams.from_packed(_h()).pose = torch.zeros(3, 45)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pose": torch.zeros(3, 44)},
            r"HandParams.pose: expected a floating-point tensor \(B, 45\), got \(3, 44\)",
        ),
        ({"shape": torch.zeros(10)}, r"HandParams.shape: .* got \(10,\)"),
        ({"quat": torch.zeros(3, 4, dtype=torch.int64)}, "HandParams.quat: .*int64"),
        ({"scale": torch.zeros(2, 1)}, r"HandParams.scale is \(2, 1\) .* but pose is \(3, 45\)"),
        (
            {"trans": torch.zeros(3, 3, dtype=torch.float64)},
            "HandParams.trans is .*float64.* but pose is .*float32",
        ),
    ],
)
def test_wrong_parts_are_named(change: dict, message: str) -> None:
    parts = dataclasses.asdict(HandParams.from_packed(_h()))
    with pytest.raises(ValueError, match=message):
        HandParams(**(parts | change))


def test_wrong_types_are_named() -> None:
    parts = dataclasses.asdict(HandParams.from_packed(_h()))
    with pytest.raises(TypeError, match=r"HandParams.scale: expected a torch.Tensor, got float"):
        HandParams(**(parts | {"scale": 1.0}))
    with pytest.raises(TypeError, match=r"h: expected a torch.Tensor, got list"):
        HandParams.from_packed([0.0] * 63)
    with pytest.raises(ValueError, match=r"h: expected a tensor \(B, 63\), got \(63,\)"):
        HandParams.from_packed(torch.zeros(63))
