"""Levenberg-Marquardt on one hand's 2D evidence as one op: the compiled form of ``refinement.gauss_newton.minimize``.

No part of ``dhpe_fast.ops``'s public list: its arguments are what that module prepares, and it is the readable version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dhpe_fast.conventions import N_ARTICULATED, N_JOINTS_STD, N_POSE, N_SHAPE
from dhpe_fast.ops._fake import check_shape
from dhpe_fast.ops._library import check_kernels
from dhpe_fast.reference.lbs import LbsBasis
from dhpe_fast.reference.refine import SparseMatrix

STOPPED, CONVERGED, DIVERGED = range(3)
"""Where a hypothesis stands: it took all its steps or gave up a race, is at a minimum, or never had a finite energy."""

WEIGHTS = (
    "joint_sigma",
    "outlier_sigmas",
    "pose",
    "shape",
    "limit_sigma_rad",
    "beta_limit",
    "beta_limit_sigma",
    "silhouette",
    "laplacian",
)
"""Order of the weights; ``refinement.gauss_newton.Weights`` says what they mean."""
_DIVISORS = {"joint_sigma", "outlier_sigmas", "limit_sigma_rad", "beta_limit_sigma"}


class NewtonState(NamedTuple):
    """B hypotheses, float64."""

    pose: Tensor
    """(B, 45) axis-angle, radians"""
    betas: Tensor
    """(B, 10)"""
    rotation: Tensor
    """(B, 3, 3) model axes to camera axes"""
    cam: Tensor
    """(B, 3) scaled orthographic: log scale and translation, crop units; perspective: position, metres"""


class NewtonEvidence(NamedTuple):
    """What E images say; hypothesis b belongs to image b // (B / E)."""

    joints: Tensor
    """(E, 21, 2) STD order, crop units; any value where the confidence is zero"""
    confidence: Tensor
    """(E, 21) in [0, 1]"""
    intrinsics: Tensor | None = None
    """(E, 4) focal lengths and principal point, crop units, of perspective cameras; None: scaled orthographic ones"""
    mask: Tensor | None = None
    """(E, S, S) in [0, 1] over the crop, in the model's dtype; needs the mesh"""


class NewtonHand(NamedTuple):
    """Skeleton and prior of a hand model, float64.

    A node is one of the 21 joints: the wrist, then index, middle, little, ring and thumb, each from base to tip. Its
    bone leads to it from the node before; that of the wrist, and of a finger's base, from the origin.
    """

    bones_m: Tensor
    """(21, 3) of the mean shape, at rest"""
    bone_dirs: Tensor
    """(21, 3, 10) how they change with betas"""
    mean: Tensor
    """(45,) mean pose"""
    precision: Tensor
    """(45, 45) inverse covariance of the pose, symmetric"""
    axes: Tensor
    """(15, 3, 3) anatomical axes of each joint, in rows"""
    low: Tensor
    """(45,) lower ends of the ranges of motion, anatomical coordinates, radians"""
    high: Tensor
    """(45,) upper ends"""


class NewtonMesh(NamedTuple):
    """What the mesh terms need of a hand model, in its own dtype."""

    basis: LbsBasis
    tips: Tensor
    """(5,) int32 vertices at the tips of index, middle, little, ring and thumb"""
    faces: Tensor
    """(F, 3) int32"""
    laplacian: SparseMatrix
    """(V, V) symmetric, divided by the template's own energy"""

    @property
    def tensors(self) -> list[Tensor]:
        """All of the above, in the order of the op."""
        return [*self.basis.tensors, self.tips, self.faces, *self.laplacian]


class NewtonResult(NamedTuple):
    """Where the hypotheses ended; never NaN."""

    state: NewtonState
    energy: Tensor
    """(B,) float64; infinite where `status` is DIVERGED"""
    steps: Tensor
    """(B,) int32"""
    status: Tensor
    """(B,) int32"""


def newton_minimize(
    state: NewtonState,
    evidence: NewtonEvidence,
    hand: NewtonHand,
    mesh: NewtonMesh | None,
    weights: Sequence[float],  # (9,), see WEIGHTS
    iterations: int,
    tolerance: float,
    race: bool,
) -> NewtonResult:
    """Minimises the energy of hypotheses, all steps of all of them in one call.

    Differentiable in: nothing. On the CPU threads share the hypotheses, and no result depends on their number. On CUDA
    a block of threads takes a hypothesis through all its steps, and the host does not wait.

    Args:
        state: where they start. A hypothesis that is not finite ends as the mean hand, DIVERGED.
        evidence: the images.
        hand: skeleton and prior.
        mesh: None for the energy of the skeleton alone (tips rigid with their bones). Meshes, and races, are for the
            CPU.
        weights: of the terms.
        iterations: the most steps.
        tolerance: a hypothesis has converged when three of its steps running have lowered its energy by less than this
            fraction of 1 + energy, or short steps do not lower it. It then rests.
        race: only the best hypothesis of each image matters: one that would not overtake it at the rate of its last
            step rests.

    Raises:
        TypeError: an argument is not a tensor of the dtype above.
        ValueError: shapes or devices do not fit, or a number is out of range.
    """
    _check_arguments(state, evidence, hand, mesh, weights)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or not 0 <= iterations < 2**31:
        raise ValueError(f"iterations: expected a whole number >= 0, got {iterations!r}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number >= 0, got {tolerance!r}")
    if state.pose.is_cuda and (mesh is not None or race):
        raise ValueError("mesh, race: on CUDA, only the skeleton's energy is minimised, and no hypothesis gives up")
    *parts, energy, steps, status = torch.ops.dhpe_fast.newton_minimize(
        *state,
        *evidence,
        list(hand),
        [] if mesh is None else mesh.tensors,
        [float(weight) for weight in weights],
        iterations,
        float(tolerance),
        bool(race),
    )
    return NewtonResult(NewtonState(*parts), energy, steps, status)


