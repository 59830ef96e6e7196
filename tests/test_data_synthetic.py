"""The generated data set: RHD's layout read by hand, labels against the pictures, and the rules of writing it."""

from __future__ import annotations

import fcntl
import json
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from dhpe_fast.data import open_dataset, synthetic
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.held_things import held_thing
from dhpe_fast.data.recipe import GENERATOR_VERSION, differences, read_recipe
from dhpe_fast.data.rendered import PosedHand, place
from dhpe_fast.data.synthetic import Recipe, draw_scene, random_orientation, sampled_hand, write_synthetic
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.anatomy import joint_axes, named_poses
from dhpe_fast.rotation import quaternion_to_matrix

RIGHT, LEFT = slice(21, 42), slice(0, 21)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "set"
    write_synthetic(root, 5, 2, seed=3, size_px=96, workers=1)
    return root


def annotations(root, split):
    return pickle.loads((root / split / f"anno_{split}.pickle").read_bytes())


def test_layout(written):
    files = sorted(str(file.relative_to(written)) for file in written.rglob("*") if file.is_file())
    expected = [
        f"{split}/{kind}/{number:05d}.png"
        for split, count in (("training", 5), ("evaluation", 2))
        for kind in ("color", "mask", "depth")
        for number in range(count)
    ]
    labels = ["training/anno_training.pickle", "evaluation/anno_evaluation.pickle"]
    assert files == sorted([*expected, *labels, "recipe.json"])


def test_a_drawn_set_says_so_and_how(written):
    counts = {"generator_version": GENERATOR_VERSION, "n_training": 5, "n_evaluation": 2, "seed": 3, "size_px": 96}
    facts = {**counts, "max_angle_deg": 180.0, "span": [0.35, 0.8], "tone": None, "backgrounds": None}
    facts |= {"gestures": 0.0, "held": 0.0}
    assert json.loads((written / "recipe.json").read_text()) == read_recipe(written) == facts
    assert open_dataset("rhd", written, "test").name == "synthetic"
    with pytest.raises(DatasetError, match=r"recipe\.json: no such file"):
        read_recipe(written / "training")


def test_a_recipe_is_compared_by_its_arguments_and_the_version_of_the_generator(tmp_path):
    """A set that says no version was drawn by the first one."""
    (tmp_path / "recipe.json").write_text(json.dumps({"seed": 3, "tone": None}))
    old = read_recipe(tmp_path)
    assert differences(old, {"seed": 3}) == f"generator_version: 1 instead of {GENERATOR_VERSION}"
    assert differences(old, {"seed": 4}, but=["generator_version"]) == "seed: 3 instead of 4"
    assert differences(old, {"seed": 3, "gestures": 0.5}, but=["generator_version"]) == "gestures: 0.0 instead of 0.5"
    assert differences(old | {"generator_version": GENERATOR_VERSION}, {"seed": 3}) == ""


def test_labels_are_written_to_the_last_bit(written):
    """By numpy and pickle alone, which give the same bytes however a drawing was split up."""
    expected = {}
    for number in range(2):
        scene = draw_scene(Recipe(seed=3, size_px=96), "evaluation", number)
        expected[number] = {"xyz": scene.xyz_m, "uv_vis": scene.uv_vis, "K": np.float32(scene.camera.matrix)}
    assert (written / "evaluation/anno_evaluation.pickle").read_bytes() == pickle.dumps(expected, protocol=2)


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_annotations_are_those_of_rhd(written, split):
    found = annotations(written, split)
    assert list(found) == list(range(len(found)))
    for label in found.values():
        assert {key: (value.shape, value.dtype.kind) for key, value in label.items()} == {
            "xyz": ((42, 3), "f"),
            "uv_vis": ((42, 3), "f"),
            "K": ((3, 3), "f"),
        }
        assert (label["xyz"][:, 2] > 0.05).all()
        projected = label["xyz"] @ label["K"].T
        np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], label["uv_vis"][:, :2], atol=2e-2)
        assert set(label["uv_vis"][:, 2]) <= {0.0, 1.0}


