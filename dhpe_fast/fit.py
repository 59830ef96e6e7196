"""One image in, hands out: evidence, first estimate, refinement, and the answer in the image's own frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from dhpe_fast import first_estimate
from dhpe_fast.conventions import CROP_SIZE_PX, MIDDLE_MCP
from dhpe_fast.evidence import EvidenceSource, HandEvidence, SourceName, evidence_source, given_hands
from dhpe_fast.hand import CropBox, HandModel, HandParams, Pinhole
from dhpe_fast.hand.derived_models import copied_model, default_model, derived, mirrored_model, moved_model
from dhpe_fast.hand.mirror import mirror_pose
from dhpe_fast.hand_fit import HandFit, Side
from dhpe_fast.image import read_image, read_mask
from dhpe_fast.ops import silhouette
from dhpe_fast.projection import CropCamera, PerspectiveCrop, ScaledOrthographic
from dhpe_fast.refinement.gauss_newton import (
    Evidence2d,
    HandConstants,
    HandState,
    Objective,
    Refined,
    Weights,
    best,
    minimize,
)
from dhpe_fast.rotation import matrix_to_quaternion
from dhpe_fast.stages import StageClock, stage_table
from dhpe_fast.torch_settings import plain_torch

MOST_NOISE = 0.1
"""Joints are never thought to be worse than this standard deviation, crop units."""
SEEN_SILHOUETTE = 100.0
"""Weight (``Weights.silhouette``) of a silhouette that an evidence source sees; a caller's is believed more."""
TOLERANCE = 1e-5
"""The final refinement has converged when its steps lower the energy by less than this fraction."""
NEAREST_M = 0.03
"""Where a perspective fit starts, no joint is closer to the camera's plane than this."""
OUTLYING = 4.0
"""A joint this many times farther from the middle of the hand than the median joint is left out of the crop."""
MIN_FOCAL = 0.1
"""Shortest focal length that is believed, as a fraction of the image's longer side: a field of view of 157 degrees."""