def _check_arguments(
    state: NewtonState,
    evidence: NewtonEvidence,
    hand: NewtonHand,
    mesh: NewtonMesh | None,
    weights: Sequence[float],
) -> None:
    n_hypotheses, n_images = (_length(t, name) for t, name in ((state.pose, "pose"), (evidence.joints, "joints")))
    check_kernels("pose", state.pose)
    double = torch.float64
    for tensors, shapes in (
        (state._asdict(), _state_shapes(n_hypotheses)),
        (evidence._asdict(), _evidence_shapes(n_images)),
        (hand._asdict(), _HAND_SHAPES),
    ):
        for name, shape in shapes.items():
            if tensors[name] is not None:
                _check(tensors[name], name, shape, double, state.pose.device)
    if n_images == 0 or n_hypotheses % n_images != 0:
        raise ValueError(f"pose, joints: {n_hypotheses} hypotheses cannot be shared evenly by {n_images} images")
    if mesh is not None:
        _check_mesh(mesh, state.pose.device)
    if evidence.mask is not None:
        if mesh is None:
            raise ValueError("mask: a silhouette needs the mesh, which is None")
        side = evidence.mask.shape[-1] if evidence.mask.dim() else 0
        _check(evidence.mask, "mask", (n_images, side, side), mesh.basis.v_template.dtype, state.pose.device)
    if len(weights) != len(WEIGHTS):
        raise ValueError(f"weights: expected {len(WEIGHTS)} numbers, got {len(weights)}")
    for name, weight in zip(WEIGHTS, weights, strict=True):
        if not (math.isfinite(weight) and (weight > 0 if name in _DIVISORS else weight >= 0)):
            raise ValueError(
                f"weights: {name} is {weight!r}, expected a finite number {'>' if name in _DIVISORS else '>='} 0"
            )


def _check_mesh(mesh: NewtonMesh, device: torch.device) -> None:
    template, entries = mesh.basis.v_template, (len(mesh.laplacian.value),)
    for name, tensor, shape, dtype in (
        ("tips", mesh.tips, (5,), torch.int32),
        ("faces", mesh.faces, (len(mesh.faces), 3), torch.int32),
        ("laplacian.start", mesh.laplacian.start, (len(template) + 1,), torch.int32),
        ("laplacian.column", mesh.laplacian.column, entries, torch.int32),
        ("laplacian.value", mesh.laplacian.value, entries, template.dtype),
    ):
        _check(tensor, name, shape, dtype, device)


def _state_shapes(n: int) -> dict[str, tuple[int, ...]]:
    return {"pose": (n, N_POSE), "betas": (n, N_SHAPE), "rotation": (n, 3, 3), "cam": (n, 3)}


def _evidence_shapes(n: int) -> dict[str, tuple[int, ...]]:
    return {"joints": (n, N_JOINTS_STD, 2), "confidence": (n, N_JOINTS_STD), "intrinsics": (n, 4)}


_HAND_SHAPES = {
    "bones_m": (N_JOINTS_STD, 3),
    "bone_dirs": (N_JOINTS_STD, 3, N_SHAPE),
    "mean": (N_POSE,),
    "precision": (N_POSE, N_POSE),
    "axes": (N_ARTICULATED, 3, 3),
    "low": (N_POSE,),
    "high": (N_POSE,),
}


def _length(tensor: Tensor, name: str) -> int:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    return tensor.shape[0] if tensor.dim() else 0


def _check(tensor: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name}: expected a tensor of {dtype}, got {given}")
    if tensor.shape != shape or tensor.device != device:
        raise ValueError(
            f"{name}: expected {shape} on {device}, as of pose and joints, got {tuple(tensor.shape)} on {tensor.device}"
        )


@torch.library.register_fake("dhpe_fast::newton_minimize")
def _newton_minimize_fake(
    pose, betas, rotation, cam, joints, confidence, intrinsics, mask, hand, mesh, weights, iterations, tolerance, race
):
    op = "newton_minimize"
    n_hypotheses, n_images = pose.shape[0], joints.shape[0]
    state = {"pose": pose, "betas": betas, "rotation": rotation, "cam": cam}
    for name, shape in _state_shapes(n_hypotheses).items():
        check_shape(op, name, state[name], shape)
    evidence = {"joints": joints, "confidence": confidence, "intrinsics": intrinsics}
    for name, shape in _evidence_shapes(n_images).items():
        if evidence[name] is not None:
            check_shape(op, name, evidence[name], shape)
    energy = pose.new_empty(n_hypotheses)
    steps = energy.new_empty(n_hypotheses, dtype=torch.int32)
    return (*(t.new_empty(t.shape) for t in state.values()), energy, steps, torch.empty_like(steps))
