"""The paper's testing refinement (Sec. 3.4, Eq. 11): gradient descent on h against what the networks see.

    h'(t+1) = h'(t) - gamma * grad_h( ||[f_DHPE(x)]_{J,XY} - j'_2D||^2 + lambda ||F(x) - F(f_Ren(v') * x)||^2 + L_Lap )

v' is the mesh of h'(t), [.]_{J,XY} the x and y of its joints, f_Ren(v') its mask, F the feature extractor, which is in
eval mode and whose weights stay. Joints are in the unit interval of the crop (pixels / S), the mesh is in crop
units, and no ground truth is seen.

Two paths give the same numbers. The fused one is ``ops.refine_*``: everything but F computed by hand, all iterations
between two runs of F in one call. The other one is autograd over the ops: the readable form of the iteration, for any
f_Proj.

What the text leaves open, and what is done here:

* j'_2D stays what f_Ref made of it in the last iteration of the mesh estimator. Eq. 11 holds f_E2D and f_E3D fixed, and
  Sec. 3.4 says that f_Ref improves the joints "during iterative mesh estimation process (Eq. 5)". Sec. 3.2 can be read
  otherwise ("2D joint evidence j'_2D(t) ... throughout the iteration (Eq. 11)"): ``update_joints2d`` runs f_Ref after
  every step. Its joints are constants to the gradient either way.
* lambda needs the true joints in Eq. 10; here it is a number, 1, or the gate of Eq. 10 against j'_2D
  (``feature_tau_px``).
* Norms are sums, L_Lap a mean over vertices, as in :mod:`dhpe_fast.losses`.
* Beyond the paper, and off by default: 1 - IoU of the mask and a given one, priors on pose and shape, and the joints'
  ranges of motion (``EnergyWeights``).
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
from dhpe_fast.nets import DHPE, MaskedFeatures, Projector
from dhpe_fast.ops import Descent, EnergyWeights, FeatureTerm, RefineEnergy, refine_descend, refine_mask
from dhpe_fast.reference.descent_rule import NOT_FINITE, STATUS, first_memory, noted, stepped
from dhpe_fast.reference.refine import MODES, OPTIMIZERS, TERMS, rank_of
from dhpe_fast.refinement.constants import refine_model
from dhpe_fast.refinement.objective import (
    Estimator,
    FeatureFunction,
    Objective,
    ProjectionLike,
    feature_term,
)

PAPER_TERMS = ("joints", "feature", "laplacian")


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
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"BlockScales.{name}: expected a finite number >= 0, got {value!r}")

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
    tolerance: float = 0.0
    """A hand rests when its energy has changed by less than this share three times running. 0: never."""

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
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance: expected a finite number >= 0, got {self.tolerance!r}")


@dataclass(frozen=True, eq=False)
class Refinement:
    """Where the descent ended, and the way there."""

    h: Tensor
    """(B, 63), always finite: the last iterates, and of hands that have diverged the best ones"""
    energy: dict[str, Tensor]
    """By term ("joints", "feature", "laplacian" and what else has a weight: before their weights; "total": with them),
    (iterations + 1, B): row t is at h'(t). In rows where ``feature_interval`` leaves the CNN out, its term is
    linearised."""
    joints2d_px: Tensor
    """(B, 21, 2) j'_2D as used last"""
    diverged: Tensor
    """(B,) bool: h'(0), an energy or a step was not finite, or the last energy is above the first. Energies are
    compared without a feature term that ``feature_tau_px`` switches, and not at all with ``update_joints2d``, which
    changes what they measure."""
    converged: Tensor
    """(B,) bool: the tolerance let the hand rest"""