def fit(
    image: np.ndarray | Tensor | str | os.PathLike[str],
    *,
    keypoints: Any = None,
    order: str = "std",
    boxes: Any = None,
    mask: Any = None,
    hand: Literal["auto", "right", "left"] = "auto",
    model: HandModel | None = None,
    camera: Pinhole | Any = None,
    iterations: int = 50,
    device: torch.device | str | None = None,
    evidence: SourceName | EvidenceSource = "auto",
    profile: bool = False,
) -> HandFit | list[HandFit]:
    """Recovers the dense 3D hand, or hands, of one RGB image.

    The solver is Levenberg-Marquardt (:mod:`dhpe_fast.refinement.gauss_newton`) on 2D joints, natural poses, ranges of
    motion, the mesh's Laplacian and, where there is one, the mask. It starts on the skeleton, from what a network takes
    the joints for and from views of typical poses (:mod:`dhpe_fast.first_estimate`), and goes on from the best three of
    these on the mesh. On the CPU both searches are compiled ops on one thread; on CUDA the first is, and the second
    runs as tensors. What is around them (network, alignment, the answer) is torch on either.

    Joints that a caller gives are believed to be exact. Those of an evidence source err, from picture to picture by
    more or less: they are believed as far as the source says (``HandEvidence.noise_px``), or where it does not, as far
    as they look like those of a hand, which the network tells.

    Args:
        image: RGB array (H, W, 3) uint8, a path, or a tensor; :func:`dhpe_fast.image.read_image` says what else.
        keypoints: 2D joints in pixels of the image, (21, 2), (21, 3) with confidences, or (N, 21, 2 | 3) for N hands.
        order: joint order of the keypoints, a key of ``conventions.JOINT_ORDERS``.
        boxes: (N, 4) left, top, right, bottom: where an evidence source should look, instead of everywhere.
        mask: silhouette of the hand, (H, W), or (N, H, W) for N hands; see :func:`dhpe_fast.image.read_mask`. None is
            what the evidence source sees, if it does.
        hand: which hand it is. "auto" takes the side from the evidence source. Plain 2D joints cannot tell: a right
            hand and the mirrored left hand have the same image up to perspective. So with keypoints, "auto" is decided
            by perspective where `camera` is given, and is the right hand otherwise. With the package's networks, a side
            that is given is the only one looked for.
        model: a hand model; None is the package's own.
        camera: intrinsics, a Pinhole or a matrix K (3, 3); the result is then metric in the camera's frame. None fits a
            weak-perspective camera.
        iterations: the most steps of the final refinement; it stops earlier when it has converged.
        device: where to compute; None is the model's device.
        evidence: who supplies 2D joints when `keypoints` is None: "networks" (the package's own; at most four hands),
            "mediapipe", "auto" (MediaPipe where it is installed, else the networks), or any callable of the protocol
            :class:`dhpe_fast.evidence.EvidenceSource`.
        profile: print where the time went, the stages of ``HandFit.timings_ms``, a column for each hand; and which
            solver ran.

    Returns:
        One HandFit for keypoints of one hand; a list otherwise, empty when the source found no hand.

    Raises:
        ValueError, TypeError: for bad input, naming the argument.
        ImportError: when MediaPipe is asked for and not installed; as a ``pretrained.WeightsError``, when weights of
            the package are missing or damaged.
    """
    clock = StageClock()
    with plain_torch():
        options = FitOptions.of(hand, model, camera, iterations, device)
        pixels = read_image(image)
        clock.lap("read")
        found, single = [], False
        if keypoints is not None:
            if boxes is not None:
                raise ValueError("boxes: give either keypoints or boxes; keypoints already say where the hands are")
            found, single = given_hands(keypoints, order=order, image_size=pixels.shape[:2])
    if keypoints is None:  # with the caller's threads, autocast and device: it may run a large network
        found = evidence_source(evidence, side=options.side, device=options.model.faces.device)(pixels, boxes)
        options = replace(options, estimate_noise=True)
    with plain_torch():
        masks = _masks(mask, len(found), pixels.shape[:2])
        clock.lap("evidence")
        fits = [_fit_hand(pixels.shape[:2], e, m, options, clock.copy()) for e, m in zip(found, masks, strict=True)]
    if profile:
        print(stage_table([one.timings_ms for one in fits]))
        print(f"solver: {solver_name(options.model.faces.device)}")
    return fits[0] if single else fits


def solver_name(device: torch.device) -> str:
    """What minimises the energy there, in words."""
    how = "compiled" if device.type == "cpu" else "skeleton compiled, mesh as tensors"
    return f"Levenberg-Marquardt, {how}, on {device}"


@dataclass(frozen=True)
class FitOptions:
    """What the caller knows and wants, checked."""

    side: Side | None
    model: HandModel
    camera: Pinhole | None
    iterations: int
    estimate_noise: bool = False
    """Whether joints are believed as far as they look like those of a hand; else they are as exact as can be."""

    @classmethod
    def of(cls, hand: str, model: Any, camera: Any, iterations: Any, device: Any) -> FitOptions:
        """Checks the arguments of ``fit`` of these names; the model is the default hand, on the device, if need be."""
        if hand not in ("auto", "right", "left"):
            raise ValueError(f"hand: expected 'auto', 'right' or 'left', got {hand!r}")
        if model is not None and not isinstance(model, HandModel):
            raise TypeError(f"model: expected a HandModel or None, got {type(model).__name__}")
        if isinstance(iterations, bool) or not isinstance(iterations, Integral) or iterations < 0:
            raise ValueError(f"iterations: expected a whole number >= 0, got {iterations!r}")
        if camera is not None and not isinstance(camera, Pinhole):
            camera = Pinhole.from_matrix(camera)
        model = default_model() if model is None else model
        if device is not None and torch.device(device) != model.faces.device:
            model = moved_model(model, torch.device(device))
        elif model.faces.is_inference():
            model = copied_model(model)
        return cls(None if hand == "auto" else hand, model, camera, int(iterations))


