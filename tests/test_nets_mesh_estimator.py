"""f_E3D and f_Proj: Eqs. 5 and 6 as loops in NumPy, the start of the iteration, and the frames of what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dhpe_fast.conventions import H_LAYOUT, MIDDLE_MCP, STD_TIPS
from dhpe_fast.hand import HandModel, HandParams
from dhpe_fast.nets import (
    Evidence,
    Joints2dRefiner,
    MeshEstimator,
    ParamRegressor,
    Projector,
    initial_hand,
    regress_joints,
)
from dhpe_fast.rotation import quaternion_to_matrix

N_FEATURES, SIDE = 16, 64
WRIST, INDEX_MCP, LITTLE_MCP, MIDDLE_TIP = 0, 5, 17, 12


@pytest.fixture(scope="module")
def hand() -> HandModel:
    return HandModel.default(dtype=torch.float64)


@pytest.fixture(scope="module")
def left_hand() -> HandModel:
    return HandModel.default("left", dtype=torch.float64)


def estimator(hand: HandModel, **options) -> MeshEstimator:
    """One with weights large enough that each of its inputs counts."""
    made = MeshEstimator(N_FEATURES, hand, image_size=SIDE, **options).double()
    with torch.no_grad():
        for weight in (part.weight for part in (made.regressor, made.refiner) if part is not None):
            weight += 0.02 * torch.randn_like(weight)
    return made


def evidence(n: int = 2) -> Evidence:
    return Evidence(torch.rand(n, N_FEATURES).double(), (), SIDE * torch.rand(n, 21, 2).double())


# --- Eqs. 4 to 6 ---


def test_the_layers_have_the_papers_sizes():
    regressor, refiner = ParamRegressor(2048), Joints2dRefiner(2048)
    assert regressor.weight.T.shape == (2153, 63)
    assert refiner.weight.T.shape == (2216, 42)
    assert ParamRegressor(2048, use_joints2d=False).weight.T.shape == (2048 + 63, 63)


def by_the_papers_equations(made: MeshEstimator, z: Evidence) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(h(t), j'_2D(t) px)] for t = 1..3 of one crop, from the layers' weights; lengths by the crop's side."""
    features = z.features[0].numpy() / np.sqrt(N_FEATURES)  # as the layers take them
    j2d = z.joints2d_px[0].numpy().ravel() / SIDE
    regressor, refiner = (
        (part.weight.detach().numpy(), part.bias.detach().numpy()) for part in (made.regressor, made.refiner)
    )
    h = np.zeros(63)
    h[:45] = made.hand.hands_mean.numpy()
    steps = []
    for _ in range(3):
        h = h + regressor[0] @ np.concatenate([features, j2d, h]) + regressor[1]
        verts = made.hand.decode(torch.from_numpy(h)[None]).verts_m[0].numpy()
        joints = made.hand.joint_regressor.numpy() @ verts
        joints[0] = (joints[0] + joints[MIDDLE_MCP]) / 2
        j2d = refiner[0] @ np.concatenate([j2d, features, h, (0.5 * joints + 0.5).ravel()]) + refiner[1]
        steps.append((h, SIDE * j2d.reshape(21, 2)))
    return steps


