"""The hands of one frame after the other: association, warm-started fits, one shape for each track, smoothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.conventions import MIDDLE_MCP, N_SHAPE
from dhpe_fast.evidence import HandEvidence
from dhpe_fast.fit import FitOptions, View, answer, refine_from, search_hand, unmirrored, views_of
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.derived_models import mirrored_model
from dhpe_fast.hand_filter import HandFilter, Smoothing
from dhpe_fast.hand_fit import HandFit, Side
from dhpe_fast.refinement.gauss_newton import HandState, Refined
from dhpe_fast.stages import StageClock
from dhpe_fast.tracks import LastSeen, Tracking, match, size_px
from dhpe_fast.warm_start import PlacedHand, ShapedHand, turned_joints_m

WARM_ITERATIONS = 15
"""The most steps from the last frame's hand."""
BAD_RESIDUAL = 0.04
"""A warm start is doubted where the joints are off by more than this on average, in hand sizes ..."""
BAD_RATIO = 2.5
"""... and by this many times more than they were in the track's other frames."""
RESIDUAL_MEMORY = 0.9
"""Share of the old in the running mean of those."""
BETTER = 0.1
"""The search replaces a warm start if it lowers the energy by this share and by one: less is noise of the joints."""
SHAPE_JOINTS = 12
"""A frame says something of a track's shape if it shows at least so many joints ..."""
SHAPE_CONFIDENCE = 0.25
"""... of at least this confidence."""
NEAREST_M = 0.01
"""A smoothed hand with a joint closer to the camera's plane than this is none."""
SHORTEST_S = 1e-3
"""Time between two frames that share a time stamp."""


@dataclass(frozen=True, eq=False)
class TrackedHand:
    """A hand of a frame and the track it belongs to."""

    track_id: int
    """Counts the tracks of a video from 0; a hand keeps it from frame to frame."""
    fit: HandFit
    """The hand, smoothed if that was asked for, with the residuals in pixels; its ``energy``, ``iterations`` and
    ``converged`` are those of the fit before smoothing. Its ``model`` is shared by the frames of the track."""
    raw_joints_m: Tensor
    """(21, 3) as ``fit.joints_m``, before smoothing."""
    raw_joints2d_px: Tensor
    """(21, 2) as ``fit.joints2d_px``, before smoothing."""
    searched: bool
    """Whether the hand came from the search of all alignments; else it came from the last frame's."""


@dataclass(frozen=True)
class _Frame:
    image_size: tuple[int, int]
    evidence: HandEvidence
    time_s: float


@dataclass(frozen=True)
class _Found:
    """A hand as fitted to one frame."""

    view: View
    """Of the evidence, with the model whose shape is free."""
    placed: PlacedHand
    refined: Refined
    searched: bool


