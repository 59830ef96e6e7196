"""Hands in a video: one frame after the other, each hand with an identity, steady in shape and smooth in motion."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import N_JOINTS_STD, joint_permutation
from dhpe_fast.evidence import EvidenceSource, HandEvidence, evidence_source, given_hands
from dhpe_fast.evidence.hand_evidence import MIN_JOINTS
from dhpe_fast.fit import FitOptions
from dhpe_fast.hand import HandModel, Pinhole
from dhpe_fast.hand_filter import SMOOTHING, Smoothing
from dhpe_fast.hand_tracker import HandTracker, TrackedHand
from dhpe_fast.image import read_image
from dhpe_fast.metrics import second_differences
from dhpe_fast.stages import StageClock
from dhpe_fast.torch_settings import plain_torch
from dhpe_fast.tracks import Tracking
from dhpe_fast.video_file import FALLBACK_FPS, MAX_FPS, VideoReader

TRACKING = Tracking()

SEARCH_ITERATIONS = 50
"""The most steps of the refinement where a hand is searched."""
_END = object()


@dataclass(frozen=True, eq=False)
class FrameFit:
    """A frame and its hands."""

    index: int
    """Counts the frames from 0."""
    time_s: float
    """Since the first frame."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    hands: tuple[TrackedHand, ...]
    """In the order of the evidence; empty where no hand was seen."""
    faults: tuple[str, ...] = ()
    """Why hands of this frame could not be fitted, one for each that is missing."""

    def overlay(self, **options: Any) -> np.ndarray:
        """The frame with its hands drawn in, uint8 RGB; see :func:`dhpe_fast.viz.overlay`, here fast by default."""
        from dhpe_fast import viz

        return viz.overlay(self.image, [hand.fit for hand in self.hands], **{"fast": True, **options})


@dataclass(frozen=True)
class Jitter:
    """How much the joints trembled: the mean over joints and frames of ``|x[t + 1] - 2 x[t] + x[t - 1]|``.

    Over all tracks, wherever three frames running show a hand; NaN where none do. The motion itself is part of it.
    """

    before_mm: float
    """Of ``TrackedHand.raw_joints_m``."""
    after_mm: float
    """Of ``HandFit.joints_m``. Without intrinsics both are relative to the middle finger's MCP joint."""
    before_px: float
    """Of ``TrackedHand.raw_joints2d_px``."""
    after_px: float
    """Of ``HandFit.joints2d_px``."""
    n_frames: int
    """How many triples of frames that is the mean of."""

    def __str__(self) -> str:
        if not self.n_frames:
            return "no hand in three frames running"
        return (
            f"{self.before_mm:.2f} mm before smoothing, {self.after_mm:.2f} mm after; "
            f"{self.before_px:.2f} px before, {self.after_px:.2f} px after"
        )


