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
* One gamma for everything, and lambda 1, are literal, and the defaults. With trained networks they diverge: the squared
  distance of features is hundreds of times that of joints, the curvatures of the blocks of h differ by orders of
  magnitude; joints alone then barely move. ``block_scales`` gives each block its own step, ``BALANCED`` is a measured
  choice, with a weight of 1e-4 for features. Every hand gets the best of its iterates; one that ends above where it
  began is flagged besides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dhpe_fast.conventions import H_SIZE, N_JOINTS_STD
from dhpe_fast.nets import DHPE, FeatureExtractor, FrozenFeatures, MaskedFeatures, Projector
from dhpe_fast.ops import (
    Descent,
    EnergyWeights,
    FeatureTerm,
    RefineEnergy,
    RefineModel,
    refine_descend,
    refine_mask,
)
from dhpe_fast.reference.descent_rule import NOT_FINITE, STATUS, first_memory, noted, stepped
from dhpe_fast.reference.refine import MODES, TERMS, rank_of
from dhpe_fast.refinement.constants import refine_model
from dhpe_fast.refinement.cuda_graph import GraphedIteration, Step
from dhpe_fast.refinement.objective import (
    Estimator,
    FeatureFunction,
    Objective,
    ProjectionLike,
    feature_term,
)
from dhpe_fast.refinement.options import RefineOptions

PAPER_TERMS = ("joints", "feature", "laplacian")


