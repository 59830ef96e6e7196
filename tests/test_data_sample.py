"""A sample reads its pictures when asked, and says by name what is wrong with them; joint 0 by hand."""

from __future__ import annotations

import dataclasses
import re

import cv2
import numpy as np
import pytest
import torch

from dhpe_fast.data import Dataset, DatasetError, HandBatch, Labels, MissingDataError, Sample
from dhpe_fast.data.joint0 import WRIST_OF_PALM, palm_of_wrist, palm_visibility, with_joint0
from dhpe_fast.hand import Pinhole


def sample(folder, **changed) -> Sample:
    fields = {
        "name": "train/00003",
        "image_file": folder / "image.png",
        "side": "left",
        "joints_m": np.full((21, 3), 0.5),
        "joints2d_px": np.zeros((21, 2)),
        "visible": np.ones(21, bool),
        "camera": Pinhole(300, 300, 16, 12),
        "joint0": "wrist",
    }
    return Sample(**{**fields, **changed})


def write(file, image) -> None:
    assert cv2.imwrite(str(file), image)


def test_images_come_as_rgb(tmp_path):
    image = np.zeros((24, 32, 3), np.uint8)
    image[2, 5] = (10, 20, 200)  # BGR, as OpenCV writes
    write(tmp_path / "image.png", image)
    read = sample(tmp_path).read_image()
    assert (read.shape, read.dtype) == ((24, 32, 3), np.uint8)
    assert read[2, 5].tolist() == [200, 20, 10]


def test_grey_values_from_low_to_high_are_the_hand(tmp_path):
    write(tmp_path / "mask.png", np.uint8([[0, 1, 2, 17, 18, 33]]))
    mask = sample(tmp_path, mask_file=tmp_path / "mask.png", mask_ids=(2, 17)).read_mask()
    assert mask.tolist() == [[False, False, True, True, False, False]]
    assert sample(tmp_path).read_mask() is None


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_other_software_writes_after_a_whole_picture_is_ignored(tmp_path, suffix):
    picture = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    cv2.imwrite(str(tmp_path / f"image{suffix}"), picture)
    one = sample(tmp_path, image_file=tmp_path / f"image{suffix}")
    before = one.read_image()
    one.image_file.write_bytes(one.image_file.read_bytes() + bytes(16))
    np.testing.assert_array_equal(one.read_image(), before)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_a_file_cut_off_is_named(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    file = tmp_path / f"image.{suffix}"
    write(file, noise)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(DatasetError, match=rf"{re.escape(str(file))}: is .* train/00003"):
        sample(tmp_path, image_file=file).read_image()


def test_wrong_image_files_are_named(tmp_path):
    with pytest.raises(MissingDataError, match=r"image\.png: no such file; it belongs to sample train/00003"):
        sample(tmp_path).read_image()
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DatasetError, match=r"text\.png: is no image"):
        sample(tmp_path, image_file=tmp_path / "text.png").read_image()
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        sample(tmp_path, image_file=tmp_path).read_image()
    write(tmp_path / "image.png", np.zeros((24, 32, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"is 32 x 24 pixels \(width x height\), expected 320 x 240"):
        sample(tmp_path, image_size=(240, 320)).read_image()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"joints_m": np.zeros((20, 3))}, r"joints_m of train/00003: expected \(21, 3\), got \(20, 3\)"),
        ({"visible": np.zeros(3)}, "visible of"),
        ({"side": "both"}, "side of .* got 'both'"),
        ({"joint0": "elbow"}, "joint0 of .* got 'elbow'"),
    ],
)
def test_wrong_fields_are_named(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        sample(tmp_path, **changed)


def labels(n: int) -> Labels:
    return Labels(
        names=[f"s{i}" for i in range(n)],
        image_files=[f"{i}.png" for i in range(n)],
        sides=["right"] * n,
        joints_m=np.arange(n * 63.0).reshape(n, 21, 3),
        joints2d_px=np.zeros((n, 21, 2)),
        visible=np.ones((n, 21), bool),
        cameras=np.tile((500.0, 510.0, 32.0, 24.0), (n, 1)),
        joint0="palm",
    )


def test_a_dataset_is_a_sequence_of_samples():
    data = Dataset("toy", "train", labels(5))
    assert len(data) == 5
    assert [s.name for s in data] == ["s0", "s1", "s2", "s3", "s4"]
    assert data[-1].joints_m[0, 0] == 4 * 63
    assert data[1].camera == Pinhole(500, 510, 32, 24)
    assert [s.name for s in data[1:4:2]] == ["s1", "s3"]
    assert [s.name for s in data.subset([4, 0])] == ["s4", "s0"]
    assert repr(data) == "Dataset('toy', 'train', 5 samples)"
    with pytest.raises(IndexError, match="index 5 of 5 samples of toy"):
        data[5]


def test_samples_do_not_share_memory_with_the_dataset():
    data = Dataset("toy", "train", labels(1))
    data[0].joints_m[:] = -1
    data[0].visible[:] = False
    assert data[0].joints_m[0, 1] == 1
    assert data[0].visible.all()


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"columns of different lengths.*'sides': 3"):
        dataclasses.replace(labels(2), sides=["left"] * 3)


