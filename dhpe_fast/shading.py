"""Shaded pictures of meshes, drawn with this package's rasterizer: no OpenGL, no display, any image size.

Colours are sRGB in [0, 1]. Directions are in the camera frame: x right, y down, z away from the camera.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dhpe_fast.hand.camera import Pinhole, WeakPerspective
from dhpe_fast.ops import interpolate, rasterize

Camera = WeakPerspective | Pinhole

GAMMA = 2.2
"""Linear radiance is sRGB to this power."""
_BAND_SAMPLES = 400_000
_LARGE_WINDOWS_PX = (250_000, 1_000_000)


@dataclass(frozen=True)
class Material:
    """How a surface reflects light."""

    color: tuple[float, float, float]
    """Diffuse albedo."""
    wrap: tuple[float, float, float] = (0.15, 0.15, 0.15)
    """How far light creeps round the terminator, by channel; in skin red creeps farther than blue."""
    specular: float = 0.10
    """Height of the highlight."""
    shininess: float = 20.0
    """Blinn-Phong exponent: large is a small, sharp highlight."""
    rim: float = 0.25
    """Brightening of the outline, as of light from behind."""


SKIN = Material((0.84, 0.66, 0.575), wrap=(0.45, 0.24, 0.18), specular=0.13, shininess=16.0, rim=0.20)
CLAY = Material((0.72, 0.755, 0.81))
"""A cool grey that stands off from skin and from most backgrounds."""


@dataclass(frozen=True)
class Lighting:
    """A key light that casts soft shadows, a fill light, and an ambient sky that creases hide."""

    key: tuple[float, float, float] = (-0.70, -0.85, -0.62)
    """Direction towards the light; any length."""
    key_color: tuple[float, float, float] = (1.42, 1.38, 1.30)
    """Linear radiance."""
    fill: tuple[float, float, float] = (0.95, 0.10, -0.50)
    fill_color: tuple[float, float, float] = (0.20, 0.225, 0.26)
    ambient: tuple[float, float, float] = (0.36, 0.375, 0.40)
    shadows: bool = True
    """Cast shadows and hidden sky; without them a picture takes a third of the time."""
    per_vertex: bool = False
    """Whether light is computed at the vertices and interpolated over the faces: faster again, but no sharp gloss."""


STUDIO = Lighting()
DAYLIGHT = Lighting(shadows=False, per_vertex=True)
"""For many pictures in little time."""


@dataclass(frozen=True, eq=False)
class Patterned:
    """Colours of vertices, and a pattern finer than these: a solid texture (Peachey 1985; Perlin 1985)."""

    colors: Tensor
    """(V, 3) albedo in [0, 1]."""
    places: Tensor
    """(V, 3) where the pattern is looked up: each vertex' place in a space of the pattern's own."""
    factor: Callable[[Tensor], Tensor]
    """From places (N, 3) to factors (N, 3) on the linear albedo."""


def shade(
    verts_m: Tensor,  # (V, 3) camera frame
    faces: Tensor,  # (F, 3) outward counter-clockwise
    camera: Camera,
    image_size: tuple[int, int],
    *,
    material: Material = CLAY,
    lighting: Lighting = STUDIO,
    vertex_colors: Tensor | Patterned | None = None,  # (V, 3)
    supersample: int | None = None,
) -> np.ndarray:
    """Draws a smooth-shaded mesh, float32 (H, W, 4): sRGB and straight alpha in [0, 1].

    Drawn in bands of rows, so that memory does not grow with the image. Not differentiable.

    Args:
        verts_m: vertices, metres, in the frame that `camera` projects.
        faces: triangles; back faces are drawn too, darker.
        camera: projects to pixels of the image.
        image_size: (height, width).
        material: reflectance; its colour is that of vertices without `vertex_colors`.
        lighting: lights of the scene.
        vertex_colors: albedo of each vertex in [0, 1], with or without a pattern.
        supersample: samples along each side of a pixel, 1 to 8; None is 3, and less for large meshes.

    Raises:
        ValueError: if shapes do not fit, or `image_size` or `supersample` is out of range.
    """
    pattern = vertex_colors if isinstance(vertex_colors, Patterned) else None
    colors = vertex_colors if pattern is None else pattern.colors
    height, width = _check_scene(verts_m, faces, image_size, supersample, colors)
    if pattern is not None and pattern.places.shape != verts_m.shape:
        raise ValueError(f"vertex_colors.places: expected {tuple(verts_m.shape)}, got {tuple(pattern.places.shape)}")
    canvas = np.zeros((height, width, 4), dtype=np.float32)
    verts_m = verts_m.detach().float().cpu()
    points_px = camera.project(verts_m.double())
    window = _window(points_px, height, width)
    if window is None:
        return canvas
    left, top, right, bottom = window
    if supersample is None:
        area_px = (right - left) * (bottom - top)
        supersample = 3 - sum(area_px > limit for limit in _LARGE_WINDOWS_PX)
    albedo = verts_m.new_tensor(material.color).expand_as(verts_m)
    if colors is not None:
        albedo = colors.detach().float().cpu()
    scene = _Scene(verts_m, faces.detach().cpu().long(), albedo.clamp(0, 1) ** GAMMA, material, lighting, pattern)
    for first, last in _bands(top, bottom, (right - left) * supersample**2):
        offset = points_px.new_tensor((left, first))
        verts_px = torch.cat([((points_px - offset) * supersample).float(), verts_m[:, 2:]], dim=1)
        size = ((last - first) * supersample, (right - left) * supersample)
        samples = scene.radiance(verts_px, size, isinstance(camera, Pinhole))
        canvas[first:last, left:right] = _encoded(samples, supersample)
    return canvas


def round_off(
    verts_m: Tensor,  # (V, 3)
    faces: Tensor,  # (F, 3)
    values: Tensor | None = None,  # (V, C)
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Splits each triangle in four and bulges the new edges, so that a coarse mesh has round outlines.

    Vertices stay, and come first. Boubekeur & Alexa 2008, *Phong Tessellation*, ACM Trans. Graph. 27(5), with
    their alpha of 3/4; `values` (colours) are interpolated linearly.

    Returns:
        Vertices (V + E, 3) for E edges, faces (4 F, 3) int64, and values (V + E, C) or None.
    """
    faces = faces.long()
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).sort(dim=1).values
    # As one number each, edges are sorted six times as fast as by rows.
    keys, which = torch.unique(edges[:, 0] * len(verts_m) + edges[:, 1], return_inverse=True)
    edges = torch.stack([keys // len(verts_m), keys % len(verts_m)], dim=1)
    normals = vertex_normals(verts_m, faces)
    # Vertices on a crease have no tangent plane, and edges between them stay straight.
    alike = (_corner_normals(verts_m, faces) * normals[faces]).sum(-1)
    least = alike.new_ones(len(verts_m)).scatter_reduce_(0, faces.flatten(), alike.flatten(), "amin")
    normals = normals * (least > _CREASE_ALIKE)[:, None]
    a, b = verts_m[edges].unbind(1)
    normal_a, normal_b = normals[edges].unbind(1)
    middle = 0.5 * (a + b)
    # The middle, projected to the tangent planes at both ends: m - ((m - a) . n_a) n_a, and alike at b.
    height_a = ((middle - a) * normal_a).sum(1, keepdim=True)
    height_b = ((middle - b) * normal_b).sum(1, keepdim=True)
    bulged = middle - 0.75 * 0.5 * (height_a * normal_a + height_b * normal_b)
    ab, bc, ca = (len(verts_m) + which.reshape(-1, 3)).unbind(1)
    corner_a, corner_b, corner_c = faces.unbind(1)
    split = [(corner_a, ab, ca), (ab, corner_b, bc), (ca, bc, corner_c), (ab, bc, ca)]
    split_faces = torch.cat([torch.stack(corners, dim=1) for corners in split])
    split_values = None if values is None else torch.cat([values, values[edges].mean(1)])
    return torch.cat([verts_m, bulged]), split_faces, split_values


class _Scene:
    """A lit mesh, ready to be drawn; float32 on the CPU, colours linear."""

    def __init__(
        self,
        verts_m: Tensor,
        faces: Tensor,
        albedo: Tensor,
        material: Material,
        lighting: Lighting,
        pattern: Patterned | None = None,
    ) -> None:
        self.verts_m, self.faces = verts_m, faces
        self.material, self.lighting, self.pattern = material, lighting, pattern
        # Where light is computed at the vertices, creases are not looked at.
        self.corner_normals = None if lighting.per_vertex else _corner_normals(verts_m, faces)
        self.key = normalize(verts_m.new_tensor(lighting.key), dim=0)
        self.shadow: _ShadowMap | None = None
        sky = torch.ones(len(verts_m), 1)
        if lighting.shadows:
            self.shadow = _ShadowMap(verts_m, faces, self.key, _SHADOW_MAP_PX)
            sky = _open_sky(verts_m, faces)
        # What is interpolated over a face, side by side: one gather instead of three.
        self.vertex_values = torch.cat([verts_m, albedo, sky], dim=1)
        if pattern is not None:
            self.vertex_values = torch.cat([self.vertex_values, pattern.places.detach().float().cpu()], dim=1)

    def radiance(
        self,
        verts_px: Tensor,  # (V, 3)
        size: tuple[int, int],
        perspective: bool,
    ) -> Tensor:
        """Linear radiance and coverage (h, w, 4) of samples at the centres of pixels."""
        seen = rasterize(verts_px[None], self.faces.int(), size, perspective=perspective)
        covered = seen.face_index[0] >= 0
        if self.lighting.per_vertex:
            lit = interpolate(self._lit_vertices(perspective), self.faces.int(), seen)[0]
            if self.pattern is None:
                return lit
            samples, places = lit[..., :4].contiguous(), lit[..., 4:]
            samples[..., :3][covered] *= self.pattern.factor(places[covered])
            return samples
        samples = torch.zeros(*size, 4)
        if covered.any():
            face = seen.face_index[0][covered].long()
            samples[covered] = torch.cat(
                [self._reflected(face, seen.bary[0][covered], perspective), torch.ones(len(face), 1)], dim=1
            )
        return samples

    def _lit_vertices(self, perspective: bool) -> Tensor:
        """Linear radiance and coverage (V, 4) of the vertices; with a pattern (V, 7), its places beside them."""
        points_m, albedo, sky, places = self.vertex_values.tensor_split([3, 6, 7], dim=1)
        to_viewer = normalize(-points_m if perspective else points_m.new_tensor((0, 0, -1)).expand_as(points_m), dim=1)
        normals = vertex_normals(self.verts_m, self.faces)
        reached = sky if self.shadow is None else self.shadow.soft(points_m, normals)
        return torch.cat([self._lit(normals, to_viewer, albedo, sky, reached), torch.ones_like(sky), places], dim=1)

    def _reflected(self, face: Tensor, bary: Tensor, perspective: bool) -> Tensor:
        """Linear radiance (N, 3) of points given by face (N,) and barycentric coordinates (N, 3)."""
        corners, weights = self.faces[face], bary[..., None]
        points_m, albedo, sky, places = (self.vertex_values[corners] * weights).sum(1).tensor_split([3, 6, 7], dim=1)
        if self.pattern is not None:
            albedo = (albedo * self.pattern.factor(places)).clamp(0, 1)
        to_viewer = -points_m if perspective else points_m.new_tensor((0, 0, -1)).expand_as(points_m)
        to_viewer = normalize(to_viewer, dim=1)
        a, b, c = self.verts_m[corners].unbind(1)
        outside = (torch.linalg.cross(b - a, c - a) * to_viewer).sum(1, keepdim=True) > 0
        normals = normalize((self.corner_normals[face] * weights).sum(1), dim=1)
        normals = torch.where(outside, normals, -normals)
        reached = sky if self.shadow is None else self.shadow.soft(points_m, normals)
        radiance = self._lit(normals, to_viewer, albedo, sky, reached)
        return torch.where(outside, radiance, 0.35 * radiance)

    def _lit(self, normals: Tensor, to_viewer: Tensor, albedo: Tensor, sky: Tensor, reached: Tensor) -> Tensor:
        material, lighting = self.material, self.lighting
        wrap = albedo.new_tensor(material.wrap)
        # Light that bounces between the walls of a crease takes on their colour.
        open_sky = sky / (1 - albedo * (1 - sky)).clamp(min=1e-3)
        light = albedo.new_tensor(lighting.ambient) * (0.8 - 0.2 * normals[:, 1:2]) * open_sky
        gloss = torch.zeros_like(albedo)
        fill = normalize(albedo.new_tensor(lighting.fill), dim=0)
        for towards, color, part in (
            (self.key, lighting.key_color, reached),
            (fill, lighting.fill_color, open_sky),
        ):
            color = albedo.new_tensor(color)
            cosine = (normals @ towards)[:, None]
            # Skin passes some light on into its shadow, mostly red.
            spread = part + (1 - part) * (0.25 * wrap)
            light = light + color * spread * ((cosine + wrap) / (1 + wrap)).clamp(min=0) ** 1.4
            half = normalize(towards + to_viewer, dim=1)
            lobe = (normals * half).sum(1, keepdim=True).clamp(min=0) ** material.shininess
            gloss = gloss + color * part * material.specular * lobe * cosine.clamp(0, 0.25) * 4
        grazing = (1 - (normals * to_viewer).sum(1, keepdim=True).clamp(0, 1)) ** 3
        return albedo * light + gloss + material.rim * grazing * open_sky * albedo.new_tensor(lighting.ambient)


# --- Normals ------------------------------------------------------------------------------------------------

_CREASE_COSINE = 0.34
"""Faces that meet at more than 70 degrees form an edge, as at a closed wrist."""
_CREASE_ALIKE = 0.9
"""Least cosine between the normals of a vertex and of its corners where it does not lie on a crease."""


def _face_normals(verts_m: Tensor, faces: Tensor) -> Tensor:
    """Outward normals (F, 3), twice as long as the face is large."""
    a, b, c = verts_m[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def vertex_normals(verts_m: Tensor, faces: Tensor) -> Tensor:
    """Unit normals (V, 3): the mean of the adjacent faces, weighted by area."""
    face_normals = _face_normals(verts_m, faces)
    normals = torch.zeros_like(verts_m).index_add_(0, faces.flatten(), face_normals.repeat_interleave(3, dim=0))
    return normalize(normals, dim=1)


def _corner_normals(verts_m: Tensor, faces: Tensor) -> Tensor:
    """Unit normals (F, 3, 3) of the corners of faces: the mean of the faces around, but not over creases."""
    face_normals = _face_normals(verts_m, faces)
    corner_verts = faces.flatten()
    order = torch.argsort(corner_verts, stable=True)
    degree = torch.bincount(corner_verts, minlength=len(verts_m))
    slot = torch.arange(len(order), device=faces.device) - (degree.cumsum(0) - degree)[corner_verts[order]]
    # Faces around each vertex; an extra face without area fills up the table.
    around = faces.new_full((len(verts_m), int(degree.max())), len(faces))
    around[corner_verts[order], slot] = order // 3
    padded = torch.cat([face_normals, face_normals.new_zeros(1, 3)])
    directions = normalize(padded, dim=1)
    neighbours = around[faces]  # (F, 3, degree)
    cosine = (directions[neighbours] * directions[:-1, None, None]).sum(-1, keepdim=True)
    return normalize((padded[neighbours] * (cosine > _CREASE_COSINE)).sum(2), dim=-1)


# --- Shadows ------------------------------------------------------------------------------------------------

_SHADOW_MAP_PX = 384
_SKY_MAP_PX = 96
_SKY_DIRECTIONS = 48
_PENUMBRA = 0.012
"""Radius of a shadow's soft edge, by the size of the mesh."""
_GOLDEN_ANGLE = 2.399963229728653


class _ShadowMap:
    """Depth of a mesh as seen from a distant light."""

    def __init__(self, verts_m: Tensor, faces: Tensor, towards: Tensor, size: int) -> None:
        helper = towards.new_tensor((1.0, 0, 0) if abs(float(towards[0])) < 0.8 else (0, 1.0, 0))
        x = normalize(torch.linalg.cross(helper, towards), dim=0)
        self.axes = torch.stack([x, torch.linalg.cross(towards, x), -towards], dim=1)
        local = verts_m @ self.axes
        self.low, high = local.min(0).values, local.max(0).values
        self.extent = float((high - self.low)[:2].max()) or 1.0
        self.towards, self.size = towards, size
        seen = rasterize(torch.cat([self._pixels(local), local[:, 2:]], dim=1)[None], faces.int(), (size, size))
        self.depth = torch.where(seen.face_index[0] >= 0, seen.depth[0], torch.inf).flatten()

    def _pixels(self, local: Tensor) -> Tensor:
        return (local[:, :2] - self.low[:2]) * ((self.size - 4) / self.extent) + 2

    def reaches(
        self,
        points_m: Tensor,  # (N, 3)
        taps_px: Tensor,  # (T, 2)
    ) -> Tensor:
        """(N, 1): of the rays to the light through points beside the given ones, how many meet no surface."""
        local = points_m @ self.axes
        pixels, depth = self._pixels(local), local[:, 2]
        lit = torch.zeros_like(depth)
        for tap in taps_px:
            column, row = (pixels + tap).long().clamp(0, self.size - 1).unbind(1)
            lit += depth <= self.depth[row * self.size + column]
        return (lit / len(taps_px))[:, None]

    def soft(self, points_m: Tensor, normals: Tensor) -> Tensor:
        """(N, 1): the part of a large light that surface points see (percentage-closer filtering)."""
        # Lifted off the surface, or the finite pixels of the map would have it shade itself.
        lifted = points_m + (0.012 * normals + 0.008 * self.towards) * self.extent
        return self.reaches(lifted, _spiral(20) * (_PENUMBRA * self.size))


def _open_sky(verts_m: Tensor, faces: Tensor) -> Tensor:
    """Ambient occlusion (V, 1): the cosine-weighted part of the hemisphere over each vertex that is open."""
    normals = vertex_normals(verts_m, faces)
    open_part, whole = torch.zeros(len(normals), 1), torch.full((len(normals), 1), 1e-9)
    for towards in _sphere(_SKY_DIRECTIONS):
        shadow = _ShadowMap(verts_m, faces, towards, _SKY_MAP_PX)
        weight = (normals @ towards).clamp(min=0)[:, None]
        open_part += weight * shadow.reaches(verts_m + 0.02 * shadow.extent * normals, torch.zeros(1, 2))
        whole += weight
    return open_part / whole


def _spiral(n: int) -> Tensor:
    """(n, 2) points spread evenly over the unit disc."""
    k = torch.arange(n) + 0.5
    angle, radius = k * _GOLDEN_ANGLE, (k / n).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _sphere(n: int) -> Tensor:
    """(n, 3) directions spread evenly over the unit sphere."""
    k = torch.arange(n) + 0.5
    z, angle = 1 - 2 * k / n, k * _GOLDEN_ANGLE
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)


# --- Pixels -------------------------------------------------------------------------------------------------


def _encoded(samples: Tensor, supersample: int) -> np.ndarray:
    """Pixels of sRGB and straight alpha from samples of linear radiance and coverage."""
    h, w = samples.shape[0] // supersample, samples.shape[1] // supersample
    mean = samples.reshape(h, supersample, w, supersample, 4).mean(dim=(1, 3))
    alpha = mean[..., 3:]
    radiance = mean[..., :3] / alpha.clamp(min=1e-6)
    # Bright values roll off smoothly, so that highlights keep their colour.
    knee = 0.6
    over = (radiance - knee).clamp(min=0)
    radiance = radiance.clamp(max=knee) + (1 - knee) * (1 - torch.exp(-over / (1 - knee)))
    return torch.cat([radiance ** (1 / GAMMA), alpha], dim=-1).numpy()


def _bands(top: int, bottom: int, samples_per_row: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _BAND_SAMPLES // samples_per_row)
    for first in range(top, bottom, rows):
        yield first, min(first + rows, bottom)


def _window(points_px: Tensor, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of the part of the image that the points span; None if they miss it."""
    seen = points_px[torch.isfinite(points_px).all(1)].clamp(-1e6, 1e6)
    if len(seen) == 0:
        return None
    low, high = seen.min(0).values.floor(), seen.max(0).values.ceil()
    left, top = max(0, int(low[0])), max(0, int(low[1]))
    right, bottom = min(width, int(high[0])), min(height, int(high[1]))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _check_scene(
    verts_m: Tensor,
    faces: Tensor,
    image_size: tuple[int, int],
    supersample: int | None,
    colors: Tensor | None,
) -> tuple[int, int]:
    if verts_m.dim() != 2 or verts_m.shape[1] != 3 or not verts_m.is_floating_point():
        raise ValueError(
            f"verts_m: expected a floating-point tensor (V, 3), got {tuple(verts_m.shape)} {verts_m.dtype}"
        )
    if faces.dim() != 2 or faces.shape[1] != 3 or faces.is_floating_point():
        raise ValueError(f"faces: expected an integer tensor (F, 3), got {tuple(faces.shape)} {faces.dtype}")
    if colors is not None and colors.shape != verts_m.shape:
        raise ValueError(f"vertex_colors: expected {tuple(verts_m.shape)}, got {tuple(colors.shape)}")
    height, width = (int(side) for side in image_size)
    if height < 1 or width < 1:
        raise ValueError(f"image_size: expected (height, width) of at least one pixel, got {image_size}")
    if supersample is not None and not 1 <= supersample <= 8:
        raise ValueError(f"supersample: expected None or 1 to 8, got {supersample}")
    return height, width