class HandTracker:
    """Fits the hands of frames that come one by one; remembers no more than what the next frame needs.

    * A hand that no track continues is searched as by ``fit`` and opens a track.
    * A hand that continues a track starts from the track's last state, moved onto its joints. Where the result is bad
      the search is made, too, and the better one taken.
    * The shape of a track is the mean of the betas of its frames 1, 2, 4, 8, 16, ...; these are fitted with the shape
      free, and searched, too, in case the track began with a mistake. Those of them that show too few joints, or that
      no hand explains well, teach nothing. In all other frames the shape is fixed.
    * The side of a track is the one that its evidence named more often, weighted by score. Where it changes, the hand
      is searched again.

    Args:
        options: what ``fit`` was told.
        tracking: when two frames show the same hand.
        smooth: parameters of the filters; None for no smoothing.
    """

    def __init__(self, options: FitOptions, tracking: Tracking, smooth: Smoothing | None) -> None:
        self._options, self._tracking, self._smooth = options, tracking, smooth
        self._tracks: list[_Track] = []
        self._opened = 0

    def step(
        self,
        image_size: tuple[int, int],
        hands: list[HandEvidence],
        time_s: float,
        clock: StageClock,
    ) -> tuple[list[TrackedHand], list[str]]:
        """The hands of the next frame, in the order of the evidence; and why some of them could not be fitted."""
        if self._options.side is not None:  # the caller knows better than the source
            hands = [replace(hand, side=self._options.side) for hand in hands]
        known = self._tracks = [t for t in self._tracks if time_s - t.time_s <= self._tracking.resume_s]
        tracked, faults = [], []
        for hand, index in zip(hands, match([t.last_seen for t in known], hands, self._tracking), strict=True):
            frame, clock_of_hand = _Frame(image_size, hand, time_s), clock.copy()
            try:
                if index is None:
                    tracked.append(self._open(frame, clock_of_hand))
                else:
                    found = self._follow(frame, known[index], clock_of_hand)
                    tracked.append(self._tracked(frame, known[index], found, clock_of_hand))
            except ValueError as error:
                faults.append(str(error))
        return tracked, faults

    def _open(self, frame: _Frame, clock: StageClock) -> TrackedHand:
        found = self._search(frame, frame.evidence.side, clock)
        track = _Track(self._opened, found)
        track.voted_side(frame.evidence)
        hand = self._tracked(frame, track, found, clock)
        self._tracks = [*self._tracks, track]
        self._opened += 1
        return hand

    def _tracked(self, frame: _Frame, track: _Track, found: _Found, clock: StageClock) -> TrackedHand:
        """What was found, smoothed, as the caller gets it; the track remembers it for the next frame."""
        clock.lap("refine")
        raw_m, raw_px = _joints(found.view, found.placed.in_view(found.view, track.betas))
        joints_px = raw_px.cpu().double().numpy()
        placed = self._smoothed(frame, track, found, size_px(joints_px))
        refined = replace(found.refined, state=placed.in_view(found.view, track.betas))
        clock.lap("smooth")
        one = answer(found.view, refined, frame.evidence, frame.image_size, None, clock)
        track.saw(frame, found, one.model, joints_px)
        return TrackedHand(track.id, replace(one, model=track.model), raw_m, raw_px, found.searched)

    def _smoothed(self, frame: _Frame, track: _Track, found: _Found, hand_px: float) -> PlacedHand:
        """The filtered hand; the hand as it was found where the filters start anew, or lead out of the picture."""
        if self._smooth is None:
            return found.placed
        if track.filter is None or found.searched:
            track.filter = HandFilter(self._smooth)
        passed_s = max(frame.time_s - track.time_s, SHORTEST_S)
        smoothed = track.filter.step(found.placed, passed_s, hand_px)
        # Pose, place and depth are filtered each for itself: after a jump they need not make a hand that is in view.
        if _in_front(found.view, smoothed.in_view(found.view, track.betas)):
            return smoothed
        track.filter = HandFilter(self._smooth)
        return track.filter.step(found.placed, passed_s, hand_px)

    def _search(self, frame: _Frame, side: Side | None, clock: StageClock) -> _Found:
        evidence = replace(frame.evidence, side=side)
        view, refined = search_hand(frame.image_size, evidence, None, self._options, clock)
        return _Found(view, PlacedHand.of(view, refined.state), refined, searched=True)

    def _follow(self, frame: _Frame, track: _Track, clock: StageClock) -> _Found:
        side = track.voted_side(frame.evidence)
        if side != track.side:
            searched = self._search(frame, side, clock)
            shaped = track.shaped.in_view(searched.view)
            found = replace(_refined(searched.view, shaped, searched.placed), searched=True)
        else:
            found = self._followed(frame, track, clock)
        if not bool(found.refined.energy.isfinite()):
            raise ValueError(f"camera: no hand in front of {self._options.camera} has such keypoints")
        track.side = side
        return found

    def _followed(self, frame: _Frame, track: _Track, clock: StageClock) -> _Found:
        """The hand that continues the track on its side."""
        (view,) = views_of(frame.image_size, frame.evidence, None, self._options, [track.side])
        shaped = track.shaped.in_view(view)
        clock.lap("crop")
        found = _refined(view, shaped, track.placed.followed(shaped, torch.zeros_like(track.betas)))
        is_milestone = track.age & (track.age + 1) == 0  # of the frame that follows `age` others: 2, 4, 8, ...
        if is_milestone or not track.trusts(_residual(shaped, found.refined.state)):
            found = self._better(found, shaped, frame, clock)
        if is_milestone and _shows_shape(view) and track.trusts(_residual(shaped, found.refined.state)):
            free = refine_from(view, found.placed.in_view(view, track.betas), WARM_ITERATIONS)
            if bool(free.energy.isfinite()):
                track.learn(free.state.betas[0], view)
                again = _refined(view, track.shaped.in_view(view), PlacedHand.of(view, free.state))
                found = replace(again, searched=found.searched)
        return found

    def _better(self, found: _Found, shaped: View, frame: _Frame, clock: StageClock) -> _Found:
        """The hand that was found from the last frame, or that of the search, if it explains the frame better."""
        try:
            searched = self._search(frame, shaped.side, clock)
        except ValueError:
            return found
        other = replace(_refined(found.view, shaped, searched.placed), searched=True)
        ours, theirs = float(found.refined.energy), float(other.refined.energy)
        return other if not theirs >= ours - max(1.0, BETTER * ours) else found


