"""The paper's testing refinement (Sec. 3.4, Eq. 11): gradient descent on h against what the networks see.

    h'(t+1) = h'(t) - gamma * grad_h( ||[f_DHPE(x)]_{J,XY} - j'_2D||^2 + lambda ||F(x) - F(f_Ren(v') * x)||^2 + L_Lap )

v' is the mesh of h'(t), [.]_{J,XY} the x and y of its joints, f_Ren(v') its mask, F the feature extractor, which is in
eval mode and whose weights stay. Joints are in the unit interval of the crop (pixels / S), the mesh is in crop
units, and no ground truth is seen. All by autograd over the ops: the readable form of the iteration.

What the text leaves open, and what is done here:

* j'_2D stays what f_Ref made of it in the last iteration of the mesh estimator. Eq. 11 holds f_E2D and f_E3D fixed, and
  Sec. 3.4 says that f_Ref improves the joints "during iterative mesh estimation process (Eq. 5)". Sec. 3.2 can be read
  otherwise ("2D joint evidence j'_2D(t) ... throughout the iteration (Eq. 11)"): ``update_joints2d`` runs f_Ref after
  every step. Its joints are constants to the gradient either way.
* lambda needs the true joints in Eq. 10; here it is a number, 1, or the gate of Eq. 10 against j'_2D
  (``feature_tau_px``).
* Norms are sums, L_Lap a mean over vertices, as in :mod:`dhpe_fast.losses`.
* One gamma for everything is literal, and slow: the curvatures of the blocks of h differ by orders of magnitude.
  ``block_scales`` gives each its own; ``BALANCED`` is a measured choice.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dhpe_fast.conventions import H_LAYOUT, H_SIZE, N_JOINTS_STD
from dhpe_fast.hand import HandModel
from dhpe_fast.losses import (
    cotangent_laplacian,
    feature_loss,
    joints2d_refine_loss,
    laplacian_loss,
    silhouette_gate,
    total_loss,
)

OPTIMIZERS = ("gd", "adam")
_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPS = 1e-8


class ProjectionLike(Protocol):
    """y = f_Proj(v') and v', in the crop frame; see ``nets.Projection``."""

    verts: Tensor
    """(B, V, 3)"""
    joints: Tensor
    """(B, 21, 3)"""
    mask: Tensor
    """(B, S, S) in [0, 1]"""


class Estimator(Protocol):
    """What Eq. 11 needs of a ``nets.DHPE``. With ``update_joints2d`` also its ``mesh_estimator.refiner``, f_Ref."""

    features: Callable[[Tensor], Tensor]
    """F: images (B, 3, S, S) to (B, N); put into eval mode for the time being if it is a module."""

    @property
    def hand(self) -> HandModel:
        """The model, for the Laplacian of its template."""

    def project(self, h: Tensor) -> ProjectionLike:
        """f_Proj of the mesh of h (B, 63), differentiable."""


def _check_not_negative(record: Any) -> None:
    for name, value in vars(record).items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{type(record).__name__}.{name}: expected a finite number >= 0, got {value!r}")


@dataclass(frozen=True)
class EnergyWeights:
    """How much each term of Eq. 11 counts."""

    joints: float = 1.0
    feature: float = 1.0
    """lambda, on a sum over all features. At 0 the CNN does not run."""
    laplacian: float = 1.0

    def __post_init__(self) -> None:
        _check_not_negative(self)


@dataclass(frozen=True)
class BlockScales:
    """Factors on the step of each block of h, whose units differ: a diagonal preconditioner."""

    pose: float = 1.0
    """radians"""
    shape: float = 1.0
    """standard deviations"""
    quat: float = 1.0
    """of a unit quaternion; the step of a longer one is shorter by its length"""
    scale: float = 1.0
    """crop units for each metre"""
    trans: float = 1.0
    """crop units"""

    def __post_init__(self) -> None:
        _check_not_negative(self)

    def vector(self, like: Tensor) -> Tensor:
        """The factor of each entry of h, (63,)."""
        factors = like.new_empty(H_SIZE)
        for name, block in H_LAYOUT.items():
            factors[block] = getattr(self, name)
        return factors


BALANCED = BlockScales(pose=300.0, shape=1000.0, quat=30.0, scale=5000.0, trans=40.0)
"""Scales for gamma = 1e-3, about the inverse curvatures of the joints term.

Measured on 40 generated hands (``data.render_hands``, seed 0) started 21 px off in crops of 224 px, by joints and
Laplacian alone: 50 iterations lower the mean 2D error to 2.2 px, with all scales 1 to 14.7 px, and the energy falls at
every step. A feature term that adds much curvature makes them diverge: it needs a smaller gamma or lambda.
"""


@dataclass(frozen=True)
class RefineOptions:
    """How to descend; the defaults are the paper's."""

    iterations: int = 50
    step_size: float = 1e-3
    """gamma"""
    optimizer: str = "gd"
    """"gd" as printed, or "adam" (Kingma and Ba 2015) with the same gamma."""
    weights: EnergyWeights = field(default_factory=EnergyWeights)
    block_scales: BlockScales = field(default_factory=BlockScales)
    feature_interval: int = 1
    """The CNN runs in every so many iterations. Between them the feature term is linear in the mask: that is drawn
    anew, the CNN's gradient is the last one."""
    feature_tau_px: float | None = None
    """Lets the feature term act, at each iteration, only on hands whose joints are on average nearer to j'_2D than
    this: Eq. 10, with j'_2D for the truth."""
    update_joints2d: bool = False
    """Runs f_Ref after every step, see above."""

    def __post_init__(self) -> None:
        for name, least in (("iterations", 0), ("feature_interval", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected 'gd' or 'adam', got {self.optimizer!r}")
        for name in ("step_size", "feature_tau_px"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")


@dataclass(frozen=True, eq=False)
class Refinement:
    """Where the descent ended, and the way there."""

    h: Tensor
    """(B, 63)"""
    energy: dict[str, Tensor]
    """By term ("joints", "feature", "laplacian": before their weights; "total": with them), (iterations + 1, B): row t
    is at h'(t), the last at `h`. In rows where ``feature_interval`` leaves the CNN out, its term is linearised."""
    joints2d_px: Tensor
    """(B, 21, 2) j'_2D as used last."""


def refine(
    dhpe: Estimator,
    images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
    h: Tensor,  # (B, 63)
    joints2d_px: Tensor,  # (B, 21, 2)
    *,
    project: Callable[[Tensor], ProjectionLike] | None = None,
    **options: Any,
) -> Refinement:
    """Refines each hand of a batch on its own, see the module's docstring (Eq. 11).

    A hand whose step is not finite keeps its h, the last finite one. Neither `dhpe` nor any argument is changed; no
    gradient flows through the refinement. Works under ``torch.no_grad`` and ``torch.inference_mode``, too.

    Args:
        dhpe: the networks, usually a ``nets.DHPE``.
        images: the crops x.
        h: the first estimate h'(0), ``HandParams.packed()``.
        joints2d_px: j'_2D, pixels of the crop; NaN for joints that are not to count.
        project: another f_Proj than ``dhpe.project``, for instance a ``nets.Projector`` of the same ``hand`` and
            ``joint0`` whose silhouette has another gradient.
        **options: the fields of :class:`RefineOptions`.

    Raises:
        TypeError: an option is unknown.
        ValueError: shapes do not fit, or an option is out of range.
    """
    chosen = RefineOptions(**options)
    _check(images, h, joints2d_px)
    if chosen.update_joints2d and _refiner(dhpe) is None:
        raise ValueError("update_joints2d: the network has no f_Ref (mesh_estimator.refiner)")
    with torch.inference_mode(False), torch.enable_grad(), _in_eval_mode(dhpe.features):
        images, h, joints2d_px = (x.clone() if x.is_inference() else x.detach() for x in (images, h, joints2d_px))
        objective = Objective.of(dhpe, images, chosen, project)
        optimizer = _Optimizer(chosen, h)
        feature = None
        rows: list[dict[str, Tensor]] = []
        for t in range(chosen.iterations + 1):
            h = h.detach().requires_grad_()
            projection = objective.project(h)
            at_end = t == chosen.iterations
            if at_end or t % chosen.feature_interval == 0:
                feature = objective.feature_term(projection.mask.detach(), with_slope=not at_end)
            energy = objective.energy(projection, joints2d_px, feature)
            rows.append({name: value.detach() for name, value in energy.items()})
            if at_end:
                break
            (gradient,) = torch.autograd.grad(energy["total"].sum(), h)
            h = optimizer.step(h.detach(), gradient)
            if chosen.update_joints2d:
                joints2d_px = _refined_joints2d(dhpe, objective, h, joints2d_px)
    return Refinement(h.detach(), {name: torch.stack([row[name] for row in rows]) for name in rows[0]}, joints2d_px)


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
class Objective:
    """The energy of Eq. 11 for a batch of crops, in the parts of which an iteration consists."""

    extract: Callable[[Tensor], Tensor]
    """F"""
    project: Callable[[Tensor], ProjectionLike]
    """f_Proj of the mesh of h"""
    laplacian: Tensor
    """(V, V) of the template"""
    images: Tensor
    """(B, 3, S, S)"""
    features: Tensor | None
    """(B, N) F(x); None where neither the feature term nor f_Ref needs it"""
    options: RefineOptions

    @classmethod
    def of(
        cls,
        dhpe: Estimator,
        images: Tensor,  # (B, 3, S, S)
        options: RefineOptions,
        project: Callable[[Tensor], ProjectionLike] | None = None,
    ) -> Objective:
        """Computes what stays the same in all iterations."""
        features = None
        if options.weights.feature > 0 or options.update_joints2d:
            with torch.no_grad():
                features = dhpe.features(images)
        hand = dhpe.hand
        laplacian = cotangent_laplacian(hand.basis.v_template, hand.faces)
        return cls(dhpe.features, project or dhpe.project, laplacian, images, features, options)

    def feature_term(
        self,
        mask: Tensor,  # (B, S, S) detached
        *,
        with_slope: bool = True,
    ) -> FeatureTerm:
        """Runs the CNN once, forwards and (unless the slope may be zero) backwards to its input."""
        if self.options.weights.feature == 0:
            return FeatureTerm(mask.new_zeros(len(mask)), mask, torch.zeros_like(mask))
        leaf = mask.clone().requires_grad_(with_slope)
        with torch.set_grad_enabled(with_slope):
            features_masked = self.extract(self.images * leaf.to(self.images.dtype)[:, None])
            value = feature_loss(features_masked, self.features).to(mask.dtype)
        slope = torch.autograd.grad(value.sum(), leaf)[0] if with_slope else torch.zeros_like(mask)
        return FeatureTerm(value.detach(), mask, slope)

    def energy(
        self,
        projection: ProjectionLike,
        joints2d_px: Tensor,  # (B, 21, 2)
        feature: FeatureTerm,
    ) -> dict[str, Tensor]:
        """Each term before its weight, and their weighted sum "total": (B,) each, differentiable in the projection."""
        size, weights = self.images.shape[-1], self.options.weights
        projected_px = (0.5 * projection.joints[..., :2] + 0.5) * size
        joints2d_px = joints2d_px.to(projected_px.dtype)
        valid = joints2d_px.isfinite().all(-1)
        terms = {
            "joints": joints2d_refine_loss(projected_px, joints2d_px, valid, size),
            "feature": feature.at(projection.mask),
            "laplacian": laplacian_loss(projection.verts, self.laplacian),
        }
        factors: dict[str, float | Tensor] = dict(vars(weights))
        if self.options.feature_tau_px is not None:
            gate = silhouette_gate(projected_px, joints2d_px, valid, self.options.feature_tau_px)
            factors["feature"] = weights.feature * gate
        return terms | {"total": total_loss(terms, factors)}


class _Optimizer:
    """Turns gradients into steps, hand by hand."""

    def __init__(self, options: RefineOptions, h: Tensor) -> None:
        self._rates = options.step_size * options.block_scales.vector(h)
        self._adam = options.optimizer == "adam"
        self._first = torch.zeros_like(h)
        self._second = torch.zeros_like(h)
        self._t = 0

    def step(
        self,
        h: Tensor,  # (B, 63)
        gradient: Tensor,  # (B, 63)
    ) -> Tensor:
        """The next h; the same for hands whose next h is not finite."""
        direction = self._adam_direction(gradient) if self._adam else gradient
        moved = h - self._rates * direction
        return torch.where(moved.isfinite().all(-1, keepdim=True), moved, h)

    def _adam_direction(self, gradient: Tensor) -> Tensor:
        self._t += 1
        (beta1, beta2), usable = _ADAM_BETAS, gradient.isfinite().all(-1, keepdim=True)
        self._first = torch.where(usable, beta1 * self._first + (1 - beta1) * gradient, self._first)
        self._second = torch.where(usable, beta2 * self._second + (1 - beta2) * gradient.square(), self._second)
        first, second = self._first / (1 - beta1**self._t), self._second / (1 - beta2**self._t)
        return torch.where(usable, first / (second.sqrt() + _ADAM_EPS), torch.nan)


def _refiner(dhpe: Estimator) -> Callable[..., Tensor] | None:
    return getattr(getattr(dhpe, "mesh_estimator", None), "refiner", None)


@torch.no_grad()
def _refined_joints2d(dhpe: Estimator, objective: Objective, h: Tensor, joints2d_px: Tensor) -> Tensor:
    """j'_2D(t + 1) = f_Ref([j'_2D(t), F(x), h'(t + 1), f_Reg(v')]), in the unit interval inside (Eq. 6)."""
    size = objective.images.shape[-1]
    joints_norm = 0.5 * objective.project(h).joints + 0.5
    return size * _refiner(dhpe)(joints2d_px / size, objective.features, h, joints_norm.to(h.dtype))


@contextlib.contextmanager
def _in_eval_mode(module: Any) -> Iterator[None]:
    """Batch norm with its running statistics, and as before afterwards."""
    was_training = [part for part in module.modules() if part.training] if isinstance(module, nn.Module) else []
    if was_training:
        module.eval()
    try:
        yield
    finally:
        for part in was_training:
            part.training = True


def _check(images: Tensor, h: Tensor, joints2d_px: Tensor) -> None:
    for name, value in (("images", images), ("h", h), ("joints2d_px", joints2d_px)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a floating-point tensor, got {given}")
    batch = images.shape[0] if images.dim() == 4 else -1
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images: expected square crops (B, 3, S, S), got {tuple(images.shape)}")
    if h.shape != (batch, H_SIZE):
        raise ValueError(f"h: expected ({batch}, {H_SIZE}) for as many images, got {tuple(h.shape)}")
    if joints2d_px.shape != (batch, N_JOINTS_STD, 2):
        raise ValueError(f"joints2d_px: expected ({batch}, {N_JOINTS_STD}, 2), got {tuple(joints2d_px.shape)}")
