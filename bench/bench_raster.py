"""Rasterizing hands: the ops beside their twins and other differentiable rasterizers.

    pytest bench/bench_raster.py --benchmark-only

Images of 224 x 224, on a GPU up to 1024 x 1024, one hand of 1,538 faces each, orthographic, float32. Jobs: `rasterize`
gives face, barycentrics and depth of every pixel; `nmr`, `edge` and `soft` are the silhouettes of these modes, `soft`
with a sigma of 1e-4 in units in which the image spans [-1, 1]; `interpolate` draws three values a vertex over given
fragments. `forward` runs without gradients, `backward` is a forward and the gradients of the vertices (or of the values
and barycentrics) for a given gradient of the images.

A peer stands beside the mode that does what it does: PyTorch3D's hard silhouette and DRTK's edge gradient beside `nmr`
(a hard mask and an estimated gradient), DRTK and nvdiffrast beside `edge` (a gradient on the outline), PyTorch3D's soft
silhouette and SoftRas beside `soft`. Whatever cannot be imported, or needs a GPU where there is none, is left out;
ratios are to what ran in the same run. Before it is timed, every picture is compared with this package's own.
The table is printed and goes to bench/results/raster.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import raster_peers
import torch
from common import DEVICE
from raster_peers import PEERS, SIGMA_NDC, Work
from scene import Scene, hands_in_view
from timings import Case, Timings
from torch import Tensor

from dhpe_fast import ops, reference

RESULT = "raster"
IMAGE_SIZE = 224
BATCHES = (1, 32) if DEVICE == "cpu" else (1, 32, 256)
IMAGE_SIZES = (IMAGE_SIZE,) if DEVICE == "cpu" else (IMAGE_SIZE, 512, 1024)
MODES = ("nmr", "edge", "soft")
JOBS = ("rasterize", *MODES, "interpolate")
DIRECTIONS = ("forward", "backward")
SAME_SHARE = 0.98
"""How much of what either of two pictures covers must be alike for them to be the same picture."""


def sigma_px(image_size: int) -> float:
    """Of the soft silhouettes, in square pixels."""
    return SIGMA_NDC * (image_size / 2) ** 2


def _rasterize(package: ModuleType, scene: Scene) -> Work:
    def run(verts_px: Tensor) -> tuple[Tensor, ...]:
        return package.rasterize(verts_px, scene.faces, scene.image_size)

    return Work(run, (scene.verts_px,), lambda images: images[0])


def _silhouette(package: ModuleType, scene: Scene, mode: str) -> Work:
    sigma = sigma_px(scene.image_size)

    def run(verts_px: Tensor) -> tuple[Tensor, ...]:
        return (package.silhouette(verts_px, scene.faces, scene.image_size, mode=mode, sigma=sigma),)

    return Work(run, (scene.verts_px,), lambda images: images[0] > 0.5)


def _interpolate(package: ModuleType, scene: Scene) -> Work:
    fragments = ops.rasterize(scene.verts_px, scene.faces, scene.image_size)

    def run(colours: Tensor, bary: Tensor) -> tuple[Tensor, ...]:
        return (package.interpolate(colours, scene.faces, fragments._replace(bary=bary)),)

    return Work(run, (_colours(scene), fragments.bary), lambda images: images[0])


def _colours(scene: Scene) -> Tensor:  # (B, V, 3)
    generator = torch.Generator().manual_seed(1)
    return torch.rand(scene.verts_px.shape, generator=generator).to(scene.verts_px.device)


def work_of(job: str, implementation: str, scene: Scene) -> Work:
    """What the implementation does in this job."""
    if implementation in PEERS:
        if job == "interpolate":
            return raster_peers.INTERPOLATIONS[implementation](scene, _colours(scene))
        return raster_peers.RENDERINGS[job, implementation](scene)
    package = {"ops": ops, "reference": reference}[implementation]
    if job in MODES:
        return _silhouette(package, scene, job)
    return (_rasterize if job == "rasterize" else _interpolate)(package, scene)


def _implementations(job: str, direction: str, batch: int, image_size: int) -> list[str]:
    names = ["ops"]
    # The twins are written to be read, and take seconds. That of "soft" holds every face at every pixel: 12 GB.
    if batch == 1 and image_size == IMAGE_SIZE and direction == "forward" and job != "soft":
        names.append("reference")
    return names + [peer for peer in raster_peers.at_hand(DEVICE, batch) if raster_peers.does(job, peer)]


CASES = [
    Case(DEVICE, job, direction, batch, implementation, image_size)
    for job in JOBS
    for image_size in IMAGE_SIZES
    for batch in BATCHES
    for direction in DIRECTIONS
    for implementation in _implementations(job, direction, batch, image_size)
]
OWN_CASES = sum(case.implementation not in PEERS for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, vars(case).values())))
@pytest.mark.filterwarnings("default")  # the peers' warnings are their own affair
def test_draw_hands(benchmark: Any, timings: Timings, case: Case):
    with timings.within_memory(case):
        scene = hands_in_view(case.batch, case.image_size, case.device)
        work = work_of(case.job, case.implementation, scene)
        if case.implementation != "ops":
            check_same_picture(work, work_of(case.job, "ops", scene))
        timings.measure(benchmark, case, timed_call(work, case))


def timed_call(work: Work, case: Case) -> Callable[[], None]:
    """The call that is timed: once through `work`, forth or forth and back."""
    if case.direction == "forward":

        def call() -> None:
            with torch.no_grad():
                work.run(*work.leaves)

        return call

    leaves = [leaf.detach().clone().requires_grad_() for leaf in work.leaves]
    generator = torch.Generator(case.device).manual_seed(2)
    upstream = [
        torch.empty_like(image).normal_(generator=generator) if image.requires_grad else None
        for image in work.run(*leaves)
    ]

    def call() -> None:
        images = work.run(*leaves)
        seen, given = zip(*[pair for pair in zip(images, upstream, strict=True) if pair[1] is not None], strict=True)
        torch.autograd.grad(seen, leaves, given)

    return call


def check_same_picture(work: Work, ours: Work) -> None:
    """Raises AssertionError where an implementation does not draw what the ops draw."""
    with torch.no_grad():
        theirs, expected = (one.picture(one.run(*one.leaves)) for one in (work, ours))
    if expected.is_floating_point():
        covered = (theirs != 0).any(-1) | (expected != 0).any(-1)
        alike = ((theirs - expected).abs() < 1e-2).all(-1)
    else:
        nothing = 0 if expected.dtype == torch.bool else -1
        covered = (theirs != nothing) | (expected != nothing)
        alike = theirs == expected
    # On outlines, and where a centre is on an edge, another face may be seen.
    share = alike[covered].float().mean()
    assert share > SAME_SHARE, f"only {share:.3f} of what either covers is alike"


if __name__ == "__main__":
    columns = "--benchmark-columns=median,iqr,rounds"
    sys.exit(pytest.main([__file__, "--benchmark-only", columns, "-q", *sys.argv[1:]]))
