"""Hands followed through a video, against motion that is known."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dhpe_fast
from dhpe_fast import hand_tracker
from dhpe_fast.data.motion import moving_hand
from dhpe_fast.data.rendered import RenderedHand
from dhpe_fast.evidence import HandEvidence
from dhpe_fast.hand import HandModel, Pinhole
from dhpe_fast.hand_filter import HandFilter, Smoothing
from dhpe_fast.metrics import jitter, pa_mpjpe_mm
from dhpe_fast.one_euro import OneEuro
from dhpe_fast.tracks import Tracking
from dhpe_fast.video import FrameFit, _JitterMeter
from dhpe_fast.video_file import MissingVideoFileError, VideoFileError, video_writer

BLANK = np.zeros((240, 320, 3), np.uint8)


def keypoints_of(views: list[RenderedHand], noise_px: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [view.joints2d_px.numpy() + rng.normal(0, noise_px, (21, 2)) for view in views]


def motion(n_frames: int, seed: int = 0, side: str = "right", **options) -> list[RenderedHand]:
    return list(moving_hand(n_frames, seed, HandModel.default(side), **options))


def fitted(keypoints: list, **options) -> list[FrameFit]:
    return list(dhpe_fast.fit_video([BLANK] * len(keypoints), keypoints=keypoints, **{"hand": "right", **options}))


def ids(frames: list[FrameFit]) -> list[list[int]]:
    return [[hand.track_id for hand in frame.hands] for frame in frames]


def test_300_frames_are_tracked_to_the_known_answer():
    """Ten seconds of motion; keypoints with noise of 1.5 % of the hand. One track, calm, near the truth."""
    views = motion(300)
    video = dhpe_fast.fit_video((BLANK for _ in views), keypoints=keypoints_of(views, 1.5), hand="right")
    errors_mm, errors_px, raw_errors_mm, searched, shapes = [], [], [], 0, []
    for view, frame in zip(views, video, strict=True):
        (hand,) = frame.hands
        assert hand.track_id == 0
        errors_mm.append(float(pa_mpjpe_mm(hand.fit.joints_m, view.joints_m)))
        raw_errors_mm.append(float(pa_mpjpe_mm(hand.raw_joints_m, view.joints_m)))
        errors_px.append(float((hand.fit.joints2d_px - view.joints2d_px).norm(dim=1).mean()))
        searched += hand.searched
        shapes.append(hand.fit.params.shape[0])
    assert np.median(errors_mm) < 6
    assert np.mean(errors_mm) < np.mean(raw_errors_mm)
    assert np.mean(errors_px) < 1.5  # the keypoints are off by 1.9
    assert video.jitter.n_frames == 298
    assert video.jitter.after_mm <= 0.5 * video.jitter.before_mm
    assert video.jitter.after_px <= 0.5 * video.jitter.before_px
    assert searched < 10
    changes = [index for index in range(1, 300) if not torch.equal(shapes[index], shapes[index - 1])]
    assert changes == [1, 3, 7, 15, 31, 63, 127, 255]
    assert video.fault is None


def test_jitter_is_that_of_the_joints_which_are_returned():
    frames = dhpe_fast.fit_video([BLANK] * 8, keypoints=keypoints_of(motion(8)), hand="right")
    hands = [frame.hands[0] for frame in frames]
    found = frames.jitter
    assert found.n_frames == 6
    for value, parts, unit in (
        (found.before_mm, [hand.raw_joints_m for hand in hands], 1e3),
        (found.after_mm, [hand.fit.joints_m for hand in hands], 1e3),
        (found.before_px, [hand.raw_joints2d_px for hand in hands], 1),
        (found.after_px, [hand.fit.joints2d_px for hand in hands], 1),
    ):
        assert value == pytest.approx(unit * jitter(torch.stack(parts)), rel=1e-6)
    assert "before smoothing" in str(found)


def test_without_smoothing_the_hands_are_those_before_it():
    keypoints = keypoints_of(motion(5))
    smooth, plain = fitted(keypoints), fitted(keypoints, smooth=None)
    for one, other in zip(smooth, plain, strict=True):
        torch.testing.assert_close(one.hands[0].raw_joints_m, other.hands[0].fit.joints_m, rtol=0, atol=1e-6)
        torch.testing.assert_close(one.hands[0].raw_joints2d_px, other.hands[0].fit.joints2d_px, rtol=0, atol=1e-3)
        torch.testing.assert_close(other.hands[0].raw_joints_m, other.hands[0].fit.joints_m, rtol=0, atol=1e-6)
    calm = Smoothing(place=OneEuro(0.01), rotation=OneEuro(0.01), pose=OneEuro(0.01), size=OneEuro(0.01))
    still = fitted(keypoints, smooth=calm)
    first, last = still[0].hands[0], still[4].hands[0]
    moved = (last.raw_joints2d_px - first.raw_joints2d_px).norm(dim=1).mean()
    assert (last.fit.joints2d_px - first.fit.joints2d_px).norm(dim=1).mean() < 0.1 * moved


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_known_camera_gives_metric_motion(side):
    """The depth follows from the size, which is that of a guessed hand: its changes are right, and its direction."""
    views = motion(10, 2, side, camera="pinhole")
    frames = fitted(keypoints_of(views, 0.5), hand=side, camera=views[0].camera)
    for view, frame in zip(views, frames, strict=True):
        hand = frame.hands[0].fit
        assert hand.side == side
        assert (hand.joints2d_px - view.joints2d_px).norm(dim=1).mean() < 1.5
        torch.testing.assert_close(frame.hands[0].raw_joints_m[9, 2], hand.joints_m[9, 2], rtol=0.05, atol=0)
        assert 0.8 < float(hand.joints_m[9, 2] / view.joints_m[9, 2]) < 1.25


def test_smoothing_never_leads_behind_the_camera():
    """Pose, place and depth are filtered each for itself: after jumps, close to the camera, they make no hand."""
    rng = np.random.default_rng(1)
    shape = motion(1)[0].joints2d_px.numpy() - np.array([160.0, 120.0])
    keypoints = [
        shape * rng.uniform(0.8, 1.2) + np.array([160.0, 120.0]) + rng.uniform(-40, 40, 2) + rng.normal(0, 3, (21, 2))
        for _ in range(30)
    ]
    video = dhpe_fast.fit_video(
        [BLANK] * 30, keypoints=keypoints, hand="right", camera=Pinhole(40.0, 40.0, 160.0, 120.0)
    )
    hands = [hand for frame in video for hand in frame.hands]
    assert len(hands) > 10
    for hand in hands:
        assert hand.fit.joints_m[:, 2].min() > 0 or not hand.raw_joints_m[:, 2].min() > 0
        assert hand.fit.joints2d_px.isfinite().all() or not hand.raw_joints2d_px.isfinite().all()
    assert np.isfinite([video.jitter.after_mm, video.jitter.after_px]).all()


def test_a_smoothed_hand_behind_the_camera_is_replaced_by_the_one_found(monkeypatch):
    """The filter's answer, moved behind the camera: the hand is not smoothed, and smoothing starts anew from it."""
    step, steps = HandFilter.step, []

    def astray(self, hand, dt_s, hand_px):
        steps.append(id(self))
        smoothed = step(self, hand, dt_s, hand_px)
        return replace(smoothed, log_scale=smoothed.log_scale + 3.0) if len(steps) == 2 else smoothed

    monkeypatch.setattr(HandFilter, "step", astray)
    views = motion(4, 2, camera="pinhole")
    frames = fitted(keypoints_of(views), camera=views[0].camera)
    hands = [frame.hands[0] for frame in frames]
    assert len(set(steps)) == 2
    torch.testing.assert_close(hands[1].fit.joints_m, hands[1].raw_joints_m, rtol=0, atol=1e-6)
    assert all(hand.fit.joints2d_px.isfinite().all() for hand in hands)


