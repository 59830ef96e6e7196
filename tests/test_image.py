"""Pictures of every kind become uint8 RGB, and what is none is refused by name."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
import torch

from dhpe_fast.image import ImageFileError, read_image, read_mask


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def write_png(path, channels_last: np.ndarray) -> None:
    order = [2, 1, 0, *range(3, channels_last.shape[2])] if channels_last.ndim == 3 else slice(None)
    assert cv2.imwrite(str(path), channels_last[..., order])


def test_a_file_is_read_as_rgb(tmp_path, rgb):
    write_png(tmp_path / "a.png", rgb)
    read = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read, rgb)
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png")), rgb)


def test_files_of_other_depths_and_channels_are_converted(tmp_path, rgb):
    write_png(tmp_path / "grey.png", rgb[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(rgb[..., :1], 3, 2))
    write_png(tmp_path / "deep.png", rgb.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), rgb)
    half = np.full((*rgb.shape[:2], 1), 51, np.uint8)
    write_png(tmp_path / "clear.png", np.concatenate([rgb, half], 2))
    over_white = np.rint(rgb * 0.2 + 255 * 0.8)
    np.testing.assert_allclose(read_image(tmp_path / "clear.png"), over_white, atol=0.51)


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (8, 1), (3, 2), (6, 3)])
def test_the_exif_orientation_is_honoured(tmp_path, orientation, turned):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, :16] = 255
    stored = np.rot90(upright, -turned)
    data = cv2.imencode(".jpg", np.ascontiguousarray(stored), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0\0\0\0"
    app1 = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "a.jpg").write_bytes(data[:2] + app1 + data[2:])
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg"), upright, atol=8)


def test_arrays_and_tensors_of_every_layout_are_the_same_picture(rgb):
    as_float = rgb / 255.0
    for image in (
        rgb,
        as_float,
        as_float.astype(np.float32),
        rgb.astype(np.uint16) * 257,
        torch.from_numpy(rgb),
        torch.from_numpy(as_float).permute(2, 0, 1),
        torch.from_numpy(as_float).half(),
        rgb.transpose(2, 0, 1),
    ):
        np.testing.assert_array_equal(read_image(image), rgb)
    np.testing.assert_array_equal(read_image(rgb[..., 0]), read_image(rgb[..., :1]))
    np.testing.assert_array_equal(read_image(rgb[..., ::-1]), rgb[..., ::-1])


def test_sixteen_bits_are_rounded_to_the_nearest_of_eight():
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = [[(2 * int(v) + 257) // 514 for v in row] for row in every]  # round(v / 257), which has no halves
    np.testing.assert_array_equal(read_image(every)[..., 0], expected)


def test_three_by_n_by_three_is_told_by_the_kind(rgb):
    image = rgb[:3]
    np.testing.assert_array_equal(read_image(image), image)
    planes = torch.from_numpy(image[:, :3].copy())  # (3, 3, 3)
    np.testing.assert_array_equal(read_image(planes), planes.permute(1, 2, 0))


def test_the_callers_array_is_neither_changed_nor_shared(rgb):
    before = rgb.copy()
    read_image(rgb)[:] = 0
    np.testing.assert_array_equal(rgb, before)


def test_files_that_are_no_pictures_are_refused_by_name(tmp_path, rgb):
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageFileError, match="is a folder"):
        read_image(tmp_path)
    for name, data in (("empty.jpg", b""), ("text.jpg", b"not an image")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageFileError, match=name):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
def test_truncated_files_are_refused(tmp_path, suffix, part):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = cv2.imencode(suffix, noise)[1].tobytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(part * len(data))])
    with pytest.raises(ImageFileError, match="truncated"):
        read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 5, 2), np.uint8), r"\(5, 5, 2\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (torch.zeros(1, 3, 5, 5), "one image of the batch at a time"),
        (np.full((5, 5, 3), np.nan), "this image has NaN"),
        (np.full((5, 5, 3), 128.0), "spans 128 to 128"),
        (np.full((5, 5, 3), -0.5), r"\[0, 1\]"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        read_image(image)


@pytest.mark.parametrize("image", [None, [[1, 2]], np.zeros((5, 5, 3), np.int64), np.zeros((5, 5), bool)])
def test_other_types_are_refused(image):
    with pytest.raises(TypeError, match="image: expected"):
        read_image(image)


def test_masks_are_whatever_is_not_zero():
    mask = np.array([[0, 1], [0, 2]])
    for given in (mask, mask * 0.5, mask.astype(bool), mask.astype(np.uint8), torch.from_numpy(mask)):
        np.testing.assert_array_equal(read_mask(given), mask != 0)
    np.testing.assert_array_equal(read_mask(np.stack([mask, mask])), np.stack([mask, mask]) != 0)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[1]], TypeError, "got list"),
        (np.ones(3), ValueError, r"\(3,\)"),
        (np.full((2, 2), np.nan), ValueError, "NaN"),
        (np.zeros((2, 2)), ValueError, "no pixel"),
        (np.stack([np.ones((2, 2)), np.zeros((2, 2))]), ValueError, "no pixel"),
    ],
)
def test_bad_masks_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        read_mask(mask)
