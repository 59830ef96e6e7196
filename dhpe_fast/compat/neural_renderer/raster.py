"""Rasterization in neural_renderer's frame, over this package's ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from dhpe_fast import ops
from dhpe_fast.compat.neural_renderer.textures import look_up

DEFAULT_IMAGE_SIZE = 256
DEFAULT_ANTI_ALIASING = True
DEFAULT_NEAR = 0.1
DEFAULT_FAR = 100
DEFAULT_EPS = 1e-4
DEFAULT_BACKGROUND_COLOR = (0, 0, 0)

_MIN_NEAR = 1e-6

Color = Sequence[float] | Sequence[Sequence[float]] | Tensor
"""RGB, or RGB for each item of a batch."""


@dataclass(frozen=True)
class Screen:
    """How meshes are drawn."""

    image_size: int = DEFAULT_IMAGE_SIZE
    anti_aliasing: bool = DEFAULT_ANTI_ALIASING
    """Draws at twice the size and takes means of 2 x 2 pixels."""
    near: float = DEFAULT_NEAR
    far: float = DEFAULT_FAR
    eps: float = DEFAULT_EPS
    """Of the gradient, see :func:`dhpe_fast.ops.visibility_gradient`; also keeps texture lookups inside."""
    background_color: Color = DEFAULT_BACKGROUND_COLOR
    two_sided: bool = False
    """Draws back faces as well, in the front's colours."""
    rgb: bool = True
    alpha: bool = True
    depth: bool = True


def draw(
    vertices: Tensor,  # (B, V, 3) NDC
    faces: Tensor,  # (F, 3)
    textures: Tensor | None,  # (B, F, T, T, T, 3)
    screen: Screen,
) -> dict[str, Tensor | None]:
    """'rgb' (B, 3, S, S), 'alpha' (B, S, S) and 'depth' (B, S, S); None for what the screen does not ask for."""
    size = screen.image_size * (2 if screen.anti_aliasing else 1)
    images = _draw_at_size(vertices, faces, textures, replace(screen, image_size=size))
    if screen.anti_aliasing:
        images = {name: None if image is None else avg_pool2d(image, 2) for name, image in images.items()}
    return {name: image if name == "rgb" or image is None else image[:, 0] for name, image in images.items()}


def _draw_at_size(vertices, faces, textures, screen: Screen) -> dict[str, Tensor | None]:  # (B, C, S, S) each
    size = screen.image_size
    verts_px = _to_px(vertices, size, screen.far)
    near = max(float(screen.near), _MIN_NEAR)
    images: dict[str, Tensor | None] = {"rgb": None, "alpha": None, "depth": None}
    if screen.alpha and not (screen.rgb or screen.depth):
        mask = ops.silhouette(verts_px, faces, size, z_near=near, fill_back=screen.two_sided, eps=screen.eps)
        return {**images, "alpha": mask[:, None]}
    seen = ops.rasterize(verts_px, faces, size, perspective=True, z_near=near, cull_backfaces=not screen.two_sided)
    covered = seen.face_index >= 0
    if screen.depth:
        images["depth"] = torch.where(covered, seen.depth, float(screen.far))[:, None]
    layers = []
    if screen.rgb:
        colors = look_up(textures, seen.face_index, seen.bary.detach(), screen.eps).to(vertices.dtype)
        layers.append(torch.where(covered[..., None], colors, _background(screen.background_color, colors)))
    if screen.alpha:
        layers.append(covered[..., None].to(vertices.dtype))
    if layers:
        layered = ops.visibility_gradient(torch.cat(layers, -1), seen.face_index, verts_px, faces, eps=screen.eps)
        layered = layered.permute(0, 3, 1, 2)
        images["rgb"] = layered[:, :3] if screen.rgb else None
        images["alpha"] = layered[:, -1:] if screen.alpha else None
    return images


