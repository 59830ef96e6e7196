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
from dhpe_fast.evidence import EvidenceSource, HandEvidence, SourceName, evidence_source, given_hands
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
from dhpe_fast.video_file import FALLBACK_FPS, VideoReader, checked_fps

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
    """Since the first frame: `index` over the frame rate, also where a file's own rate varies."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    hands: tuple[TrackedHand, ...]
    """In the order of the evidence; empty where no hand was seen."""
    faults: tuple[str, ...] = ()
    """Why hands of this frame could not be used or fitted, one for each that is missing."""

    def overlay(self, **options: Any) -> np.ndarray:
        """The frame with its hands drawn in, uint8 RGB; see :func:`dhpe_fast.viz.overlay`, here fast by default."""
        from dhpe_fast import viz

        return viz.overlay(self.image, [hand.fit for hand in self.hands], **{"fast": True, **options})


@dataclass(frozen=True)
class Jitter:
    """How much the joints trembled: the mean over joints and frames of ``|x[t + 1] - 2 x[t] + x[t - 1]|``.

    Over all tracks, wherever three frames running show a hand with finite joints; NaN where none do. The motion itself
    is part of it.
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
    evidence: SourceName | EvidenceSource = "auto",
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
            is seen. Hands with fewer than four known joints (NaN, or confidence 0) count as not seen. An iterator may
            have more entries than there are frames.
        order: joint order of the keypoints.
        evidence: who supplies 2D joints when `keypoints` is None, see ``fit``.
        hand: which hand it is; "auto" takes the side from the evidence source, see ``fit``.
        model: a hand model; None is the package's own.
        camera: intrinsics; None fits a weak-perspective camera to each frame.
        device: where to compute; None is the model's device.
        fps: frames each second, in [0.001, 1000]; None is what the file says, and 30 for images.
        smooth: parameters of the One-Euro filters; None for no smoothing.
        tracking: when two frames show the same hand.

    Returns:
        An iterator over :class:`FrameFit`.

    Raises:
        ValueError, TypeError: for bad input, naming the argument; VideoFileError for a file that is no video. What is
            wrong with one frame (another size, keypoints of another shape) is raised when its turn comes; going on
            gives the frames after it. What is wrong with one hand (a joint at infinity, a confidence of 5) is among
            ``FrameFit.faults``.
        ImportError: as ``fit``.
    """
    with plain_torch():
        options = FitOptions.of(hand, model, camera, SEARCH_ITERATIONS, device)
    if smooth is not None and not isinstance(smooth, Smoothing):
        raise TypeError(f"smooth: expected a Smoothing or None, got {type(smooth).__name__}")
    if not isinstance(tracking, Tracking):
        raise TypeError(f"tracking: expected a Tracking, got {type(tracking).__name__}")
    fps = None if fps is None else checked_fps(fps)
    if isinstance(frames, np.ndarray | Tensor) and frames.ndim != 4:
        raise ValueError(f"frames: expected a path or images (T, H, W, 3), got an array {tuple(frames.shape)}")
    images: VideoReader | Iterable[Any] = VideoReader(frames) if isinstance(frames, str | os.PathLike) else frames
    if not isinstance(images, Iterable):
        raise TypeError(f"frames: expected a path or images, got {type(frames).__name__}")
    if isinstance(images, Sized) and isinstance(keypoints, Sized) and len(images) != len(keypoints):
        raise ValueError(f"keypoints: expected an entry for each of {len(images)} frames, got {len(keypoints)}")
    if isinstance(images, VideoReader) and isinstance(keypoints, Sized) and not images.may_have(len(keypoints)):
        images.close()
        raise ValueError(f"keypoints: expected an entry for each of {images.n_promised} frames, got {len(keypoints)}")
    if keypoints is None:
        device = options.model.faces.device
        source = _AskedSource(evidence_source(evidence, side=options.side, device=device))
    else:
        source = _GivenHands(keypoints, order)
    fps = fps or (images.fps if isinstance(images, VideoReader) else FALLBACK_FPS)
    return VideoFit(images, source, HandTracker(options, tracking, smooth), fps)


class VideoFit(Iterator[FrameFit]):
    """The frames of a video with their hands, each fitted when it is asked for; made by :func:`fit_video`."""

    def __init__(
        self,
        frames: VideoReader | Iterable[Any],
        source: _AskedSource | _GivenHands,
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
        self._fault: str | None = None
        self._ended = False

    @property
    def n_promised(self) -> int | None:
        """How many frames the video file says it has; None where nothing says so."""
        return None if self._reader is None else self._reader.n_promised

    @property
    def fault(self) -> str | None:
        """What was missing, once the last frame was read: the video file was truncated or damaged, or the keypoints
        were of another number of frames.
        """
        return self._reader.fault if self._reader is not None and self._reader.fault is not None else self._fault

    @property
    def jitter(self) -> Jitter:
        """Of the frames until here."""
        return self._meter.jitter()

    def close(self) -> None:
        """Lets go of the video file before its end."""
        if self._reader is not None:
            self._reader.close()
        self._ended, self._images = True, iter(())

    def __next__(self) -> FrameFit:
        clock = StageClock()
        image = _END if self._ended else next(self._images, _END)
        # Before anything can fail: after a bad frame, the next one's entry is the next one.
        entry = _END if image is _END else self._source.next_entry()
        if image is _END or entry is _END:
            self._end(self._source.left_over() if image is _END else f"keypoints: end after {self._read} frames")
            raise StopIteration
        index, time_s = self._read, self._read / self.fps
        self._read += 1
        try:
            image = self._checked(image)
            clock.lap("read")
            hands, unusable = self._source.hands(entry, image)  # outside of plain_torch: it may be a network
            clock.lap("evidence")
            with plain_torch():
                tracked, faults = self._tracker.step(image.shape[:2], hands, time_s, clock)
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"frame {index}: {error}") from error
        self._meter.add(tracked)
        return FrameFit(index, time_s, image, tuple(tracked), (*unusable, *faults))

    def _end(self, fault: str | None) -> None:
        """Lets go of the file and says, once, what was missing."""
        if not self._ended:
            self._ended, self._fault = True, fault
            if self.fault is not None:
                warnings.warn(self.fault, RuntimeWarning, stacklevel=3)
        self.close()

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


class _AskedSource:
    """An evidence source, asked for each frame."""

    def __init__(self, source: EvidenceSource) -> None:
        self._source = source

    def next_entry(self) -> Any:
        """What belongs to the next frame; nothing but its image."""
        return None

    def hands(self, entry: Any, image: np.ndarray) -> tuple[list[HandEvidence], list[str]]:
        """The hands of a frame, and what was wrong with others."""
        return self._source(image, None), []

    def left_over(self) -> str | None:
        """What is wrong if no frame is left."""
        return None


class _GivenHands:
    """The caller's keypoints, frame by frame: see :class:`_AskedSource`."""

    def __init__(self, keypoints: Iterable[Any], order: str) -> None:
        joint_permutation(order)
        if not isinstance(keypoints, Iterable):
            raise TypeError(f"keypoints: expected an entry for each frame, got {type(keypoints).__name__}")
        self._entries, self._order = iter(keypoints), order
        self._promised = len(keypoints) if isinstance(keypoints, Sized) else None
        self._taken = 0

    def next_entry(self) -> Any:
        """The entry of the next frame, which may be None; _END where there is none."""
        entry = next(self._entries, _END)
        self._taken += entry is not _END
        return entry

    def hands(self, entry: Any, image: np.ndarray) -> tuple[list[HandEvidence], list[str]]:
        """The hands of an entry that can be used, and what is wrong with the others."""
        if entry is None:
            return [], []
        if isinstance(entry, list | tuple) and all(isinstance(hand, HandEvidence) for hand in entry):
            return list(entry), []
        seen = _seen(entry)
        if seen is None:
            return given_hands(entry, order=self._order, image_size=image.shape[:2])[0], []  # says what is wrong
        hands: list[HandEvidence] = []
        faults: list[str] = []
        for one in seen:
            try:
                hands += given_hands(one, order=self._order, image_size=image.shape[:2])[0]
            except ValueError as error:
                faults.append(str(error))
        return hands, faults

    def left_over(self) -> str | None:
        """What is wrong if no frame is left; entries without a known number may go on, as those of a camera do."""
        if self._promised is None or self._promised <= self._taken:
            return None
        return f"keypoints: {self._promised} entries for {self._taken} frames"


