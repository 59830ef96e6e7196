"""Linear blend skinning: the kernels against loops written from the formula, and against the pure-torch twin."""

from __future__ import annotations

import inspect
import itertools
import math
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dhpe_fast import ops, reference
from dhpe_fast.ops import LbsBasis
from dhpe_fast.rotation import axis_angle_to_matrix

PARENTS = [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-6}, torch.float64: {"rtol": 1e-12, "atol": 1e-13}}


def make_basis(n_verts=37, n_slots=3, parents=PARENTS, n_shape=10, dtype=torch.float64, device="cpu") -> LbsBasis:
    """A random hand-sized skinned thing; 37 vertices leave a remainder for every vector width."""
    generator = torch.Generator().manual_seed(1)
    n_joints = len(parents)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = torch.rand(n_verts, n_slots, generator=generator, dtype=torch.float64) + 0.1
    basis = LbsBasis(
        v_template=normal(n_verts, 3) * 0.05,
        shapedirs=normal(n_shape, n_verts, 3) * 0.004,
        posedirs=normal(9 * (n_joints - 1), n_verts, 3) * 0.002,
        joint_template=normal(n_joints, 3) * 0.05,
        joint_shapedirs=normal(n_shape, n_joints, 3) * 0.004,
        skin_joints=torch.randint(0, n_joints, (n_verts, n_slots), generator=generator, dtype=torch.int32),
        skin_weights=weights / weights.sum(1, keepdim=True),
        parents=torch.tensor(parents, dtype=torch.int32),
    )
    return basis.to(device=device, dtype=dtype)


def make_parameters(batch=(3,), dtype=torch.float64, device="cpu", n_joints=16, n_shape=10):
    pose = torch.randn(*batch, n_joints, 3, dtype=torch.float64) * 0.8
    betas = torch.randn(*batch, n_shape, dtype=torch.float64)
    return pose.to(device, dtype), betas.to(device, dtype)


def rotation_by_exponential(axis_angle: torch.Tensor) -> torch.Tensor:
    x, y, z = axis_angle.tolist()
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(generator)


def lbs_by_loops(pose: torch.Tensor, betas: torch.Tensor, basis: LbsBasis) -> tuple[torch.Tensor, torch.Tensor]:
    """One hand by 4x4 transforms, vertex by vertex: SMPL's Eqs. 2 to 10 in loops."""
    n_joints = len(basis.parents)
    rotation = [rotation_by_exponential(p) for p in pose]
    rest_joint = [
        basis.joint_template[j] + sum(b * d[j] for b, d in zip(betas, basis.joint_shapedirs, strict=True))
        for j in range(n_joints)
    ]
    world = []
    for j, parent in enumerate(basis.parents.tolist()):
        local = torch.eye(4, dtype=torch.float64)
        local[:3, :3] = rotation[j]
        local[:3, 3] = rest_joint[j] - (rest_joint[parent] if parent >= 0 else 0)
        world.append(world[parent] @ local if parent >= 0 else local)
    feature = torch.cat([(r - torch.eye(3, dtype=torch.float64)).reshape(-1) for r in rotation[1:]])
    verts = []
    for v in range(len(basis.v_template)):
        point = basis.v_template[v] + sum(b * d[v] for b, d in zip(betas, basis.shapedirs, strict=True))
        point = point + sum(f * d[v] for f, d in zip(feature, basis.posedirs, strict=True))
        skinned = torch.zeros(3, dtype=torch.float64)
        for joint, weight in zip(basis.skin_joints[v].tolist(), basis.skin_weights[v].tolist(), strict=True):
            relative = torch.cat([point - rest_joint[joint], torch.ones(1, dtype=torch.float64)])
            skinned = skinned + weight * (world[joint] @ relative)[:3]
        verts.append(skinned)
    return torch.stack(verts), torch.stack([w[:3, 3] for w in world])


