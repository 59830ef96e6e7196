"""Refinement of hand parameters as ops: the mask of h, the energy of Eq. 11 with its gradient, and many steps at once.

The paper's iteration (Baek, Kim and Kim, CVPR 2019, Eq. 11) lowers, for each hand on its own,

    E(h) = w_joints ||[f_Reg(v')]_XY - j'_2D||^2 + w_feature ||F(x) - F(m * x)||^2 + w_laplacian L_Lap
           + w_silhouette (1 - IoU(m, mask)) + w_pose |pose|^2_prior + w_shape |betas|^2 + w_limits |beyond|^2

with v' = scale R(quat) v(pose, shape) + trans and m = f_Ren(v'); the paper has the first row. Everything but F is
computed here, forwards and backwards, by hand. F enters as its derivative by the mask (``FeatureTerm``), so a whole
iteration is ``refine_mask``, a forward and a backward pass of F, and ``refine_descend`` for one or more steps.
Without a feature term, one call of ``refine_descend`` is all iterations.

Convention, all three: h (B, 63) as in :mod:`dhpe_fast.conventions`, the mesh in the crop frame, joints in pixels of the
crop, float32 or float64 as the model. CPU: a thread a hand, results depend neither on their number nor on the rest of
the batch. CUDA: the host never waits, so that a loop of these can be captured in a graph; sums of gradients depend on
the order of threads unless torch.use_deterministic_algorithms asks otherwise. None is differentiable: arguments count
as constants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dhpe_fast.ops._fake import check_shape
from dhpe_fast.ops._library import check_kernels
from dhpe_fast.reference._arguments import check_face_range, image_height_width
from dhpe_fast.reference.descent_rule import MEMORY_SIZE, Descent, first_memory
from dhpe_fast.reference.refine import (
    MODES,
    OPTIMIZERS,
    TERMS,
    EnergyWeights,
    FeatureTerm,
    PriorTables,
    RefineEnergy,
    RefineModel,
    SparseMatrix,
    check_descent,
    check_h,
)

__all__ = [
    "Descent",
    "EnergyWeights",
    "FeatureTerm",
    "PriorTables",
    "RefineEnergy",
    "RefineModel",
    "SparseMatrix",
    "refine_descend",
    "refine_gradient",
    "refine_mask",
]


def refine_mask(
    h: Tensor,  # (B, 63)
    model: RefineModel,
    image_size: int,
    mode: str = "nmr",
) -> Tensor:  # (B, S, S)
    """The masks m = f_Ren(v') of hands, without a gradient.

    Args:
        h: the hands.
        model: their constants.
        image_size: side S of the crop, 1 to 16384 pixels.
        mode: "nmr", hard, or "edge", anti-aliased; see :func:`dhpe_fast.ops.silhouette`.

    Returns:
        The masks, in [0, 1].

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device, or a wrong value.
    """
    check_h(h, model)
    size, _ = image_height_width(image_size)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(map(repr, MODES))}")
    check_kernels("h", h)
    return _call("refine_mask", model, h.detach(), list(model.tensors), size, MODES.index(mode))


def refine_gradient(
    h: Tensor,  # (B, 63)
    energy: RefineEnergy,
) -> tuple[Tensor, Tensor]:
    """The energy of each hand and its gradient.

    Zero quaternions are read as the identity and get no gradient. Where an energy is not finite, or a point of the
    mesh is not, the gradient need not be either.

    Args:
        h: the hands.
        energy: what is asked of them.

    Returns:
        The gradient (B, 63) of the total, and the terms (B, 8): the columns of ``reference.refine.TERMS``, before their
        weights, and last the weighted total. Terms beyond the first three are 0 where their weight is, the feature
        term too.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device, or a wrong value.
    """
    check_h(h, energy.model, len(energy.joints2d_px))
    check_kernels("h", h)
    deterministic = torch.are_deterministic_algorithms_enabled()
    return _call("refine_gradient", energy.model, h.detach(), *_energy_arguments(energy), deterministic)


def refine_descend(
    h: Tensor,  # (B, 63)
    energy: RefineEnergy,
    rates: Tensor,  # (63,)
    iterations: int,
    *,
    optimizer: str = "gd",
    tolerance: float = 0.0,
    evaluate_end: bool = True,
    memory: Tensor | None = None,  # (B, 195)
) -> Descent:
    """Steps h - rate * gradient, or Adam's, in one call (Eq. 11). The arguments stay as they are.

    A hand rests, and keeps its h, once an energy or a next h of it is not finite, or when its energy has hardly changed
    three times running (`tolerance`). What it does is remembered in a row of numbers (``Descent.memory``), by which
    descents are continued: with the memory of the first call, two calls do what one of as many iterations does, but
    for what is said about linearised feature terms in ``Descent.best_h``.

    Args:
        h: the hands to start from.
        energy: what is asked of them; a feature term stays linearised in all iterations.
        rates: step size for each entry of h.
        iterations: how many steps, from 0.
        optimizer: "gd" or "adam" (Kingma and Ba 2015, with their constants).
        tolerance: share of the energy; 0 lets no hand rest.
        evaluate_end: whether the last h is looked at, too: one row of energies more.
        memory: of the call before, with the `h` that it returned; None for hands that start.

    Returns:
        The last h, the memory, and the energies (B, iterations [+ 1], 8) of the iterates, term by term as in
        ``refine_gradient``; those of a hand at rest repeat.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device, or a wrong value.
    """
    check_h(h, energy.model, len(energy.joints2d_px))
    check_descent(h, rates, iterations, optimizer, tolerance, memory)
    check_kernels("h", h)
    h = h.detach()
    memory = first_memory(h) if memory is None else memory.detach()
    how = iterations, OPTIMIZERS.index(optimizer), float(tolerance), bool(evaluate_end)
    deterministic = torch.are_deterministic_algorithms_enabled()
    about = *_energy_arguments(energy), *how, deterministic
    return Descent(*_call("refine_descend", energy.model, h, memory, rates.detach(), *about))


def _energy_arguments(energy: RefineEnergy) -> tuple:
    """What both ops take of an energy, in the order of their schemas."""
    feature = energy.feature if energy.weights.feature > 0 else None
    slope = [] if feature is None else [feature.slope.detach(), feature.mask.detach(), feature.value.detach()]
    return (
        energy.joints2d_px.detach(),
        None if energy.mask is None else energy.mask.detach(),
        slope,
        list(energy.model.tensors),
        [float(getattr(energy.weights, name)) for name in TERMS[:-1]],
        math.inf if energy.feature_tau_px is None else float(energy.feature_tau_px),
        energy.image_size,
        MODES.index(energy.mode),
    )


def _call(op: str, model: RefineModel, *arguments):
    """Calls the kernels; where they refuse faces that name no vertex, by a ValueError."""
    try:
        return getattr(torch.ops.dhpe_fast, op)(*arguments)
    except RuntimeError:
        check_face_range(model.faces, len(model.basis.v_template))
        raise


def _check_shapes(op, h, joints2d_px, mask, slope, image_size) -> None:
    """What csrc/refine/refine_tensors.h checks of the hands and their targets."""
    check_shape(op, "h", h, (h.shape[0], 63))
    check_shape(op, "joints2d_px", joints2d_px, (h.shape[0], 21, 2))
    if mask is not None:
        check_shape(op, "mask", mask, (h.shape[0], image_size, image_size))
    if slope:
        check_shape(op, "slope", slope[0], (h.shape[0], image_size, image_size))


@torch.library.register_fake("dhpe_fast::refine_mask")
def _refine_mask_fake(h, model, image_size, mode):
    check_shape("refine_mask", "h", h, (h.shape[0], 63))
    return h.new_empty(h.shape[0], image_size, image_size)


@torch.library.register_fake("dhpe_fast::refine_gradient")
def _refine_gradient_fake(h, joints2d_px, mask, slope, model, weights, feature_tau_px, image_size, mode, deterministic):
    _check_shapes("refine_gradient", h, joints2d_px, mask, slope, image_size)
    return h.new_empty(h.shape), h.new_empty(h.shape[0], len(TERMS))


@torch.library.register_fake("dhpe_fast::refine_descend")
def _refine_descend_fake(h, memory, rates, joints2d_px, mask, slope, model, weights, feature_tau_px, image_size, *how):
    _check_shapes("refine_descend", h, joints2d_px, mask, slope, image_size)
    check_shape("refine_descend", "memory", memory, (h.shape[0], MEMORY_SIZE))
    check_shape("refine_descend", "rates", rates, (63,))
    _, iterations, _, _, evaluate_end, _ = how
    energies = h.new_empty(h.shape[0], iterations + (1 if evaluate_end else 0), len(TERMS))
    return h.new_empty(h.shape), h.new_empty(memory.shape), energies
