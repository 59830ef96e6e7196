"""The sample picture that ships with the package, a rendered hand, and its known answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.hand import Pinhole
from dhpe_fast.image import read_image

DEMO_IMAGE = Path(__file__).with_name("hand.png")
DEMO_ANSWER = Path(__file__).with_name("hand.json")
"""Readable by ``io.read_keypoints``; written by ``python -m dhpe_fast.data.make_demo``."""


@dataclass(frozen=True, eq=False)
class DemoHand:
    """A picture of one hand and all there is to know of it."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    keypoints2d_px: np.ndarray
    """(21, 2) float64, STD order, exact."""
    side: str
    camera: Pinhole
    joints_m: Tensor
    """(21, 3) float64, STD order, camera frame."""
    verts_m: Tensor
    """(778, 3) float64, camera frame."""


def load_demo() -> DemoHand:
    """Reads the sample picture and its answer."""
    answer = json.loads(DEMO_ANSWER.read_text())
    return DemoHand(
        image=read_image(DEMO_IMAGE),
        keypoints2d_px=np.array(answer["keypoints"]),
        side=answer["side"],
        camera=Pinhole(**{key: answer["camera"][key] for key in ("fx", "fy", "cx", "cy")}),
        joints_m=torch.tensor(answer["joints_m"], dtype=torch.float64),
        verts_m=torch.tensor(answer["verts_m"], dtype=torch.float64),
    )