def fit_video(
    frames: str | os.PathLike[str] | Iterable[Any],
    *,
    keypoints: Iterable[Any] | None = None,
    order: str = "std",
    evidence: Literal["auto", "mediapipe"] | EvidenceSource = "auto",
    hand: Literal["auto", "right", "left"] = "auto",
    model: HandModel | None = None,
    camera: Pinhole | Any = None,
    device: torch.device | str | None = None,
    fps: float | None = None,
    smooth: Smoothing | None = SMOOTHING,
    tracking: Tracking = TRACKING,
) -> VideoFit:
    """Recovers the hands of a video, frame by frame, as they are asked for.

        for frame in dhpe_fast.fit_video("clip.mp4"):
            for hand in frame.hands:
                print(frame.time_s, hand.track_id, hand.fit.side, hand.fit.joints_m)

    No frame is kept: a video may be of any length. How hands are followed: :class:`dhpe_fast.hand_tracker.HandTracker`
    says; which hand is which: :class:`dhpe_fast.tracks.Tracking`.

    Args:
        frames: the path of a video file; or images, all of one size, each as ``fit`` takes it: a list, an array
            (T, H, W, 3), or a generator, such as one that reads a camera.
        keypoints: for each frame its 2D joints as ``fit`` takes them, or a list of HandEvidence, or None where no hand
            is seen. Hands with fewer than four known joints (NaN, or confidence 0) count as not seen.
        order: joint order of the keypoints.
        evidence: who supplies 2D joints when `keypoints` is None.
        hand: which hand it is; "auto" takes the side from the evidence source, see ``fit``.
        model: a hand model; None is the package's own.
        camera: intrinsics; None fits a weak-perspective camera to each frame.
        device: where to compute; None is the model's device.
        fps: frames each second; None is what the file says, and 30 for images.
        smooth: parameters of the One-Euro filters; None for no smoothing.
        tracking: when two frames show the same hand.

    Returns:
        An iterator over :class:`FrameFit`.

    Raises:
        ValueError, TypeError: for bad input, naming the argument; VideoFileError for a file that is no video. What is
            wrong with one frame (another size, keypoints of another shape) is raised when its turn comes.
        ImportError: when no keypoints are given and no evidence source is installed.
    """
    with plain_torch():
        options = FitOptions.of(hand, model, camera, SEARCH_ITERATIONS, device)
    if smooth is not None and not isinstance(smooth, Smoothing):
        raise TypeError(f"smooth: expected a Smoothing or None, got {type(smooth).__name__}")
    if not isinstance(tracking, Tracking):
        raise TypeError(f"tracking: expected a Tracking, got {type(tracking).__name__}")
    if fps is not None and not (isinstance(fps, int | float) and 0 < fps <= MAX_FPS):
        raise ValueError(f"fps: expected a number in (0, {MAX_FPS:g}] or None, got {fps!r}")
    if isinstance(frames, np.ndarray | Tensor) and frames.ndim != 4:
        raise ValueError(f"frames: expected a path or images (T, H, W, 3), got an array {tuple(frames.shape)}")
    images: VideoReader | Iterable[Any] = VideoReader(frames) if isinstance(frames, str | os.PathLike) else frames
    if not isinstance(images, Iterable):
        raise TypeError(f"frames: expected a path or images, got {type(frames).__name__}")
    if isinstance(images, Sized) and isinstance(keypoints, Sized) and len(images) != len(keypoints):
        raise ValueError(f"keypoints: expected an entry for each of {len(images)} frames, got {len(keypoints)}")
    source = evidence_source(evidence) if keypoints is None else _GivenHands(keypoints, order)
    fps = fps or (images.fps if isinstance(images, VideoReader) else FALLBACK_FPS)
    return VideoFit(images, source, HandTracker(options, tracking, smooth), fps)


class VideoFit(Iterator[FrameFit]):
    """The frames of a video with their hands, each fitted when it is asked for; made by :func:`fit_video`."""

    def __init__(
        self,
        frames: VideoReader | Iterable[Any],
        source: Any,  # (image, boxes) -> hands, called once for each frame
        tracker: HandTracker,
        fps: float,
    ) -> None:
        self.fps = fps
        """Frames each second."""
        self._reader = frames if isinstance(frames, VideoReader) else None
        self._images = iter(frames)
        self._source, self._tracker = source, tracker
        self._meter = _JitterMeter()
        self._read = 0
        self._size: tuple[int, int] | None = None
        self._ended = False

    @property
    def n_promised(self) -> int | None:
        """How many frames the video file says it has; None where nothing says so."""
        return None if self._reader is None else self._reader.n_promised

    @property
    def fault(self) -> str | None:
        """What was missing of the video file, once the last frame was read: it was truncated, or damaged."""
        return None if self._reader is None else self._reader.fault

    @property
    def jitter(self) -> Jitter:
        """Of the frames until here."""
        return self._meter.jitter()

    def close(self) -> None:
        """Lets go of the video file before its end."""
        if self._reader is not None:
            self._reader.close()
        self._images = iter(())

    def __next__(self) -> FrameFit:
        clock = StageClock()
        image = next(self._images, _END)
        if image is _END:
            fault = None if self._ended else self.fault
            self._ended = True
            self.close()
            if fault is not None:
                warnings.warn(fault, RuntimeWarning, stacklevel=2)
            raise StopIteration
        index, time_s = self._read, self._read / self.fps
        self._read += 1
        try:
            image = self._checked(image)
            clock.lap("read")
            with plain_torch():
                hands = self._source(image, None)
                clock.lap("evidence")
                tracked, faults = self._tracker.step(image.shape[:2], hands, time_s, clock)
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"frame {index}: {error}") from error
        self._meter.add(tracked)
        return FrameFit(index, time_s, image, tuple(tracked), tuple(faults))

    def _checked(self, image: Any) -> np.ndarray:
        if self._reader is None:
            image = read_image(image)
        if self._size is None:
            self._size = image.shape[:2]
        if image.shape[:2] != self._size:
            (height, width), (first_height, first_width) = image.shape[:2], self._size
            raise ValueError(
                f"image: is {width} x {height} px, the frames before it are {first_width} x {first_height}; "
                "bring them to one size"
            )
        return image


