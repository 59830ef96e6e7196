"""f_Proj = (f_Reg, f_Ren): from the parameters of a hand to its joints and its mask (paper, Sec. 3, Eq. 1).

It has no weights. All of it stays in the precision of the hand model under autocast: rounded to bfloat16, a coordinate
of the crop is off by up to half a pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dhpe_fast.conventions import CROP_SIZE_PX, H_SIZE, MIDDLE_MCP
from dhpe_fast.hand import HandModel
from dhpe_fast.nets.results import Projection
from dhpe_fast.ops import silhouette

JOINT0 = ("palm", "wrist")
SILHOUETTE_MODES = ("nmr", "edge", "soft")


class Projector(nn.Module):
    """f_Proj of h: mesh v', joints j = f_Reg(v') and mask m = f_Ren(v').

    The crop is seen by an orthographic camera along +z, so f_Ren is the silhouette of x and y.
    """

    def __init__(
        self,
        hand: HandModel,
        image_size: int = CROP_SIZE_PX,
        *,
        joint0: str = "palm",
        silhouette_mode: str = "nmr",
    ) -> None:
        """Keeps the hand as a submodule; it has constants only.

        Args:
            hand: the model to pose.
            image_size: side S of the masks in pixels.
            joint0: what joint 0 of the skeleton is, as in the labels: "palm" (the paper's), midway between wrist and
                middle MCP, or "wrist".
            silhouette_mode: of :func:`dhpe_fast.ops.silhouette`; "nmr" is the paper's renderer.

        Raises:
            ValueError: if an argument is none of these.
        """
        super().__init__()
        if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size: expected a positive whole number of pixels, got {image_size!r}")
        check_joint0(joint0)
        if silhouette_mode not in SILHOUETTE_MODES:
            raise ValueError(f"silhouette_mode: expected one of {SILHOUETTE_MODES}, got {silhouette_mode!r}")
        self.hand = hand
        self.image_size = image_size
        self.joint0 = joint0
        self.silhouette_mode = silhouette_mode

    def forward(
        self,
        h: Tensor,  # (B, 63)
    ) -> Projection:
        """Differentiable in h; the mask by the gradient of its mode.

        Raises:
            TypeError, ValueError: if `h` is no floating-point tensor (B, 63).
        """
        verts = decode_verts(self.hand, h)
        return Projection(verts, regress_joints(self.hand, verts, self.joint0), self.render_mask(verts))

    def render_mask(
        self,
        verts: Tensor,  # (B, 778, 3) crop units
    ) -> Tensor:
        """f_Ren: mask (B, S, S) of the mesh, in [0, 1]."""
        with torch.autocast(verts.device.type, enabled=False):
            verts_px = torch.cat([(verts[..., :2] + 1) * (self.image_size / 2), verts[..., 2:]], dim=-1)
            return silhouette(verts_px, self.hand.faces, self.image_size, mode=self.silhouette_mode)

    def extra_repr(self) -> str:
        return f"image_size={self.image_size}, joint0={self.joint0!r}, silhouette_mode={self.silhouette_mode!r}"


def decode_verts(
    hand: HandModel,
    h: Tensor,  # (B, 63)
) -> Tensor:
    """The mesh v' = c_s R(c_q) v(p, s) + c_t (paper, Sec. 3.2): (B, 778, 3) crop units, in the precision of the hand.

    A zero quaternion is read as the identity, with finite gradients.

    Raises:
        TypeError, ValueError: if `h` is no floating-point tensor (B, 63).
    """
    if not isinstance(h, Tensor) or not h.is_floating_point():
        raise TypeError(f"h: expected a floating-point tensor, got {getattr(h, 'dtype', type(h).__name__)}")
    if h.dim() != 2 or h.shape[1] != H_SIZE:
        raise ValueError(f"h: expected (B, {H_SIZE}), got {tuple(h.shape)}")
    with torch.autocast(h.device.type, enabled=False):
        return hand.decode(h.to(hand.hands_mean.dtype)).verts_m


def regress_joints(
    hand: HandModel,
    verts: Tensor,  # (B, 778, 3)
    joint0: str = "palm",
) -> Tensor:
    """f_Reg: joints (B, 21, 3) of a posed mesh in its own frame and unit, STD order, by one 778 x 21 matrix.

    With ``joint0="palm"`` the wrist is replaced by the midpoint of wrist and middle MCP, as in the labels of the paper.
    """
    with torch.autocast(verts.device.type, enabled=False):
        joints = hand.regress_joints(verts)
        if joint0 == "wrist":
            return joints
        palm = 0.5 * (joints[:, :1] + joints[:, MIDDLE_MCP : MIDDLE_MCP + 1])
        return torch.cat([palm, joints[:, 1:]], dim=1)


def check_joint0(joint0: str) -> None:
    """Raises ValueError unless it is one of ``JOINT0``."""
    if joint0 not in JOINT0:
        raise ValueError(f"joint0: expected 'palm' or 'wrist', got {joint0!r}")
