"""FreiHAND against files written by hand: versions, masks, meshes, and broken files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from dataset_files import STD, pixels, rows, write_freihand, write_picture

from dhpe_fast.data import DatasetError, MissingDataError, open_dataset
from dhpe_fast.data.freihand import read_freihand


@pytest.fixture(scope="module")
def freihand(tmp_path_factory):
    return write_freihand(tmp_path_factory.mktemp("freihand"))


@pytest.fixture
def broken(freihand, tmp_path):
    root = tmp_path / "freihand"
    shutil.copytree(freihand.root, root)
    return root


def edit_json(file, edit) -> None:
    file.write_text(json.dumps(edit(json.loads(file.read_text()))))


def test_training_labels(freihand):
    data = read_freihand(freihand.root, "train")
    assert (data.name, data.split, len(data), data.image_size) == ("freihand", "train", 3, (224, 224))
    for i, (sample, hand) in enumerate(zip(data, freihand.hands, strict=True)):
        np.testing.assert_allclose(sample.joints_m, rows(hand, STD), atol=1e-9)
        expected = pixels(rows(hand, STD), 300 + i, 301 + i, 112, 112)
        np.testing.assert_allclose(sample.joints2d_px, expected, atol=1e-6)
        assert (sample.side, sample.joint0) == ("right", "wrist")
        assert sample.verts_m is None
        assert sample.visible.all()


@pytest.mark.parametrize(("version", "block"), [("gs", 0), ("hom", 1), ("sample", 2), ("auto", 3)])
def test_versions_are_blocks_of_images_that_share_masks(freihand, version, block):
    data = read_freihand(freihand.root, "train", version)
    assert data[1].name == f"training/{3 * block + 1:08d}"
    assert abs(int(data[1].read_image()[0, 0, 0]) - 10 * (3 * block + 1)) < 4
    assert data[1].mask_file.name == "00000001.jpg"
    mask = data[1].read_mask()
    assert mask[52:98].all()
    assert not mask[:48].any()


def test_several_versions_one_after_the_other(freihand):
    data = open_dataset("freihand", freihand.root, "train", version=("auto", "gs"), verts=True)
    assert [sample.name[-2:] for sample in data] == ["09", "10", "11", "00", "01", "02"]
    np.testing.assert_allclose(data[4].joints_m, data[1].joints_m)
    np.testing.assert_allclose(data[5].verts_m, 0.2, atol=1e-6)


def test_evaluation_images_without_labels(freihand):
    data = read_freihand(freihand.root, "test", verts=True)
    assert len(data) == 3
    assert np.isnan(data[0].joints_m).all()
    assert not data[0].visible.any()
    assert (data[0].crop.center_px, data[0].crop.size_px) == ((112, 112), 224)
    assert data[0].read_mask() is None


def test_evaluation_images_with_the_labels_released_later(tmp_path):
    written = write_freihand(tmp_path, labelled_evaluation=True)
    sample = read_freihand(tmp_path, "evaluation", verts=True)[2]
    np.testing.assert_allclose(sample.joints_m, rows(written.hands[2], STD), atol=1e-9)
    assert sample.crop is None
    np.testing.assert_allclose(sample.verts_m, 0.2, atol=1e-6)


def test_missing_parts_are_named(broken, tmp_path):
    with pytest.raises(MissingDataError, match="nowhere: no such folder, expected the folder of FreiHAND"):
        read_freihand(tmp_path / "nowhere", "train")
    (broken / "training" / "mask" / "00000001.jpg").unlink()
    with pytest.raises(MissingDataError, match=r"mask: holds 2 masks, .*missing: 00000001\.jpg"):
        read_freihand(broken, "train")
    (broken / "training" / "rgb" / "00000004.jpg").unlink()
    with pytest.raises(MissingDataError, match=r"missing: 00000004\.jpg"):
        read_freihand(broken, "train", "hom")
    (broken / "training_K.json").unlink()
    with pytest.raises(MissingDataError, match=r"training_K\.json: no such file"):
        read_freihand(broken, "train")


def test_an_evaluation_image_too_many_is_named(broken):
    write_picture(broken / "evaluation" / "rgb" / "00000003.jpg", np.zeros((224, 224, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"holds 4 images, expected 3, .*without annotation: 00000003\.jpg"):
        read_freihand(broken, "test")


def test_a_truncated_json_file_is_named(broken):
    file = broken / "training_xyz.json"
    file.write_text(file.read_text()[:-5])
    with pytest.raises(DatasetError, match=r"training_xyz\.json: is no whole JSON text"):
        read_freihand(broken, "train")


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("K", lambda k: [row[:2] for row in k], r"K\.json: holds an array \(3, 2, 3\), expected .* \(N, 3, 3\)"),
        ("xyz", lambda xyz: xyz[:2], r"xyz\.json: holds an array \(2, 21, 3\), expected .* \(3, 21, 3\)"),
        ("xyz", lambda xyz: [xyz[0][:5], *xyz[1:]], r"xyz\.json: holds no regular array of numbers"),
        ("xyz", lambda xyz: (1000 * np.array(xyz)).tolist(), r"fingers are 2\d\.\d+ m long .* in metres"),
        ("xyz", lambda xyz: (np.array(xyz) * (1, 1, -1)).tolist(), r"first entry 0, .* in front of the camera"),
        ("xyz", lambda xyz: np.add(xyz, (3, 0, 0)).tolist(), r"only 0 % of the joints project into the 224 x 224"),
        ("scale", lambda scale: [scale[0], scale[1] * 2, scale[2]], r"first entry 1, have another distance .* \(0\.06"),
        ("K", lambda k: {"a": k}, r"K\.json: holds no regular array of numbers"),
    ],
)
def test_wrong_labels_are_named(broken, name, edit, message):
    edit_json(broken / f"training_{name}.json", edit)
    with pytest.raises(DatasetError, match=message):
        read_freihand(broken, "train")


def test_wrong_arguments_are_named(freihand):
    with pytest.raises(ValueError, match="version: expected one of 'gs'"):
        read_freihand(freihand.root, "train", "green")
    with pytest.raises(ValueError, match="format: expected one of rhd, stb, dexter_object, freihand, got 'mpii'"):
        open_dataset("mpii", freihand.root, "train")
    with pytest.raises(TypeError, match="camera: the format freihand has no such option; it takes version, verts"):
        open_dataset("freihand", freihand.root, "train", camera="sk")