def refine(
    dhpe: Estimator,
    images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
    h: Tensor,  # (B, 63)
    joints2d_px: Tensor,  # (B, 21, 2)
    *,
    mask: Tensor | None = None,  # (B, S, S)
    project: Callable[[Tensor], ProjectionLike] | None = None,
    masked_features: FeatureFunction | None = None,
    fused: bool | None = None,
    **options: Any,
) -> Refinement:
    """Refines each hand of a batch on its own, see the module's docstring (Eq. 11).

    A hand whose step or energy is not finite stays where it is and is flagged, as one whose energy ends above where it
    began; the best h of its way is returned, and no NaN ever: entries of `h` that are not finite come back as 0.
    Neither `dhpe` nor any argument is changed; no gradient flows through the refinement. Works under ``torch.no_grad``
    and ``torch.inference_mode``, too.

    Args:
        dhpe: the networks, usually a ``nets.DHPE``.
        images: the crops x.
        h: the first estimate h'(0), ``HandParams.packed()``.
        joints2d_px: j'_2D, pixels of the crop; NaN for joints that are not to count.
        mask: masks in [0, 1] or bool for the silhouette term, where that has a weight.
        project: another f_Proj than ``dhpe.project``, for instance a ``nets.Projector`` of the same ``hand`` and
            ``joint0`` whose silhouette has another gradient.
        masked_features: another form of the feature term than ``nets.MaskedFeatures(dhpe.features, images)``, such as
            one of ``nets.FrozenFeatures``.
        fused: whether ``ops.refine_*`` do the work. None: where they can, which takes a ``nets.Projector`` of mode
            "nmr" or "edge", for masks of the images' size, and an h that is not more precise than the hand model.
        **options: the fields of :class:`RefineOptions`.

    Raises:
        TypeError: an option is unknown.
        ValueError: shapes do not fit, an option is out of range, or `fused` asks for what is not possible.
    """
    chosen = RefineOptions(**options)
    _check(images, h, joints2d_px, mask, chosen.weights)
    if chosen.update_joints2d and _refiner(dhpe) is None:
        raise ValueError("update_joints2d: the network has no f_Ref (mesh_estimator.refiner)")
    given_dtype = h.dtype
    with torch.inference_mode(False), torch.enable_grad(), _in_eval_mode(dhpe.features):
        images, h, joints2d_px = (x.clone() if x.is_inference() else x.detach() for x in (images, h, joints2d_px))
        path = _path(dhpe, images, h, mask, project or dhpe.project, fused, chosen)
        if masked_features is None and (chosen.weights.feature > 0 or chosen.update_joints2d):
            masked_features = MaskedFeatures(dhpe.features, images)
        update = None
        if chosen.update_joints2d:
            update = _UpdateJoints(_refiner(dhpe), masked_features, project or dhpe.project, images.shape[-1])
        is_finite = h.isfinite()
        descent, joints2d_px = _descend(path, h.to(path.dtype), joints2d_px, masked_features, update, chosen)
        not_finite = descent.memory[:, STATUS] == NOT_FINITE
        diverged = not_finite if update else descent.diverged
        h = torch.where(diverged[:, None] & (update is None), descent.best_h, descent.h)
        h = torch.where(is_finite, h, 0) if not_finite.any() else h
    energies = descent.energies.permute(2, 1, 0)
    shown = [name for name in TERMS if name in (*PAPER_TERMS, "total") or getattr(chosen.weights, name) > 0]
    return Refinement(
        h.to(given_dtype),
        {name: energies[TERMS.index(name)] for name in shown},
        joints2d_px,
        diverged,
        descent.converged,
    )


class _Path(Protocol):
    """f_Proj and the geometric part of the iterations."""

    dtype: torch.dtype
    """of h"""

    def mask(self, h: Tensor) -> Tensor:
        """f_Ren of the mesh of h: (B, S, S), detached."""

    def descend(
        self,
        h: Tensor,  # (B, 63)
        memory: Tensor,  # (B, 195)
        joints2d_px: Tensor,  # (B, 21, 2)
        feature: FeatureTerm | None,
        iterations: int,
        *,
        evaluate_end: bool,
    ) -> Descent:
        """As ``ops.refine_descend``."""


