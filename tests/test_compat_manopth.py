"""The drop-in for manopth: against float64 loops and known relations, and against manopth itself where it is."""

from __future__ import annotations

import copy
import inspect
import io
from itertools import product
from pathlib import Path

import numpy as np
import peers
import pytest
import torch
from mano_folder import ARRAYS, write_mano_folder
from scipy.linalg import polar
from scipy.spatial.transform import Rotation
from synthetic_mano import mano_by_loops
from torch.autograd import gradcheck

from dhpe_fast.compat._skinning import basis_from_mano
from dhpe_fast.compat.manopth import ManoLayer, nearest_orthogonal, symmetric_6d_to_matrix
from dhpe_fast.hand import HandModel
from dhpe_fast.rotation import axis_angle_to_matrix, matrix_to_rotation_6d

TIPS = {"right": [745, 317, 444, 556, 673], "left": [745, 317, 445, 556, 673]}
STD_FROM_MANO21 = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]


@pytest.fixture(scope="module")
def mano_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_mano_folder(tmp_path_factory.mktemp("mano")))


@pytest.fixture(autouse=True)
def _float64():
    """Layers take torch's default type, as in manopth."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def loops_mm(side: str, pose: np.ndarray, betas: np.ndarray, orient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    verts_m, joints_m = mano_by_loops(ARRAYS[side], pose, betas, orient)
    return 1000 * verts_m, 1000 * np.concatenate([joints_m, verts_m[TIPS[side]]])[STD_FROM_MANO21]


# --- The interface ---


def test_constructor_is_manopths():
    parameters = list(inspect.signature(ManoLayer).parameters.values())
    positional = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [
        ("center_idx", None),
        ("flat_hand_mean", True),
        ("ncomps", 6),
        ("side", "right"),
        ("mano_root", "mano/models"),
        ("use_pca", True),
        ("root_rot_mode", "axisang"),
        ("joint_rot_mode", "axisang"),
        ("robust_rot", False),
    ]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[len(positional) :])


def test_forward_takes_manopths_arguments(mano_root):
    names = list(inspect.signature(ManoLayer.forward).parameters)
    assert names == ["self", "th_pose_coeffs", "th_betas", "th_trans", "root_palm", "share_betas"]
    layer, pose = ManoLayer(mano_root=mano_root, center_idx=9), torch.randn(2, 9)
    # The defaults of manopth, spelled out, are those here.
    spelled = layer(pose, torch.zeros(1), torch.zeros(1), torch.Tensor([0]), torch.Tensor([0]))
    for given, default in zip(spelled, layer(pose), strict=True):
        torch.testing.assert_close(given, default, rtol=0, atol=0)


def test_buffers_have_manopths_names_and_shapes(mano_root):
    layer = ManoLayer(mano_root=mano_root, ncomps=8)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "th_betas": (1, 10),
        "th_shapedirs": (778, 3, 10),
        "th_posedirs": (778, 3, 135),
        "th_v_template": (1, 778, 3),
        "th_J_regressor": (16, 778),
        "th_weights": (778, 16),
        "th_faces": (1538, 3),
        "th_hands_mean": (1, 45),
        "th_comps": (45, 45),
        "th_selected_comps": (8, 45),
    }
    assert layer.th_faces.dtype == torch.int64
    for key in ("shapedirs", "posedirs", "J_regressor", "weights"):
        np.testing.assert_allclose(layer.state_dict()[f"th_{key}"], ARRAYS["right"][key], atol=1e-14)
    assert layer.kintree_parents == [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
    assert layer.kintree_table.shape == (2, 16)
    assert (layer.rot, layer.ncomps, layer.side, layer.use_pca) == (3, 8, "right", True)
    assert Path(layer.mano_path).name == "MANO_RIGHT.pkl"
    assert layer.smpl_data["hands_mean"].shape == (45,)
    assert "side='right'" in repr(layer)


def test_matrix_mode_has_a_mean_of_matrices(mano_root):
    layer = ManoLayer(mano_root=mano_root, use_pca=False, joint_rot_mode="rotmat", flat_hand_mean=False)
    mean = Rotation.from_rotvec(ARRAYS["right"]["hands_mean"].reshape(15, 3)).as_matrix()
    np.testing.assert_allclose(layer.th_hands_mean_rotmat, mean, atol=1e-14)
    assert not hasattr(layer, "th_comps")
    assert layer.ncomps == 45


# --- Values ---


@pytest.mark.parametrize(("side", "flat", "pca"), list(product(("right", "left"), (True, False), (True, False))))
def test_agrees_with_loops_in_millimetres(mano_root, side, flat, pca):
    layer = ManoLayer(mano_root=mano_root, side=side, flat_hand_mean=flat, ncomps=7, use_pca=pca)
    coeffs, betas = 0.5 * torch.randn(2, 3 + layer.ncomps), torch.randn(2, 10)
    verts_mm, joints_mm = layer(coeffs, betas)
    assert (tuple(verts_mm.shape), tuple(joints_mm.shape)) == ((2, 778, 3), (2, 21, 3))
    arrays = ARRAYS[side]
    for i in range(2):
        pose = coeffs[i, 3:].numpy()
        pose = pose @ arrays["hands_components"][:7] if pca else pose
        pose = pose if flat else pose + arrays["hands_mean"]
        verts, joints = loops_mm(side, pose, betas[i].numpy(), coeffs[i, :3].numpy())
        np.testing.assert_allclose(verts_mm[i], verts, atol=1e-9)
        np.testing.assert_allclose(joints_mm[i], joints, atol=1e-9)


@pytest.fixture
def flat_layer(mano_root) -> ManoLayer:
    return ManoLayer(mano_root=mano_root, ncomps=45, use_pca=False)


def test_further_columns_are_ignored(mano_root):
    layer, coeffs = ManoLayer(mano_root=mano_root, ncomps=6), torch.randn(2, 48)
    torch.testing.assert_close(layer(coeffs)[0], layer(coeffs[:, :9])[0])


def test_translation_is_in_metres_and_replaces_centring(mano_root):
    coeffs, trans_m = torch.randn(2, 9), torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.0, -1.0]])
    plain, centred = ManoLayer(mano_root=mano_root), ManoLayer(mano_root=mano_root, center_idx=9)
    for free, moved in zip(plain(coeffs), centred(coeffs, th_trans=trans_m), strict=True):
        torch.testing.assert_close(moved, free + 1000 * trans_m[:, None])
    (verts_mm, joints_mm), (verts_c, joints_c) = plain(coeffs), centred(coeffs, None, torch.zeros(2, 3))
    torch.testing.assert_close(verts_c, verts_mm - joints_mm[:, 9:10])
    torch.testing.assert_close(joints_c, joints_mm - joints_mm[:, 9:10])
    for free, moved in zip(plain(coeffs), plain(coeffs, th_trans=trans_m[:1]), strict=True):
        torch.testing.assert_close(moved, free + 1000 * trans_m[0])  # one for all


def test_root_palm_is_the_middle_of_two_vertices(mano_root):
    coeffs = torch.randn(2, 9)
    verts_mm, joints_mm = ManoLayer(mano_root=mano_root)(coeffs, root_palm=True)
    torch.testing.assert_close(joints_mm[:, 0], (verts_mm[:, 95] + verts_mm[:, 22]) / 2)
    torch.testing.assert_close(joints_mm[:, 1:], ManoLayer(mano_root=mano_root)(coeffs)[1][:, 1:])
    centred = ManoLayer(mano_root=mano_root, center_idx=0)(coeffs, root_palm=torch.Tensor([1]))[0]
    torch.testing.assert_close(centred, verts_mm - joints_mm[:, :1])


def test_betas_are_shared_or_broadcast_or_the_layers_own(flat_layer):
    coeffs, betas = torch.randn(3, 48), torch.randn(3, 10)
    mean = betas.mean(0, keepdim=True)
    shared = flat_layer(coeffs, betas, share_betas=torch.Tensor([1]))[0]
    torch.testing.assert_close(shared, flat_layer(coeffs, mean.expand(3, 10))[0])
    torch.testing.assert_close(shared, flat_layer(coeffs, mean)[0])
    flat_layer.th_betas.copy_(mean)
    for absent in (None, torch.zeros(1)):
        torch.testing.assert_close(shared, flat_layer(coeffs, absent)[0])


def test_6d_root_is_the_same_turn(mano_root):
    orient, fingers = torch.randn(2, 3), torch.randn(2, 6)
    columns = matrix_to_rotation_6d(axis_angle_to_matrix(orient))
    expected = ManoLayer(mano_root=mano_root)(torch.cat([orient, fingers], 1))
    for robust in (False, True):
        layer = ManoLayer(mano_root=mano_root, root_rot_mode="rot6d", robust_rot=robust)
        assert layer.rot == 6
        # Lengths do not matter.
        found = layer(torch.cat([columns * torch.tensor([2.0, 2, 2, 3, 3, 3]), fingers], 1))
        for given, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(given, wanted)


def test_robust_6d_treats_both_columns_alike():
    first, second = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 3**0.5 / 2, 0.0])  # 60 degrees apart
    turn = symmetric_6d_to_matrix(torch.cat([first, second])[None])[0]
    # Each moves by 15 degrees.
    np.testing.assert_allclose(turn[:, 0] @ first, np.cos(np.pi / 12), atol=1e-15)
    np.testing.assert_allclose(turn[:, 1] @ second, np.cos(np.pi / 12), atol=1e-15)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-15)
    np.testing.assert_allclose(turn[:, 2], [0, 0, 1], atol=1e-15)


def test_matrices_are_projected_and_then_the_same_pose(mano_root, flat_layer):
    layer = ManoLayer(mano_root=mano_root, use_pca=False, joint_rot_mode="rotmat", flat_hand_mean=False)
    pose, betas = torch.randn(2, 48), torch.randn(2, 10)
    turns = axis_angle_to_matrix(pose.view(2, 16, 3))
    stretch = torch.diag(torch.tensor([1.2, 0.9, 2.0]))
    for given, expected in zip(layer(turns @ stretch, betas), flat_layer(pose, betas), strict=True):
        torch.testing.assert_close(given, expected)


def test_nearest_orthogonal_is_the_polar_factor_and_flips_reflections():
    matrices = torch.randn(20, 3, 3)
    expected = np.stack([polar(matrix)[0] for matrix in matrices.numpy()])
    expected[np.linalg.det(expected) < 0, :, 2] *= -1
    assert (torch.linalg.det(matrices) < 0).any()
    np.testing.assert_allclose(nearest_orthogonal(matrices), expected, atol=1e-13)


# --- Gradients ---


def test_gradients_of_pose_shape_and_translation(mano_root):
    weights = torch.randn(778, 3), torch.randn(21, 3)

    def loss(coeffs, betas, trans_m):
        found = layer(coeffs, betas, trans_m)
        return sum((weight * part / 1000).sum((1, 2)) for weight, part in zip(weights, found, strict=True))

    inputs = [torch.randn(2, size, requires_grad=True) for size in (9, 10, 3)]
    layer = ManoLayer(mano_root=mano_root, flat_hand_mean=False)
    assert gradcheck(loss, inputs)
    layer = ManoLayer(mano_root=mano_root, root_rot_mode="rot6d", robust_rot=True)
    assert gradcheck(loss, [torch.randn(2, 12, requires_grad=True), *inputs[1:]])


@pytest.mark.parametrize("start", ["rotations", "any"])
def test_gradients_of_matrices_even_where_all_singular_values_are_equal(start):
    matrices = torch.randn(4, 3, 3)
    if start == "rotations":
        matrices = torch.cat([torch.eye(3)[None], axis_angle_to_matrix(torch.randn(3, 3))])
    assert gradcheck(nearest_orthogonal, matrices.requires_grad_())


@pytest.mark.parametrize("mode", ["axisang", "rotmat"])
def test_gradients_at_the_flat_hand_are_finite(mano_root, mode):
    layer = ManoLayer(mano_root=mano_root, use_pca=False, joint_rot_mode=mode)
    pose = torch.zeros(1, 48) if mode == "axisang" else torch.eye(3).repeat(1, 16, 1, 1)
    layer(pose.requires_grad_())[0].square().sum().backward()
    assert pose.grad.isfinite().all()
    assert pose.grad.abs().max() > 0


# --- Files, devices and edits ---


def test_a_left_hand_is_as_in_the_file_unless_fixed(mano_root):
    """A mirrored pose and the same betas give the mirrored hand only where the fault is repaired."""
    coeffs, betas = torch.randn(1, 48), torch.randn(1, 10)
    mirrored = coeffs * torch.tensor([1.0, -1.0, -1.0]).repeat(16)
    options = {"mano_root": mano_root, "use_pca": False}
    right_mm = ManoLayer(**options)(coeffs, betas)[0] * torch.tensor([-1.0, 1.0, 1.0])
    fixed = ManoLayer(**options, side="left", fix_left_shapedirs=True)
    as_is = ManoLayer(**options, side="left")
    torch.testing.assert_close(fixed(mirrored, betas)[0], right_mm)
    assert (as_is(mirrored, betas)[0] - right_mm).abs().max() > 1
    # The usual repair, in place, after the layer was used.
    as_is.th_shapedirs[:, 0] *= -1
    torch.testing.assert_close(as_is(mirrored, betas)[0], right_mm)


def test_the_layer_follows_its_buffers(flat_layer):
    coeffs = torch.randn(1, 48)
    before_mm = flat_layer(coeffs)[0]
    stored = io.BytesIO()
    torch.save(flat_layer, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(flat_layer), torch.load(stored, weights_only=False)):
        torch.testing.assert_close(twin(coeffs)[0], before_mm)
    state = {key: value.clone() for key, value in flat_layer.state_dict().items()}
    flat_layer.th_v_template += torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(
        flat_layer(0 * coeffs)[0], ManoLayer.forward(twin, 0 * coeffs)[0] + torch.tensor([0, 0, 1e3])
    )
    flat_layer.load_state_dict(state)
    torch.testing.assert_close(flat_layer(coeffs)[0], before_mm)
    single = flat_layer.float()(coeffs.float())[0]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), before_mm, atol=1e-3, rtol=0)


def test_constants_made_in_inference_mode_serve_training(flat_layer):
    coeffs = torch.randn(1, 48)
    with torch.inference_mode():
        flat_layer(coeffs)
    flat_layer(coeffs.requires_grad_())[0].sum().backward()
    assert coeffs.grad.isfinite().all()


def test_a_file_may_be_named_itself(mano_root):
    coeffs = torch.randn(1, 9)
    file = Path(mano_root) / "MANO_LEFT.pkl"
    found = ManoLayer(mano_root=file, side="left")
    assert found.mano_path == str(file)
    torch.testing.assert_close(found(coeffs)[1], ManoLayer(mano_root=mano_root, side="left")(coeffs)[1])
    with pytest.raises(ValueError, match="holds a left hand, but side='right'"):
        ManoLayer(mano_root=file)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_default_hand_needs_no_file(side):
    layer, hand = ManoLayer(mano_root=None, side=side), HandModel.default(side, dtype=torch.float64)
    verts_mm, joints_mm = layer(torch.zeros(1, 9), root_palm=True)
    expected = hand(torch.zeros(45))
    torch.testing.assert_close(verts_mm[0], 1000 * expected.verts_m)
    torch.testing.assert_close(joints_mm[0, 1:], 1000 * expected.joints_m[1:])
    # The palm lies inside of the hand, about half way from the wrist to the middle finger.
    half_way_m = (expected.joints_m[0] + expected.joints_m[9]) / 2
    assert torch.linalg.vector_norm(joints_mm[0, 0] - 1000 * half_way_m) < 15
    assert layer.mano_path == ""


def test_fingertips_may_be_chosen(mano_root):
    verts_mm, joints_mm = ManoLayer(mano_root=mano_root, tip_ids="paper")(torch.randn(1, 9))
    torch.testing.assert_close(joints_mm[:, [4, 8, 12, 16, 20]], verts_mm[:, [745, 333, 444, 555, 672]])


def test_an_empty_batch_is_legal(flat_layer):
    verts_mm, joints_mm = flat_layer(torch.zeros(0, 48), torch.zeros(0, 10))
    assert (tuple(verts_mm.shape), tuple(joints_mm.shape)) == ((0, 778, 3), (0, 21, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": "both"}, "side: expected 'right' or 'left', got 'both'"),
        ({"root_rot_mode": "quat"}, "root_rot_mode: expected 'axisang' or 'rot6d', got 'quat'"),
        ({"joint_rot_mode": "quat"}, "joint_rot_mode: expected 'axisang' or 'rotmat', got 'quat'"),
        ({"ncomps": 46}, "ncomps: expected 0 to 45, got 46"),
        ({"mano_root": "nowhere"}, "nowhere: no such file"),
    ],
)
def test_bad_options_are_named(options, message, mano_root):
    with pytest.raises(ValueError, match=message):
        ManoLayer(**{"mano_root": mano_root} | options)


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "arguments", "error", "message"),
    [
        ({}, (_zeros(2, 8),), ValueError, r"th_pose_coeffs: expected \(B, 9\) = 3 of the root"),
        ({}, (_zeros(9),), ValueError, r"got \(9,\)"),
        ({}, (_zeros(2, 9).float(),), ValueError, "th_pose_coeffs is torch.float32"),
        ({}, (_zeros(2, 9).long(),), TypeError, "th_pose_coeffs: expected a floating-point"),
        ({}, (_zeros(2, 9), _zeros(2, 9)), ValueError, r"th_betas: expected \(B, 10\)"),
        *(
            (
                {},
                (_zeros(2, 9), None, _zeros(*shape) + 1),
                ValueError,
                rf"th_trans: expected \(2, 3\) or .*, got {given}",
            )
            for shape, given in {
                (2, 1, 3): r"\(2, 1, 3\)",
                (1,): r"\(1,\)",
                (2, 1): r"\(2, 1\)",
                (3,): r"\(3,\)",
                (3, 3): r"\(3, 3\)",
            }.items()
        ),
        ({}, (_zeros(2, 9), None, [0.1, 0, 0]), TypeError, "th_trans: expected a tensor or None, got list"),
        (
            {"use_pca": False, "joint_rot_mode": "rotmat"},
            (_zeros(2, 48),),
            ValueError,
            r"expected \(B, 16, 3, 3\)",
        ),
    ],
)
def test_bad_arguments_are_named(mano_root, options, arguments, error, message):
    with pytest.raises(error, match=message):
        ManoLayer(mano_root=mano_root, **options)(*arguments)


def test_a_negative_weight_is_a_weight():
    """Slots go to the weights that differ most from zero; a row with as many zeros keeps its negative one."""
    weights = torch.zeros(3, 16)
    weights[:, :4] = torch.tensor([[1.2, -0.2, 0.0, 0.0], [0.5, 0.0, 0.3, 0.2], [0.0, 0.0, -0.1, 1.1]])
    arrays = torch.randn(3, 3), torch.randn(3, 3, 10), torch.randn(3, 3, 135), torch.rand(16, 3)
    basis = basis_from_mano(*arrays, weights)
    assert basis.skin_joints.shape == (3, 3)
    dense = torch.zeros(3, 16).scatter_add(1, basis.skin_joints.long(), basis.skin_weights)
    assert torch.equal(dense, weights)


# --- manopth itself ---

MODES = [
    {"use_pca": True, "ncomps": 6},
    {"use_pca": True, "ncomps": 45, "joint_rot_mode": "rotmat"},
    {"use_pca": False},
    {"use_pca": True, "ncomps": 12, "root_rot_mode": "rot6d"},
    {"use_pca": False, "root_rot_mode": "rot6d", "robust_rot": True},
    {"use_pca": True, "root_rot_mode": "rot6d", "robust_rot": True},
    {"use_pca": False, "joint_rot_mode": "rotmat"},
]
CALLS = {
    "plain": {},
    "betas": {"betas": True},
    "shared betas, palm": {"betas": True, "share_betas": torch.Tensor([1]), "root_palm": torch.Tensor([1])},
    "translated": {"betas": True, "trans": True},
    "translated palm": {"trans": True, "root_palm": torch.Tensor([1])},
}


@pytest.fixture
def _cuda_is_here(monkeypatch):
    """There, each projected matrix moves to the GPU, whatever the layer's device."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_: self)


