"""Tiny data sets in the layouts of the real ones, written from their descriptions without the readers' code.

Joints are found by name: a hand is a dict of 'wrist', 'palm' and ('index', 2), and each layout lists the names in the
order in which it stores them. Images are black but for a dot at each joint; places in them count pixel centres at half
numbers.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.io import savemat
from scipy.spatial.transform import Rotation
from synthetic_mano import _Python2Pickler

FINGERS = ("thumb", "index", "middle", "ring", "little")
STD = ["wrist"] + [(finger, bone) for finger in FINGERS for bone in range(4)]
"""The package's order: base to tip."""
RHD = ["wrist"] + [(finger, bone) for finger in FINGERS for bone in (3, 2, 1, 0)]
STB = ["palm"] + [(finger, bone) for finger in FINGERS[::-1] for bone in range(4)]

Joint = Any
Hand = dict[Joint, np.ndarray]


def hand_at(seed: int, center_m: Sequence[float], *, mirrored: bool = False) -> Hand:
    """A flat hand of adult size, turned at random, with its middle MCP at `center_m`."""
    rng = np.random.default_rng(seed)
    hand = {"wrist": np.array((0.0, 0.095, 0.0))}
    for i, finger in enumerate(FINGERS):
        base = np.array((-0.05 + 0.022 * i, -0.005 * (i in (1, 3)), 0.0)) if i else np.array((-0.035, 0.065, 0.01))
        bone = 0.030 if i else 0.028
        direction = np.array((0.12 * (i - 2), -1.0, 0.15)) if i else np.array((-0.8, -0.6, 0.1))
        for j in range(4):
            hand[finger, j] = base + bone * j * direction / np.linalg.norm(direction)
    hand["palm"] = 0.5 * (hand["wrist"] + hand["middle", 0])
    turn, origin = Rotation.random(random_state=rng.integers(2**31)).as_matrix(), hand["middle", 0]
    side = np.array((-1.0, 1.0, 1.0)) if mirrored else 1.0
    return {name: turn @ ((place - origin) * side) + center_m for name, place in hand.items()}


def rows(hand: Hand, order: Sequence[Joint]) -> np.ndarray:
    """(21, 3) in that order."""
    return np.array([hand[name] for name in order])


