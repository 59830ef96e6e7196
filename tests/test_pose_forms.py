"""Every form of a rotation that HandModel takes: one mesh, right gradients, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from synthetic_mano import synthetic_mano
from torch import Tensor

from dhpe_fast.hand import HandModel
from dhpe_fast.rotation import quaternion_to_matrix, rotation_6d_to_matrix


@pytest.fixture(scope="module")
def model() -> HandModel:
    return HandModel(synthetic_mano(), dtype=torch.float64)


def in_form(name: str, rotations: Rotation) -> Tensor:
    """N rotations by SciPy in one of the forms, float64."""
    if name == "axis-angle":
        numbers = rotations.as_rotvec()
    elif name == "quaternions":
        numbers = np.roll(rotations.as_quat(), 1, axis=-1)  # SciPy writes (x, y, z, w)
    elif name == "6D":
        numbers = rotations.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)
    else:
        numbers = rotations.as_matrix()
    return torch.from_numpy(np.ascontiguousarray(numbers))


FORMS = ("axis-angle", "quaternions", "6D", "matrices")


def random_rotations(n: int, seed: int = 0) -> Rotation:
    return Rotation.from_rotvec(np.random.default_rng(seed).normal(size=(n, 3)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [(), (0,), (2,), (3, 2)])
def test_every_form_gives_the_same_hand(model: HandModel, form: str, batch: tuple[int, ...]) -> None:
    n = max(math.prod(batch), 1)
    joints, roots = random_rotations(15 * n), random_rotations(n, seed=1)

    def shaped(name: str) -> tuple[Tensor, Tensor]:
        pose, root = in_form(name, joints), in_form(name, roots)
        count = math.prod(batch)
        pose = pose.reshape(n, 15, *pose.shape[1:])[:count].reshape(*batch, 15, *pose.shape[1:])
        return pose, root[:count].reshape(*batch, *root.shape[1:])

    pose, root = shaped(form)
    flat, flat_root = shaped("axis-angle")
    expected = model(flat.flatten(-2), None, flat_root)
    mesh = model(pose, None, root)
    torch.testing.assert_close(mesh.verts_m, expected.verts_m, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.joints_m(pose, None, root), expected.joints_m, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(pose).verts_m, model(flat.flatten(-2)).verts_m, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_orientation_broadcasts_against_the_pose(model: HandModel, form: str) -> None:
    pose, roots = in_form(form, random_rotations(15)), in_form(form, random_rotations(3))  # (3, 3, 3) as matrices
    joints_m = model.joints_m(pose, None, roots)
    assert joints_m.shape == (3, 21, 3)
    torch.testing.assert_close(joints_m[1], model.joints_m(pose, None, roots[1]))


@pytest.mark.parametrize("form", ["quaternions", "6D"])
def test_numbers_of_any_length(model: HandModel, form: str) -> None:
    pose = in_form(form, random_rotations(15))
    torch.testing.assert_close(
        model.joints_m(-3.5 * pose if form == "quaternions" else 3.5 * pose), model.joints_m(pose)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("angle", [0.0, 1e-8, 1.0, math.pi, 2 * math.pi, 7.5])
def test_gradients_at_every_angle(model: HandModel, form: str, angle: float) -> None:
    axes = random_rotations(16).as_matrix()[:, 0]
    if form == "axis-angle":  # the others do not count turns
        numbers = torch.from_numpy(angle * axes)
    else:
        numbers = in_form(form, Rotation.from_rotvec(angle * axes))
    pose, root = numbers[1:].clone().requires_grad_(), numbers[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, r: model.joints_m(p, None, r), (pose, root), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "numbers",
    [[0.0] * 4, [0.0] * 6, [1.0, 2, 3, 0, 0, 0], [1.0, 2, 3, -2, -4, -6], [0.0, 0, 0, 1, 0, 0]],
    ids=["zero quaternion", "zero 6D", "zero second column", "parallel columns", "zero first column"],
)
def test_numbers_of_no_rotation_give_a_hand_and_finite_gradients(numbers: list[float], dtype: torch.dtype) -> None:
    model = HandModel(synthetic_mano(), dtype=dtype)
    leaf = torch.tensor(numbers, dtype=dtype).repeat(16, 1).requires_grad_()
    to_matrix = quaternion_to_matrix if len(numbers) == 4 else rotation_6d_to_matrix
    matrices = to_matrix(leaf.detach())
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(3, dtype=dtype).expand(16, 3, 3), rtol=0, atol=1e-6)
    joints_m = model.joints_m(leaf[1:], None, leaf[0])
    torch.testing.assert_close(joints_m, model.joints_m(matrices[1:], None, matrices[0]))
    joints_m.square().sum().backward()
    assert leaf.grad.isfinite().all()
    if not any(numbers):
        rest = model.joints_m(torch.zeros(45, dtype=dtype))
        torch.testing.assert_close(joints_m, rest)
        assert not leaf.grad.any()


def test_principal_components_are_named(model: HandModel) -> None:
    coeffs = torch.linspace(-1, 1, 12, dtype=torch.float64).requires_grad_()
    pose = model.pose_from_pca(coeffs)
    torch.testing.assert_close(
        pose, model.hands_mean + (coeffs[:, None] * model.hands_components[:12]).sum(0), rtol=0, atol=1e-14
    )
    assert torch.autograd.gradcheck(lambda c: model.joints_m(model.pose_from_pca(c)), coeffs, fast_mode=True)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_half_types_are_computed_in_float32(form: str, half: torch.dtype) -> None:
    model = HandModel(synthetic_mano())
    pose, root = (in_form(form, random_rotations(n)).to(half) for n in (15, 1))
    betas = torch.linspace(-1, 1, 10).to(half)
    mesh, exact = model(pose, betas, root[0]), model(pose.float(), betas.float(), root[0].float())
    assert mesh.verts_m.dtype == mesh.joints_m.dtype == half
    assert torch.equal(mesh.verts_m, exact.verts_m.to(half))
    mixed = model(pose, betas.float(), root[0])  # beside float32 the result is float32
    assert torch.equal(mixed.verts_m, exact.verts_m)
    assert torch.equal(model.joints_m(pose, None, root[0].float()), model.joints_m(pose.float(), None, root[0].float()))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_one_graph(form: str) -> None:
    model = HandModel(synthetic_mano())
    pose = in_form(form, random_rotations(30)).float().unflatten(0, (2, 15))
    compiled = torch.compile(lambda pose: model(pose).verts_m, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pose), model(pose).verts_m)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


ACCEPTED = (
    r"pose: expected \(\*batch, 45\) axis-angle or one of \(\*batch, 15, 3\) axis-angle, "
    r"\(\*batch, 15, 3, 3\) matrices, \(\*batch, 15, 6\) 6D, \(\*batch, 15, 4\) quaternions, got "
)


@pytest.mark.parametrize(
    ("pose", "root", "error", "message"),
    [
        (zeros(16, 3), None, ValueError, ACCEPTED + r"\(16, 3\)"),
        (zeros(15, 9), None, ValueError, ACCEPTED + r"\(15, 9\)"),
        (zeros(2, 90), None, ValueError, ACCEPTED + r"\(2, 90\)"),
        (zeros(15), None, ValueError, ACCEPTED + r"\(15,\)"),
        (zeros(()), None, ValueError, ACCEPTED + r"\(\)"),
        (zeros(15, 6), zeros(3), ValueError, r"global_orient: expected \(\*batch, 6\), as the pose is given as 6D"),
        (
            zeros(15, 4),
            zeros(3, 3),
            ValueError,
            r"global_orient: .* given as quaternions, got \(3, 3\)",
        ),
        (zeros(15, 4), zeros(4).float(), ValueError, "global_orient is torch.float32 .* but pose is torch.float64"),
        (zeros(2, 15, 6), zeros(3, 6), ValueError, r"global_orient \(3, 6\) and pose \(2, 15, 6\): batches do not"),
        (zeros(15, 4), [1.0, 0, 0, 0], TypeError, "global_orient: expected a floating-point tensor, got list"),
        (zeros(15, 4).long(), None, TypeError, "pose: expected a floating-point tensor, got a tensor of torch.int64"),
    ],
)
def test_what_is_no_form_is_named(model: HandModel, pose, root, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model(pose, None, root)
