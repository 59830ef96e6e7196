"""The answer: one fitted hand in the frame of its image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from dhpe_fast.hand import CropBox, HandModel, HandParams, Pinhole, WeakPerspective
from dhpe_fast.image import read_image

Side = Literal["right", "left"]


@dataclass(frozen=True, eq=False, repr=False)
class HandFit:
    """A fitted hand. Tensors are float32, detached, on the device of the fit; the image frame is OpenCV's."""

    side: Side
    verts_m: Tensor
    """(778, 3) camera axes, metres. Weak perspective: relative to the middle finger's MCP joint, whose distance such
    a camera cannot know. With intrinsics: absolute, in the camera's frame."""
    joints_m: Tensor
    """(21, 3) STD order, as ``verts_m``."""
    joints2d_px: Tensor
    """(21, 2) image of ``joints_m``."""
    faces: Tensor
    """(1538, 3) counter-clockwise from outside."""
    mask: Tensor
    """(H, W) bool, the rendered silhouette."""
    params: HandParams
    """The same hand in the crop frame (batch of one), for ``model``. With intrinsics: its weak-perspective likeness,
    exact at the middle finger's MCP joint."""
    model: HandModel
    """The hand model of this side; a copy."""
    crop: CropBox
    """The square of the image that the crop frame spans; with a distorting lens, of the image without distortion."""
    camera: WeakPerspective | Pinhole
    """``camera.project(verts_m)`` is in pixels of the image."""
    keypoints2d_px: Tensor
    """(21, 2) the evidence; NaN where there was none."""
    confidence: Tensor
    """(21,) of the evidence, in [0, 1]."""
    score: float
    """How sure the evidence was that this is a hand, in [0, 1]."""
    residuals: dict[str, float]
    """`joints2d_px`: mean distance of joints and evidence, weighted by confidence; `joints2d_box`: the same over the
    longer side of the evidence's bounding box; `energy`: the objective; with a mask also `mask_iou`."""
    timings_ms: dict[str, float]
    """Milliseconds of each stage of this hand; shared stages (reading, evidence) are in every hand of an image."""
    iterations: int
    """Steps of the final refinement."""
    converged: bool

    def __repr__(self) -> str:
        found = ", ".join(f"{name}={value:.4g}" for name, value in self.residuals.items())
        return f"HandFit(side={self.side!r}, {found}, iterations={self.iterations}, converged={self.converged})"

    @property
    def verts2d_px(self) -> Tensor:
        """(778, 2) image of ``verts_m``."""
        return self.camera.project(self.verts_m)

    def overlay(self, image: Any, **options: Any) -> np.ndarray:
        """The mesh and skeleton drawn over an image, (H, W, 3) uint8 RGB; see :func:`dhpe_fast.viz.overlay`."""
        from dhpe_fast import viz

        return viz.overlay(read_image(image), self, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes .glb, .obj, .ply, .npz or .json by suffix; see :func:`dhpe_fast.io.save_fit`."""
        from dhpe_fast import io

        io.save_fit(self, path)
