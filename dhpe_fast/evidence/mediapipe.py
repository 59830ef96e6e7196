"""2D joints from Google's MediaPipe Hands, an optional extra: ``pip install "dhpe-fast[mediapipe]"``.

MediaPipe looks for palms in a picture shrunk to 192 x 192, so that a small hand in a large photograph escapes it, and a
textured background sometimes passes for one. Hence the two habits of this module: it looks again in ever smaller
tiles when nothing was found, and it believes a find only when a second look, at a crop around the find, agrees.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np

from dhpe_fast.boxes import box_iou
from dhpe_fast.evidence.find import Find
from dhpe_fast.evidence.given import given_boxes
from dhpe_fast.evidence.hand_evidence import HandEvidence
from dhpe_fast.hand.camera import CropBox

LOOK_SIZE_PX = 384
"""Side of the squares that MediaPipe gets to see."""
TILES_PER_SIDE = (2, 4)
"""Tiles along the image's shorter side in the searches that follow a fruitless look at the whole image."""
MIN_TILE_PX = 64.0
BOX_LOOKS = (2.0, 1.5, 3.0)
"""Sides of the squares looked at for a box of the caller's, by its longer side, until one shows the hand."""
FIND_MARGIN = 2.0
"""Side of the square of a second look, by the longer side of the joints' bounding box."""
AGREEMENT = 0.1
"""Two looks agree when the joints moved by less than this on average, by the longer side of their box."""
MAX_LOOKS = 3
"""Further looks at a find before it is given up."""
BOX_MIN_SCORE = 0.5
"""Score from which a hand in a box of the caller's counts; the caller has said that it is one."""

_SIDE_OF_LABEL: dict[str, Literal["right", "left"]] = {"Left": "right", "Right": "left"}
# MediaPipe names hands as in a mirrored selfie; in an ordinary photograph its "Left" is a right hand.


class MediaPipeEvidence:
    """An evidence source (:class:`~dhpe_fast.evidence.EvidenceSource`) on MediaPipe Hands, the full model.

    It names the side of each hand. It gives no confidence for single joints, hidden ones are guesses: all are 1.

    Args:
        max_hands: the most hands looked for in one square.
        min_score: handedness score from which a find without a box counts, in [0, 1].
        search_tiles: whether to look again in tiles when the whole image shows no hand. A 1280 x 720 image
            without any hand then takes about 120 looks of 15 ms.

    Raises:
        ImportError: if MediaPipe is not installed, with the command that installs it.
    """

    def __init__(self, *, max_hands: int = 4, min_score: float = 0.9, search_tiles: bool = True) -> None:
        if isinstance(max_hands, bool) or not isinstance(max_hands, int) or max_hands < 1:
            raise ValueError(f"max_hands: expected a whole number >= 1, got {max_hands!r}")
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score: expected a number in [0, 1], got {min_score!r}")
        self._min_score = min_score
        self._search_tiles = search_tiles
        self._make_hands = partial(
            _hands_class(),
            static_image_mode=True,
            max_num_hands=max_hands,
            model_complexity=1,
            min_detection_confidence=0.5,
        )
        self._hands: Any = None
        self._lock = threading.Lock()  # a MediaPipe graph serves one call at a time

    def __call__(
        self,
        image_rgb: np.ndarray,  # (H, W, 3) uint8
        boxes: np.ndarray | None = None,  # (N, 4) left, top, right, bottom
    ) -> list[HandEvidence]:
        """The hands in the image, best first; with boxes, in their order and without those that show no hand."""
        if boxes is not None:
            boxes = given_boxes(boxes, image_rgb.shape[:2])
            finds = [self._find_in_box(image_rgb, box) for box in boxes]
            return [find.evidence() for find in finds if find is not None]
        for squares in self._searches(image_rgb.shape[:2]):
            finds = self._confirmed(image_rgb, [f for s in squares for f in self._look(image_rgb, s)])
            if finds:
                return [find.evidence() for find in finds]
        return []

    def _searches(self, image_size: tuple[int, int]) -> Iterator[list[CropBox]]:
        height, width = image_size
        yield [CropBox((0.5 * width, 0.5 * height), float(max(width, height)))]
        for tiles in TILES_PER_SIDE if self._search_tiles else ():
            side = min(width, height) / tiles
            if side >= MIN_TILE_PX:
                yield _tiles(image_size, side)

    def _confirmed(self, image_rgb: np.ndarray, finds: list[Find]) -> list[Find]:
        """The finds on which a closer look agrees, best first, each hand once."""
        confirmed: list[Find] = []
        for find in sorted(finds, key=lambda f: -f.score):
            if any(find.is_same_hand(other) for other in confirmed):
                continue
            settled = self._settle(image_rgb, find)
            if settled is not None and not any(settled.is_same_hand(other) for other in confirmed):
                confirmed.append(settled)
        return sorted(confirmed, key=lambda f: -f.score)

    def _settle(self, image_rgb: np.ndarray, find: Find) -> Find | None:
        for _ in range(MAX_LOOKS):
            again = find.nearest(self._look(image_rgb, _square(find)))
            if again is None:
                return None
            if again.side == find.side and again.distance(find) < AGREEMENT:
                return again if again.score >= self._min_score else None
            find = again
        return None

    def _find_in_box(self, image_rgb: np.ndarray, box: np.ndarray) -> Find | None:
        center, extent = 0.5 * (box[:2] + box[2:]), float((box[2:] - box[:2]).max())
        for scale in BOX_LOOKS:
            seen = [
                find
                for find in self._look(image_rgb, CropBox(tuple(center), scale * extent))
                if find.score >= BOX_MIN_SCORE and np.abs(find.center_px - center).max() < 0.5 * extent
            ]
            if seen:
                find = max(seen, key=lambda f: box_iou(f.box_px, box))
                return find.nearest(self._look(image_rgb, _square(find))) or find
        return None

    def _look(self, image_rgb: np.ndarray, square: CropBox) -> list[Find]:
        crop = square.crop_image(image_rgb, LOOK_SIZE_PX)
        with self._lock:
            if self._hands is None:
                with _quiet():  # MediaPipe writes its notes while its graph starts, until the first picture is through
                    self._hands = self._make_hands()
                    result = self._hands.process(crop)
            else:
                result = self._hands.process(crop)
        return _finds(result, square)