@pytest.mark.parametrize("implementation", [ops.lbs, reference.lbs], ids=["op", "twin"])
def test_agrees_with_the_formula_written_in_loops(implementation):
    basis = make_basis()
    pose, betas = make_parameters((2,))
    verts, joints = implementation(pose, betas, basis)
    for b in range(2):
        expected_verts, expected_joints = lbs_by_loops(pose[b], betas[b], basis)
        torch.testing.assert_close(verts[b], expected_verts, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(joints[b], expected_joints, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("where", [3e38, -3e38])
@pytest.mark.parametrize("batch", [(1,), (2,), (3,), (31,)])
@pytest.mark.parametrize("implementation", [ops.lbs, reference.lbs], ids=["op", "twin"])
def test_a_joint_of_weight_zero_moves_no_vertex(device, implementation, batch, where):
    basis = make_basis(dtype=torch.float32, device=device)
    basis = replace(basis, skin_weights=basis.skin_weights.masked_fill(basis.skin_joints == 3, 0))
    far = basis.joint_template.index_fill(0, torch.tensor([3], device=device), where)  # 3 is the tip of a finger
    pose, betas = make_parameters(batch, torch.float32, device)
    results = []
    for hand in (basis, replace(basis, joint_template=far)):
        leaves = pose.clone().requires_grad_(), betas.clone().requires_grad_()
        verts, _ = implementation(*leaves, hand)
        results.append((verts.detach(), *torch.autograd.grad(verts.square().sum(), leaves)))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("as_matrices", [False, True])
@pytest.mark.parametrize("n_verts", [1, 37, 778])
def test_values_and_gradients_agree_with_the_twin(device, dtype, as_matrices, n_verts):
    basis = make_basis(n_verts, dtype=dtype, device=device)
    pose, betas = make_parameters((31,), dtype, device)  # more than a full group of hands, and a remainder
    pose = axis_angle_to_matrix(pose) if as_matrices else pose
    pose, betas = pose.requires_grad_(), betas.requires_grad_()
    outputs = ops.lbs(pose, betas, basis)
    expected = reference.lbs(pose, betas, basis)
    weights = [torch.randn_like(x) for x in expected]
    gradients = torch.autograd.grad(outputs, (pose, betas), weights)
    expected_gradients = torch.autograd.grad(expected, (pose, betas), weights)
    for found, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(found, wanted, **TOLERANCE[dtype])
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        scale = wanted.abs().max()
        torch.testing.assert_close(found / scale, wanted / scale, **TOLERANCE[dtype])


def test_signature_is_the_twins():
    assert inspect.signature(ops.lbs) == inspect.signature(reference.lbs)


@pytest.mark.parametrize(
    "angle", [0.0, 1e-30, 1e-8, 1e-3, 0.4999, 0.5001, 1.0, math.pi - 1e-6, math.pi, 2 * math.pi, 30.0]
)
def test_gradient_is_right_at_every_angle(device, angle):
    basis = make_basis(5, parents=[-1, 0], device=device)
    axis = torch.tensor([[2.0, -1.0, 2.0], [0.6, 0.0, 0.8]], dtype=torch.float64) / torch.tensor([[3.0], [1.0]])
    pose = (axis * angle).to(device).requires_grad_()
    betas = torch.zeros(10, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, b: ops.lbs(p, b, basis), (pose, betas), atol=1e-6)


def test_gradcheck(device):
    basis = make_basis(7, device=device)
    pose, betas = make_parameters((2,), device=device)
    assert torch.autograd.gradcheck(lambda p, b: ops.lbs(p, b, basis), (pose.requires_grad_(), betas.requires_grad_()))


@pytest.mark.parametrize("batch", [1, 2, 3, 16, 17, 33, 40])
def test_without_a_gradient_the_answer_is_the_same(device, dtype, batch):
    """Another op is called then, which keeps nothing for the backward pass."""
    basis = make_basis(37, dtype=dtype, device=device)
    pose, betas = make_parameters((batch,), dtype, device)
    expected = [t.detach() for t in ops.lbs(pose.clone().requires_grad_(), betas, basis)]
    with torch.no_grad():
        found = [ops.lbs(p, betas, basis) for p in (pose, pose.clone().requires_grad_())]
    for outputs in (*found, ops.lbs(pose, betas, basis)):
        assert not any(t.requires_grad for t in outputs)
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_a_transform_of_functions_never_takes_the_op_without_a_gradient():
    """There, a tensor does not tell that a gradient is taken by it: no silent zero, torch says what it cannot do."""
    basis = make_basis(7)
    pose, betas = make_parameters((2,))
    for grad_mode in (torch.enable_grad(), torch.no_grad()):
        with grad_mode, pytest.raises(RuntimeError, match="functorch transforms"):
            torch.func.grad(lambda p: ops.lbs(p, betas, basis)[0].square().sum())(pose)


@pytest.mark.parametrize("n_hands", [3, 8, 16, 17, 33])
def test_a_hand_is_the_same_among_others(dtype, n_hands):
    """A group of hands is padded, a hand or two go another way: neither tells."""
    basis = make_basis(45, dtype=dtype)
    pose, betas = make_parameters((n_hands,), dtype)
    verts, joints = ops.lbs(pose, betas, basis)
    alone = [ops.lbs(pose[i : i + 1], betas[i : i + 1], basis) for i in (0, n_hands - 1)]
    for i, (one_verts, one_joints) in zip((0, n_hands - 1), alone, strict=True):
        torch.testing.assert_close(verts[i], one_verts[0], **TOLERANCE[dtype])
        torch.testing.assert_close(joints[i], one_joints[0], **TOLERANCE[dtype])


@pytest.mark.parametrize("n_verts", [1, 3, 5, 6, 21, 22, 86])
@pytest.mark.parametrize("batch", [1, 5])
def test_every_number_of_columns_is_covered(dtype, n_verts, batch):
    """Vectors, panels and tiles leave remainders of all kinds; the shape at rest skips every direction."""
    basis = make_basis(n_verts, dtype=dtype, n_slots=1)
    pose, betas = make_parameters((batch,), dtype)
    for p, b in ((pose, betas), (torch.zeros_like(pose), torch.zeros_like(betas))):
        p, b = p.requires_grad_(), b.requires_grad_()
        outputs, expected = ops.lbs(p, b, basis), reference.lbs(p, b, basis)
        weights = [torch.randn_like(x) for x in expected]
        gradients = torch.autograd.grad(outputs, (p, b), weights)
        expected_gradients = torch.autograd.grad(expected, (p, b), weights)
        for found, wanted in zip((*outputs, *gradients), (*expected, *expected_gradients), strict=True):
            scale = wanted.abs().max().clamp(min=1)
            torch.testing.assert_close(found / scale, wanted / scale, **TOLERANCE[dtype])


@pytest.mark.parametrize("as_matrices", [False, True])
def test_opcheck(device, as_matrices):
    basis = make_basis(7, dtype=torch.float32, device=device)
    pose, betas = make_parameters((2,), torch.float32, device)
    pose = axis_angle_to_matrix(pose) if as_matrices else pose
    arguments = (pose.requires_grad_(), betas.requires_grad_(), *basis.tensors)
    torch.library.opcheck(torch.ops.dhpe_fast.lbs.default, arguments)
    torch.library.opcheck(torch.ops.dhpe_fast._lbs_values.default, tuple(t.detach() for t in arguments))
    grads = (
        torch.randn(2, 7, 3, device=device),
        torch.randn(2, 16, 3, device=device),
        torch.randn(2, 7, 3, device=device),
    )
    arguments = tuple(t.detach() for t in (*grads, pose, betas, *basis.tensors))
    torch.library.opcheck(torch.ops.dhpe_fast._lbs_backward.default, arguments)


def test_double_backward_is_refused_by_name():
    basis = make_basis(5)
    pose, betas = make_parameters()
    verts, _ = ops.lbs(pose.requires_grad_(), betas, basis)
    (gradient,) = torch.autograd.grad(verts.square().sum(), pose, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"dhpe_fast\.reference\.lbs"):
        gradient.sum().backward()


@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 3), (4, 0, 2)])
def test_any_leading_batch(device, batch):
    basis = make_basis(9, device=device)
    pose, betas = make_parameters(batch, device=device)
    verts, joints = ops.lbs(pose, betas, basis)
    expected_verts, expected_joints = reference.lbs(pose, betas, basis)
    assert verts.shape == (*batch, 9, 3)
    assert joints.shape == (*batch, 16, 3)
    torch.testing.assert_close(verts, expected_verts)
    torch.testing.assert_close(joints, expected_joints)