def _fit_hand(
    image_size: tuple[int, int],
    evidence: HandEvidence,
    mask: np.ndarray | None,
    options: FitOptions,
    clock: StageClock,
) -> HandFit:
    view, refined = search_hand(image_size, evidence, mask, options, clock)
    return answer(view, refined, evidence, image_size, mask, clock)


def search_hand(
    image_size: tuple[int, int],
    evidence: HandEvidence,
    mask: np.ndarray | None,
    options: FitOptions,
    clock: StageClock,
) -> tuple[View, Refined]:
    """The hand that explains the evidence best, of all alignments and, where the side is not known, of both sides."""
    side = options.side or evidence.side
    unknown: list[Side] = ["right"] if options.camera is None else ["right", "left"]
    sides = unknown if side is None else [side]
    views = views_of(image_size, evidence, mask, options, sides)
    clock.lap("crop")
    begun = [_starts(view) for view in views]
    views = [
        replace(view, hand=first_estimate.expecting(view.hand, one)) for view, one in zip(views, begun, strict=True)
    ]
    if options.estimate_noise and evidence.noise_px is None:
        views = [replace(view, weights=_believing(begun)) for view in views]
    rough = [
        first_estimate.finalists(view.model, view.hand, view.evidence, one.state, view.weights)
        for view, one in zip(views, begun, strict=True)
    ]
    clock.lap("first_estimate")
    refined = [_refine_finalists(view, guess, options.iterations) for view, guess in zip(views, rough, strict=True)]
    winner = min(range(len(sides)), key=lambda i: float(refined[i].energy))
    clock.lap("refine")
    if not bool(refined[winner].energy.isfinite()):
        raise ValueError(f"camera: no hand in front of {options.camera} has such keypoints")
    return views[winner], refined[winner]


def views_of(
    image_size: tuple[int, int],
    evidence: HandEvidence,
    mask: np.ndarray | None,
    options: FitOptions,
    sides: Sequence[Side],
) -> list[View]:
    """The evidence in its crop, as a hand of each of these sides."""
    _check_camera(options.camera, image_size)
    joints_px = _undistorted(evidence.joints2d_px, options.camera)
    trusted = _trusted(joints_px, evidence.confidence)
    crop = CropBox.from_points(joints_px[trusted], around="box")
    if mask is not None and not crop.crop_image(mask).any():
        raise ValueError("mask: no pixel of it lies near the keypoints; is it the mask of this hand and image?")
    ideal = replace(evidence, joints2d_px=joints_px)
    return [View.of(ideal, trusted, mask, crop, options, side) for side in sides]


@dataclass(frozen=True)
class View:
    """One hand's evidence as its model sees it: mirrored if the model is of the other side."""

    side: Side
    model: HandModel
    hand: HandConstants
    evidence: Evidence2d
    trusted: np.ndarray
    """(21,) bool: joints that the first alignment believes"""
    crop: CropBox
    camera: Pinhole | None
    solver_camera: CropCamera
    mirrored: bool
    weights: Weights = field(default_factory=Weights)

    @classmethod
    def of(
        cls,
        evidence: HandEvidence,  # without lens distortion
        trusted: np.ndarray,  # (21,) bool
        mask: np.ndarray | None,  # as the camera sees it
        crop: CropBox,
        options: FitOptions,
        side: Side,
    ) -> View:
        """Brings the evidence into the crop."""
        device, camera = options.model.faces.device, options.camera
        mirrored = side != options.model.side
        flip = torch.tensor([-1.0 if mirrored else 1.0, 1.0], dtype=torch.float64)
        confidence = torch.from_numpy(evidence.confidence).double()
        joints = crop.to_crop(torch.from_numpy(evidence.joints2d_px))
        joints = torch.where(confidence[:, None] > 0, joints, 0.0) * flip
        weights = _weights(0.0 if evidence.noise_px is None else 2 * evidence.noise_px / crop.size_px)
        crop_mask = None
        if mask is not None:
            crop_mask = torch.from_numpy(_cropped_mask(mask, crop, camera))
        elif evidence.silhouette is not None:
            crop_mask = torch.from_numpy(evidence.silhouette.at(_places_px(crop, camera)))
            weights = replace(weights, silhouette=SEEN_SILHOUETTE)
        if crop_mask is not None:
            crop_mask = (crop_mask.flip(1) if mirrored else crop_mask).to(device)
        solver_camera: CropCamera = ScaledOrthographic()
        if camera is not None:
            half = 0.5 * crop.size_px
            center = crop.to_crop(torch.tensor([camera.cx, camera.cy], dtype=torch.float64)) * flip
            solver_camera = PerspectiveCrop((camera.fx / half, camera.fy / half), tuple(center.tolist()))
        return cls(
            side=side,
            model=options.model,
            hand=_constants_of(options.model),
            evidence=Evidence2d(joints.to(device), confidence.to(device), crop_mask),
            trusted=trusted,
            crop=crop,
            camera=camera,
            solver_camera=solver_camera,
            mirrored=mirrored,
            weights=weights,
        )