def test_jitter_leaves_out_what_is_not_finite():
    meter = _JitterMeter()
    for hands in ([np.zeros((21, 3))] * 3, [np.full((21, 3), np.nan)], [np.ones((21, 3))] * 3):
        for joints in hands:
            meter.add([fake_hand(torch.from_numpy(joints))])
    found = meter.jitter()
    assert found.n_frames == 2
    assert found.after_mm == found.before_px == 0.0


def fake_hand(joints: torch.Tensor, track: int = 0) -> SimpleNamespace:
    """What the meter looks at."""
    fit = SimpleNamespace(joints_m=joints, joints2d_px=joints[:, :2])
    return SimpleNamespace(track_id=track, fit=fit, raw_joints_m=joints, raw_joints2d_px=joints[:, :2])


def test_jitter_does_not_reach_over_a_gap():
    keypoint = motion(1)[0].joints2d_px.numpy()
    video = dhpe_fast.fit_video([BLANK] * 5, keypoints=[keypoint, keypoint, None, keypoint + 20, keypoint + 20])
    assert ids(list(video)) == [[0], [0], [], [0], [0]]
    assert video.jitter.n_frames == 0


# --- Smoothing ---------------------------------------------------------------------------------------------------

CALM = Smoothing(place=OneEuro(1.0, 0.0), rotation=OneEuro(1.0, 0.0), pose=OneEuro(1.0, 0.0), size=OneEuro(1.0, 0.0))
"""One Hertz, whatever the speed: of a step, the share 2 pi dt / (1 + 2 pi dt) is followed."""


