"""Video files, sound and broken."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest

from dhpe_fast.video_file import (
    FALLBACK_FPS,
    MissingVideoFileError,
    VideoFileError,
    VideoReader,
    _believable_fps,
    is_video,
    video_writer,
)

SIZE = (48, 64)


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A red square on blue that moves right."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 2] = 200
    image[10:30, index : index + 20] = (220, 30, 0)
    return image


def write(path, n: int = 20, fps: float = 12.5, size: tuple[int, int] = SIZE):
    with video_writer(path, fps) as out:
        for index in range(n):
            out.write(picture(index, size))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv", ".avi"])
def test_frames_come_back_in_order_and_in_rgb(tmp_path, suffix):
    reader = VideoReader(write(tmp_path / f"a{suffix}"))
    assert reader.fps == pytest.approx(12.5)
    assert reader.n_promised == 20
    frames = list(reader)
    assert len(frames) == 20
    for index in (0, 19):
        assert frames[index].shape == (*SIZE, 3)
        assert frames[index].dtype == np.uint8
        assert np.abs(frames[index].astype(int) - picture(index)).mean() < 12
    assert reader.fault is None
    assert list(reader) == []
    assert os.listdir(tmp_path) == [f"a{suffix}"]


MATRIX_AT = 44
"""Where the matrix of a track header (version 0) stands after its name; 9 numbers of 4 bytes, fixed point."""
ROTATIONS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


@pytest.mark.parametrize("degrees", ROTATIONS)
def test_the_rotation_of_a_phone_is_undone(tmp_path, degrees):
    """Clockwise by what the header says: np.rot90 turns the other way."""
    file = write(tmp_path / "a.mp4", n=2)
    data = bytearray(file.read_bytes())
    a, b, c, d = (value << 16 for value in ROTATIONS[degrees])
    at = data.find(b"tkhd") + MATRIX_AT
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    file.write_bytes(data)
    first = next(iter(VideoReader(file)))
    expected = np.rot90(picture(0), -degrees // 90)
    assert first.shape == expected.shape
    assert np.abs(first.astype(int) - expected).mean() < 12


def test_odd_sizes_lose_a_row_and_a_column(tmp_path):
    (frame,) = VideoReader(write(tmp_path / "a.mp4", n=1, size=(49, 65)))
    assert frame.shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.mp4: no such file"),
        (b"", "a.mp4: the file is empty"),
        (b"no video at all, but some text" * 40, "a.mp4: is damaged, or no video"),
    ],
)
def test_what_is_no_video_is_said(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(VideoFileError, match=message):
        VideoReader(tmp_path / "a.mp4")


def test_a_missing_video_is_also_a_missing_file_and_a_folder_is_none(tmp_path):
    with pytest.raises(MissingVideoFileError) as error:
        VideoReader(tmp_path / "a.mp4")
    assert isinstance(error.value, FileNotFoundError)
    with pytest.raises(VideoFileError, match="is a folder"):
        VideoReader(tmp_path)


def test_a_photograph_is_a_video_of_one_frame(tmp_path):
    """Some backends would go on with a02.png."""
    for index in (1, 2):
        cv2.imwrite(str(tmp_path / f"a0{index}.png"), picture(index))
    frames = list(VideoReader(tmp_path / "a01.png"))
    assert len(frames) == 1


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_video_cut_off_gives_its_frames_and_says_what_is_missing(tmp_path, suffix):
    whole = write(tmp_path / f"a{suffix}", n=60).read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole[: len(whole) // 2])
    reader = VideoReader(cut)
    assert reader.fault is None
    frames = list(reader)
    assert 5 < len(frames) < 55
    assert np.abs(frames[3].astype(int) - picture(3)).mean() < 12
    assert reader.fault == f"{cut}: ends after {len(frames)} of 60 frames: it is truncated or damaged"


@pytest.mark.parametrize(("n_frames", "fps", "slack"), [(20, 25, 2), (600, 25, 6), (100_000, 25, 12), (100_000, 1, 2)])
def test_no_more_than_half_a_second_may_be_missing_unsaid(tmp_path, n_frames, fps, slack):
    reader = VideoReader(write(tmp_path / "a.mp4", n=1))
    reader.n_promised, reader.fps = n_frames, fps
    assert [reader.may_have(n_frames + off) for off in (-slack - 1, -slack, slack, slack + 1)] == [0, 1, 1, 0]
    reader.n_promised = None
    assert reader.may_have(7)


def test_a_format_that_estimates_its_frames_may_have_any_number(tmp_path):
    reader = VideoReader(write(tmp_path / "a.mkv", n=10))
    assert reader.n_promised == 10
    assert reader.may_have(20)


def test_an_mp4_without_its_end_has_no_index_and_cannot_be_read(tmp_path):
    file = write(tmp_path / "a.mp4", n=60)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(VideoFileError, match="damaged"):
        VideoReader(file)


def test_damage_in_the_middle_is_noticed(tmp_path):
    file = write(tmp_path / "a.mp4", n=60)
    data = bytearray(file.read_bytes())
    middle, length = len(data) // 2, len(data) // 6
    data[middle : middle + length] = bytes(length)
    file.write_bytes(data)
    reader = VideoReader(file)
    frames = list(reader)
    assert 0 < len(frames) < 58
    assert "truncated or damaged" in reader.fault


def test_a_reader_that_was_closed_gives_no_more_frames(tmp_path):
    reader = VideoReader(write(tmp_path / "a.mp4"))
    frames = iter(reader)
    next(frames)
    reader.close()
    assert list(frames) == []


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 1e5])
def test_a_frame_rate_that_no_camera_has_is_not_believed(fps):
    assert _believable_fps(fps) == FALLBACK_FPS
    assert _believable_fps(29.97) == 29.97


@pytest.mark.parametrize(("name", "expected"), [("a.MP4", True), ("b.mov", True), ("c.jpg", False), ("mp4", False)])
def test_videos_are_known_by_their_suffix(name, expected):
    assert is_video(name) is expected


# --- Writing -----------------------------------------------------------------------------------------------------


def test_an_error_leaves_the_old_video_and_nothing_else(tmp_path):
    file = write(tmp_path / "a.mp4", n=3)
    before = file.read_bytes()

    def fail() -> None:
        with video_writer(file, 30) as out:
            out.write(picture(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.mp4"]


FULL_DISK = """
import resource, signal, sys
import numpy as np
from dhpe_fast.video_file import video_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
rng = np.random.default_rng(0)
with video_writer(sys.argv[1], 30) as out:
    for _ in range(60):
        out.write(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the system has no limit on the size of files")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_full_disk_leaves_no_broken_video(tmp_path, suffix):
    """The system refuses to write beyond 60 kB; OpenCV goes on as if nothing was wrong."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / f"a{suffix}")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search(rf"VideoFileError: .*a\{suffix}: only \d+ of 60 frames could be written", done.stderr)
    assert os.listdir(tmp_path) == []


def test_a_video_of_no_frames_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"a\.mp4: no frame was written"), video_writer(tmp_path / "a.mp4", 30):
        pass
    assert os.listdir(tmp_path) == []


BAD_FRAMES = {
    "size": (np.zeros((48, 66, 3), np.uint8), ValueError, r"rgb: expected \(48, 64, 3\), the size of the first frame"),
    "dtype": (np.zeros((48, 64, 3)), TypeError, "rgb: expected a uint8 array, got float64"),
    "grey": (np.zeros((48, 64), np.uint8), ValueError, r"rgb: expected \(H, W, 3\)"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_frames_are_named(tmp_path, case):
    frame, error, message = BAD_FRAMES[case]

    def write_both() -> None:
        with video_writer(tmp_path / "a.mp4", 30) as out:
            out.write(picture(0))
            out.write(frame)

    with pytest.raises(error, match=message):
        write_both()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "fps", "error", "message"),
    [
        ("a.gif", 30, ValueError, r"path: expected a suffix of \.mp4"),
        ("a.mp4", 0, ValueError, "fps: expected a number"),
        ("a.mp4", True, ValueError, "fps: expected a number"),
        ("a.mp4", 1e-300, ValueError, "fps: expected a number"),
        ("nowhere/a.mp4", 30, FileNotFoundError, "the folder .*nowhere does not exist"),
    ],
)
def test_bad_destinations_are_named(tmp_path, name, fps, error, message):
    with pytest.raises(error, match=message), video_writer(tmp_path / name, fps):
        pass
