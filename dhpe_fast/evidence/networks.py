"""2D joints from the package's own networks: nothing else needs to be installed.

The locator finds hands in the photograph, and the whole of it may be one hand. DHPE's 2D pose network f_J2D reads the
joints of each from a square crop, as it was trained: around the joints, a left hand mirrored. Where the joints are is
known only afterwards, hence further looks, each at the crop around the joints that the one before has found, and the
last at several scales. The side is not known either: f_J2D sees no joints in a hand of the other side, so that its
peaks tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dhpe_fast import pretrained
from dhpe_fast.conventions import BORDER_GREY, CROP_MARGIN, MIDDLE_MCP
from dhpe_fast.evidence.find import Find, distinct
from dhpe_fast.evidence.given import given_boxes
from dhpe_fast.evidence.hand_evidence import MIN_EXTENT_PX, MIN_JOINTS, HandEvidence, SeenSilhouette
from dhpe_fast.hand.camera import CropBox
from dhpe_fast.nets.heatmaps import SIGMA, joints_from_heatmaps
from dhpe_fast.nets.locate import locate

if TYPE_CHECKING:
    from dhpe_fast.nets import DHPE
    from dhpe_fast.nets.locator import Locator

SURE = 0.3
"""From this peak on a joint counts as seen where the second crop is laid around the joints."""
MAX_HANDS = 4
"""So many hands are reported, unless the caller asks for more or fewer."""
MIN_LOCATED = 0.15
"""From this score on what the locator finds is looked at: f_J2D knows hands better, and sorts out what is none."""
MAX_LOCATED = 6
"""So many of these, at most."""
SECOND_LOOK = 0.7
"""A side is given up after the first look when its mean peak is less than this part of the other one's."""
CLOSER_LOOKS = 3
"""So many more looks at a hand, at most, each at the crop around the joints that the one before has found ..."""
ALIKE = 0.03
"""... until the crop moves and grows by less than this part of its side."""
MIN_CONFIDENCE = 0.40
"""A hand whose mean peak is lower is none: on validation pictures, where the F-measure is highest
(bench/evidence_threshold.py)."""
MIN_PEAK = 0.01
"""A lower peak says no more than this one."""
LEAST_NOISE = 0.015
"""Standard deviation of the coordinates of the surest joints, by the side of the crop: half a cell."""
Side = Literal["right", "left"]
_TURNS = 4
SCALES = (0.8, 1.0, 1.25)
"""Of the views in which the joints of a hand that is found are read at last, by the side of its crop."""
WIDEST = max(SCALES)
_SIDES: tuple[Side, ...] = ("right", "left")


@dataclass(frozen=True, eq=False)
class Seen:
    """What f_J2D sees in a batch of crops."""

    heatmaps: Tensor
    """(B, 21, n, n)"""
    silhouettes: Tensor | None
    """(B, n, n) probability that a cell shows the hand; None of networks that do not tell."""


def seen_in_turns(
    dhpe: DHPE,
    images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
) -> Seen:
    """What f_J2D sees, as the mean over four quarter turns of each crop.

    Hands have no upright position, so that these are four opinions; where they differ, the peaks are lower.
    """
    turned = torch.cat([images.rot90(turn, (2, 3)) for turn in range(_TURNS)])
    if not dhpe.spec()["pose2d_silhouette"]:
        return Seen(_turned_back(dhpe.pose2d(turned)[-1].float()), None)
    heatmaps, log_odds = dhpe.pose2d.heatmaps_and_silhouette(turned)
    return Seen(_turned_back(heatmaps.float()), _turned_back(log_odds.float().sigmoid()))


def _turned_back(maps: Tensor) -> Tensor:  # (4 B, ..., n, n) -> (B, ..., n, n)
    return torch.stack([part.rot90(-turn, (-2, -1)) for turn, part in enumerate(maps.chunk(_TURNS))]).mean(dim=0)