def _to_px(
    vertices: Tensor,  # (B, V, 3) NDC
    size: int,
    far: float,
) -> Tensor:  # (B, V, 3)
    x, y, z = vertices.unbind(-1)
    # A face with a vertex that is no number is not drawn.
    z = torch.where(z < far, z, torch.nan)
    return torch.stack([(x + 1) * (size / 2), (1 - y) * (size / 2), z], -1)


def _background(color: Color, like: Tensor) -> Tensor:  # broadcasts with (B, S, S, 3)
    color = torch.as_tensor(color, dtype=like.dtype, device=like.device)
    if color.shape not in ((3,), (1, 3), (len(like), 3)):
        raise ValueError(f"background_color has shape {tuple(color.shape)}, expected (3,) or ({len(like)}, 3)")
    return color if color.dim() == 1 else color[:, None, None]


def rasterize_rgbad(
    faces: Tensor,  # (B, F, 3, 3) corners, NDC
    textures: Tensor | None = None,  # (B, F, T, T, T, 3)
    image_size: int = DEFAULT_IMAGE_SIZE,
    anti_aliasing: bool = DEFAULT_ANTI_ALIASING,
    near: float = DEFAULT_NEAR,
    far: float = DEFAULT_FAR,
    eps: float = DEFAULT_EPS,
    background_color: Color = DEFAULT_BACKGROUND_COLOR,
    return_rgb: bool = True,
    return_alpha: bool = True,
    return_depth: bool = True,
) -> dict[str, Tensor | None]:
    """Draws faces, given by their corners.

    Convention: x right, y up, the image spans [-1, 1]; z is the distance from the camera, in which depth is
    interpolated perspectively. Faces which do not run counter-clockwise on the screen are not drawn, nor are those with
    a corner nearer than `near` or not nearer than `far`.

    Differentiable in: faces, as Kato et al. describe, from rgb and alpha together, and exactly from depth; textures.

    Args:
        faces: the corners of F triangles.
        textures: colours, trilinear in T (barycentric) coordinates; needed for rgb.
        image_size: side in pixels.
        anti_aliasing: draws at twice the size and takes means of 2 x 2 pixels.
        near: see above.
        far: see above; also the depth of the background.
        eps: keeps the gradient of an outline finite, in units of half the image.
        background_color: RGB, or RGB for each item of the batch.
        return_rgb: whether to draw 'rgb'.
        return_alpha: whether to draw 'alpha'.
        return_depth: whether to draw 'depth'.

    Returns:
        'rgb' (B, 3, S, S), 'alpha' (B, S, S) and 'depth' (B, S, S), the first row at the top; None where not asked for.
    """
    check_faces(faces, textures if return_rgb else None, return_rgb)
    screen = Screen(
        image_size,
        anti_aliasing,
        near,
        far,
        eps,
        background_color,
        rgb=return_rgb,
        alpha=return_alpha,
        depth=return_depth,
    )
    return draw(*corners_as_mesh(faces), textures, screen)


def corners_as_mesh(
    faces: Tensor,  # (B, F, 3, 3)
) -> tuple[Tensor, Tensor]:  # (B, 3F, 3), (F, 3)
    """Vertices of which every face has its own three, and the faces' ids."""
    n_faces = faces.shape[1]
    ids = torch.arange(3 * n_faces, dtype=torch.int32, device=faces.device).reshape(n_faces, 3)
    return faces.reshape(len(faces), 3 * n_faces, 3), ids


def check_faces(faces: Tensor, textures: Tensor | None, needs_textures: bool) -> None:
    """Raises ValueError unless corners and textures fit each other."""
    if faces.dim() != 4 or faces.shape[2:] != (3, 3):
        raise ValueError(f"faces has shape {tuple(faces.shape)}, expected (B, F, 3, 3)")
    if needs_textures:
        check_textures(textures, len(faces), faces.shape[1])


