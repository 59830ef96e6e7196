"""Reading keypoints of every form, refusing the rest, and writing pictures and hands whole or not at all."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch
import trimesh
from known_fit import known_fit

from dhpe_fast import io
from dhpe_fast.conventions import JOINT_ORDERS, MIDDLE_MCP
from dhpe_fast.hand import HandParams
from dhpe_fast.image import read_image

JOINTS = np.arange(42, dtype=np.float64).reshape(21, 2)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


# --- Pictures -------------------------------------------------------------------------------------------------


def test_a_picture_is_read_as_it_was_saved(tmp_path, rgb):
    io.save_image(tmp_path / "a.png", rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb)


def test_saving_refuses_what_is_no_picture(tmp_path, rgb):
    with pytest.raises(TypeError, match="float64"):
        io.save_image(tmp_path / "a.png", rgb / 255.0)
    with pytest.raises(ValueError, match=r"\(6, 8\)"):
        io.save_image(tmp_path / "a.png", rgb[..., 0])
    for name in ("a.xyz", "a", ".png"):
        with pytest.raises(ValueError, match="suffix"):
            io.save_image(tmp_path / name, rgb)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        io.save_image(tmp_path / "nowhere" / "a.png", rgb)
    assert not list(tmp_path.iterdir())


# --- Keypoints ----------------------------------------------------------------------------------------------


def test_keypoints_of_an_array_file(tmp_path):
    for values in (JOINTS, np.hstack([JOINTS, JOINTS])[:, :3], np.stack([JOINTS, JOINTS])):
        np.save(tmp_path / "k.npy", values)
        np.testing.assert_array_equal(io.read_keypoints(tmp_path / "k.npy").joints2d_px, values)


@pytest.mark.parametrize(
    "content",
    [
        JOINTS.tolist(),
        {"keypoints": JOINTS.tolist(), "other": 1},
        {"a.jpg": JOINTS.tolist()},
        {"a.jpg": {"keypoints": JOINTS.tolist()}, "b.jpg": [[0, 0]] * 21},
        {"images": {"a.jpg": JOINTS.tolist()}},
    ],
)
def test_every_json_form_gives_the_same_keypoints(tmp_path, content):
    (tmp_path / "k.json").write_text(json.dumps(content))
    keypoints = io.read_keypoints(tmp_path / "k.json", "a.jpg")
    np.testing.assert_array_equal(keypoints.joints2d_px, JOINTS)
    assert keypoints.side is None


def test_null_is_an_unknown_coordinate(tmp_path):
    (tmp_path / "k.json").write_text(json.dumps([[None, None], *JOINTS[1:].tolist()]))
    joints2d_px = io.read_keypoints(tmp_path / "k.json").joints2d_px
    assert np.isnan(joints2d_px[0]).all()
    np.testing.assert_array_equal(joints2d_px[1:], JOINTS[1:])


def test_the_callers_order_goes_before_the_files_and_the_inner_before_the_outer(tmp_path):
    def write(order: str | None, outer: str | None) -> None:
        inner = {"keypoints": JOINTS.tolist(), "order": order, "side": "left"}
        (tmp_path / "k.json").write_text(json.dumps({"images": {"a": inner}, "order": outer}))

    for given, inner, outer, used in (
        (None, None, None, "std"),
        (None, None, "rhd", "rhd"),
        (None, "mano21", "rhd", "mano21"),
        ("interhand", "mano21", "rhd", "interhand"),
    ):
        write(inner, outer)
        keypoints = io.read_keypoints(tmp_path / "k.json", "a", given)
        np.testing.assert_array_equal(keypoints.joints2d_px, JOINTS[list(JOINT_ORDERS[used])])
        assert keypoints.side == "left"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[1, 2]", "is no JSON file"),
        ("[[1, 2], [3]]", "expected lists of numbers"),
        ("[[1, 2]]", r"got \(1, 2\)"),
        ("3", r"got \(\)"),
        ("{}", "no keypoints for image 'a.jpg'"),
        ('{"images": {"b.jpg": [], "c.jpg": []}}', "names 2 images"),
        ('{"images": []}', "expected an object"),
        ('{"a.jpg": {"joints": []}}', "entry 'keypoints', found joints"),
        (json.dumps({"keypoints": JOINTS.tolist(), "side": "up"}), "side: expected"),
        (json.dumps({"keypoints": JOINTS.tolist(), "order": "mine"}), "unknown joint order 'mine'"),
    ],
)
def test_bad_keypoint_files_are_refused_by_entry(tmp_path, content, message):
    (tmp_path / "k.json").write_text(content)
    with pytest.raises(ValueError, match=rf"k\.json.*{message}"):
        io.read_keypoints(tmp_path / "k.json", "a.jpg")


def test_other_keypoint_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        io.read_keypoints(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError):
        io.read_keypoints(tmp_path / "none.npy")
    with pytest.raises(ValueError, match=r"expected a \.json or \.npy file"):
        io.read_keypoints(tmp_path / "k.txt")
    for data in (b"", b"no array"):
        (tmp_path / "k.npy").write_bytes(data)
        with pytest.raises(ValueError, match="no array file"):
            io.read_keypoints(tmp_path / "k.npy")


# --- Fitted hands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_meshes_read_back_with_the_documented_axes_and_normals(tmp_path, side, suffix):
    fit = known_fit(side)
    io.save_fit(fit, tmp_path / f"hand{suffix}")
    mesh = trimesh.load(tmp_path / f"hand{suffix}", force="mesh", process=False)
    axes = (1, -1, -1) if suffix == ".glb" else (1, 1, 1)
    np.testing.assert_allclose(mesh.vertices, fit.verts_m.numpy() * axes, atol=2e-7)
    np.testing.assert_array_equal(mesh.faces, fit.faces.numpy())
    # Outward: the sum over the faces is six times the enclosed volume, about 0.2 to 0.7 litres.
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces] - mesh.vertices.mean(0), 1, 0)
    assert 1e-4 < np.einsum("fi,fi->", a, np.cross(b, c)) / 6 < 1e-3
    in_file = {".glb": b'"NORMAL"', ".obj": b"vn ", ".ply": b"property float nx"}[suffix]
    assert in_file in (tmp_path / f"hand{suffix}").read_bytes()


def test_obj_states_its_frame_and_normals(tmp_path):
    io.save_fit(known_fit(), tmp_path / "hand.obj")
    lines = (tmp_path / "hand.obj").read_text().splitlines()
    assert "camera frame" in lines[0]
    assert sum(line.startswith("vn ") for line in lines) == 778


def test_json_says_everything_needed_to_rebuild_the_hand(tmp_path):
    fit = known_fit()
    io.save_fit(fit, tmp_path / "hand.json")
    record = json.loads((tmp_path / "hand.json").read_text())
    assert record["schema"] == io.FIT_SCHEMA
    assert record["camera"]["type"] == "WeakPerspective"
    assert record["residuals"]["joints2d_box"] is None
    assert record["keypoints2d_px"][7] == [None, None]
    params = HandParams(**{name: torch.tensor([part]) for name, part in record["params"].items()})
    mesh = fit.model.decode(params)
    verts_m = (mesh.verts_m - mesh.joints_m[:, MIDDLE_MCP]) / params.scale
    torch.testing.assert_close(verts_m[0], torch.tensor(record["verts_m"]))
    torch.testing.assert_close(torch.tensor(record["joints_m"]), fit.joints_m, rtol=0, atol=0)


def test_npz_holds_every_array_without_pickles(tmp_path):
    fit = known_fit()
    io.save_fit(fit, tmp_path / "hand.npz")
    with np.load(tmp_path / "hand.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["verts_m"], fit.verts_m)
        np.testing.assert_array_equal(arrays["mask"], fit.mask)
        np.testing.assert_array_equal(arrays["params_pose"], fit.params.pose[0])
        assert arrays["side"] == "right"
        assert arrays["camera_scale_px_per_m"] == fit.camera.scale_px_per_m


def test_unknown_suffixes_are_refused_with_the_accepted_ones(tmp_path):
    with pytest.raises(ValueError, match=r"\.glb, \.obj, \.ply, \.npz, \.json, got 'hand\.fbx'"):
        io.save_fit(known_fit(), tmp_path / "hand.fbx")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        io.save_fit(known_fit(), tmp_path / "nowhere" / "hand.glb")


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    target = tmp_path / "hand.json"
    target.write_text("old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        io.save_fit(known_fit(), target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_written_files_have_the_permissions_of_any_other(tmp_path, rgb):
    (tmp_path / "ordinary").write_text("")
    io.save_image(tmp_path / "a.png", rgb)
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_meshes_are_written_without_scipy(tmp_path, monkeypatch, capfd):
    """It is no dependency of the package; trimesh says at length when it misses it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    for suffix in (".glb", ".obj", ".ply"):
        io.save_fit(known_fit(), tmp_path / f"hand{suffix}")
    assert capfd.readouterr() == ("", "")
