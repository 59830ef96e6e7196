"""Cut-out drawings for pictures of people: hands with their forearms, and things that are no hands.

Heads, bare limbs, lumps of skin, tools and bottles are lit and shaded as the hands are, so that neither the colour of
skin nor the look of the renderer tells a hand. Every layer depends on the seed, the split and its own number only.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dhpe_fast.atomic_write import write_whole
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.pictures import (
    FOREARM_M,
    Sleeve,
    forearm_axis,
    hand_layer,
    has_forearm,
    random_light,
    random_skin,
)
from dhpe_fast.data.recipe import GENERATOR_VERSION, VERSION_KEY
from dhpe_fast.data.synthetic import SPLITS, Recipe, sampled_hand
from dhpe_fast.data.thing_meshes import random_thing
from dhpe_fast.hand import HandModel, Pinhole
from dhpe_fast.rotation import quaternion_to_matrix
from dhpe_fast.shading import Lighting

KINDS = ("right", "left", "head", "limb", "lump", "tool")
"""What a layer shows; hands first."""

HAND_PX = 112
"""Longer side of the drawn hands and of the other things."""

_MAX_SIDE_PX = 420
_MARGIN_PX = 4
_DEPTH_M = (0.3, 2.5)
"""How far away hands are, which decides about the perspective."""
_SLEEVE, _SHADOWED, _BARE_WRIST = 0.5, 0.35, 0.12
_THINGS_PER_HAND = 5
"""One other thing is drawn for so many hands."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A drawing to be laid over others."""

    rgba: np.ndarray
    """(H, W, 4) uint8, sRGB and straight alpha"""
    kind: str
    """One of ``KINDS``"""
    joints_px: np.ndarray
    """(21, 2) float32, STD order, of a hand; NaN of other things"""
    elbow_px: np.ndarray
    """(2,) float32: where the drawn forearm ends; NaN where none is"""
    scale_px_per_m: float
    """Size of the drawing, at the distance of what it shows."""


def draw_layer(seed: int, split: str, number: int) -> Layer:
    """Layer `number` of a split: hands, and now and then something else."""
    rng = np.random.default_rng((seed, SPLITS.index(split), number))
    if number % (_THINGS_PER_HAND + 1) == _THINGS_PER_HAND:
        return _draw_thing(rng)
    side = ("right", "left")[int(rng.integers(2))]
    light = replace(random_light(rng), shadows=bool(rng.random() < _SHADOWED))
    sleeve = Sleeve.random(rng) if rng.random() < _SLEEVE else None
    return _draw_hand(side, rng, light, sleeve)


def write_layers(
    root: str | os.PathLike[str],
    n_training: int,
    n_evaluation: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    on_layer: Callable[[], None] | None = None,
) -> None:
    """Draws the layers of both splits into ``root/{training,evaluation}.npz``.

    Args:
        root: a folder; files of it that exist are kept, as a split's file is written when all of it is drawn.
        n_training: number of layers, of which a sixth are no hands.
        n_evaluation: the same of the evaluation split.
        seed: of the random numbers.
        workers: processes; None is one for each core. The result does not depend on it.
        on_layer: called after every layer.

    Raises:
        ValueError: if a number is negative.
    """
    if min(n_training, n_evaluation) < 0:
        raise ValueError(f"n_training, n_evaluation: expected counts, got {n_training} and {n_evaluation}")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    for split, count in zip(SPLITS, (n_training, n_evaluation), strict=True):
        file = root / f"{split}.npz"
        if not file.exists():
            layers = _drawn(seed, split, count, workers, on_layer)
            write_whole(file, _packed(layers, seed))


def read_layers(root: str | os.PathLike[str], split: str, *, seed: int, count: int) -> list[Layer]:
    """The layers of a split.

    Raises:
        DatasetError: if the file is missing or damaged, or holds layers of another seed, number or generator.
    """
    file = Path(root) / f"{split}.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        ends = np.cumsum(held["n_bytes"])
        images = [
            cv2.imdecode(held["png"][end - n : end], cv2.IMREAD_UNCHANGED)
            for end, n in zip(ends, held["n_bytes"], strict=True)
        ]
        drawn = (int(held["seed"]), len(images), int(held.get(VERSION_KEY, 1)))
    except (OSError, ValueError, KeyError, cv2.error) as error:
        raise DatasetError(f"{file}: cannot be read as drawn layers: {error}") from None
    if drawn[:2] != (seed, count):
        raise DatasetError(f"{file}: holds {drawn[1]} layers of seed {drawn[0]}, expected {count} of seed {seed}")
    if drawn[2] != GENERATOR_VERSION:
        raise DatasetError(
            f"{file}: was drawn by version {drawn[2]} of the generator, expected {GENERATOR_VERSION}; remove the file "
            "to draw it anew"
        )
    fields = zip(images, held["kind"], held["joints_px"], held["elbow_px"], held["scale_px_per_m"], strict=True)
    return [
        Layer(np.ascontiguousarray(image[..., [2, 1, 0, 3]]), KINDS[kind], joints, elbow, float(scale))
        for image, kind, joints, elbow, scale in fields
    ]