def test_images_masks_and_depths_agree(written):
    for number, label in annotations(written, "training").items():
        color = cv2.imread(str(written / f"training/color/{number:05d}.png"), cv2.IMREAD_UNCHANGED)
        mask = cv2.imread(str(written / f"training/mask/{number:05d}.png"), cv2.IMREAD_UNCHANGED)
        depth = cv2.imread(str(written / f"training/depth/{number:05d}.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
        assert (color.shape, mask.shape, depth.shape) == ((96, 96, 3), (96, 96), (96, 96, 3))
        depth_m = 5 * (256.0 * depth[..., 0] + depth[..., 1]) / 65535
        hand = mask > 1
        assert hand.any()
        near, far = label["xyz"][label["uv_vis"][:, 2] == 1][:, 2].min(), label["xyz"][:, 2].max()
        assert depth_m[hand].min() > near - 0.05
        assert depth_m[hand].max() < far + 0.05
        assert (depth_m[mask == 0] > 0).all()


def test_visible_joints_lie_on_their_part_of_the_mask():
    """RHD: a finger's three parts and joints go from tip to base; the thumb first, the palm last."""
    hits, total = 0, 0
    for number in range(12):
        scene = draw_scene(Recipe(seed=1, size_px=128, max_angle_deg=40), "training", number)
        for first_id, part in ((2, LEFT), (18, RIGHT)):
            for finger in range(5):
                for joint, segment in ((1, 0), (2, 0), (3, 1)):  # tip, DIP, PIP lie on or between these parts
                    u, v, visible = scene.uv_vis[part][1 + 4 * finger + joint - 1]
                    if not visible:
                        continue
                    window = scene.mask[max(0, int(v) - 3) : int(v) + 4, max(0, int(u) - 3) : int(u) + 4]
                    hits += bool((window == first_id + 3 * finger + segment).any())
                    total += 1
    assert total > 60
    assert hits / total > 0.9


def test_what_is_behind_an_occluder_is_neither_in_the_mask_nor_visible(monkeypatch):
    """One that covers the left half of the picture, against the same scenes without it."""
    size = 96
    green = np.zeros((size, size, 4), np.float32)
    green[:, : size // 2] = (0, 255, 0, 1)
    monkeypatch.setattr(synthetic, "random_occluder", lambda *_: green)
    hidden_joints = 0
    for number in range(6):
        scenes = []
        for chance in (0.0, 1.0):
            monkeypatch.setattr(synthetic, "OCCLUDER", chance)
            scenes.append(draw_scene(Recipe(seed=8, size_px=size), "training", number))
        bare, covered = scenes
        assert (covered.mask[:, : size // 2] == 0).all()
        right = (slice(None), slice(size // 2, None))
        np.testing.assert_array_equal(covered.mask[right], bare.mask[right])
        on_the_left = bare.uv_vis[:, 0] < size // 2
        np.testing.assert_array_equal(covered.uv_vis[:, 2], bare.uv_vis[:, 2] * ~on_the_left)
        hidden_joints += int((bare.uv_vis[:, 2] * on_the_left).sum())
    assert hidden_joints > 20


def test_gestures_are_drawn_at_their_share():
    """By how near a hand is to the nearest of the named poses."""
    model = HandModel.default("right")
    axes = joint_axes(model.rest_joints_m().double().numpy(), model.rest_tips_m().double().numpy(), "right")
    named = np.stack(list(named_poses(axes).values()))

    def distances_rad(share):
        rng = np.random.default_rng(6)
        poses = [sampled_hand("right", Recipe(gestures=share), rng).pose.double().numpy() for _ in range(200)]
        return np.sort(np.linalg.norm(np.stack(poses)[:, None] - named, axis=2).min(1))

    none, half, all_of_them = (distances_rad(share) for share in (0.0, 0.5, 1.0))
    limit_rad = 0.5 * (np.median(none) + np.median(all_of_them))
    few, some, most = ((found < limit_rad).mean() for found in (none, half, all_of_them))
    assert few < 0.3 < some < 0.7 < most


def test_what_a_hand_holds_hides_parts_of_it_and_changes_nothing_else(monkeypatch):
    """Against the same scenes with empty hands; where the thing is behind the fingers, they are seen."""
    monkeypatch.setattr(synthetic, "MOTION_BLUR", 0.0)
    in_front = behind = 0
    for number in range(6):
        empty, holding = (
            draw_scene(Recipe(seed=4, size_px=96, held=share), "training", number) for share in (1e-9, 1.0)
        )
        np.testing.assert_array_equal(empty.xyz_m, holding.xyz_m)
        np.testing.assert_array_equal(empty.depth_code, holding.depth_code)
        hidden = (holding.mask == 0) & (empty.mask > 0)
        np.testing.assert_array_equal(np.where(hidden, 0, empty.mask), holding.mask)
        assert (holding.uv_vis[:, 2] <= empty.uv_vis[:, 2]).all()
        other = np.abs(holding.image.astype(int) - empty.image).max(2) > 40
        in_front += int((other & hidden).sum())
        behind += int((other & (empty.mask == 0)).sum())
    assert in_front > 300
    assert behind > 300


@pytest.mark.parametrize("side", ["right", "left"])
def test_things_lie_in_the_palm_across_the_hand(side):
    model = HandModel.default(side)
    joints_m = model(torch.zeros(1, 45), torch.zeros(1, 10)).joints_m[0] + torch.tensor((0.0, 0.0, 0.5))
    things = [held_thing(side, joints_m, np.random.default_rng(seed)).verts_m for seed in range(40)]
    lows, highs = (torch.stack([getattr(points_m, end)(0).values for points_m in things]) for end in ("min", "max"))
    # The palm faces -y of the model, and the line of the knuckles is about its z axis.
    from_knuckle_m = 0.5 * (lows + highs) - joints_m[9]
    assert from_knuckle_m[:, 1].mean() < -0.015
    assert from_knuckle_m.norm(dim=1).median() < 0.08
    assert (highs - lows).mean(0).argmax() == 2
    assert held_thing(side, joints_m - torch.tensor((0.0, 0.0, 0.48)), np.random.default_rng(0)) is None


def test_a_scene_depends_on_seed_split_and_number_only(tmp_path):
    recipe = Recipe(seed=5, size_px=64)
    first, again = draw_scene(recipe, "training", 1), draw_scene(recipe, "training", 1)
    np.testing.assert_array_equal(first.image, again.image)
    others = [draw_scene(Recipe(6, 64), "training", 1), draw_scene(recipe, "evaluation", 1)]
    assert all((other.xyz_m != first.xyz_m).any() for other in [*others, draw_scene(recipe, "training", 2)])
    write_synthetic(tmp_path / "two", 16, 0, seed=5, size_px=64, workers=2)
    image = cv2.imread(str(tmp_path / "two/training/color/00001.png"))[..., ::-1]
    np.testing.assert_array_equal(image, first.image)


def test_a_tone_changes_the_skin_alone(monkeypatch):
    """Bias across tones is measured on scenes that are otherwise the same, sensor noise included."""
    monkeypatch.setattr(synthetic, "MOTION_BLUR", 0.0)
    recipe = Recipe(seed=3, size_px=96)
    light, dark = (draw_scene(replace(recipe, tone=tone), "training", 2) for tone in (0.0, 1.0))
    for name in ("mask", "depth_code", "xyz_m", "uv_vis"):
        np.testing.assert_array_equal(getattr(light, name), getattr(dark, name))
    person = light.mask > 0
    assert light.image[person].mean() > dark.image[person].mean() + 20
    away = cv2.dilate(person.astype(np.uint8), np.ones((9, 9))) == 0  # from the skin's blurred border
    assert away.any()
    np.testing.assert_array_equal(light.image[away], dark.image[away])
    with pytest.raises(ValueError, match=r"tone: expected None or a number from 0 to 1, got 1\.5"):
        Recipe(tone=1.5)


def test_labels_of_a_hand_that_is_not_in_the_picture_stay_true_and_outside():
    outside = 0
    for number in range(8):
        scene = draw_scene(Recipe(seed=2, size_px=64), "training", number)
        for ids, part in ((range(2, 18), LEFT), (range(18, 34), RIGHT)):
            if not np.isin(scene.mask, list(ids)).any() and not scene.uv_vis[part][:, 2].any():
                outside += (scene.uv_vis[part][:, 0] < 0).all()
                assert (scene.xyz_m[part][:, 2] > 0).all()
    assert outside >= 3


@pytest.mark.parametrize(("side", "fingers"), [("right", -1.0), ("left", 1.0)])
def test_hands_are_upright_unless_turned(side, fingers):
    rng = np.random.default_rng(0)
    palms = set()
    for _ in range(20):
        rotation = quaternion_to_matrix(random_orientation(side, 0.0, rng))
        up = rotation @ torch.tensor([fingers, 0, 0], dtype=torch.float64)
        torch.testing.assert_close(up, torch.tensor([0, -1.0, 0], dtype=torch.float64))
        palm = rotation @ torch.tensor([0, -1.0, 0], dtype=torch.float64)
        assert abs(float(palm[2])) == pytest.approx(1)
        palms.add(round(float(palm[2])))
    assert palms == {-1, 1}


def test_the_largest_angle_holds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rotation = quaternion_to_matrix(random_orientation("right", 30.0, rng))
        up = rotation @ torch.tensor([-1.0, 0, 0], dtype=torch.float64)
        assert float(up[1]) <= -np.cos(np.deg2rad(30)) + 1e-9


def test_photographs_as_backgrounds(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "PHOTOGRAPHED", 1.0)
    folder = tmp_path / "photos"
    folder.mkdir()
    cv2.imwrite(str(folder / "one.png"), np.full((50, 80, 3), (10, 200, 10), np.uint8))
    scene = draw_scene(Recipe(size_px=64, backgrounds=(folder / "one.png",)), "training", 0)
    empty = (scene.mask == 0) & (scene.image[..., 1] > 150) & (scene.image[..., 0] < 60)
    assert empty.mean() > 0.2


# --- Interrupted drawings -------------------------------------------------------------------------------------


def contents(root):
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """The set of `written`, whose fourth scene could not be drawn."""
    scene_of = draw_scene

    def failing(recipe, split, number):
        if number == 3:
            raise IndexError("no such finger")
        return scene_of(recipe, split, number)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw_scene", failing)
        message = "training scene 3 of seed 3 cannot be drawn: IndexError: no such finger"
        with pytest.raises(RuntimeError, match=message):
            write_synthetic(tmp_path / "set", 5, 2, seed=3, size_px=96, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == [".set.unfinished"]
    return tmp_path / "set"


def test_an_interrupted_drawing_goes_on_to_the_same_bytes(interrupted, written, monkeypatch):
    """Scenes of which a file is missing are drawn again: a process may have been killed while it wrote them."""
    unfinished = interrupted.with_name(".set.unfinished")
    next(unfinished.rglob("00001.npz")).unlink()
    next(unfinished.rglob("mask/00002.png")).unlink()
    drawn, reported, scene_of = [], [], draw_scene

    def noted(recipe, split, number):
        drawn.append((split, number))
        return scene_of(recipe, split, number)

    monkeypatch.setattr(synthetic, "draw_scene", noted)
    write_synthetic(interrupted, 5, 2, seed=3, size_px=96, workers=1, on_image=lambda: reported.append(len(drawn)))
    assert drawn == [*(("training", number) for number in (1, 2, 3, 4)), ("evaluation", 0), ("evaluation", 1)]
    assert reported == [0, 1, 2, 3, 4, 5, 6]  # that which was there, too
    assert contents(interrupted) == contents(written)
    assert [path.name for path in interrupted.parent.iterdir()] == ["set"]


def test_a_drawing_begun_with_other_arguments_is_kept(interrupted):
    before = contents(interrupted.parent)
    message = (
        r"\.set\.unfinished: holds an unfinished data set of other arguments \(n_training: 5 instead of 6, seed: 3 "
    )
    with pytest.raises(FileExistsError, match=message + r"instead of 4\); call with those to finish it, or remove"):
        write_synthetic(interrupted, 6, 2, seed=4, size_px=96, workers=1)
    assert contents(interrupted.parent) == before


def test_two_processes_do_not_draw_into_one_folder(interrupted):
    """A lock ends with its process, so that none is left by one that was killed."""
    before = contents(interrupted.parent)
    with (interrupted.with_name(".set.unfinished") / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"\.set\.unfinished: another process is writing this data set"):
            write_synthetic(interrupted, 5, 2, seed=3, size_px=96, workers=1)
    assert contents(interrupted.parent) == before


def test_a_set_that_another_process_completes_meanwhile_is_kept(tmp_path, monkeypatch):
    root, flock = tmp_path / "set", fcntl.flock

    def late(*arguments):
        root.mkdir()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(FileExistsError, match="set: exists already"):
        write_synthetic(root, 1, 0, workers=1)
    assert list(root.iterdir()) == []


def test_bad_arguments(tmp_path, written):
    with pytest.raises(FileExistsError, match="exists already"):
        write_synthetic(written, 1, 1)
    with pytest.raises(ValueError, match="n_training"):
        write_synthetic(tmp_path / "a", 0, 0)
    with pytest.raises(ValueError, match="size_px"):
        write_synthetic(tmp_path / "a", 1, 0, size_px=8)
    with pytest.raises(ValueError, match="max_angle_deg"):
        write_synthetic(tmp_path / "a", 1, 0, max_angle_deg=200)
    for share in ("gestures", "held"):
        with pytest.raises(ValueError, match=f"{share}: expected a share from 0 to 1, got 1.5"):
            write_synthetic(tmp_path / "a", 1, 0, **{share: 1.5})
    with pytest.raises(ValueError, match="no image"):
        write_synthetic(tmp_path / "a", 1, 0, backgrounds=tmp_path)
    assert not (tmp_path / "a").exists()


def test_a_hand_that_reaches_for_the_camera_does_not_reach_it():
    """Of 24,000 scenes one put the nearest finger behind the camera, and all that had been drawn was lost."""
    model = HandModel.default()
    pose, betas = torch.zeros(45), torch.zeros(10)
    quat = torch.tensor((0.5**0.5, 0.0, 0.5**0.5, 0.0))  # fingers (-x) towards the camera (-z) or away from it
    for sign in (1, -1):
        hand = PosedHand(pose, betas, quat * torch.tensor((1.0, 1.0, sign, 1.0)))
        view = place(model, hand, (64, 64), np.random.default_rng(0), pinhole=True, span=0.9)
        assert view.verts_m[:, 2].min() > 0.079
        assert view.joints2d_px.isfinite().all()
