"""What torch.compile relies on: fake kernels that know strides and shapes of the real ones, for every op on meshes.

Those of lbs are in test_lbs.py, but for what the kernels of all ops refuse alike.
"""

from __future__ import annotations

import pytest
import torch
from meshes import sphere

from dhpe_fast import ops
from dhpe_fast.hand import HandModel

HEIGHT, WIDTH = 12, 14


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same values, the last axis first in memory."""
    if t.dim() < 2:
        return t
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


def meshes(device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    verts, faces = sphere()
    verts = torch.stack([verts, verts + 1])
    verts[..., :2] *= HEIGHT / 32
    return strided(verts.to(device)), strided(faces.to(device))


def kernel_calls(device="cpu") -> dict[str, tuple]:
    """Arguments of every compiled op, all tensors strided."""
    verts, faces = meshes(device)
    with torch.no_grad():
        bary, depth, index = map(
            strided, torch.ops.dhpe_fast.rasterize(verts, faces, HEIGHT, WIDTH, False, None, False)
        )
    image = strided(torch.rand(2, HEIGHT, WIDTH, 3, dtype=verts.dtype, device=device))
    options = (verts, faces, HEIGHT, WIDTH, None, True)
    return {
        "rasterize": (verts, faces, HEIGHT, WIDTH, False, None, True),
        "_rasterize_backward": (bary, depth, index, verts, faces, False, None, True, True),
        "silhouette_nmr": (*options, 1e-4),
        "_silhouette_nmr_backward": (depth, index, verts, faces, 1e-4, True),
        "silhouette_edge": options,
        "_silhouette_edge_backward": (depth, verts, faces, None, True, True),
        "silhouette_soft": (*options, 1.0),
        "_silhouette_soft_backward": (depth, depth, verts, faces, None, True, 1.0, True),
        "interpolate": (verts, faces, index, bary),
        "_interpolate_backward": (image, verts, faces, index, bary, True, True),
        "visibility_gradient": (image, index, verts, faces, 1e-4),
        "_visibility_gradient_backward": (image, image, index, verts, faces, 1e-4, True),
    }


KERNELS = list(kernel_calls())


@pytest.mark.parametrize("kernel", KERNELS)
def test_fake_kernels_know_the_strides_of_the_real_ones(device, kernel):
    arguments = kernel_calls(device)[kernel]
    assert not any(t.is_contiguous() for t in arguments if isinstance(t, torch.Tensor))
    torch.library.opcheck(getattr(torch.ops.dhpe_fast, kernel).default, arguments)


def rendered(verts: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    seen = ops.rasterize(verts, faces, (HEIGHT, WIDTH))
    return torch.cat([seen.bary, seen.depth[..., None]], -1)


def interpolated(verts: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    return ops.interpolate(verts, faces, ops.rasterize(verts, faces, (HEIGHT, WIDTH)))


def attached(verts: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    index = ops.rasterize(verts.detach(), faces, (HEIGHT, WIDTH)).face_index
    return ops.visibility_gradient((index >= 0).to(verts.dtype)[..., None] * 0.5, index, verts, faces)


PICTURES = {
    "rasterize": rendered,
    "interpolate": interpolated,
    "visibility_gradient": attached,
    "nmr": lambda verts, faces: ops.silhouette(verts, faces, (HEIGHT, WIDTH)),
    "edge": lambda verts, faces: ops.silhouette(verts, faces, (HEIGHT, WIDTH), mode="edge"),
    "soft": lambda verts, faces: ops.silhouette(verts, faces, (HEIGHT, WIDTH), mode="soft"),
}


@pytest.mark.parametrize("picture", PICTURES)
def test_compiled_gradients_of_strided_inputs_are_the_eager_ones(picture):
    verts, faces = meshes()
    weights = torch.randn(2, HEIGHT, WIDTH, 1, dtype=verts.dtype)
    draw = PICTURES[picture]
    gradients = []
    for function in (draw, torch.compile(draw, backend="aot_eager", fullgraph=True)):
        leaf = verts.detach().requires_grad_()
        image = function(leaf, faces)
        (image.reshape(2, HEIGHT, WIDTH, -1) * weights).sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].any()
    torch.testing.assert_close(gradients[1], gradients[0])


FREE = {("interpolate", "attributes"), ("visibility_gradient", "image"), ("_silhouette_edge_backward", "grad_mask")}
"""Arguments whose last extent is theirs to choose."""


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_trace_is_refused_the_shapes_that_the_kernel_refuses(kernel):
    """Every tensor in turn loses its last column; both refusals name the op and the argument."""
    arguments = kernel_calls()[kernel]
    function = getattr(torch.ops.dhpe_fast, kernel)
    names = [argument.name for argument in function.default._schema.arguments]
    for position, (name, value) in enumerate(zip(names, arguments, strict=True)):
        if not isinstance(value, torch.Tensor) or (kernel, name) in FREE:
            continue
        for device in ("cpu", "meta"):
            wrong = [t.to(device) if isinstance(t, torch.Tensor) else t for t in arguments]
            wrong[position] = wrong[position][..., :-1]
            with pytest.raises(RuntimeError, match=rf"{kernel}: {name} has shape|{kernel}: .* has shape"):
                function(*wrong)


@pytest.mark.parametrize("kernel", [*KERNELS, "lbs", "_lbs_backward"])
def test_a_number_in_place_of_a_tensor_is_refused_by_name(kernel):
    basis = HandModel.default().basis.tensors
    pose, betas, verts_m = torch.zeros(1, 16, 3), torch.zeros(1, 10), torch.zeros(1, 778, 3)
    hands = {"lbs": (pose, betas, *basis), "_lbs_backward": (verts_m, pose, verts_m, pose, betas, *basis)}
    arguments = (hands | kernel_calls())[kernel]
    for position, value in enumerate(arguments):
        if isinstance(value, torch.Tensor):
            wrong = (*arguments[:position], value.new_zeros(()), *arguments[position + 1 :])
            with pytest.raises(RuntimeError, match=rf"{kernel}: .* has shape|{kernel}: image_size 0 x 0"):
                getattr(torch.ops.dhpe_fast, kernel)(*wrong)


@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize("kernel", ["rasterize", "silhouette_nmr", "silhouette_edge", "silhouette_soft"])
@pytest.mark.parametrize("pixels", [0, 16385])
def test_a_trace_is_refused_the_image_sizes_that_the_kernel_refuses(kernel, side, pixels):
    arguments = list(kernel_calls()[kernel])
    arguments[2 if side == "height" else 3] = pixels
    for device in ("cpu", "meta"):
        moved = [t.to(device) if isinstance(t, torch.Tensor) else t for t in arguments]
        with pytest.raises(RuntimeError, match=rf"{kernel}: image_size .*{pixels}.*, expected 1 to 16384"):
            getattr(torch.ops.dhpe_fast, kernel)(*moved)
