"""The parameters of a hand in a crop, h = [pose, shape, quat, scale, trans] (paper, Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dhpe_fast.conventions import H_LAYOUT, H_SIZE

if TYPE_CHECKING:
    from dhpe_fast.hand.model import HandModel


@dataclass(frozen=True, eq=False)
class HandParams:
    """A batch of hands in the crop frame: ``verts = scale * R(quat) @ verts_m + trans``.

    The mesh ``verts_m`` is posed at identity root rotation. All parts share one batch size, dtype and device;
    values are not inspected.
    """

    pose: Tensor
    """(B, 45) absolute axis-angle of joints 1..15 in MANO16 order, radians."""
    shape: Tensor
    """(B, 10) betas, in units of one standard deviation."""
    quat: Tensor
    """(B, 4) global rotation (w, x, y, z), normalised where it is used; zero is read as the identity."""
    scale: Tensor
    """(B, 1) crop units for each metre; a hand that fills its crop has a scale of about 5 to 15."""
    trans: Tensor
    """(B, 3) crop units."""

    def __post_init__(self) -> None:
        for name, part in H_LAYOUT.items():
            value = getattr(self, name)
            width = part.stop - part.start
            if not isinstance(value, Tensor):
                raise TypeError(f"HandParams.{name}: expected a torch.Tensor, got {type(value).__name__}")
            if value.dim() != 2 or value.shape[1] != width or not value.is_floating_point():
                raise ValueError(
                    f"HandParams.{name}: expected a floating-point tensor (B, {width}), "
                    f"got {tuple(value.shape)} {value.dtype}"
                )
            if (len(value), value.dtype, value.device) != (len(self.pose), self.pose.dtype, self.pose.device):
                raise ValueError(
                    f"HandParams.{name} is {tuple(value.shape)} {value.dtype} on {value.device}, but pose is "
                    f"{tuple(self.pose.shape)} {self.pose.dtype} on {self.pose.device}"
                )

    def packed(self) -> Tensor:
        """Returns h (B, 63), the parts side by side in the order of ``conventions.H_LAYOUT``."""
        return torch.cat([getattr(self, name) for name in H_LAYOUT], dim=1)

    @classmethod
    def from_packed(
        cls,
        h: Tensor,  # (B, 63)
    ) -> HandParams:
        """Names the parts of h; they are views of it.

        Raises:
            TypeError: if `h` is no tensor.
            ValueError: if `h` is not a floating-point tensor of shape (B, 63).
        """
        if not isinstance(h, Tensor):
            raise TypeError(f"h: expected a torch.Tensor, got {type(h).__name__}")
        if h.dim() != 2 or h.shape[1] != H_SIZE:
            raise ValueError(f"h: expected a tensor (B, {H_SIZE}), got {tuple(h.shape)}")
        return cls(**{name: h[:, part] for name, part in H_LAYOUT.items()})

    @classmethod
    def initial(cls, model: HandModel, batch_size: int = 1) -> HandParams:
        """The paper's h(0): zeros, but for the mean pose of `model`; with its dtype and device.

        It is the input of the first regression step and no hand yet: its scale is zero, so
        ``HandModel.decode`` returns a mesh shrunk to the origin (finite, as a zero quaternion is read as the
        identity).
        """
        if batch_size < 0:
            raise ValueError(f"batch_size: expected a number >= 0, got {batch_size}")
        h = model.hands_mean.new_zeros(batch_size, H_SIZE)
        h[:, H_LAYOUT["pose"]] = model.hands_mean
        return cls.from_packed(h)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> HandParams:
        """The same parameters on another device or in another floating-point type."""
        return self._map(lambda part: part.to(device=device, dtype=dtype))

    def detach(self) -> HandParams:
        """The same values, cut from the graph."""
        return self._map(lambda part: part.detach())

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, index: int | slice | Tensor | list[int]) -> HandParams:
        """A sub-batch, by slice, index list or mask as on a tensor; an int keeps a batch axis of 1."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"hand {index} of a batch of {len(self)}")
            index = slice(index, index + 1 or None)
        return self._map(lambda part: part[index])

    def _map(self, function: Callable[[Tensor], Tensor]) -> HandParams:
        return HandParams(**{field.name: function(getattr(self, field.name)) for field in fields(self)})
