"""Particle swarms: on functions whose minimum is known, on hands whose answer is known, and on hostile energies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dhpe_fast.hand import HandModel
from dhpe_fast.projection import ScaledOrthographic
from dhpe_fast.refinement.gauss_newton import Evidence2d, HandConstants, HandState, Objective
from dhpe_fast.refinement.particle_swarm import Spread, SwarmOptions, constriction, fly, minimize

TARGETS = torch.tensor([[0.3, -1.2, 2.0], [-0.5, 0.0, 1.0]], dtype=torch.float64)


def bowl(places: Tensor) -> Tensor:  # (2, P, 3) -> (2, P)
    """Two bowls that are a hundred times steeper along the last axis, each with its own minimum."""
    return ((places - TARGETS[:, None]).square() * torch.tensor([1.0, 10.0, 100.0])).sum(-1)


def fly_over(energy, **options):
    return fly(energy, torch.zeros(2, 3, dtype=torch.float64), torch.full((3,), 2.0).double(), SwarmOptions(**options))


def test_the_constriction_is_that_of_clerc_and_kennedy():
    assert constriction(4.1) == pytest.approx(0.72984, abs=1e-5)  # their usual example
    # chi solves chi^2 phi - 2 chi phi + ... : the map x -> chi (v - phi x) has the eigenvalue product chi.
    phi = 4.3
    chi = constriction(phi)
    eigenvalues = torch.linalg.eigvals(torch.tensor([[chi, -chi * phi], [chi, 1 - chi * phi]], dtype=torch.float64))
    assert float(eigenvalues.abs().max()) < 1
    for pull in (4.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="pull"):
            constriction(pull)


def test_each_swarm_finds_its_own_minimum():
    flight = fly_over(bowl, iterations=150, particles=32)
    torch.testing.assert_close(flight.places[-1], TARGETS, atol=1e-3, rtol=0)
    assert flight.energies.shape == (151, 2)
    assert (flight.energies[1:] <= flight.energies[:-1]).all()
    torch.testing.assert_close(flight.energies, bowl(flight.places.transpose(0, 1)).T)


def test_of_many_minima_it_finds_a_low_one():
    """Rastrigin's function: some 20 minima along each axis, the best at the target; descent would stay in the first."""

    def waves(places: Tensor) -> Tensor:
        x = places - TARGETS[:, None]
        return (x.square() + 10 * (1 - torch.cos(2 * math.pi * x))).sum(-1)

    flight = fly_over(waves, iterations=150, particles=64)
    assert (flight.energies[0] > 5).all()
    assert (flight.energies[-1] < 1e-3).all()


def test_the_same_seed_flies_the_same_way():
    one, same, other = (fly_over(bowl, iterations=5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.places, same.places)
    assert not torch.equal(one.places[-1], other.places[-1])


def test_nothing_is_worse_than_the_start_nor_moves_without_time():
    start = fly_over(bowl, iterations=0, particles=1)
    assert torch.equal(start.places, torch.zeros(1, 2, 3, dtype=torch.float64))
    assert (fly_over(bowl, iterations=1).energies[-1] <= start.energies[-1]).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_places_are_avoided(bad):
    """Half of space is not finite: the swarm goes to the best of the other half; where all is, it stays."""

    def half(places: Tensor) -> Tensor:
        return torch.where(places[..., 0] > 0.1, bad, bowl(places))

    flight = fly_over(half, iterations=100)
    assert flight.energies.isfinite().all()
    torch.testing.assert_close(flight.energies[-1], torch.tensor([0.04, 0.0]).double(), atol=5e-3, rtol=0)
    nowhere = fly_over(lambda places: bowl(places) * math.nan, iterations=3)
    assert torch.equal(nowhere.places[-1], torch.zeros(2, 3, dtype=torch.float64))
    assert (nowhere.energies == math.inf).all()


@pytest.fixture(scope="module")
def problem():
    """Exact joints of two known hands, in one objective each; the estimate a little off."""
    model = HandModel.default()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 61, generator=generator, dtype=torch.float64)
    constants = HandConstants.of(model)
    eye = torch.eye(3, dtype=torch.float64)[None]
    truth = HandState(
        model.hands_mean.double()[None], torch.zeros(1, 10).double(), eye, torch.tensor([[2.0, 0.1, -0.1]]).double()
    )
    mesh = model(truth.pose.float(), truth.betas.float())
    joints = ScaledOrthographic().project(mesh.joints_m.double(), truth.cam)[0, :, :2]
    evidence = Evidence2d(joints, torch.ones(21, dtype=torch.float64))
    start = truth.moved(Spread(pose=0.05, shape=0.3, rotation=0.1, camera=0.1).vector(noise) * noise)
    return {
        mesh: (Objective(model, constants, evidence, ScaledOrthographic(), use_mesh=mesh), start)
        for mesh in (False, True)
    }


@pytest.mark.parametrize("use_mesh", [False, True], ids=["skeleton", "mesh"])
def test_a_hand_comes_nearer_to_its_joints(problem, use_mesh):
    objective, start = problem[use_mesh]
    found = minimize(objective, start, SwarmOptions(particles=24, iterations=25), Spread(0.1, 0.5, 0.2, 0.2))
    before = objective.energy(start)
    assert found.state.pose.shape == (1, 45)
    assert float(found.energy) < 0.5 * float(before)
    torch.testing.assert_close(objective.energy(found.state), found.energy)
    torch.testing.assert_close(found.flight.energies[0], before.clamp_max(float(found.flight.energies[0])))


def test_several_estimates_are_swarms_of_their_own(problem):
    """Two hypotheses in one batch: the first one flies as it does alone in the batch's random numbers."""
    objective, start = problem[False]
    both = start[torch.tensor([0, 0])]
    options = SwarmOptions(particles=16, iterations=4)
    found = minimize(objective, both, options)
    assert found.energy.shape == (2,)
    assert not torch.equal(found.state.pose[0], found.state.pose[1])
    torch.testing.assert_close(objective.energy(found.state), found.energy)


def test_a_start_that_is_not_finite_stays(problem):
    objective, start = problem[False]
    broken = HandState(start.pose * math.nan, start.betas, start.rotation, start.cam)
    found = minimize(objective, broken, SwarmOptions(particles=4, iterations=2))
    assert float(found.energy) == math.inf


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"particles": 0}, "particles"),
        ({"iterations": -1}, "iterations"),
        ({"iterations": 2.0}, "iterations"),
        ({"scatter_interval": True}, "scatter_interval"),
        ({"own_pull": math.nan}, "own_pull"),
        ({"own_pull": 2.0, "common_pull": 2.0}, "pull"),
    ],
)
def test_options_out_of_range_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        SwarmOptions(**options)


def test_other_arguments_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"Spread\.pose"):
        Spread(pose=-1.0)
    with pytest.raises(ValueError, match=r"center, spread.*\(2, 3\), \(2,\)"):
        fly(bowl, torch.zeros(2, 3), torch.ones(2))
