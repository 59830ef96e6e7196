"""A data set of rendered hands in the on-disk layout of RHD (Zimmermann and Brox 2017), with exact labels.

Natural poses and shapes of the default hand, skin of any tone under random light, one hand or two, things in front of
them, drawn or photographed backgrounds, motion blur and sensor noise. Every image depends on the seed, the split and
its own number only.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import torch
from torch import Tensor

from dhpe_fast.atomic_write import whole_file, write_whole
from dhpe_fast.conventions import joint_permutation
from dhpe_fast.data.backgrounds import background_files, random_background, random_occluder
from dhpe_fast.data.held_things import held_thing, thing_layers
from dhpe_fast.data.pictures import Sleeve, hand_layer, lay_over, random_light, random_skin, sensor_image
from dhpe_fast.data.recipe import GENERATOR_VERSION, VERSION_KEY
from dhpe_fast.data.rendered import BETA_LIMIT, PosedHand, place
from dhpe_fast.data.thing_meshes import ThingMesh
from dhpe_fast.data.unfinished import SET, unfinished_folder
from dhpe_fast.hand import HandModel, Pinhole
from dhpe_fast.hand.anatomy import joint_axes, sample_gestures, sample_poses
from dhpe_fast.ops import rasterize
from dhpe_fast.rotation import axis_angle_to_quaternion, matrix_to_quaternion, quaternion_to_matrix

SPLITS = ("training", "evaluation")
_IMAGES, _LABELS = ("color", "mask", "depth"), ("xyz", "uv_vis", "K")

MAX_DEPTH_M = 5.0
"""What the largest value of a depth image stands for."""

SECOND_HAND = 0.25
"""Chance that the other hand is in the picture, too."""
OCCLUDER = 0.3
"""Chance that something is before the hand."""
MOTION_BLUR = 0.15
SLEEVE = 0.4
"""Share of the people with sleeves."""
PHOTOGRAPHED = 0.5
"""Share of the backgrounds cut from photographs, where there are any; the others are drawn."""
SHADOWED = 0.35
"""Share of the pictures with cast shadows, which take three times as long."""

SPAN = (0.35, 0.8)
"""Longer side of the hand's bounding box, by the side of the picture."""
_SUPERSAMPLE = 2
_PERSON_ID, _FINGERS = 1, 5
_HIDDEN_BY_M = 0.025
"""A joint is visible unless a surface lies this much nearer to the camera; joints lie inside of the hand."""


