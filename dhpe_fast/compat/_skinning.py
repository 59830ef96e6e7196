"""What the hand-model drop-ins share: finding a hand, and keeping the skinning op in step with a module's buffers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from dhpe_fast.conventions import MANO16_PARENTS
from dhpe_fast.hand.mano_side import SIDES
from dhpe_fast.hand.model import HandModel
from dhpe_fast.reference.lbs import LbsBasis


def load_hand(
    source: str | os.PathLike[str] | None,
    side: str | None,
    *,
    extension: str = "pkl",
    tip_ids: str | Sequence[int] | None = None,
    fix_left_shapedirs: bool = False,
) -> HandModel:
    """A hand in float64: from a folder with MANO_RIGHT and MANO_LEFT, from one file, or the package's own.

    Args:
        source: a folder, in which `side` chooses the file; a file, whose side must be `side`; None for the default
            hand, which needs no licensed file.
        side: 'right' or 'left'; None takes the one that a file holds.
        extension: of the files in a folder.
        tip_ids: see :meth:`HandModel.from_mano`; without meaning for the default hand, which has its own.
        fix_left_shapedirs: see :meth:`HandModel.from_mano`.

    Raises:
        ValueError: `side` is neither, the file holds the other hand, or it is missing or no hand model.
    """
    if side not in (*SIDES, None):
        raise ValueError(f"side: expected 'right' or 'left', got {side!r}")
    if source is None:
        return HandModel.default(side or "right", dtype=torch.float64)
    path, named = Path(source), None
    if path.is_dir():
        named = side or "right"
        path /= f"MANO_{named.upper()}.{extension}"
    hand = HandModel.from_mano(path, named, tip_ids=tip_ids, fix_left_shapedirs=fix_left_shapedirs, dtype=torch.float64)
    if side not in (hand.side, None):
        raise ValueError(f"side: {path} holds a {hand.side} hand, but side={side!r}")
    return hand


class SkinnedModule(nn.Module):
    """A module whose public buffers, in another package's layout, are the constants of the skinning op.

    Other packages' users edit those buffers: ``layer.th_shapedirs[:, 0] *= -1`` repairs a left hand, ``.to`` and
    ``load_state_dict`` replace or fill them. So the op's constants are derived from the buffers and derived anew
    when a buffer is another tensor or was written in place. (Writing through ``.data`` goes unseen.) That takes a wait
    for the device. Under ``nn.DataParallel``, which copies the buffers to every GPU in every forward pass, each copy
    pays it each time; ``DistributedDataParallel`` keeps its buffers, and with them the constants.
    """

    BASIS_BUFFERS: ClassVar[tuple[str, ...]]
    """Names of the buffers behind :meth:`build_basis`."""

    def __init__(self) -> None:
        super().__init__()
        self._basis: LbsBasis | None = None
        self._basis_sources: tuple[tuple[Tensor, int], ...] = ()

    def build_basis(self) -> LbsBasis:
        """The skinning op's constants from the buffers of this module."""
        raise NotImplementedError

    @property
    def basis(self) -> LbsBasis:
        """The skinning op's constants, up to date with the buffers."""
        buffers = [self._buffers[name] for name in self.BASIS_BUFFERS]
        fresh = self._basis is not None and all(
            buffer is source and _version(buffer) == version
            for buffer, (source, version) in zip(buffers, self._basis_sources, strict=True)
        )
        if not fresh:
            # Constants made in inference mode could not take part in training later.
            with torch.inference_mode(False):
                self._basis = self.build_basis()
            self._basis_sources = tuple((buffer, _version(buffer)) for buffer in buffers)
        return self._basis

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_basis": None, "_basis_sources": ()}


def basis_from_mano(
    v_template: Tensor,  # (V, 3)
    shapedirs: Tensor,  # (V, 3, S)
    posedirs: Tensor,  # (V, 3, P)
    J_regressor: Tensor,  # (J, V)
    weights: Tensor,  # (V, J)
    scale: float = 1.0,
) -> LbsBasis:
    """The skinning op's constants from arrays in MANO's layout.

    Skinning is linear in all lengths, so `scale` sets the unit of what the op returns, at no cost: 1000 for a
    layer that speaks millimetres. Half types become float32, in which the op computes for them.
    """
    dtype = torch.promote_types(v_template.dtype, torch.float32)
    template, shape, bend, regressor, weight = (
        tensor.to(dtype) for tensor in (v_template, shapedirs, posedirs, J_regressor, weights)
    )
    template, shape, bend = scale * template, scale * shape.permute(2, 0, 1), scale * bend.permute(2, 0, 1)
    # Joints are sums over all vertices: taken in float64, once.
    joint_template, joint_shape = ((regressor.double() @ points.double()).to(dtype) for points in (template, shape))
    n_slots = int((weight != 0).sum(1).max())
    skin_joints = weight.abs().topk(n_slots, dim=1).indices
    skin_weights = weight.gather(1, skin_joints)
    return LbsBasis(
        v_template=template.contiguous(),
        shapedirs=shape.contiguous(),
        posedirs=bend.contiguous(),
        joint_template=joint_template,
        joint_shapedirs=joint_shape,
        skin_joints=skin_joints.masked_fill(skin_weights == 0, 0).int(),
        skin_weights=skin_weights,
        parents=torch.tensor(MANO16_PARENTS, dtype=torch.int32, device=template.device),
    )


def _version(tensor: Tensor) -> int:
    """How often the tensor was written in place; inference tensors keep no count."""
    return 0 if tensor.is_inference() else tensor._version