def test_palm_is_halfway_to_the_middle_mcp():
    joints = np.zeros((21, 3))
    joints[0], joints[9] = (0, 0, 0.6), (0.02, -0.1, 0.5)
    np.testing.assert_allclose(palm_of_wrist(joints), (0.01, -0.05, 0.55))
    converted = with_joint0(joints, "wrist", "palm")
    np.testing.assert_allclose(converted[0], (0.01, -0.05, 0.55))
    np.testing.assert_array_equal(converted[1:], joints[1:])
    assert joints[0, 2] == 0.6, "the caller's array stays"


@pytest.mark.parametrize(
    ("rule", "wrist_x"),
    [
        ("ring", 0.04 + 2 * (0.01 - 0.04)),
        ("middle", 0.03 + 2.2 * (0.01 - 0.03)),
        ("mcps", np.mean([mcp + 2.25 * (0.01 - mcp) for mcp in (0.02, 0.03, 0.04, 0.05)])),
        ("halfway", 0.03 + 2 * (0.01 - 0.03)),
    ],
)
def test_wrists_of_a_palm_by_hand(rule, wrist_x):
    joints = np.zeros((21, 3))
    joints[0, 0], joints[[5, 9, 13, 17], 0] = 0.01, (0.02, 0.03, 0.04, 0.05)
    assert with_joint0(joints, "palm", "wrist", rule)[0, 0] == pytest.approx(wrist_x)
    assert set(WRIST_OF_PALM) == {"ring", "middle", "mcps", "halfway"}


def test_halfway_is_the_inverse_of_the_palm():
    joints = np.random.default_rng(0).normal(size=(4, 21, 3))
    there = with_joint0(joints, "wrist", "palm")
    np.testing.assert_allclose(with_joint0(there, "palm", "wrist", "halfway"), joints, atol=1e-12)


def test_the_palm_is_visible_with_either_end():
    visible = np.zeros((4, 21), bool)
    visible[1, 0] = visible[2, 9] = visible[3, 12] = True
    assert palm_visibility(visible)[:, 0].tolist() == [False, True, True, False]


def test_unknown_joints_are_refused():
    with pytest.raises(ValueError, match="wanted: expected"):
        with_joint0(np.zeros((21, 3)), "palm", "root")
    with pytest.raises(ValueError, match=r"wrist_rule: expected one of ring, .* got 'index'"):
        with_joint0(np.zeros((21, 3)), "palm", "wrist", "index")


def batch(b: int = 2, **changed) -> HandBatch:
    zeros = torch.zeros
    fields = {
        "images": zeros(b, 3, 8, 8, dtype=torch.uint8),
        "masks": zeros(b, 8, 8, dtype=torch.uint8),
        "has_mask": zeros(b, dtype=torch.bool),
        "joints_crop": zeros(b, 21, 3),
        "valid": zeros(b, 21, dtype=torch.bool),
        "visible": zeros(b, 21, dtype=torch.bool),
        "index": torch.arange(b),
        "joints_m": zeros(b, 21, 3),
        "camera": zeros(b, 4),
        "center_px": zeros(b, 2),
        "size_px": zeros(b),
        "angle": zeros(b),
        "root_depth_m": zeros(b),
        "mirrored": zeros(b, dtype=torch.bool),
        "names": tuple("ab"[:b]),
        "joint0": "palm",
    }
    return HandBatch(**{**fields, **changed})


def test_batch_units():
    joints_crop = torch.tensor([-1.0, 0.0, 0.5]).expand(2, 21, 3)
    hands = batch(joints_crop=joints_crop)
    assert len(hands) == 2
    assert hands.joints_norm[0, 0].tolist() == [0, 0.5, 0.75]
    assert hands.joints2d_px[0, 0].tolist() == [0, 4]


def test_batch_moves_as_a_whole():
    moved = batch().to("meta")
    devices = {v.device.type for v in vars(moved).values() if isinstance(v, torch.Tensor)}
    assert devices == {"meta"}
    assert moved.names == ("a", "b")


def test_batch_rows_must_agree():
    with pytest.raises(ValueError, match=r"HandBatch.angle: expected 2 rows, got \(3,\)"):
        batch(angle=torch.zeros(3))