def test_batches_broadcast_and_gradients_sum_over_them(device):
    basis = make_basis(9, device=device)
    pose, _ = make_parameters((4, 1), device=device)
    _, betas = make_parameters((3,), device=device)
    betas.requires_grad_()
    verts, _ = ops.lbs(pose, betas, basis)
    assert verts.shape == (4, 3, 9, 3)
    (gradient,) = torch.autograd.grad(verts.square().sum(), betas)
    (expected,) = torch.autograd.grad(reference.lbs(pose, betas, basis)[0].square().sum(), betas)
    torch.testing.assert_close(gradient, expected)


def test_strided_views_give_the_same_answer(device):
    basis = make_basis(9, device=device)
    wide = torch.randn(16, 3, 3, 2, dtype=torch.float64, device=device)
    pose = wide.permute(2, 0, 1, 3)[..., 0]  # (3, 16, 3), no dimension contiguous
    betas = torch.randn(10, dtype=torch.float64, device=device).expand(3, 10)
    assert not pose.is_contiguous()
    torch.testing.assert_close(
        ops.lbs(pose, betas, basis), ops.lbs(pose.contiguous(), betas.contiguous(), basis), rtol=0, atol=0
    )


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", [ops.lbs, reference.lbs], ids=["op", "twin"])
def test_half_types_are_computed_in_float32(device, half, implementation):
    basis = make_basis(9, dtype=torch.float32, device=device)
    pose, betas = (t.to(half) for t in make_parameters(device=device))
    verts, joints = implementation(pose, betas, basis)
    exact, _ = implementation(pose.float(), betas.float(), basis)
    assert verts.dtype == joints.dtype == half
    torch.testing.assert_close(verts, exact.to(half), rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 2, 40])
