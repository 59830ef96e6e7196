"""Rotations against SciPy, and their gradients where formulas break: at the identity and at half turns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from dhpe_fast import rotation as r

ANGLES = [0.0, 1e-12, 1e-6, 1e-3, 0.0999, 0.1, 0.1001, 1.0, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-7, math.pi]


def _axis_angles(angle: float) -> Tensor:
    """Turns by one angle about the coordinate axes and some others, (N, 3) float64."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.cat([torch.eye(3), -torch.eye(3), torch.randn(6, 3, generator=generator)]).double()
    return angle * axes / axes.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("angle", [*ANGLES, 4.0, 7.0])
def test_axis_angle_to_matrix_and_quaternion_agree_with_scipy(angle: float) -> None:
    axis_angle = _axis_angles(angle)
    expected = Rotation.from_rotvec(axis_angle.numpy())
    np.testing.assert_allclose(r.axis_angle_to_matrix(axis_angle), expected.as_matrix(), atol=1e-13)
    quat = r.axis_angle_to_quaternion(axis_angle).numpy()
    expected_quat = np.roll(expected.as_quat(), 1, axis=-1)  # SciPy writes (x, y, z, w)
    sign = np.sign((quat * expected_quat).sum(-1, keepdims=True))
    np.testing.assert_allclose(quat * sign, expected_quat, atol=1e-13)


@pytest.mark.parametrize("angle", ANGLES)
def test_matrix_to_axis_angle_inverts(angle: float) -> None:
    axis_angle = _axis_angles(angle)
    matrix = torch.from_numpy(Rotation.from_rotvec(axis_angle.numpy()).as_matrix())
    found = r.matrix_to_axis_angle(matrix)
    assert (found.norm(dim=-1) <= math.pi + 1e-12).all()
    np.testing.assert_allclose(Rotation.from_rotvec(found.numpy()).as_matrix(), matrix, atol=1e-12)
    if angle < math.pi - 1e-6:  # at a half turn the two axes are equal
        np.testing.assert_allclose(found, axis_angle, atol=1e-9)


@pytest.mark.parametrize("angle", ANGLES)
def test_float32_keeps_its_precision(angle: float) -> None:
    axis_angle = _axis_angles(angle).float()
    exact = torch.from_numpy(Rotation.from_rotvec(axis_angle.double().numpy()).as_matrix())
    found = r.axis_angle_to_matrix(axis_angle)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double(), exact, atol=4e-7)
    again = r.axis_angle_to_matrix(r.matrix_to_axis_angle(found))
    np.testing.assert_allclose(again.double(), exact, atol=2e-6)


@pytest.mark.parametrize("length", [1e-30, 1e-3, 1.0, 1e15])
def test_quaternions_of_any_length(length: float) -> None:
    quat = torch.tensor([[0.5, -0.1, 0.7, 0.3]], dtype=torch.float64) * length
    x, y, z, w = quat[0, [1, 2, 3, 0]].tolist()
    too_short = length < r.QUAT_EPS
    expected = np.eye(3) if too_short else Rotation.from_quat([x, y, z, w]).as_matrix()
    np.testing.assert_allclose(r.quaternion_to_matrix(quat)[0], expected, atol=1e-12)


def test_quaternion_and_its_negative_are_one_rotation() -> None:
    quat = torch.tensor([-0.2, 0.4, 0.1, -0.9], dtype=torch.float64)
    torch.testing.assert_close(r.quaternion_to_matrix(quat), r.quaternion_to_matrix(-quat))
    torch.testing.assert_close(r.quaternion_to_axis_angle(quat), r.quaternion_to_axis_angle(-quat))
    assert r.matrix_to_quaternion(r.quaternion_to_matrix(quat))[0] >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-9])
