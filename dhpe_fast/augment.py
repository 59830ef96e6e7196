"""Self-supervised data augmentation (paper, Sec. 3.5): new views of hands that the networks have just seen.

A predicted mesh tells which surface point each pixel of its image shows. With that as a texture, the hand is drawn
again with another shape, from another side, before another background; its mask and skeleton are then exact. New
instances are kept as a few numbers and drawn when they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import avg_pool2d, embedding_bag, normalize
from torch.utils.data import Dataset as TorchDataset

from dhpe_fast.conventions import CROP_MARGIN, H_LAYOUT, H_SIZE, MIDDLE_MCP, N_SHAPE
from dhpe_fast.data import CropItem, HandCrops
from dhpe_fast.data.augmentation import draw_look
from dhpe_fast.data.backgrounds import background_files, random_background
from dhpe_fast.data.splitmix import GOLDEN_GAMMA, mix64
from dhpe_fast.hand import HandModel
from dhpe_fast.nets.projector import regress_joints
from dhpe_fast.ops import interpolate, rasterize, sample_texture
from dhpe_fast.rotation import axis_angle_to_matrix, matrix_to_quaternion, quaternion_to_matrix

SHAPE_RANGE = 3.0
"""Shapes are drawn uniformly from this many standard deviations either way."""

_SURFACE = 0.04
"""Surfaces closer together than this, in crop units (about 4 mm), hide no point of each other."""
_GRAZING = (0.10, 0.35)
"""A surface seen at the lower cosine or less gives no colour; from the upper on it gives all."""
_SMOOTHING = 0.05
"""Weight of equal colours at both ends of an edge, against the observed colours."""
_ACCURACY = 1e-6
"""Residual of the colours that are filled in, of the norm of the right side."""
_SUPERSAMPLE = 2


@dataclass(frozen=True, eq=False)
class HandTexture:
    """What B hands look like, taken from an image of each."""

    images: Tensor
    """(B, H, W, 3) the images"""
    depth: Tensor
    """(B, H, W, 1) of the nearest surface, crop units; 0 beside the hand"""
    vertex_values: Tensor
    """(B, 778, 7) where each vertex was (u, v in [0, 1], depth), how well it was seen, in [0, 1], and its colour;
    vertices that were not seen take on the colours around them"""


class TextureRenderer:
    """f_TRen: colours from one view of a hand, pictures of another. Differentiable in colours and vertices."""

    def __init__(self, hand: HandModel) -> None:
        """Takes the hand whose meshes are to be drawn."""
        self.faces = hand.faces
        self._neighbours = _neighbours(hand.faces.long(), len(hand.v_template))

    def texture(
        self,
        images: Tensor,  # (B, 3, H, W) in [0, 1]
        verts: Tensor,  # (B, 778, 3) crop frame
    ) -> HandTexture:
        """Reads the colours of hands off their images.

        A vertex is seen if no surface lies before it and its own does not turn away. The colours of the others are
        the smoothest continuation over the mesh: the minimum of the squared differences along its edges.
        """
        height, width = images.shape[-2:]
        verts_px = _to_pixels(verts, height, width)
        seen_mesh = rasterize(verts_px.detach(), self.faces, (height, width))
        pictures, depth = images.permute(0, 2, 3, 1), seen_mesh.depth[..., None].detach()
        uv = verts_px[..., :2] / verts.new_tensor((width, height))
        colors = sample_texture(pictures, uv[:, None])[:, 0]  # (B, 778, 3)
        surface = sample_texture(depth, uv[:, None].detach())[:, 0]
        in_front = (verts[..., 2:] < surface + _SURFACE) & (surface != 0)
        inside = ((uv > 0) & (uv < 1)).all(-1, keepdim=True)
        facing = -_vertex_normals(verts.detach(), self.faces)[..., 2:]
        low, high = _GRAZING
        seen = ((facing - low) / (high - low)).clamp(0, 1) * (in_front & inside)
        colors = self._filled(colors, seen)
        return HandTexture(pictures, depth, torch.cat([uv, verts[..., 2:], seen, colors], dim=-1))

    def render(
        self,
        texture: HandTexture,
        verts: Tensor,  # (B, 778, 3) crop frame
        size: int,
    ) -> tuple[Tensor, Tensor]:
        """Draws hands with these colours.

        Returns:
            The pictures (B, 3, size, size), black beside the hand and premultiplied by the coverage (B, size, size).
        """
        fine = _SUPERSAMPLE * size
        seen = rasterize(_to_pixels(verts, fine, fine), self.faces, (fine, fine))
        values = interpolate(texture.vertex_values, self.faces, seen)
        uv, depth, weight, colors = values.split([2, 1, 1, 3], dim=-1)
        direct = sample_texture(texture.images, uv)
        # A face whose corners were seen may still have been crossed by a finger.
        surface = sample_texture(texture.depth, uv.detach())
        weight = weight * ((depth < surface + _SURFACE) & (surface != 0))
        covered = (seen.face_index >= 0)[..., None].to(verts.dtype)
        rgb = (weight * direct + (1 - weight) * colors) * covered
        layers = avg_pool2d(torch.cat([rgb, covered], dim=-1).permute(0, 3, 1, 2), _SUPERSAMPLE)
        return layers[:, :3], layers[:, 3]

    def _filled(self, colors: Tensor, seen: Tensor) -> Tensor:
        """Minimises sum_i seen_i |c_i - colors_i|^2 + smoothing * sum_edges |c_i - c_j|^2."""
        # A little of the mean colour everywhere: a hand of which nothing was seen has a solution, too.
        mean = (seen * colors).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1e-6)
        floor = 1e-4
        return _Smoothed.apply(seen + floor, seen * colors + floor * mean, self._neighbours)


class _Smoothed(torch.autograd.Function):
    """The x with (diag(weight) + smoothing * L) x = right, L the Laplacian of the graph of the mesh.

    By conjugate gradients, preconditioned by the diagonal: a few dozen products with a sparse matrix. Every column of
    every hand stops by itself, so that a hand does not depend on those beside it. The matrix is symmetric: the gradient
    is the solution for the incoming one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,  # (B, V, 1) > 0
        right: Tensor,  # (B, V, C)
        neighbours: Tensor,  # (V, D)
    ) -> Tensor:
        solution = _solved(weight, right, neighbours)
        ctx.save_for_backward(weight, solution, neighbours)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, solution, neighbours = ctx.saved_tensors
        grad_right = _solved(weight, grad, neighbours)
        return -(grad_right * solution).sum(-1, keepdim=True), grad_right, None


