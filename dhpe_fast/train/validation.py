"""How good the networks are on crops they were not trained on, and pictures of what they see."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import CROP_SIZE_PX, MIDDLE_MCP
from dhpe_fast.data import HandBatch, apply_colour
from dhpe_fast.data.normalize import Square, denormalize
from dhpe_fast.metrics import joint_distances_mm, joint_distances_px, mask_iou
from dhpe_fast.nets import DHPE, DHPEOutput
from dhpe_fast.train.distributed import World
from dhpe_fast.train.objective import Objective, projected_px
from dhpe_fast.viz import contact_sheet, draw_skeleton

_PICTURES = 6


@torch.no_grad()
def validate(
    model: DHPE, loader: Iterable[HandBatch], processes: World, tau_px: float, *, heatmap_alone: bool = False
) -> dict[str, float]:
    """Mean scores over the crops of all processes, without test-time refinement.

    ``epe_mm``: distance of the joints with the root of both at one place, the true root's depth being known;
    ``joints2d_px``: of the joints in the crop, in pixels of a 224 crop; ``heatmap_px``: the same of f_J2D;
    ``iou``: of the masks; ``below_tau``: the share of crops whose mean 2D distance is below tau (Eq. 10, Fig. 5(f)). An
    estimate that is not finite makes its distances infinite. Always in float32, as the networks are used: scores of
    runs in another precision are then comparable. With `heatmap_alone`, f_J2D alone runs, and the others are NaN.
    """
    model.eval()
    names = ("epe_mm", "joints2d_px", "heatmap_px", "iou", "below_tau")
    totals = torch.zeros(len(names), 2, dtype=torch.float64, device=processes.device)
    for batch in loader:
        batch = apply_colour(batch.to(processes.device))
        if heatmap_alone:
            rows = {"heatmap_px": _heatmap_px(batch, model.estimate_joints2d(batch.images)[1])}
        else:
            rows = _scores(batch, model(batch.images), model.image_size, tau_px)
        for k, name in enumerate(names):
            if name not in rows:
                continue
            known = ~rows[name].isnan()
            totals[k, 0] += rows[name][known].double().sum()
            totals[k, 1] += known.sum()
    totals = processes.mean(totals)
    return {
        name: float(total / count) if count else math.nan for name, (total, count) in zip(names, totals, strict=True)
    }


def joints_in_metres(batch: HandBatch, joints_crop: Tensor) -> Tensor:  # (B, 21, 3) -> (B, 21, 3)
    """Estimated joints in the camera frame, at the true depth of the root.

    The root is the middle MCP; where that is not annotated, the mean of the joints that are.
    """
    square = Square(batch.center_px, batch.size_px, batch.angle)
    z = joints_crop[..., 2]
    mean = torch.where(batch.valid, z, 0.0).sum(-1) / batch.valid.sum(-1).clamp_min(1)
    root = torch.where(batch.valid[:, MIDDLE_MCP], z[:, MIDDLE_MCP], mean)
    relative = torch.cat([joints_crop[..., :2], (z - root[:, None])[..., None]], dim=-1)
    return denormalize(relative, square, batch.camera, batch.root_depth_m)


def picture_grid(batch: HandBatch, objective: Objective) -> np.ndarray:
    """Crops with the true skeleton above the same with the estimated skeleton and mask, (H, W, 3) uint8."""
    rows: list[np.ndarray] = []
    n = min(_PICTURES, len(batch))
    images = (batch.images[:n].float() * 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    masks = np.zeros((n, batch.size, batch.size), np.float32)
    if objective.output is not None:
        masks = objective.output.projection.mask[:n].detach().float().cpu().numpy()
    truth = torch.where(batch.valid[..., None], batch.joints2d_px, torch.nan)[:n].detach().float().cpu().numpy()
    found = objective.joints2d_px[:n].float().cpu().numpy()
    tint = np.array((60.0, 220.0, 120.0))
    for image, joints in zip(images, truth, strict=True):
        rows.append(draw_skeleton(image, joints))
    for image, mask, joints in zip(images, masks, found, strict=True):
        tinted = image * (1 - 0.4 * mask[..., None]) + 0.4 * mask[..., None] * tint
        finite = np.isfinite(joints).all()
        rows.append(draw_skeleton(tinted.astype(np.uint8), joints) if finite else tinted.astype(np.uint8))
    return contact_sheet(rows, columns=n, gap_px=2)


def _scores(batch: HandBatch, output: DHPEOutput, size: int, tau_px: float) -> dict[str, Tensor]:  # (B,) each
    annotated = torch.where(batch.valid[..., None], 1.0, torch.nan)
    broken = ~output.projection.joints.isfinite().all(-1).all(-1)
    found_m = torch.nan_to_num(joints_in_metres(batch, output.projection.joints.float()))
    distance_mm = joint_distances_mm(found_m, batch.joints_m * annotated, alignment="root").nanmean(-1)
    to_224 = CROP_SIZE_PX / size
    truth_px = batch.joints2d_px * annotated
    distance_px = joint_distances_px(torch.nan_to_num(projected_px(output, size)), truth_px).nanmean(-1) * to_224
    distance_mm, distance_px = (d.masked_fill(broken & ~d.isnan(), torch.inf) for d in (distance_mm, distance_px))
    mask, truth = output.projection.mask > 0.5, batch.masks > 0.5
    return {
        "epe_mm": distance_mm,
        "joints2d_px": distance_px,
        "heatmap_px": _heatmap_px(batch, output.evidence.joints2d_px),
        "iou": torch.where(batch.has_mask, mask_iou(mask, truth), torch.nan),
        "below_tau": (distance_px < tau_px).double(),
    }


def _heatmap_px(batch: HandBatch, joints2d_px: Tensor) -> Tensor:  # (B, 21, 2) -> (B,)
    """Of f_J2D, in pixels of a 224 crop."""
    truth_px = batch.joints2d_px * torch.where(batch.valid[..., None], 1.0, torch.nan)
    return joint_distances_px(joints2d_px, truth_px).nanmean(-1) * (CROP_SIZE_PX / batch.size)