@pytest.mark.usefixtures("_cuda_is_here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: ",".join(f"{k}={v}" for k, v in mode.items()))
@pytest.mark.parametrize("side", ["right", "left"])
def test_parity_with_manopth(mano_root, side, mode, dtype):
    """Every combination of options and calls: forward to 1e-5, gradients to 1e-4, of the largest value."""
    torch.set_default_dtype(dtype)
    for flat, center_idx, (call, settings) in product((True, False), (None, 0, 9, -1), CALLS.items()):
        options = {"side": side, "flat_hand_mean": flat, "center_idx": center_idx, "mano_root": mano_root, **mode}
        ours, theirs = ManoLayer(**options), peers.manopth_layer(ARRAYS[side], **options)
        matrices = mode.get("joint_rot_mode") == "rotmat" and not mode["use_pca"]
        pose = 0.6 * torch.randn(3, ours.rot + ours.ncomps)
        pose = axis_angle_to_matrix(torch.randn(3, 16, 3)) + 0.1 * torch.randn(3, 16, 3, 3) if matrices else pose
        inputs = [pose, torch.randn(3, 10) if settings.get("betas") else None]
        inputs.append(torch.randn(3, 3) if settings.get("trans") else None)
        flags = {key: value for key, value in settings.items() if key in ("root_palm", "share_betas")}
        weights = torch.randn(3, 778, 3), torch.randn(3, 21, 3)
        results = []
        for layer in (ours, theirs):
            leaves = [None if value is None else value.clone().requires_grad_() for value in inputs]
            found = layer(*leaves, **flags)
            sum((weight * part).sum() for weight, part in zip(weights, found, strict=True)).backward()
            results.append(([part.detach() for part in found], [leaf.grad for leaf in leaves if leaf is not None]))
        for i, tolerance in enumerate((1e-5, 1e-4)):
            for given, expected in zip(results[0][i], results[1][i], strict=True):
                error = (given - expected).abs().max() / expected.abs().max()
                assert error <= tolerance, f"{call}, flat {flat}, centre {center_idx}: {('forward', 'gradient')[i]}"


@pytest.mark.parametrize("mode", MODES[:3])
def test_a_checkpoint_of_manopth_loads(mode):
    theirs = peers.manopth_layer(ARRAYS["right"], **mode)
    ours = ManoLayer(mano_root=None, **mode)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    coeffs = torch.randn(1, 3 + ours.ncomps)
    torch.testing.assert_close(ours(coeffs)[0], theirs(coeffs)[0], atol=1e-4, rtol=0)


def test_tables_are_manopths(mano_root):
    ours, theirs = ManoLayer(mano_root=mano_root), peers.manopth_layer(ARRAYS["right"])
    parameters = inspect.signature(type(theirs)).parameters.values()
    mine = [p for p in inspect.signature(ManoLayer).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in parameters] == [(p.name, p.default) for p in mine]
    assert set(vars(theirs)) <= set(vars(ours))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