@pytest.mark.parametrize(("gap", "fps"), [(0, 30), (5, 30), (0, 10), (3, 10)])
def test_a_longer_time_between_two_frames_is_smoothed_less(gap, fps):
    keypoint = motion(1)[0].joints2d_px.numpy()
    keypoints = [keypoint, *[None] * gap, keypoint + np.array([30.0, 0.0])]
    frames = fitted(keypoints, smooth=CALM, fps=fps)
    first, last = frames[0].hands[0], frames[-1].hands[0]
    assert not last.searched
    radians = 2 * np.pi * (gap + 1) / fps
    raw, smooth = (last.raw_joints2d_px[9, 0] - first.fit.joints2d_px[9, 0], last.fit.joints2d_px[9, 0])
    followed = (smooth - first.fit.joints2d_px[9, 0]) / raw
    assert float(followed) == pytest.approx(radians / (1 + radians), abs=1e-3)


def test_smoothing_starts_anew_where_a_hand_was_searched():
    """A turn of the vote: the left hand has nothing to do with what the right one was smoothed to."""
    keypoint = motion(1)[0].joints2d_px.numpy()
    looks = [("right", 0.5), ("right", 0.1), ("left", 1.0), ("left", 1.0)]
    keypoints = [
        [HandEvidence(keypoint + np.array([8.0 * index, 0.0]), np.ones(21), side, score)]
        for index, (side, score) in enumerate(looks)
    ]
    frames = list(dhpe_fast.fit_video([BLANK] * 4, keypoints=keypoints, smooth=CALM))
    hands = [frame.hands[0] for frame in frames]
    assert [hand.searched for hand in hands[1:]] == [False, True, False]
    off_px = [float((hand.fit.joints2d_px - hand.raw_joints2d_px).norm(dim=1).mean()) for hand in hands]
    assert off_px[0] < 1e-3
    assert off_px[1] > 4
    assert off_px[2] < 1e-3
    assert off_px[3] > 4


def test_the_speed_of_a_part_of_a_hand_is_in_sizes_of_the_whole(monkeypatch):
    """A finger is shorter than the hand; filtered in its own size, it would seem to be faster."""
    step, sizes_px = HandFilter.step, []

    def recorded(self, hand, dt_s, hand_px):
        sizes_px.append(hand_px)
        return step(self, hand, dt_s, hand_px)

    monkeypatch.setattr(HandFilter, "step", recorded)
    keypoint = motion(1)[0].joints2d_px.numpy()
    finger = np.isin(np.arange(21), [5, 6, 7, 8])[:, None]
    fitted([keypoint, keypoint, np.where(finger, keypoint, np.nan)])
    assert sizes_px[1:] == pytest.approx([np.ptp(keypoint, axis=0).max()] * 2, rel=0.1)


# --- Identity ----------------------------------------------------------------------------------------------------


def two_hands(n_frames: int) -> Iterator[list[HandEvidence]]:
    """A right hand that moves right and a left one that moves left, through each other, listed in changing order."""
    right, left = motion(1, 0)[0].joints2d_px.numpy(), motion(1, 1, "left")[0].joints2d_px.numpy()
    for index in range(n_frames):
        x = 60 * (2 * index / (n_frames - 1) - 1)
        hands = [
            HandEvidence(right + np.array([x, 0.0]), np.ones(21), "right"),
            HandEvidence(left - np.array([x, 0.0]), np.ones(21), "left"),
        ]
        yield hands[:: 1 if index % 2 else -1]


