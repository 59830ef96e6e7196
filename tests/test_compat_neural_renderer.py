"""The neural_renderer drop-in: its published gradients, cameras by hand, pictures whose every pixel is known."""

from __future__ import annotations

import inspect
import math

import cv2
import numpy as np
import pytest
import torch
from meshes import sphere

from dhpe_fast import ops
from dhpe_fast.compat import neural_renderer as nr
from dhpe_fast.compat.neural_renderer.textures import look_up

SQUARE = torch.tensor([[[-0.5, -0.5, 1], [0.5, -0.5, 1], [0.5, 0.5, 1], [-0.5, 0.5, 1]]])
SQUARE_FACES = torch.tensor([[[0, 1, 2], [0, 2, 3]]], dtype=torch.int32)  # counter-clockwise, y up
BEYOND = torch.tensor([[[0, 1, 4], [0, 2, 3]]])  # one more vertex than there are
LEFT_TOP = torch.tensor([[[-1.0, 1, 1], [-1, 0, 1], [0, 1, 1]]])  # the upper left triangle of the image


def in_ndc(**options) -> nr.Renderer:
    """A renderer that takes vertices as they are, and lights nothing."""
    renderer = nr.Renderer(camera_mode="look_at", **options)
    renderer.camera_mode = "none"
    renderer.light_intensity_ambient, renderer.light_intensity_directional = 1.0, 0.0
    return renderer


def white(faces: torch.Tensor, size: int = 2) -> torch.Tensor:
    return torch.ones(*faces.shape[:2], size, size, size, 3)


def in_batch(value: torch.Tensor, place: int = 2, batch: int = 4) -> torch.Tensor:
    """One item among empty ones, whose faces are degenerate."""
    whole = value.new_zeros(batch, *value.shape)
    whole[place] = value
    return whole


# ---- neural_renderer's own numbers ------------------------------------------------------------------------

PUBLISHED = {
    "a pixel outside that should be covered": (
        [[0.8, 0.8, 1.0], [0.0, -0.5, 1], [0.2, -0.4, 1]],
        (25, 35, 1.0),
        [[1.6725862, -0.26021874, 0], [1.41986704, -1.64284933, 0], [0, 0, 0]],
        {
            1e-4: [[1.67258, -0.26022, 0], [1.41987, -1.64285, 0], [0, 0, 0]],
            1e-3: [[1.67007, -0.26016, 0], [1.41806, -1.64043, 0], [0, 0, 0]],
        },
    ),
    "a pixel on the face that should be empty": (
        [[0.8, 0.8, 1.0], [-0.5, -0.8, 1], [0.8, -0.8, 1]],
        (40, 50, 0.0),
        [[0.98646867, 1.04628897, 0], [-1.03415668, -0.10403691, 0], [3.00094461, -1.55173182, 0]],
        {
            1e-4: [[0.98643, 1.04630, 0], [-1.03417, -0.10404, 0], [3.00086, -1.55172, 0]],
            1e-3: [[0.98463, 1.04531, 0], [-1.03320, -0.10399, 0], [2.99278, -1.54955, 0]],
        },
    ),
}
"""Corners, the pixel and what it is wanted to be; the gradient as published, within 1%; and from the paper's formula in
float64, by eps."""


