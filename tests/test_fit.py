"""The whole job: keypoints in, hand out, judged in pixels and millimetres against hands whose answer is known."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest
import torch

import dhpe_fast
from dhpe_fast.conventions import JOINT_ORDERS
from dhpe_fast.evidence import HandEvidence, SeenSilhouette
from dhpe_fast.hand import CropBox, HandModel, Pinhole, WeakPerspective, anatomy
from dhpe_fast.metrics import pa_mpjpe_mm
from dhpe_fast.ops import silhouette
from dhpe_fast.rotation import quaternion_to_matrix

SIZE = (240, 320)
BLANK = np.zeros((*SIZE, 3), np.uint8)
K = Pinhole(400.0, 410.0, 150.0, 130.0)


def make_hand(seed: int, side: str = "right", camera=None) -> tuple[torch.Tensor, torch.Tensor, HandModel]:
    """A natural hand somewhere in the image: its camera-frame joints, vertices and model."""
    rng = np.random.default_rng(seed)
    model = HandModel.default(side)
    axes = anatomy.joint_axes(model.rest_joints_m().numpy(), model.rest_tips_m().numpy(), side)
    pose = torch.from_numpy(anatomy.sample_poses(axes, 1, rng)).float()
    betas = torch.from_numpy(rng.normal(size=(1, 10)).clip(-2, 2)).float()
    mesh = model(pose, betas)
    turn = quaternion_to_matrix(torch.from_numpy(rng.normal(size=4)).float())
    at = torch.from_numpy(np.append(rng.uniform(-0.03, 0.03, 2), rng.uniform(0.4, 0.6))).float()
    root = mesh.joints_m[0, 9]
    return (mesh.joints_m[0] - root) @ turn.T + at, (mesh.verts_m[0] - root) @ turn.T + at, model


def weak_image(joints_m: torch.Tensor) -> np.ndarray:
    return WeakPerspective(700.0, (160.0, 120.0)).project(joints_m).numpy()


def test_rendered_hands_are_recovered():
    """Exact joints of ten random hands: within half a percent of the box, and a few millimetres in space."""
    errors_mm = []
    for seed in range(10):
        side = ("right", "left")[seed % 2]
        joints_m, _, _ = make_hand(seed, side)
        hand = dhpe_fast.fit(BLANK, keypoints=weak_image(joints_m), hand=side)
        assert hand.side == side
        assert hand.residuals["joints2d_box"] < 0.005
        errors_mm.append(float(pa_mpjpe_mm(hand.joints_m, joints_m)))
    assert np.median(errors_mm) < 8


def test_answer_is_consistent_with_itself():
    """Every field tells the same hand: params decode to the vertices, the camera draws them where the mask is."""
    joints_m, _, _ = make_hand(1, "left")
    hand = dhpe_fast.fit(BLANK, keypoints=weak_image(joints_m), hand="left")
    decoded = hand.model.decode(hand.params)
    assert hand.model.side == hand.side == "left"
    torch.testing.assert_close(hand.crop.from_crop(decoded.joints_m[0]), hand.joints2d_px, rtol=0, atol=1e-2)
    torch.testing.assert_close(hand.crop.from_crop(decoded.verts_m[0]), hand.verts2d_px, rtol=0, atol=1e-2)
    torch.testing.assert_close(hand.camera.project(hand.joints_m), hand.joints2d_px)
    torch.testing.assert_close(hand.joints_m[9], torch.zeros(3), rtol=0, atol=1e-6)
    inside = hand.joints2d_px.long().clamp_min(0)
    visible = (inside[:, 0] < SIZE[1]) & (inside[:, 1] < SIZE[0])
    assert hand.mask[inside[visible, 1], inside[visible, 0]].float().mean() > 0.8
    assert hand.mask.shape == SIZE
    assert set(hand.timings_ms) >= {"read", "evidence", "first_estimate", "refine", "render"}


def test_mirrored_image_gives_the_mirrored_hand():
    joints_m, _, _ = make_hand(2)
    keypoints = weak_image(joints_m)
    right = dhpe_fast.fit(BLANK, keypoints=keypoints, hand="right")
    mirrored = keypoints * [-1, 1] + [SIZE[1], 0]
    left = dhpe_fast.fit(BLANK, keypoints=mirrored, hand="left")
    expected = right.verts_m * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(left.verts_m, expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(left.mask.flip(1).float().mean(), right.mask.float().mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_known_intrinsics_give_the_metric_position(side):
    """Depth follows from size, and size is a guess of 10 %: the direction is exact, the distance within 15 %."""
    joints_m, _, _ = make_hand(4, side)
    hand = dhpe_fast.fit(BLANK, keypoints=K.project(joints_m).numpy(), hand=side, camera=K.matrix)
    assert isinstance(hand.camera, Pinhole)
    assert hand.residuals["joints2d_box"] < 0.006
    assert float(hand.joints_m[9, 2]) == pytest.approx(float(joints_m[9, 2]), rel=0.15)
    direction, truth = (torch.nn.functional.normalize(j[9], dim=0) for j in (hand.joints_m, joints_m))
    assert float(direction @ truth) > 0.9999
    # params speak of the weak-perspective hand of the crop: exact at the root, foreshortening apart elsewhere.
    decoded = hand.crop.from_crop(hand.model.decode(hand.params).joints_m[0])
    torch.testing.assert_close(decoded[9], hand.joints2d_px[9], rtol=0, atol=1e-2)
    assert (decoded - hand.joints2d_px).norm(dim=1).mean() < 0.1 * hand.crop.size_px


def test_lens_distortion_is_undone():
    joints_m, _, _ = make_hand(5)
    camera = Pinhole(400.0, 410.0, 150.0, 130.0, (-0.3, 0.1, 0.001, -0.002, 0.0))
    hand = dhpe_fast.fit(BLANK, keypoints=camera.project(joints_m).numpy(), hand="right", camera=camera)
    assert hand.residuals["joints2d_box"] < 0.006


def drawn_mask(camera, verts_m: torch.Tensor, model: HandModel) -> np.ndarray:
    verts_px = torch.cat([camera.project(verts_m), verts_m[:, 2:]], 1)
    return silhouette(verts_px, model.faces, SIZE).numpy() > 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_mask_improves_the_silhouette(side):
    """Joints moved by noise of 4 % of the box; the true mask pulls the silhouette back."""
    joints_m, verts_m, model = make_hand(6, side)
    camera = WeakPerspective(700.0, (160.0, 120.0))
    mask = drawn_mask(camera, verts_m, model)
    noisy = camera.project(joints_m).numpy() + np.random.default_rng(0).normal(size=(21, 2)) * 5
    without = dhpe_fast.fit(BLANK, keypoints=noisy, hand=side)
    with_mask = dhpe_fast.fit(BLANK, keypoints=noisy, hand=side, mask=mask)
    before = (without.mask.numpy() & mask).sum() / (without.mask.numpy() | mask).sum()
    assert with_mask.residuals["mask_iou"] > before + 0.01
    assert with_mask.residuals["mask_iou"] > 0.85


def test_mask_under_lens_distortion_agrees_with_the_joints():
    joints_m, verts_m, model = make_hand(5)
    camera = Pinhole(400.0, 410.0, 150.0, 130.0, (-0.3, 0.1, 0.001, -0.002, 0.0))
    hand = dhpe_fast.fit(
        BLANK,
        keypoints=camera.project(joints_m).numpy(),
        hand="right",
        camera=camera,
        mask=drawn_mask(camera, verts_m, model),
    )
    assert hand.residuals["joints2d_box"] < 0.008
    assert hand.residuals["mask_iou"] > 0.97


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("camera", [None, Pinhole(400.0, 410.0, 150.0, 130.0, (-0.3, 0.1, 0.001, -0.002, 0.0))])
def test_a_silhouette_that_a_source_sees_counts_as_a_mask(side, camera):
    """In 32 x 32 cells of some square, joints moved by 4 % of the box: the silhouette pulls the hand back."""
    joints_m, verts_m, model = make_hand(6, side)
    view = WeakPerspective(700.0, (160.0, 120.0)) if camera is None else camera
    mask = drawn_mask(view, verts_m, model)
    noisy = view.project(joints_m).numpy() + np.random.default_rng(0).normal(size=(21, 2)) * 5
    square = CropBox((150.0, 120.0), 250.0)
    seen = SeenSilhouette(square.crop_image(mask.astype(np.float32), 32), square)
    overlaps = []
    for silhouette_seen in (None, seen):
        evidence = HandEvidence(noisy, np.ones(21), side, noise_px=5.0, silhouette=silhouette_seen)
        (hand,) = dhpe_fast.fit(BLANK, evidence=lambda image, boxes, evidence=evidence: [evidence], camera=camera)
        overlaps.append((hand.mask.numpy() & mask).sum() / (hand.mask.numpy() | mask).sum())
    assert overlaps[1] > overlaps[0] + 0.02
    assert overlaps[1] > 0.8


def test_a_mask_of_a_fingertip_does_not_move_the_hand():
    joints_m, verts_m, model = make_hand(6)
    camera = WeakPerspective(700.0, (160.0, 120.0))
    keypoints = camera.project(joints_m).numpy()
    rows, columns = np.nonzero(drawn_mask(camera, verts_m, model))
    mask = np.zeros(SIZE, bool)
    mask[rows[:30], columns[:30]] = True
    hand = dhpe_fast.fit(BLANK, keypoints=keypoints, hand="right", mask=mask)
    assert hand.residuals["joints2d_box"] < 0.03


def test_orders_confidences_and_several_hands():
    first, second = weak_image(make_hand(7)[0]), weak_image(make_hand(8)[0])
    rhd = np.empty_like(first)
    rhd[list(JOINT_ORDERS["rhd"])] = first  # so that rhd gathered by the table is `first`
    one = dhpe_fast.fit(BLANK, keypoints=first)
    other = dhpe_fast.fit(BLANK, keypoints=rhd, order="rhd")
    torch.testing.assert_close(one.verts_m, other.verts_m)

    hidden = np.concatenate([first, np.ones((21, 1))], 1)
    hidden[[8, 12]] = [[np.nan, np.nan, 0.0], [1e4, 1e4, 0.0]]
    partly = dhpe_fast.fit(BLANK, keypoints=hidden)
    shown = [j for j in range(21) if j not in (8, 12)]
    assert (partly.joints2d_px[shown] - torch.from_numpy(first).float()[shown]).norm(dim=1).mean() < 1.5
    assert bool(partly.keypoints2d_px[8].isnan().all())

    both = dhpe_fast.fit(BLANK, keypoints=np.stack([first, second]))
    assert isinstance(both, list)
    torch.testing.assert_close(both[0].verts_m, one.verts_m)
    assert both[1].residuals["joints2d_box"] < 0.005


def test_any_evidence_source_can_be_plugged_in():
    keypoints = weak_image(make_hand(9, "left")[0])

    def source(image_rgb: np.ndarray, boxes: np.ndarray | None) -> list[HandEvidence]:
        assert image_rgb.shape == BLANK.shape
        return [HandEvidence(keypoints.astype(np.float64), np.ones(21), "left", 0.9)]

    (hand,) = dhpe_fast.fit(BLANK, evidence=source)
    assert hand.side == "left"
    assert hand.score == 0.9
    assert dhpe_fast.fit(BLANK, evidence=lambda image, boxes: []) == []


def test_joints_are_believed_as_far_as_the_source_says():
    """Joints that are off by 6 % of the hand: who believes them bends it, who knows that they are off bends it less."""
    errors_mm: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(6):
        joints_m = make_hand(seed)[0]
        exact_px = weak_image(joints_m).astype(np.float64)
        noise_px = 0.06 * np.ptp(exact_px, axis=0).max()
        given_px = exact_px + noise_px * np.random.default_rng(seed).normal(size=exact_px.shape)
        for known, found in errors_mm.items():
            evidence = HandEvidence(given_px, np.ones(21), "right", noise_px=noise_px if known else 0.0)
            (hand,) = dhpe_fast.fit(BLANK, evidence=lambda image, boxes, evidence=evidence: [evidence])
            found.append(float(pa_mpjpe_mm(hand.joints_m, joints_m)))
    assert np.mean(errors_mm[True]) < 0.8 * np.mean(errors_mm[False])


def test_an_evidence_source_runs_as_the_caller_has_set_torch():
    """A network in there has all threads and the caller's autocast; that it needs no gradients is known."""
    keypoints, before, seen = weak_image(make_hand(9)[0]), torch.get_num_threads(), []

    def source(image_rgb: np.ndarray, boxes: np.ndarray | None) -> list[HandEvidence]:
        seen.append((torch.get_num_threads(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return [HandEvidence(keypoints.astype(np.float64), np.ones(21), "right", 0.9)]

    torch.set_num_threads(3)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            dhpe_fast.fit(BLANK, evidence=source)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [(3, True, False)]


def test_a_float64_left_model_of_the_caller_is_used_for_both_sides():
    model = HandModel.default("left", dtype=torch.float64)
    joints_m, _, _ = make_hand(3)
    hand = dhpe_fast.fit(BLANK, keypoints=weak_image(joints_m), hand="right", model=model)
    assert hand.model.side == "right"
    assert hand.residuals["joints2d_box"] < 0.005


AMBIENT = {
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", AMBIENT)
def test_the_callers_torch_settings_do_not_matter(mode):
    """Neither to that fit nor, through what it caches, to a later one."""
    keypoints = weak_image(make_hand(3)[0])
    plain = dhpe_fast.fit(BLANK, keypoints=keypoints)
    model, threads = HandModel.default(), torch.get_num_threads()
    with AMBIENT[mode]():
        inside = dhpe_fast.fit(BLANK, keypoints=keypoints, model=model)
    after = dhpe_fast.fit(BLANK, keypoints=keypoints, model=model)
    for hand in (inside, after):
        assert torch.equal(plain.verts_m, hand.verts_m)
        assert not hand.verts_m.requires_grad
    assert torch.get_num_threads() == threads


def test_default_dtype_does_not_matter():
    keypoints = weak_image(make_hand(3)[0])
    plain = dhpe_fast.fit(BLANK, keypoints=keypoints)
    torch.set_default_dtype(torch.float64)
    try:
        other = dhpe_fast.fit(BLANK, keypoints=keypoints)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(plain.verts_m, other.verts_m)


def test_a_model_made_in_inference_mode_serves():
    with torch.inference_mode():
        model = HandModel.default()
    hand = dhpe_fast.fit(BLANK, keypoints=weak_image(make_hand(3)[0]), model=model)
    assert hand.residuals["joints2d_box"] < 0.005


def test_fits_do_not_share_what_a_caller_may_change():
    keypoints = weak_image(make_hand(3)[0])
    first = dhpe_fast.fit(BLANK, keypoints=keypoints)
    expected = first.verts_m.clone()
    first.model.basis.v_template.mul_(2)
    first.faces.zero_()
    assert torch.equal(dhpe_fast.fit(BLANK, keypoints=keypoints).verts_m, expected)


def test_a_model_changed_in_place_is_noticed_and_one_let_go_is_freed():
    keypoints = weak_image(make_hand(3)[0])
    model = HandModel.default()
    dhpe_fast.fit(BLANK, keypoints=keypoints, model=model)
    for name in ("v_template", "joint_template", "shapedirs", "joint_shapedirs", "posedirs"):
        model.get_buffer(name).mul_(2)
    fresh = HandModel(model.arrays())
    changed = dhpe_fast.fit(BLANK, keypoints=keypoints, model=model)
    torch.testing.assert_close(changed.verts_m, dhpe_fast.fit(BLANK, keypoints=keypoints, model=fresh).verts_m)
    watch = weakref.ref(model)
    del model, changed
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize("wrong_px", [(0.0, 0.0), (3000.0, 3000.0)], ids=["at the origin", "far away"])
def test_one_wrong_keypoint_bends_no_hand(wrong_px):
    errors = []
    for seed in range(6):
        joints_m, _, _ = make_hand(seed)
        keypoints = weak_image(joints_m)
        keypoints[7] = wrong_px
        hand = dhpe_fast.fit(BLANK, keypoints=keypoints)
        others = [j for j in range(21) if j != 7]
        distance = np.linalg.norm(hand.joints2d_px.numpy() - keypoints, axis=1)[others].mean()
        errors.append(distance / np.ptp(keypoints[others], axis=0).max())
    assert np.median(errors) < 0.01
    assert max(errors) < 0.03


def test_a_hand_close_to_the_camera_is_in_front_of_it():
    """12 cm from a wide-angle camera: the orthographic start would put fingertips behind it."""
    camera = Pinhole(150.0, 150.0, 160.0, 120.0)
    for seed in range(6):
        joints_m, _, _ = make_hand(seed)
        joints_m = joints_m - joints_m[9] + torch.tensor([0.0, 0.0, 0.16])
        if joints_m[:, 2].min() < 0.05:
            continue
        hand = dhpe_fast.fit(BLANK, keypoints=camera.project(joints_m).numpy(), camera=camera, hand="right")
        assert hand.joints_m[:, 2].min() > 0
        assert hand.residuals["joints2d_box"] < 0.03


def test_perspective_decides_the_side():
    """A hand near a wide-angle camera, its answer known: the right side has the lower energy in most cases."""
    camera = Pinhole(250.0, 250.0, 160.0, 120.0)
    found = []
    for seed in range(8):
        side = ("right", "left")[seed % 2]
        joints_m, _, _ = make_hand(seed, side)
        joints_m = joints_m - joints_m[9] + torch.tensor([0.02, 0.0, 0.25])
        found.append(dhpe_fast.fit(BLANK, keypoints=camera.project(joints_m).numpy(), camera=camera).side == side)
    assert sum(found) >= 6


def test_profile_prints_the_stages_of_each_hand(capsys):
    keypoints = weak_image(make_hand(3)[0])
    dhpe_fast.fit(BLANK, keypoints=np.stack([keypoints, keypoints]), iterations=2, profile=True)
    *table, solver = capsys.readouterr().out.splitlines()
    assert solver == "solver: Levenberg-Marquardt, compiled, on cpu"
    rows = [line.split() for line in table]
    assert rows[0] == ["stage", "ms,", "0", "ms,", "1"]
    assert [row[0] for row in rows[1:]] == ["decode", "evidence", "crop", "first", "refine", "render", "total"]
    parts = np.array([[float(value) for value in row[-2:]] for row in rows[1:]])
    np.testing.assert_allclose(parts[:-1].sum(0), parts[-1], atol=0.05)
    dhpe_fast.fit(BLANK, keypoints=keypoints, iterations=0)
    assert capsys.readouterr().out == ""


def test_zero_iterations_return_the_first_estimate():
    hand = dhpe_fast.fit(BLANK, keypoints=weak_image(make_hand(3)[0]), iterations=0)
    assert hand.iterations == 0
    assert not hand.converged
    assert hand.residuals["joints2d_box"] < 0.05


GOOD = weak_image(make_hand(0)[0])
BAD_INPUT = {
    "hand": ({"hand": "both"}, ValueError, "hand: expected 'auto', 'right' or 'left', got 'both'"),
    "model": ({"model": "MANO_RIGHT.pkl"}, TypeError, "model: expected a HandModel or None, got str"),
    "iterations": ({"iterations": -1}, ValueError, "iterations: expected a whole number >= 0, got -1"),
    "camera": ({"camera": np.eye(4)}, ValueError, r"matrix: expected \(3, 3\), got \(4, 4\)"),
    "mask size": ({"mask": np.ones((4, 4), bool)}, ValueError, r"mask: expected height and width \(240, 320\)"),
    "mask count": (
        {"mask": np.ones((2, *SIZE), bool)},
        ValueError,
        "mask: expected one for each of the 1 hands, got 2",
    ),
    "empty mask": ({"mask": np.zeros(SIZE, bool)}, ValueError, "mask: .*no pixel"),
    "mask elsewhere": (
        {"mask": np.arange(240 * 320).reshape(SIZE) == 0},
        ValueError,
        "mask: no pixel .* near the keypoints",
    ),
    "normalised K": (
        {"camera": np.array([[1.2, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]])},
        ValueError,
        "camera: focal lengths",
    ),
    "boxes too": ({"boxes": [[0, 0, 9, 9]]}, ValueError, "boxes: give either keypoints or boxes"),
    "order": ({"order": "random"}, ValueError, "order.*random"),
    "shape": ({"keypoints": GOOD[:20]}, ValueError, r"keypoints.*\(20, 2\)"),
    "too few": (
        {"keypoints": np.c_[GOOD, np.arange(21) < 3]},
        ValueError,
        "keypoints: 3 joints have a confidence above 0, at least 4",
    ),
    "nan": ({"keypoints": np.where(np.arange(42).reshape(21, 2) == 8, np.nan, GOOD)}, ValueError, "keypoints.*joint 4"),
    "one point": ({"keypoints": np.full((21, 2), 7.0)}, ValueError, "keypoints"),
    "evidence": ({"keypoints": None, "evidence": "magic"}, ValueError, "evidence.*magic"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case):
    change, error, message = BAD_INPUT[case]
    with pytest.raises(error, match=message):
        dhpe_fast.fit(BLANK, **{"keypoints": GOOD, **change})


@pytest.mark.parametrize(
    "name", ["freihand_00000355.jpg", "onehand10k_1402.jpg", "panoptic_005880453_01_r.jpg", "rhd_00111.png"]
)
def test_photographs(hand_photographs, name):
    """Annotated joints of real photographs are met within 3 % of their box."""
    annotations = json.loads((hand_photographs / "annotations.json").read_text())
    (entry,) = [e for e in annotations["images"] if e["file"] == name]
    hand = dhpe_fast.fit(hand_photographs / name, keypoints=entry["keypoints"], hand=entry.get("hand", "auto"))
    assert hand.converged
    assert hand.residuals["joints2d_box"] < 0.03
    assert hand.params.shape.abs().max() < 3
