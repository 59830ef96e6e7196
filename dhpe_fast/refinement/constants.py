"""What the refinement ops take of a hand model, made once for each."""

from __future__ import annotations

import torch

from dhpe_fast.conventions import MIDDLE_MCP, N_ARTICULATED
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.derived_models import derived
from dhpe_fast.hand.pose_prior import PosePrior
from dhpe_fast.losses import cotangent_laplacian
from dhpe_fast.ops.refine import PriorTables, RefineModel, SparseMatrix


def refine_model(hand: HandModel, joint0: str = "palm", *, with_prior: bool = False) -> RefineModel:
    """The constants of a hand for ``ops.refine_*``, in its precision and on its device; made again if it changes.

    Args:
        hand: the model.
        joint0: what joint 0 of the skeleton is, "palm" or "wrist"; see ``nets.Projector``.
        with_prior: whether the terms pose and limits may count. The prior takes a moment to make.
    """
    return derived(hand, ("refine_model", joint0, with_prior), lambda: _made(hand, joint0, with_prior))


def _made(hand: HandModel, joint0: str, with_prior: bool) -> RefineModel:
    # Tensors made in inference mode could not take part in a descent by autograd.
    with torch.inference_mode(False), torch.no_grad():
        regressor = hand.joint_regressor.clone()
        if joint0 == "palm":
            regressor[0] = 0.5 * (regressor[0] + regressor[MIDDLE_MCP])
        return RefineModel(
            hand.basis,
            hand.faces,
            SparseMatrix.of(regressor),
            SparseMatrix.of(cotangent_laplacian(hand.basis.v_template, hand.faces)),
            _prior(hand) if with_prior else None,
        )


def _prior(hand: HandModel) -> PriorTables:
    prior = PosePrior.of(hand, hand.hands_mean.dtype)
    joints = [slice(3 * j, 3 * j + 3) for j in range(N_ARTICULATED)]
    axes = torch.stack([prior.axes[joint, joint] for joint in joints])
    return PriorTables(axes, prior.mean, prior.precision, prior.low, prior.high)
