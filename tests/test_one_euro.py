"""The One-Euro filter against the paper's algorithm, written out, and on rotations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dhpe_fast.one_euro import OneEuro, PointFilter, RotationFilter
from dhpe_fast.rotation import axis_angle_to_matrix, matrix_to_axis_angle, quaternion_to_matrix

DT_S = 1 / 30


def one_euro_of_the_paper(values: list[float], min_cutoff_hz: float, beta: float, dcutoff_hz: float) -> list[float]:
    """Algorithm 1 of the paper, for one number."""

    def alpha(cutoff_hz: float) -> float:
        return 1 / (1 + 1 / (2 * math.pi * cutoff_hz) / DT_S)

    answers, speed = values[:1], 0.0
    for value in values[1:]:
        a = alpha(dcutoff_hz)
        speed = a * (value - answers[-1]) / DT_S + (1 - a) * speed
        a = alpha(min_cutoff_hz + beta * abs(speed))
        answers.append(a * value + (1 - a) * answers[-1])
    return answers


def run(filter_: PointFilter | RotationFilter, values: torch.Tensor) -> torch.Tensor:
    return torch.stack([filter_.step(value, DT_S) for value in values])


def tremble(rotations: torch.Tensor) -> float:
    """Mean turn from frame to frame, radians."""
    return float(matrix_to_axis_angle(rotations[1:] @ rotations[:-1].transpose(-1, -2)).norm(dim=-1).mean())


def test_numbers_come_out_as_in_the_paper():
    values = np.random.default_rng(0).normal(size=50).cumsum()
    expected = one_euro_of_the_paper(values.tolist(), 0.8, 0.3, 1.5)
    found = run(PointFilter(OneEuro(0.8, 0.3, 1.5)), torch.from_numpy(values)[:, None])
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-12)


def test_the_coordinates_of_a_point_share_its_speed_and_points_do_not():
    """A point in fast motion along x is followed along y, too; one at rest beside it is held."""
    time = torch.arange(60, dtype=torch.float64) * DT_S
    ripple = 0.01 * (-1.0) ** torch.arange(60)
    moving = torch.stack([3.0 * time, ripple], dim=1)
    resting = torch.stack([0 * time, ripple], dim=1)
    found = run(PointFilter(OneEuro(0.5, 20.0)), torch.stack([moving, resting], dim=1))
    assert (found[-1, 0] - moving[-1]).norm() < 0.05
    assert found[40:, 0, 1].abs().mean() > 0.005
    assert found[40:, 1, 1].abs().mean() < 0.002


def test_the_unit_of_speed_scales_with_the_points():
    """Pixels of a picture twice the size, with the unit twice the size: twice the answer."""
    values = torch.from_numpy(np.random.default_rng(1).normal(size=(20, 2)))
    small, large = PointFilter(OneEuro(1.0, 2.0)), PointFilter(OneEuro(1.0, 2.0))
    for value in values:
        torch.testing.assert_close(2 * small.step(value, DT_S, 3.0), large.step(2 * value, DT_S, 6.0))


def test_a_long_time_between_frames_brings_the_new_value():
    filter_ = PointFilter(OneEuro(1.0))
    filter_.step(torch.zeros(3), DT_S)
    assert filter_.step(torch.ones(3), 60.0).min() > 0.99


def test_a_rotation_about_one_axis_is_filtered_as_its_angle():
    angles = np.random.default_rng(2).normal(0, 0.1, 40)
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    expected = one_euro_of_the_paper(angles.tolist(), 1.0, 0.4, 1.0)
    found = run(RotationFilter(OneEuro(1.0, 0.4)), axis_angle_to_matrix(torch.from_numpy(angles)[:, None] * axis))
    torch.testing.assert_close(found, axis_angle_to_matrix(torch.tensor(expected)[:, None].double() * axis))


def test_turning_through_half_a_turn_never_jumps():
    """Where the axis-angle wraps from pi to -pi and the quaternion changes its sign, the answer goes straight on."""
    angles = torch.linspace(2.0, 4.4, 60, dtype=torch.float64)
    turns = axis_angle_to_matrix(angles[:, None] * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    assert matrix_to_axis_angle(turns)[:, 1].diff().abs().max() > 6  # the wrap is there
    found = run(RotationFilter(OneEuro(1.0, 1.0)), turns)
    steps = matrix_to_axis_angle(found[1:] @ found[:-1].transpose(-1, -2))[:, 1]
    assert steps.min() >= 0
    assert steps.max() < 1.5 * float(angles[1] - angles[0])


def test_the_sign_of_a_quaternion_makes_no_difference():
    quats = torch.from_numpy(np.random.default_rng(3).normal(size=(30, 4)) * 0.05) + torch.tensor([0.1, 0.7, 0.7, 0.1])
    signs = torch.from_numpy(np.random.default_rng(4).choice([-1.0, 1.0], size=(30, 1)))
    plain = run(RotationFilter(OneEuro(1.0, 0.5)), quaternion_to_matrix(quats))
    flipped = run(RotationFilter(OneEuro(1.0, 0.5)), quaternion_to_matrix(signs * quats))
    torch.testing.assert_close(plain, flipped)


def test_noise_on_a_resting_hand_goes_and_the_answer_stays_a_rotation():
    rng = np.random.default_rng(5)
    base = axis_angle_to_matrix(torch.tensor([2.0, -2.0, 1.0], dtype=torch.float64))
    noisy = axis_angle_to_matrix(torch.from_numpy(rng.normal(0, 0.05, (15, 300, 3)))) @ base
    found = run(RotationFilter(OneEuro(0.5)), noisy.transpose(0, 1))
    assert tremble(found[20:]) < 0.15 * tremble(noisy.transpose(0, 1)[20:])
    eye = torch.eye(3, dtype=torch.float64).expand(15, 3, 3)
    torch.testing.assert_close(found[-1] @ found[-1].transpose(-1, -2), eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"min_cutoff_hz": 0.0}, "OneEuro.min_cutoff_hz: expected a finite number > 0, got 0.0"),
        ({"min_cutoff_hz": math.nan}, "OneEuro.min_cutoff_hz"),
        ({"beta": -1.0}, "OneEuro.beta: expected a finite number >= 0, got -1.0"),
        ({"derivative_cutoff_hz": math.inf}, "OneEuro.derivative_cutoff_hz"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        OneEuro(**parameters)
    filter_ = PointFilter(OneEuro())
    filter_.step(torch.zeros(2), DT_S)
    with pytest.raises(ValueError, match="dt_s: expected a time > 0, got 0"):
        filter_.step(torch.zeros(2), 0)