def _square(find: Find) -> CropBox:
    """Where a second look goes."""
    return CropBox(tuple(find.center_px), FIND_MARGIN * find.extent_px)


def _finds(result: Any, square: CropBox) -> list[Find]:
    """MediaPipe's answer for the crop `square`, which spans [0, 1] x [0, 1], brought into the image."""
    finds = []
    for landmarks, handedness in zip(result.multi_hand_landmarks or (), result.multi_handedness or (), strict=True):
        joints = np.array([(point.x, point.y) for point in landmarks.landmark], dtype=np.float64)
        label = handedness.classification[0]
        find = Find(
            np.asarray(square.top_left_px) + square.size_px * joints,
            np.ones(len(joints)),
            _SIDE_OF_LABEL[label.label],
            min(max(float(label.score), 0.0), 1.0),
        )
        if find.extent_px >= 1:
            finds.append(find)
    return finds


def _tiles(image_size: tuple[int, int], side: float) -> list[CropBox]:
    """Squares that cover the image, neighbours overlapping by half or more, so that one shows each hand whole."""
    centers = [
        np.linspace(0.5 * side, length - 0.5 * side, max(int(np.ceil(2 * length / side)) - 1, 1))
        for length in image_size
    ]
    return [CropBox((float(x), float(y)), side) for y in centers[0] for x in centers[1]]


def _hands_class() -> Callable[..., Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages it imports
            import mediapipe

            return mediapipe.solutions.hands.Hands
    except (ImportError, AttributeError) as error:
        # AttributeError: later MediaPipe has no `solutions`, and no models in its wheel.
        raise ImportError(
            f"evidence: MediaPipe 0.10.21 could not be loaded ({error}): "
            'run `pip install "dhpe-fast[mediapipe]"`, or pass evidence="networks" or keypoints='
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on the process's standard error: C++ logs of MediaPipe heed no setting. Warnings neither."""
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (AttributeError, OSError):  # no standard error at all
        yield
        return
    try:
        with open(os.devnull, "wb") as sink, warnings.catch_warnings():
            os.dup2(sink.fileno(), 2)
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
