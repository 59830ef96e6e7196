"""What is made from a hand model once and used again: mirrored, moved, or anything computed from its constants."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dhpe_fast.hand.model import HandModel

# What is derived from a model, kept for as long as the model lives. The values hold no reference to it.
_made: WeakKeyDictionary[HandModel, dict[Any, tuple[Any, Any]]] = WeakKeyDictionary()


def derived(model: HandModel, what: Any, make: Callable[[], Any]) -> Any:
    """The value made from a model; made again if the model's tensors were replaced or written to."""
    # Also the version, as an in-place change keeps the identity.
    state = tuple((id(t), t._version) for t in model.buffers())
    known = _made.setdefault(model, {}).get(what)
    if known is None or known[0] != state:
        known = _made[model][what] = (state, make())
    return known[1]


def mirrored_model(model: HandModel) -> HandModel:
    return derived(model, "mirror", model.mirrored)


def moved_model(model: HandModel, device: torch.device) -> HandModel:
    return derived(model, device, lambda: copied_model(model).to(device))


def copied_model(model: HandModel) -> HandModel:
    """A model of its own, so that what a caller does to it changes no later fit."""
    twin = copy.copy(model)
    twin._buffers = {name: None if t is None else t.clone() for name, t in model._buffers.items()}
    return twin


def shaped_model(
    model: HandModel,
    betas: Tensor,  # (10,)
) -> HandModel:
    """The hand of one person: a model whose mean shape these betas are, and whose own betas change nothing."""
    basis = model.basis
    betas = betas.to(basis.v_template)
    changed = {
        "v_template": basis.v_template + torch.einsum("s,svc->vc", betas, basis.shapedirs),
        "joint_template": basis.joint_template + torch.einsum("s,sjc->jc", betas, basis.joint_shapedirs),
        "shapedirs": torch.zeros_like(basis.shapedirs),
        "joint_shapedirs": torch.zeros_like(basis.joint_shapedirs),
    }
    twin = copy.copy(model)
    twin._buffers = model._buffers | changed
    return twin


@lru_cache(maxsize=1)
def default_model() -> HandModel:
    return HandModel.default()
