"""Between metres in front of a camera and the crop frame: the paper's spatial normalisation (Eq. 8) and its inverse.

A hand is seen in a square of its image, g pixels wide. Two of its coordinates are its image in that square, the third
is depth relative to the root (the middle MCP) in the same unit, the width of the square at the root's depth:

    (u - u_c, v - v_c) = g / 2 * R(angle) @ (x, y)        z = (Z - Z_root) / (Z_root * g / (2 c_f))

with (u, v) the pinhole image of the joint and (x, y, z) in the crop frame of :mod:`dhpe_fast.conventions`: -1 and 1 are
the borders of the square. Eq. 8's unit interval is ``joints_norm = (joints_crop + 1) / 2``, the root at 1/2 if the
square is centred on it, as the paper's is. Nothing is clamped: joints of the paper's square reach from -1/6 to 7/6.

The map is exact, not weak-perspective: x and y are true projections. Its inverse leaves one number open, the depth of
the root, with which every coordinate of the hand scales; it is given, or follows from the length of one bone.

Everything is torch, of any batch and in the dtype of the joints; float64 round-trips to 1e-12. Cameras have no lens
distortion (undistort labels and images first), c_f is the mean of f_x and f_y, and pixel centres are at half numbers.

What is not annotated is NaN and stays NaN, joint by joint; so does what has no image, as it is not in front of the
camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dhpe_fast.conventions import CROP_MARGIN, MIDDLE_MCP, N_JOINTS_STD, SCALE_BONE
from dhpe_fast.hand import CropBox, Pinhole


@dataclass(frozen=True, eq=False)
class Square:
    """A batch of squares in images, which may be turned and reach beyond the image."""

    center_px: Tensor
    """(*batch, 2) centre, pixels of the image."""
    size_px: Tensor
    """(*batch,) side, pixels of the image, > 0."""
    angle: Tensor | None = None
    """(*batch,) radians; None (stored as zeros) for upright squares. The crop's x axis points along
    (cos, sin) in the image: a positive angle turns the square clockwise as one sees it, since y is down."""

    def __post_init__(self) -> None:
        if self.angle is None:
            object.__setattr__(self, "angle", torch.zeros_like(self.size_px))
        shape = self.size_px.shape
        if self.center_px.shape != (*shape, 2) or self.angle.shape != shape:
            raise ValueError(
                f"Square: expected center_px (*batch, 2), size_px and angle (*batch,), got "
                f"{tuple(self.center_px.shape)}, {tuple(shape)} and {tuple(self.angle.shape)}"
            )

    @classmethod
    def from_box(cls, box: CropBox, dtype: torch.dtype = torch.float64) -> Square:
        """One upright square, of batch shape ()."""
        return cls(torch.tensor(box.center_px, dtype=dtype), torch.tensor(box.size_px, dtype=dtype))

    def to_crop(
        self,
        points_px: Tensor,  # (*batch, N, 2) image
    ) -> Tensor:
        """Points (*batch, N, 2) in the crop frame."""
        return (points_px - self.center_px[..., None, :]) @ self._axes() * (2 / self.size_px[..., None, None])

    def from_crop(
        self,
        points_crop: Tensor,  # (*batch, N, 2) crop frame
    ) -> Tensor:
        """Pixels (*batch, N, 2) in the image: the inverse of ``to_crop``."""
        turned = points_crop @ self._axes().transpose(-1, -2)
        return self.center_px[..., None, :] + turned * (self.size_px[..., None, None] / 2)

    def _axes(self) -> Tensor:  # (*batch, 2, 2) R(angle): the crop's x and y axis in the image, in columns
        cos, sin = self.angle.cos(), self.angle.sin()
        return torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)


def paper_square(
    joints2d_px: Tensor,  # (*batch, 21, 2) STD order, image
    valid: Tensor | None = None,  # (*batch, 21) bool
) -> Square:
    """The paper's crop (Eq. 8): centred on the middle MCP, of side g = 1.5 max(w, h) of the joints' tight box.

    Joints that are not `valid` or not finite do not count. Where that leaves no root, or no two different joints, the
    square is NaN.

    Raises:
        ValueError: a shape or dtype is another one.
    """
    _check_points("joints2d_px", joints2d_px, 2)
    if joints2d_px.shape[-2] != N_JOINTS_STD:
        raise ValueError(f"joints2d_px: expected (*batch, {N_JOINTS_STD}, 2), got {tuple(joints2d_px.shape)}")
    counted = joints2d_px.isfinite().all(-1)
    if valid is not None:
        if valid.dtype != torch.bool or valid.shape != counted.shape:
            raise ValueError(f"valid: expected bool {tuple(counted.shape)}, got {tuple(valid.shape)} {valid.dtype}")
        counted = counted & valid
    low = torch.where(counted[..., None], joints2d_px, torch.inf).amin(-2)
    high = torch.where(counted[..., None], joints2d_px, -torch.inf).amax(-2)
    size_px = CROP_MARGIN * (high - low).amax(-1)
    usable = counted[..., MIDDLE_MCP] & (size_px > 0)
    center_px = torch.where(usable[..., None], joints2d_px[..., MIDDLE_MCP, :], torch.nan)
    return Square(center_px, torch.where(usable, size_px, torch.nan))


def normalize(
    joints_m: Tensor,  # (*batch, N, 3) camera frame
    camera: Pinhole | Tensor,  # or (*batch, 4) fx, fy, cx, cy
    square: Square,
    root_depth_m: Tensor | None = None,  # (*batch,)
) -> Tensor:
    """Points in the crop frame, (*batch, N, 3), as in the module's docstring.

    Args:
        joints_m: the 21 joints, or with `root_depth_m` any points.
        camera: of the whole image.
        square: the part of the image that is the crop.
        root_depth_m: where z of the crop frame is 0; None takes it from the middle MCP. Where it is NaN or not in front
            of the camera, z is NaN.

    Returns:
        NaN for points that are NaN or not in front of the camera (Z <= 0).

    Raises:
        ValueError: a shape or dtype is another one, the camera has lens distortion, or `root_depth_m` is missing for
            points that are not the 21 joints.
    """
    _check_points("joints_m", joints_m, 3)
    if root_depth_m is None:
        if joints_m.shape[-2] != N_JOINTS_STD:
            raise ValueError(f"root_depth_m: needed for points other than {N_JOINTS_STD} joints, {joints_m.shape = }")
        root_depth_m = joints_m[..., MIDDLE_MCP, 2]
    focal, principal = _intrinsics(camera, joints_m)
    depth_m = joints_m[..., 2:]
    seen = joints_m.isfinite().all(-1, keepdim=True) & (depth_m > 0)
    pixels = joints_m[..., :2] / torch.where(seen, depth_m, 1.0) * focal[..., None, :] + principal[..., None, :]
    root = torch.where(root_depth_m > 0, root_depth_m, torch.nan)[..., None, None]
    z = (depth_m / root - 1) / _depth_unit(focal, square)
    return torch.where(seen, torch.cat([square.to_crop(pixels), z], dim=-1), torch.nan)


def denormalize(
    joints_crop: Tensor,  # (*batch, N, 3)
    square: Square,
    camera: Pinhole | Tensor,  # or (*batch, 4) fx, fy, cx, cy
    root_depth_m: Tensor | None = None,  # (*batch,)
    *,
    bone_length_m: Tensor | None = None,  # (*batch,)
    bone: tuple[int, int] = SCALE_BONE,
) -> Tensor:
    """Points in the camera frame, metres, (*batch, N, 3): the exact inverse of ``normalize``.

    Estimates stay finite, so that they can be measured: one with a depth behind the camera is put there.

    Args:
        joints_crop: the 21 joints, or with `root_depth_m` any points (vertices).
        square: the part of the image that is the crop.
        camera: of the whole image.
        root_depth_m: depth at which z of the crop frame is 0; for evaluation, that of the true root.
        bone_length_m: instead, the length of one bone, from which ``root_depth_of_bone`` follows.
        bone: the two joints of that bone.

    Raises:
        ValueError: a shape or dtype is another one, the camera has lens distortion, or not exactly one of
            `root_depth_m` and `bone_length_m` is given.
    """
    if (root_depth_m is None) == (bone_length_m is None):
        raise ValueError("root_depth_m, bone_length_m: expected one of the two")
    if bone_length_m is not None:
        root_depth_m = root_depth_of_bone(joints_crop, square, camera, bone_length_m, bone)
    return _rays(joints_crop, square, camera) * root_depth_m[..., None, None]


def root_depth_of_bone(
    joints_crop: Tensor,  # (*batch, 21, 3)
    square: Square,
    camera: Pinhole | Tensor,  # or (*batch, 4) fx, fy, cx, cy
    bone_length_m: Tensor,  # (*batch,)
    bone: tuple[int, int] = SCALE_BONE,
) -> Tensor:
    """The depth of the root, metres (*batch,), at which a bone has a known length: L / |q_a - q_b|.

    q_j are the joints at a root depth of one metre, with which they scale. A bone of no length in the crop frame gives
    infinity.

    Raises:
        ValueError: as for ``denormalize``.
    """
    rays = _rays(joints_crop, square, camera)
    return bone_length_m / torch.linalg.vector_norm(rays[..., bone[0], :] - rays[..., bone[1], :], dim=-1)


def _rays(joints_crop: Tensor, square: Square, camera: Pinhole | Tensor) -> Tensor:
    """The points (*batch, N, 3) for a root at a depth of one metre."""
    _check_points("joints_crop", joints_crop, 3)
    focal, principal = _intrinsics(camera, joints_crop)
    pixels = square.from_crop(joints_crop[..., :2])
    relative_depth = 1 + joints_crop[..., 2:] * _depth_unit(focal, square)
    xy = (pixels - principal[..., None, :]) / focal[..., None, :] * relative_depth
    return torch.cat([xy, relative_depth], dim=-1)


def _depth_unit(focal: Tensor, square: Square) -> Tensor:
    """One unit of the crop frame by the depth of the root, (*batch, 1, 1): g / (2 c_f)."""
    return (square.size_px / (2 * focal.mean(-1)))[..., None, None]


def _intrinsics(camera: Pinhole | Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Focal lengths and principal point, (*batch, 2) or (2,) each."""
    if isinstance(camera, Pinhole):
        if any(camera.dist):
            raise ValueError(f"camera: expected one without lens distortion, got {camera.dist = }")
        return points.new_tensor((camera.fx, camera.fy)), points.new_tensor((camera.cx, camera.cy))
    if not isinstance(camera, Tensor) or camera.shape[-1:] != (4,):
        given = tuple(camera.shape) if isinstance(camera, Tensor) else type(camera).__name__
        raise ValueError(f"camera: expected a Pinhole or a tensor (*batch, 4) of fx, fy, cx, cy, got {given}")
    return camera[..., :2], camera[..., 2:]


def _check_points(name: str, points: Tensor, width: int) -> None:
    if (
        not isinstance(points, Tensor)
        or not points.is_floating_point()
        or points.dim() < 2
        or points.shape[-1] != width
    ):
        given = f"{tuple(points.shape)} {points.dtype}" if isinstance(points, Tensor) else type(points).__name__
        raise ValueError(f"{name}: expected a floating-point tensor (*batch, N, {width}), got {given}")