@pytest.mark.parametrize("case", PUBLISHED)
@pytest.mark.parametrize("mode", ["silhouettes", "rgb", None])
def test_published_gradients(device, case, mode):
    corners, (row, column, wanted), published, by_eps = PUBLISHED[case]
    renderer = nr.Renderer(camera_mode="look_at", image_size=64, anti_aliasing=False, perspective=False)
    renderer.light_intensity_ambient, renderer.light_intensity_directional = 1.0, 0.0
    vertices = in_batch(torch.tensor(corners)).to(device).requires_grad_()
    faces = in_batch(torch.tensor([[0, 1, 2]], dtype=torch.int32)).to(device)
    images = renderer(vertices, faces, white(faces, 4).to(device), mode=mode)
    images = images[0] if mode is None else images
    mask = images if mode == "silhouettes" else images.mean(1)
    (mask[:, row, column] - wanted).abs().sum().backward()
    torch.testing.assert_close(vertices.grad[2].cpu(), torch.tensor(published), rtol=1e-2, atol=1e-6)
    assert (vertices.grad[[0, 1, 3]] == 0).all()
    # Pictures are drawn with the renderer's own eps, silhouettes with the rasterizer's.
    exact = torch.tensor(by_eps[1e-4 if mode == "silhouettes" else 1e-3])
    torch.testing.assert_close(vertices.grad[2].cpu(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", PUBLISHED)
@pytest.mark.parametrize("eps", [1e-4, 1e-3])
@pytest.mark.parametrize("call", ["rasterize_silhouettes", "rasterize", "Renderer"])
def test_eps_is_heard(case, eps, call):
    corners, (row, column, wanted), _, by_eps = PUBLISHED[case]
    corners, faces = torch.tensor([[corners]], requires_grad=True), torch.tensor([[[0, 1, 2]]])
    if call == "rasterize_silhouettes":
        mask = nr.rasterize_silhouettes(torch.cat([corners, corners.flip(2)], 1), 64, False, eps=eps)
    elif call == "rasterize":
        mask = nr.rasterize(torch.cat([corners, corners.flip(2)], 1), torch.ones(1, 2, 2, 2, 2, 3), 64, False, eps=eps)[
            :, 0
        ]
    else:
        renderer = in_ndc(image_size=64, anti_aliasing=False)
        renderer.rasterizer_eps = eps
        mask = renderer(corners[0], faces, white(faces), mode="rgb")[:, 0]
    (mask[:, row, column] - wanted).abs().sum().backward()
    torch.testing.assert_close(corners.grad[0, 0], torch.tensor(by_eps[eps]), rtol=0, atol=1e-4)


SIGNATURES = {
    "Renderer": {
        "image_size": 256,
        "anti_aliasing": True,
        "background_color": (0, 0, 0),
        "fill_back": True,
        "camera_mode": "projection",
        "K": None,
        "R": None,
        "t": None,
        "dist_coeffs": None,
        "orig_size": 1024,
        "perspective": True,
        "viewing_angle": 30,
        "camera_direction": (0, 0, 1),
        "near": 0.1,
        "far": 100,
        "light_intensity_ambient": 0.5,
        "light_intensity_directional": 0.5,
        "light_color_ambient": (1, 1, 1),
        "light_color_directional": (1, 1, 1),
        "light_direction": (0, 1, 0),
    },
    "rasterize_silhouettes": {"image_size": 256, "anti_aliasing": True, "near": 0.1, "far": 100, "eps": 1e-4},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_and_defaults(name):
    parameters = inspect.signature(getattr(nr, name)).parameters.values()
    shared = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty]
    assert {p.name: p.default for p in shared} == SIGNATURES[name]
    assert [p.name for p in shared] == list(SIGNATURES[name]), "in this order"


# ---- Cameras and light ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eye", "expected"),
    [
        ([1, 0, 1], [-math.sqrt(0.5), 0, math.sqrt(0.5)]),
        ([0, 0, -10], [1, 0, 10]),
        ([-1, 1, 0], [0, math.sqrt(0.5), 1.5 * math.sqrt(2)]),
    ],
)
def test_look_at_by_hand(dtype, eye, expected):
    point = torch.tensor([[[1.0, 0, 0]]], dtype=dtype)
    for given in (eye, np.array(eye, np.float32), torch.tensor(eye)):
        torch.testing.assert_close(nr.look_at(point, given)[0, 0], torch.tensor(expected, dtype=dtype))


def test_look_is_look_at_from_the_direction():
    points, eye = torch.randn(2, 5, 3), torch.tensor([[0.3, -0.4, 2.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(nr.look(points, eye, -3 * eye), nr.look_at(points, eye))


def test_perspective_takes_half_the_field_of_view():
    seen = nr.perspective(torch.tensor([[[1.0, 2, 10]]]))
    torch.testing.assert_close(seen, torch.tensor([[[math.sqrt(3) / 10, 2 * math.sqrt(3) / 10, 10]]]))
    # The corner of a 90 degree view lies at x = z.
    torch.testing.assert_close(nr.perspective(torch.tensor([[[4.0, -4, 4]]]), 45), torch.tensor([[[1.0, -1, 4]]]))


def test_projection_by_hand():
    K = torch.tensor([[[100.0, 0, 60], [0, 100, 40], [0, 0, 1]]])
    R = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]])  # turns x into y
    t = torch.tensor([[[0.0, 0, 3]]])
    point = torch.tensor([[[0.4, 0.0, 1.0]]])  # in the camera's frame (0, 0.4, 4): pixel (60, 50) of 200
    undistorted = nr.projection(point, K, R, t, torch.zeros(1, 5), 200)
    torch.testing.assert_close(undistorted, torch.tensor([[[60 / 100 - 1, 1 - 50 / 100, 4.0]]]))


def test_projection_bends_as_opencv_does():
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, 3], [1, 1, 5], (7, 3))
    K = np.array([[310.0, 0, 250], [0, 290, 270], [0, 0, 1]])
    coefficients = np.array([0.11, -0.07, 0.012, -0.009, 0.03])
    rotation, _ = cv2.Rodrigues(np.array([0.1, -0.2, 0.3]))
    t = np.array([0.05, -0.1, 0.2])
    expected, _ = cv2.projectPoints(points, np.array([0.1, -0.2, 0.3]), t, K, coefficients)
    seen = nr.projection(*(torch.tensor(a)[None] for a in (points, K, rotation, t[None], coefficients)), 512)[0]
    pixels = torch.stack([(seen[:, 0] + 1) * 256, (1 - seen[:, 1]) * 256], 1)
    np.testing.assert_allclose(pixels, expected[:, 0], atol=1e-4)


