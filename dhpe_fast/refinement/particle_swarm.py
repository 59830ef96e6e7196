"""Particle swarm: fitting a hand without derivatives, the model-fitting baseline beside the descents.

Kennedy and Eberhart 1995 (the paper's [19]), with the constriction of Clerc and Kennedy 2002; Oikonomidis et al. 2011
fit hands this way. A swarm of candidates flies through the 61 local parameters of a hand (see ``gauss_newton``); each
is drawn to the best place it has seen itself and to the best that any of the swarm has seen. All candidates of all
swarms are one batch for the ops. The objective is that of ``gauss_newton``, on the skeleton or on the mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dhpe_fast.refinement.gauss_newton import CAMERA, N_LOCAL, POSE, ROTATION, SHAPE, HandState, Objective

PULL = 4.1
"""Sum of the two pulls, phi of Clerc and Kennedy; swarms converge where it is more than 4."""


def constriction(pull: float) -> float:
    """The factor chi on velocities, with which a swarm neither explodes nor stalls; 0.7298 for 4.1.

    2 / |2 - phi - sqrt(phi^2 - 4 phi)| (Clerc and Kennedy 2002, Eq. 14, with kappa = 1).
    """
    if not (pull > 4 and math.isfinite(pull)):
        raise ValueError(f"pull: expected a finite number > 4, got {pull!r}")
    return 2 / abs(2 - pull - math.sqrt(pull * pull - 4 * pull))


@dataclass(frozen=True)
class Spread:
    """Where candidates start: within so much of the first estimate. It is the fastest they fly, too."""

    pose: float = 0.4
    """radians, each axis-angle component"""
    shape: float = 1.0
    """standard deviations"""
    rotation: float = 0.4
    """radians"""
    camera: float = 0.2
    """log scale and crop units; metres in perspective"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Spread.{name}: expected a finite number >= 0, got {value!r}")

    def vector(self, like: Tensor) -> Tensor:
        """Of each local parameter, (61,)."""
        spread = like.new_empty(N_LOCAL)
        for name, block in (("pose", POSE), ("shape", SHAPE), ("rotation", ROTATION), ("camera", CAMERA)):
            spread[block] = getattr(self, name)
        return spread


