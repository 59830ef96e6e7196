"""The CPU kernels exist once per instruction set: whichever a processor runs, the answers are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ISAS = ("baseline", "avx2", "avx512")
ANSWERS = """
import sys, torch
from dhpe_fast import ops
from dhpe_fast.hand import HandModel
from dhpe_fast.ops import _library
from dhpe_fast.refinement.constants import refine_model
from meshes import soup, sphere
from newton_cases import CAMERAS, default_hand, make_evidence, make_state
from dhpe_fast.refinement.gauss_newton import Objective, minimize
from test_lbs import make_basis, make_parameters

answers = {"isa": _library.build.cpu_isa()}


def take(name, outputs, leaves):
    outputs = [t for t in outputs if t.is_floating_point()]
    weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(0), dtype=t.dtype) for t in outputs]
    gradients = torch.autograd.grad(outputs, leaves, weights, allow_unused=True, retain_graph=True)
    answers[name] = [t.detach() for t in outputs]
    answers[f"{name} gradient"] = [t for t in gradients if t is not None]


for dtype in (torch.float32, torch.float64):
    torch.manual_seed(0)
    pose, betas = (t.requires_grad_() for t in make_parameters((31,), dtype))
    for n_hands in (1, 31):
        basis = make_basis(779, dtype=dtype)
        take(f"lbs of {n_hands} {dtype}", ops.lbs(pose[:n_hands], betas[:n_hands], basis), (pose, betas))
    verts, faces = soup(300, 90, seed=4)
    for perspective in (False, True):
        seen = ops.rasterize(verts.to(dtype), faces, (90, 77), perspective=perspective)
        answers[f"rasterize soup {dtype} {perspective}"] = list(seen)
    verts, faces = sphere(centre=(40.0, 45.0, 90.0), radius=33.0)
    verts = verts.to(dtype).requires_grad_()
    seen = ops.rasterize(verts, faces, (90, 77))
    answers[f"rasterize sphere {dtype}"] = [t.detach() for t in seen]
    take(f"bary and depth {dtype}", seen, (verts,))
    for mode in ("nmr", "edge", "soft"):
        take(f"silhouette {mode} {dtype}", [ops.silhouette(verts, faces, (90, 77), mode=mode)], (verts,))
    colors = torch.rand(len(verts), 4, dtype=dtype).requires_grad_()
    take(f"interpolate {dtype}", [ops.interpolate(colors, faces, seen)], (colors, verts))
    image = torch.rand(90, 77, 3, dtype=dtype)
    take(f"visibility {dtype}", [ops.visibility_gradient(image, seen.face_index, verts, faces)], (verts,))
camera, cam = CAMERAS["orthographic"]
for dtype in (torch.float32, torch.float64):
    hand = default_hand(dtype)
    torch.manual_seed(0)
    state = make_state(hand, cam, 3)
    mask = (torch.arange(48) < 30).to(dtype).repeat(48, 1)
    evidence = make_evidence(0.3 * torch.randn(21, 2, dtype=torch.float64), mask)
    for use_mesh in (False, True):
        objective = Objective(hand.model, hand.constants, evidence, camera, use_mesh=use_mesh)
        found = minimize(objective, state, iterations=2)
        precision = dtype if use_mesh else torch.float64  # mesh terms come in the model's
        answers[f"newton {dtype} {use_mesh}"] = [found.energy.to(precision), found.state.pose.to(precision)]
    h = torch.cat([0.2 * torch.randn(2, 59), torch.full((2, 1), 8.0), torch.zeros(2, 3)], 1).to(dtype)
    energy = ops.RefineEnergy(
        refine_model(HandModel.default(dtype=dtype)),
        40 * torch.rand(2, 21, 2, dtype=dtype),
        40,
        ops.EnergyWeights(feature=0, silhouette=1),
        "edge",
        torch.rand(2, 40, 40, dtype=dtype),
    )
    answers[f"refine {dtype}"] = list(ops.refine_gradient(h, energy))
torch.save(answers, sys.argv[1])
"""
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict]:
    """What every op says on every instruction set, by the set's name."""
    folder = tmp_path_factory.mktemp("answers")
    found = {}
    # The test folder lends its meshes and its random hand.
    search = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    for isa in ISAS:
        subprocess.run(
            [sys.executable, "-c", ANSWERS, str(folder / isa)],
            env={**os.environ, "DHPE_ISA": isa, "PYTHONPATH": search},
            cwd=folder,
            check=True,
        )
        answer = torch.load(folder / isa)
        found[answer.pop("isa")] = answer  # where a processor lacks a set, its best one answers in its stead
    return found


def test_every_instruction_set_draws_the_same_bits(answers):
    for isa, answer in answers.items():
        for name, parts in answer.items():
            if name.startswith("rasterize"):
                same = [torch.equal(a, b) for a, b in zip(parts, answers["baseline"][name], strict=True)]
                assert all(same), f"{name} on {isa}"


def test_every_instruction_set_gives_the_same_numbers(answers):
    for isa, answer in answers.items():
        for name, parts in answer.items():
            for found, expected in zip(parts, answers["baseline"][name], strict=True):
                tolerance = TOLERANCE.get(found.dtype, 0)
                scale = expected.abs().max().clamp(min=1)
                worst = ((found - expected).abs() / scale).max()
                assert worst <= tolerance, f"{name} on {isa}: differs by {worst:.3g} of {scale:.3g}"