def _starts(view: View) -> first_estimate.Starts:
    """Of the joints that are not too far off."""
    trusted = torch.from_numpy(view.trusted).to(view.evidence.joints.device)
    confidence = torch.where(trusted, view.evidence.confidence, 0.0)
    return first_estimate.starts(view.model, view.hand, replace(view.evidence, confidence=confidence))


def _believing(begun: Sequence[first_estimate.Starts]) -> Weights:
    """Weights for joints with the noise that they have to the side that explains them better."""
    return _weights(min((one.noise for one in begun if one.noise is not None), default=0.0))


def _weights(noise: float) -> Weights:
    """For joints of this standard deviation, crop units."""
    exact = Weights()
    return replace(exact, joint_sigma=min(max(noise, exact.joint_sigma), MOST_NOISE))


def _refine_finalists(view: View, guess: Refined, iterations: int) -> Refined:
    """From each finalist, under the camera that is known."""
    state = guess.state
    if isinstance(view.solver_camera, PerspectiveCrop):
        state = _in_perspective(view.model, view.solver_camera, state)
    return refine_from(view, state, iterations)


def refine_from(view: View, state: HandState, iterations: int) -> Refined:
    """The mesh objective from each of some states (in the view's crop and camera); the best of where they end."""
    objective = Objective(view.model, view.hand, view.evidence, view.solver_camera, view.weights)
    return best(minimize(objective, state, iterations=iterations, tolerance=TOLERANCE, race=True))


def _in_perspective(model: HandModel, camera: PerspectiveCrop, state: HandState) -> HandState:
    """The state under the true camera: at the depth where its size at the root is that of the orthographic image."""
    dtype = model.hands_mean.dtype
    joints_m = model.joints_m(state.pose.to(dtype), state.betas.to(dtype)).to(state.cam.dtype)
    turned = joints_m @ state.rotation.transpose(1, 2)
    root = turned[:, MIDDLE_MCP]
    scale = state.cam[:, :1].exp()
    root_image = root[:, :2] * scale + state.cam[:, 1:]
    focal = state.cam.new_tensor(camera.focal)
    nearest = (root[:, 2:] - turned[..., 2]).amax(1, keepdim=True)  # of the joints, towards the camera from the root
    depth = torch.maximum(focal.mean() / scale, nearest + NEAREST_M)
    xy = (root_image - state.cam.new_tensor(camera.center)) / focal * depth
    return HandState(state.pose, state.betas, state.rotation, torch.cat([xy, depth], dim=1) - root)