def _descend(
    path: _Path,
    h: Tensor,  # (B, 63)
    joints2d_px: Tensor,  # (B, 21, 2)
    masked_features: FeatureFunction | None,
    update: _UpdateJoints | None,
    options: RefineOptions,
) -> tuple[Descent, Tensor]:
    """All iterations, in one call wherever neither F nor f_Ref comes between; and j'_2D as used last."""
    memory, feature, energies = first_memory(h), None, []
    uses_feature, t = options.weights.feature > 0, 0
    while True:
        left, since_feature = options.iterations - t, t % options.feature_interval
        if uses_feature and (left == 0 or since_feature == 0):
            feature = feature_term(masked_features, path.mask(h), with_slope=left > 0)
        steps = left
        if update is not None:
            steps = min(left, 1)
        elif uses_feature:
            steps = min(left, options.feature_interval - since_feature)
        is_last = left == 0 or (update is None and not uses_feature)
        descent = path.descend(h, memory, joints2d_px, feature, steps, evaluate_end=is_last)
        h, memory, t = descent.h, descent.memory, t + steps
        energies.append(descent.energies)
        if is_last:
            return Descent(h, memory, torch.cat(energies, 1)), joints2d_px
        if update is not None:
            joints2d_px = update(h, joints2d_px)


class _FusedPath:
    """By ``ops.refine_*``."""

    def __init__(self, projector: Projector, mask: Tensor | None, options: RefineOptions) -> None:
        self.dtype = projector.hand.hands_mean.dtype
        weights = options.weights
        needs_prior = weights.pose > 0 or weights.limits > 0
        self._model = refine_model(projector.hand, projector.joint0, with_prior=needs_prior)
        self._size, self._mode, self._mask = projector.image_size, projector.silhouette_mode, mask
        self._options = options
        self._rates = options.step_size * options.block_scales.vector(projector.hand.hands_mean)

    def mask(self, h: Tensor) -> Tensor:
        return refine_mask(h, self._model, self._size, self._mode)

    def descend(self, h, memory, joints2d_px, feature, iterations, *, evaluate_end) -> Descent:
        energy = RefineEnergy(
            self._model,
            joints2d_px.to(self.dtype),
            self._size,
            self._options.weights,
            self._mode,
            None if self._mask is None else self._mask.to(self.dtype),
            feature,
            self._options.feature_tau_px,
        )
        return refine_descend(
            h,
            energy,
            self._rates,
            iterations,
            optimizer=self._options.optimizer,
            tolerance=self._options.tolerance,
            evaluate_end=evaluate_end,
            memory=memory,
        )


class _AutogradPath:
    """By autograd over any f_Proj."""

    def __init__(
        self,
        hand: Any,
        project: Callable[[Tensor], ProjectionLike],
        image_size: int,
        mask: Tensor | None,
        h: Tensor,  # (B, 63)
        options: RefineOptions,
    ) -> None:
        self.dtype = torch.promote_types(h.dtype, torch.float32)
        dtype = hand.hands_mean.dtype
        mask = None if mask is None or options.weights.silhouette == 0 else mask.to(dtype)
        self._objective = Objective.of(
            hand, image_size, options.weights, mask=mask, feature_tau_px=options.feature_tau_px
        )
        self._project, self._options = project, options
        self._rates = options.step_size * options.block_scales.vector(h.to(self.dtype))
        self._seen: tuple[Tensor, Tensor, ProjectionLike] | None = None

    def _projection(self, h: Tensor) -> tuple[Tensor, ProjectionLike]:
        """A leaf with the values of h, and its projection; those of the h seen last are kept."""
        if self._seen is None or self._seen[0] is not h:
            leaf = h.detach().requires_grad_()
            self._seen = h, leaf, self._project(leaf)
        return self._seen[1:]

    def mask(self, h: Tensor) -> Tensor:
        return self._projection(h)[1].mask.detach()

    def descend(self, h, memory, joints2d_px, feature, iterations, *, evaluate_end) -> Descent:
        options, rows = self._options, []
        for t in range(iterations + evaluate_end):
            leaf, projection = self._projection(h)
            energy = self._objective.energy(leaf, projection, joints2d_px, feature)
            zero = torch.zeros_like(energy["total"])
            terms = torch.stack([energy.get(name, zero).detach() for name in TERMS], 1)
            rows.append(terms)
            is_end = t == iterations
            memory = noted(
                memory,
                h,
                (terms[:, -1], rank_of(terms, options.weights, options.feature_tau_px)),
                is_exact=t == 0 or options.weights.feature == 0,
                tolerance=0.0 if is_end else options.tolerance,
            )
            if not is_end:
                (gradient,) = torch.autograd.grad(energy["total"].sum(), leaf)
                h, memory = stepped(memory, h, gradient, self._rates, options.optimizer)
        return Descent(h, memory, torch.stack(rows, 1))


