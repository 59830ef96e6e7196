"""HandModel against plain loops, and what users rely on: frames, orders, gradients, mirroring, errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from synthetic_mano import mano_by_loops, synthetic_mano

from dhpe_fast import ops
from dhpe_fast.conventions import (
    FINGERS,
    JOINT_NAMES,
    JOINT_ORDERS,
    MANO16_PARENTS,
    N_VERTS,
    STD_PARENTS,
    STD_TIPS,
)
from dhpe_fast.hand import HandModel, HandParams
from dhpe_fast.rotation import axis_angle_to_matrix

ARRAYS = synthetic_mano()


@pytest.fixture(scope="module")
def model() -> HandModel:
    return HandModel(ARRAYS, dtype=torch.float64)


@pytest.fixture(scope="module")
def default_hand() -> HandModel:
    return HandModel.default(dtype=torch.float64)


def _random(*shape: int, scale: float = 0.4, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- The model frame ---


def test_forward_agrees_with_loops(model: HandModel) -> None:
    pose, betas, orient = _random(4, 45), _random(4, 10, scale=1.5), _random(4, 3, scale=1.0)
    mesh = model(pose, betas, orient)
    for i in range(4):
        verts_m, joints_m = mano_by_loops(ARRAYS, pose[i].numpy(), betas[i].numpy(), orient[i].numpy())
        np.testing.assert_allclose(mesh.verts_m[i], verts_m, atol=1e-12)
        expected = np.concatenate([joints_m, verts_m[ARRAYS["tip_ids"]]])[list(JOINT_ORDERS["mano21"])]
        np.testing.assert_allclose(mesh.joints_m[i], expected, atol=1e-12)


def test_rest_pose_and_mean_shape_are_the_template(model: HandModel) -> None:
    mesh = model(torch.zeros(45, dtype=torch.float64))
    np.testing.assert_allclose(mesh.verts_m, ARRAYS["v_template"], atol=1e-15)
    np.testing.assert_allclose(mesh.joints_m[0], ARRAYS["J_regressor"][0] @ ARRAYS["v_template"], atol=1e-15)


def test_matrices_and_axis_angles_are_the_same_pose(model: HandModel) -> None:
    pose, orient = _random(2, 45), _random(2, 3)
    turns = torch.from_numpy(Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix()).view(2, 15, 3, 3)
    root = torch.from_numpy(Rotation.from_rotvec(orient).as_matrix())
    torch.testing.assert_close(model(turns, None, root).verts_m, model(pose, None, orient).verts_m)


def test_global_orient_turns_about_the_wrist_joint(model: HandModel) -> None:
    pose, betas = _random(45), _random(10)
    straight, turned = (
        model(pose, betas),
        model(pose, betas, torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)),
    )
    torch.testing.assert_close(turned.joints_m[0], straight.joints_m[0])
    rotation = axis_angle_to_matrix(torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64))
    wrist_m = straight.joints_m[0]
    torch.testing.assert_close(turned.verts_m, (straight.verts_m - wrist_m) @ rotation.T + wrist_m)


def test_rest_joints_and_tips_need_no_mesh(model: HandModel) -> None:
    betas = _random(3, 10, scale=1.0)
    mesh = model(torch.zeros(3, 45, dtype=torch.float64), betas)
    kinematic = [JOINT_ORDERS["mano21"].index(joint) for joint in range(16)]
    torch.testing.assert_close(model.rest_joints_m(betas), mesh.joints_m[:, kinematic])
    torch.testing.assert_close(model.rest_tips_m(betas), mesh.joints_m[:, list(STD_TIPS)])
    assert model.rest_joints_m().shape == (16, 3)
    assert model.rest_tips_m().shape == (5, 3)


def test_regressed_joints_are_the_regressor_and_the_tips(model: HandModel) -> None:
    verts = _random(2, N_VERTS, 3)
    joints = model.regress_joints(verts)
    kinematic = np.einsum("jv,bvc->bjc", ARRAYS["J_regressor"], verts)
    expected = np.concatenate([kinematic, verts[:, ARRAYS["tip_ids"]]], axis=1)[:, list(JOINT_ORDERS["mano21"])]
    np.testing.assert_allclose(joints, expected, atol=1e-12)
    assert model.joint_regressor.shape == (21, N_VERTS)
    rest = model(torch.zeros(45, dtype=torch.float64))
    torch.testing.assert_close(model.regress_joints(rest.verts_m), rest.joints_m)  # equal at rest, and only there


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3)])
def test_any_leading_batch(model: HandModel, batch: tuple[int, ...]) -> None:
    mesh = model(torch.zeros(*batch, 45, dtype=torch.float64), torch.zeros(*batch, 10, dtype=torch.float64))
    assert mesh.verts_m.shape == (*batch, 778, 3)
    assert mesh.joints_m.shape == (*batch, 21, 3)
    assert model.decode(torch.zeros(*batch, 63, dtype=torch.float64)).verts_m.shape == (*batch, 778, 3)


def test_batches_broadcast(model: HandModel) -> None:
    pose, betas, orient = _random(45), _random(5, 10), _random(3, 1, 3)
    mesh = model(pose, betas, orient)
    assert mesh.verts_m.shape == (3, 5, 778, 3)
    torch.testing.assert_close(mesh.verts_m[2, 4], model(pose, betas[4], orient[2, 0]).verts_m)
    matrices = model(axis_angle_to_matrix(pose.view(15, 3)), betas)
    torch.testing.assert_close(matrices.verts_m, model(pose, betas).verts_m)


# --- Joints without the mesh ---


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch", [(), (0,), (1,), (5,), (2, 3)])
def test_joints_without_the_mesh_are_those_of_forward(side: str, batch: tuple[int, ...]) -> None:
    model = HandModel.default(side, dtype=torch.float64)
    pose, betas, orient = _random(*batch, 45), _random(*batch, 10, scale=1.5), _random(*batch, 3, scale=2.0)
    for arguments in (
        (pose,),
        (pose, betas),
        (pose, betas, orient),
        (axis_angle_to_matrix(pose.unflatten(-1, (15, 3))),),
    ):
        joints_m = model.joints_m(*arguments)
        assert joints_m.shape == (*batch, 21, 3)
        torch.testing.assert_close(joints_m, model(*arguments).joints_m, rtol=0, atol=1e-12)
    orients = _random(4, *(1,) * len(batch), 3)
    torch.testing.assert_close(model.joints_m(pose, None, orients), model(pose, None, orients).joints_m)


def test_joints_without_the_mesh_have_the_gradients_of_forward(model: HandModel) -> None:
    arguments = tuple(t.requires_grad_() for t in (_random(2, 45), _random(2, 10), _random(2, 3)))
    assert torch.autograd.gradcheck(model.joints_m, arguments)
    probe = _random(21, 3, seed=1)
    found, expected = (
        torch.autograd.grad((joints_m * probe).sum(), arguments)
        for joints_m in (model.joints_m(*arguments), model(*arguments).joints_m)
    )
    torch.testing.assert_close(found, expected)


def test_joints_skin_five_vertices(model: HandModel, monkeypatch) -> None:
    skinned = []

    def counted(pose, betas, basis):
        skinned.append(len(basis.v_template))
        return ops.lbs(pose, betas, basis)

    monkeypatch.setattr("dhpe_fast.hand.model.lbs", counted)
    model.joints_m(_zeros(45))
    model(_zeros(45))
    assert skinned == [5, 778]


def test_joints_follow_the_module_where_it_goes() -> None:
    model = HandModel(ARRAYS)
    pose = _random(45)
    with torch.inference_mode():
        single = model.joints_m(pose.float())
    leaf = pose.float().requires_grad_()
    model.joints_m(leaf).sum().backward()  # what inference mode cached serves training
    assert leaf.grad.any()
    moved = copy.deepcopy(model).double()
    assert moved.joints_m(pose).dtype == torch.float64
    torch.testing.assert_close(moved.joints_m(pose), moved(pose).joints_m, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.joints_m(pose.float()), single, rtol=0, atol=0)
    mirrored = model.mirrored()
    flip = torch.tensor([-1.0, 1, 1])
    turn = torch.tensor([1.0, -1, -1]).repeat(15)
    torch.testing.assert_close(mirrored.joints_m(pose.float() * turn), single * flip, rtol=0, atol=1e-6)
    assert model.to("meta").joints_m(torch.zeros(2, 45, device="meta")).shape == (2, 21, 3)


# --- The crop frame ---


def test_decode_is_scale_rotation_translation_of_the_mesh(model: HandModel) -> None:
    h = _random(3, 63)
    mesh, plain = model.decode(h), model(h[:, :45], h[:, 45:55])
    for i in range(3):
        w, x, y, z = h[i, 55:59].tolist()
        rotation = h[i, 59].item() * Rotation.from_quat([x, y, z, w]).as_matrix()
        np.testing.assert_allclose(
            mesh.verts_m[i], plain.verts_m[i].numpy() @ rotation.T + h[i, 60:].numpy(), atol=1e-12
        )
        np.testing.assert_allclose(
            mesh.joints_m[i], plain.joints_m[i].numpy() @ rotation.T + h[i, 60:].numpy(), atol=1e-12
        )
    torch.testing.assert_close(model.decode(HandParams.from_packed(h)).verts_m, mesh.verts_m)


def test_the_papers_first_parameters_decode_to_a_point_with_finite_gradients(model: HandModel) -> None:
    h = HandParams.initial(model, batch_size=2).packed().requires_grad_()
    mesh = model.decode(h)
    assert mesh.verts_m.abs().max() == 0
    ((mesh.verts_m - 1) ** 2).sum().backward()
    assert h.grad.isfinite().all()
    assert h.grad[:, 59:].abs().min() > 0  # scale and translation can leave zero


def test_gradients_of_decode(model: HandModel) -> None:
    h = _random(2, 63).requires_grad_()
    probe = _random(21, 3, seed=1)
    assert torch.autograd.gradcheck(lambda h: (model.decode(h).joints_m * probe).sum((-1, -2)), h)
    some = torch.tensor([0, 100, 777])
    assert torch.autograd.gradcheck(lambda h: model.decode(h).verts_m[:, some], h)


# --- PCA of the pose ---


def test_pca_round_trip(model: HandModel) -> None:
    coeffs = _random(4, 45)
    torch.testing.assert_close(model.pca_from_pose(model.pose_from_pca(coeffs)), coeffs)
    torch.testing.assert_close(model.pose_from_pca(torch.zeros(6, dtype=torch.float64)), model.hands_mean)
    expected = ARRAYS["hands_mean"] + coeffs[:, :6].numpy() @ ARRAYS["hands_components"][:6]
    np.testing.assert_allclose(model.pose_from_pca(coeffs[:, :6]), expected, atol=1e-15)
    torch.testing.assert_close(model.pca_from_pose(model.pose_from_pca(coeffs), n_components=6), coeffs[:, :6])


# --- Mesh, mirror image, module ---


def _volume(verts: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (verts[faces[:, i]] for i in range(3))
    return float(np.einsum("fc,fc->f", a, np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("name", ["model", "default_hand"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_closed_mesh_is_watertight_and_faces_outward(name: str, mirrored: bool, request) -> None:
    model = request.getfixturevalue(name)
    model = model.mirrored() if mirrored else model
    verts = model.close_wrist(model.v_template)
    faces = model.faces_closed.numpy()
    assert verts.shape == (779, 3)
    assert faces.shape == (1554, 3)
    edges = [(f[i], f[(i + 1) % 3]) for f in faces.tolist() for i in range(3)]
    assert len(set(edges)) == len(edges)
    assert {(b, a) for a, b in edges} == set(edges)
    assert 1e-4 < _volume(verts.numpy(), faces) < 1e-3  # cubic metres; negative if inside out
    torch.testing.assert_close(model.faces_closed[:1538], model.faces)


def test_closing_keeps_the_vertices_and_the_batch(model: HandModel) -> None:
    verts = _random(2, 3, N_VERTS, 3)
    closed = model.close_wrist(verts)
    assert torch.equal(closed[..., :778, :], verts)
    ring = sorted(set(model.faces_closed[1538:].flatten().tolist()) - {778})
    assert len(ring) == 16
    torch.testing.assert_close(closed[..., 778, :], verts[..., ring, :].mean(-2))


def test_mirrored_twice_is_the_same_model(model: HandModel) -> None:
    mirrored = model.mirrored()
    assert (model.side, mirrored.side) == ("right", "left")
    for (name, buffer), (_, other) in zip(model.named_buffers(), mirrored.mirrored().named_buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)


def test_mirrored_pca_coefficients_mean_the_mirrored_pose(model: HandModel) -> None:
    coeffs = _random(45)
    pose, mirrored = model.pose_from_pca(coeffs), model.mirrored().pose_from_pca(coeffs)
    torch.testing.assert_close(
        mirrored.view(15, 3), pose.view(15, 3) * torch.tensor([1.0, -1, -1], dtype=torch.float64)
    )


def test_the_module_moves_and_trains_nothing(model: HandModel) -> None:
    moved = copy.deepcopy(model).float()
    assert moved.basis.posedirs.dtype == torch.float32
    assert moved.basis is moved.basis
    assert moved.basis.parents.dtype == moved.faces.dtype == torch.int32
    assert moved(torch.zeros(45)).verts_m.dtype == torch.float32
    assert moved.double().basis.v_template.dtype == torch.float64
    assert not list(model.parameters())
    assert not model.state_dict()  # a network's checkpoint must not carry a licensed hand
    assert "side='right'" in repr(model)
    assert model.basis.parents.tolist() == list(MANO16_PARENTS)


def test_decode_is_one_graph_for_export() -> None:
    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = HandModel(ARRAYS)

        def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mesh = self.model.decode(h)
            return mesh.verts_m, mesh.joints_m

    decoder, h = Decoder(), _random(2, 63).float()
    exported = torch.export.export(decoder, (h,)).module()
    torch.testing.assert_close(exported(h), decoder(h))


def test_arrays_are_copies(model: HandModel) -> None:
    model.arrays()["v_template"][:] = 0
    model.arrays()["f"][:] = 0
    np.testing.assert_array_equal(model.v_template, ARRAYS["v_template"])
    np.testing.assert_array_equal(model.faces, ARRAYS["f"])
    given = synthetic_mano()
    HandModel(given)
    for key, value in given.items():
        np.testing.assert_array_equal(value, ARRAYS[key])


# --- The default hand ---


def test_default_hand_lies_in_the_model_frame(default_hand: HandModel) -> None:
    joints_m = dict(zip(JOINT_NAMES, default_hand(torch.zeros(45, dtype=torch.float64)).joints_m.numpy(), strict=True))
    np.testing.assert_allclose(joints_m["wrist"], (0.095, 0.006, 0.006), atol=0.01)
    fingers_m = joints_m["middle_tip"] - joints_m["wrist"]
    assert fingers_m[0] < -0.15
    assert joints_m["index_mcp"][2] > joints_m["little_mcp"][2]
    assert joints_m["thumb_tip"][2] > joints_m["index_mcp"][2]
    assert (default_hand.side, HandModel.default("left").side) == ("right", "left")


def test_default_hand_bends_towards_the_palm(default_hand: HandModel) -> None:
    """The mean pose is a relaxed hand: its fingers are flexed, their tips on the palm's side, at -y."""
    flat = default_hand(torch.zeros(45, dtype=torch.float64)).joints_m
    relaxed = default_hand(default_hand.hands_mean).joints_m
    for finger, tip in zip(FINGERS[1:], STD_TIPS[1:], strict=True):
        assert relaxed[tip, 1] < flat[tip, 1] - 0.005, finger