def _solved(weight: Tensor, right: Tensor, neighbours: Tensor) -> Tensor:
    n, columns = neighbours.shape[0], right.shape[0] * right.shape[2]

    def rows(x: Tensor) -> Tensor:  # (B, V, C) -> (V, B * C): what a vertex has lies together
        return x.permute(1, 0, 2).reshape(n, columns).contiguous()

    b, w = rows(right.detach()), rows(weight.detach().expand_as(right))
    diagonal = w + _SMOOTHING * (neighbours != torch.arange(n, device=b.device)[:, None]).sum(1, keepdim=True)
    own = w + _SMOOTHING * neighbours.shape[1]  # entries that fill the table up name the vertex itself: they cancel
    x = b / own
    residual = b - own * x + _SMOOTHING * embedding_bag(neighbours, x, mode="sum")
    enough = (_ACCURACY * torch.linalg.vector_norm(b, dim=0)) ** 2
    direction, along = torch.zeros_like(x), torch.ones_like(enough)
    for _ in range(n):
        open_columns = residual.square().sum(0) > enough
        if not open_columns.any():
            break
        scaled = residual / diagonal
        fresh = (residual * scaled).sum(0)
        direction = scaled + fresh / along * direction
        along = fresh.clamp_min(torch.finfo(b.dtype).tiny)
        image = own * direction - _SMOOTHING * embedding_bag(neighbours, direction, mode="sum")
        step = open_columns * fresh / (direction * image).sum(0).clamp_min(torch.finfo(b.dtype).tiny)
        x, residual = x + step * direction, residual - step * image
    return x.reshape(n, right.shape[0], right.shape[2]).permute(1, 0, 2).contiguous()


def _neighbours(faces: Tensor, n: int) -> Tensor:
    """(n, D) int64: of each vertex, the other ends of its edges, and then itself."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pairs = torch.unique(torch.cat([edges @ edges.new_tensor((n, 1)), edges @ edges.new_tensor((1, n))]))
    start, end = pairs // n, pairs % n
    degree = torch.bincount(start, minlength=n)
    table = torch.arange(n, device=faces.device)[:, None].repeat(1, int(degree.max()))
    table[start, torch.arange(len(start), device=faces.device) - (degree.cumsum(0) - degree)[start]] = end
    return table


@dataclass(frozen=True, eq=False)
class Instances:
    """New instances of training hands, N of them, on the CPU."""

    source: Tensor
    """(N,) int64, the training crop that showed the hand"""
    epoch: Tensor
    """(N,) int64, the epoch in which it did"""
    number: Tensor
    """(N,) int64, which of the instances of this seed"""
    h: Tensor
    """(N, 63) what the networks predicted for it"""
    betas: Tensor
    """(N, 10) the new shape"""
    turn: Tensor
    """(N, 4) the quaternion by which it is turned further"""

    @classmethod
    def empty(cls) -> Instances:
        """None at all."""
        ids = torch.zeros(0, dtype=torch.int64)
        return cls(ids, ids, ids, torch.zeros(0, H_SIZE), torch.zeros(0, N_SHAPE), torch.zeros(0, 4))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Instances:
        """Those of ``state``."""
        return cls(**state)

    def state(self) -> dict[str, Tensor]:
        """Plain tensors, for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | Tensor) -> Instances:
        return Instances(**{name: value[index] for name, value in self.state().items()})

    @classmethod
    def cat(cls, parts: Sequence[Instances]) -> Instances:
        """All of them, one after the other."""
        states = [part.state() for part in parts]
        return cls(**{name: torch.cat([state[name] for state in states]) for name in states[0]})

    def __add__(self, other: Instances) -> Instances:
        return Instances.cat([self, other])

    def newest(self, count: int) -> Instances:
        """At most `count` of the last epochs, in an order that does not depend on who proposed them.

        Of an epoch which is too large, those that stay are spread evenly over its sources.
        """
        epoch, source, number = (part.numpy() for part in (self.epoch, self.source, self.number))
        kept = np.lexsort((_mixed(epoch, source, number), -epoch))[:count]
        order = np.lexsort((number[kept], source[kept], epoch[kept]))
        return self[torch.from_numpy(kept[order])]