def _path(
    dhpe: Estimator,
    images: Tensor,  # (B, 3, S, S)
    h: Tensor,  # (B, 63)
    mask: Tensor | None,  # (B, S, S)
    project: Callable[[Tensor], ProjectionLike],
    fused: bool | None,
    options: RefineOptions,
) -> _Path:
    obstacle = None
    projector = project.__self__.projector if getattr(project, "__func__", None) is DHPE.project else project
    if not isinstance(projector, Projector) or type(projector).forward is not Projector.forward:
        obstacle = "f_Proj is no nets.Projector"
    elif projector.silhouette_mode not in MODES:
        obstacle = f"silhouette_mode is {projector.silhouette_mode!r}, not one of {', '.join(map(repr, MODES))}"
    elif projector.image_size != images.shape[-1]:
        obstacle = f"masks have {projector.image_size} pixels a side, images {images.shape[-1]}"
    elif torch.promote_types(h.dtype, projector.hand.hands_mean.dtype) != projector.hand.hands_mean.dtype:
        obstacle = f"h is {h.dtype}, the hand model {projector.hand.hands_mean.dtype}"
    if fused and obstacle is not None:
        raise ValueError(f"fused: not possible, as {obstacle}")
    if fused is False or obstacle is not None:
        return _AutogradPath(dhpe.hand, project, images.shape[-1], mask, h, options)
    return _FusedPath(projector, mask, options)


def _refiner(dhpe: Estimator) -> Callable[..., Tensor] | None:
    return getattr(getattr(dhpe, "mesh_estimator", None), "refiner", None)


@dataclass(frozen=True, eq=False)
class _UpdateJoints:
    """j'_2D(t + 1) = f_Ref([j'_2D(t), F(x), h'(t + 1), f_Reg(v')]), in the unit interval inside (Eq. 6)."""

    refiner: Callable[..., Tensor]
    masked_features: FeatureFunction
    project: Callable[[Tensor], ProjectionLike]
    size: int

    @torch.no_grad()
    def __call__(self, h: Tensor, joints2d_px: Tensor) -> Tensor:
        joints_norm = 0.5 * self.project(h).joints + 0.5
        features = self.masked_features.features
        return self.size * self.refiner(joints2d_px / self.size, features, h, joints_norm.to(h.dtype))


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


def _check(images: Tensor, h: Tensor, joints2d_px: Tensor, mask: Tensor | None, weights: EnergyWeights) -> None:
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
    if weights.silhouette > 0 and mask is None:
        raise ValueError(f"mask: the silhouette term has weight {weights.silhouette}, got no mask")
    if mask is None:
        return
    if not isinstance(mask, Tensor) or not (mask.is_floating_point() or mask.dtype == torch.bool):
        given = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask: expected a floating-point or bool tensor, got {given}")
    if mask.shape != (batch, *images.shape[2:]):
        raise ValueError(f"mask: expected {(batch, *images.shape[2:])}, got {tuple(mask.shape)}")