def test_answer_does_not_depend_on_the_thread_count(batch):
    """Up to two hands, threads share a hand's vertices; above, each takes whole hands."""
    basis = make_basis(778, dtype=torch.float32)
    pose, betas = make_parameters((batch,), torch.float32)
    pose.requires_grad_()
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            verts, joints = ops.lbs(pose, betas, basis)
            (gradient,) = torch.autograd.grad(verts.square().sum() + joints.square().sum(), pose)
            results.append((verts, joints, gradient))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("as_matrices", [False, True])
def test_fake_kernels_know_the_strides_and_shapes_of_the_real_ones(device, as_matrices):
    basis = make_basis(7, dtype=torch.float32, device=device)
    pose, betas = make_parameters((2,), torch.float32, device)
    pose = axis_angle_to_matrix(pose) if as_matrices else pose
    pose, betas = pose.transpose(0, 1).contiguous().transpose(0, 1), betas.t().contiguous().t()
    grads = [torch.randn(7, 2, 3, device=device).transpose(0, 1) for _ in range(2)]
    grads.insert(1, torch.randn(16, 2, 3, device=device).transpose(0, 1))
    assert not any(t.is_contiguous() for t in (pose, betas, *grads))
    torch.library.opcheck(torch.ops.dhpe_fast.lbs.default, (pose, betas, *basis.tensors))
    torch.library.opcheck(torch.ops.dhpe_fast._lbs_backward.default, (*grads, pose, betas, *basis.tensors))


def test_compiled_gradients_of_strided_inputs_are_the_eager_ones():
    basis = make_basis(7)
    pose, betas = make_parameters((3,))
    pose = axis_angle_to_matrix(pose).transpose(-1, -2)  # strided, as the inverse rotations are
    gradients = []
    for function in (ops.lbs, torch.compile(ops.lbs, backend="aot_eager", fullgraph=True)):
        leaf = pose.detach().requires_grad_()
        verts, joints = function(leaf, betas, basis)
        (verts.square().sum() + joints.sin().sum()).backward()
        gradients.append(leaf.grad)
    assert not pose.is_contiguous()
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    ("position", "name", "shape"),
    [(0, "pose", (2, 15, 3)), (1, "betas", (2, 9)), (3, "shapedirs", (10, 6, 3)), (4, "posedirs", (134, 7, 3))],
)
def test_a_trace_is_refused_the_shapes_that_the_kernel_refuses(position, name, shape):
    arguments = [*make_parameters((2,)), *make_basis(7).tensors]
    arguments[position] = torch.zeros(shape, dtype=torch.float64)
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=rf"lbs: {name} has shape \({', '.join(map(str, shape))}\), expected"):
            torch.ops.dhpe_fast.lbs(*(t.to(device) for t in arguments))