class _Track:
    """What is known of a hand from the frames it was in."""

    def __init__(self, number: int, found: _Found) -> None:
        self.id = number
        self.side: Side = found.view.side
        self.filter: HandFilter | None = None
        self.betas = found.refined.state.betas[0]
        self.shaped = ShapedHand.of(found.view, self.betas)
        self.age = 0
        self.time_s = -math.inf
        self._n_shapes = 1
        self._votes = 0.0
        self._residual = math.nan

    def voted_side(self, evidence: HandEvidence) -> Side:
        """Counts what the evidence says of the side; the side that it named more often."""
        if evidence.side is not None:
            self._votes += evidence.score if evidence.side == "right" else -evidence.score
        return "right" if self._votes > 0 else "left" if self._votes < 0 else self.side

    def trusts(self, residual: float) -> bool:
        """Whether a fit with this residual is as good as those before it."""
        return residual <= max(BAD_RESIDUAL, BAD_RATIO * self._residual)

    def learn(
        self,
        betas: Tensor,  # (10,)
        view: View,
    ) -> None:
        """Takes the shape of one more frame into the mean."""
        self._n_shapes += 1
        self.betas = self.betas + (betas - self.betas) / self._n_shapes
        self.shaped = ShapedHand.of(view, self.betas)

    def saw(
        self,
        frame: _Frame,
        found: _Found,
        model: HandModel,
        joints_px: np.ndarray,  # (21, 2) of the fit
    ) -> None:
        """Remembers the frame for the next one."""
        residual = _residual(found.view, found.placed.in_view(found.view, self.betas))
        before = residual if self.age == 0 else self._residual
        self._residual = RESIDUAL_MEMORY * before + (1 - RESIDUAL_MEMORY) * residual
        self.placed = found.placed
        self.last_seen = LastSeen(joints_px, self.side)
        if self.age == 0 or self.model.side != model.side:
            self.model = model
        self.time_s = frame.time_s
        self.age += 1


def _refined(view: View, shaped: View, start: PlacedHand) -> _Found:
    """The hand of fixed shape that explains the evidence best near the start."""
    refined = refine_from(shaped, start.in_view(shaped, start.pose.new_zeros(N_SHAPE)), WARM_ITERATIONS)
    return _Found(view, PlacedHand.of(shaped, refined.state), refined, searched=False)


def _residual(view: View, state: HandState) -> float:
    """Mean distance of the joints from those that the view trusts, in sizes of the hand."""
    points = view.solver_camera.project(turned_joints_m(view, state), state.cam)[0, :, :2]
    trusted = torch.from_numpy(view.trusted).to(points.device)
    target = view.evidence.joints[trusted]
    size = (target.amax(0) - target.amin(0)).max()
    return float((points[trusted] - target).norm(dim=1).mean() / size)


def _shows_shape(view: View) -> bool:
    """Whether the evidence has enough joints for a hand's shape."""
    return int((view.evidence.confidence.cpu().numpy()[view.trusted] >= SHAPE_CONFIDENCE).sum()) >= SHAPE_JOINTS


def _in_front(view: View, state: HandState) -> bool:
    """Whether all joints are finite and, where the depth is known, before the camera."""
    joints_m, joints_px = _joints(view, state)
    finite = bool(joints_m.isfinite().all()) and bool(joints_px.isfinite().all())
    return finite and (view.camera is None or float(joints_m[:, 2].min()) > NEAREST_M)


def _joints(view: View, state: HandState) -> tuple[Tensor, Tensor]:
    """Joints (21, 3) and their image (21, 2), as ``HandFit`` has them."""
    upright = unmirrored(view, state) if view.mirrored else state
    model = mirrored_model(view.model) if view.mirrored else view.model
    joints_m = turned_joints_m(replace(view, model=model), upright)[0]
    if view.camera is not None:
        joints_m = joints_m + upright.cam[0]
        return joints_m.float(), view.camera.project(joints_m).float()
    points = view.solver_camera.project(joints_m[None], upright.cam)[0]
    return (joints_m - joints_m[MIDDLE_MCP]).float(), view.crop.from_crop(points).float()
