"""The objective of a mini-batch, Eq. 7, with Eq. 3 beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from dhpe_fast.config import Loss
from dhpe_fast.conventions import CROP_SIZE_PX, H_LAYOUT
from dhpe_fast.data import HandBatch
from dhpe_fast.hand.pose_prior import PosePrior
from dhpe_fast.losses import (
    articulation_loss,
    cotangent_laplacian,
    feature_loss,
    heatmap_entropy_loss,
    heatmap_loss,
    joints2d_refine_loss,
    laplacian_loss,
    seen_silhouette_loss,
    silhouette_gate,
    silhouette_loss,
    total_loss,
)
from dhpe_fast.nets import DHPE, DHPEOutput, heatmap_targets
from dhpe_fast.nets.heatmaps import heatmap_mass


@dataclass(frozen=True)
class Objective:
    """What a training step needs of a mini-batch."""

    total: Tensor
    """() mean over the batch of the weighted terms."""
    terms: Mapping[str, Tensor]
    """() each: means over the batch, not weighted; ``gate`` is the share of instances whose silhouette counts."""
    output: DHPEOutput | None
    """None where f_J2D alone is trained."""
    joints2d_px: Tensor
    """(B, 21, 2) what is shown of the estimate: the hand's joints in the crop, or where there is none, j_2D"""


class TrainingObjective(nn.Module):
    """Networks and losses as one module, so that one wrapper distributes them.

    Every mean divides by the size of the batch, also for labels which some instances lack: the gradient of a batch is
    then the mean of those of its parts, whoever computes them.
    """

    laplacian: Tensor

    def __init__(self, model: DHPE, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        template = model.hand.v_template
        laplacian = cotangent_laplacian(template, model.hand.faces)
        self.register_buffer("laplacian", laplacian, persistent=False)
        self._prior = PosePrior.of(model.hand, torch.float32) if loss.pose_prior else None

    def forward(self, batch: HandBatch) -> Objective:
        """Runs the networks on a mini-batch and judges what they say."""
        if self.loss.heatmap_alone:
            return self._pose2d_alone(batch)
        output, masked_features = self._seen(batch)
        gate = self.gate(batch, output)
        terms = self.terms(batch, output, masked_features)
        weights = {name: getattr(self.loss, name) for name in terms}
        weights["silhouette"] = gate * self.loss.silhouette
        total = total_loss(terms, weights).mean()
        means = {name: term.detach().mean() for name, term in terms.items()}
        found_px = projected_px(output, self.model.image_size).detach()
        return Objective(total, means | {"gate": gate.mean()}, output, found_px)

    def _pose2d_alone(self, batch: HandBatch) -> Objective:
        n = round(self.loss.other_side * len(batch))  # batches are shuffled: the first ones are any
        images = torch.cat([batch.images[:n].flip(-1), batch.images[n:]])
        terms = {}
        if self.loss.seen_silhouette:
            heatmaps, joints2d_px, silhouette = self.model.estimate_joints2d_and_silhouette(images)
            masks = torch.cat([batch.masks[:n].flip(-1), batch.masks[n:]])
            terms["seen_silhouette"] = seen_silhouette_loss(silhouette, masks, batch.has_mask)
        else:
            heatmaps, joints2d_px = self.model.estimate_joints2d(images)
        terms["heatmap"] = self._heatmap_term(batch, heatmaps, mirrored=n)
        total = total_loss(terms, {name: getattr(self.loss, name) for name in terms}).mean()
        return Objective(total, {name: term.detach().mean() for name, term in terms.items()}, None, joints2d_px)

    def terms(self, batch: HandBatch, output: DHPEOutput, masked_features: Tensor | None) -> dict[str, Tensor]:
        """The losses of each instance, (B,) each, not weighted; those of weight 0 that would cost time are left out."""
        loss, projection, h = self.loss, output.projection, output.estimate.h
        terms = {
            "articulation": articulation_loss(projection.joints, batch.joints_crop, batch.valid),
            "laplacian": laplacian_loss(projection.verts, self.laplacian),
            "silhouette": silhouette_loss(projection.mask, batch.masks, batch.has_mask, reduction=loss.image_reduction),
        }
        if loss.heatmap:
            terms["heatmap"] = self._heatmap_term(batch, output.evidence.heatmaps)
        if self.model.mesh_estimator.refiner is not None:
            terms["refine"] = sum(
                joints2d_refine_loss(step.joints2d_px, batch.joints2d_px, batch.valid, self.model.image_size)
                for step in output.estimate.steps
            )
        if loss.feature:
            terms["feature"] = feature_loss(
                output.evidence.features, masked_features, batch.has_mask, reduction=loss.feature_reduction
            )
        if self._prior is not None:
            terms["pose_prior"] = self._prior.energy(h[:, H_LAYOUT["pose"]])
        if loss.shape_prior:
            terms["shape_prior"] = h[:, H_LAYOUT["shape"]].square().sum(-1)
        return terms

    def _seen(self, batch: HandBatch) -> tuple[DHPEOutput, Tensor | None]:
        """What the networks see in the crops, and F of the masked ones where Eq. 2 counts.

        F takes both at once: batch statistics of its own would make of the masked crops another network, and the
        running statistics those of neither. Crops without a mask stay as they are.
        """
        if not self.loss.feature:
            return self.model(batch.images), None
        shown = torch.where(batch.has_mask[:, None, None], batch.masks, 1.0)
        features = self.model.features(torch.cat([batch.images, batch.images * shown[:, None]]))
        whole, masked = features.split(len(batch))
        return self.model(batch.images, features=whole), masked

    def gate(self, batch: HandBatch, output: DHPEOutput) -> Tensor:  # (B,)
        """Lambda of Eq. 10, without gradient; 0 for instances without a mask."""
        rule, size = self.loss.gate, self.model.image_size
        weight = silhouette_gate(
            projected_px(output, size),
            batch.joints2d_px,
            batch.valid,
            rule.tau_px * (size / CROP_SIZE_PX) ** (2 if rule.mode == "squared_norm" else 1),
            mode=rule.mode,
            constant=rule.constant,
        )
        return weight * batch.has_mask

    def _heatmap_term(self, batch: HandBatch, stages: tuple[Tensor, ...], mirrored: int = 0) -> Tensor:  # (B,)
        other_side = torch.arange(len(batch), device=batch.valid.device)[:, None] < mirrored
        shown, valid = batch.valid & ~other_side, batch.valid | other_side  # that a joint is not there is known, too
        targets = heatmap_targets(batch.joints2d_px, shown, stages[-1].shape[-1], self.model.image_size)
        if self.loss.heatmap_measure == "entropy":
            return heatmap_entropy_loss(stages[-1], targets, heatmap_mass(stages[-1].shape[-1]), valid)
        return heatmap_loss(stages, targets, valid, reduction=self.loss.image_reduction)

    def _apply(self, fn, recurse: bool = True):
        self._prior = (
            None
            if self._prior is None
            else replace(
                self._prior, **{field.name: fn(getattr(self._prior, field.name)) for field in fields(self._prior)}
            )
        )
        return super()._apply(fn, recurse)


def projected_px(output: DHPEOutput, size: int) -> Tensor:  # (B, 21, 2)
    """The estimated 3D joints seen in the crop, pixels: [f_DHPE(x)]_{J,XY}."""
    return (0.5 * output.projection.joints[..., :2] + 0.5) * size
