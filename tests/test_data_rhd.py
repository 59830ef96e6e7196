"""RHD against files written by hand: joints by name, hand and mask, and what is wrong with broken files."""

from __future__ import annotations

import pickle
import re
import shutil

import numpy as np
import pytest
from dataset_files import STD, hand_at, pixels, python2_pickle, rhd_entry, rows, write_picture, write_rhd

from dhpe_fast.data import DatasetError, MissingDataError
from dhpe_fast.data.rhd import read_rhd
from dhpe_fast.data.synthetic import write_synthetic


@pytest.fixture(scope="module")
def rhd(tmp_path_factory):
    return write_rhd(tmp_path_factory.mktemp("rhd"), 4)


@pytest.fixture
def broken(rhd, tmp_path):
    """A copy to break, and its annotation file."""
    root = tmp_path / "rhd"
    shutil.copytree(rhd.root, root)
    return root, root / "training" / "anno_training.pickle"


def test_joints_of_the_better_seen_hand_in_std_order(rhd):
    data = read_rhd(rhd.root, "train")
    assert (data.name, data.split, len(data), data.image_size) == ("rhd", "train", 4, (320, 320))
    for i, (sample, (left, right)) in enumerate(zip(data, rhd.hands, strict=True)):
        hand = left if i % 2 == 0 else right
        assert sample.side == ("left" if i % 2 == 0 else "right")
        np.testing.assert_allclose(sample.joints_m, rows(hand, STD), atol=1e-9)
        np.testing.assert_allclose(sample.joints2d_px, pixels(rows(hand, STD), 280, 280, 160, 160), atol=1e-6)
        assert sample.visible.all()
        assert (sample.joint0, sample.name) == ("wrist", f"training/{i:05d}")
        assert (sample.camera.fx, sample.camera.cx) == (280, 160)
        assert sample.read_image().shape == (320, 320, 3)


def test_a_hand_can_be_chosen(rhd):
    data = read_rhd(rhd.root, "training", hand="right")
    assert [sample.side for sample in data] == ["right"] * 4
    # Of the right hands of even images wrist, thumb tip and the joint next to it are hidden: 0, 4 and 3 in STD order.
    assert np.flatnonzero(~data[0].visible).tolist() == [0, 3, 4]
    assert data[1].visible.all()
    np.testing.assert_allclose(data[0].joints_m, rows(rhd.hands[0][1], STD), atol=1e-9)


def test_the_mask_decides_if_asked(rhd):
    sides = [sample.side for sample in read_rhd(rhd.root, "train", hand="dominant_by_mask")]
    assert sides == ["right", "left", "right", "left"]


def test_the_mask_is_that_of_the_hand(rhd):
    right = read_rhd(rhd.root, "train", hand="right")
    assert right[0].read_mask()[:, :10].all()
    assert not right[0].read_mask()[:, 10:].any(), "a person is no hand"
    assert not right[1].read_mask().any(), "the left hand is not the right one"
    assert read_rhd(rhd.root, "train", hand="left")[1].read_mask()[:, :10].all()


def test_ties_go_to_the_right_hand(tmp_path):
    write_rhd(tmp_path, 1)
    entry = rhd_entry(hand_at(0, (0, 0, 0.5)), hand_at(1, (0, 0, 0.5)), np.ones(42))
    (tmp_path / "training" / "anno_training.pickle").write_bytes(python2_pickle({0: entry}))
    assert read_rhd(tmp_path, "train")[0].side == "right"


def test_visible_is_exactly_one(tmp_path):
    write_rhd(tmp_path, 1)
    visible = np.ones(42)
    visible[21:24] = (0, 0.5, 2)
    entry = rhd_entry(hand_at(0, (0, 0, 0.5)), hand_at(1, (0, 0, 0.5)), visible)
    (tmp_path / "training" / "anno_training.pickle").write_bytes(python2_pickle({0: entry}))
    assert np.flatnonzero(~read_rhd(tmp_path, "train", hand="right")[0].visible).tolist() == [0, 3, 4]


def test_pickles_of_python_3_and_the_evaluation_split(tmp_path):
    written = write_rhd(tmp_path, 2, "evaluation", python2=False)
    data = read_rhd(tmp_path, "test", check="all")
    np.testing.assert_allclose(data[1].joints_m, rows(written.hands[1][1], STD), atol=1e-9)
    assert data.split == "test"


def test_integer_centers_move_pixels_by_half(rhd):
    sample, moved = read_rhd(rhd.root, "train")[0], read_rhd(rhd.root, "train", integer_centers=True)[0]
    np.testing.assert_allclose(moved.joints2d_px - sample.joints2d_px, 0.5)
    assert moved.camera.cx - sample.camera.cx == 0.5


