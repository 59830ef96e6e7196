"""Video files: frames in, frames out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dhpe_fast.atomic_write import whole_path

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
"""Suffixes by which a path is taken for a video."""
FALLBACK_FPS = 30.0
"""Frame rate where a file states none, or none that a camera has."""
MIN_FPS, MAX_FPS = 1e-3, 1000.0
"""Range of frame rates."""

_COUNTED = (".avi", ".m4v", ".mov", ".mp4")
"""Formats that store how many frames they have; of others OpenCV multiplies duration and rate, which may vary."""
_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
"""What OpenCV's own builds can write, by suffix."""


class VideoFileError(ValueError):
    """A video that cannot be used; the message names the file and the fault."""


class MissingVideoFileError(VideoFileError, FileNotFoundError):
    """There is no file at the path."""


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether the path has the suffix of a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


class VideoReader:
    """The frames of a video file, uint8 RGB (H, W, 3), decoded one by one as they are asked for, once.

    A phone's rotation by quarter turns is undone. A file may end early, as a recording that was cut off does, and its
    decoder may give up on damaged frames: the frames until there are given, and ``fault`` then says what is missing.

    Args:
        path: the file, in any format of OpenCV's FFmpeg.

    Raises:
        VideoFileError: if the file is missing (also a FileNotFoundError), a folder, empty, no video, or has no frame
            that can be decoded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = Path(path)
        if not self.file.exists():
            raise MissingVideoFileError(f"{self.file}: no such file")
        if self.file.is_dir():
            raise VideoFileError(f"{self.file}: is a folder, expected a video file")
        if self.file.stat().st_size == 0:
            raise VideoFileError(f"{self.file}: the file is empty")
        self._capture = cv2.VideoCapture(str(self.file), _backend())
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # OpenCV's FFmpeg leaves it off
        self._first = self._decode()
        if self._first is None:
            self.close()
            raise VideoFileError(f"{self.file}: is damaged, or no video that OpenCV can decode: it shows no frame")
        self.fault: str | None = None
        """What was missing, once the last frame was read."""
        self.fps = _believable_fps(self._capture.get(cv2.CAP_PROP_FPS))
        """Frames each second."""
        promised = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.n_promised: int | None = int(promised) if math.isfinite(promised) and 1 <= promised < 2**31 else None
        """How many frames the file says it has; None where it says nothing. Of some formats it is an estimate."""

    def __iter__(self) -> Iterator[np.ndarray]:
        frame, self._first = self._first, None
        read = 0
        try:
            while frame is not None:
                yield frame
                read += 1
                frame = self._decode()
            if self.n_promised is not None and read < self.n_promised - self._slack:
                self.fault = f"{self.file}: ends after {read} of {self.n_promised} frames: it is truncated or damaged"
        finally:
            self.close()

    def may_have(self, n_frames: int) -> bool:
        """Whether so many frames agree with what the file says of itself; of an estimate all do."""
        is_known = self.n_promised is not None and self.file.suffix.lower() in _COUNTED
        return not is_known or abs(n_frames - self.n_promised) <= self._slack

    @property
    def _slack(self) -> int:
        """How far the number may be off: some formats count from duration and rate. At most half a second."""
        return max(2, min(self.n_promised // 100, int(self.fps / 2)))

    def close(self) -> None:
        """Lets go of the file; the reader then gives no more frames."""
        self._capture.release()

    def _decode(self) -> np.ndarray | None:
        try:
            good, bgr = self._capture.read()
        except cv2.error:
            return None
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB) if good and bgr is not None and bgr.size else None


@contextmanager
def video_writer(path: str | os.PathLike[str], fps: float) -> Iterator[VideoWriter]:
    """Writes a video that appears when the context is left without an error, whole or not at all.

    Args:
        path: .mp4, .m4v, .mov, .mkv (MPEG-4) or .avi (Motion JPEG).
        fps: frames each second.

    Raises:
        ValueError: if the suffix is another one or `fps` is no frame rate; at the end, if no frame was written.
        FileNotFoundError: if the folder does not exist.
        VideoFileError: if OpenCV cannot write such a video here; at the end, if the file does not give back every
            frame, as on a disk that is full.
    """
    file = Path(path)
    if file.suffix.lower() not in _CODECS:
        raise ValueError(f"path: expected a suffix of {', '.join(_CODECS)}, got '{file.name}'")
    checked_fps(fps)
    with whole_path(file) as temporary:
        writer = VideoWriter(file, temporary, float(fps))
        try:
            yield writer
        finally:
            writer.close()
        if writer.n_frames == 0:
            raise ValueError(f"{file}: no frame was written")
        _check_written(file, temporary, writer.n_frames)


class VideoWriter:
    """Takes the frames of a video: see :func:`video_writer`.

    Frames of an odd width or height lose their last column or row, which video codecs cannot hold.
    """

    def __init__(self, file: Path, temporary: Path, fps: float) -> None:
        self._file, self._temporary, self._fps = file, temporary, fps
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, ...] = ()
        self.n_frames = 0
        """How many frames were taken."""

    def write(
        self,
        rgb: np.ndarray,  # (H, W, 3) uint8
    ) -> None:
        """Appends a frame.

        Raises:
            TypeError, ValueError: if `rgb` is no uint8 array (H, W, 3), or of another size than the first frame.
        """
        if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8:
            given = rgb.dtype if isinstance(rgb, np.ndarray) else type(rgb).__name__
            raise TypeError(f"rgb: expected a uint8 array, got {given}")
        if rgb.ndim != 3 or rgb.shape[2] != 3 or min(rgb.shape[:2]) < 2:
            raise ValueError(f"rgb: expected (H, W, 3) of at least 2 x 2 pixels, got {rgb.shape}")
        if self._writer is None:
            self._writer, self._size = self._open(rgb.shape[:2]), rgb.shape
        if rgb.shape != self._size:
            raise ValueError(f"rgb: expected {self._size}, the size of the first frame, got {rgb.shape}")
        height, width = (side & ~1 for side in rgb.shape[:2])
        self._writer.write(cv2.cvtColor(np.ascontiguousarray(rgb[:height, :width]), cv2.COLOR_RGB2BGR))
        self.n_frames += 1

    def close(self) -> None:
        """Finishes the file; the writer then takes no more frames."""
        if self._writer is not None:
            self._writer.release()

    def _open(self, image_size: tuple[int, int]) -> cv2.VideoWriter:
        height, width = (side & ~1 for side in image_size)
        codec = cv2.VideoWriter_fourcc(*_CODECS[self._file.suffix.lower()])
        writer = cv2.VideoWriter(str(self._temporary), codec, self._fps, (width, height))
        if not writer.isOpened():
            what = f"{self._file.suffix} videos of {width} x {height}"
            raise VideoFileError(f"{self._file}: OpenCV cannot write {what} here")
        return writer


def checked_fps(fps: Any) -> float:
    """The frame rate.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(fps, bool) or not isinstance(fps, Real) or not MIN_FPS <= fps <= MAX_FPS:
        raise ValueError(f"fps: expected a number in [{MIN_FPS:g}, {MAX_FPS:g}], got {fps!r}")
    return float(fps)


def _believable_fps(fps: float) -> float:
    return float(fps) if math.isfinite(fps) and MIN_FPS <= fps <= MAX_FPS else FALLBACK_FPS


def _check_written(file: Path, temporary: Path, n_frames: int) -> None:
    """OpenCV says nothing of a write that failed: only reading the file shows it."""
    capture = cv2.VideoCapture(str(temporary), _backend())
    found = 0
    try:
        while capture.grab():
            found += 1
    except cv2.error:
        pass  # what was found until there is what there is
    finally:
        capture.release()
    if found != n_frames:
        raise VideoFileError(f"{file}: only {found} of {n_frames} frames could be written; is the disk full?")


def _backend() -> int:
    """FFmpeg where OpenCV has it: the other backends take a photograph or a pattern of file names for a video."""
    return cv2.CAP_FFMPEG if cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends() else cv2.CAP_ANY