def seen_hands(
    keypoints: Any,  # (21, 2 | 3) or (N, 21, 2 | 3)
    order: str = "std",
) -> list[HandEvidence]:
    """The hands of ``given_hands``, without those of which fewer than four joints are known.

    Raises:
        TypeError, ValueError: as ``given_hands``.
    """
    seen = _seen(keypoints)
    return given_hands(keypoints if seen is None else seen, order=order)[0]


def _seen(entry: Any) -> np.ndarray | None:
    """The hands (N, 21, 2 | 3) of which enough joints are known; None if it is no array of hands."""
    values = np.asarray(entry.detach().cpu() if isinstance(entry, Tensor) else entry)
    is_hands = values.ndim in (2, 3) and values.shape[-2] == N_JOINTS_STD and values.shape[-1] in (2, 3)
    if not is_hands or values.dtype.kind not in "iuf":
        return None
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
                means = np.array([float(second_differences(parts).mean()) for parts in triple])
                if np.isfinite(means).all():
                    self._sums += means
                    self._n_frames += 1
        self._last = now

    def jitter(self) -> Jitter:
        """The means until here."""
        if not self._n_frames:
            return Jitter(*[math.nan] * 4, 0)
        before_mm, after_mm, before_px, after_px = (self._sums / self._n_frames).tolist()
        return Jitter(1e3 * before_mm, 1e3 * after_mm, before_px, after_px, self._n_frames)