def test_the_saved_intermediate_is_no_part_of_the_graph():
    pose, betas = make_parameters()
    verts, joints, bent = torch.ops.dhpe_fast.lbs(pose.requires_grad_(), betas, *make_basis(5).tensors)
    assert [t.requires_grad for t in (verts, joints, bent)] == [True, True, False]


@pytest.mark.parametrize(("n_verts", "n_shape"), [(0, 10), (9, 0), (0, 0)])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0, 2)])
def test_a_basis_without_vertices_or_shape_directions(device, n_verts, n_shape, batch):
    basis = make_basis(n_verts, n_shape=n_shape, device=device)
    pose, betas = make_parameters(batch, device=device, n_shape=n_shape)
    found, expected = ops.lbs(pose, betas, basis), reference.lbs(pose, betas, basis)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("implementation", [ops.lbs, reference.lbs], ids=["op", "twin"])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (3, 3), (2, 3)])
@pytest.mark.parametrize("as_matrices", [False, True])
def test_three_joints_leave_no_doubt_what_the_pose_is(implementation, batch, as_matrices):
    """(3, 3, 3) may be three hands in axis-angle or the matrices of one: `betas` tell."""
    basis = make_basis(5, parents=[-1, 0, 1])
    pose, betas = make_parameters(batch, n_joints=3)
    verts, joints = implementation(axis_angle_to_matrix(pose) if as_matrices else pose, betas, basis)
    assert verts.shape == (*batch, 5, 3)
    for index in itertools.product(*map(range, batch)):
        expected_verts, expected_joints = lbs_by_loops(pose[index], betas[index], basis)
        torch.testing.assert_close(verts[index], expected_verts)
        torch.testing.assert_close(joints[index], expected_joints)


def test_runs_in_a_thread_with_a_small_stack():
    basis = make_basis(37, dtype=torch.float64)
    done = []

    def work():
        pose, betas = make_parameters((40,))
        verts, _ = ops.lbs(pose.requires_grad_(), betas, basis)
        verts.sum().backward()
        done.append(bool(pose.grad.isfinite().all()))

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert done == [True]


def test_compiles_without_a_graph_break():
    basis = make_basis(9)
    pose, betas = make_parameters()
    explanation = torch._dynamo.explain(lambda p, b: ops.lbs(p, b, basis))(pose, betas)
    assert explanation.graph_break_count == 0