def answer(
    view: View,
    refined: Refined,
    evidence: HandEvidence,
    image_size: tuple[int, int],
    mask: np.ndarray | None,
    clock: StageClock,
) -> HandFit:
    """From the solver's crop frame (of the mirrored view, perhaps) to the image's."""
    state = unmirrored(view, refined.state) if view.mirrored else refined.state
    model = mirrored_model(view.model) if view.mirrored else view.model
    dtype = model.hands_mean.dtype
    mesh = model(state.pose.to(dtype), state.betas.to(dtype))
    points = torch.cat([mesh.verts_m[0], mesh.joints_m[0]]).double() @ state.rotation[0].T
    root, cam = points[len(mesh.verts_m[0]) + MIDDLE_MCP], state.cam[0]
    if view.camera is None:
        scale, trans = cam[0].exp(), torch.cat([cam[1:], cam.new_zeros(1)])
        camera = view.crop.weak_perspective(float(scale), (scale * root + trans).tolist())
        points = points - root
    else:
        camera, points = view.camera, points + cam
        scale, trans = _as_weak_perspective(view, root, root + cam)
    verts_m, joints_m = points.float().split([len(points) - 21, 21])
    quat = matrix_to_quaternion(state.rotation)
    parts = (state.pose, state.betas, quat, scale.reshape(1, 1), trans.reshape(1, 3))
    joints2d_px = camera.project(joints_m)
    rendered = _drawn(torch.cat([camera.project(verts_m), verts_m[:, 2:]], dim=-1), model.faces, image_size)
    twin = copied_model(model)
    residuals = _residuals(joints2d_px, evidence, rendered, mask, refined)
    clock.lap("render")
    return HandFit(
        side=view.side,
        verts_m=verts_m,
        joints_m=joints_m,
        joints2d_px=joints2d_px,
        faces=model.faces.clone(),
        mask=rendered,
        params=HandParams(*(part.float() for part in parts)),
        model=twin,
        crop=view.crop,
        camera=camera,
        keypoints2d_px=torch.from_numpy(evidence.joints2d_px).float().to(verts_m.device),
        confidence=torch.from_numpy(evidence.confidence).float().to(verts_m.device),
        score=evidence.score,
        residuals=residuals,
        timings_ms=clock.stages_ms,
        iterations=int(refined.iterations),
        converged=bool(refined.converged),
    )


def _drawn(
    verts_px: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    image_size: tuple[int, int],
) -> Tensor:  # (H, W) bool
    """The silhouette; of the image, only what the hand spans is looked at."""
    mask = torch.zeros(image_size, dtype=torch.bool, device=verts_px.device)
    size = verts_px.new_tensor(image_size[::-1])
    low, high = verts_px[:, :2].amin(0).floor(), verts_px[:, :2].amax(0).ceil()
    whole = ~(low + high).isfinite()  # behind the camera
    low, high = torch.where(whole, 0.0, low).clamp_min(0), torch.where(whole, size, high).minimum(size)
    left, top, right, bottom = (int(value) for value in torch.cat([low, high]).tolist())
    if left < right and top < bottom:
        window = verts_px - torch.nn.functional.pad(low, (0, 1))
        mask[top:bottom, left:right] = silhouette(window, faces, (bottom - top, right - left)) > 0.5
    return mask


