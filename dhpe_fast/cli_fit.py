"""The work of ``dhpe-fast fit``: pictures in a pool, videos frame by frame; what fails is named, the others go on."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import typer

from dhpe_fast.fit import fit, solver_name
from dhpe_fast.hand import HandModel
from dhpe_fast.hand_filter import SMOOTHING
from dhpe_fast.hand_fit import HandFit
from dhpe_fast.image import read_image
from dhpe_fast.io import read_keypoints, save_fit, save_image
from dhpe_fast.stages import StageClock, stage_table
from dhpe_fast.video import FrameFit, fit_video
from dhpe_fast.video_file import is_video, video_writer
from dhpe_fast.video_io import read_video_keypoints, video_fit_writer
from dhpe_fast.viz import overlay

PICTURE_SUFFIXES = (".bmp", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What is taken for a picture in a folder; a file that is named is read whatever its suffix."""
WORKERS = max(1, min(4, os.cpu_count() or 1))
"""Pictures that are worked on at a time: while one is decoded another is fitted and a third is drawn."""

ITERATIONS, SUFFIXES = 50, (".glb",)
"""Of pictures, where nothing else is asked for; videos have neither."""
SHARED_STAGES = ("read", "evidence")
"""Stages that the hands of a frame have in common."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Failure = tuple[Path, str]
"""What could not be fitted, and why."""


@dataclass(frozen=True)
class FitJob:
    """What all files of a call share."""

    output: Path
    keypoints: Path | None
    order: str | None
    model: HandModel | None
    options: dict[str, Any] = field(default_factory=dict)
    """Of ``fit`` and ``fit_video``."""
    iterations: int = ITERATIONS
    suffixes: Sequence[str] = SUFFIXES
    smooth: bool = True
    profile: bool = False

    @classmethod
    def of(cls, output: Path, keypoints: Path | None, order: str | None, mano: Path | None) -> FitJob:
        """Fails early on what would fail for every file."""
        if keypoints is None and order is not None:
            raise ValueError("--order: needs --keypoints, whose joint order it names")
        if keypoints is not None and not keypoints.is_file():
            raise FileNotFoundError(f"--keypoints: {keypoints}: no such file")
        model = None if mano is None else HandModel.from_mano(mano)
        return cls(output, keypoints, order, model)

    def evidence(self, image: Path, n_files: int) -> dict[str, Any]:
        """The arguments of ``fit`` that say where the hand of this image is."""
        if self.keypoints is None:
            return {}
        found = read_keypoints(self.keypoints, image.name, self.order)
        if n_files > 1 and not found.named:
            raise ValueError(f"{self.keypoints}: holds the keypoints of one picture, but {n_files} were given")
        side = {"hand": found.side} if found.side and self.options["hand"] == "auto" else {}
        return {"keypoints": found.joints2d_px, **side}


def expanded(paths: Iterable[Path]) -> list[Path]:
    """The files, and the pictures and videos of the folders, sorted by name.

    Raises:
        ValueError: if a folder holds none.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.iterdir() if is_video(file) or file.suffix.lower() in PICTURE_SUFFIXES)
        if not inside:
            raise ValueError(f"{path}: the folder holds no pictures and no videos")
        files += inside
    return files


