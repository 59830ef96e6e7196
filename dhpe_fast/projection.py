"""From a turned hand to the crop's plane, with derivatives: the two cameras that a fit can estimate.

Points X (B, N, 3) are metres, already turned into the camera's axes; the image is in crop units, [-1, 1] across the
crop. Each camera has three parameters a hand, `cam` (B, 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class CropCamera(Protocol):
    """What the solver asks of a camera."""

    def project(self, points_m: Tensor, cam: Tensor) -> Tensor:
        """Crop coordinates and depth (B, N, 3); NaN for points behind the camera."""

    def jacobians(self, points_m: Tensor, cam: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of the crop coordinates by point (B, N, 2, 3) and by cam (B, N, 2, 3)."""

    def mirrored(self, cam: Tensor) -> Tensor:
        """The parameters (B, 3) under which the mirrored hand has the mirrored image."""


@dataclass(frozen=True)
class ScaledOrthographic:
    """The paper's camera: x, y -> scale * (x, y) + trans, cam = (log scale, trans x, trans y)."""

    def project(
        self,
        points_m: Tensor,  # (B, N, 3)
        cam: Tensor,  # (B, 3)
    ) -> Tensor:
        """Crop coordinates, and depth in the same unit relative to the hand's origin."""
        shift = torch.cat([cam[:, 1:], torch.zeros_like(cam[:, :1])], dim=1)
        return points_m * cam[:, :1, None].exp() + shift[:, None]

    def jacobians(
        self,
        points_m: Tensor,  # (B, N, 3)
        cam: Tensor,  # (B, 3)
    ) -> tuple[Tensor, Tensor]:
        """See :class:`CropCamera`."""
        batch, n = points_m.shape[:2]
        scale = cam[:, :1].exp()
        eye = torch.eye(2, 3, dtype=cam.dtype, device=cam.device)
        by_point = (scale[..., None, None] * eye).expand(batch, n, 2, 3)
        by_trans = eye[:, :2].expand(batch, n, 2, 2)
        return by_point, torch.cat([(points_m[..., :2] * scale[:, None])[..., None], by_trans], dim=-1)

    def mirrored(self, cam: Tensor) -> Tensor:
        """See :class:`CropCamera`."""
        return cam * cam.new_tensor((1.0, -1.0, 1.0))


@dataclass(frozen=True)
class PerspectiveCrop:
    """A pinhole camera seen through the crop: cam = position (x, y, z) of the hand's origin, metres."""

    focal: tuple[float, float]
    """Focal lengths in crop units."""
    center: tuple[float, float]
    """Principal point in crop units."""

    def project(
        self,
        points_m: Tensor,  # (B, N, 3)
        cam: Tensor,  # (B, 3)
    ) -> Tensor:
        """Crop coordinates, and depth in metres."""
        x, y, z = (points_m + cam[:, None]).unbind(-1)
        z = torch.where(z > 1e-3, z, torch.nan)
        return torch.stack([self.focal[0] * x / z + self.center[0], self.focal[1] * y / z + self.center[1], z], dim=-1)

    def jacobians(
        self,
        points_m: Tensor,  # (B, N, 3)
        cam: Tensor,  # (B, 3)
    ) -> tuple[Tensor, Tensor]:
        """See :class:`CropCamera`."""
        x, y, z = (points_m + cam[:, None]).unbind(-1)
        zero = torch.zeros_like(z)
        fx, fy = self.focal
        rows = [fx / z, zero, -fx * x / z**2, zero, fy / z, -fy * y / z**2]
        by_point = torch.stack(rows, dim=-1).unflatten(-1, (2, 3))
        return by_point, by_point

    def mirrored(self, cam: Tensor) -> Tensor:
        """See :class:`CropCamera`; of the camera with the mirrored principal point."""
        return cam * cam.new_tensor((-1.0, 1.0, 1.0))
