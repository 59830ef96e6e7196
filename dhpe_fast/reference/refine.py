"""Refinement of hand parameters: Eq. 11 of Baek, Kim and Kim (CVPR 2019) without its network, by autograd.

The contracts are written in :mod:`dhpe_fast.ops.refine`; what both take is defined here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dhpe_fast.conventions import H_LAYOUT, H_SIZE, N_ARTICULATED, N_JOINTS_STD, N_POSE
from dhpe_fast.reference._arguments import checked_number, describe, image_height_width
from dhpe_fast.reference.descent_rule import MEMORY_SIZE, Descent, first_memory, noted, stepped
from dhpe_fast.reference.lbs import LbsBasis, lbs
from dhpe_fast.reference.silhouette import silhouette
from dhpe_fast.rotation import quaternion_to_matrix
from dhpe_fast.torch_settings import full_precision

TERMS = ("joints", "feature", "laplacian", "silhouette", "pose", "shape", "limits", "total")
"""Columns of energies: each term before its weight, and their weighted sum."""
MODES = ("nmr", "edge")
OPTIMIZERS = ("gd", "adam")


@dataclass(frozen=True)
class EnergyWeights:
    """How much each term of Eq. 11 counts; those beyond the paper's three do not, by default."""

    joints: float = 1.0
    feature: float = 1.0
    """lambda, on a sum over all features. At 0 the CNN does not run."""
    laplacian: float = 1.0
    silhouette: float = 0.0
    """of 1 - IoU of the drawn mask and a given one"""
    pose: float = 0.0
    """of the squared Mahalanobis distance to the mean natural pose"""
    shape: float = 0.0
    """of the sum of squared betas"""
    limits: float = 0.0
    """of the sum of squared angles beyond their ranges of motion, radians"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{type(self).__name__}.{name}: expected a finite number >= 0, got {value!r}")


class SparseMatrix(NamedTuple):
    """A matrix by its rows (CSR)."""

    start: Tensor
    """(rows + 1,) int32, where each row begins in the next two"""
    column: Tensor
    """(entries,) int32"""
    value: Tensor
    """(entries,)"""

    @classmethod
    def of(cls, dense: Tensor) -> SparseMatrix:
        """The entries of a matrix (rows, columns) that are not zero."""
        used = dense != 0
        start = torch.zeros(len(dense) + 1, dtype=torch.int32, device=dense.device)
        start[1:] = used.sum(1).cumsum(0)
        return cls(start, used.nonzero()[:, 1].int(), dense[used])

    def dense(self, columns: int) -> Tensor:
        """The matrix (rows, columns)."""
        rows = len(self.start) - 1
        row = torch.repeat_interleave(torch.arange(rows, device=self.start.device), self.start.diff().long())
        matrix = self.value.new_zeros(rows, columns)
        return matrix.index_put((row, self.column.long()), self.value, accumulate=True)


class PriorTables(NamedTuple):
    """Natural poses and ranges of motion, as of ``hand.pose_prior.PosePrior``."""

    axes: Tensor
    """(15, 3, 3) anatomical coordinates of a joint are axes @ its axis-angle"""
    mean: Tensor
    """(45,) axis-angle"""
    precision: Tensor
    """(45, 45) symmetric, 1 / radian^2"""
    low: Tensor
    """(45,) anatomical coordinates, radians"""
    high: Tensor
    """(45,)"""


@dataclass(frozen=True, eq=False)
class RefineModel:
    """The constants of a hand: all floating-point tensors of one dtype, all tensors on one device."""

    basis: LbsBasis
    faces: Tensor
    """(F, 3) int32"""
    joint_regressor: SparseMatrix
    """(21, V) f_Reg: joints in STD order from the posed mesh"""
    laplacian: SparseMatrix
    """(V, V) symmetric, of the template"""
    prior: PriorTables | None = None
    """needed where the terms pose and limits count"""
    tensors: tuple[Tensor, ...] = field(init=False, repr=False)
    """all of the above, in the order in which the ops take them"""

    def __post_init__(self) -> None:
        n_verts = len(self.basis.v_template)
        expected = {
            "faces": (self.faces, (len(self.faces), 3)),
            "joint_regressor.start": (self.joint_regressor.start, (N_JOINTS_STD + 1,)),
            "laplacian.start": (self.laplacian.start, (n_verts + 1,)),
        }
        if self.prior is not None:
            shapes = ((N_ARTICULATED, 3, 3), (N_POSE,), (N_POSE, N_POSE), (N_POSE,), (N_POSE,))
            for name, tensor, shape in zip(PriorTables._fields, self.prior, shapes, strict=True):
                expected[f"prior.{name}"] = (tensor, shape)
        for name, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"RefineModel.{name} has shape {tuple(tensor.shape)}, expected {shape}")
        parts = (*self.basis.tensors, self.faces, *self.joint_regressor, *self.laplacian, *(self.prior or ()))
        object.__setattr__(self, "tensors", parts)


@dataclass(frozen=True, eq=False)
class FeatureTerm:
    """||F(x) - F(m * x)||^2, linearised in m at the mask with which the CNN was run."""

    value: Tensor
    """(B,) at that mask"""
    mask: Tensor
    """(B, S, S) that mask"""
    slope: Tensor
    """(B, S, S) derivative by the mask"""

    def at(
        self,
        mask: Tensor,  # (B, S, S)
    ) -> Tensor:
        """The term (B,), through which the gradient by the mask is `slope`; exact where the masks are the same."""
        return self.value + (self.slope * (mask - self.mask)).sum((-2, -1))


@dataclass(frozen=True, eq=False)
class RefineEnergy:
    """What the hands of a batch are to agree with, and how much each term counts."""

    model: RefineModel
    joints2d_px: Tensor
    """(B, 21, 2) pixels of the crop; joints that are not finite do not count"""
    image_size: int
    """side S of the crop and of the masks, pixels"""
    weights: EnergyWeights = field(default_factory=EnergyWeights)
    mode: str = "nmr"
    """of the drawn mask and its gradient: "nmr" or "edge", see :func:`dhpe_fast.ops.silhouette`"""
    mask: Tensor | None = None
    """(B, S, S) in [0, 1] for the silhouette term"""
    feature: FeatureTerm | None = None
    """the feature term, linear in the mask"""
    feature_tau_px: float | None = None
    """lets the feature term act only on hands whose joints are on average nearer than this: Eq. 10"""

    def __post_init__(self) -> None:
        if not isinstance(self.joints2d_px, Tensor) or not self.joints2d_px.is_floating_point():
            raise TypeError(f"joints2d_px must be a floating-point tensor, got {describe(self.joints2d_px)}")
        image_height_width(self.image_size)
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, expected one of {', '.join(map(repr, MODES))}")
        batch, size = len(self.joints2d_px), self.image_size
        expected = {"joints2d_px": (self.joints2d_px, (batch, N_JOINTS_STD, 2))}
        if self.mask is not None:
            expected["mask"] = (self.mask, (batch, size, size))
        if self.feature is not None:
            expected["feature.value"] = (self.feature.value, (batch,))
            expected["feature.mask"] = (self.feature.mask, (batch, size, size))
            expected["feature.slope"] = (self.feature.slope, (batch, size, size))
        template = self.model.basis.v_template
        for name, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
            check_alike(name, tensor, template)
        needs = {"feature": self.feature, "silhouette": self.mask, "pose": self.model.prior, "limits": self.model.prior}
        missing = {"feature": "feature", "silhouette": "mask", "pose": "model.prior", "limits": "model.prior"}
        for name, given in needs.items():
            if getattr(self.weights, name) > 0 and given is None:
                raise ValueError(f"weights.{name} is {getattr(self.weights, name)}, which needs {missing[name]}")
        if self.feature_tau_px is not None and not (math.isfinite(self.feature_tau_px) and self.feature_tau_px > 0):
            raise ValueError(f"feature_tau_px is {self.feature_tau_px}, expected a finite number > 0 or None")
        check_gate(self.weights, self.feature_tau_px)


def check_gate(weights: EnergyWeights, feature_tau_px: float | None) -> None:
    """Raises ValueError if a gate switches all there is: nothing would be left to compare iterates by."""
    if feature_tau_px is None or weights.feature == 0:
        return
    if not any(value > 0 for name, value in vars(weights).items() if name != "feature"):
        raise ValueError(f"feature_tau_px is {feature_tau_px}, which needs the weight of another term than the feature")


def check_alike(name: str, tensor: Tensor, template: Tensor) -> None:
    """Raises ValueError unless dtype and device are those of the model."""
    if tensor.dtype != template.dtype or tensor.device != template.device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}, the model {template.dtype} on {template.device}: they must "
            "agree"
        )


def check_h(h: Tensor, model: RefineModel, batch: int | None = None) -> None:
    """Raises TypeError or ValueError unless `h` (B, 63) fits the model and the batch."""
    if not isinstance(h, Tensor) or not h.is_floating_point():
        raise TypeError(f"h must be a floating-point tensor, got {describe(h)}")
    if h.dim() != 2 or h.shape[1] != H_SIZE or (batch is not None and len(h) != batch):
        wanted = f"({'B' if batch is None else batch}, {H_SIZE})"
        raise ValueError(f"h has shape {tuple(h.shape)}, expected {wanted}")
    check_alike("h", h, model.basis.v_template)


def refine_mask(
    h: Tensor,  # (B, 63)
    model: RefineModel,
    image_size: int,
    mode: str = "nmr",
) -> Tensor:  # (B, S, S)
    """f_Ren of the mesh of h; the twin of :func:`dhpe_fast.ops.refine_mask`, where the contract is written."""
    check_h(h, model)
    image_height_width(image_size)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(map(repr, MODES))}")
    with full_precision(h.device):
        return _mask(_verts(h, model), model, image_size, mode)


def refine_gradient(
    h: Tensor,  # (B, 63)
    energy: RefineEnergy,
) -> tuple[Tensor, Tensor]:
    """Gradient (B, 63) and terms (B, 8) of the energy; the twin of :func:`dhpe_fast.ops.refine_gradient`."""
    check_h(h, energy.model, len(energy.joints2d_px))
    with torch.inference_mode(False), torch.enable_grad():
        leaf = h.detach().clone().requires_grad_()
        terms = _terms(leaf, energy)
        (gradient,) = torch.autograd.grad(terms[:, -1].sum(), leaf)
    return gradient, terms.detach()


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
    """Iterations of Eq. 11; the twin of :func:`dhpe_fast.ops.refine_descend`, where the contract is written."""
    check_h(h, energy.model, len(energy.joints2d_px))
    check_descent(h, rates, iterations, optimizer, tolerance, memory)
    memory = first_memory(h) if memory is None else memory.detach().clone()
    h, rows = h.detach().clone(), []
    for t in range(iterations + evaluate_end):
        gradient, terms = refine_gradient(h, energy)
        rows.append(terms)
        is_end, is_exact = t == iterations, t == 0 or energy.weights.feature == 0
        ranked = terms[:, -1], rank_of(terms, energy.weights, energy.feature_tau_px)
        memory = noted(memory, h, ranked, is_exact=is_exact, tolerance=0.0 if is_end else tolerance)
        if not is_end:
            h, memory = stepped(memory, h, gradient, rates, optimizer)
    return Descent(h, memory, torch.stack(rows, 1) if rows else h.new_empty(len(h), 0, len(TERMS)))


def check_descent(
    h: Tensor,  # (B, 63)
    rates: Tensor,  # (63,)
    iterations: int,
    optimizer: str,
    tolerance: float,
    memory: Tensor | None,  # (B, 195)
) -> None:
    """Raises TypeError or ValueError unless these are arguments of ``refine_descend``."""
    for name, tensor, shape in (("rates", rates, (H_SIZE,)), ("memory", memory, (len(h), MEMORY_SIZE))):
        if tensor is None and name == "memory":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != h.dtype or tensor.device != h.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, h {h.dtype} on {h.device}: they must agree")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations is {iterations!r}, expected a whole number >= 0")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}, expected 'gd' or 'adam'")
    checked_number("tolerance", tolerance, "a finite number >= 0", lambda value: value >= 0)


def _verts(h: Tensor, model: RefineModel) -> Tensor:
    """The mesh v' = scale R(quat) v(pose, shape) + trans: (B, V, 3) crop units."""
    part = {name: h[:, where] for name, where in H_LAYOUT.items()}
    pose = torch.cat([torch.zeros_like(h[:, :3]), part["pose"]], 1).unflatten(1, (-1, 3))
    verts_m, _ = lbs(pose, part["shape"], model.basis)
    turned = verts_m @ quaternion_to_matrix(part["quat"]).transpose(1, 2)
    return part["scale"][:, :, None] * turned + part["trans"][:, None]


