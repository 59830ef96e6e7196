"""Keypoints of videos as files, and the JSON lines of their hands."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import dhpe_fast
from dhpe_fast.conventions import JOINT_ORDERS
from dhpe_fast.data.motion import moving_hand
from dhpe_fast.hand import HandModel, HandParams
from dhpe_fast.io import fit_record
from dhpe_fast.video_io import VIDEO_FIT_SCHEMA, read_video_keypoints, video_fit_writer

HAND = np.array([(100.0 + 7 * (j % 5), 50.0 + 9 * (j // 5)) for j in range(21)])
HIDDEN = np.full((21, 2), np.nan)


def test_arrays_hold_one_hand_or_several_in_each_frame(tmp_path):
    np.save(tmp_path / "one.npy", np.stack([HAND, HIDDEN, HAND + 1]))
    one = read_video_keypoints(tmp_path / "one.npy")
    assert [len(hands) for hands in one] == [1, 0, 1]
    np.testing.assert_array_equal(one[2][0].joints2d_px, HAND + 1)
    np.save(tmp_path / "two.npy", np.stack([np.stack([HAND, HAND + 50]), np.stack([HIDDEN, HAND])]))
    two = read_video_keypoints(tmp_path / "two.npy")
    assert [len(hands) for hands in two] == [2, 1]
    np.testing.assert_array_equal(two[0][1].joints2d_px, HAND + 50)


def test_json_holds_a_list_with_any_number_of_hands(tmp_path):
    hand, confident = HAND.tolist(), np.column_stack([HAND, np.full(21, 0.5)]).tolist()
    partly = [[None, None], *hand[1:]]
    frames = [None, [], hand, [hand, hand], {"keypoints": confident, "side": "left"}, [{"keypoints": partly}]]
    for content in (frames, {"frames": frames, "order": "std"}):
        (tmp_path / "k.json").write_text(json.dumps(content))
        found = read_video_keypoints(tmp_path / "k.json")
        assert [len(hands) for hands in found] == [0, 0, 1, 2, 1, 1]
        assert [hands[0].side for hands in found if hands] == [None, None, "left", None]
        assert found[4][0].confidence.tolist() == [0.5] * 21
        assert found[5][0].confidence.tolist() == [0.0] + [1.0] * 20


def test_the_order_of_the_call_goes_before_that_of_the_file(tmp_path):
    named = np.empty_like(HAND)
    named[list(JOINT_ORDERS["rhd"])] = HAND
    (tmp_path / "k.json").write_text(json.dumps({"frames": [named.tolist()], "order": "rhd"}))
    np.testing.assert_array_equal(read_video_keypoints(tmp_path / "k.json")[0][0].joints2d_px, HAND)
    np.testing.assert_array_equal(read_video_keypoints(tmp_path / "k.json", "std")[0][0].joints2d_px, named)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON file"),
        ('{"images": {}}', "expected an entry 'frames' with a list, found images"),
        ("3", "expected a list with an entry for each frame, got int"),
        ('{"frames": [], "order": "random"}', "unknown joint order 'random'"),
        (json.dumps([None, HAND[:20].tolist()]), r"k\.json: frame 1: keypoints: .*\(20, 2\)"),
        (json.dumps([{"hand": 1}]), r"frame 0: expected an entry 'keypoints', found hand"),
        (json.dumps([{"keypoints": HAND.tolist(), "side": "both"}]), "frame 0: .*side.*'both'"),
        (json.dumps([[[1, 2], [3]]]), "frame 0: "),
        (json.dumps([None, 7]), "frame 1: "),
        (json.dumps([None, "x"]), "frame 1: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, content, message):
    (tmp_path / "k.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_video_keypoints(tmp_path / "k.json")


def test_missing_files_and_other_suffixes_are_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_video_keypoints(tmp_path / "k.npy")
    with pytest.raises(ValueError, match=r"expected a \.json or \.npy file, got '\.csv'"):
        read_video_keypoints(tmp_path / "k.csv")


# --- Results -----------------------------------------------------------------------------------------------------


def test_the_lines_say_every_frame_and_give_back_the_meshes(tmp_path):
    views = list(moving_hand(4, 0))
    keypoints = [view.joints2d_px.numpy() for view in views]
    keypoints[1] = None
    video = dhpe_fast.fit_video([np.zeros((240, 320, 3), np.uint8)] * 4, keypoints=keypoints, hand="right")
    frames = []
    with video_fit_writer(tmp_path / "a.jsonl", video, "a.mp4") as write:
        for frame in video:
            write(frame)
            frames.append(frame)
    header, *lines, summary = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert header == {"schema": VIDEO_FIT_SCHEMA, "video": "a.mp4", "fps": 30.0}
    assert [line["frame"] for line in lines] == [0, 1, 2, 3]
    assert [[hand["track"] for hand in line["hands"]] for line in lines] == [[0], [], [0], [0]]
    hand, record = frames[3].hands[0].fit, lines[3]["hands"][0]
    assert {**record, "verts_m": None} == {"track": 0, **fit_record(hand), "verts_m": None}
    params = HandParams(**{name: hand.params.pose.new_tensor([values]) for name, values in record["params"].items()})
    decoded = HandModel.default().decode(params).verts_m[0]
    np.testing.assert_allclose(hand.crop.from_crop(decoded).numpy(), hand.verts2d_px.numpy(), atol=0.05)
    assert summary["summary"]["frames"] == 4
    assert summary["summary"]["fault"] is None
    assert summary["summary"]["jitter"] == dict.fromkeys(("before_mm", "after_mm", "before_px", "after_px")) | {
        "n_frames": 0
    }


def test_an_error_leaves_no_lines(tmp_path):
    video = dhpe_fast.fit_video([np.zeros((24, 32, 3), np.uint8)], keypoints=[None])

    def fail() -> None:
        with video_fit_writer(tmp_path / "a.jsonl", video, "a.mp4") as write:
            write(next(video))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []
