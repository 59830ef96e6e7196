"""Drop-in for ``neural_renderer``, the PyTorch port of Kato et al.'s Neural 3D Mesh Renderer (CVPR 2018).

    >>> from dhpe_fast.compat import neural_renderer as nr  # was: import neural_renderer as nr
    >>> renderer = nr.Renderer(camera_mode="look_at")

Names, arguments, defaults, shapes, pictures and gradients are those of github.com/daniilidis-group/neural_renderer,
on CUDA and on the CPU; what differs is listed in ``docs/drop-ins.md``.

Its frame, unlike the rest of this package: normalised device coordinates, x to the right and y *up*, the image spanning
[-1, 1], z the distance from the camera. Faces are seen if they run counter-clockwise on the screen. Images are
(B, 3, S, S) and masks and depths (B, S, S), the first row at the top.
"""

from dhpe_fast.compat.neural_renderer.geometry import (
    get_points_from_angles,
    lighting,
    look,
    look_at,
    perspective,
    projection,
    vertices_to_faces,
)
from dhpe_fast.compat.neural_renderer.obj import Mesh, load_obj, save_obj
from dhpe_fast.compat.neural_renderer.raster import (
    Rasterize,
    rasterize,
    rasterize_depth,
    rasterize_rgbad,
    rasterize_silhouettes,
)
from dhpe_fast.compat.neural_renderer.renderer import Renderer
from dhpe_fast.compat.neural_renderer.textures import create_texture_image

__all__ = [
    "Mesh",
    "Rasterize",
    "Renderer",
    "create_texture_image",
    "get_points_from_angles",
    "lighting",
    "load_obj",
    "look",
    "look_at",
    "perspective",
    "projection",
    "rasterize",
    "rasterize_depth",
    "rasterize_rgbad",
    "rasterize_silhouettes",
    "save_obj",
    "vertices_to_faces",
]
