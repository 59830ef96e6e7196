"""STB against files written by hand: joints by name, three cameras, splits, and broken files."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
from dataset_files import STD, pixels, rows, write_picture, write_stb
from scipy.io import loadmat, savemat
from scipy.spatial.transform import Rotation

from dhpe_fast.data import DatasetError, MissingDataError, open_dataset
from dhpe_fast.data.stb import SEQUENCES, read_stb, sk_rotation

PALM = ["palm", *STD[1:]]
TEST = ("B1Counting", "B1Random")


@pytest.fixture(scope="module")
def stb(tmp_path_factory):
    return write_stb(tmp_path_factory.mktemp("stb"), TEST)


@pytest.fixture
def broken(stb, tmp_path):
    root = tmp_path / "stb"
    shutil.copytree(stb.root, root)
    return root


def test_left_camera(stb):
    data = read_stb(stb.root, "test", camera="bb_left")
    assert (data.name, data.split, len(data), data.image_size) == ("stb", "test", 6, (480, 640))
    assert [sample.name for sample in data][2:4] == ["B1Counting/BB_left_2", "B1Random/BB_left_0"]
    for sample, hand in zip(data, stb.hands, strict=True):
        expected = rows(hand, PALM)
        np.testing.assert_allclose(sample.joints_m, expected, atol=1e-9)
        # The calibration counts pixel centres at integers, the package at half numbers.
        places = pixels(expected, 822.79041, 822.79041, 318.47345 + 0.5, 250.31296 + 0.5)
        np.testing.assert_allclose(sample.joints2d_px, places, atol=1e-6)
        assert (sample.side, sample.joint0, sample.mask_file) == ("left", "palm", None)
        assert sample.visible.all()
        assert sample.read_image().shape == (480, 640, 3)


def test_the_right_camera_is_a_baseline_to_the_right(stb):
    left, right = (read_stb(stb.root, "test", camera=camera)[1] for camera in ("bb_left", "bb_right"))
    np.testing.assert_allclose(right.joints_m, left.joints_m - (0.120054, 0, 0), atol=1e-12)
    disparity_px = 822.79041 * 0.120054 / left.joints_m[:, 2]
    moved = left.joints2d_px - np.stack([disparity_px, np.zeros(21)], axis=1)
    np.testing.assert_allclose(right.joints2d_px, moved, atol=1e-9)
    assert right.image_file.name == "BB_right_1.png"


def test_both_cameras_are_what_the_paper_counts(stb):
    names = [sample.name for sample in read_stb(stb.root, "test")]
    assert len(names) == 12
    assert names[2:4] == ["B1Counting/BB_left_2", "B1Counting/BB_right_0"]
    assert len(SEQUENCES["train"]) * 1500 * 2 == 30_000
    assert len(SEQUENCES["test"]) * 1500 * 2 == 6_000
    assert not set(SEQUENCES["train"]) & set(SEQUENCES["test"])


def test_realsense_labels_move_from_the_depth_to_the_colour_camera(stb):
    sample = read_stb(stb.root, "test", camera="sk")[4]
    turn = Rotation.from_rotvec((0.00531, -0.01196, 0.00301)).as_matrix()
    np.testing.assert_allclose(sk_rotation(), turn, atol=1e-12)
    for found, depth_frame in zip(sample.joints_m, rows(stb.hands[4], PALM), strict=True):
        # The calibration maps colour to depth: depth = R colour + t.
        np.testing.assert_allclose(turn @ found + np.array((-24.0381, -0.4563, -1.2326)) / 1000, depth_frame, atol=1e-9)
    expected = pixels(sample.joints_m, 607.92271, 607.88192, 315.28337, 236.92484)
    np.testing.assert_allclose(sample.joints2d_px, expected, atol=1e-6)
    assert sample.image_file.name == "SK_color_1.png"


def test_copies_without_a_folder_of_images(tmp_path):
    write_stb(tmp_path, ["B3Random"], images_level=False)
    data = open_dataset("stb", tmp_path, "train", camera="bb_left", sequences=["B3Random"])
    assert [sample.image_file.parent for sample in data] == [tmp_path / "B3Random"] * 3


def test_missing_parts_are_named(broken, tmp_path):
    with pytest.raises(MissingDataError, match=r"nowhere: no such folder, expected the folder of STB"):
        read_stb(tmp_path / "nowhere", "test")
    with pytest.raises(MissingDataError, match=r"B2Counting_BB\.mat: no such file"):
        read_stb(broken, "train")
    (broken / "images" / "B1Random" / "BB_right_1.png").unlink()
    with pytest.raises(MissingDataError, match=r"B1Random: holds .* missing: BB_right_1\.png"):
        read_stb(broken, "test")
    assert len(read_stb(broken, "test", camera="bb_left")) == 6
    shutil.rmtree(broken / "images" / "B1Random")
    with pytest.raises(MissingDataError, match=r"B1Random: no such folder, expected the images of sequence B1Random"):
        read_stb(broken, "test")
    shutil.rmtree(broken / "labels")
    with pytest.raises(MissingDataError, match=r"labels: no such folder, expected the labels of STB"):
        read_stb(broken, "test")


def test_an_image_too_many_is_named(broken):
    write_picture(broken / "images" / "B1Counting" / "BB_left_3.png", np.zeros((480, 640, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"BB_left_3\.png: is an image without annotation, expected 3"):
        read_stb(broken, "test")


@pytest.mark.parametrize("keep", [0, 60, 0.5, 0.95])
def test_a_truncated_label_file_is_named(broken, keep):
    file = broken / "labels" / "B1Counting_BB.mat"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else keep])
    with pytest.raises(DatasetError, match=r"B1Counting_BB\.mat: is no whole MATLAB file"):
        read_stb(broken, "test")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda mm: {"hand": mm}, r"has no variable handPara, expected the labels of STB"),
        (lambda mm: {"handPara": mm[:, :20]}, r"array \(3, 20, 3\), expected handPara \(3, 21, N\)"),
        (lambda mm: {"handPara": mm.transpose(1, 0, 2)}, r"array \(21, 3, 3\), expected handPara"),
        (lambda mm: {"handPara": mm[:, :, :2]}, r"BB_left_2\.png: is an image without annotation, expected 2"),
        (lambda mm: {"handPara": mm / 1000}, r"fingers are 2\.\d+e-05 m long .* in millimetres"),
        (lambda mm: {"handPara": mm * [[[1]], [[1]], [[-1]]]}, r"B1Counting/BB_left_0.png, .* in front of the camera"),
        (
            lambda mm: {"handPara": np.add(mm, [[[5000]], [[0]], [[0]]])},
            r"only 0 % of the joints project into the 640 x 480",
        ),
    ],
    ids=["variable", "joints", "axes", "count", "metres", "behind", "elsewhere"],
)
def test_wrong_labels_are_named(broken, edit, message):
    file = broken / "labels" / "B1Counting_BB.mat"
    savemat(file, edit(loadmat(file)["handPara"]))
    with pytest.raises(DatasetError, match=message):
        read_stb(broken, "test")


def test_wrong_arguments_are_named(stb):
    with pytest.raises(ValueError, match="camera: expected one of 'bb_left'"):
        read_stb(stb.root, "test", camera="left")
    with pytest.raises(ValueError, match="sequences: expected at least one"):
        read_stb(stb.root, "test", sequences=[])


def test_without_scipy_the_cure_is_named(stb, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"needs SciPy: pip install 'dhpe-fast\[train\]'"):
        read_stb(stb.root, "test")