def _mask(verts: Tensor, model: RefineModel, image_size: int, mode: str) -> Tensor:
    verts_px = torch.cat([(verts[..., :2] + 1) * (image_size / 2), verts[..., 2:]], -1)
    return silhouette(verts_px, model.faces, image_size, mode=mode)


def _terms(h: Tensor, energy: RefineEnergy) -> Tensor:
    """Terms (B, 8), the last of which is differentiable in h."""
    model, weights, size = energy.model, energy.weights, energy.image_size
    n_verts = len(model.basis.v_template)
    with full_precision(h.device):
        verts = _verts(h, model)
        joints = model.joint_regressor.dense(n_verts) @ verts
        curvature = model.laplacian.dense(n_verts) @ verts
    difference = (0.5 * joints[..., :2] + 0.5) * size - energy.joints2d_px
    counts = energy.joints2d_px.isfinite().all(-1)
    difference = torch.where(counts[..., None], difference, 0)
    zero = h.new_zeros(len(h))
    terms = dict.fromkeys(TERMS[:-1], zero)
    terms["joints"] = difference.square().sum((1, 2)) / size**2
    terms["laplacian"] = torch.linalg.vector_norm(curvature, dim=-1).mean(-1)
    near = torch.ones_like(zero, dtype=torch.bool)
    if energy.feature_tau_px is not None:
        mean_px = difference.detach().square().sum(-1).sqrt().sum(-1) / counts.sum(-1)
        near = (mean_px < energy.feature_tau_px) & counts.any(-1)
    if weights.feature > 0 or weights.silhouette > 0:
        mask = _mask(verts, model, size, energy.mode)
        if weights.feature > 0:
            terms["feature"] = energy.feature.at(mask)
        if weights.silhouette > 0:
            both = (mask * energy.mask).sum((1, 2))
            either = mask.sum((1, 2)) + energy.mask.sum((1, 2)) - both
            terms["silhouette"] = 1 - both / either.clamp_min(1)
    pose, betas = h[:, H_LAYOUT["pose"]], h[:, H_LAYOUT["shape"]]
    if weights.pose > 0:
        offset = pose - model.prior.mean
        terms["pose"] = torch.einsum("bi,ij,bj->b", offset, model.prior.precision, offset)
    if weights.shape > 0:
        terms["shape"] = betas.square().sum(-1)
    if weights.limits > 0:
        angles = torch.einsum("jik,bjk->bji", model.prior.axes, pose.unflatten(1, (-1, 3))).flatten(1)
        beyond = (angles - model.prior.high).clamp_min(0) - (model.prior.low - angles).clamp_min(0)
        terms["limits"] = beyond.square().sum(-1)
    acting = {name: value for name, value in terms.items() if getattr(weights, name) > 0}
    if "feature" in acting:
        acting["feature"] = torch.where(near, acting["feature"], 0)
    total = sum((getattr(weights, name) * value for name, value in acting.items()), start=zero)
    return torch.stack([*terms.values(), total], 1)


def rank_of(
    terms: Tensor,  # (*batch, 8)
    weights: EnergyWeights,
    feature_tau_px: float | None,
) -> Tensor:  # (*batch,)
    """The energy by which iterates are compared: the total, without a feature term that a gate switches."""
    if feature_tau_px is None:
        return terms[..., -1]
    rank = torch.zeros_like(terms[..., -1])
    for i, name in enumerate(TERMS[:-1]):
        if name != "feature" and getattr(weights, name) > 0:
            rank = rank + getattr(weights, name) * terms[..., i]
    return rank