def _as_weak_perspective(view: View, root: Tensor, root_in_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and translation of the crop frame that agree with the true camera at the root."""
    half = 0.5 * view.crop.size_px
    scale = view.camera.focal_px / half / root_in_camera[2]
    image = view.crop.to_crop(_ideal(view.camera).project(root_in_camera))
    return scale, torch.cat([image - scale * root[:2], scale.new_zeros(1)])


def _residuals(
    joints2d_px: Tensor, evidence: HandEvidence, rendered: Tensor, mask: np.ndarray | None, refined: Refined
) -> dict[str, float]:
    seen = evidence.confidence > 0
    keypoints = evidence.joints2d_px[seen]
    distance = np.linalg.norm(joints2d_px.cpu().double().numpy()[seen] - keypoints, axis=1)
    mean_px = float(np.average(distance, weights=evidence.confidence[seen]))
    box_px = float(np.ptp(keypoints, axis=0).max())
    residuals = {"joints2d_px": mean_px, "joints2d_box": mean_px / box_px, "energy": float(refined.energy)}
    if mask is not None:
        ours = rendered.cpu().numpy()
        residuals["mask_iou"] = float((ours & mask).sum() / max((ours | mask).sum(), 1))
    return residuals


def unmirrored(view: View, state: HandState) -> HandState:
    """The state of the hand in the image, from that of its mirror image; and back."""
    reflect = state.cam.new_tensor((-1.0, 1.0, 1.0))
    rotation = state.rotation * torch.outer(reflect, reflect)
    return HandState(mirror_pose(state.pose), state.betas, rotation, view.solver_camera.mirrored(state.cam))


def _undistorted(points_px: np.ndarray, camera: Pinhole | None) -> np.ndarray:
    """Pixels as the camera would give them without its lens distortion; the solver knows ideal pinholes only."""
    if camera is None or not any(camera.dist):
        return points_px
    return _ideal(camera).project(camera.unproject(torch.from_numpy(points_px), 1.0)).numpy()


def _trusted(joints_px: np.ndarray, confidence: np.ndarray) -> np.ndarray:  # (21, 2), (21,) -> (21,) bool
    """Joints that were seen, without those far away from the others: they would blow up the crop."""
    seen = confidence > 0
    distance = np.abs(joints_px - np.median(joints_px[seen], axis=0)).max(1)
    near = seen & (distance <= OUTLYING * np.median(distance[seen]))
    return near if np.ptp(joints_px[near], axis=0).max() > 0 else seen


def _check_camera(camera: Pinhole | None, image_size: tuple[int, int]) -> None:
    shortest = MIN_FOCAL * max(image_size)
    if camera is not None and min(camera.fx, camera.fy) < shortest:
        raise ValueError(
            f"camera: focal lengths ({camera.fx:.4g}, {camera.fy:.4g}) px are too short for an image of "
            f"{image_size[1]} x {image_size[0]} px, at least {shortest:.4g} are expected; is K in pixels of this image?"
        )


def _cropped_mask(mask: np.ndarray, crop: CropBox, camera: Pinhole | None) -> np.ndarray:  # (224, 224) float32
    """The mask over the crop, without the camera's lens distortion."""
    if camera is None or not any(camera.dist):
        return crop.crop_image(mask.astype(np.float32), CROP_SIZE_PX)
    source = _places_px(crop, camera).astype(np.float32) - 0.5  # OpenCV counts pixel centres at whole numbers
    return cv2.remap(mask.astype(np.float32), source[..., 0], source[..., 1], cv2.INTER_LINEAR)


def _places_px(crop: CropBox, camera: Pinhole | None) -> np.ndarray:  # (224, 224, 2)
    """Where in the image, as the camera sees it, the pixels of the crop are, which has no lens distortion."""
    ticks = (torch.arange(CROP_SIZE_PX, dtype=torch.float64) + 0.5) * (2 / CROP_SIZE_PX) - 1
    places_px = crop.from_crop(torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1))
    if camera is None or not any(camera.dist):
        return places_px.numpy()
    return camera.project(_ideal(camera).unproject(places_px, 1.0)).numpy()


def _ideal(camera: Pinhole) -> Pinhole:
    return Pinhole(camera.fx, camera.fy, camera.cx, camera.cy)


def _masks(mask: Any, count: int, image_size: tuple[int, int]) -> Sequence[np.ndarray | None]:
    if mask is None:
        return [None] * count
    masks = read_mask(mask)
    if masks.shape[-2:] != tuple(image_size):
        raise ValueError(f"mask: expected height and width {tuple(image_size)} of the image, got {masks.shape}")
    masks = masks[None] if masks.ndim == 2 else masks
    if len(masks) != count:
        raise ValueError(f"mask: expected one for each of the {count} hands, got {len(masks)}")
    return list(masks)


def _constants_of(model: HandModel) -> HandConstants:
    return derived(model, "solver constants", lambda: HandConstants.of(model))
