"""Keypoints of a video in, hands of a video out, frame by frame."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dhpe_fast.atomic_write import whole_file
from dhpe_fast.conventions import JOINT_ORDERS
from dhpe_fast.evidence import HandEvidence
from dhpe_fast.io import fit_record, load_json, load_npy, plain
from dhpe_fast.video import FrameFit, Jitter, VideoFit, seen_hands

VIDEO_FIT_SCHEMA = "dhpe-fast/video-fit/1"
"""Names the layout of the JSON lines; its number grows when readers of the old layout would misread it."""


def read_video_keypoints(
    path: str | os.PathLike[str],
    order: str | None = None,
) -> list[list[HandEvidence]]:
    """Reads the 2D keypoints of a video, a list of hands for each frame, as ``fit_video`` takes them.

    ``.npy`` holds an array (T, 21, 2 | 3) or (T, N, 21, 2 | 3): x, y and possibly confidence, pixels; NaN is unknown,
    and a hand with fewer than four known joints was not seen. ``.json`` holds a list with an entry for each frame::

        [<frame>, ...]
        {"frames": [<frame>, ...], "order": "std"}

    where a frame is ``null`` (no hand), a hand or a list of hands, and a hand is nested lists as above, or
    ``{"keypoints": [[x, y], ...], "side": "right"}``.

    Args:
        path: the file.
        order: the joint order of the file, a key of ``conventions.JOINT_ORDERS``; goes before what the file says.
            Where neither says anything it is STD.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the file is not as above; the message names the frame.
    """
    file = Path(path)
    if file.suffix == ".npy":
        frames: Any = list(load_npy(file))
    elif file.suffix == ".json":
        frames = load_json(file)
    else:
        raise ValueError(f"{file}: expected a .json or .npy file, got '{file.suffix}'")
    if isinstance(frames, dict):
        if not isinstance(frames.get("frames"), list):
            raise ValueError(f"{file}: expected an entry 'frames' with a list, found {', '.join(frames) or 'nothing'}")
        order, frames = order or frames.get("order"), frames["frames"]
    order = order or "std"
    if order not in JOINT_ORDERS:
        raise ValueError(f"{file}: unknown joint order {order!r}; known are {', '.join(JOINT_ORDERS)}")
    if not isinstance(frames, list):
        raise ValueError(f"{file}: expected a list with an entry for each frame, got {type(frames).__name__}")
    hands = []
    for index, frame in enumerate(frames):
        try:
            hands.append(_hands_of(frame, order))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: frame {index}: {error}") from None
    return hands


@contextmanager
def video_fit_writer(path: str | os.PathLike[str], video: VideoFit, name: str) -> Iterator[Any]:
    """Writes the hands of a video as JSON lines; the file appears at the end, whole or not at all.

    The first line is about the video: "schema", "video", "fps". Then one for each frame: "frame", "time_s" and
    "hands", each hand with its "track" and what ``io.fit_record`` says of it but for the vertices, which "params" give.
    The last line is {"summary": ...} with "frames", "jitter", and "fault" if the video was damaged.

    Args:
        path: the file.
        video: whose frames they are.
        name: what the video is called in the file.

    Yields:
        A function that takes each ``FrameFit`` in turn.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    with whole_file(Path(path)) as stream:

        def line(record: dict[str, Any]) -> None:
            stream.write(json.dumps(record, allow_nan=False).encode() + b"\n")

        n_frames = 0

        def write(frame: FrameFit) -> None:
            nonlocal n_frames
            n_frames += 1
            line(frame_record(frame))

        line({"schema": VIDEO_FIT_SCHEMA, "video": name, "fps": video.fps})
        yield write
        line({"summary": {"frames": n_frames, "jitter": jitter_record(video.jitter), "fault": video.fault}})


def frame_record(frame: FrameFit) -> dict[str, Any]:
    """What a frame's line says, as JSON types; non-finite numbers are None."""
    hands = [{"track": hand.track_id, **fit_record(hand.fit, vertices=False)} for hand in frame.hands]
    return {"frame": frame.index, "time_s": plain(frame.time_s), "hands": hands, "faults": list(frame.faults)}


def jitter_record(jitter: Jitter) -> dict[str, Any]:
    """Jitter as JSON types; non-finite numbers are None."""
    return plain(asdict(jitter))


def _hands_of(frame: Any, order: str) -> list[HandEvidence]:
    if frame is None:
        return []
    if isinstance(frame, list) and any(isinstance(hand, dict) for hand in frame):
        return [one for hand in frame for one in _hands_of(hand, order)]
    if not isinstance(frame, dict):
        return seen_hands(np.asarray(frame, dtype=np.float64), order) if len(frame) else []
    if "keypoints" not in frame:
        raise ValueError(f"expected an entry 'keypoints', found {', '.join(frame) or 'nothing'}")
    return [replace(hand, side=frame.get("side")) for hand in _hands_of(frame["keypoints"], order)]
