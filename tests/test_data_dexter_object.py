"""Dexter+Object against files written by hand: tips, missed tips, boxes, and broken files."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from dataset_files import FINGERS, write_dexter_object, write_picture

from dhpe_fast.data import DatasetError, MissingDataError
from dhpe_fast.data.dexter_object import read_dexter_object
from dhpe_fast.hand import CropBox

TIPS = [4, 8, 12, 16, 20]
TURN = np.array([[0.9999, 0.0034, 0.0161], [-0.0033, 1, -0.0079], [-0.0162, 0.0079, 0.9998]])
SHIFT_M = np.array((19.0473, -1.8514, -4.7501)) / 1000


@pytest.fixture(scope="module")
def dexter(tmp_path_factory):
    return write_dexter_object(tmp_path_factory.mktemp("dexter"))


@pytest.fixture
def broken(dexter, tmp_path):
    root = tmp_path / "dexter"
    shutil.copytree(dexter.root, root)
    return root


def labels_file(root, sequence="Grasp1"):
    return root / "data" / sequence / "annotations" / f"{sequence}3D.txt"


def test_tips_in_the_colour_camera(dexter):
    data = read_dexter_object(dexter.root)
    assert (data.name, data.split, len(data), data.image_size) == ("dexter_object", "test", 18, (480, 640))
    sample, hand = data[3], dexter.hands[3]
    assert (sample.name, sample.side) == ("Grasp2/color/Color_0001.bmp", "left")
    for index, finger in zip(TIPS, FINGERS, strict=True):
        expected = TURN @ hand[finger, 3] + SHIFT_M
        np.testing.assert_allclose(sample.joints_m[index], expected, atol=1e-6)
        place = (587.45209 * expected[0] / expected[2] + 325.5, 600.67456 * expected[1] / expected[2] + 249.5)
        np.testing.assert_allclose(sample.joints2d_px[index], place, atol=1e-2)
    others = sorted(set(range(21)) - set(TIPS))
    assert np.isnan(sample.joints_m[others]).all()
    assert sample.annotated.tolist() == sample.visible.tolist() == [i in TIPS for i in range(21)]
    assert sample.read_image().shape == (480, 640, 3)


def test_missed_tips_are_not_annotated(dexter):
    data = read_dexter_object(dexter.root)
    assert np.flatnonzero(data[1].annotated).tolist() == [8, 12, 16, 20]
    assert not data[2].annotated.any()


def test_squares_hold_the_tips_and_a_palm(dexter):
    data = read_dexter_object(dexter.root)
    for sample in data:
        tips = sample.joints2d_px[sample.annotated]
        if len(tips):
            assert np.abs(tips - sample.crop.center_px).max() < sample.crop.size_px / 2
            depth_m = np.median(sample.joints_m[sample.annotated, 2])
            assert sample.crop.size_px >= 0.26 * 587.45209 / depth_m - 1e-6
            palm = np.array((tips.min(0) + tips.max(0)) / 2)
            np.testing.assert_allclose(sample.crop.center_px, palm)
    assert data[2].crop == data[1].crop, "no tip: the square of the nearest image that has one"


def test_given_boxes(dexter, tmp_path):
    file = tmp_path / "boxes.csv"
    names = [sample.name for sample in read_dexter_object(dexter.root)]
    lines = [f"{name},10.0,20.0,100.0,{60 + i}" for i, name in enumerate(names)]
    file.write_text("\n".join(["img_name,x,y,w,h", *lines]))
    assert read_dexter_object(dexter.root, boxes=file, box_margin=1.2)[4].crop == CropBox((60, 52), 120)
    file.write_text("\n".join(["img_name,x,y,w,h", *lines[:-2]]))
    with pytest.raises(DatasetError, match=r"boxes\.csv: has no box for 2 of 3 images, first Rotate/color/Color_0002"):
        read_dexter_object(dexter.root, boxes=file)
    file.write_text("\n".join(["img_name,x,y,w,h", "a,1,2,3,b"]))
    with pytest.raises(DatasetError, match=r"boxes\.csv: line 2: .*'b'"):
        read_dexter_object(dexter.root, boxes=file)
    file.write_text("name,x,y\n")
    with pytest.raises(DatasetError, match=r"has the columns \['name', 'x', 'y'\], expected boxes"):
        read_dexter_object(dexter.root, boxes=file)
    with pytest.raises(MissingDataError, match=r"none\.csv: no such file, expected boxes"):
        read_dexter_object(dexter.root, boxes=tmp_path / "none.csv")


def test_the_data_folder_itself_and_cleaned_labels(broken):
    file = labels_file(broken, "Pinch")
    file.rename(file.with_name("my_Pinch3D.txt"))
    data = read_dexter_object(broken / "data", annotations="my_{sequence}3D.txt", sequences=["Pinch"])
    assert len(data) == 3


def test_missing_parts_are_named(broken, tmp_path):
    with pytest.raises(MissingDataError, match="nowhere: no such folder, expected the folder of Dexter"):
        read_dexter_object(tmp_path / "nowhere")
    labels_file(broken, "Rotate").unlink()
    with pytest.raises(MissingDataError, match=r"Rotate3D\.txt: no such file, expected a line for each image"):
        read_dexter_object(broken)
    shutil.rmtree(broken / "data" / "Rigid")
    with pytest.raises(MissingDataError, match="Rigid: no such folder, expected the sequence Rigid"):
        read_dexter_object(broken)


def test_numbers_of_images_and_lines_must_agree(broken):
    write_picture(broken / "data" / "Pinch" / "color" / "Color_0004.bmp", np.zeros((480, 640, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"color: holds 4 images, expected 3, one for each line of .*Pinch3D\.txt"):
        read_dexter_object(broken)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,300;1,2", r"line 2 is '1,2,300;1,2', expected a line for each image"),
        ("", r"line 2 is ''"),
        ("1,2,300;1,2,300;1,2,x;1,2,300;1,2,300", "line 2 is"),
    ],
)
def test_a_broken_line_is_named(broken, line, message):
    file = labels_file(broken)
    lines = file.read_text().split("\n")
    file.write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(DatasetError, match=rf"Grasp13D\.txt: {message}"):
        read_dexter_object(broken)


@pytest.mark.parametrize(("factor", "message"), [(0.001, "no tip is between"), (10.0, "no tip is between")])
def test_labels_in_another_unit_are_found(broken, factor, message):
    file = labels_file(broken)
    rows = [
        [[float(n) * factor for n in f.split(",")] for f in line.split(";")]
        for line in file.read_text().split("\n")[:-1]
    ]
    file.write_text("\n".join(";".join(",".join(map(str, f)) for f in row) for row in rows))
    with pytest.raises(DatasetError, match=message):
        read_dexter_object(broken)


def test_tips_far_from_each_other_are_found(broken):
    line = ";".join(f"{x},{y},700" for x, y in ((-400, 0), (400, 0), (0, 400), (0, -400), (0, 0)))
    labels_file(broken).write_text("\n".join([line] * 3))
    with pytest.raises(DatasetError, match=r"tips are .* m from their middle if the labels are in millimetres"):
        read_dexter_object(broken)


def test_there_is_no_training_split(dexter):
    with pytest.raises(ValueError, match="only test sequences, got 'train'"):
        read_dexter_object(dexter.root, "train")
    with pytest.raises(ValueError, match="sequences: expected one of 'Grasp1'"):
        read_dexter_object(dexter.root, sequences=["Grasp3"])
