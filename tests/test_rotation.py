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


def test_zero_quaternion_is_the_identity_with_finite_gradients() -> None:
    for dtype in (torch.float32, torch.float64):
        quat = torch.zeros(2, 4, dtype=dtype, requires_grad=True)
        for function in (r.quaternion_to_matrix, r.quaternion_to_axis_angle):
            result = function(quat)
            (gradient,) = torch.autograd.grad(result.sum() + (result**2).sum(), quat)
            assert gradient.isfinite().all()
        assert torch.equal(r.quaternion_to_matrix(quat.detach()), torch.eye(3, dtype=dtype).expand(2, 3, 3))
        assert torch.equal(r.quaternion_to_axis_angle(quat.detach()), torch.zeros(2, 3, dtype=dtype))


@pytest.mark.parametrize("angle", ANGLES)
def test_gradients_of_axis_angle(angle: float) -> None:
    axis_angle = _axis_angles(angle).requires_grad_()
    assert torch.autograd.gradcheck(r.axis_angle_to_matrix, axis_angle)
    assert torch.autograd.gradcheck(r.axis_angle_to_quaternion, axis_angle)


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