BAD_ARGUMENTS = {
    "too few joints": (
        lambda p, b: (p[:, :15], b),
        ValueError,
        r"pose has shape \(3, 15, 3\), expected .*16, 3",
    ),
    "too few betas": (
        lambda p, b: (p, b[:, :9]),
        ValueError,
        r"betas has shape \(3, 9\), expected \(\*batch, 10\)",
    ),
    "batches that differ": (lambda p, b: (p, b[:2]), ValueError, "do not broadcast"),
    "other dtype": (
        lambda p, b: (p.float(), b.float()),
        ValueError,
        r"pose is torch\.float32.*the basis torch\.float64",
    ),
    "mixed dtypes": (lambda p, b: (p, b.float()), ValueError, r"betas is torch\.float32"),
    "integers": (
        lambda p, b: (p.long(), b),
        TypeError,
        r"pose must be a floating-point tensor, got a torch\.int64",
    ),
    "a list": (lambda p, b: (p, b.tolist()), TypeError, "betas must be a floating-point tensor, got list"),
    "no tensor": (lambda p, b: (None, b), TypeError, "pose must be a floating-point tensor, got NoneType"),
    "other device": (lambda p, b: (p.to("meta"), b), ValueError, "pose is on meta, the basis on cpu"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument_is_named(case):
    change, error, message = BAD_ARGUMENTS[case]
    for implementation in (ops.lbs, reference.lbs):
        with pytest.raises(error, match=message):
            implementation(*change(*make_parameters()), make_basis(5))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", [ops.lbs, reference.lbs], ids=["op", "twin"])
def test_a_basis_of_a_half_type_is_refused_by_name(implementation, half):
    with pytest.raises(ValueError, match=rf"basis is {half}, expected torch\.float32 or torch\.float64"):
        implementation(*make_parameters(dtype=half), make_basis(5, dtype=half))


@pytest.mark.parametrize("vertex_ids", [[], [3], [8, 0, 3, 3]])
def test_a_subset_of_the_basis_poses_some_of_the_vertices(device, vertex_ids):
    basis = make_basis(9, device=device)
    pose, betas = make_parameters(device=device)
    verts, joints = ops.lbs(pose, betas, basis)
    some, same_joints = ops.lbs(pose, betas, basis.subset(vertex_ids))
    torch.testing.assert_close(some, verts[:, vertex_ids])
    torch.testing.assert_close(same_joints, joints)


@pytest.mark.parametrize("vertex", [-1, 9])
def test_a_subset_names_a_vertex_that_is_not_there(vertex):
    with pytest.raises(ValueError, match=rf"vertex_ids holds {vertex}, expected 0 to 8"):
        make_basis(9).subset([0, vertex])


def test_basis_with_a_wrong_shape_is_named():
    basis = make_basis(5)
    with pytest.raises(ValueError, match=r"LbsBasis\.posedirs has shape \(134, 5, 3\), expected \(135, 5, 3\)"):
        replace(basis, posedirs=basis.posedirs[:134])


@pytest.mark.parametrize(
    ("field", "index", "value"),
    [("skin_joints", (2, 1), 16), ("skin_joints", (0, 0), -1), ("parents", (3,), 3)],
)
def test_index_out_of_range_is_refused_before_the_kernel_reads_it(field, index, value):
    basis = make_basis(5)
    broken = getattr(basis, field).clone()
    broken[index] = value
    with pytest.raises(ValueError, match=rf"basis\.{field}.* {value}, expected"):
        ops.lbs(*make_parameters(), replace(basis, **{field: broken}))


@pytest.mark.parametrize(
    ("n_joints", "n_shape", "message"),
    [(65, 10, "basis.parents has 65 joints, expected 1 to 64"), (2, 1016, "basis.shapedirs has 1016 .* up to 1015")],
)
def test_a_basis_that_the_kernels_have_no_room_for_is_named(device, n_joints, n_shape, message):
    basis = make_basis(2, parents=[-1] + [0] * (n_joints - 1), n_shape=n_shape, device=device)
    with pytest.raises(ValueError, match=message):
        ops.lbs(*make_parameters(device=device, n_joints=n_joints, n_shape=n_shape), basis)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(width=32) | st.sampled_from([math.inf, math.nan, 1e30, -1e-38]), min_size=48, max_size=48)
)
def test_hostile_poses_never_crash_and_stay_in_their_own_hand(values):
    """NaN and infinity give NaN for their hand; the other hand of the batch is untouched."""
    basis = make_basis(9, dtype=torch.float32)
    good_pose, betas = make_parameters((2,), torch.float32)
    pose = good_pose.clone()
    pose[0] = torch.tensor(values).reshape(16, 3)
    pose.requires_grad_()
    verts, joints = ops.lbs(pose, betas, basis)
    (gradient,) = torch.autograd.grad(verts.sum() + joints.sum(), pose)
    clean, _ = ops.lbs(good_pose, betas, basis)
    assert torch.equal(verts[1], clean[1])
    assert gradient[1].isfinite().all()


CUDA_MODELS = {
    "hand": {"n_verts": 37, "n_slots": 3},
    "whole tiles and slots to spare": {"n_verts": 64, "n_slots": 16},
    "a chain of 40 joints": {"n_verts": 50, "n_slots": 4, "parents": [-1, *range(39)]},
    "one joint": {"n_verts": 131, "n_slots": 1, "parents": [-1]},
}


def values_and_gradients(pose, betas, basis, weights) -> list[torch.Tensor]:
    pose, betas = pose.detach().requires_grad_(), betas.detach().requires_grad_()
    outputs = ops.lbs(pose, betas, basis)
    return [*outputs, *torch.autograd.grad(outputs, (pose, betas), weights)]