def test_hands_that_pass_through_each_other_keep_their_tracks():
    frames = list(dhpe_fast.fit_video([BLANK] * 9, keypoints=two_hands(9)))
    sides = [{hand.fit.side: hand.track_id for hand in frame.hands} for frame in frames]
    assert sides == [sides[0]] * 9
    assert sorted(sides[0].values()) == [0, 1]


def test_a_hand_that_leaves_and_returns():
    """Within half a second (15 frames) near its place it is the same hand, later it is a new one."""
    keypoint = motion(1)[0].joints2d_px.numpy()
    hidden = np.full((21, 2), np.nan)
    barely = np.where(np.arange(21)[:, None] < 3, keypoint, np.nan)
    away = [None, [], hidden, barely, np.zeros((0, 21, 2))]
    frames = fitted([keypoint, *away, keypoint, *[None] * 15, keypoint])
    assert ids(frames) == [[0], *[[]] * 5, [0], *[[]] * 15, [1]]
    assert not frames[6].hands[0].searched
    assert frames[-1].hands[0].searched
    patient = fitted([keypoint, *[None] * 15, keypoint], tracking=Tracking(resume_s=2.0))
    assert ids(patient)[-1] == [0]
    elsewhere = fitted([keypoint, None, keypoint + np.array([100.0, 0.0])])
    assert ids(elsewhere) == [[0], [], [1]]


def test_a_hand_that_shows_its_parts_in_turn_is_one():
    """Joints 11 to 20 in one frame, 0 to 10 in the next: no joint is seen in both."""
    keypoint = motion(1)[0].joints2d_px.numpy()
    fingers = np.arange(21)[:, None] > 10
    keypoints = [np.where(fingers if index % 2 else ~fingers, keypoint, np.nan) for index in range(6)]
    assert ids(fitted(keypoints)) == [[0]] * 6


def test_a_finger_that_moves_is_one_hand():
    """All that is seen is a finger, which moves by its length each frame."""
    keypoint = motion(1)[0].joints2d_px.numpy()
    finger = (np.arange(21) >= 5)[:, None] & (np.arange(21) <= 8)[:, None]
    step = np.array([np.ptp(keypoint[5:9], axis=0).max(), 0.0])
    moving = [np.where(finger, keypoint + step * index, np.nan) for index in range(1, 6)]
    assert ids(fitted([keypoint] * 2 + moving)) == [[0]] * 7


def test_a_video_without_hands_has_no_jitter():
    video = dhpe_fast.fit_video([BLANK] * 3, keypoints=[None] * 3)
    assert [frame.hands for frame in video] == [()] * 3
    assert np.isnan(video.jitter.before_mm)
    assert str(video.jitter) == "no hand in three frames running"
    assert list(dhpe_fast.fit_video([], keypoints=[])) == []


def test_one_look_at_the_wrong_side_changes_nothing_and_many_do():
    keypoint = motion(1)[0].joints2d_px.numpy()
    sides = ["right", "right", "left", "right", "left", "left", "left", "left"]
    frames = list(
        dhpe_fast.fit_video(
            [BLANK] * len(sides), keypoints=[[HandEvidence(keypoint, np.ones(21), side)] for side in sides]
        )
    )
    assert ids(frames) == [[0]] * len(sides)
    assert [frame.hands[0].fit.side for frame in frames] == ["right"] * 6 + ["left"] * 2
    assert [frame.hands[0].searched for frame in frames[4:]] == [False, False, True, False]
    assert frames[7].hands[0].fit.model.side == "left"


def test_votes_for_a_side_count_by_their_score():
    keypoint = motion(1)[0].joints2d_px.numpy()
    looks = [("right", 0.9), ("left", 0.3), ("left", 0.3), ("left", 0.4)]
    keypoints = [[HandEvidence(keypoint, np.ones(21), side, score)] for side, score in looks]
    frames = list(dhpe_fast.fit_video([BLANK] * 4, keypoints=keypoints))
    assert [frame.hands[0].fit.side for frame in frames] == ["right"] * 3 + ["left"]