def test_a_quaternion_without_a_direction_is_the_identity_with_zero_gradient(length: float, dtype: torch.dtype) -> None:
    quat = (length * torch.tensor([[0.0, 1, 0, 0], [-0.6, 0, 0, 0.8]], dtype=dtype)).requires_grad_()
    identities = torch.eye(3, dtype=dtype).expand(2, 3, 3), torch.zeros(2, 3, dtype=dtype)
    for function, identity in zip((r.quaternion_to_matrix, r.quaternion_to_axis_angle), identities, strict=True):
        result = function(quat)
        assert torch.equal(result, identity)
        (gradient,) = torch.autograd.grad(result.sum() + ((result - 1) ** 2).sum(), quat)
        assert not gradient.any()


WHOLE_TURNS = [2 * math.pi - 1e-7, 2 * math.pi, 2 * math.pi + 1e-7, 7.0, 4 * math.pi, 50.0]


@pytest.mark.parametrize("angle", [*ANGLES, math.pi + 1e-7, *WHOLE_TURNS])
def test_gradients_of_axis_angle(angle: float) -> None:
    axis_angle = _axis_angles(angle).requires_grad_()
    assert torch.autograd.gradcheck(r.axis_angle_to_matrix, axis_angle)
    assert torch.autograd.gradcheck(r.axis_angle_to_quaternion, axis_angle)