def fit_all(files: Sequence[Path], job: FitJob) -> list[Failure]:
    """Fits and writes each file; returns those that failed, and why, in their order."""
    failures: list[Failure] = []
    stages_ms: list[dict[str, float]] = []
    names = dict(zip(range(len(files)), _distinct_names(files), strict=True))
    pictures = [index for index, file in enumerate(files) if not is_video(file)]

    def attempt(index: int) -> tuple[list[str], list[dict[str, float]], str | None]:
        try:
            return *_fit_picture(files[index], names[index], job, len(files)), None
        except ImportError:  # what is not installed is missing for every picture
            raise
        except Exception as error:  # whatever is wrong with one picture, the others are fitted
            return [], [], _reason(error)

    done = in_order(attempt, pictures)
    for index, file in enumerate(progress(files)):
        if is_video(file):
            lines, stages, reason = _attempt_video(file, names[index], job, len(files))
        else:
            lines, stages, reason = next(done)
        for line in lines:
            typer.echo(line)
        stages_ms += stages
        if reason is not None:
            failures.append((file, reason))
    if job.profile and stages_ms:
        typer.echo(stage_table(stages_ms))
        typer.echo(f"solver: {solver_name(torch.device(job.options.get('device') or 'cpu'))}")
    return failures


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int = WORKERS,
) -> Iterator[Result]:
    """The results of the work, done in threads, in the order of the items; never more than twice as many wait."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def progress(files: Sequence[Path]) -> Iterator[Path]:
    """The files, with a progress bar on a terminal."""
    if len(files) < 2 or not sys.stderr.isatty():
        yield from files
        return
    with typer.progressbar(files, label="fitting", file=sys.stderr) as bar:
        yield from bar


def save_hand(found: HandFit, drawn: np.ndarray, base: Path, suffixes: Sequence[str]) -> list[Path]:
    """Writes the overlay that was drawn, the meshes and the parameters of a hand; returns their paths."""
    files = [base.with_name(f"{base.name}_overlay.png")]
    save_image(files[0], drawn)
    for suffix in (*suffixes, ".json"):
        files.append(base.with_name(base.name + suffix))
        save_fit(found, files[-1])
    return files


def _distinct_names(files: Iterable[Path]) -> Iterator[str]:
    taken: set[str] = set()
    for file in files:
        numbered = (f"{file.stem}-{number}" if number > 1 else file.stem for number in count(1))
        name = next(name for name in numbered if name not in taken)
        taken.add(name)
        yield name


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


# --- Pictures ------------------------------------------------------------------------------------------------


def _fit_picture(image: Path, stem: str, job: FitJob, n_files: int) -> tuple[list[str], list[dict[str, float]]]:
    """What to say of the hands of a picture, and where the time of each went.

    A hand's files have the picture's name; those of several are numbered, and one more overlay shows them together.
    """
    clock = StageClock()
    pixels = read_image(image)
    clock.lap("read")
    found = fit(pixels, **{**job.options, "iterations": job.iterations, **job.evidence(image, n_files)})
    hands = found if isinstance(found, list) else [found]
    if not hands:
        raise ValueError("no hand was found")
    lines, stages, together = [], [], pixels
    for index, one in enumerate(hands):
        name = stem if len(hands) == 1 else f"{stem}_{index}"
        times = StageClock(one.timings_ms | {"read": clock.stages_ms["read"]})
        drawn = overlay(pixels, one)
        times.lap("draw")
        save_hand(one, drawn, job.output / name, job.suffixes)
        times.lap("write")
        stages.append(times.stages_ms)
        off_px, of_box = one.residuals["joints2d_px"], 100 * one.residuals["joints2d_box"]
        seen = "seen" if job.keypoints is None else "given"
        distance = f"joints {off_px:.2f} px on average from the {seen} ones ({of_box:.1f} % of the hand)"
        lines.append(f"{name}: {one.side} hand, {distance}, score {one.score:.2f}")
        together = overlay(together, one) if len(hands) > 1 else drawn
    if len(hands) > 1:
        save_image(job.output / f"{stem}_overlay.png", together)
    return lines, stages


# --- Videos --------------------------------------------------------------------------------------------------


def _attempt_video(
    file: Path, stem: str, job: FitJob, n_files: int
) -> tuple[list[str], list[dict[str, float]], str | None]:
    try:
        return _fit_video(file, stem, job, n_files)
    except ImportError:
        raise
    except Exception as error:
        return [], [], _reason(error)


def _fit_video(
    file: Path, stem: str, job: FitJob, n_files: int
) -> tuple[list[str], list[dict[str, float]], str | None]:
    """What to say of a video, where the time of its frames went, and what was wrong with it."""
    if job.keypoints is not None and n_files > 1:
        raise ValueError(f"{job.keypoints}: holds the keypoints of one video, but {n_files} files were given")
    keypoints = None if job.keypoints is None else read_video_keypoints(job.keypoints, job.order)
    video = fit_video(file, keypoints=keypoints, smooth=SMOOTHING if job.smooth else None, **job.options)
    tracks: Counter[tuple[int, str]] = Counter()
    stages: list[dict[str, float]] = []
    draws_ms: list[float] = []
    n_frames, n_faults, first_fault = 0, 0, ""
    with (
        video_writer(job.output / f"{stem}_overlay.mp4", video.fps) as pictures,
        video_fit_writer(job.output / f"{stem}_hands.jsonl", video, file.name) as write,
        _frames_bar(video.n_promised) as advance,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # of what is missing, which is said at the end
        for frame, picture, draw_ms in in_order(_drawn, video):
            clock = StageClock(_stages_of(frame))
            pictures.write(picture)
            write(frame)
            clock.lap("write")
            tracks.update((hand.track_id, hand.fit.side) for hand in frame.hands)
            if frame.faults and not n_faults:
                first_fault = f"frame {frame.index}: {frame.faults[0]}"
            n_faults += len(frame.faults)
            if job.profile and frame.hands:
                stages.append(clock.stages_ms)
                draws_ms.append(draw_ms)
            n_frames += 1
            advance()
    lines = [f"{stem}: {n_frames} frames, jitter {video.jitter}"]
    lines += [f"{stem}: track {track}, {side} hand, in {seen} frames" for (track, side), seen in sorted(tracks.items())]
    if n_faults:
        lines.append(f"{stem}: {n_faults} hands could not be fitted, first {first_fault}")
    lines += _ignored_options(stem, job)
    if draws_ms:
        lines.append(f"{stem}: drawing took {np.median(draws_ms):.2f} ms a frame, beside the stages of the table")
    return lines, stages, video.fault or (None if tracks else "no hand was found")


def _stages_of(frame: FrameFit) -> dict[str, float]:
    """Milliseconds of a frame: what its hands have in common counts once."""
    stages: dict[str, float] = {}
    for hand in frame.hands:
        for name, time_ms in hand.fit.timings_ms.items():
            stages[name] = time_ms + (0.0 if name in SHARED_STAGES else stages.get(name, 0.0))
    return stages


def _ignored_options(stem: str, job: FitJob) -> list[str]:
    """What was asked for and is of pictures only."""
    asked = {"--iterations": job.iterations != ITERATIONS, "--format": tuple(job.suffixes) != SUFFIXES}
    return [f"{stem}: is a video, {name} is for pictures and was ignored" for name, given in asked.items() if given]


def _drawn(frame: FrameFit) -> tuple[FrameFit, np.ndarray, float]:
    clock = StageClock()
    picture = frame.overlay()
    clock.lap("draw")
    return frame, picture, clock.stages_ms["draw"]


@contextmanager
def _frames_bar(n_frames: int | None) -> Iterator[Callable[[], None]]:
    """A progress bar over the frames of a video, on a terminal; gives a function that counts one."""
    if n_frames is None or not sys.stderr.isatty():
        yield lambda: None
        return
    with typer.progressbar(length=n_frames, label="frames", file=sys.stderr) as bar:
        yield lambda: bar.update(1)