def test_a_side_is_taken_when_its_search_succeeded(monkeypatch):
    """The vote turns in frame 1, whose search fails: frame 2 is searched as a left hand, not followed as one."""
    search, sides = hand_tracker.search_hand, []

    def second_fails(image_size, evidence, *rest):
        sides.append(evidence.side)
        if len(sides) == 2:
            raise ValueError("camera: too near")
        return search(image_size, evidence, *rest)

    monkeypatch.setattr(hand_tracker, "search_hand", second_fails)
    keypoint = motion(1)[0].joints2d_px.numpy()
    looks = [("right", 0.1), ("left", 1.0), ("left", 1.0), ("left", 1.0)]
    keypoints = [[HandEvidence(keypoint, np.ones(21), side, score)] for side, score in looks]
    frames = list(dhpe_fast.fit_video([BLANK] * 4, keypoints=keypoints))
    assert ids(frames) == [[0], [], [0], [0]]
    assert frames[1].faults == ("camera: too near",)
    assert [frame.hands[0].searched for frame in frames[2:]] == [True, False]
    assert frames[2].hands[0].fit.side == "left"


def test_a_frame_that_shows_little_teaches_no_shape():
    """Frames 1, 3, 7 and 15 would be lessons; 3 shows half of the hand, 7 hardly believes its joints, 15 is no hand."""
    views = motion(17)
    keypoints = [np.column_stack([points, np.ones(21)]) for points in keypoints_of(views)]
    keypoints[3][11:, 2] = 0.0
    keypoints[7][:, 2] = 0.1
    keypoints[15][:, :2] += np.random.default_rng(1).normal(0, 15, (21, 2))
    frames = fitted(keypoints)
    assert ids(frames) == [[0]] * 17
    shapes = [frame.hands[0].fit.params.shape[0] for frame in frames]
    assert [i for i in range(1, 17) if not torch.equal(shapes[i], shapes[i - 1])] == [1]


def test_the_side_that_the_caller_names_goes_before_that_of_the_source():
    keypoint = motion(1)[0].joints2d_px.numpy()
    looks = [[HandEvidence(keypoint, np.ones(21), side)] for side in ("right", "left", "right")]
    frames = list(dhpe_fast.fit_video([BLANK] * 3, keypoints=looks, hand="left"))
    assert [frame.hands[0].fit.side for frame in frames] == ["left"] * 3
    assert ids(frames) == [[0]] * 3
    assert [frame.hands[0].searched for frame in frames] == [True, False, False]


@pytest.mark.parametrize(("before", "after"), [(12, 1), (5, 8)])
def test_a_sudden_other_pose_is_searched(before, after):
    """The warm start alone stays in the last pose's basin, off by 0.35 and 0.25 of the hand; no frame of a lesson."""
    old, new = (motion(1, seed)[0].joints2d_px.numpy() for seed in (before, after))
    frames = fitted([old, old, new - new.mean(0) + old.mean(0)], smooth=None)
    last = frames[2].hands[0]
    assert ids(frames) == [[0]] * 3
    assert [frame.hands[0].searched for frame in frames] == [True, False, True]
    assert last.fit.residuals["joints2d_box"] < 0.01