@dataclass(frozen=True)
class SwarmOptions:
    """How a swarm flies."""

    particles: int = 64
    """Candidates of each swarm; the first one starts at the first estimate itself."""
    iterations: int = 50
    own_pull: float = 2.8
    """Towards the best place of its own, c1; with c2 the values of Oikonomidis et al. 2011."""
    common_pull: float = PULL - 2.8
    """Towards the best place of the swarm, c2."""
    scatter_interval: int = 3
    """After so many iterations, half of the candidates get one parameter anew, drawn around the swarm's best: without
    it a swarm collapses before its fingers are where they belong. 0 never does."""
    seed: int = 0
    """Of the random numbers, which are drawn on the CPU: the same ones for every device."""

    def __post_init__(self) -> None:
        for name, least in (("particles", 1), ("iterations", 0), ("scatter_interval", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")
        for name in ("own_pull", "common_pull"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
        constriction(self.own_pull + self.common_pull)


@dataclass(frozen=True, eq=False)
class Flight:
    """The best that B swarms have seen, after each iteration."""

    places: Tensor
    """(iterations + 1, B, D)"""
    energies: Tensor
    """(iterations + 1, B), never rising"""


@dataclass(frozen=True, eq=False)
class Swarmed:
    """The best hand of each swarm, and the way there."""

    state: HandState
    energy: Tensor
    """(B,)"""
    flight: Flight
    """In the local parameters around the first estimates."""


def fly(
    energy: Callable[[Tensor], Tensor],
    center: Tensor,  # (B, D)
    spread: Tensor,  # (D,)
    options: SwarmOptions | None = None,
) -> Flight:
    """Minimises a function of D numbers with B swarms, each around a centre of its own.

    Args:
        energy: values (B, P) at places (B, P, D); whatever is not finite is a bad place.
        center: where the swarms begin. The result is never worse than the value there.
        spread: how far from there they begin, each number on its own, and how far they fly in one iteration.
        options: how they fly.

    Raises:
        ValueError: if shapes do not fit.
    """
    options = SwarmOptions() if options is None else options
    if center.dim() != 2 or spread.shape != center.shape[1:]:
        raise ValueError(f"center, spread: expected (B, D) and (D,), got {tuple(center.shape)}, {tuple(spread.shape)}")
    random = _Random(options.seed, (len(center), options.particles, len(spread)), center)
    chi = constriction(options.own_pull + options.common_pull)

    place = center[:, None] + spread * random.signed()
    place[:, 0] = center
    velocity = torch.zeros_like(place)
    own_best, own_energy = place, _finite(energy(place))
    leaders, energies = [], []
    for t in range(options.iterations + 1):
        first = own_energy.argmin(1)
        leader = own_best.gather(1, first[:, None, None].expand(-1, 1, place.shape[-1]))
        leaders.append(leader[:, 0])
        energies.append(own_energy.gather(1, first[:, None])[:, 0])
        if t == options.iterations:
            break
        pull = options.own_pull * random.unsigned() * (own_best - place)
        pull = pull + options.common_pull * random.unsigned() * (leader - place)
        velocity = torch.clamp(chi * (velocity + pull), -spread, spread)
        place = place + velocity
        if options.scatter_interval and (t + 1) % options.scatter_interval == 0:
            place = torch.where(random.half_with_one_number(), leader + spread * random.signed(), place)
        found = _finite(energy(place))
        better = found < own_energy
        own_best = torch.where(better[..., None], place, own_best)
        own_energy = torch.where(better, found, own_energy)
    return Flight(torch.stack(leaders), torch.stack(energies))


@torch.no_grad()
def minimize(
    objective: Objective,
    state: HandState,
    options: SwarmOptions | None = None,
    spread: Spread | None = None,
) -> Swarmed:
    """Minimises the objective by a swarm around each of B first estimates, independently.

    The result is never worse than the start, and never NaN if the start is finite.

    Args:
        objective: what to minimise; B hypotheses of one hand have its energy in common.
        state: the first estimates, (B, ...).
        options: how the swarms fly.
        spread: how far around the estimates they begin.
    """
    options = SwarmOptions() if options is None else options
    batch, particles = len(state.pose), options.particles
    repeated = state[torch.arange(batch, device=state.pose.device).repeat_interleave(particles)]

    def energy(places: Tensor) -> Tensor:  # (B, P, 61)
        return objective.energy(repeated.moved(places.flatten(0, 1))).unflatten(0, (batch, particles))

    center = state.pose.new_zeros(batch, N_LOCAL)
    flight = fly(energy, center, (spread or Spread()).vector(state.pose), options)
    return Swarmed(state.moved(flight.places[-1]), flight.energies[-1], flight)


class _Random:
    """Random numbers of one shape, drawn on the CPU."""

    def __init__(self, seed: int, shape: tuple[int, int, int], like: Tensor) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._shape, self._like = shape, like

    def unsigned(self) -> Tensor:
        """(B, P, D), uniform in [0, 1)."""
        return torch.rand(self._shape, generator=self._generator, dtype=torch.float64).to(self._like)

    def signed(self) -> Tensor:
        """(B, P, D), uniform in [-1, 1)."""
        return 2 * self.unsigned() - 1

    def half_with_one_number(self) -> Tensor:
        """(B, P, D) bool: in every other candidate, one number at random."""
        batch, particles, dims = self._shape
        one = torch.randint(dims, (batch, particles, 1), generator=self._generator)
        chosen = torch.zeros(self._shape, dtype=torch.bool).scatter_(2, one, True)
        chosen[:, ::2] = False
        return chosen.to(self._like.device)


def _finite(energy: Tensor) -> Tensor:
    return torch.where(energy.isfinite(), energy, torch.inf)