def test_three_iterations_of_equations_5_and_6(hand):
    made, z = estimator(hand), evidence(1)
    with torch.no_grad():
        estimate = made(z)
    expected = by_the_papers_equations(made, z)
    assert len(estimate.steps) == 3
    for step, (h, joints2d_px) in zip(estimate.steps, expected, strict=True):
        np.testing.assert_allclose(step.h[0], h, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(step.joints2d_px[0], joints2d_px, rtol=1e-9, atol=1e-7)


def test_gradients_of_the_whole_iteration(hand):
    made, z = estimator(hand, iterations=2), evidence(1)
    features = z.features.requires_grad_()

    def estimate(features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = made(Evidence(features, (), z.joints2d_px))
        return out.h, out.joints2d_px

    assert torch.autograd.gradcheck(estimate, (features,), fast_mode=True)


def test_without_joints_the_regressor_does_not_see_them(hand):
    made, z = estimator(hand, use_joints2d=False, use_refiner=False), evidence()
    with torch.no_grad():
        moved = made(Evidence(z.features, (), z.joints2d_px + 5))
        torch.testing.assert_close(moved.h, made(z).h, rtol=0, atol=0)


def test_without_the_refiner_joints_stay(hand):
    made, z = estimator(hand, use_refiner=False), evidence()
    with torch.no_grad():
        torch.testing.assert_close(made(z).joints2d_px, z.joints2d_px)


def test_the_size_of_the_crop_in_pixels_does_not_matter(hand):
    small, z = estimator(hand), evidence()
    large = MeshEstimator(N_FEATURES, hand, image_size=2 * SIDE).double()
    large.load_state_dict(small.state_dict())
    with torch.no_grad():
        expected = small(z)
        got = large(Evidence(z.features, (), 2 * z.joints2d_px))
    torch.testing.assert_close(got.h, expected.h)
    torch.testing.assert_close(got.joints2d_px, 2 * expected.joints2d_px)


def test_bad_evidence_is_refused_by_name(hand):
    made = estimator(hand)
    with pytest.raises(ValueError, match=r"evidence.features: expected \(B, 16\), got \(2, 17\)"):
        made(Evidence(torch.zeros(2, 17), (), torch.zeros(2, 21, 2)))
    with pytest.raises(ValueError, match=r"evidence.joints2d_px: expected \(2, 21, 2\) as the features"):
        made(Evidence(torch.zeros(2, 16), (), torch.zeros(1, 21, 2)))


# --- The start ---


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("joint0", ["palm", "wrist"])
def test_without_evidence_the_last_iteration_is_the_initial_hand(hand, iterations, joint0):
    made = MeshEstimator(N_FEATURES, hand, iterations, image_size=SIDE, joint0=joint0).double()
    with torch.no_grad():
        made.regressor.weight.zero_()
        torch.testing.assert_close(made(evidence()).h, initial_hand(hand, joint0).packed().expand(2, -1))


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_initial_hand_is_upright_with_its_palm_to_the_camera(side, hand, left_hand):
    model = hand if side == "right" else left_hand
    joints = model.regress_joints(model.decode(initial_hand(model)).verts_m)[0]
    up, toward_the_camera = torch.tensor([0.0, -1, 0]).double(), torch.tensor([0.0, 0, -1]).double()
    along = joints[MIDDLE_MCP] - joints[WRIST]
    assert along @ up > 0.95 * along.norm()
    # From the little finger's base to the index finger's: the thumb of a right palm is at the right.
    across = joints[INDEX_MCP] - joints[LITTLE_MCP]
    assert across[0] * (1 if side == "right" else -1) > 0.9 * across.norm()
    # Relaxed fingers bend to the palm's side.
    tips, bases = joints[list(STD_TIPS[1:])].mean(0), joints[[5, 9, 13, 17]].mean(0)
    assert (tips - bases) @ toward_the_camera > 0


@pytest.mark.parametrize("joint0", ["palm", "wrist"])
def test_the_initial_hand_is_placed_as_the_paper_crops(hand, joint0):
    params = initial_hand(hand, joint0)
    joints = regress_joints(hand, hand.decode(params).verts_m, joint0)[0].numpy()
    np.testing.assert_allclose(joints[MIDDLE_MCP], 0, atol=1e-8)  # as exactly as the regressor's rows sum to one
    box = np.ptp(joints[:, :2], axis=0)
    assert 2 / box.max() == pytest.approx(1.5)
    assert 5 < params.scale.item() < 15
    torch.testing.assert_close(params.pose[0], hand.hands_mean)


def test_the_initial_rotation_turns_x_to_y_to_z_to_x(hand):
    matrix = quaternion_to_matrix(initial_hand(hand).quat)[0]
    torch.testing.assert_close(matrix @ torch.eye(3).double(), torch.eye(3).double()[[2, 0, 1]])


def test_the_first_estimate_hardly_depends_on_the_crop(hand):
    """Features of an ImageNet network are about one half each."""
    made = MeshEstimator(2048, hand, image_size=SIDE).double()
    with torch.no_grad():
        out = made(Evidence(torch.rand(8, 2048).double(), (), SIDE * torch.rand(8, 21, 2).double()))
    assert (out.h - initial_hand(hand).packed()).abs().max() < 0.5
    assert (out.joints2d_px / SIDE).abs().max() < 1.5


def test_the_first_step_of_training_leaves_a_hand(hand):
    """By Adam at the paper's learning rate, which changes all weights by 1e-3 (see the top of mesh_estimator.py)."""
    made = MeshEstimator(2048, hand, image_size=SIDE).double()
    z = Evidence(torch.rand(8, 2048).double(), (), SIDE * torch.rand(8, 21, 2).double())
    before = made(z)
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-3)
    (before.h.sum() + before.joints2d_px.sum() / SIDE).backward()
    optimizer.step()
    with torch.no_grad():
        after = made(z)
    assert (after.h - before.h)[:, H_LAYOUT["pose"]].abs().max() < 0.4
    assert (after.h - before.h)[:, H_LAYOUT["trans"]].abs().max() < 0.4
    assert (after.joints2d_px - before.joints2d_px).abs().max() < 0.4 * SIDE


def test_the_refiner_starts_as_the_identity_on_joints():
    refiner = Joints2dRefiner(N_FEATURES)
    joints2d = torch.rand(4, 21, 2)
    with torch.no_grad():
        out = refiner(joints2d, torch.rand(4, N_FEATURES), torch.rand(4, 63), torch.rand(4, 21, 3))
    assert (out - joints2d).abs().max() < 0.05


# --- f_Proj ---


def some_hands(hand: HandModel, n: int = 3) -> torch.Tensor:
    h = initial_hand(hand).packed().repeat(n, 1)
    return h + 0.1 * torch.randn_like(h)


def test_the_palm_is_midway_between_wrist_and_middle_mcp(hand):
    verts = hand.decode(some_hands(hand)).verts_m
    palm, wrist = (regress_joints(hand, verts, joint0) for joint0 in ("palm", "wrist"))
    torch.testing.assert_close(wrist, hand.regress_joints(verts))
    torch.testing.assert_close(palm[:, 0], (wrist[:, 0] + wrist[:, MIDDLE_MCP]) / 2)
    torch.testing.assert_close(palm[:, 1:], wrist[:, 1:])


@pytest.mark.parametrize("mode", ["nmr", "edge"])
def test_the_mask_lies_where_the_mesh_does(hand, mode):
    """Borders of the mask are those of the vertices in pixels, x to the right and y down, to one pixel."""
    projection = Projector(hand, SIDE, silhouette_mode=mode)(some_hands(hand))
    for verts, mask in zip(projection.verts.numpy(), projection.mask.numpy(), strict=True):
        expected = (np.stack([verts[:, :2].min(0), verts[:, :2].max(0)]) + 1) * SIDE / 2
        rows, columns = np.nonzero(mask > 0.5)
        found = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
        assert np.abs(found - expected.clip(0, SIDE)).max() < 1.5


def test_a_mask_pulls_the_hand_towards_it(hand):
    """The renderer's gradient with respect to h."""
    h = initial_hand(hand).packed().requires_grad_()
    mask = Projector(hand, SIDE)(h).mask
    target = torch.zeros_like(mask)
    target[:, 2:, :] = mask.detach()[:, :-2, :]  # the same hand two pixels further down
    (mask - target).square().sum().backward()
    across, down, _ = h.grad[0, H_LAYOUT["trans"]]
    assert down < 0
    assert abs(across) < abs(down)


def test_projection_takes_h_of_any_precision(hand):
    projector = Projector(HandModel.default(), SIDE)
    h = initial_hand(hand).packed()
    for dtype in (torch.float64, torch.bfloat16):
        projection = projector(h.to(dtype))
        assert {value.dtype for value in vars(projection).values()} == {torch.float32}


def test_hand_params_of_an_estimate_are_named(hand):
    with torch.no_grad():
        params = HandParams.from_packed(estimator(hand)(evidence()).h)
    assert params.scale.shape == (2, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda hand: Projector(hand, 0), "image_size: expected a positive whole number of pixels, got 0"),
        (lambda hand: Projector(hand, SIDE, joint0="elbow"), "joint0: expected 'palm' or 'wrist', got 'elbow'"),
        (lambda hand: Projector(hand, SIDE, silhouette_mode="hard"), "silhouette_mode: expected one of"),
        (lambda hand: MeshEstimator(16, hand, 0), "iterations: expected a whole number >= 1, got 0"),
        (lambda hand: MeshEstimator(16, hand, joint0="x"), "joint0: expected 'palm' or 'wrist', got 'x'"),
    ],
)
def test_bad_options_are_refused_by_name(hand, make, message):
    with pytest.raises(ValueError, match=message):
        make(hand)


def test_hidden_layers_add_nothing_at_first_and_then_whatever_is_learned(hand):
    torch.manual_seed(0)
    plain = ParamRegressor(16)
    deep = ParamRegressor(16, hidden=32)
    deep.load_state_dict(plain.state_dict(), strict=False)
    inputs = torch.rand(3, 16), torch.rand(3, 21, 2), torch.rand(3, 63)
    torch.testing.assert_close(deep(*inputs), plain(*inputs), rtol=0, atol=0)
    deep(*inputs).square().sum().backward()
    assert deep.deeper[-1].weight.grad.abs().max() > 0
    estimator = MeshEstimator(16, hand, hidden=32)
    assert sum(p.numel() for p in estimator.regressor.deeper.parameters()) == (121 + 1 + 2 + 32 + 1 + 63) * 32 + 63
    with pytest.raises(ValueError, match="regressor_hidden: expected a whole number >= 0, got -1"):
        MeshEstimator(16, hand, hidden=-1)