def pixels(points_m: np.ndarray, fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Pinhole projection, written out."""
    return np.array([(fx * x / z + cx, fy * y / z + cy) for x, y, z in points_m])


def dots(places_px: np.ndarray, width: int, height: int, radius: int = 2) -> np.ndarray:
    """(H, W, 3) uint8 BGR: an image with a smooth white dot at each place, also between pixels."""
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.zeros((height, width))
    for u, v in places_px:
        image = np.maximum(image, np.exp(-0.5 * ((x - u) ** 2 + (y - v) ** 2) / (0.5 * radius) ** 2))
    return np.repeat(np.rint(255 * image).astype(np.uint8)[..., None], 3, axis=2)


def write_picture(file: Path, picture: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), picture)


@dataclass
class Written:
    """What is on the disk: for each image the hands, and places and sizes to compare with."""

    root: Path
    hands: list[Any]


def python2_pickle(content: Any) -> bytes:
    stream = io.BytesIO()
    _Python2Pickler(stream, 2).dump(content)
    return stream.getvalue()


RHD_K = np.array([[280.0, 0, 160], [0, 280, 160], [0, 0, 1]])


def rhd_entry(left: Hand, right: Hand, visible: np.ndarray) -> dict[str, np.ndarray]:
    """The annotation of one image; `visible` is (42,)."""
    xyz = np.concatenate([rows(left, RHD), rows(right, RHD)])
    uv = pixels(xyz, 280, 280, 160, 160)
    return {"xyz": xyz, "uv_vis": np.concatenate([uv, visible[:, None]], axis=1), "K": RHD_K.copy()}


def write_rhd(root: Path, n: int, split: str = "training", *, python2: bool = True) -> Written:
    """Even images show the left hand better, odd ones the right hand; the mask says the opposite.

    The mask is id 17 (left palm) in columns 0..9 of odd, and id 33 (right palm) there of even images.
    """
    folder, entries, hands = root / split, {}, []
    for i in range(n):
        left, right = hand_at(i, (-0.03, 0.01, 0.55), mirrored=True), hand_at(100 + i, (0.05, -0.02, 0.6))
        visible = np.ones(42)
        visible[(21 if i % 2 == 0 else 0) :][:3] = 0  # wrist, thumb tip and next of the worse hand
        entries[i] = rhd_entry(left, right, visible)
        picture = dots(entries[i]["uv_vis"][:, :2], 320, 320)
        write_picture(folder / "color" / f"{i:05d}.png", picture)
        mask = np.zeros((320, 320), np.uint8)
        mask[:, :10] = 17 if i % 2 else 33
        mask[:4, 300:] = 1
        write_picture(folder / "mask" / f"{i:05d}.png", mask)
        hands.append((left, right))
    data = python2_pickle(entries) if python2 else pickle.dumps(entries)
    (folder / f"anno_{split}.pickle").write_bytes(data)
    return Written(root, hands)


def write_stb(root: Path, sequences: Sequence[str], n: int = 3, *, images_level: bool = True) -> Written:
    """Images are 640 x 480 and black; labels as the left BB camera and the SK depth camera measure them."""
    hands = []
    for s, sequence in enumerate(sequences):
        labels = {"BB": np.zeros((3, 21, n)), "SK": np.zeros((3, 21, n))}
        for i in range(n):
            hand = hand_at(10 * s + i, (0.03, 0.0, 0.6), mirrored=True)
            hands.append(hand)
            for array in labels.values():
                for j, name in enumerate(STB):
                    array[:, j, i] = 1000 * hand[name]
            folder = root / "images" / sequence if images_level else root / sequence
            for picture in ("BB_left", "BB_right", "SK_color", "SK_depth"):
                write_picture(folder / f"{picture}_{i}.png", np.zeros((480, 640, 3), np.uint8))
        (root / "labels").mkdir(exist_ok=True)
        for camera, array in labels.items():
            savemat(root / "labels" / f"{sequence}_{camera}.mat", {"handPara": array})
    return Written(root, hands)


DEXTER = ("Grasp1", "Grasp2", "Occlusion", "Pinch", "Rigid", "Rotate")


def write_dexter_object(root: Path, n: int = 3) -> Written:
    """The tip of the thumb is missed in the second image of each sequence, all tips in the third."""
    hands = []
    for s, sequence in enumerate(DEXTER):
        folder, lines = root / "data" / sequence, []
        for i in range(n):
            hand = hand_at(20 * s + i, (0.02, 0.01, 0.5), mirrored=True)
            fields = []
            for finger in FINGERS:
                x, y, z = 1000 * hand[finger, 3]
                missed = i == 2 or (i == 1 and finger == "thumb")
                fields.append("0,0,32001" if missed else f" {-x:.4f}, {-y:.4f}, {z:.4f}")
            lines.append(";".join([*fields, "1,2,3", "4,5,6"]))
            write_picture(folder / "color" / f"Color_{i + 1:04d}.bmp", np.zeros((480, 640, 3), np.uint8))
            hands.append(hand)
        (folder / "annotations").mkdir(parents=True)
        (folder / "annotations" / f"{sequence}3D.txt").write_text("\n".join(lines) + "\n")
    return Written(root, hands)


def write_freihand(root: Path, n: int = 3, *, labelled_evaluation: bool = False) -> Written:
    """Four blocks of n training images, n masks, and n evaluation images; the mask is rows 50..99."""
    hands = [hand_at(i, (0.01, 0.0, 0.5)) for i in range(n)]
    xyz = [rows(hand, STD).tolist() for hand in hands]
    verts = [np.full((778, 3), 0.1 * i).tolist() for i in range(n)]
    contents = {
        "K": [[[300.0 + i, 0, 112], [0, 301.0 + i, 112], [0, 0, 1]] for i in range(n)],
        "scale": [float(np.linalg.norm(hand["middle", 0] - hand["middle", 1])) for hand in hands],
    }
    for split in ("training", "evaluation"):
        labels = {"xyz": xyz, "verts": verts} if split == "training" or labelled_evaluation else {}
        root.mkdir(exist_ok=True, parents=True)
        for key, value in {**contents, **labels}.items():
            (root / f"{split}_{key}.json").write_text(json.dumps(value))
        for i in range(4 * n if split == "training" else n):
            picture = np.full((224, 224, 3), 10 * i, np.uint8)
            write_picture(root / split / "rgb" / f"{i:08d}.jpg", picture)
    mask = np.zeros((224, 224), np.uint8)
    mask[50:100] = 255
    for i in range(n):
        write_picture(root / "training" / "mask" / f"{i:08d}.jpg", mask)
    return Written(root, hands)