def test_points_from_angles():
    np.testing.assert_allclose(nr.get_points_from_angles(2, 0, 0), (0, 0, -2), atol=1e-12)
    np.testing.assert_allclose(nr.get_points_from_angles(2, 90, 0), (0, 2, 0), atol=1e-12)
    np.testing.assert_allclose(nr.get_points_from_angles(2.0, 0, math.pi / 2, degrees=False), (2, 0, 0), atol=1e-12)
    many = nr.get_points_from_angles(*torch.tensor([[2.0, 2], [30, 0], [10, 90]]))
    expected = torch.tensor([nr.get_points_from_angles(2, 30, 10), nr.get_points_from_angles(2, 0, 90)])
    torch.testing.assert_close(many, expected)


def test_lighting_by_hand():
    # One face upright towards the light's normal (0, 1, 0), one turned away, one at 60 degrees.
    tilt = math.radians(60)
    flat = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, -1]])  # (v0 - v1) x (v2 - v1) = +y
    turn = torch.tensor([[1.0, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    faces = torch.stack([flat, flat.flip(0), flat @ turn.T])[None]
    textures = torch.full((1, 3, 2, 2, 2, 3), 0.5)
    before = textures.clone()
    lit = nr.lighting(faces, textures, 0.25, 0.5, [1, 1, 0], (1, 0.5, 0), [0, 1, 0])
    ambient, lamp = torch.tensor([0.25, 0.25, 0]), torch.tensor([0.5, 0.25, 0])
    for face, cosine in enumerate((1.0, 0.0, 0.5)):
        expected = (0.5 * (ambient + cosine * lamp)).expand(2, 2, 2, 3)
        torch.testing.assert_close(lit[0, face], expected)
    assert torch.equal(textures, before)


# ---- Pictures ---------------------------------------------------------------------------------------------


def test_y_points_up_and_the_first_row_is_the_top(device):
    faces = torch.tensor([[[0, 1, 2]]], dtype=torch.int32)
    masks = in_ndc(image_size=4, anti_aliasing=False)(LEFT_TOP.to(device), faces.to(device), mode="silhouettes")
    assert masks[0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_anti_aliasing_is_the_mean_of_four():
    # At twice the size, the upper left 4 x 4 pixels are covered to the left of their diagonal, 3, 2, 1 and 0 in a row:
    # the centres on it do not count, as it is a right edge.
    faces = torch.tensor([[[0, 1, 2]]], dtype=torch.int32)
    masks = in_ndc(image_size=4)(LEFT_TOP, faces, mode="silhouettes")
    expected = torch.zeros(4, 4)
    expected[0, 0], expected[0, 1], expected[1, 0] = 1.0, 0.25, 0.25
    torch.testing.assert_close(masks[0], expected)


def test_back_faces_are_culled_unless_filled():
    reverse = SQUARE_FACES.flip(-1)
    for mode, empty in (("silhouettes", 0.0), ("depth", 100.0)):
        culling, filling = (in_ndc(image_size=8, fill_back=fill, anti_aliasing=False) for fill in (False, True))
        front = culling(SQUARE, SQUARE_FACES, mode=mode)
        assert (front != empty).sum() == 16, mode
        assert (culling(SQUARE, reverse, mode=mode) == empty).all(), mode
        torch.testing.assert_close(filling(SQUARE, reverse, mode=mode), front)
    assert in_ndc(fill_back=False)(SQUARE, reverse, white(reverse), mode="rgb").max() == 0
    assert in_ndc()(SQUARE, reverse, white(reverse), mode="rgb").max() == 1


def test_a_culled_face_of_the_look_at_camera_is_one_turned_away():
    # Outward faces of a sphere in a frame with y up are clockwise for this camera, whose frame is left-handed.
    verts, faces = sphere(centre=(0, 0, 0), radius=0.5)
    verts, faces = verts.float()[None], faces.int()[None]
    renderer = nr.Renderer(camera_mode="look_at", image_size=32, fill_back=False)
    eye = 1 / math.tan(math.radians(30)) + 1
    near, far = (renderer(verts, f, mode="depth")[0, 16, 16] for f in (faces.flip(-1), faces))
    assert abs(near - (eye - 0.5)) < 0.03
    assert abs(far - (eye + 0.5)) < 0.03


def test_depth_is_perspective_and_far_where_empty():
    tilted = SQUARE.clone()
    tilted[0, 1:3, 2] = 3.0  # from z = 1 at x = -0.5 to 3 at x = 0.5
    depth = in_ndc(image_size=16, anti_aliasing=False)(tilted, SQUARE_FACES, mode="depth")[0]
    for column in range(4, 12):
        share = ((2 * column + 1) / 16 - 1) + 0.5
        expected = 1 / ((1 - share) / 1 + share / 3)
        torch.testing.assert_close(depth[8, column].item(), expected, rtol=1e-5, atol=0)
    assert (depth[0] == 100).all()


def test_depth_gradients_equal_finite_differences():
    vertices = torch.tensor([[[-0.9, -0.9, 2], [-0.8, 0.8, 1], [0.8, 0.8, 0.5]]], dtype=torch.float64)
    faces = torch.tensor([[[0, 1, 2]]], dtype=torch.int32)
    renderer = in_ndc(image_size=64, anti_aliasing=False)

    def depth(vertices):
        return renderer(vertices, faces, mode="depth")[0, 15, 20]

    assert torch.autograd.gradcheck(depth, (vertices.requires_grad_(),), eps=1e-6, atol=1e-6)


def test_background_near_and_far():
    renderer = in_ndc(image_size=8, anti_aliasing=False, background_color=[0.1, 0.2, 0.3], near=0.5, far=2.0)
    rgb, depth, alpha = renderer(SQUARE, SQUARE_FACES, white(SQUARE_FACES))
    torch.testing.assert_close(rgb[0, :, 0, 0], torch.tensor([0.1, 0.2, 0.3]))
    assert (rgb[0, :, 4, 4] == 1).all()
    assert alpha.sum() == 16
    assert (depth[0, 0, 0], depth[0, 4, 4]) == (2.0, 1.0)
    for z in (0.4, 2.0, 2.5):  # far itself is not nearer than far
        away = SQUARE * torch.tensor([1, 1, z])
        _, depth, alpha = renderer(away, SQUARE_FACES, white(SQUARE_FACES))
        assert alpha.sum() == 0
        # Silhouettes and depth alone are drawn from 0.1 to 100, as in neural_renderer.
        assert renderer(away, SQUARE_FACES, mode="silhouettes").sum() == 16
        assert renderer(away, SQUARE_FACES, mode="depth").max() == 100
        renderer.clip_all_modes = True
        assert renderer(away, SQUARE_FACES, mode="silhouettes").sum() == 0
        assert (renderer(away, SQUARE_FACES, mode="depth") == 2).all()
        renderer.clip_all_modes = False


CUBE_CORNERS = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
CUBE_SIDES = {  # outside seen counter-clockwise in a right-handed frame
    "-x": (0, 1, 3, 2),
    "+x": (4, 6, 7, 5),
    "-y": (0, 4, 5, 1),
    "+y": (2, 3, 7, 6),
    "-z": (0, 2, 6, 4),
    "+z": (1, 5, 7, 3),
}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_cube_of_six_colours_shows_each_side_to_its_camera(device, batch):
    colors = {name: torch.rand(3) for name in CUBE_SIDES}
    faces, textures = [], []
    for name, (a, b, c, d) in CUBE_SIDES.items():
        faces += [[a, b, c], [a, c, d]]
        textures += [colors[name].expand(4, 4, 4, 3)] * 2
    faces = torch.tensor(faces, dtype=torch.int32).expand(batch, -1, -1).to(device)
    textures = torch.stack(textures).expand(batch, -1, -1, -1, -1, -1).to(device)
    vertices = CUBE_CORNERS.expand(batch, -1, -1).to(device)
    renderer = nr.Renderer(camera_mode="look_at", image_size=16, light_intensity_directional=0.0)
    for name, (elevation, azimuth) in {"-z": (0, 0), "+x": (0, 90), "+z": (0, 180), "-x": (0, 270)}.items():
        renderer.eye = nr.get_points_from_angles(4, elevation, azimuth)
        rgb = renderer(vertices, faces, textures, mode="rgb")
        assert rgb.shape == (batch, 3, 16, 16)
        torch.testing.assert_close(rgb[-1, :, 8, 8].cpu(), 0.5 * colors[name])


def test_textures_are_trilinear_in_barycentric_coordinates():
    # Cell i, j, k of a texture holds (i, j, k) / (T - 1): the colour is the barycentric coordinate.
    ramp = torch.arange(4) / 3.0
    cube = torch.stack(torch.meshgrid(ramp, ramp, ramp, indexing="ij"), -1)
    vertices = torch.tensor([[[-1.0, -1, 1], [1, -1, 2], [-1, 1, 4]]])
    faces = torch.tensor([[[0, 1, 2]]], dtype=torch.int32)
    rgb = in_ndc(image_size=8, anti_aliasing=False)(vertices, faces, cube[None, None], mode="rgb")[0]
    for row, column in ((7, 0), (5, 1), (4, 2), (6, 4)):
        x, y = (2 * column + 1) / 8 - 1, 1 - (2 * row + 1) / 8
        linear = np.array([1 - (x + 1) / 2 - (y + 1) / 2, (x + 1) / 2, (y + 1) / 2])
        in_space = linear / np.array([1, 2, 4])
        np.testing.assert_allclose(rgb[:, row, column], in_space / in_space.sum(), atol=1e-3)


def test_a_lookup_keeps_eps_away_from_the_last_cell():
    # At a corner the lookup lies between the last two of four cells, a quarter of the way back.
    cube = torch.zeros(1, 1, 4, 4, 4, 3)
    cube[0, 0, 3, 0, 0], cube[0, 0, 2, 0, 0] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    corner = torch.tensor([[[[1.0, 0, 0]]]])
    colors = look_up(cube, torch.zeros(1, 1, 1, dtype=torch.int32), corner, 0.25)
    torch.testing.assert_close(colors[0, 0, 0], torch.tensor([0.75, 0.25, 0]))


def test_a_reversed_face_shows_the_same_colours():
    textures = torch.rand(1, 2, 3, 3, 3, 3)
    renderer = in_ndc(image_size=16)
    front = renderer(SQUARE, SQUARE_FACES, textures, mode="rgb")
    back = renderer(SQUARE, SQUARE_FACES.flip(-1), textures.transpose(2, 4), mode="rgb")
    torch.testing.assert_close(front, back)


def test_texture_gradients_are_the_weights_of_the_lookups():
    textures = torch.rand(1, 2, 2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    renderer = in_ndc(image_size=6)
    assert torch.autograd.gradcheck(
        lambda t: renderer(SQUARE.double(), SQUARE_FACES, t, mode="rgb"), (textures,), atol=1e-7
    )


def test_colours_do_not_carry_the_gradient_of_barycentrics():
    # A face that covers the image has no outline in it: its texture may vary, its vertices receive nothing.
    vertices = torch.tensor([[[-9.0, -9, 1], [9, -9, 1], [0, 9, 1]]], requires_grad=True)
    faces = torch.tensor([[[0, 1, 2]]], dtype=torch.int32)
    in_ndc(image_size=8)(vertices, faces, torch.rand(1, 1, 3, 3, 3, 3), mode="rgb").sum().backward()
    assert (vertices.grad == 0).all()


def test_a_batch_of_different_meshes_equals_each_alone(device):
    verts, faces = sphere(centre=(0, 0, 2), radius=0.6, n_rings=4)
    vertices = torch.stack([verts, verts * 1.2]).float().to(device)
    faces = torch.stack([faces, faces.roll(3, 0)]).int().to(device)
    textures = torch.rand(2, faces.shape[1], 2, 2, 2, 3, device=device)
    renderer = in_ndc(image_size=24)
    weights = torch.randn(2, 3, 24, 24, device=device)

    def gradient(chosen):
        leaf = vertices[chosen].clone().requires_grad_()
        rgb = renderer(leaf, faces[chosen], textures[chosen], mode="rgb")
        (rgb * weights[chosen]).sum().backward()
        return rgb.detach(), leaf.grad

    rgb, grad = gradient(slice(0, 2))
    for one in range(2):
        alone_rgb, alone_grad = gradient(slice(one, one + 1))
        torch.testing.assert_close(rgb[one : one + 1], alone_rgb, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad[one : one + 1], alone_grad, rtol=1e-3, atol=1e-2)


def test_silhouettes_are_the_ops_and_equal_alpha():
    verts, faces = sphere(centre=(0, 0, 2), radius=0.6)
    vertices, faces = verts.float()[None], faces.int()[None]
    renderer = in_ndc(image_size=32)
    masks = renderer(vertices, faces, mode="silhouettes")
    _, _, alpha = renderer(vertices, faces, white(faces))
    torch.testing.assert_close(masks, alpha)
    verts_px = torch.stack([(verts[:, 0] + 1) * 32, (1 - verts[:, 1]) * 32, verts[:, 2]], 1).float()
    mask = ops.silhouette(verts_px, faces[0], 64, z_near=0.1)
    torch.testing.assert_close(masks[0], torch.nn.functional.avg_pool2d(mask[None], 2)[0])


def test_the_module_draws_from_the_bottom_up():
    corners = nr.vertices_to_faces(LEFT_TOP, torch.tensor([[[0, 1, 2]]]))
    textures = torch.full((1, 1, 2, 2, 2, 3), 0.5)
    rgb, alpha, depth = nr.Rasterize(4, 0.1, 100, 1e-4, (0, 0, 0), True, True, False)(corners, textures)
    assert (rgb.shape, alpha.shape, depth.numel()) == ((1, 4, 4, 3), (1, 4, 4), 0)
    assert alpha[0, 3, 0] == 1
    assert (rgb[0, 3, 0] == 0.5).all()
    assert alpha.sum() == 1
    images = nr.rasterize_rgbad(corners, textures, 4, anti_aliasing=False)
    torch.testing.assert_close(images["alpha"].flip(1), alpha)
    torch.testing.assert_close(nr.rasterize(corners, textures, 4, False), images["rgb"])
    torch.testing.assert_close(nr.rasterize_depth(corners, 4, False), images["depth"])
    assert nr.rasterize_rgbad(corners, None, 4, return_rgb=False)["rgb"] is None


def test_the_projection_camera_of_the_call_wins():
    K = torch.tensor([[[64.0, 0, 32], [0, 64, 32], [0, 0, 1]]])
    R, t = torch.eye(3)[None], torch.zeros(1, 1, 3)
    renderer = nr.Renderer(image_size=64, K=K.numpy(), R=R.numpy(), t=t.numpy(), orig_size=64, anti_aliasing=False)
    point = torch.tensor([[[0.1, 0.2, 2.0]]])
    small = point + torch.tensor([[-0.02, -0.02, 0], [0.02, -0.02, 0], [0.02, 0.02, 0], [-0.02, 0.02, 0]])
    row, column = torch.nonzero(renderer(small, SQUARE_FACES, mode="silhouettes")[0], as_tuple=True)
    # u = 64 * 0.05 + 32 = 35.2 and v = 64 * 0.1 + 32 = 38.4 pixels from the corner, y of the camera downwards.
    assert (column.float().mean() + 0.5 - 35.2).abs() < 0.6
    assert (row.float().mean() + 0.5 - 38.4).abs() < 0.6
    moved = renderer(small, SQUARE_FACES, mode="silhouettes", t=torch.tensor([[[0.5, 0, 0.0]]]))
    assert (torch.nonzero(moved[0])[:, 1].float().mean() + 0.5 - 51.2).abs() < 0.6


# ---- Files ------------------------------------------------------------------------------------------------


def test_obj_round_trip(tmp_path):
    verts, faces = sphere(centre=(0.1, 0.2, 0.3), radius=0.5)
    file = tmp_path / "sphere.obj"
    nr.save_obj(str(file), verts.float(), faces.int())
    vertices, read_faces = nr.load_obj(str(file), normalization=False, device="cpu")
    torch.testing.assert_close(vertices, verts.float())
    assert torch.equal(read_faces, faces.int())
    assert read_faces.dtype == torch.int32


def test_obj_normalization_and_polygons(tmp_path):
    file = tmp_path / "quad.obj"
    file.write_text("# a quad\nvt 0 0\nv 0 0 0\nv 4 0 0 1.0\nv 4 2 0\n\nv 0 2 1\nf 1/1/1 2//3 3 -1\n")
    vertices, faces = nr.load_obj(file, device="cpu")
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    expected = [[-1, -0.5, -0.25], [1, -0.5, -0.25], [1, 0.5, -0.25], [-1, 0.5, 0.25]]
    torch.testing.assert_close(vertices, torch.tensor(expected))


def test_colours_survive_being_saved(tmp_path):
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0.2, 0.4, 0.6]])
    textures = colors[:, None, None, None].expand(5, 4, 4, 4, 3)
    vertices, faces = torch.randn(7, 3), torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]])
    nr.save_obj(tmp_path / "five.obj", vertices, faces, textures)
    assert {file.name for file in tmp_path.iterdir()} == {"five.obj", "five.mtl", "five.png"}
    _, _, read = nr.load_obj(tmp_path / "five.obj", load_texture=True, texture_size=4, device="cpu")
    # Cell 0, 0, 0 stands for no point of the face.
    torch.testing.assert_close(read.flatten(1, 3)[:, 1:], textures.flatten(1, 3)[:, 1:], rtol=0, atol=0.003)