def propose_instances(
    h: Tensor,  # (B, 63) predictions, on the CPU
    source: Tensor,  # (B,) int64
    *,
    epoch: int,
    n_per_seed: int,
    seed: int,
) -> Instances:
    """Draws new instances for each predicted hand; predictions that are not finite have none.

    Betas are uniform within ``SHAPE_RANGE`` standard deviations; the turn is a rotation about x, y and z, each by an
    angle uniform in [0, 2 pi]. Pose and texture stay (Sec. 3.5). They depend on `seed`, epoch, source and number only.
    """
    rows = h.isfinite().all(1).nonzero()[:, 0].repeat_interleave(n_per_seed)
    if len(rows) == 0:
        return Instances.empty()
    numbers = torch.arange(n_per_seed).repeat(len(rows) // n_per_seed)
    keys = (np.full(1, seed), np.full(1, epoch), source[rows, None].numpy(), numbers[:, None].numpy())
    drawn = 2 * _uniform(*keys, np.arange(N_SHAPE + 3)) - 1
    angles = torch.from_numpy((drawn[:, N_SHAPE:] + 1) * np.pi)
    about = [axis_angle_to_matrix(torch.eye(3, dtype=angles.dtype)[k] * angles[:, k : k + 1]) for k in range(3)]
    return Instances(
        source=source[rows].clone(),
        epoch=torch.full((len(rows),), epoch),
        number=numbers,
        h=h[rows].float(),
        betas=torch.from_numpy(SHAPE_RANGE * drawn[:, :N_SHAPE]).float(),
        turn=matrix_to_quaternion(about[0] @ about[1] @ about[2]).float(),
    )


def instance_params(instances: Instances, hand: HandModel, joint0: str = "palm") -> Tensor:
    """H (N, 63) of the new hands, which fill their crops as Eq. 8 asks: the root at the centre, a margin around."""
    h = instances.h.clone()
    h[:, H_LAYOUT["shape"]] = instances.betas
    rotation = quaternion_to_matrix(instances.turn) @ quaternion_to_matrix(instances.h[:, H_LAYOUT["quat"]])
    h[:, H_LAYOUT["quat"]] = matrix_to_quaternion(rotation)
    h[:, H_LAYOUT["scale"]] = 1.0
    h[:, H_LAYOUT["trans"]] = 0.0
    joints = regress_joints(hand, hand.decode(h).verts_m, joint0)
    extent = (joints.amax(1) - joints.amin(1))[:, :2].amax(1, keepdim=True)
    scale = 2 / (CROP_MARGIN * extent)
    h[:, H_LAYOUT["scale"]] = scale
    h[:, H_LAYOUT["trans"]] = -scale * joints[:, MIDDLE_MCP]
    return h


def draw_instances(
    images: Tensor,  # (N, 3, S, S) in [0, 1], the crops that `instances` come from
    instances: Instances,
    hand: HandModel,
    backgrounds: Sequence[Path] = (),
    seed: int = 0,
    joint0: str = "palm",
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws new instances, on the CPU; `joint0` is what the box counts in which Eq. 8 takes.

    Returns:
        Images (N, 3, S, S) in [0, 1], masks (N, S, S) of 0 and 1, and the meshes (N, 778, 3) in the new crop frame,
        depth 0 at the middle MCP.
    """
    renderer, size = TextureRenderer(hand), images.shape[-1]
    texture = renderer.texture(images, hand.decode(instances.h).verts_m)
    verts = hand.decode(instance_params(instances, hand, joint0)).verts_m
    rgb, coverage = renderer.render(texture, verts, size)
    behind = []
    for row in range(len(instances)):
        numbers = (seed, int(instances.epoch[row]), int(instances.source[row]), int(instances.number[row]), 1)
        behind.append(_background(size, np.random.default_rng(numbers), backgrounds))
    background = torch.stack(behind).to(images) if behind else torch.zeros_like(images)
    drawn = rgb + (1 - coverage[:, None]) * background
    return drawn.clamp(0, 1), (coverage >= 0.5).to(images), verts


class AugmentedCrops(TorchDataset[CropItem]):
    """Training crops, and after them the instances made of them; items as of ``HandCrops``.

    A new view was taken by no camera: its joints are annotated in the crop frame only, and what places it in an image
    (``joints_m``, ``camera``, ``center_px``, ``size_px``, ``root_depth_m``) is NaN.
    """

    def __init__(
        self,
        crops: HandCrops,
        instances: Instances,
        hand: HandModel,
        backgrounds: Path | None = None,
    ) -> None:
        """Draws nothing yet.

        Args:
            crops: the crops that `instances` come from.
            instances: the new views.
            hand: of which their parameters are, on the CPU.
            backgrounds: a folder of images to put behind them; None draws backgrounds.

        Raises:
            ValueError: if the folder is missing or holds no image.
        """
        self.crops, self.instances, self.hand = crops, instances, hand
        self.files = () if backgrounds is None else background_files(backgrounds)

    def __len__(self) -> int:
        return len(self.crops) + len(self.instances)

    def __getitem__(self, key: tuple[int, int]) -> CropItem:
        epoch, index = key
        if index < len(self.crops):
            return self.crops[key]
        return self._drawn(epoch, index)

    def _drawn(self, epoch: int, index: int) -> CropItem:
        number = index - len(self.crops)
        instance = self.instances[number : number + 1]
        seed = self.crops[int(instance.epoch), int(instance.source)]
        image = torch.from_numpy(seed.image).permute(2, 0, 1)[None].float() / 255
        drawn, masks, verts = draw_instances(image, instance, self.hand, self.files, self.crops.seed, seed.joint0)
        joints = regress_joints(self.hand, verts, seed.joint0)[0].double().numpy()
        look = None
        if seed.look is not None:
            look = draw_look(self.crops.augmentation, np.random.default_rng((self.crops.seed, epoch, index)))
        nowhere = np.full(4, np.nan)
        return CropItem(
            name=f"{seed.name}, new view {int(instance.number)} of epoch {int(instance.epoch)}",
            image=(drawn[0] * 255).round().byte().permute(1, 2, 0).numpy(),
            mask=masks[0].byte().numpy(),
            joints_crop=joints,
            valid=np.ones(len(joints), bool),
            visible=np.ones(len(joints), bool),
            joints_m=np.full((len(joints), 3), np.nan),
            camera=nowhere,
            center_px=(np.nan, np.nan),
            size_px=np.nan,
            angle=0.0,
            root_depth_m=np.nan,
            mirrored=seed.mirrored,
            joint0=seed.joint0,
            look=look,
            index=index,
        )


def _background(size: int, rng: np.random.Generator, files: Sequence[Path]) -> Tensor:  # (3, S, S)
    """A photograph, or a drawn one; that is out of focus, and drawn at half the size in a third of the time."""
    drawn_size = size if files else (size + 1) // 2
    picture = random_background((drawn_size, drawn_size), rng, files)
    if drawn_size != size:
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(picture).permute(2, 0, 1)


def _mixed(*numbers: np.ndarray) -> np.ndarray:
    """A scrambled 64-bit number for each tuple of whole numbers (Steele et al. 2014, SplitMix); shapes broadcast."""
    total = torch.zeros(np.broadcast_shapes(*(number.shape for number in numbers)), dtype=torch.int64)
    for number in numbers:
        total = mix64(total + torch.from_numpy(number.astype(np.int64)) + GOLDEN_GAMMA)
    return total.numpy().view(np.uint64)


def _uniform(*numbers: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each tuple of whole numbers."""
    return (_mixed(*numbers) >> np.uint64(11)) * 2.0**-53


def _to_pixels(verts: Tensor, height: int, width: int) -> Tensor:
    half = verts.new_tensor((0.5 * width, 0.5 * height))
    return torch.cat([(verts[..., :2] + 1) * half, verts[..., 2:]], dim=-1)


def _vertex_normals(verts: Tensor, faces: Tensor) -> Tensor:  # (B, 778, 3)
    corners = verts[:, faces.long()]  # (B, F, 3, 3)
    across = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    normals = torch.zeros_like(verts)
    for corner in range(3):
        normals.index_add_(1, faces[:, corner].long(), across)
    return normalize(normals, dim=-1)