@dataclass(frozen=True, eq=False)
class Refinement:
    """Where the descent ended, and the way there."""

    h: Tensor
    """(B, 63), always finite: of each hand the iterate of least energy, its last one unless the energy went up again;
    with ``update_joints2d`` the last iterates. Where ``feature_interval`` leaves the CNN out, iterates in between do
    not compete."""
    energy: dict[str, Tensor]
    """By term ("joints", "feature", "laplacian" and what else has a weight: before their weights; "total": with them),
    (iterations + 1, B): row t is at h'(t). In rows where ``feature_interval`` leaves the CNN out, its term is
    linearised."""
    joints2d_px: Tensor
    """(B, 21, 2) j'_2D as used last"""
    diverged: Tensor
    """(B,) bool: h'(0), an energy or a step was not finite, or the last energy is above the first by more than rounding
    (1e-5 of it). Energies are compared without a feature term that ``feature_tau_px`` switches, and not at all with
    ``update_joints2d``, which changes what they measure."""
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

    The best h of each hand's way is returned. A hand whose step or energy is not finite stays where it is and is
    flagged, as one whose energy ends above where it began. No NaN ever: entries of `h` that are not finite come back
    as 0.
    Neither `dhpe` nor any argument is changed; no gradient flows through the refinement. Works under ``torch.no_grad``
    and ``torch.inference_mode``, too. For many batches, a :class:`Refiner` prepares the networks once.

    Args:
        dhpe: the networks, usually a ``nets.DHPE``.
        images: the crops x.
        h: the first estimate h'(0), ``HandParams.packed()``.
        joints2d_px: j'_2D, pixels of the crop; NaN for joints that are not to count.
        mask: masks in [0, 1] or bool for the silhouette term, where that has a weight.
        project: another f_Proj than ``dhpe.project``, for instance a ``nets.Projector`` of the same ``hand`` and
            ``joint0`` whose silhouette has another gradient.
        masked_features: another form of the feature term than ``nets.MaskedFeatures`` of F and `images`.
        fused: whether ``ops.refine_*`` do the work, around a ``nets.FrozenFeatures`` where F is a
            ``nets.FeatureExtractor``. None: where they can, which takes a ``nets.Projector`` of mode "nmr" or "edge",
            for masks of the images' size, and an h that is not more precise than the hand model.
        **options: the fields of :class:`RefineOptions`.

    Raises:
        TypeError: an option is unknown.
        ValueError: shapes do not fit, an option is out of range, or `fused` asks for what is not possible.
    """
    refiner = Refiner(dhpe, project=project, fused=fused, frozen=masked_features is None, **options)
    return refiner(images, h, joints2d_px, mask=mask, masked_features=masked_features)


class Refiner:
    """``refine`` for many batches, with the same networks and options: what can be prepared is prepared once.

    F is copied and frozen when the refiner is made: later training does not reach it. On CUDA, a full iteration (the
    mask of h, F forwards and backwards, the steps up to its next run) is recorded in a CUDA graph with the first batch
    and replayed for all of the same size, unless a mask or ``update_joints2d`` takes part. The recording is memory that
    every call writes: a refiner is for one thread at a time.

    Attributes:
        options: how it descends.
        not_recorded: why the iterations of the last batch were not replayed; None if they were.
    """

    def __init__(
        self,
        dhpe: Estimator,
        *,
        project: Callable[[Tensor], ProjectionLike] | None = None,
        fused: bool | None = None,
        frozen: bool = True,
        **options: Any,
    ) -> None:
        """Prepares; arguments as of :func:`refine`. Without `frozen`, F runs as it is.

        Raises:
            TypeError: an option is unknown.
            ValueError: an option is out of range, or asks for what the networks do not have.
        """
        self.options = RefineOptions(**options)
        self.not_recorded: str | None = "no batch was refined yet"
        self._dhpe, self._project, self._fused = dhpe, project or dhpe.project, fused
        self._extract = dhpe.features
        self._graph: tuple[RefineModel, GraphedIteration] | None = None
        if self.options.update_joints2d and _refiner(dhpe) is None:
            raise ValueError("update_joints2d: the network has no f_Ref (mesh_estimator.refiner)")
        precision = self.options.feature_precision
        if precision is not None and not isinstance(dhpe.features, FeatureExtractor):
            kind = type(dhpe.features).__name__
            raise ValueError(f"feature_precision: only a nets.FeatureExtractor can have another, F is a {kind}")
        freezes = frozen and isinstance(dhpe.features, FeatureExtractor) and self.options.weights.feature > 0
        if freezes and (fused is not False or precision is not None):
            with torch.inference_mode(False):
                self._extract = FrozenFeatures(dhpe.features, precision)

    def __call__(
        self,
        images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
        h: Tensor,  # (B, 63)
        joints2d_px: Tensor,  # (B, 21, 2)
        *,
        mask: Tensor | None = None,  # (B, S, S)
        masked_features: FeatureFunction | None = None,
    ) -> Refinement:
        """Refines a batch; arguments, result and errors as of :func:`refine`."""
        chosen = self.options
        _check(images, h, joints2d_px, mask, chosen.weights)
        given_dtype = h.dtype
        with torch.inference_mode(False), torch.enable_grad(), _in_eval_mode(self._dhpe.features):
            images, h, joints2d_px = (x.clone() if x.is_inference() else x.detach() for x in (images, h, joints2d_px))
            path = _path(self._dhpe, images, h, mask, self._project, self._fused, chosen)
            recordable = masked_features is None and mask is None and isinstance(path, _FusedPath)
            recordable = recordable and chosen.weights.feature > 0 and not chosen.update_joints2d
            if masked_features is None and (chosen.weights.feature > 0 or chosen.update_joints2d):
                masked_features = MaskedFeatures(self._extract, images, chosen.feature_size)
            update = None
            if chosen.update_joints2d:
                update = self._update(images, masked_features)
            is_finite = h.isfinite()
            h, graph = h.to(path.dtype), None
            if recordable and chosen.iterations >= chosen.feature_interval:
                if self._graph is None or self._graph[0] is not path.model:
                    step = _full_iteration(path, masked_features.without_tensors(), chosen)
                    self._graph = path.model, GraphedIteration(step)
                graph = self._graph[1]
            descent, joints2d_px = _descend(path, h, joints2d_px, masked_features, update, graph, chosen)
            self.not_recorded = "there is nothing to record" if graph is None else graph.reason
            not_finite = descent.memory[:, STATUS] == NOT_FINITE
            diverged = not_finite if update else descent.diverged
            h = descent.h if update else torch.where(_went_up(descent, chosen)[:, None], descent.best_h, descent.h)
            h = torch.where(is_finite, h, 0) if not_finite.any() else h
        energies = descent.energies.permute(2, 1, 0)
        shown = [name for name in TERMS if name in (*PAPER_TERMS, "total") or getattr(chosen.weights, name) > 0]
        energy = {name: energies[TERMS.index(name)] for name in shown}
        return Refinement(h.to(given_dtype), energy, joints2d_px, diverged, descent.converged)

    def _update(self, images: Tensor, masked_features: FeatureFunction) -> _UpdateJoints:
        """f_Ref, which knows F(x) of whole crops in full precision."""
        features = masked_features.features
        if self.options.feature_size is not None or self.options.feature_precision is not None:
            with torch.no_grad():
                features = self._dhpe.features(images)
        return _UpdateJoints(_refiner(self._dhpe), features, self._project, images.shape[-1])


def _went_up(descent: Descent, options: RefineOptions) -> Tensor:  # (B,) bool
    """Whose last iterate is not the best; its energy in the last row is exact, even if the hand came to rest before."""
    last = rank_of(descent.energies[:, -1], options.weights, options.feature_tau_px)
    return ~(last <= descent.best_energy)  # true for NaN


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


def _full_iteration(path: _Path, masked_features: MaskedFeatures, options: RefineOptions) -> Step:
    """A run of F and the steps up to its next one, as a function of (h, memory, energies) and what stays."""

    def step(state: tuple[Tensor, ...], constants: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, memory, _ = state
        joints2d_px, *tensors = constants
        feature = feature_term(masked_features.on(*tensors), path.mask(h), with_slope=True)
        return path.descend(h, memory, joints2d_px, feature, options.feature_interval, evaluate_end=False)

    return step


def _descend(
    path: _Path,
    h: Tensor,  # (B, 63)
    joints2d_px: Tensor,  # (B, 21, 2)
    masked_features: FeatureFunction | None,
    update: _UpdateJoints | None,
    graph: GraphedIteration | None,
    options: RefineOptions,
) -> tuple[Descent, Tensor]:
    """All iterations, in one call wherever neither F nor f_Ref comes between; and j'_2D as used last."""
    memory, feature, energies = first_memory(h), None, []
    uses_feature, t = options.weights.feature > 0, 0
    if graph is not None:
        whole = options.iterations // options.feature_interval
        state = h, memory, h.new_zeros(len(h), options.feature_interval, len(TERMS))
        constants = joints2d_px, *masked_features.tensors
        h, memory, _ = graph(state, constants, whole, watch=lambda state: energies.append(state[2].clone()))
        t = whole * options.feature_interval
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
        self.model = refine_model(projector.hand, projector.joint0, with_prior=needs_prior)
        self._size, self._mode, self._mask = projector.image_size, projector.silhouette_mode, mask
        self._options = options
        self._rates = options.step_size * options.block_scales.vector(projector.hand.hands_mean)

    def mask(self, h: Tensor) -> Tensor:
        return refine_mask(h, self.model, self._size, self._mode)

    def descend(self, h, memory, joints2d_px, feature, iterations, *, evaluate_end) -> Descent:
        energy = RefineEnergy(
            self.model,
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
    features: Tensor
    """(B, N) F(x)"""
    project: Callable[[Tensor], ProjectionLike]
    size: int

    @torch.no_grad()
    def __call__(self, h: Tensor, joints2d_px: Tensor) -> Tensor:
        joints_norm = 0.5 * self.project(h).joints + 0.5
        return self.size * self.refiner(joints2d_px / self.size, self.features, h, joints_norm.to(h.dtype))


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
