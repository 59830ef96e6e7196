"""Draws the sample picture and writes its known answer: ``python -m dhpe_fast.data.make_demo [FOLDER]``.

The same hand model gives the same files; run it again when the default hand changes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from dhpe_fast.data.demo import DEMO_IMAGE
from dhpe_fast.data.pictures import draw_hand
from dhpe_fast.data.rendered import PosedHand, RenderedHand, place
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.anatomy import joint_axes, named_poses

IMAGE_SIZE = (480, 480)
SEED = 24
TONE = 0.28
SPAN = 0.74
BETAS = (0.6, -0.4, 0.3, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0)
QUAT = (0.4917, 0.3513, 0.3767, 0.7022)
"""An open palm, fingers up and turned to the side."""


def demo_view() -> tuple[RenderedHand, np.ndarray]:
    """The hand, its camera, and its picture."""
    model = HandModel.default()
    axes = joint_axes(model.rest_joints_m().double().numpy(), model.rest_tips_m().double().numpy())
    pose = named_poses(axes)["relaxed"]
    quat = torch.tensor(QUAT)
    hand = PosedHand(torch.from_numpy(pose).float(), torch.tensor(BETAS), quat / torch.linalg.vector_norm(quat))
    rng = np.random.default_rng(SEED)
    view = place(model, hand, IMAGE_SIZE, rng, pinhole=True, span=SPAN)
    return view, draw_hand(model, view.verts_m, view.camera, IMAGE_SIZE, rng, tone=TONE)


def write_demo(folder: Path) -> None:
    """Writes hand.png and hand.json."""
    view, image = demo_view()
    camera = {key: getattr(view.camera, key) for key in ("fx", "fy", "cx", "cy")}
    answer = {
        "image": "hand.png",
        "image_size": IMAGE_SIZE,
        "units": "keypoints in pixels; joints and vertices in metres, camera frame: x right, y down, z away",
        "side": view.side,
        "order": "std",
        "camera": {"type": "Pinhole", **camera},
        "keypoints": view.joints2d_px.double().numpy().round(3).tolist(),
        "joints_m": view.joints_m.double().numpy().round(6).tolist(),
        "verts_m": view.verts_m.double().numpy().round(6).tolist(),
    }
    done, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise RuntimeError("OpenCV could not encode the picture as PNG")
    for name, data in (("hand.png", png.tobytes()), ("hand.json", (json.dumps(answer) + "\n").encode())):
        (folder / name).write_bytes(data)
        print(f"{folder / name}: {len(data) / 1024:.0f} KiB")


if __name__ == "__main__":
    write_demo(Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO_IMAGE.parent)
