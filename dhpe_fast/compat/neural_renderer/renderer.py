"""neural_renderer's Renderer: meshes and a camera in, pictures out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dhpe_fast.compat.neural_renderer.geometry import (
    Vector,
    lighting,
    look,
    look_at,
    perspective,
    projection,
    vertices_to_faces,
)
from dhpe_fast.compat.neural_renderer.raster import Color, Screen, check_textures, corners_as_mesh, draw

Matrix = np.ndarray | Tensor

_CAMERA_MODES = ("projection", "look", "look_at")


class Renderer(nn.Module):
    """Draws batches of meshes; call it, or one of its ``render*`` methods.

    Every attribute may be changed after construction, as neural_renderer's users do: ``renderer.eye = ...``,
    ``renderer.light_direction = ...``. With a ``camera_mode`` other than the three, vertices are taken as they are: in
    normalised device coordinates.

    Attributes:
        eye: where the camera stands in modes 'look' and 'look_at'; behind the unit cube at first.
        camera_direction: where it looks in mode 'look'.
        rasterizer_eps: the eps of pictures' gradients, 1e-3; those of silhouettes and depth alone have 1e-4.
        clip_all_modes: see below.
    """

    def __init__(
        self,
        image_size: int = 256,
        anti_aliasing: bool = True,
        background_color: Color = (0, 0, 0),
        fill_back: bool = True,
        camera_mode: str = "projection",
        K: Matrix | None = None,
        R: Matrix | None = None,
        t: Matrix | None = None,
        dist_coeffs: Matrix | None = None,
        orig_size: float = 1024,
        perspective: bool = True,
        viewing_angle: float = 30,
        camera_direction: Sequence[float] = (0, 0, 1),
        near: float = 0.1,
        far: float = 100,
        light_intensity_ambient: float = 0.5,
        light_intensity_directional: float = 0.5,
        light_color_ambient: Vector = (1, 1, 1),
        light_color_directional: Vector = (1, 1, 1),
        light_direction: Vector = (0, 1, 0),
        *,
        clip_all_modes: bool = False,
    ) -> None:
        """Sets up screen, camera and light.

        Args:
            image_size: side of the images in pixels.
            anti_aliasing: draws at twice the size and takes means of 2 x 2 pixels.
            background_color: RGB.
            fill_back: draws both sides of every face.
            camera_mode: 'projection' (K, R, t, dist_coeffs, orig_size, see :func:`projection`), 'look_at' (eye, towards
                the origin) or 'look' (eye, camera_direction).
            K: (B, 3, 3) camera matrix, pixels; B may be 1 here and below.
            R: (B, 3, 3) rotation from the world into the camera.
            t: (B, 1, 3) translation.
            dist_coeffs: (B, 5) distortion k1, k2, p1, p2, k3; none by default.
            orig_size: side in pixels of the image that K speaks of.
            perspective: whether 'look' and 'look_at' are perspective; else the image spans [-1, 1].
            viewing_angle: half the field of view, degrees.
            camera_direction: see above.
            near: faces with a corner nearer than this are not drawn; in pictures only.
            far: faces with a corner not nearer than this are not drawn, and the depth of the background; in pictures
                only.
            light_intensity_ambient: see :func:`lighting`, also for the following.
            light_intensity_directional: strength of the directional light.
            light_color_ambient: RGB.
            light_color_directional: RGB.
            light_direction: where light comes from, see :func:`lighting` for its sign.
            clip_all_modes: near and far hold for silhouettes and depth, too. neural_renderer draws these between 0.1
                and 100, whatever near and far are, and so does this class unless told otherwise.

        Raises:
            ValueError: if camera_mode is none of the three.
        """
        super().__init__()
        if camera_mode not in _CAMERA_MODES:
            raise ValueError(f"camera_mode is {camera_mode!r}, expected one of {', '.join(map(repr, _CAMERA_MODES))}")
        self.image_size = image_size
        self.anti_aliasing = anti_aliasing
        self.background_color = background_color
        self.fill_back = fill_back
        self.camera_mode = camera_mode
        self.K, self.R, self.t = K, R, t
        self.dist_coeffs = dist_coeffs
        self.orig_size = orig_size
        self.perspective = perspective
        self.viewing_angle = viewing_angle
        self.eye: Vector = [0, 0, -(1 / math.tan(math.radians(viewing_angle)) + 1)]
        self.camera_direction = camera_direction
        self.near = near
        self.far = far
        self.light_intensity_ambient = light_intensity_ambient
        self.light_intensity_directional = light_intensity_directional
        self.light_color_ambient = light_color_ambient
        self.light_color_directional = light_color_directional
        self.light_direction = light_direction
        self.rasterizer_eps = 1e-3
        self.clip_all_modes = clip_all_modes

    def forward(
        self,
        vertices: Tensor,  # (B, V, 3)
        faces: Tensor,  # (B, F, 3)
        textures: Tensor | None = None,  # (B, F, T, T, T, 3)
        mode: str | None = None,
        K: Matrix | None = None,
        R: Matrix | None = None,
        t: Matrix | None = None,
        dist_coeffs: Matrix | None = None,
        orig_size: float | None = None,
    ) -> Any:
        """Draws in a mode: None (rgb, depth, alpha), 'rgb', 'silhouettes' or 'depth'; see the ``render*`` methods."""
        camera = (K, R, t, dist_coeffs, orig_size)
        if mode is None:
            return self.render(vertices, faces, textures, *camera)
        if mode == "rgb":
            return self.render_rgb(vertices, faces, textures, *camera)
        if mode == "silhouettes":
            return self.render_silhouettes(vertices, faces, *camera)
        if mode == "depth":
            return self.render_depth(vertices, faces, *camera)
        raise ValueError(f"mode is {mode!r}, expected None, 'rgb', 'silhouettes' or 'depth'")

    def render_silhouettes(
        self, vertices, faces, K=None, R=None, t=None, dist_coeffs=None, orig_size=None
    ) -> Tensor:  # (B, S, S)
        """Masks in [0, 1]; the gradient is Kato et al.'s."""
        vertices = self._transform(vertices, K, R, t, dist_coeffs, orig_size)
        return draw(*_mesh(vertices, faces), None, self._geometry_screen(alpha=True))["alpha"]

    def render_depth(
        self, vertices, faces, K=None, R=None, t=None, dist_coeffs=None, orig_size=None
    ) -> Tensor:  # (B, S, S)
        """Depth in units of the vertices, 100 (with clip_all_modes: far) where there is nothing."""
        vertices = self._transform(vertices, K, R, t, dist_coeffs, orig_size)
        return draw(*_mesh(vertices, faces), None, self._geometry_screen(depth=True))["depth"]

    def render_rgb(
        self, vertices, faces, textures, K=None, R=None, t=None, dist_coeffs=None, orig_size=None
    ) -> Tensor:  # (B, 3, S, S)
        """Lit pictures; the gradient of the vertices is Kato et al.'s, and that of the light on the faces."""
        return self._pictures(vertices, faces, textures, (K, R, t, dist_coeffs, orig_size), False)["rgb"]

    def render(
        self, vertices, faces, textures, K=None, R=None, t=None, dist_coeffs=None, orig_size=None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Lit pictures (B, 3, S, S), depth (B, S, S) and alpha (B, S, S), drawn at once."""
        images = self._pictures(vertices, faces, textures, (K, R, t, dist_coeffs, orig_size), True)
        return images["rgb"], images["depth"], images["alpha"]

    def _pictures(self, vertices, faces, textures, camera, all_images: bool) -> dict[str, Tensor]:
        check_textures(textures, faces.shape[0], faces.shape[1])
        if self.fill_back:
            # A reversed face reads its colours in reverse, and is lit from its own side.
            faces = torch.cat([faces, faces.flip(-1)], 1)
            textures = torch.cat([textures, textures.transpose(2, 4)], 1)
        lit = lighting(
            vertices_to_faces(vertices, faces),
            textures,
            self.light_intensity_ambient,
            self.light_intensity_directional,
            self.light_color_ambient,
            self.light_color_directional,
            self.light_direction,
        )
        screen = Screen(
            self.image_size,
            self.anti_aliasing,
            self.near,
            self.far,
            self.rasterizer_eps,
            self.background_color,
            alpha=all_images,
            depth=all_images,
        )
        return draw(*_mesh(self._transform(vertices, *camera), faces), lit, screen)

    def _geometry_screen(self, *, alpha: bool = False, depth: bool = False) -> Screen:
        clip = {"near": self.near, "far": self.far} if self.clip_all_modes else {}
        return Screen(
            self.image_size, self.anti_aliasing, two_sided=self.fill_back, rgb=False, alpha=alpha, depth=depth, **clip
        )

    def _transform(self, vertices: Tensor, K, R, t, dist_coeffs, orig_size) -> Tensor:  # (B, V, 3) NDC
        if self.camera_mode == "projection":
            given = {"K": K, "R": R, "t": t, "dist_coeffs": dist_coeffs}
            camera = {}
            for name, value in given.items():
                value = getattr(self, name) if value is None else value
                if value is None and name != "dist_coeffs":
                    raise ValueError(f"{name}: the camera mode 'projection' needs it, at construction or in the call")
                camera[name] = torch.as_tensor(
                    [[0.0] * 5] if value is None else value, dtype=vertices.dtype, device=vertices.device
                )
            return projection(vertices, **camera, orig_size=self.orig_size if orig_size is None else orig_size)
        if self.camera_mode == "look_at":
            vertices = look_at(vertices, self.eye)
        elif self.camera_mode == "look":
            vertices = look(vertices, self.eye, self.camera_direction)
        else:
            return vertices
        return perspective(vertices, angle=self.viewing_angle) if self.perspective else vertices


def _mesh(
    vertices: Tensor,  # (B, V, 3)
    faces: Tensor,  # (B, F, 3)
) -> tuple[Tensor, Tensor]:
    """Vertices and the one set of faces the batch has in common; where it has none, every face with its own corners.

    On CUDA the comparison waits for the device, unless the batch is 1 or an expanded view.
    """
    if faces.dim() != 3 or faces.shape[0] != vertices.shape[0] or faces.shape[2] != 3:
        raise ValueError(f"faces has shape {tuple(faces.shape)}, expected ({vertices.shape[0]}, F, 3)")
    if len(faces) == 1 or faces.stride(0) == 0 or (len(faces) > 1 and bool((faces == faces[:1]).all())):
        return vertices, faces[0]
    return corners_as_mesh(vertices_to_faces(vertices, faces))
