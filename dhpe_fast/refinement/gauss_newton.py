"""Test-time refinement: damped Gauss-Newton on the evidence of one image.

The objective is that of the paper's Eq. 11 in the form that needs no network: 2D joints, the mesh Laplacian, the
silhouette where there is a mask, and in place of a learned estimate priors on pose (natural poses, ranges of motion)
and shape. Joints and priors are sums of squares with analytic Jacobians, so a step solves the 61 x 61 normal equations
(Levenberg-Marquardt); the mesh terms enter with their gradient from the compiled ops.

The 61 local parameters of a hand: pose 45 | shape 10 | rotation 3 (about the camera's axes) | camera 3.

``minimize`` runs as one compiled op where there is one (:mod:`dhpe_fast.ops.newton`): on the CPU, and on CUDA for the
skeleton's energy. With `compiled=False`, and for the mesh on CUDA, it is what is written here.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, replace

import torch
from torch import Tensor

from dhpe_fast.conventions import N_ARTICULATED, N_POSE, N_SHAPE
from dhpe_fast.hand.kinematics import TIP_OF_CHAIN, RestSkeleton, pose_skeleton, skeleton_jacobian
from dhpe_fast.hand.model import HandModel
from dhpe_fast.hand.pose_prior import PosePrior
from dhpe_fast.losses import cotangent_laplacian, laplacian_loss, silhouette_iou_loss
from dhpe_fast.ops.newton import (
    CONVERGED,
    NewtonEvidence,
    NewtonHand,
    NewtonMesh,
    NewtonState,
    newton_minimize,
)
from dhpe_fast.ops.refine import SparseMatrix
from dhpe_fast.projection import CropCamera, PerspectiveCrop, ScaledOrthographic
from dhpe_fast.rotation import axis_angle_to_matrix, cross_matrix

POSE = slice(0, N_POSE)
SHAPE = slice(N_POSE, N_POSE + N_SHAPE)
ROTATION = slice(SHAPE.stop, SHAPE.stop + 3)
CAMERA = slice(ROTATION.stop, ROTATION.stop + 3)
N_LOCAL = CAMERA.stop

MAX_DAMPING = 1e3
"""A hypothesis whose steps are still rejected at this damping is at its minimum."""

MAX_CAMERA_STEP = 0.5
"""Longest change of a rotation or camera parameter in one step: radians, log scale, crop units, metres."""

IDLE_STEPS = 3
"""So many steps running that gain little are the end."""


@dataclass(frozen=True)
class Weights:
    """How much each term counts. Every term is a squared distance over a squared standard deviation."""

    joint_sigma: float = 0.01
    """Standard deviation of a 2D joint, crop units (about 0.75 % of the keypoints' box)."""
    outlier_sigmas: float = 8.0
    """Around this many standard deviations a joint begins to lose its say: one wrong keypoint bends no hand."""
    pose: float = 1.0
    shape: float = 1.0
    limit_sigma_rad: float = 0.03
    """Standard deviation of an angle beyond its range of motion."""
    beta_limit: float = 2.0
    """Betas beyond this are outside of what the shape space was made for ..."""
    beta_limit_sigma: float = 0.2
    """... with this standard deviation."""
    silhouette: float = 500.0
    """Per unit of 1 - IoU."""
    laplacian: float = 1.0
    """Per unit of the template's own Laplacian."""


@dataclass(frozen=True)
class HandState:
    """A batch of hypotheses, float64."""

    pose: Tensor
    """(B, 45) axis-angle"""
    betas: Tensor
    """(B, 10)"""
    rotation: Tensor
    """(B, 3, 3) model axes to camera axes"""
    cam: Tensor
    """(B, 3) parameters of the crop camera"""

    def __getitem__(self, index: Tensor | slice) -> HandState:
        return HandState(self.pose[index], self.betas[index], self.rotation[index], self.cam[index])

    def moved(self, delta: Tensor) -> HandState:  # (B, 61)
        """The state after a local step."""
        return HandState(
            self.pose + delta[:, POSE],
            self.betas + delta[:, SHAPE],
            axis_angle_to_matrix(delta[:, ROTATION]) @ self.rotation,
            self.cam + delta[:, CAMERA],
        )

    def where(self, choose: Tensor, other: HandState) -> HandState:  # (B,) bool
        """Takes this state where `choose` holds, the other elsewhere."""
        return HandState(
            torch.where(choose[:, None], self.pose, other.pose),
            torch.where(choose[:, None], self.betas, other.betas),
            torch.where(choose[:, None, None], self.rotation, other.rotation),
            torch.where(choose[:, None], self.cam, other.cam),
        )


@dataclass(frozen=True)
class HandConstants:
    """What the solver derives from a hand model, once."""

    rest: RestSkeleton
    prior: PosePrior
    laplacian: Tensor
    """(V, V), divided by the template's own loss."""
    compiled_hand: NewtonHand
    compiled_mesh: NewtonMesh
    """The same for the compiled op."""

    @classmethod
    def of(cls, model: HandModel) -> HandConstants:
        """Derives them."""
        template = model.basis.v_template
        laplacian = cotangent_laplacian(template, model.faces)
        laplacian = laplacian / laplacian_loss(template, laplacian)
        rest, prior = RestSkeleton.of(model).to(torch.float64), PosePrior.of(model)
        return cls(rest, prior, laplacian, _newton_hand(rest, prior), _newton_mesh(model, laplacian))

    def reshaped(self, model: HandModel) -> HandConstants:
        """Those of the same hand with another mean shape or other shape directions: prior and Laplacian stay."""
        rest = RestSkeleton.of(model).to(torch.float64)
        mesh = self.compiled_mesh._replace(basis=model.basis)
        return replace(self, rest=rest, compiled_hand=_newton_hand(rest, self.prior), compiled_mesh=mesh)

    def expecting(self, pose: Tensor) -> HandConstants:  # (45,)
        """Those of a hand whose pose is expected to be like this one, instead of like the mean of all hands."""
        mean = pose.to(self.prior.mean)
        return replace(self, prior=replace(self.prior, mean=mean), compiled_hand=self.compiled_hand._replace(mean=mean))


@dataclass(frozen=True)
class Evidence2d:
    """What one image says about one hand, in its crop."""

    joints: Tensor
    """(21, 2) crop units; any value where the weight is zero"""
    confidence: Tensor
    """(21,) in [0, 1]"""
    mask: Tensor | None = None
    """(S, S) in [0, 1] over the crop"""


@dataclass(frozen=True)
class Refined:
    """Where the solver ended."""

    state: HandState
    energy: Tensor
    """(B,)"""
    iterations: Tensor
    """(B,) steps taken"""
    converged: Tensor
    """(B,) bool: the energy is finite, and three steps running did not lower it by the tolerance"""

    @property
    def diverged(self) -> Tensor:
        """(B,) bool: no finite energy was found; the state is the start, or the mean hand if that was not finite."""
        return ~self.energy.isfinite()


@dataclass(frozen=True)
class Objective:
    """The energy of hypotheses for one hand in one image."""

    model: HandModel
    hand: HandConstants
    evidence: Evidence2d
    camera: CropCamera
    weights: Weights = field(default_factory=Weights)
    use_mesh: bool = True
    """Whether joints come from the mesh and mesh terms count; else the skeleton alone (tips rigid with their bones)."""

    def energy(self, state: HandState) -> Tensor:
        """(B,) half the weighted sum of squares; infinite where a point is behind the camera or not finite."""
        if self.use_mesh:
            mesh_energy, joints_m = self._mesh_terms(state)
        else:
            mesh_energy, joints_m = 0.0, pose_skeleton(self.hand.rest, state.pose, state.betas).joints_m
        distance_sq = self._joint_distance_sq(joints_m, state)
        joint = 0.5 * distance_sq / (1 + distance_sq / self.weights.outlier_sigmas**2)  # Geman and McClure 1987
        total = (self.evidence.confidence * joint).sum(-1) + mesh_energy
        total = total + 0.5 * self.weights.pose * self.hand.prior.energy(state.pose)
        total = total + 0.5 * self.weights.shape * state.betas.square().sum(-1)
        limits = self.hand.prior.violation(state.pose) / self.weights.limit_sigma_rad
        total = total + 0.5 * limits.square().sum(-1)
        excess = self._beta_excess(state) / self.weights.beta_limit_sigma
        total = total + 0.5 * excess.square().sum(-1)
        return torch.where(total.isfinite(), total, torch.inf)

    def normal_equations(self, state: HandState) -> tuple[Tensor, Tensor]:
        """Gauss-Newton matrix (B, 61, 61) and gradient (B, 61) of the energy."""
        skeleton = pose_skeleton(self.hand.rest, state.pose, state.betas)
        by_pose, by_betas = skeleton_jacobian(self.hand.rest, skeleton)
        mesh_energy, mesh_gradient, joints_m = None, None, skeleton.joints_m
        if self.use_mesh:
            mesh_energy, mesh_gradient, joints_m = self._mesh_gradient(state)
        turned = joints_m @ state.rotation.transpose(-1, -2)
        by_point, by_cam = self.camera.jacobians(turned, state.cam)
        by_rotation = -cross_matrix(turned)
        by_local = state.rotation[:, None] @ torch.cat([by_pose, by_betas], dim=-1)
        jacobian = torch.cat([by_point @ torch.cat([by_local, by_rotation], dim=-1), by_cam], dim=-1)
        residual = self._residual(turned, state)
        distance_sq = residual.square().sum(-1) / self.weights.joint_sigma**2
        say = (1 + distance_sq / self.weights.outlier_sigmas**2) ** -2
        weight = self.evidence.confidence * say / self.weights.joint_sigma**2
        weighted = (jacobian * weight[..., None, None]).flatten(1, 2)
        matrix = weighted.transpose(1, 2) @ jacobian.flatten(1, 2)
        gradient = (weighted.transpose(1, 2) @ residual.flatten(1)[..., None])[..., 0]
        if mesh_energy is not None:
            # The mesh terms as one residual r with r^2 / 2 = energy: its Gauss-Newton matrix is g g^T / (2 energy).
            gradient = gradient + mesh_gradient
            outer = mesh_gradient[:, :, None] * mesh_gradient[:, None, :]
            matrix = matrix + outer / (2 * mesh_energy).clamp_min(1e-6)[:, None, None]
        self._add_priors(state, matrix, gradient)
        return matrix, gradient

    def _add_priors(self, state: HandState, matrix: Tensor, gradient: Tensor) -> None:
        prior, weights = self.hand.prior, self.weights
        offset = state.pose - prior.mean
        gradient[:, POSE] += weights.pose * (offset @ prior.precision)
        matrix[:, POSE, POSE] += weights.pose * prior.precision
        excess = self._beta_excess(state)
        gradient[:, SHAPE] += weights.shape * state.betas + excess / weights.beta_limit_sigma**2
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        diagonal[:, SHAPE] += weights.shape + (excess != 0) / weights.beta_limit_sigma**2
        violation = prior.violation(state.pose) / weights.limit_sigma_rad**2
        gradient[:, POSE] += violation @ prior.axes
        outside = (violation != 0).to(matrix.dtype) / weights.limit_sigma_rad**2
        matrix[:, POSE, POSE] += prior.axes.T @ (outside[..., None] * prior.axes)

    def _beta_excess(self, state: HandState) -> Tensor:  # (B, 10), signed
        return state.betas - state.betas.clamp(-self.weights.beta_limit, self.weights.beta_limit)

    def _joint_distance_sq(self, joints_m: Tensor, state: HandState) -> Tensor:  # (B, 21) squared deviations
        residual = self._residual(joints_m @ state.rotation.transpose(-1, -2), state)
        return residual.square().sum(-1) / self.weights.joint_sigma**2

    def _residual(self, turned: Tensor, state: HandState) -> Tensor:  # (B, 21, 2) crop units
        joints = torch.where(self.evidence.confidence[:, None] > 0, self.evidence.joints, 0.0)
        return self.camera.project(turned, state.cam)[..., :2] - joints

    def _mesh_terms(self, state: HandState) -> tuple[Tensor, Tensor]:
        """Energy of the mesh terms (B,) and the joints (B, 21, 3), in the model's precision, differentiable."""
        model = self.model
        dtype = model.hands_mean.dtype
        mesh = model(state.pose.to(dtype), state.betas.to(dtype))
        energy = self.weights.laplacian * laplacian_loss(mesh.verts_m, self.hand.laplacian)
        mask = self.evidence.mask
        if mask is not None:
            turned = mesh.verts_m @ state.rotation.to(dtype).transpose(-1, -2)
            verts = self.camera.project(turned, state.cam.to(dtype))
            size = mask.shape[-1]
            verts_px = torch.cat([(verts[..., :2] + 1) * (0.5 * size), verts[..., 2:]], dim=-1)
            target = mask.to(dtype).expand(len(verts_px), -1, -1)
            loss = silhouette_iou_loss(verts_px, model.faces, target)
            visible = verts_px.isfinite().all(-1).all(-1)  # else the silhouette would be that of a part
            energy = energy + self.weights.silhouette * torch.where(visible, loss, torch.nan)
        return energy.to(state.pose.dtype), mesh.joints_m.to(state.pose.dtype)

    def _mesh_gradient(self, state: HandState) -> tuple[Tensor, Tensor, Tensor]:
        """Energy (B,) of the mesh terms, its gradient (B, 61) by the local parameters, and the joints."""
        with torch.enable_grad():
            local = torch.zeros(len(state.pose), N_LOCAL, dtype=state.pose.dtype, device=state.pose.device)
            local.requires_grad_()
            energy, joints_m = self._mesh_terms(state.moved(local))
            (gradient,) = torch.autograd.grad(energy.sum(), local)
        return energy.detach(), gradient, joints_m.detach()


def minimize(
    objective: Objective,
    state: HandState,
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
    race: bool = False,
    compiled: bool = True,
) -> Refined:
    """Minimises the objective from each hypothesis of a batch, independently (Levenberg-Marquardt).

    A step is kept only where it lowers the energy, so the result is never worse than the start, and never NaN: a start
    that is not finite ends as the mean hand with infinite energy.

    Args:
        objective: what to minimise.
        state: B hypotheses.
        iterations: the most steps taken.
        tolerance: a hypothesis has converged when three of its steps running have lowered its energy by less than this
            fraction of 1 + energy, or short steps do not lower it. It then rests.
        race: only the best hypothesis matters: one that would not overtake it at the rate of its last step that was
            kept rests.
        compiled: run the compiled op where there is one; False is the torch version.
    """
    with torch.no_grad():
        if compiled and _has_op(objective, race):
            return _minimize_compiled(objective, state, iterations, tolerance, race)
        state, finite = _mean_where_not_finite(objective, state)
        energy = torch.where(finite, objective.energy(state), torch.inf)
        damping = torch.full_like(energy, 1e-2)
        idle = torch.where(finite, 0, IDLE_STEPS)
        resting = ~finite
        last_gain = torch.full_like(energy, torch.inf)
        steps = torch.zeros_like(idle)
        for taken in range(1, iterations + 1):
            if bool(resting.all()):
                break
            matrix, gradient = objective.normal_equations(state)
            trial = state.moved(_damped_step(matrix, gradient, damping))
            trial_energy = objective.energy(trial)
            better = (trial_energy < energy) & ~resting
            last_gain = torch.where(better, energy - trial_energy, last_gain)
            state, energy = trial.where(better, state), torch.where(better, trial_energy, energy)
            damping = torch.where(better, damping * 0.2, damping * 6).clamp(1e-7, 1e7)
            # A rejected step says nothing yet: the next one is shorter.
            small = torch.where(better, last_gain <= tolerance * (1 + energy), damping > MAX_DAMPING)
            idle = torch.where(resting, idle, torch.where(small, idle + 1, torch.where(better, 0, idle)))
            steps = steps + ~resting
            resting = resting | (idle >= IDLE_STEPS)
            if race:
                resting = resting | (energy - energy.min() > last_gain * (iterations - taken))
    return Refined(state, energy, steps, (idle >= IDLE_STEPS) & energy.isfinite())


def _mean_where_not_finite(objective: Objective, state: HandState) -> tuple[HandState, Tensor]:
    parts = (state.pose, state.betas, state.rotation, state.cam)
    finite = torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)
    mean = HandState(
        objective.hand.prior.mean.expand_as(state.pose),
        torch.zeros_like(state.betas),
        torch.eye(3, dtype=state.pose.dtype, device=state.pose.device).expand_as(state.rotation),
        torch.zeros_like(state.cam),
    )
    return state.where(finite, mean), finite


