"""The drop-in for smplx's hands: against float64 loops and known relations, and against smplx itself where it is."""

from __future__ import annotations

import copy
import inspect
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peers
import pytest
import torch
from mano_folder import ARRAYS, write_mano_folder
from synthetic_mano import mano_by_loops
from torch.autograd import gradcheck

from dhpe_fast.compat import smplx
from dhpe_fast.hand import HandModel
from dhpe_fast.rotation import axis_angle_to_matrix

F64 = torch.float64
RIGHT = ARRAYS["right"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder as smplx wants it: one folder for each type of model."""
    folder = tmp_path_factory.mktemp("models")
    write_mano_folder(folder / "mano")
    return str(folder)


@pytest.fixture
def flat_hand(models) -> smplx.MANO:
    return smplx.create(models, "mano", use_pca=False, flat_hand_mean=True, dtype=F64)


def _random(*shape: int) -> torch.Tensor:
    return 0.5 * torch.randn(*shape, dtype=F64)


# --- The interface ---


def test_constructor_is_smplxs():
    parameters = list(inspect.signature(smplx.MANO).parameters.values())
    positional = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [
        ("model_path", inspect.Parameter.empty),
        ("is_rhand", True),
        ("data_struct", None),
        ("create_hand_pose", True),
        ("hand_pose", None),
        ("use_pca", True),
        ("num_pca_comps", 6),
        ("flat_hand_mean", False),
        ("batch_size", 1),
        ("dtype", torch.float32),
        ("vertex_ids", None),
        ("use_compressed", True),
        ("ext", "pkl"),
    ]
    # Those which smplx's hands take on to the base class.
    named = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert named == {
        **dict.fromkeys(("create_betas", "create_global_orient", "create_body_pose", "create_transl"), True),
        **dict.fromkeys(("betas", "global_orient", "transl", "v_template", "joint_mapper"), None),
        "num_betas": 10,
        "gender": "neutral",
        "fix_left_shapedirs": False,
    }


@pytest.mark.parametrize("kind", [smplx.MANO, smplx.MANOLayer])
def test_forward_takes_smplxs_arguments(kind):
    parameters = inspect.signature(kind.forward).parameters.values()
    assert [(p.name, p.default) for p in parameters][1:-1] == [
        ("betas", None),
        ("global_orient", None),
        ("hand_pose", None),
        ("transl", None),
        ("return_verts", True),
        ("return_full_pose", False),
    ]


def test_state_is_smplxs(models):
    hand = smplx.create(models, model_type="mano", num_pca_comps=8, batch_size=3, num_betas=4)
    assert {name: tuple(value.shape) for name, value in hand.named_parameters()} == {
        "betas": (3, 4),
        "global_orient": (3, 3),
        "body_pose": (3, 3),
        "transl": (3, 3),
        "hand_pose": (3, 8),
    }
    assert {name: tuple(value.shape) for name, value in hand.named_buffers()} == {
        "v_template": (778, 3),
        "shapedirs": (778, 3, 4),
        "posedirs": (135, 2334),
        "J_regressor": (16, 778),
        "lbs_weights": (778, 16),
        "faces_tensor": (1538, 3),
        "parents": (16,),
        "hand_components": (8, 45),
        "hand_mean": (45,),
        "pose_mean": (48,),
        "vertex_joint_selector.extra_joints_idxs": (5,),
    }
    assert set(hand.state_dict()) == {name for name, _ in (*hand.named_parameters(), *hand.named_buffers())}
    assert (hand.num_betas, hand.name(), hand.get_num_verts(), hand.get_num_faces()) == (4, "MANO", 778, 1538)
    assert (hand.is_rhand, hand.use_pca, hand.num_pca_comps, hand.batch_size) == (True, True, 8, 3)
    np.testing.assert_array_equal(hand.faces, RIGHT["f"])
    np.testing.assert_array_equal(hand.parents, [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14])
    np.testing.assert_allclose(hand.np_hand_components, RIGHT["hands_components"][:8])
    assert "8 components" in repr(hand)


def test_all_45_components_mean_axis_angle(models):
    hand = smplx.create(models, "mano", num_pca_comps=45)
    assert not hand.use_pca
    assert not hasattr(hand, "hand_components")
    assert hand.hand_pose.shape == (1, 45)


def test_parameters_are_made_where_asked_and_from_given_values(models):
    betas = np.linspace(-1, 1, 10)[None]
    orient = torch.tensor([[0.1, 0.2, 0.3]])
    hand = smplx.create(models, "mano", create_transl=False, create_body_pose=False, betas=betas, global_orient=orient)
    assert set(dict(hand.named_parameters())) == {"betas", "global_orient", "hand_pose"}
    np.testing.assert_allclose(hand.betas.detach(), betas, rtol=1e-6)
    with torch.no_grad():
        hand.global_orient.zero_()
    assert orient.abs().max() > 0  # the caller's values are not the parameter's
    hand.reset_params(hand_pose=torch.ones(6))
    assert torch.equal(hand.hand_pose, torch.ones(1, 6))
    assert torch.equal(hand.betas, torch.zeros(1, 10))


def test_output_reads_as_object_and_as_mapping(flat_hand):
    output = flat_hand()
    names = ["vertices", "joints", "full_pose", "global_orient", "transl", "v_shaped", "betas", "hand_pose"]
    assert list(output) == list(output.keys()) == names
    assert output["vertices"] is output.vertices
    assert output.get("nothing", 5) == 5
    assert dict(output.items())["joints"] is list(output.values())[1]
    output.joints = output.joints[:, :5]  # wrappers put their own joints in place
    assert output["joints"].shape == (1, 5, 3)


# --- Values ---


@pytest.mark.parametrize(("side", "flat", "pca"), list(product(("right", "left"), (True, False), (True, False))))
def test_agrees_with_loops_in_metres(models, side, flat, pca):
    hand = smplx.create(
        models, "mano", is_rhand=side == "right", use_pca=pca, num_pca_comps=7, flat_hand_mean=flat, dtype=F64
    )
    coeffs, betas, orient, transl = _random(2, 7 if pca else 45), _random(2, 10), _random(2, 3), _random(2, 3)
    output = hand(betas, orient, coeffs, transl, return_full_pose=True)
    arrays = ARRAYS[side]
    for i in range(2):
        fingers = coeffs[i].numpy()
        fingers = fingers @ arrays["hands_components"][:7] if pca else fingers
        np.testing.assert_allclose(output.hand_pose[i], fingers, atol=1e-12)
        pose = fingers if flat else fingers + arrays["hands_mean"]
        np.testing.assert_allclose(output.full_pose[i], np.concatenate([orient[i], pose]), atol=1e-12)
        verts_m, joints_m = mano_by_loops(arrays, pose, betas[i].numpy(), orient[i].numpy())
        np.testing.assert_allclose(output.vertices[i].detach(), verts_m + transl[i].numpy(), atol=1e-12)
        np.testing.assert_allclose(output.joints[i].detach(), joints_m + transl[i].numpy(), atol=1e-12)


def test_layer_takes_matrices_and_knows_no_mean_pose(models, flat_hand):
    layer = smplx.build_layer(models, "mano", dtype=F64)
    assert set(dict(layer.named_parameters())) == {"body_pose"}
    pose, betas, orient, transl = _random(2, 45), _random(2, 10), _random(2, 3), _random(2, 3)
    expected = flat_hand(betas, orient, pose, transl)
    turns, root = axis_angle_to_matrix(pose.view(2, 15, 3)), axis_angle_to_matrix(orient)
    for shape in ((2, 1, 3, 3), (2, 3, 3)):
        found = layer(betas, root.view(shape), turns, transl, return_full_pose=True)
        torch.testing.assert_close(found.vertices, expected.vertices)
        torch.testing.assert_close(found.joints, expected.joints)
    torch.testing.assert_close(found.full_pose, torch.cat([root[:, None], turns], 1))
    nothing = layer()
    np.testing.assert_allclose(nothing.vertices[0], RIGHT["v_template"], atol=1e-14)


def test_batches_broadcast(flat_hand):
    pose, betas = _random(4, 45), _random(1, 10)
    together = flat_hand(hand_pose=pose, betas=betas)  # orientation and translation of batch 1 are the module's
    assert together.vertices.shape == (4, 778, 3)
    for i in range(4):
        torch.testing.assert_close(together.joints[i], flat_hand(hand_pose=pose[i : i + 1], betas=betas).joints[0])
    layer = smplx.MANOLayer(None, dtype=F64)
    turns = axis_angle_to_matrix(pose.view(4, 15, 3))
    torch.testing.assert_close(
        layer(hand_pose=turns, betas=betas).vertices[2:3], layer(betas, None, turns[2:3]).vertices
    )
    assert flat_hand(hand_pose=pose[:0], betas=betas).joints.shape == (0, 16, 3)


def test_fewer_betas_are_the_first_ones(models, flat_hand):
    hand = smplx.create(models, "mano", use_pca=False, flat_hand_mean=True, num_betas=4, dtype=F64)
    betas = _random(1, 4)
    padded = torch.nn.functional.pad(betas, (0, 6))
    torch.testing.assert_close(hand(betas).vertices, flat_hand(padded).vertices)


def test_shape_without_pose(flat_hand):
    betas = _random(2, 10)
    output = flat_hand.forward_shape(betas)
    torch.testing.assert_close(output.v_shaped, flat_hand(betas).vertices)
    assert output.vertices is output.v_shaped


def test_what_is_returned_can_be_chosen(flat_hand):
    output = flat_hand(return_verts=False, return_full_pose=True)
    assert output.vertices is None
    assert output.joints is None
    assert output.full_pose.shape == (1, 48)
    assert flat_hand().full_pose is None


def test_joints_are_mapped_before_the_translation(models):
    hand = smplx.create(models, "mano", joint_mapper=lambda joints: 2 * joints[:, :3], transl=[[1.0, 0.0, 0.0]])
    plain = smplx.create(models, "mano")
    torch.testing.assert_close(hand().joints, 2 * plain().joints[:, :3] + torch.tensor([1.0, 0.0, 0.0]))


def test_template_may_be_given(models):
    template = RIGHT["v_template"] + np.array([0.0, 0.0, 0.01])
    hand = smplx.create(models, "mano", flat_hand_mean=True, v_template=template, dtype=F64)
    np.testing.assert_allclose(hand().vertices[0].detach(), template, atol=1e-14)
    with pytest.raises(ValueError, match=r"v_template: expected \(778, 3\), got \(6890, 3\)"):
        smplx.create(models, "mano", v_template=np.zeros((6890, 3)))


def test_fingertips_can_be_appended(flat_hand):
    output = flat_hand()
    joints = flat_hand.vertex_joint_selector(output.vertices, output.joints)
    torch.testing.assert_close(joints[:, 16:], output.vertices[:, [744, 320, 443, 554, 671]])


# --- Gradients ---


def test_gradients_of_all_arguments(models):
    weights = torch.randn(778, 3, dtype=F64), torch.randn(16, 3, dtype=F64)

    def loss(model, *arguments):
        output = model(*arguments)
        return (weights[0] * output.vertices).sum((1, 2)) + (weights[1] * output.joints).sum((1, 2))

    hand = smplx.create(models, "mano", dtype=F64)
    layer = smplx.build_layer(models, "mano", dtype=F64)
    inputs = [_random(2, size).requires_grad_() for size in (10, 3, 6, 3)]
    assert gradcheck(lambda *arguments: loss(hand, *arguments), inputs)
    root, turns = _random(1, 1, 3, 3).requires_grad_(), _random(1, 15, 3, 3).requires_grad_()
    assert gradcheck(lambda *arguments: loss(layer, *arguments), [inputs[0], root, turns], atol=1e-4)


def test_parameters_can_be_fitted(models):
    hand = smplx.create(models, "mano", use_pca=False)
    with torch.no_grad():
        target = hand(hand_pose=0.3 * torch.randn(1, 45), transl=torch.tensor([[0.1, 0.0, 0.0]])).vertices
    optimizer = torch.optim.Adam([hand.hand_pose, hand.transl], lr=0.03)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append((hand().vertices - target).square().sum())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.01 * losses[0]


# --- Files and edits ---


def test_files_are_found_as_in_smplx(models):
    file = Path(models) / "mano" / "MANO_LEFT.pkl"
    left = smplx.create(file, is_rhand=True)  # a file decides the side
    assert not left.is_rhand
    torch.testing.assert_close(left().vertices, smplx.create(models, "mano", is_rhand=False)().vertices)
    torch.testing.assert_close(left().vertices, smplx.MANO(Path(models) / "mano", is_rhand=False)().vertices)


@pytest.mark.parametrize("is_rhand", [True, False])
def test_the_default_hand_needs_no_file(is_rhand, tmp_path):
    hand = smplx.create(None, is_rhand=is_rhand, flat_hand_mean=True, dtype=F64)
    expected = HandModel.default("right" if is_rhand else "left", dtype=F64)
    torch.testing.assert_close(hand().vertices[0].detach(), expected(torch.zeros(45, dtype=F64)).verts_m)
    assert tuple(hand.vertex_joint_selector.extra_joints_idxs) == expected.tip_ids
    expected.save_npz(tmp_path / f"MANO_{'RIGHT' if is_rhand else 'LEFT'}.npz")
    again = smplx.MANO(tmp_path, is_rhand=is_rhand, ext="npz", flat_hand_mean=True, dtype=F64)
    torch.testing.assert_close(again().vertices, hand().vertices)


@pytest.mark.parametrize("wrap", [dict, lambda **arrays: SimpleNamespace(**arrays)], ids=["mapping", "object"])
def test_arrays_may_be_given(models, flat_hand, wrap):
    arrays = peers.peer_arrays(RIGHT)
    hand = smplx.MANO("", data_struct=wrap(**arrays), use_pca=False, flat_hand_mean=True, dtype=F64)
    torch.testing.assert_close(hand().vertices, flat_hand().vertices)


@pytest.mark.parametrize("source", ["file", "arrays"])
def test_a_left_hand_is_as_in_the_file_unless_fixed(models, flat_hand, source):
    """A mirrored pose and the same betas give the mirrored hand only where the fault is repaired."""
    options = {"is_rhand": False, "use_pca": False, "flat_hand_mean": True, "dtype": F64}
    options |= {"data_struct": peers.peer_arrays(ARRAYS["left"])} if source == "arrays" else {}
    path = str(Path(models) / "mano")
    pose, betas = _random(1, 45), _random(1, 10)
    mirrored = pose * torch.tensor([1.0, -1.0, -1.0], dtype=F64).repeat(15)
    expected = flat_hand(betas, None, pose).vertices * torch.tensor([-1.0, 1.0, 1.0], dtype=F64)
    fixed, as_is = smplx.MANO(path, fix_left_shapedirs=True, **options), smplx.MANO(path, **options)
    torch.testing.assert_close(fixed(betas, None, mirrored).vertices, expected)
    assert (as_is(betas, None, mirrored).vertices - expected).abs().max() > 1e-3
    # The usual repair, in place, after the model was used.
    as_is.shapedirs[:, 0, :] *= -1
    torch.testing.assert_close(as_is(betas, None, mirrored).vertices, expected)


def test_the_model_follows_its_buffers(flat_hand):
    pose = _random(1, 45)
    single = copy.deepcopy(flat_hand).float()
    torch.testing.assert_close(single(hand_pose=pose.float()).vertices.double(), flat_hand(hand_pose=pose).vertices)
    before = flat_hand(hand_pose=pose).vertices
    flat_hand.posedirs.zero_()
    assert (flat_hand(hand_pose=pose).vertices - before).abs().max() > 1e-4
    flat_hand.load_state_dict(single.double().state_dict())
    torch.testing.assert_close(flat_hand(hand_pose=pose).vertices, before, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "smplh"}, "model_type: expected 'mano', got 'smplh'"),
        # smplx would go by the name of the file.
        ({"model_path": "MANO_RIGHT.pkl", "model_type": "smplx"}, "model_type: expected 'mano', got 'smplx'"),
        ({"num_pca_comps": 46}, "num_pca_comps: expected 0 to 45, got 46"),
        ({"ext": "json"}, "ext: expected 'pkl' or 'npz', got 'json'"),
        ({"model_path": "nowhere"}, "nowhere: no such file"),
        ({"data_struct": {"v_template": np.zeros((778, 3))}}, "data_struct: no hand model: shapedirs"),
    ],
)
def test_bad_options_are_named(models, options, message):
    with pytest.raises(ValueError, match=message):
        smplx.create(**{"model_path": models} | options)


def test_bad_arguments_are_named(models, flat_hand):
    with pytest.raises(ValueError, match=r"hand_pose: expected \(B, 45\), got \(2, 6\)"):
        flat_hand(hand_pose=_random(2, 6))
    with pytest.raises(ValueError, match=r"batches do not broadcast: global_orient \(3, 3\), hand_pose \(2, 45\)"):
        flat_hand(global_orient=_random(3, 3), hand_pose=_random(2, 45))
    with pytest.raises(TypeError, match="betas: expected a floating-point tensor, got ndarray"):
        flat_hand(betas=np.zeros((1, 10)))
    layer = smplx.build_layer(models, dtype=F64)
    with pytest.raises(ValueError, match=r"hand_pose: expected \(B, 15, 3, 3\) rotation matrices, got \(2, 45\)"):
        layer(hand_pose=_random(2, 45))
    without = smplx.create(models, create_global_orient=False)
    with pytest.raises(ValueError, match="global_orient: not given, and the model was made without it"):
        without()


# --- smplx itself ---


def _parity(ours, theirs, inputs: dict[str, torch.Tensor], **flags: bool) -> None:
    """Outputs to 1e-5, gradients to 1e-4, of the largest value."""
    results = []
    for model in (ours, theirs):
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        output = model(**leaves, **flags)
        generator = torch.Generator().manual_seed(1)
        parts = [part for part in (output.vertices, output.joints) if part is not None]
        if parts and parts[0].requires_grad:
            sum((torch.randn(part.shape, generator=generator).to(part) * part).sum() for part in parts).backward()
        gradients = {name: leaf.grad for name, leaf in {**dict(model.named_parameters()), **leaves}.items()}
        results.append((dict(output.items()), gradients))
    for kind, tolerance in ((0, 1e-5), (1, 1e-4)):
        given, expected = results[0][kind], results[1][kind]
        assert list(given) == list(expected)
        for name, value in expected.items():
            assert (value is None) == (given[name] is None), name
            if value is not None:
                error = (given[name] - value).abs().max() / value.abs().max().clamp_min(1e-3)
                assert error <= tolerance, f"{name}: {error:.2g}, {'of a gradient' if kind else ''}"


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("n_components", "pca"), [(6, True), (12, True), (45, True), (6, False)])
def test_parity_with_smplx(side, n_components, pca, dtype):
    """Every combination of options and calls: parameters of the module, arguments, and both."""
    arrays = ARRAYS[side]
    for flat, num_betas, create_transl, given in product(
        (True, False), (10, 4), (True, False), ((), ("betas", "global_orient", "hand_pose", "transl"), ("hand_pose",))
    ):
        options = {
            "is_rhand": side == "right",
            "use_pca": pca,
            "num_pca_comps": n_components,
            "flat_hand_mean": flat,
            "num_betas": num_betas,
            "create_transl": create_transl,
            "batch_size": 3,
            "dtype": dtype,
        }
        ours = smplx.MANO("", data_struct=peers.peer_arrays(arrays), **options)
        theirs = peers.smplx_model(arrays, **options)
        state = {name: torch.randn_like(value) for name, value in theirs.named_parameters()}
        for model in (ours, theirs):
            model.load_state_dict({**model.state_dict(), **state})
        sizes = {"betas": num_betas, "global_orient": 3, "hand_pose": ours.hand_pose_size, "transl": 3}
        inputs = {name: 0.5 * torch.randn(3, sizes[name], dtype=dtype) for name in given}
        _parity(ours, theirs, inputs, return_full_pose=flat, return_verts=True)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_parity_with_smplxs_layer(side, dtype):
    arrays, options = ARRAYS[side], {"is_rhand": side == "right", "dtype": dtype}
    ours = smplx.MANOLayer("", data_struct=peers.peer_arrays(arrays), **options)
    theirs = peers.smplx_model(arrays, "MANOLayer", **options)
    everything = {
        "betas": torch.randn(2, 10, dtype=dtype),
        "global_orient": axis_angle_to_matrix(torch.randn(2, 1, 3, dtype=dtype)),
        "hand_pose": axis_angle_to_matrix(torch.randn(2, 15, 3, dtype=dtype)),
        "transl": torch.randn(2, 3, dtype=dtype),
    }
    for names in ((), ("global_orient",), ("betas", "global_orient", "hand_pose"), tuple(everything)):
        _parity(ours, theirs, {name: everything[name] for name in names}, return_full_pose=True)


def test_nothing_is_returned_where_smplx_returns_nothing():
    ours = smplx.MANO("", data_struct=peers.peer_arrays(RIGHT))
    _parity(ours, peers.smplx_model(RIGHT), {}, return_verts=False)


def test_tables_are_smplxs():
    ours, theirs = smplx.MANO("", data_struct=peers.peer_arrays(RIGHT)), peers.smplx_model(RIGHT)
    positional = [
        [(p.name, p.default) for p in inspect.signature(kind).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        for kind in (smplx.MANO, type(theirs))
    ]
    assert positional[0] == positional[1]
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, check_dtype=value.is_floating_point())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    np.testing.assert_array_equal(ours.faces, theirs.faces)
    assert ours.faces.dtype == theirs.faces.dtype
