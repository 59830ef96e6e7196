"""Other rasterizers on the job of bench_raster.py, where they can be imported; none is a dependency.

Each draws the same orthographic hands with its public functions and, where it has settings, those of its documentation.
Vertices are brought into its conventions beforehand, and gradients are those of the vertices as it takes them: what is
timed is its own work. bench_raster.py compares the picture with this package's own before it times anything.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scene import Scene
from torch import Tensor

SIGMA_NDC = 1e-4
"""Of the soft silhouettes, in units in which the image spans [-1, 1]: the papers' default."""
SOFT_FACES = 50
"""Faces a pixel of PyTorch3D's soft silhouette: its tutorials' value. This package, like SoftRas, takes all."""


@dataclass(frozen=True)
class Work:
    """What an implementation does in one job."""

    run: Callable[..., tuple[Tensor, ...]]
    """From the leaves to images, some of them differentiable."""
    leaves: tuple[Tensor, ...]
    """What receives gradients."""
    picture: Callable[[tuple[Tensor, ...]], Tensor]
    """Of what `run` gave: (B, H, W) integers, the number of the face within its mesh or -1; (B, H, W) booleans, covered
    or not; or (B, H, W, C) values, 0 where nothing is."""


def ndc(verts_px: Tensor, image_size: int, x: float, y: float) -> Tensor:
    """[-1, 1] across the image, x and y pointing as their signs say: +1 as in the image, right and down.

    z stays positive, around 2.
    """
    side = image_size / 2
    scale = verts_px.new_tensor([x / side, y / side, 1 / image_size])
    return verts_px * scale - verts_px.new_tensor([x, y, 0])


# ---- PyTorch3D: x to the left, y up ----------------------------------------------------------------------------------


def _pytorch3d_verts(scene: Scene) -> Tensor:
    return ndc(scene.verts_px, scene.image_size, -1, -1)