class _GivenHands:
    """The caller's keypoints, frame by frame, as an evidence source."""

    def __init__(self, keypoints: Iterable[Any], order: str) -> None:
        joint_permutation(order)
        if not isinstance(keypoints, Iterable):
            raise TypeError(f"keypoints: expected an entry for each frame, got {type(keypoints).__name__}")
        self._entries, self._order = iter(keypoints), order

    def __call__(self, image: np.ndarray, boxes: None) -> list[HandEvidence]:
        try:
            entry = next(self._entries)
        except StopIteration:
            raise ValueError("keypoints: there are none for this frame; give None for one without a hand") from None
        if entry is None:
            return []
        if isinstance(entry, list | tuple) and all(isinstance(hand, HandEvidence) for hand in entry):
            return list(entry)
        return seen_hands(entry, self._order)


def seen_hands(
    keypoints: Any,  # (21, 2 | 3) or (N, 21, 2 | 3)
    order: str = "std",
) -> list[HandEvidence]:
    """The hands of ``given_hands``, without those of which fewer than four joints are known.

    Raises:
        TypeError, ValueError: as ``given_hands``.
    """
    return given_hands(_seen(keypoints), order=order)[0]


def _seen(entry: Any) -> Any:
    values = np.asarray(entry.detach().cpu() if isinstance(entry, Tensor) else entry)
    is_hands = values.ndim in (2, 3) and values.shape[-2] == N_JOINTS_STD and values.shape[-1] in (2, 3)
    if not is_hands or values.dtype.kind not in "iuf":
        return entry  # given_hands says what is wrong
    values = values[None] if values.ndim == 2 else values
    known = values[..., 2] > 0 if values.shape[-1] == 3 else ~np.isnan(values).all(axis=-1)
    return values[known.sum(axis=-1) >= MIN_JOINTS]


class _JitterMeter:
    """Sums up second differences; keeps two frames of each track."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[tuple[Tensor, ...], ...]] = {}
        self._sums = np.zeros(4)
        self._n_frames = 0

    def add(self, hands: Iterable[TrackedHand]) -> None:
        """Takes the hands of the next frame."""
        now = {}
        for hand in hands:
            before = self._last.get(hand.track_id, ())
            joints = (hand.raw_joints_m, hand.fit.joints_m, hand.raw_joints2d_px, hand.fit.joints2d_px)
            now[hand.track_id] = (*before[-2:], tuple(part.cpu() for part in joints))
            if len(now[hand.track_id]) == 3:
                triple = [torch.stack(parts) for parts in zip(*now[hand.track_id], strict=True)]
                self._sums += [float(second_differences(parts).mean()) for parts in triple]
                self._n_frames += 1
        self._last = now

    def jitter(self) -> Jitter:
        """The means until here."""
        if not self._n_frames:
            return Jitter(*[math.nan] * 4, 0)
        before_mm, after_mm, before_px, after_px = (self._sums / self._n_frames).tolist()
        return Jitter(1e3 * before_mm, 1e3 * after_mm, before_px, after_px, self._n_frames)