def _drawn(seed: int, split: str, count: int, workers: int | None, on_layer: Callable[[], None] | None) -> list[Layer]:
    jobs = [(seed, split, number) for number in range(count)]
    workers = min(os.cpu_count() or 1 if workers is None else workers, max(1, count // 8))
    if workers <= 1:
        return _collected(map(_draw_job, jobs), on_layer)
    # A forked copy of a process whose torch has threads may wait for them forever.
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
        return _collected(pool.map(_draw_job, jobs, chunksize=8), on_layer)


def _collected(results, on_layer: Callable[[], None] | None) -> list[Layer]:
    layers = []
    for layer in results:
        layers.append(layer)
        if on_layer is not None:
            on_layer()
    return layers


def _draw_job(job: tuple[int, str, int]) -> Layer:
    return draw_layer(*job)


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _packed(layers: list[Layer], seed: int) -> bytes:
    images = [cv2.imencode(".png", layer.rgba[..., [2, 1, 0, 3]])[1].ravel() for layer in layers]
    stream = io.BytesIO()
    np.savez(
        stream,
        seed=np.int64(seed),
        **{VERSION_KEY: np.int64(GENERATOR_VERSION)},
        png=np.concatenate(images) if images else np.empty(0, np.uint8),
        n_bytes=np.array([len(image) for image in images], np.int64),
        kind=np.array([KINDS.index(layer.kind) for layer in layers], np.int8),
        joints_px=np.array([layer.joints_px for layer in layers], np.float32).reshape(-1, 21, 2),
        elbow_px=np.array([layer.elbow_px for layer in layers], np.float32).reshape(-1, 2),
        scale_px_per_m=np.array([layer.scale_px_per_m for layer in layers], np.float32),
    )
    return stream.getvalue()


# --- Hands ----------------------------------------------------------------------------------------------------


def _draw_hand(side: str, rng: np.random.Generator, light: Lighting, sleeve: Sleeve | None) -> Layer:
    model, verts_m, joints_m = _posed(side, rng)
    center_m, axis = forearm_axis(model, verts_m)
    depth_m = np.exp(rng.uniform(*np.log(_DEPTH_M)))
    scale = HAND_PX / float((verts_m.max(0).values - verts_m.min(0).values)[:2].max())
    focal_px, away_m = scale * depth_m, torch.tensor((0.0, 0.0, float(depth_m)))
    elbow_m = center_m + FOREARM_M * axis
    outline_m = torch.cat([verts_m, elbow_m[None] + 0.05 * torch.eye(3), elbow_m[None] - 0.05 * torch.eye(3)])
    camera, size = _framing(outline_m if has_forearm(axis) else verts_m, focal_px, away_m)
    rgba = hand_layer(model, verts_m + away_m, camera, size, random_skin(model, rng), light, sleeve)
    elbow_px = camera.project((elbow_m + away_m)[None])[0].numpy() if has_forearm(axis) else np.full(2, np.nan)
    joints_px = camera.project(joints_m + away_m).numpy()
    scale_px_per_m = camera.fx / float(depth_m)
    return Layer(_bytes(rgba), side, joints_px.astype(np.float32), elbow_px.astype(np.float32), scale_px_per_m)


@lru_cache(maxsize=2)
def _model(side: str) -> HandModel:
    return HandModel.default(side)


def _posed(side: str, rng: np.random.Generator) -> tuple[HandModel, Tensor, Tensor]:
    """A hand about its middle, in the camera's axes; most are turned so that their forearm is in view."""
    for _ in range(20):
        model = _model(side)
        hand = sampled_hand(side, Recipe(), rng)
        mesh = model(hand.pose[None], hand.betas[None])
        turn = quaternion_to_matrix(hand.quat)
        root_m = mesh.joints_m[0].mean(0)
        verts_m, joints_m = ((points[0] - root_m) @ turn.T for points in (mesh.verts_m, mesh.joints_m))
        if has_forearm(forearm_axis(model, verts_m)[1]) or rng.random() < _BARE_WRIST:
            break
    return model, verts_m, joints_m


def _framing(points_m: Tensor, focal_px: float, away_m: Tensor) -> tuple[Pinhole, tuple[int, int]]:
    """A camera that sees all points, and the size of its image, height and width; of a shorter focal length where that
    would be too large.
    """
    centred = Pinhole(focal_px, focal_px, 0.0, 0.0)
    in_front = points_m + away_m
    points_px = centred.project(in_front[in_front[:, 2] > 0.05])
    longer = float((points_px.max(0).values - points_px.min(0).values).max())
    shrink = min(1.0, (_MAX_SIDE_PX - 2 * _MARGIN_PX - 1) / max(longer, 1.0))  # rounded up, it is still not too large
    focal_px, points_px = shrink * focal_px, shrink * points_px
    low = points_px.min(0).values - _MARGIN_PX
    width, height = (points_px.max(0).values + _MARGIN_PX - low).ceil().int().tolist()
    return Pinhole(focal_px, focal_px, -float(low[0]), -float(low[1])), (height, width)


def _bytes(rgba: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(rgba, 0, 1) * 255).astype(np.uint8)


# --- Other things ---------------------------------------------------------------------------------------------


def _draw_thing(rng: np.random.Generator) -> Layer:
    kind, thing = random_thing(rng)
    extent_m = thing.verts_m.max(0).values - thing.verts_m.min(0).values
    scale = HAND_PX / float(extent_m[:2].max())
    away_m = torch.tensor((0.0, 0.0, float(np.exp(rng.uniform(*np.log(_DEPTH_M))))))
    camera, size = _framing(thing.verts_m, scale * float(away_m[2]), away_m)
    light = replace(random_light(rng), shadows=False)
    rgba = replace(thing, verts_m=thing.verts_m + away_m).drawn(camera, size, light)
    nowhere = np.full((21, 2), np.nan, np.float32)
    return Layer(_bytes(rgba), kind, nowhere, nowhere[0], camera.fx / float(away_m[2]))