def test_missing_folders_and_files_are_named(broken, tmp_path):
    root, file = broken
    with pytest.raises(MissingDataError, match=r"nowhere.training: no such folder, expected the train split of RHD"):
        read_rhd(tmp_path / "nowhere", "train")
    with pytest.raises(MissingDataError, match=r"evaluation: no such folder.*rhd holds training"):
        read_rhd(root, "test")
    (root / "training" / "mask" / "00002.png").unlink()
    with pytest.raises(MissingDataError, match=r"mask: holds 3 masks, expected 4, .*missing: 00002\.png"):
        read_rhd(root, "train")
    (root / "training" / "color" / "00001.png").unlink()
    with pytest.raises(MissingDataError, match=r"color: holds 3 images, expected 4, .*missing: 00001\.png"):
        read_rhd(root, "train")
    file.unlink()
    with pytest.raises(MissingDataError, match=r"anno_training\.pickle: no such file"):
        read_rhd(root, "train")


def test_images_without_annotation_are_named(broken):
    root, _ = broken
    write_picture(root / "training" / "color" / "00009.png", np.zeros((320, 320, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"holds 5 images, expected 4, .*without annotation: 00009\.png"):
        read_rhd(root, "train")


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_pickle_is_named(broken, keep):
    root, file = broken
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))] if 0 < keep < 1 else data[:keep])
    with pytest.raises(DatasetError, match=r"anno_training\.pickle: is no whole pickle"):
        read_rhd(root, "train")


class Attack:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran code')",))


def test_a_pickle_that_would_run_code_is_refused(broken):
    root, file = broken
    file.write_bytes(pickle.dumps({0: Attack()}))
    with pytest.raises(DatasetError, match=r"refused, nothing was run: the pickle asks for builtins\.exec"):
        read_rhd(root, "train")


def change(file, edit) -> None:
    """Rewrites the annotations; the written pickle holds only arrays."""
    entries = pickle.loads(file.read_bytes(), encoding="latin1")
    replaced = edit(entries)
    file.write_bytes(python2_pickle(entries if replaced is None else replaced))


def scale(key, factor, entries) -> None:
    for entry in entries:
        entry[key] = entry[key] * factor


def move_labels(entries) -> None:
    entries[3]["uv_vis"] = entries[3]["uv_vis"] + (3, 4, 0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda e: [1, 2], r"holds a list of 2, expected the annotations of RHD"),
        (lambda e: {"a": e[0]}, r"has the key 'a', expected the numbers of images"),
        (
            lambda e: {**e, 2: {"xyz": e[2]["xyz"], "K": e[2]["K"]}},
            r"entry 2: has keys \['K', 'xyz'\], expected arrays",
        ),
        (lambda e: e[1].update(xyz=e[1]["xyz"][:21]), r"entry 1: xyz is an array \(21, 3\), expected \(42, 3\)"),
        (lambda e: e[1].update(K=np.ones((3, 3))), r"entry 1: K is \[\[1.0, 1.0, 1.0\].* expected \[\[fx, 0, cx\]"),
        (move_labels, r"labels of 1 of 4 entries.* training/00003, 5 px away"),
        (lambda e: scale("xyz", 1000, e.values()), r"the bones .* if the labels are in metres.* another unit"),
        (lambda e: scale("xyz", (1, 1, -1), [e[0]]), r"first training/00000, .* in front .*expected z > 0"),
        (lambda e: scale("xyz", np.nan, [e[2]]), r"first training/00002, have joints which are not finite"),
    ],
    ids=["list", "key", "field", "shape", "K", "reprojection", "millimetres", "behind", "nan"],
)
def test_wrong_annotations_are_named(broken, edit, message):
    root, file = broken
    change(file, edit)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(file))}: .*{message}"):
        read_rhd(root, "train", check="all")


def test_checks_can_be_left_out(broken):
    root, file = broken
    change(file, move_labels)
    assert len(read_rhd(root, "train", check="none")) == 4


def test_resized_images_are_found(broken):
    root, _ = broken
    for i in range(4):
        write_picture(root / "training" / "color" / f"{i:05d}.png", np.zeros((256, 256, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"principal points about \(160\.0, 160\.0\).* 256 x 256 .* resized"):
        read_rhd(root, "train")
    write_picture(root / "training" / "color" / "00000.png", np.zeros((320, 320, 3), np.uint8))
    data = read_rhd(root, "train")
    with pytest.raises(DatasetError, match=r"00002\.png: is 256 x 256 .* expected 320 x 320.* training/00002"):
        data[2].read_image()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "split: expected 'train' or 'test'"),
        ({"split": "train", "hand": "both"}, "hand: expected one of 'dominant'"),
        ({"split": "train", "check": "some"}, "check: expected one of 'sample'"),
    ],
)
def test_wrong_arguments_are_named(rhd, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_rhd(rhd.root, **arguments)


def test_synthetic_data_is_read_alike(tmp_path):
    """Rendered hands in this layout: labels project, and the mask covers the joints that are seen."""
    write_synthetic(tmp_path / "set", 3, 0, seed=5, size_px=128, workers=1)
    for sample in read_rhd(tmp_path / "set", "train", check="all"):
        rows, columns = np.floor(sample.joints2d_px[sample.visible]).astype(int).T[::-1]
        assert sample.read_mask()[rows, columns].mean() > 0.8