@pytest.mark.needs_cuda
@pytest.mark.parametrize("model", CUDA_MODELS)
@pytest.mark.parametrize("batch", [1, 31, 32, 33, 130, 1023, 1024, 1100])
def test_every_path_on_the_gpu_agrees_with_the_cpu_and_repeats_itself(dtype, model, batch):
    """The GPU poses small batches, batches from 32 hands on, and from 1024 on, in different ways."""
    basis = make_basis(dtype=dtype, **CUDA_MODELS[model])
    pose, betas = make_parameters((batch,), dtype, n_joints=len(basis.parents))
    pose = axis_angle_to_matrix(pose) if batch % 2 else pose
    weights = [torch.randn(batch, len(x), 3, dtype=dtype) for x in (basis.v_template, basis.parents)]
    expected = values_and_gradients(pose, betas, basis, weights)
    on_gpu = (pose.cuda(), betas.cuda(), basis.to(device="cuda"), [w.cuda() for w in weights])
    found, again = values_and_gradients(*on_gpu), values_and_gradients(*on_gpu)
    for a, b, wanted in zip(found, again, expected, strict=True):
        scale = wanted.abs().max()
        torch.testing.assert_close(a.cpu() / scale, wanted / scale, **TOLERANCE[dtype])
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(ops.lbs(*on_gpu[:3]), found, strict=False))  # keeps nothing for later


@pytest.mark.needs_cuda
@pytest.mark.parametrize("split", [(31, 1), (20, 31), (31, 993), (32, 1000)])
def test_a_batch_on_the_gpu_is_its_parts_joined(dtype, split):
    basis = make_basis(778, dtype=dtype, device="cuda")
    pose, betas = make_parameters((sum(split),), dtype, "cuda")
    weights = [torch.randn(sum(split), n, 3, dtype=dtype, device="cuda") for n in (778, 16)]
    whole = values_and_gradients(pose, betas, basis, weights)
    cuts = zip(*(t.split(split) for t in (pose, betas, *weights)), strict=True)
    parts = [values_and_gradients(p, b, basis, w) for p, b, *w in cuts]
    for a, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(a / a.abs().max(), torch.cat(pieces) / a.abs().max(), **TOLERANCE[dtype])


@pytest.mark.needs_cuda
@pytest.mark.parametrize("batch", [3, 40, 1030])
def test_a_cuda_graph_replays_values_and_gradients(batch):
    basis = make_basis(37, dtype=torch.float32, device="cuda")
    pose, betas = make_parameters((batch,), torch.float32, "cuda")
    weights = [torch.randn(batch, n, 3, device="cuda") for n in (37, 16)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as capture wants it
        values_and_gradients(pose, betas, basis, weights)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = values_and_gradients(pose, betas, basis, weights)
    pose.mul_(0.5)
    graph.replay()
    for found, wanted in zip(captured, values_and_gradients(pose, betas, basis, weights), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("n_hands", [1, 3, 20])
def test_many_shape_directions(n_hands):
    """More betas than the rotation matrices of all joints have numbers."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n_shape, n_verts = 700, 9
    basis = LbsBasis(
        v_template=random(n_verts, 3),
        shapedirs=0.05 * random(n_shape, n_verts, 3),
        posedirs=0.05 * random(9, n_verts, 3),
        joint_template=random(2, 3),
        joint_shapedirs=0.05 * random(n_shape, 2, 3),
        skin_joints=torch.arange(n_verts, dtype=torch.int32)[:, None] % 2,
        skin_weights=torch.ones(n_verts, 1, dtype=torch.float64),
        parents=torch.tensor([-1, 0], dtype=torch.int32),
    )
    pose, betas = random(n_hands, 2, 3), random(n_hands, n_shape)
    for found, expected in zip(ops.lbs(pose, betas, basis), reference.lbs(pose, betas, basis), strict=True):
        torch.testing.assert_close(found, expected)


def test_traces_keep_the_gradient():
    """What make_fx records while nothing requires a gradient is differentiable when something does."""
    from torch.fx.experimental.proxy_tensor import make_fx

    basis = make_basis()
    n_joints = len(PARENTS)
    traced = make_fx(lambda pose, betas: ops.lbs(pose, betas, basis))(
        torch.zeros(1, n_joints, 3, dtype=torch.float64), torch.zeros(1, 10, dtype=torch.float64)
    )
    pose = torch.full((1, n_joints, 3), 0.1, dtype=torch.float64, requires_grad=True)
    traced(pose, torch.zeros(1, 10, dtype=torch.float64))[0].square().sum().backward()
    assert pose.grad.abs().sum() > 0