def test_corner_colours_survive_being_saved(tmp_path):
    # Red, green and blue at the corners of one face.
    ramp = torch.arange(4) / 3.0
    textures = torch.stack(torch.meshgrid(ramp, ramp, ramp, indexing="ij"), -1)[None]
    nr.save_obj(tmp_path / "one.obj", torch.randn(3, 3), torch.tensor([[0, 1, 2]]), textures)
    _, _, read = nr.load_obj(tmp_path / "one.obj", load_texture=True, device="cpu")
    for cell, color in (
        ((3, 0, 0), [1, 0, 0]),
        ((0, 3, 0), [0, 1, 0]),
        ((0, 0, 3), [0, 0, 1]),
        ((1, 1, 1), [1 / 3] * 3),
    ):
        torch.testing.assert_close(read[0][cell], torch.tensor(color, dtype=torch.float32), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("wrapping", "expected"),
    [("REPEAT", 0.25), ("MIRRORED_REPEAT", 0.75), ("CLAMP_TO_EDGE", 1.0), ("CLAMP_TO_BORDER", 0.0)],
)
def test_texture_wrapping(tmp_path, wrapping, expected):
    picture = np.linspace(0, 255, 5).astype(np.uint8)[None, :, None].repeat(2, 0).repeat(3, 2)
    cv2.imwrite(str(tmp_path / "ramp.png"), picture)
    (tmp_path / "a.mtl").write_text("newmtl plain\nKd 0.1 0.2 0.3\nnewmtl ramp\nmap_Kd ramp.png\n")
    lines = ["mtllib a.mtl", "v 0 0 0", "v 1 0 0", "v 0 1 0", "vt 1.25 0.5", "usemtl ramp", "f 1/1 2/1 3/1"]
    (tmp_path / "a.obj").write_text("\n".join([*lines, "usemtl plain", "f 1 2 3", "usemtl other", "f 1 2 3"]))
    _, _, textures = nr.load_obj(tmp_path / "a.obj", load_texture=True, texture_wrapping=wrapping, device="cpu")
    torch.testing.assert_close(textures[0, 3, 0, 0], torch.full((3,), expected), rtol=0, atol=0.01)
    torch.testing.assert_close(textures[1, 3, 0, 0], torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(textures[2, 3, 0, 0], torch.full((3,), 0.5))


def test_mesh(tmp_path):
    verts, faces = sphere()
    nr.save_obj(tmp_path / "sphere.obj", verts.float(), faces.int())
    mesh = nr.Mesh.fromobj(tmp_path / "sphere.obj", texture_size=3)
    assert (mesh.num_vertices, mesh.num_faces, mesh.texture_size) == (len(verts), len(faces), 3)
    assert isinstance(mesh.textures, torch.nn.Parameter)
    assert mesh.textures.shape == (len(faces), 3, 3, 3, 3)


# ---- Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nr.Renderer(camera_mode="fisheye"), "camera_mode is 'fisheye', expected one of 'projection'"),
        (lambda: in_ndc()(SQUARE, SQUARE_FACES, mode="rbg"), "mode is 'rbg'"),
        (lambda: in_ndc()(SQUARE, SQUARE_FACES), "textures: needed for rgb, got None"),
        (
            lambda: in_ndc()(SQUARE, SQUARE_FACES, white(SQUARE_FACES)[:, :1]),
            r"textures has shape \(1, 1, 2, 2, 2, 3\)",
        ),
        (lambda: in_ndc()(SQUARE, SQUARE_FACES[0], mode="depth"), r"faces has shape \(2, 3\), expected \(1, F, 3\)"),
        (lambda: nr.Renderer()(SQUARE, SQUARE_FACES, mode="depth"), "K: the camera mode 'projection' needs it"),
        (lambda: nr.look_at(SQUARE[0], [0, 0, 1]), r"vertices: expected a tensor \(B, V, 3\), got shape \(4, 3\)"),
        (lambda: nr.look_at(SQUARE, [0, 0]), r"eye has shape \(2,\)"),
        *(
            (
                lambda mode=mode: in_ndc(fill_back=False)(SQUARE, BEYOND, white(BEYOND), mode=mode),
                "faces holds 4, expected",
            )
            for mode in ("rgb", "silhouettes", "depth", None)
        ),
        (lambda: nr.vertices_to_faces(SQUARE, -BEYOND), "faces holds -4, expected 0 to 3"),
        (lambda: nr.rasterize_silhouettes(SQUARE), r"faces has shape \(1, 4, 3\), expected \(B, F, 3, 3\)"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v 0 0 0\nf 1 1 2\n", "bad.obj, line 2: index 2 among 1 vertices"),
        ("v 0 0 x\n", "bad.obj, line 1: could not convert"),
        ("v 0 0\n", "bad.obj, line 1: expected 3 numbers"),
        ("v 0 0 0\nf 1 1\n", "bad.obj, line 2: a face of 2 corners"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "bad.obj").write_text(text)
    with pytest.raises(ValueError, match=message):
        nr.load_obj(tmp_path / "bad.obj")


def test_textures_are_not_invented(tmp_path):
    (tmp_path / "bare.obj").write_text("v 0 0 0\nf 1 1 1\n")
    with pytest.raises(ValueError, match="the file names no materials"):
        nr.load_obj(tmp_path / "bare.obj", load_texture=True)