FORMS = {
    "axis-angle": (r.matrix_to_axis_angle, r.axis_angle_to_matrix),
    "quaternion": (r.matrix_to_quaternion, r.quaternion_to_matrix),
    "6D": (r.matrix_to_rotation_6d, r.rotation_6d_to_matrix),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("angle", [*ANGLES, math.pi + 1e-7, *WHOLE_TURNS])
def test_the_derivative_survives_every_form(angle: float, form: str) -> None:
    """By way of another form and back it is the same rotation, also where the form itself jumps."""
    there, back = FORMS[form]
    axis_angle = _axis_angles(angle).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: back(there(r.axis_angle_to_matrix(v))), axis_angle, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("angle", [*ANGLES, *WHOLE_TURNS])
def test_all_gradients_are_finite_and_of_the_order_of_one(angle: float, dtype: torch.dtype) -> None:
    """Of every function at every angle, on both sides of the jump of the axis at half turns."""
    axis_angle = _axis_angles(angle).to(dtype)
    matrix, quat = r.axis_angle_to_matrix(axis_angle), r.axis_angle_to_quaternion(axis_angle)
    for function, value in (
        (r.axis_angle_to_matrix, axis_angle),
        (r.axis_angle_to_quaternion, axis_angle),
        (r.matrix_to_quaternion, matrix),
        (r.matrix_to_axis_angle, matrix),
        (r.quaternion_to_matrix, quat),
        (r.quaternion_to_axis_angle, quat),
        (r.quaternion_to_axis_angle, -quat),
        (r.rotation_6d_to_matrix, r.matrix_to_rotation_6d(matrix)),
    ):
        leaf = value.clone().requires_grad_()
        result = function(leaf)
        (gradient,) = torch.autograd.grad(result, leaf, torch.ones_like(result))
        assert gradient.abs().max() < 20, function.__name__


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_quaternion_to_axis_angle_next_to_a_half_turn(side: float) -> None:
    """The axis jumps where w changes its sign; up to there the derivative is that of the formula."""
    axis = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
    quat = torch.cat([torch.tensor([side * 1e-3], dtype=torch.float64), axis]).requires_grad_()
    torch.testing.assert_close(
        r.quaternion_to_axis_angle(quat).detach(), side * (math.pi - 2e-3) * axis, rtol=0, atol=1e-8
    )
    assert torch.autograd.gradcheck(r.quaternion_to_axis_angle, quat)
    half_turn = torch.cat([torch.zeros(1, dtype=torch.float64), axis]).requires_grad_()
    result = r.quaternion_to_axis_angle(half_turn)
    torch.testing.assert_close(result, math.pi * axis)
    (gradient,) = torch.autograd.grad(result, half_turn, axis)
    # d(angle)/dw = -2 at w = 0; the length of q, along v, changes nothing.
    torch.testing.assert_close(gradient, torch.tensor([-2.0, 0, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize("angle", ANGLES)
def test_gradients_of_matrix_round_trip(angle: float) -> None:
    matrix = r.axis_angle_to_matrix(_axis_angles(angle)).requires_grad_()
    # The sign of a quaternion jumps at half turns, the rotation that it stands for does not.
    assert torch.autograd.gradcheck(lambda m: r.quaternion_to_matrix(r.matrix_to_quaternion(m)), matrix)
    (gradient,) = torch.autograd.grad(r.matrix_to_axis_angle(matrix).sum(), matrix)
    assert gradient.isfinite().all()
    if angle < math.pi - 1e-4:
        assert torch.autograd.gradcheck(r.matrix_to_axis_angle, matrix)


def test_gradients_of_quaternion_to_matrix() -> None:
    quat = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(r.quaternion_to_matrix, quat)
    assert torch.autograd.gradcheck(r.quaternion_to_axis_angle, quat)


def test_rotation_6d_is_gram_schmidt_on_columns() -> None:
    given = torch.tensor([2.0, 0.0, 0.0, 5.0, 3.0, 0.0], dtype=torch.float64)
    assert torch.equal(r.rotation_6d_to_matrix(given), torch.eye(3, dtype=torch.float64))
    matrix = torch.from_numpy(Rotation.random(20, random_state=0).as_matrix())
    torch.testing.assert_close(r.rotation_6d_to_matrix(r.matrix_to_rotation_6d(matrix)), matrix)
    scaled = r.matrix_to_rotation_6d(matrix) * 7.5
    torch.testing.assert_close(r.rotation_6d_to_matrix(scaled), matrix)
    free = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(r.rotation_6d_to_matrix, free)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "given",
    [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [1, 2, 3, 0, 0, 0],
        [1, 2, 3, 2, 4, 6],
        [1, 2, 3, -1, -2, -3],
        [1, 1e-9, 0, 1, 0, 0],
        [1e-20, 0, 0, 0, 1e-20, 0],
    ],
)
def test_degenerate_6d_still_gives_a_rotation(given: list[float], dtype: torch.dtype) -> None:
    value = torch.tensor(given, dtype=dtype, requires_grad=True)
    matrix = r.rotation_6d_to_matrix(value)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3, dtype=dtype), atol=tolerance, rtol=0)
    assert abs(torch.linalg.det(matrix).item() - 1) < tolerance
    (gradient,) = torch.autograd.grad((matrix * torch.arange(9, dtype=dtype).view(3, 3)).sum(), value)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_any_leading_batch(batch: tuple[int, ...]) -> None:
    assert r.axis_angle_to_matrix(torch.zeros(*batch, 3)).shape == (*batch, 3, 3)
    assert r.matrix_to_quaternion(torch.eye(3).expand(*batch, 3, 3)).shape == (*batch, 4)
    assert r.quaternion_to_axis_angle(torch.ones(*batch, 4)).shape == (*batch, 3)
    assert r.rotation_6d_to_matrix(torch.ones(*batch, 6)).shape == (*batch, 3, 3)


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        (r.axis_angle_to_matrix, torch.zeros(4)),
        (r.axis_angle_to_matrix, torch.zeros(3, dtype=torch.int64)),
        (r.quaternion_to_matrix, torch.zeros(2, 3)),
        (r.matrix_to_quaternion, torch.zeros(3)),
        (r.rotation_6d_to_matrix, torch.zeros(3, 2)),
    ],
)
def test_wrong_shapes_and_types_are_named(function, wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"expected a floating-point tensor .* got \({wrong.shape[0]},"):
        function(wrong)
    with pytest.raises(TypeError, match=r"expected a torch.Tensor, got list"):
        function([0.0, 0.0, 0.0])