def check_textures(textures: Tensor | None, batch: int, n_faces: int) -> None:
    """Raises ValueError unless there are textures for a batch of faces."""
    if textures is None:
        raise ValueError("textures: needed for rgb, got None")
    shape = tuple(textures.shape)
    if textures.dim() != 6 or shape[:2] != (batch, n_faces) or len({*shape[2:5]}) != 1 or shape[5] != 3:
        raise ValueError(f"textures has shape {shape}, expected ({batch}, {n_faces}, T, T, T, 3)")


def rasterize(
    faces: Tensor,  # (B, F, 3, 3)
    textures: Tensor,  # (B, F, T, T, T, 3)
    image_size: int = DEFAULT_IMAGE_SIZE,
    anti_aliasing: bool = DEFAULT_ANTI_ALIASING,
    near: float = DEFAULT_NEAR,
    far: float = DEFAULT_FAR,
    eps: float = DEFAULT_EPS,
    background_color: Color = DEFAULT_BACKGROUND_COLOR,
) -> Tensor:  # (B, 3, S, S)
    """RGB images of :func:`rasterize_rgbad`."""
    return rasterize_rgbad(
        faces, textures, image_size, anti_aliasing, near, far, eps, background_color, True, False, False
    )["rgb"]


def rasterize_silhouettes(
    faces: Tensor,  # (B, F, 3, 3)
    image_size: int = DEFAULT_IMAGE_SIZE,
    anti_aliasing: bool = DEFAULT_ANTI_ALIASING,
    near: float = DEFAULT_NEAR,
    far: float = DEFAULT_FAR,
    eps: float = DEFAULT_EPS,
) -> Tensor:  # (B, S, S)
    """Masks of :func:`rasterize_rgbad`."""
    return rasterize_rgbad(faces, None, image_size, anti_aliasing, near, far, eps, (0, 0, 0), False, True, False)[
        "alpha"
    ]


def rasterize_depth(
    faces: Tensor,  # (B, F, 3, 3)
    image_size: int = DEFAULT_IMAGE_SIZE,
    anti_aliasing: bool = DEFAULT_ANTI_ALIASING,
    near: float = DEFAULT_NEAR,
    far: float = DEFAULT_FAR,
    eps: float = DEFAULT_EPS,
) -> Tensor:  # (B, S, S)
    """Depth maps of :func:`rasterize_rgbad`; the background is `far`."""
    return rasterize_rgbad(faces, None, image_size, anti_aliasing, near, far, eps, (0, 0, 0), False, False, True)[
        "depth"
    ]


class Rasterize(nn.Module):
    """The rasterizer below :func:`rasterize_rgbad`: no anti-aliasing, channels last, the first row at the *bottom*."""

    def __init__(
        self,
        image_size: int,
        near: float,
        far: float,
        eps: float,
        background_color: Color,
        return_rgb: bool = False,
        return_alpha: bool = False,
        return_depth: bool = False,
    ) -> None:
        """See :func:`rasterize_rgbad`."""
        super().__init__()
        self.image_size = image_size
        self.near = near
        self.far = far
        self.eps = eps
        self.background_color = background_color
        self.return_rgb = return_rgb
        self.return_alpha = return_alpha
        self.return_depth = return_depth

    def forward(
        self,
        faces: Tensor,  # (B, F, 3, 3)
        textures: Tensor | None,  # (B, F, T, T, T, 3)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """RGB (B, S, S, 3), alpha (B, S, S) and depth (B, S, S); an empty tensor for what is not asked for."""
        images = rasterize_rgbad(
            faces,
            textures,
            self.image_size,
            False,
            self.near,
            self.far,
            self.eps,
            self.background_color,
            self.return_rgb,
            self.return_alpha,
            self.return_depth,
        )
        rgb, alpha, depth = (faces.new_empty(0) if image is None else image.flip(-2) for image in images.values())
        return rgb.permute(0, 2, 3, 1) if self.return_rgb else rgb, alpha, depth