def test_the_page_on_video_has_the_parameters_of_the_code():
    page = (Path(__file__).resolve().parents[1] / "docs" / "video.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    for name, cutoff, beta in rows:
        parameters = getattr(Smoothing(), name)
        assert (parameters.min_cutoff_hz, parameters.beta) == (float(cutoff), float(beta))
    assert len(rows) == 4
    assert Tracking() == Tracking(max_distance=0.75, side_penalty=0.25, resume_s=0.5)


# --- Frames ------------------------------------------------------------------------------------------------------


def test_frames_are_read_when_asked_for_and_not_kept():
    asked = []

    def camera() -> Iterator[np.ndarray]:
        for index in range(100):
            asked.append(index)
            yield np.full((240, 320, 3), index, np.uint8)

    keypoint = motion(1)[0].joints2d_px.numpy()
    video = dhpe_fast.fit_video(camera(), keypoints=(keypoint for _ in range(100)), fps=10)
    assert asked == []
    first = next(video)
    assert asked == [0]
    assert (first.index, first.time_s, first.image[0, 0, 0]) == (0, 0.0, 0)
    watch = weakref.ref(first.hands[0].fit), weakref.ref(first.image)
    second = next(video)
    assert (second.index, second.time_s) == (1, 0.1)
    del first
    gc.collect()
    assert [one() for one in watch] == [None, None]
    video.close()
    assert list(video) == []
    assert asked == [0, 1]


def test_an_evidence_source_sees_each_frame(tmp_path):
    views = motion(4, pictures=True)
    with video_writer(tmp_path / "a.mp4", 25) as out:
        for view in views:
            out.write(view.image)
    joints, seen = keypoints_of(views), []

    def source(image: np.ndarray, boxes: None) -> list[HandEvidence]:
        seen.append(image)
        return [HandEvidence(joints[len(seen) - 1], np.ones(21), "right", 0.7)]

    video = dhpe_fast.fit_video(tmp_path / "a.mp4", evidence=source)
    assert (video.fps, video.n_promised) == (25, 4)
    frames = list(video)
    assert ids(frames) == [[0]] * 4
    assert frames[3].time_s == pytest.approx(0.12)
    assert np.abs(seen[2].astype(int) - views[2].image).mean() < 8
    assert frames[2].overlay().shape == (240, 320, 3)
    assert set(frames[2].hands[0].fit.timings_ms) >= {"read", "evidence", "crop", "refine", "smooth", "render"}


def test_the_source_runs_with_the_threads_of_the_caller():
    """It may be a network; the solver alone runs on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen = []

    def source(image: np.ndarray, boxes: None) -> list[HandEvidence]:
        seen.append(torch.get_num_threads())
        return []

    try:
        list(dhpe_fast.fit_video([BLANK] * 2, evidence=source))
    finally:
        torch.set_num_threads(before)
    assert seen == [3, 3]


def blank_video(path: Path, n_frames: int) -> Path:
    with video_writer(path, 25) as out:
        for _ in range(n_frames):
            out.write(BLANK)
    return path


@pytest.mark.parametrize("n_entries", [0, 7, 20])
def test_keypoints_of_another_video_are_refused_at_once(tmp_path, n_entries):
    with pytest.raises(ValueError, match=f"keypoints: expected an entry for each of 10 frames, got {n_entries}"):
        dhpe_fast.fit_video(blank_video(tmp_path / "a.mp4", 10), keypoints=[None] * n_entries)


@pytest.mark.parametrize(
    ("n_entries", "n_fitted", "message"),
    [(9, 9, "keypoints: end after 9 frames"), (11, 10, "keypoints: 11 entries for 10 frames")],
)
def test_an_entry_too_few_or_too_many_is_said_at_the_end(tmp_path, n_entries, n_fitted, message):
    """Some files count their frames by duration and rate: whether one is missing, only the end shows."""
    video = dhpe_fast.fit_video(blank_video(tmp_path / "a.mp4", 10), keypoints=[None] * n_entries)
    frames = []
    with pytest.warns(RuntimeWarning, match=message):
        frames.extend(video)
    assert len(frames) == n_fitted
    assert video.fault == message
    assert list(video) == []


def test_keypoints_without_a_known_number_may_go_on():
    """As those of a camera do."""
    assert len(list(dhpe_fast.fit_video(iter([BLANK] * 3), keypoints=repeat(None)))) == 3


def test_a_truncated_video_gives_its_frames_and_a_warning(tmp_path):
    with video_writer(tmp_path / "a.avi", 25) as out:
        for index in range(30):
            out.write(np.full((96, 128, 3), 8 * index, np.uint8))
    whole = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(whole[: len(whole) // 2])
    video = dhpe_fast.fit_video(tmp_path / "a.avi", keypoints=[None] * 30)
    frames = []
    with pytest.warns(RuntimeWarning, match=r"a\.avi: ends after \d+ of 30 frames: it is truncated or damaged"):
        frames.extend(video)
    assert 5 < len(frames) < 25
    assert video.fault is not None


def test_what_is_no_video_is_said_at_once(tmp_path):
    with pytest.raises(MissingVideoFileError, match=r"none\.mp4: no such file"):
        dhpe_fast.fit_video(tmp_path / "none.mp4", keypoints=[])
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(VideoFileError, match="the file is empty"):
        dhpe_fast.fit_video(str(tmp_path / "empty.mp4"), keypoints=[])


def test_a_hand_that_cannot_be_fitted_is_missing_with_its_reason():
    """A camera so close to the hand that no hand has this image."""
    views = motion(2)
    far = dhpe_fast.hand.Pinhole(20.0, 20.0, 160.0, 120.0)
    frames = list(dhpe_fast.fit_video([BLANK] * 2, keypoints=keypoints_of(views), hand="right", camera=far))
    assert [frame.hands for frame in frames] == [(), ()]
    assert all("camera: focal lengths" in frame.faults[0] for frame in frames)


KEYPOINT = np.random.default_rng(0).uniform(50, 150, (21, 2))
BAD_INPUT = {
    "one image": ({"frames": BLANK}, ValueError, r"frames: expected a path or images \(T, H, W, 3\), got an array"),
    "no images": ({"frames": 7}, TypeError, "frames: expected a path or images, got int"),
    "hand": ({"hand": "both"}, ValueError, "hand: expected 'auto', 'right' or 'left'"),
    "order": ({"order": "random"}, ValueError, "random"),
    "fps": ({"fps": 0}, ValueError, "fps: expected a number in"),
    "fps true": ({"fps": True}, ValueError, "fps: expected a number in"),
    "fps tiny": ({"fps": 1e-300}, ValueError, r"fps: expected a number in \[0.001, 1000\], got 1e-300"),
    "smooth": ({"smooth": True}, TypeError, "smooth: expected a Smoothing or None, got bool"),
    "tracking": ({"tracking": 0.5}, TypeError, "tracking: expected a Tracking, got float"),
    "too few entries": (
        {"keypoints": [KEYPOINT] * 3},
        ValueError,
        "keypoints: expected an entry for each of 1 frames, got 3",
    ),
    "keypoints": ({"keypoints": 5}, TypeError, "keypoints: expected an entry for each frame, got int"),
    "evidence": ({"keypoints": None, "evidence": "magic"}, ValueError, "evidence.*magic"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named_before_any_frame_is_read(case):
    change, error, message = BAD_INPUT[case]
    with pytest.raises(error, match=message):
        dhpe_fast.fit_video(**{"frames": [BLANK], "keypoints": [KEYPOINT], **change})


BAD_FRAMES = {
    "size": ([BLANK, BLANK[:, :200]], [None, None], "frame 1: image: is 200 x 240 px, the frames before it are 320 x"),
    "no image": ([BLANK, np.zeros((2, 4, 4, 7), np.uint8)], [None, None], "frame 1: image: expected"),
    "shape": ([BLANK] * 2, [None, KEYPOINT[:20]], r"frame 1: keypoints.*\(20, 2\)"),
    "no frame": ([BLANK, None], [None, None], "frame 1: image: expected a path, a numpy array or a tensor"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_a_bad_frame_is_named_by_its_number(case):
    frames, keypoints, message = BAD_FRAMES[case]
    video = dhpe_fast.fit_video(frames, keypoints=keypoints)
    next(video)
    with pytest.raises((ValueError, TypeError), match=message):
        next(video)


def test_after_a_bad_frame_each_gets_its_own_keypoints():
    """A small picture, a bad entry: the frames after them are fitted to their keypoints."""
    keypoint = motion(1)[0].joints2d_px.numpy()
    keypoints = [keypoint + np.array([4.0 * index, 0.0]) for index in range(6)]
    keypoints[3] = keypoints[3][:20]
    frames = [BLANK, BLANK, np.zeros((10, 10, 3), np.uint8), BLANK, BLANK, BLANK]
    video = dhpe_fast.fit_video(frames, keypoints=keypoints, hand="right")
    found = {}
    for _ in range(6):
        try:
            frame = next(video)
        except ValueError:
            continue
        found[frame.index] = frame.hands[0].fit.keypoints2d_px.numpy()
    assert sorted(found) == [0, 1, 4, 5]
    for index, joints in found.items():
        np.testing.assert_allclose(joints, keypoints[index], atol=1e-3)
    assert next(video, None) is None


DEGENERATE = {
    "infinite": (lambda hand: np.where(np.arange(21)[:, None] == 4, np.inf, hand), "is at \\[inf, inf"),
    "confidence": (lambda hand: np.column_stack([hand, np.full(21, 5.0)]), "confidence of wrist .* is 5, expected"),
    "one point": (lambda hand: np.full((21, 2), 7.0), "all joints lie within 0 px"),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_a_degenerate_hand_is_a_fault_of_its_frame(case):
    degrade, message = DEGENERATE[case]
    keypoint = motion(1)[0].joints2d_px.numpy()
    bad = degrade(keypoint)
    good = np.column_stack([keypoint, np.ones(21)])[:, : bad.shape[1]]
    frames = fitted([keypoint, bad, np.stack([bad, good]), keypoint])
    assert ids(frames) == [[0], [], [0], [0]]
    for index in (1, 2):
        (fault,) = frames[index].faults
        assert re.search(message, fault)