@dataclass(frozen=True)
class Recipe:
    """What the pictures of a set have in common."""

    seed: int = 0
    size_px: int = 320
    max_angle_deg: float = 180.0
    """How far hands are turned away from an upright one, seen from the palm or the back; 180 is any orientation."""
    backgrounds: tuple[Path, ...] = ()
    """Photographs; empty for drawn backgrounds."""
    span: tuple[float, float] = SPAN
    """Smallest and largest longer side of a hand's bounding box, by the side of the picture."""
    tone: float | None = None
    """Everybody's place in ``pictures.SKIN_TONES``, 0 (light) to 1 (dark); None is random."""
    gestures: float = 0.0
    """Share of the hands whose poses are of ``anatomy.sample_gestures``."""
    held: float = 0.0
    """Share of the pictures in which a hand holds something; the other hand, where there are two, never does."""

    def __post_init__(self) -> None:
        if self.size_px < 32:
            raise ValueError(f"size_px: expected at least 32 pixels, got {self.size_px}")
        if not 0 <= self.max_angle_deg <= 180:
            raise ValueError(f"max_angle_deg: expected 0 to 180, got {self.max_angle_deg}")
        if not 0.02 <= self.span[0] <= self.span[1] <= 0.9:
            raise ValueError(f"span: expected two numbers from 0.02 to 0.9, the smaller first, got {self.span}")
        if self.tone is not None and not 0 <= self.tone <= 1:
            raise ValueError(f"tone: expected None or a number from 0 to 1, got {self.tone}")
        for name in ("gestures", "held"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")


def write_synthetic(
    root: str | os.PathLike[str],
    n_training: int,
    n_evaluation: int,
    *,
    seed: int = 0,
    size_px: int = 320,
    max_angle_deg: float = 180.0,
    span: tuple[float, float] = SPAN,
    tone: float | None = None,
    backgrounds: str | os.PathLike[str] | None = None,
    gestures: float = 0.0,
    held: float = 0.0,
    workers: int | None = None,
    on_image: Callable[[], None] | None = None,
) -> None:
    """Draws a data set into the folder `root`, which appears when it is complete.

    Written are colour, mask and depth images and the annotation pickle of both splits, readable by this package's and
    by anyone's reader of RHD: ``root/{training,evaluation}/{color,mask,depth}/00000.png``, ``anno_SPLIT.pickle``.
    Beside them, ``root/recipe.json`` has the arguments and ``recipe.GENERATOR_VERSION``: by that file a drawn set is
    told from RHD.

    Until then it is drawn in a folder ``.NAME.unfinished`` beside `root`. After an error, or if the process is killed,
    the same call goes on from there, to the same result as without the interruption.

    Args:
        root: a folder that does not exist yet.
        n_training: number of training images.
        n_evaluation: number of evaluation images.
        seed: of the random numbers.
        size_px: side of the images.
        max_angle_deg: see :class:`Recipe`.
        span: see :class:`Recipe`.
        tone: see :class:`Recipe`.
        backgrounds: a folder of photographs, or ``backgrounds.SCIKIT_IMAGE``: half of the backgrounds are cut from
            them. None draws all.
        gestures: see :class:`Recipe`.
        held: see :class:`Recipe`.
        workers: processes; None is one for each core. The result does not depend on it.
        on_image: called for every image that is there, for instance to move a progress bar.

    Raises:
        FileExistsError: if `root` exists, or has been begun with other arguments or by another generator.
        BlockingIOError: if another process is drawing it.
        ValueError: if a number is out of range or the folder of backgrounds holds no image.
        RuntimeError: if a scene cannot be drawn; says which.
    """
    if n_training < 0 or n_evaluation < 0 or n_training + n_evaluation == 0:
        raise ValueError(f"n_training, n_evaluation: expected some images, got {n_training} and {n_evaluation}")
    files = () if backgrounds is None else background_files(backgrounds)
    recipe = Recipe(seed, size_px, max_angle_deg, files, tuple(span), tone, gestures, held)
    facts = {
        VERSION_KEY: GENERATOR_VERSION,
        "n_training": n_training,
        "n_evaluation": n_evaluation,
        "seed": seed,
        "size_px": size_px,
        "max_angle_deg": float(max_angle_deg),
        "span": [float(side) for side in span],
        "tone": tone,
        "backgrounds": None if backgrounds is None else os.fspath(backgrounds),
        "gestures": float(gestures),
        "held": float(held),
    }
    with unfinished_folder(Path(root), facts) as folder:
        for split, count in zip(SPLITS, (n_training, n_evaluation), strict=True):
            _write_split(folder, split, count, recipe, workers, on_image)


@dataclass(frozen=True)
class _Job:
    """One scene to be drawn, and its files."""

    recipe: Recipe
    split: str
    number: int
    folder: Path

    def image_file(self, kind: str) -> Path:
        return self.folder / SET / self.split / kind / f"{self.number:05d}.png"

    @property
    def labels_file(self) -> Path:
        """The last file of a scene to be written; all are collected at the end."""
        return self.folder / "labels" / self.split / f"{self.number:05d}.npz"

    def is_done(self) -> bool:
        return self.labels_file.exists() and all(self.image_file(kind).exists() for kind in _IMAGES)

    def labels(self) -> dict[str, np.ndarray]:
        with np.load(self.labels_file) as stored:
            return {name: stored[name] for name in _LABELS}


def _write_split(
    folder: Path, split: str, count: int, recipe: Recipe, workers: int | None, on_image: Callable[[], None] | None
) -> None:
    """Draws the scenes that are not there yet, then collects the labels of all."""
    jobs = [_Job(recipe, split, number, folder) for number in range(count)]
    for kind in _IMAGES:
        (folder / SET / split / kind).mkdir(parents=True, exist_ok=True)
    (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not job.is_done()]
    _report([None] * (count - len(missing)), on_image)
    workers = min(os.cpu_count() or 1 if workers is None else workers, max(1, len(missing) // 8))
    if workers <= 1:
        _report(map(_write_scene, missing), on_image)
    else:
        # A forked copy of a process whose torch has threads may wait for them forever.
        with ProcessPoolExecutor(workers, get_context("spawn"), _set_up_worker) as pool:
            _report(pool.map(_write_scene, missing, chunksize=4), on_image)
    annotations = {job.number: job.labels() for job in jobs}
    write_whole(folder / SET / split / f"anno_{split}.pickle", pickle.dumps(annotations, protocol=2))


def _report(scenes: Iterable[None], on_image: Callable[[], None] | None) -> None:
    for _ in scenes:
        if on_image is not None:
            on_image()


def _set_up_worker() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Or the workers of a killed process would wait for it forever."""
    parent_process().join()
    os._exit(1)


def _write_scene(job: _Job) -> None:
    try:
        scene = draw_scene(job.recipe, job.split, job.number)
    except Exception as error:
        where = f"{job.split} scene {job.number} of seed {job.recipe.seed}"
        raise RuntimeError(f"{where} cannot be drawn: {type(error).__name__}: {error}") from error
    for kind, image in zip(_IMAGES, (scene.image[..., ::-1], scene.mask, scene.depth_code[..., ::-1]), strict=True):
        encoded = cv2.imencode(".png", np.ascontiguousarray(image))[1]
        job.image_file(kind).write_bytes(encoded.tobytes())
    labels = (scene.xyz_m, scene.uv_vis, scene.camera.matrix.astype(np.float32))
    with whole_file(job.labels_file) as stream:
        np.savez(stream, **dict(zip(_LABELS, labels, strict=True)))


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture and its labels, as RHD has them."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB"""
    mask: np.ndarray
    """(H, W) uint8: 0 background, 1 person, 2 to 17 left hand, 18 to 33 right hand (three parts a finger, tip first,
    thumb to little; then the palm)"""
    depth_code: np.ndarray
    """(H, W, 3) uint8: depth is 5 m * (256 * R + G) / 65535"""
    xyz_m: np.ndarray
    """(42, 3) float32, left then right hand, RHD order, camera frame"""
    uv_vis: np.ndarray
    """(42, 3) float32: column, row, and 1 where the joint is visible"""
    camera: Pinhole


@dataclass(frozen=True, eq=False)
class _Hand:
    model: HandModel
    verts_m: Tensor  # (778, 3) camera frame
    joints_m: Tensor  # (21, 3)


def draw_scene(recipe: Recipe, split: str, number: int) -> Scene:
    """Picture `number` of a split."""
    rng = np.random.default_rng((recipe.seed, SPLITS.index(split), number))
    size = (recipe.size_px, recipe.size_px)
    side = ("left", "right")[int(rng.integers(2))]
    main, camera = _main_hand(side, recipe, size, rng)
    other = _other_hand(side, main, recipe, rng)
    in_picture = [main, *([other] if rng.random() < SECOND_HAND else [])]
    looks = np.random.default_rng(rng.integers(2**63))  # hands look alike whether something is before them or not
    occluder = np.zeros((*size, 4), np.float32)
    if rng.random() < OCCLUDER:
        occluder = _occluder_before(main, camera, size, rng)
    face_depth, ids = _depth_and_ids(in_picture, camera, size)
    thing = held_thing(main.model.side, main.joints_m, rng) if _chance(recipe.held, rng) else None
    image, person, hidden = _picture(in_picture, face_depth, thing, camera, size, occluder, looks, recipe)
    ids = np.where((ids == 0) & person, _PERSON_ID, ids)
    if other not in in_picture:
        other = _out_of_sight(other, camera)
    hands = {hand.model.side: hand for hand in (main, other)}
    xyz_m = np.concatenate([_rhd(hands[name].joints_m) for name in ("left", "right")])
    return Scene(
        image=image,
        mask=np.where(hidden, 0, ids).astype(np.uint8),
        depth_code=_coded(face_depth),
        xyz_m=xyz_m.astype(np.float32),
        uv_vis=_uv_vis(xyz_m, camera, face_depth, hidden).astype(np.float32),
        camera=camera,
    )


# --- Hands ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _model(side: str) -> HandModel:
    return HandModel.default(side)


def sampled_hand(side: str, recipe: Recipe, rng: np.random.Generator) -> PosedHand:
    """A natural pose or one near a gesture, a shape and an orientation."""
    model = _model(side)
    axes = joint_axes(model.rest_joints_m().double().numpy(), model.rest_tips_m().double().numpy(), side)
    sample = sample_gestures if _chance(recipe.gestures, rng) else sample_poses
    pose = sample(axes, 1, rng)[0]
    betas = np.clip(rng.normal(size=10), -BETA_LIMIT, BETA_LIMIT)
    quat = random_orientation(side, recipe.max_angle_deg, rng)
    return PosedHand(*(torch.from_numpy(part).float() for part in (pose, betas)), quat.float())


def _chance(share: float, rng: np.random.Generator) -> bool:
    """Whether something happens; what never does takes no random number, so that other pictures stay as they are."""
    return share > 0 and bool(rng.random() < share)


def random_orientation(side: str, max_angle_deg: float, rng: np.random.Generator) -> Tensor:
    """A unit quaternion (4,), model frame to camera axes, float64.

    The hand is upright, seen from the palm or the back with the same chance, and then turned about a random axis: by
    any angle up to the largest, or for 180 degrees uniformly over all orientations.
    """
    direction = rng.normal(size=4)
    if max_angle_deg >= 180:
        return torch.from_numpy(direction / np.linalg.norm(direction))
    axis = direction[:3] / np.linalg.norm(direction[:3])
    turn = torch.from_numpy(axis * np.deg2rad(max_angle_deg) * rng.random())
    # Fingers of a right hand point to -x of its model, its palm to -y; of a left hand to +x.
    fingers = -1.0 if side == "right" else 1.0
    palm = 1.0 if rng.random() < 0.5 else -1.0
    columns = np.array([[0, -fingers, 0], [0, 0, palm], [-fingers * palm, 0, 0]])
    upright = torch.from_numpy(np.ascontiguousarray(columns.T))
    rotation = quaternion_to_matrix(axis_angle_to_quaternion(turn)) @ upright
    return matrix_to_quaternion(rotation)


def _main_hand(side: str, recipe: Recipe, size: tuple[int, int], rng: np.random.Generator) -> tuple[_Hand, Pinhole]:
    view = place(_model(side), sampled_hand(side, recipe, rng), size, rng, pinhole=True, span=rng.uniform(*recipe.span))
    return _Hand(view.model, view.verts_m, view.joints_m), view.camera


def _other_hand(side: str, main: _Hand, recipe: Recipe, rng: np.random.Generator) -> _Hand:
    """The other hand of the person, beside the first or across it."""
    other = "left" if side == "right" else "right"
    hand = sampled_hand(other, recipe, rng)
    mesh = _model(other)(hand.pose[None], hand.betas[None])
    turn = quaternion_to_matrix(hand.quat)
    root_m = mesh.joints_m[0].mean(0)
    aside = torch.from_numpy(rng.normal(size=3) * (0.11, 0.08, 0.06)).float()
    target_m = main.joints_m.mean(0) + aside
    moved = [(points_m[0] - root_m) @ turn.T + target_m for points_m in (mesh.verts_m, mesh.joints_m)]
    nearest = torch.stack([points_m[:, 2].min() for points_m in moved]).min()
    back = torch.tensor((0.0, 0.0, max(0.0, 0.15 - float(nearest))))
    return _Hand(_model(other), moved[0] + back, moved[1] + back)


def _out_of_sight(hand: _Hand, camera: Pinhole) -> _Hand:
    """The hand moved to the left until it is out of the image: its labels stay true."""
    depth_m = float(hand.joints_m[:, 2].max())
    to_left = torch.tensor((-2 * depth_m * camera.cx / camera.fx - 0.5, 0.0, 0.0))
    return _Hand(hand.model, hand.verts_m + to_left, hand.joints_m + to_left)


def _rhd(joints_m: Tensor) -> np.ndarray:  # (21, 3)
    return joints_m[list(joint_permutation("std", "rhd"))].double().numpy()


# --- Pixels ---------------------------------------------------------------------------------------------------


def _picture(
    hands: Sequence[_Hand],
    depth_m: np.ndarray,
    thing: ThingMesh | None,
    camera: Pinhole,
    size: tuple[int, int],
    occluder: np.ndarray,
    rng: np.random.Generator,
    recipe: Recipe,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image, where the layers of hands with their forearms are, and where something is before all hands.

    Args:
        hands: those in the picture.
        depth_m: (H, W) of their surfaces.
        thing: what the first of them holds.
        camera: sees all this.
        size: of the picture.
        occluder: (H, W, 4) a layer before all.
        rng: of light, skin and background.
        recipe: the background's photographs and the tone of skin.
    """
    photographs = recipe.backgrounds if rng.random() < PHOTOGRAPHED else ()
    picture, person = random_background(size, rng, photographs), np.zeros(size, bool)
    light = random_light(rng)
    shadows = bool(rng.random() < SHADOWED)
    light = replace(light, shadows=shadows, per_vertex=not shadows)
    skin = random_skin(hands[0].model, rng, recipe.tone)  # both hands are of one person
    sleeve = Sleeve.random(rng) if rng.random() < SLEEVE else None
    in_front = np.zeros((*size, 4), np.float32)
    if thing is not None:
        layer, in_front = thing_layers(thing, depth_m, camera, light, _SUPERSAMPLE)
        picture = lay_over(picture, layer, shadow=rng.uniform(0, 0.5))
    for hand in sorted(hands, key=lambda hand: -float(hand.joints_m[:, 2].mean())):
        layer = hand_layer(hand.model, hand.verts_m, camera, size, skin, light, sleeve, _SUPERSAMPLE)
        picture = lay_over(picture, layer, shadow=rng.uniform(0, 0.5))
        person |= layer[..., 3] > 0.5
    picture = lay_over(lay_over(picture, in_front), occluder)
    if rng.random() < MOTION_BLUR:
        picture = cv2.filter2D(picture.astype(np.float32), -1, _streak(rng.uniform(2, 0.03 * size[0] + 2), rng))
    return sensor_image(picture, rng), person, np.maximum(in_front, occluder)[..., 3] > 0.5


def _streak(length_px: float, rng: np.random.Generator) -> np.ndarray:
    """The kernel of a straight motion."""
    n = 2 * int(np.ceil(length_px / 2)) + 1
    kernel = np.zeros((n, n), np.float32)
    angle = rng.uniform(0, np.pi)
    half = 0.5 * length_px * np.array((np.cos(angle), np.sin(angle)))
    ends = [tuple(int(v) for v in np.rint(n // 2 + sign * half)) for sign in (-1, 1)]
    cv2.line(kernel, *ends, 1.0, 1)
    return kernel / kernel.sum()


def _occluder_before(hand: _Hand, camera: Pinhole, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    points_px = camera.project(hand.verts_m.double()).numpy()
    extent_px = float(np.ptp(points_px, axis=0).max())
    centre = points_px[int(rng.integers(len(points_px)))]
    return random_occluder(size, (float(centre[0]), float(centre[1])), rng.uniform(0.15, 0.45) * extent_px, rng)


def _depth_and_ids(hands: Sequence[_Hand], camera: Pinhole, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Depth in metres, infinite where no hand is, and the mask's ids, of the nearest hand."""
    depth, ids = np.full(size, np.inf), np.zeros(size, np.uint8)
    for hand in hands:
        verts_px = torch.cat([camera.project(hand.verts_m), hand.verts_m[:, 2:]], 1)
        seen = rasterize(verts_px[None], hand.model.faces, size, perspective=True, z_near=0.01)
        face, its_depth = seen.face_index[0].numpy(), seen.depth[0].double().numpy()
        nearer = (face >= 0) & (its_depth < depth)
        depth[nearer] = its_depth[nearer]
        ids[nearer] = _face_ids(hand.model.side)[face[nearer]]
    return depth, ids


@lru_cache(maxsize=2)
def _face_ids(side: str) -> np.ndarray:  # (1538,) uint8
    """RHD's part of each face: that of the joint which moves its corners most."""
    model = _model(side)
    weights = model.arrays()["weights"]  # (778, 16)
    joint = weights[model.faces.long().numpy()].sum(1).argmax(1)
    first = 2 if side == "left" else 18
    # MANO's fingers are index, middle, little, ring, thumb, base to tip; RHD's thumb to little, tip to base.
    finger = np.array((1, 2, 4, 3, 0))[(joint - 1) // 3]
    part = first + 3 * finger + (2 - (joint - 1) % 3)
    return np.where(joint == 0, first + 3 * _FINGERS, part).astype(np.uint8)


def _uv_vis(xyz_m: np.ndarray, camera: Pinhole, depth_m: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    height, width = depth_m.shape
    uv = camera.project(torch.from_numpy(xyz_m)).numpy()
    column, row = np.floor(uv).astype(int).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = column.clip(0, width - 1), row.clip(0, height - 1)
    open_view = (depth_m[row, column] > xyz_m[:, 2] - _HIDDEN_BY_M) & ~hidden[row, column]
    return np.concatenate([uv, (inside & open_view)[:, None]], axis=1)


def _coded(depth_m: np.ndarray) -> np.ndarray:
    code = np.rint(np.minimum(depth_m, MAX_DEPTH_M) / MAX_DEPTH_M * 65535).astype(np.uint16)
    return np.stack([code >> 8, code & 255, np.zeros_like(code)], axis=2).astype(np.uint8)