def _pytorch3d_rasterizer(scene: Scene, blur: float, n_faces: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    faces = scene.faces.long().expand(len(scene.verts_px), -1, -1)

    def fragments(verts: Tensor) -> tuple[Tensor, ...]:
        meshes = Meshes(verts, faces)
        return rasterize_meshes(meshes, scene.image_size, blur_radius=blur, faces_per_pixel=n_faces)

    return fragments


def _pytorch3d_rasterize(scene: Scene) -> Work:
    fragments = _pytorch3d_rasterizer(scene, 0.0, 1)

    def run(verts: Tensor) -> tuple[Tensor, ...]:
        face, depth, bary, _ = fragments(verts)
        return face, bary, depth

    def picture(images: tuple[Tensor, ...]) -> Tensor:
        face = images[0][..., 0]  # counted through the batch
        return torch.where(face < 0, face, face % len(scene.faces))

    return Work(run, (_pytorch3d_verts(scene),), picture)


def _pytorch3d_silhouette(scene: Scene, blur: float, n_faces: int) -> Work:
    from pytorch3d.renderer import BlendParams, SoftSilhouetteShader
    from pytorch3d.renderer.mesh.rasterizer import Fragments

    fragments = _pytorch3d_rasterizer(scene, blur, n_faces)
    shader = SoftSilhouetteShader(blend_params=BlendParams(sigma=SIGMA_NDC))

    def run(verts: Tensor) -> tuple[Tensor, ...]:
        return (shader(Fragments(*fragments(verts)), None)[..., 3],)

    return Work(run, (_pytorch3d_verts(scene),), lambda images: images[0] > 0.5)


def _pytorch3d_hard(scene: Scene) -> Work:
    work = _pytorch3d_silhouette(scene, 0.0, 1)
    # One face a pixel: 1/2 on the face's outline, and 0 where no face is.
    return Work(work.run, work.leaves, lambda images: images[0] > 0)


def _pytorch3d_soft(scene: Scene) -> Work:
    return _pytorch3d_silhouette(scene, math.log(1 / 1e-4 - 1) * SIGMA_NDC, SOFT_FACES)


def _pytorch3d_interpolate(scene: Scene, colours: Tensor) -> Work:  # (B, V, 3)
    from pytorch3d.ops import interpolate_face_attributes

    face, _, bary, _ = _pytorch3d_rasterizer(scene, 0.0, 1)(_pytorch3d_verts(scene))
    faces = scene.faces.long()

    def run(colours: Tensor, bary: Tensor) -> tuple[Tensor, ...]:
        corners = colours[:, faces].flatten(0, 1)  # (B F, 3, 3)
        return (interpolate_face_attributes(face, bary, corners)[..., 0, :],)

    return Work(run, (colours, bary), lambda images: images[0])


# ---- DRTK: the centre of the first pixel is the origin ---------------------------------------------------------------


def _drtk_verts(scene: Scene) -> Tensor:
    return scene.verts_px - scene.verts_px.new_tensor([0.5, 0.5, 0])


def _drtk_rasterize(scene: Scene) -> Work:
    import drtk

    def run(verts: Tensor) -> tuple[Tensor, ...]:
        face = drtk.rasterize(verts, scene.faces, scene.image_size, scene.image_size)
        depth, bary = drtk.render(verts, scene.faces, face)
        return face, bary, depth

    return Work(run, (_drtk_verts(scene),), lambda images: images[0])


def _drtk_silhouette(scene: Scene) -> Work:
    import drtk

    def run(verts: Tensor) -> tuple[Tensor, ...]:
        face = drtk.rasterize(verts, scene.faces, scene.image_size, scene.image_size)
        mask = (face >= 0)[:, None].to(verts.dtype)
        if torch.is_grad_enabled():  # the estimator gives back the picture as it is: only gradients need it
            _, bary = drtk.render(verts, scene.faces, face)
            mask = drtk.edge_grad_estimator(verts, scene.faces, bary, mask, face)
        return (mask[:, 0],)

    return Work(run, (_drtk_verts(scene),), lambda images: images[0] > 0.5)


def _drtk_interpolate(scene: Scene, colours: Tensor) -> Work:  # (B, V, 3)
    import drtk

    face, bary, _ = _drtk_rasterize(scene).run(_drtk_verts(scene))

    def run(colours: Tensor, bary: Tensor) -> tuple[Tensor, ...]:
        return (drtk.interpolate(colours, scene.faces, face, bary),)

    # What it writes where no face is, is not defined.
    covered = (face >= 0)[..., None]
    return Work(run, (colours, bary), lambda images: images[0].permute(0, 2, 3, 1) * covered)


# ---- nvdiffrast: clip space, rows as in the image --------------------------------------------------------------------


def _nvdiffrast_clip(scene: Scene) -> Tensor:  # (B, V, 4)
    verts = ndc(scene.verts_px, scene.image_size, 1, 1)
    depth = verts[..., 2:] - 2  # around 0, within [-1, 1]
    return torch.cat([verts[..., :2], depth, torch.ones_like(depth)], -1)


def _nvdiffrast_rasterize(scene: Scene) -> Work:
    import nvdiffrast.torch as dr

    context, size = dr.RasterizeCudaContext(), (scene.image_size, scene.image_size)

    def run(clip: Tensor) -> tuple[Tensor, ...]:
        raster, _ = dr.rasterize(context, clip, scene.faces, size)
        return (raster,)

    return Work(run, (_nvdiffrast_clip(scene),), lambda images: images[0][..., 3].int() - 1)


def _nvdiffrast_silhouette(scene: Scene) -> Work:
    import nvdiffrast.torch as dr

    context, size = dr.RasterizeCudaContext(), (scene.image_size, scene.image_size)

    def run(clip: Tensor) -> tuple[Tensor, ...]:
        raster, _ = dr.rasterize(context, clip, scene.faces, size, grad_db=False)
        mask = (raster[..., 3:] > 0).to(clip.dtype)
        return (dr.antialias(mask, raster, clip, scene.faces)[..., 0],)

    return Work(run, (_nvdiffrast_clip(scene),), lambda images: images[0] > 0.5)


def _nvdiffrast_interpolate(scene: Scene, colours: Tensor) -> Work:  # (B, V, 3)
    import nvdiffrast.torch as dr

    (raster,) = _nvdiffrast_rasterize(scene).run(_nvdiffrast_clip(scene))

    def run(colours: Tensor, raster: Tensor) -> tuple[Tensor, ...]:
        return (dr.interpolate(colours, raster, scene.faces)[0],)

    return Work(run, (colours, raster), lambda images: images[0])


# ---- neural_renderer and SoftRas: y up -------------------------------------------------------------------------------


def _verts_y_up(scene: Scene) -> Tensor:
    return ndc(scene.verts_px, scene.image_size, 1, -1)


def _neural_renderer_silhouette(scene: Scene) -> Work:
    from neural_renderer.rasterize import rasterize_silhouettes

    faces = scene.faces.long()

    def run(verts: Tensor) -> tuple[Tensor, ...]:
        corners = verts[:, faces]
        both_sides = torch.cat([corners, corners.flip(2)], 1)
        return (rasterize_silhouettes(both_sides, scene.image_size, anti_aliasing=False),)

    return Work(run, (_verts_y_up(scene),), lambda images: images[0] > 0.5)


def _soft_renderer_silhouette(scene: Scene) -> Work:
    from soft_renderer.functional import soft_rasterize

    faces = scene.faces.long()

    def run(verts: Tensor) -> tuple[Tensor, ...]:
        corners = verts[:, faces]
        texture = torch.ones_like(corners[:, :, :1])
        # "hard" colours: only the silhouette is asked for.
        image = soft_rasterize(corners, texture, scene.image_size, sigma_val=SIGMA_NDC, aggr_func_rgb="hard")
        return (image[:, 3],)

    return Work(run, (_verts_y_up(scene),), lambda images: images[0] > 0.5)


# ----------------------------------------------------------------------------------------------------------------------

CUDA_ONLY = ("nvdiffrast", "neural_renderer", "soft_renderer")
PEERS = ("pytorch3d", "drtk", *CUDA_ONLY)
SECONDS_AN_IMAGE = {("cpu", "pytorch3d")}
"""Peers that take so long on a device that a batch is not timed: this one tries every face at every pixel."""

RENDERINGS: dict[tuple[str, str], Callable[[Scene], Work]] = {
    ("rasterize", "pytorch3d"): _pytorch3d_rasterize,
    ("rasterize", "drtk"): _drtk_rasterize,
    ("rasterize", "nvdiffrast"): _nvdiffrast_rasterize,
    ("nmr", "pytorch3d"): _pytorch3d_hard,
    ("nmr", "drtk"): _drtk_silhouette,
    ("nmr", "neural_renderer"): _neural_renderer_silhouette,
    ("edge", "drtk"): _drtk_silhouette,
    ("edge", "nvdiffrast"): _nvdiffrast_silhouette,
    ("soft", "pytorch3d"): _pytorch3d_soft,
    ("soft", "soft_renderer"): _soft_renderer_silhouette,
}
"""What is rendered from vertices, by job and peer."""

INTERPOLATIONS: dict[str, Callable[[Scene, Tensor], Work]] = {
    "pytorch3d": _pytorch3d_interpolate,
    "drtk": _drtk_interpolate,
    "nvdiffrast": _nvdiffrast_interpolate,
}


def does(job: str, peer: str) -> bool:
    """Whether the peer has this job."""
    return peer in INTERPOLATIONS if job == "interpolate" else (job, peer) in RENDERINGS


def at_hand(device: str, batch: int = 1) -> tuple[str, ...]:
    """The peers that are installed, run on this device, and are through with so many images in time."""
    installed = [peer for peer in PEERS if importlib.util.find_spec(peer) is not None]
    able = [peer for peer in installed if device == "cuda" or peer not in CUDA_ONLY]
    return tuple(peer for peer in able if batch == 1 or (device, peer) not in SECONDS_AN_IMAGE)