def _has_op(objective: Objective, race: bool) -> bool:
    camera_known = isinstance(objective.camera, (ScaledOrthographic, PerspectiveCrop))
    on_cpu = objective.evidence.joints.device.type == "cpu"
    return camera_known and (on_cpu or not (objective.use_mesh or race))


def _minimize_compiled(
    objective: Objective, state: HandState, iterations: int, tolerance: float, race: bool
) -> Refined:
    evidence, camera = objective.evidence, objective.camera
    intrinsics = None
    if isinstance(camera, PerspectiveCrop):
        intrinsics = state.cam.new_tensor([[*camera.focal, *camera.center]])
    mask = evidence.mask if objective.use_mesh else None
    found = newton_minimize(
        NewtonState(state.pose, state.betas, state.rotation, state.cam),
        NewtonEvidence(
            evidence.joints[None],
            evidence.confidence[None],
            intrinsics,
            None if mask is None else mask[None].to(objective.model.hands_mean.dtype),
        ),
        objective.hand.compiled_hand,
        objective.hand.compiled_mesh if objective.use_mesh else None,
        astuple(objective.weights),
        iterations,
        tolerance,
        race,
    )
    return Refined(HandState(*found.state), found.energy, found.steps, found.status == CONVERGED)


def _damped_step(matrix: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
    """-(H + damping * diag(H))^-1 g; zero where the matrix is not positive definite or not finite."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    damped = matrix + torch.diag_embed(diagonal * damping[:, None] + 1e-9)
    finite = damped.isfinite().all(-1).all(-1) & gradient.isfinite().all(-1)
    damped = torch.where(finite[:, None, None], damped, torch.eye(N_LOCAL, dtype=matrix.dtype, device=matrix.device))
    factor, failed = torch.linalg.cholesky_ex(damped)
    good = finite & (failed == 0)
    step = -torch.cholesky_solve(torch.where(finite[:, None], gradient, 0.0)[..., None], factor)[..., 0]
    # Far from the evidence a linear model may throw the hand out of the picture, from where nothing brings it back.
    longest = step[:, ROTATION.start :].abs().amax(1, keepdim=True)
    step = step * (MAX_CAMERA_STEP / longest.clamp_min(MAX_CAMERA_STEP))
    return torch.where(good[:, None], step, 0.0)


def best(refined: Refined) -> Refined:
    """The hypothesis of lowest energy, as a batch of one."""
    winner = refined.energy.argmin().reshape(1)
    return replace(
        refined,
        state=refined.state[winner],
        energy=refined.energy[winner],
        iterations=refined.iterations[winner],
        converged=refined.converged[winner],
    )


def _newton_hand(rest: RestSkeleton, prior: PosePrior) -> NewtonHand:
    """Skeleton and prior as the compiled op takes them."""
    bones_m, bone_dirs = rest.chain.clone(), rest.chain_dirs.clone()
    bones_m[:, 1:] -= rest.chain[:, :-1]
    bone_dirs[:, :, 1:] -= rest.chain_dirs[:, :, :-1]
    axes = prior.axes.reshape(N_ARTICULATED, 3, N_ARTICULATED, 3).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    return NewtonHand(
        torch.cat([rest.wrist[None], bones_m.flatten(0, 1)]),
        torch.cat([rest.wrist_dirs[:, None], bone_dirs.flatten(1, 2)], dim=1).permute(1, 2, 0).contiguous(),
        prior.mean,
        prior.precision,
        axes.contiguous(),
        prior.low,
        prior.high,
    )


def _newton_mesh(model: HandModel, laplacian: Tensor) -> NewtonMesh:
    tips = torch.tensor([model.tip_ids[finger] for finger in TIP_OF_CHAIN], dtype=torch.int32)
    return NewtonMesh(model.basis, tips.to(model.faces.device), model.faces, SparseMatrix.of(laplacian))