def seen_in_scales(
    dhpe: DHPE,
    images: Tensor,  # (B, 3, W, W) RGB in [0, 1], W = ``WIDEST`` * S
) -> Seen:
    """What f_J2D sees in turns and at several scales about the crops' centres, as the mean over those that show a cell.

    Args:
        dhpe: has the f_J2D; its crops are S pixels.
        images: the crops with a margin around them, of as much as the widest view shows.
    """
    size, views = dhpe.image_size, []
    for scale in SCALES:
        place = _about_centre(scale / WIDEST, len(images), size).to(images)
        view = F.grid_sample(images, place, padding_mode="border", align_corners=False)
        views.append(_rescaled(seen_in_turns(dhpe, view), scale))
    shown = torch.stack([weight for _, _, weight in views])
    heatmaps = torch.stack([maps for maps, _, _ in views]).sum(0) / shown.sum(0)
    if views[0][1] is None:
        return Seen(heatmaps, None)
    return Seen(heatmaps, (torch.stack([maps for _, maps, _ in views]).sum(0) / shown.sum(0)[:, 0]).clamp(0, 1))


def _rescaled(seen: Seen, scale: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Maps of a view in the cells of the crop, zero where the view ends, and 1 where it does not, (B, 1, n, n)."""
    b, _, n, _ = seen.heatmaps.shape
    place = _about_centre(1 / scale, b, n).to(seen.heatmaps)
    inside = (place.abs() <= 1).all(-1).to(seen.heatmaps)[:, None]

    def moved(maps: Tensor) -> Tensor:
        return F.grid_sample(maps, place, padding_mode="border", align_corners=False) * inside

    silhouettes = None if seen.silhouettes is None else moved(seen.silhouettes[:, None])[:, 0]
    return moved(seen.heatmaps), silhouettes, inside


def _about_centre(factor: float, batch: int, size: int) -> Tensor:  # (B, size, size, 2)
    """Places of a grid in [-1, 1] for ``grid_sample``, drawn together or apart about the centre."""
    theta = torch.tensor([[factor, 0, 0], [0, factor, 0]]).expand(batch, 2, 3)
    return F.affine_grid(theta, [batch, 1, size, size], align_corners=False)


def joints_and_peaks(
    heatmaps: Tensor,  # (B, 21, n, n)
    joint0: str,
) -> tuple[np.ndarray, np.ndarray]:
    """What f_J2D has seen: joints (B, 21, 2) in the crop frame, and how high its maps are there, (B, 21) in [0, 1].

    Args:
        heatmaps: of ``seen_in_turns`` or ``seen_in_scales``, or its last stage.
        joint0: what it takes for joint 0. The answer has the wrist there, as the hand model.
    """
    joints = joints_from_heatmaps(heatmaps, 2, subpixel=True).double().cpu().numpy() - 1
    peaks = heatmaps.flatten(2).amax(-1).clamp(0, 1).double().cpu().numpy()
    if joint0 == "palm":  # midway between wrist and middle MCP
        joints[:, 0] = 2 * joints[:, 0] - joints[:, MIDDLE_MCP]
        peaks[:, 0] = np.minimum(peaks[:, 0], peaks[:, MIDDLE_MCP])
    return joints, peaks


@dataclass(frozen=True, eq=False)
class Reading(Find):
    """What was read in a crop; the confidences are the peaks of the heat maps."""

    square: CropBox
    """The crop."""
    silhouette: SeenSilhouette | None = None

    def evidence(self) -> HandEvidence:
        """As the fit takes it; how exact the joints are follows from the peaks, see :class:`NetworkEvidence`."""
        spread_sq = SIGMA**2 * (1 / np.maximum(self.confidence, MIN_PEAK) - 1) / 2 + LEAST_NOISE**2
        noise_px = self.square.size_px * float(np.sqrt(spread_sq.min()))
        confidence = spread_sq.min() / spread_sq
        return HandEvidence(self.joints_px, confidence, self.side, self.score, noise_px, self.silhouette)


class NetworkEvidence:
    """An evidence source (:class:`~dhpe_fast.evidence.EvidenceSource`) on the networks that ship with the package.

    It names the side of each hand: the one as which f_J2D sees joints. How exact a joint is follows from the peak of
    its heat map: what f_J2D is trained towards, by squares or by cross-entropy, is the mean of the maps
    exp(-d^2 / sigma^2) over all places where the joint may be. If these are spread normally, by u along each axis, the
    peak is p = sigma^2 / (sigma^2 + 2 u^2). A hand with peaks that are low on average is not reported; their mean is
    its score.

    Args:
        locator: finds hands; None is ``pretrained.locator()``, read at the first image.
        dhpe: its f_J2D reads joints; None is ``pretrained.dhpe()``, read at the first image.
        device: where these two compute; networks that are given stay where they are.
        max_hands: the most hands looked for where no boxes are given.
        side: of all hands, where it is known; None looks at each as if it were of either side, and takes the one in
            which it sees joints.
        min_confidence: mean peak of the joints from which a hand is reported, in [0, 1].
    """

    def __init__(
        self,
        *,
        locator: Locator | None = None,
        dhpe: DHPE | None = None,
        device: torch.device | str = "cpu",
        max_hands: int = MAX_HANDS,
        side: Side | None = None,
        min_confidence: float = MIN_CONFIDENCE,
    ) -> None:
        if isinstance(max_hands, bool) or not isinstance(max_hands, int) or max_hands < 1:
            raise ValueError(f"max_hands: expected a whole number >= 1, got {max_hands!r}")
        if side not in ("right", "left", None):
            raise ValueError(f"side: expected 'right', 'left' or None, got {side!r}")
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence: expected a number in [0, 1], got {min_confidence!r}")
        self._locator, self._dhpe, self._device = locator, dhpe, torch.device(device)
        self._max_hands, self._min_confidence = max_hands, min_confidence
        self._sides: Sequence[Side] = _SIDES if side is None else (side,)

    def __call__(
        self,
        image_rgb: np.ndarray,  # (H, W, 3) uint8
        boxes: np.ndarray | None = None,  # (N, 4) left, top, right, bottom
    ) -> list[HandEvidence]:
        """The hands in the image, best first; with boxes, in their order and without those that show no hand.

        Raises:
            pretrained.WeightsError: if the package's weights are missing or damaged.
        """
        with torch.no_grad():
            if boxes is None:
                locator = pretrained.locator(self._device) if self._locator is None else self._locator
                located = locate(locator, image_rgb, max_hands=MAX_LOCATED, threshold=MIN_LOCATED)
                finds = distinct(self._in_boxes(image_rgb, [*(hand.box_px for hand in located), _box_of(image_rgb)]))
                return [find.evidence() for find in finds[: self._max_hands]]
            return [find.evidence() for find in self._in_boxes(image_rgb, given_boxes(boxes, image_rgb.shape[:2]))]

    def _in_boxes(self, image_rgb: np.ndarray, boxes: Iterable[np.ndarray]) -> list[Reading]:
        """The hands in boxes, in their order, without those that show none."""
        looks = [[_Look.at(box, side) for side in self._sides] for box in boxes]
        return [find for find in self._read(image_rgb, looks) if find is not None]

    def _read(self, image_rgb: np.ndarray, candidates: Sequence[Sequence[_Look]]) -> list[Reading | None]:
        """The joints of each candidate, by the best of the looks at it; None where they are unsure."""
        found = iter(self._look(image_rgb, [look for looks in candidates for look in looks]))
        readings = [_likely([next(found) for _ in looks]) for looks in candidates]
        latest = [(n, find) for n, finds in enumerate(readings) for find in finds]
        for _ in range(CLOSER_LOOKS):
            closer = [(n, _Look.around(find), find.square) for n, find in latest]
            closer = [(n, look) for n, look, before in closer if look is not None and not _alike(look.square, before)]
            again = self._look(image_rgb, [look for _, look in closer])
            latest = [(n, find) for (n, _), find in zip(closer, again, strict=True)]
            for n, find in latest:
                readings[n].append(find)
        best = [max(finds, key=_score) for finds in readings]
        hands = [n for n, find in enumerate(best) if self._is_hand(find)]
        exact = self._look(image_rgb, [_Look(best[n].square, best[n].side) for n in hands], seen_in_scales)
        found: list[Reading | None] = [None] * len(best)
        for n, find in zip(hands, exact, strict=True):
            found[n] = replace(find, score=best[n].score)  # scores are compared at one scale
        return found

    def _is_hand(self, find: Reading) -> bool:
        return find.score >= self._min_confidence and find.extent_px >= MIN_EXTENT_PX

    def _look(
        self,
        image_rgb: np.ndarray,
        looks: Sequence[_Look],
        see: Callable[[DHPE, Tensor], Seen] = seen_in_turns,
    ) -> list[Reading]:
        """The joints in each crop, all crops at a time; the score is the mean peak."""
        if not looks:
            return []
        dhpe = pretrained.dhpe(self._device) if self._dhpe is None else self._dhpe
        device, margin = next(dhpe.parameters()).device, WIDEST if see is seen_in_scales else 1.0
        crops = torch.from_numpy(np.stack([look.crop(image_rgb, dhpe.image_size, margin) for look in looks]))
        seen = see(dhpe, crops.to(device).permute(0, 3, 1, 2).float() / 255)
        joints, peaks = joints_and_peaks(seen.heatmaps, dhpe.spec()["joint0"])
        silhouettes = len(looks) * [None] if seen.silhouettes is None else seen.silhouettes.cpu().numpy()
        return [look.find(*read) for look, *read in zip(looks, joints, peaks, silhouettes, strict=True)]


@dataclass(frozen=True)
class _Look:
    """A square of the image as f_J2D gets to see it: as if it showed a right hand."""

    square: CropBox
    side: Side

    @classmethod
    def at(
        cls,
        box_px: np.ndarray,  # (4,) left, top, right, bottom
        side: Side,
    ) -> _Look:
        """Where only the box is known."""
        center, extent = 0.5 * (box_px[:2] + box_px[2:]), float((box_px[2:] - box_px[:2]).max())
        return cls(CropBox(tuple(center), CROP_MARGIN * extent), side)

    @classmethod
    def around(cls, find: Reading) -> _Look | None:
        """The paper's crop around joints that are sure; None where too few are."""
        sure = find.confidence >= SURE
        if sure.sum() < MIN_JOINTS or np.ptp(find.joints_px[sure], axis=0).max() < MIN_EXTENT_PX:
            return None
        # In place of a joint that is not sure, the middle MCP does not change the bounding box.
        middle = find.joints_px[MIDDLE_MCP] if sure[MIDDLE_MCP] else find.joints_px[sure].mean(axis=0)
        points = np.where(sure[:, None], find.joints_px, middle)
        return cls(CropBox.from_points(points), find.side)

    def crop(self, image_rgb: np.ndarray, size: int, margin: float = 1.0) -> np.ndarray:
        """The square, widened by the margin, as one of `size` pixels: (size * margin, size * margin, 3) uint8."""
        wider = CropBox(self.square.center_px, self.square.size_px * margin)
        crop = wider.crop_image(image_rgb, round(size * margin), border=BORDER_GREY)
        return crop[:, ::-1] if self.side == "left" else crop

    def find(
        self,
        joints: np.ndarray,  # (21, 2) in the crop frame
        peaks: np.ndarray,  # (21,)
        silhouette: np.ndarray | None,  # (n, n)
    ) -> Reading:
        """What was read in the crop, in the image."""
        flip = np.array([-1.0 if self.side == "left" else 1.0, 1.0])
        joints_px = np.asarray(self.square.center_px) + 0.5 * self.square.size_px * flip * joints
        if silhouette is not None:
            silhouette = SeenSilhouette(silhouette[:, ::-1] if self.side == "left" else silhouette, self.square)
        return Reading(joints_px, peaks, self.side, float(peaks.mean()), self.square, silhouette)


def _box_of(image_rgb: np.ndarray) -> np.ndarray:  # (4,)
    """The whole picture: many are of one hand, of which the locator may find a part alone."""
    height, width = image_rgb.shape[:2]
    return np.array([0.0, 0.0, width, height])


def _alike(square: CropBox, other: CropBox) -> bool:
    """Whether a look at the one would show what the other did."""
    moved = np.abs(np.subtract(square.center_px, other.center_px)).max()
    return bool(moved < ALIKE * other.size_px and abs(square.size_px / other.size_px - 1) < ALIKE)


def _score(find: Find) -> float:
    return find.score


def _likely(finds: list[Reading]) -> list[Reading]:
    """Of the sides of one hand those that a second look may still prove right."""
    best = max(find.score for find in finds)
    return [find for find in finds if find.score >= SECOND_LOOK * best]