def test_default_hand_has_bones_of_human_length(default_hand: HandModel) -> None:
    joints_m = default_hand(torch.zeros(45, dtype=torch.float64)).joints_m
    lengths_m = (joints_m[1:] - joints_m[list(STD_PARENTS[1:])]).norm(dim=-1)
    assert lengths_m.min() > 0.01
    assert lengths_m.max() < 0.12


# --- Errors ---


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m(_zeros(48)), ValueError, r"pose: expected \(\*batch, 45\) .* got \(48,\)"),
        (lambda m: m([0.0] * 45), TypeError, "pose: expected a floating-point tensor, got list"),
        (lambda m: m(torch.zeros(45, dtype=torch.int64)), TypeError, "pose: .* got a tensor of torch.int64"),
        (lambda m: m(torch.zeros(45)), ValueError, "pose is torch.float32"),
        (lambda m: m(_zeros(45), _zeros(9)), ValueError, r"betas has shape \(9,\)"),
        (lambda m: m(_zeros(2, 45), _zeros(3, 10)), ValueError, "do not broadcast"),
        (
            lambda m: m(_zeros(45), None, _zeros(4)),
            ValueError,
            r"global_orient: .* as the pose is given as axis-angle, got \(4,\)",
        ),
        (
            lambda m: m(_zeros(15, 3, 3), None, _zeros(3)),
            ValueError,
            r"global_orient: .* as the pose is given as matrices",
        ),
        (lambda m: m(_zeros(2, 45), None, _zeros(3, 3)), ValueError, "global_orient .* do not broadcast"),
        (lambda m: m(_zeros(45), None, torch.zeros(3)), ValueError, "global_orient is torch.float32"),
        (lambda m: m.joints_m(_zeros(48)), ValueError, r"pose: expected \(\*batch, 45\) .* got \(48,\)"),
        (lambda m: m.joints_m(_zeros(45), _zeros(9)), ValueError, r"betas has shape \(9,\)"),
        (lambda m: m.decode(_zeros(2, 62)), ValueError, r"params: .* got \(2, 62\)"),
        (lambda m: m.decode(None), TypeError, "params: .* got NoneType"),
        (
            lambda m: m.regress_joints(_zeros(779, 3)),
            ValueError,
            r"verts: expected \(\*batch, 778, 3\), got \(779, 3\)",
        ),
        (lambda m: m.close_wrist(_zeros(3)), ValueError, "verts: expected"),
        (lambda m: m.pose_from_pca(_zeros(46)), ValueError, "coeffs: expected .* k <= 45"),
        (lambda m: m.pca_from_pose(_zeros(44)), ValueError, "pose: expected"),
        (lambda m: m.pca_from_pose(_zeros(45), 46), ValueError, "n_components"),
        (lambda m: m.rest_joints_m(_zeros(9)), ValueError, "betas: expected"),
        (lambda m: HandModel.default("Right"), ValueError, "side: expected 'right' or 'left', got 'Right'"),
        (
            lambda m: HandModel({k: v for k, v in ARRAYS.items() if k != "side"}),
            ValueError,
            "'side' is missing",
        ),
        (lambda m: HandModel({}), ValueError, "hand model: no hand model: v_template, .* found nothing"),
    ],
)
def test_wrong_arguments_are_named(model: HandModel, call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(model)


def test_compiles_whole_at_its_first_call():
    model = HandModel.default()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    pose = torch.randn(2, 45) * 0.3
    torch.testing.assert_close(compiled(pose).verts_m, model(pose).verts_m)
    joints_m = torch.compile(HandModel.default().joints_m, fullgraph=True, backend="eager")
    for _ in range(2):  # the constants are made within the first trace
        torch.testing.assert_close(joints_m(pose), model(pose).joints_m)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_the_model_itself_is_of_float32_or_float64(half):
    with pytest.raises(ValueError, match=rf"dtype: expected torch\.float32 or torch\.float64, got {half}"):
        HandModel.default(dtype=half)
    with pytest.raises(ValueError, match=rf"basis is {half}, expected torch\.float32 or torch\.float64"):
        HandModel.default().to(half)(torch.zeros(45, dtype=half))
