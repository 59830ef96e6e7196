"""A fitted hand with a known answer, made without fitting: what ``fit`` returns for a hand seen perfectly."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from dhpe_fast.conventions import MIDDLE_MCP
from dhpe_fast.hand import CropBox, HandModel, HandParams


def known_fit(side: str = "right", image_size: tuple[int, int] = (240, 320)) -> SimpleNamespace:
    """The fields of HandFit: the mean hand, its back to the camera and fingers up, mid-image."""
    height, width = image_size
    model = HandModel.default(side)
    params = HandParams.initial(model)
    # Fingers from -x (right) or +x (left) to up, -y in the image, about the axis of the camera; then the back
    # is turned.
    half = 0.5**0.5
    quat = (half, 0.0, 0.0, half) if side == "right" else (half, 0.0, 0.0, -half)
    params = HandParams(
        params.pose,
        params.shape,
        torch.tensor([quat]),
        torch.tensor([[8.0]]),
        torch.tensor([[0.05, -0.1, 0.0]]),
    )
    crop = CropBox((width / 2, height / 2), 0.9 * height)
    mesh = model.decode(params)
    root = mesh.joints_m[0, MIDDLE_MCP]
    scale = float(params.scale)
    camera = crop.weak_perspective(scale, root.tolist())
    joints_m = (mesh.joints_m[0] - root) / scale
    joints2d_px = camera.project(joints_m)
    keypoints2d_px = joints2d_px.clone()
    keypoints2d_px[7] = torch.nan
    return SimpleNamespace(
        side=side,
        verts_m=(mesh.verts_m[0] - root) / scale,
        joints_m=joints_m,
        joints2d_px=joints2d_px,
        faces=model.faces,
        mask=torch.zeros(height, width, dtype=torch.bool),
        params=params,
        model=model,
        crop=crop,
        camera=camera,
        keypoints2d_px=keypoints2d_px,
        confidence=torch.ones(21),
        score=0.9,
        residuals={"joints2d_px": 0.0, "joints2d_box": float("nan")},
        timings_ms={"fit": 1.0},
        iterations=50,
        converged=True,
    )
