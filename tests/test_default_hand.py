"""The hand that ships with the package: topology, anatomy, deformation and its reproducible build."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from dhpe_fast.conventions import MANO16_PARENTS, N_FACES, N_VERTS, N_WRIST_RING
from dhpe_fast.hand.anatomy import (
    FLEXION,
    RANGE_OF_MOTION_RAD,
    joint_axes,
    named_poses,
    pose_from_angles,
    sample_poses,
)
from dhpe_fast.hand.builder.anthropometry import DIGITS, SEGMENT_LENGTHS_MM, pooled
from dhpe_fast.hand.builder.geometry import corner_angles, self_intersections

TIP_ROW = {"index": 1, "middle": 2, "little": 4, "ring": 3, "thumb": 0}
KNUCKLES = (1, 4, 7, 10)
JOINT_LABELS = [f"{digit}{k}" for digit in DIGITS for k in (1, 2, 3)]


def _load() -> dict[str, np.ndarray]:
    path = resources.files("dhpe_fast.hand") / "default_hand.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return {
            key: stored[key].astype(np.float64) if stored[key].dtype == np.float32 else stored[key] for key in stored
        }


HAND = _load()
VERTS, FACES = HAND["v_template"], HAND["f"]
JOINTS = HAND["J_regressor"] @ VERTS
TIPS = VERTS[HAND["tip_ids"]]
AXES = joint_axes(JOINTS, TIPS)


def _pose_mesh(pose: np.ndarray, betas: np.ndarray | None = None, correct: bool = True) -> np.ndarray:
    """Linear blend skinning written as loops over joints; the root stays at rest."""
    verts = VERTS if betas is None else VERTS + HAND["shapedirs"] @ betas
    joints = HAND["J_regressor"] @ verts
    local = [np.eye(3), *Rotation.from_rotvec(pose.reshape(15, 3)).as_matrix()]
    if correct:
        verts = verts + HAND["posedirs"] @ np.concatenate([(r - np.eye(3)).ravel() for r in local[1:]])
    world: list[np.ndarray] = []
    for joint, parent in enumerate(MANO16_PARENTS):
        transform = np.eye(4)
        transform[:3, :3] = local[joint]
        transform[:3, 3] = joints[joint] - local[joint] @ joints[joint]
        world.append(transform if parent < 0 else world[parent] @ transform)
    posed = np.zeros_like(verts)
    for joint, transform in enumerate(world):
        posed += HAND["weights"][:, joint, None] * (verts @ transform[:3, :3].T + transform[:3, 3])
    return posed


def _flexed(joint: int, flexion: float) -> np.ndarray:
    angles = np.zeros((15, 3))
    angles[joint - 1, FLEXION] = flexion
    return pose_from_angles(AXES, angles)


def _border() -> list[int]:
    """The open border's vertices in order, found by walking its directed edges."""
    directed = {(int(a), int(b)) for face in FACES for a, b in zip(face, np.roll(face, -1), strict=True)}
    following = {a: b for a, b in directed if (b, a) not in directed}
    loop = [min(following)]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    assert len(loop) == len(following), "one loop holds every border edge"
    return loop


BORDER = _border()


def _closed_triangles(verts: np.ndarray) -> np.ndarray:  # (F + 16, 3, 3)
    """All triangles, the wrist closed by a fan around the border's centre."""
    center = verts[BORDER].mean(0)
    fan = [(verts[b], verts[a], center) for a, b in zip(BORDER, np.roll(BORDER, -1), strict=True)]
    return np.concatenate([verts[FACES], np.array(fan)])


def _volume_ml(verts: np.ndarray) -> float:
    a, b, c = _closed_triangles(verts).transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6.0 * 1e6)


def _winding(points: np.ndarray, verts: np.ndarray) -> np.ndarray:
    """How often the closed mesh winds around each point (van Oosterom and Strackee's solid angles)."""
    tris = _closed_triangles(verts)
    result = []
    for point in points:
        a, b, c = (tris - point).transpose(1, 0, 2)
        la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
        over = (a * np.cross(b, c)).sum(1)
        under = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        result.append(np.arctan2(over, under).sum() / (2.0 * np.pi))
    return np.array(result)


# --- The mesh ---


def test_counts_and_dtypes():
    assert VERTS.shape == (N_VERTS, 3)
    assert FACES.shape == (N_FACES, 3)
    assert HAND["shapedirs"].shape == (N_VERTS, 3, 10)
    assert HAND["posedirs"].shape == (N_VERTS, 3, 135)
    assert HAND["J_regressor"].shape == (16, N_VERTS)
    assert HAND["weights"].shape == (N_VERTS, 16)
    np.testing.assert_array_equal(HAND["kintree_table"], [MANO16_PARENTS, np.arange(16)])
    assert (str(HAND["side"]), str(HAND["licence"])) == ("right", "Apache-2.0")
    assert all(np.isfinite(array).all() for array in HAND.values() if array.dtype.kind in "fi")


def test_surface_is_a_disc_open_at_the_wrist():
    assert len(BORDER) == N_WRIST_RING
    assert (VERTS[BORDER, 0] > JOINTS[0, 0] + 0.01).all(), "the border lies beyond the wrist joint"
    edges = np.unique(np.sort(FACES[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0)
    assert N_VERTS - len(edges) + N_FACES == 1
    np.testing.assert_array_equal(np.unique(FACES), np.arange(N_VERTS))


def test_every_edge_is_run_once_in_each_direction():
    directed = FACES[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    assert len(np.unique(directed, axis=0)) == len(directed), "consistently oriented manifold"


def test_each_vertex_has_one_fan_of_faces():
    for vertex in range(N_VERTS):
        around = [np.roll(face, -list(face).index(vertex))[1:] for face in FACES[(vertex == FACES).any(1)]]
        following = {int(a): int(b) for a, b in around}
        starts = set(following) - set(following.values())
        here = min(starts) if starts else min(following)
        seen = 0
        while here in following:
            here = following.pop(here)
            seen += 1
        assert seen == len(around), f"vertex {vertex} joins two fans"


def test_faces_point_outwards_and_volume_is_human():
    # Hand volumes of adults by water displacement are about 250 to 480 ml.
    assert 250.0 < _volume_ml(VERTS) < 480.0


def test_no_slivers():
    angles = np.degrees(corner_angles(VERTS, FACES))
    assert angles.min() > 15.0
    assert angles.max() < 145.0


def test_intersection_finder_sees_a_crossing():
    verts = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.2, 0.2, -1], [0.3, 0.2, 1], [0.2, 0.3, 1]], dtype=float)
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    assert len(self_intersections(verts, faces)) == 1
    verts[3:, 0] += 2.0
    assert len(self_intersections(verts, faces)) == 0


def test_rest_hand_does_not_intersect_itself():
    assert len(self_intersections(VERTS, FACES)) == 0


def test_texture_charts_cover_the_unit_square_once():
    uv, uv_faces = HAND["uv"], HAND["uv_faces"]
    assert uv_faces.shape == FACES.shape
    assert uv.min() >= 0.0
    assert uv.max() <= 1.0
    a, b, c = uv[uv_faces].transpose(1, 0, 2)

    def turn(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    area = turn(a, b, c) / 2.0
    assert (area > 0.0).all() or (area < 0.0).all(), "no chart is folded or mirrored"
    for mix in ((1 / 3, 1 / 3, 1 / 3), (0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8)):
        points = (mix[0] * a + mix[1] * b + mix[2] * c)[:, None]
        sides = np.stack([turn(a, b, points), turn(b, c, points), turn(c, a, points)]) * np.sign(area[0])
        np.testing.assert_array_equal((sides > 0.0).all(0).sum(1), 1)


# --- The rig ---


def test_weights_are_convex_sparse_and_smooth():
    weights = HAND["weights"]
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-6)
    assert weights.min() >= 0.0
    assert (weights > 0.0).sum(1).max() <= 4
    for digit, row in TIP_ROW.items():
        assert weights[HAND["tip_ids"][row], 3 + 3 * DIGITS.index(digit)] == 1.0
    edges = FACES[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    assert np.abs(weights[edges[:, 0]] - weights[edges[:, 1]]).sum(1).max() < 1.6, "no jump from bone to bone"
    np.testing.assert_array_equal(weights[BORDER, 0], 1.0)


def test_regressor_rows_are_convex_sparse_and_local():
    rows = HAND["J_regressor"]
    np.testing.assert_allclose(rows.sum(1), 1.0, atol=1e-6)
    assert rows.min() >= 0.0
    assert (rows > 0.0).sum(1).max() < 50
    for joint, row in enumerate(rows):
        assert np.linalg.norm(VERTS[row > 0] - JOINTS[joint], axis=1).max() < 0.04


@pytest.mark.parametrize("sign", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("component", [0, 1, 2])
def test_joints_lie_in_the_flesh_whatever_the_shape(component: int, sign: float):
    verts = VERTS + sign * HAND["shapedirs"][:, :, component]
    np.testing.assert_allclose(_winding(HAND["J_regressor"] @ verts, verts), 1.0, atol=1e-6)


def test_knuckles_lie_nearer_to_the_back_than_to_the_palm():
    for joint in KNUCKLES:
        near = VERTS[np.linalg.norm((VERTS - JOINTS[joint])[:, [0, 2]], axis=1) < 0.006, 1] - JOINTS[joint, 1]
        assert near.max() < -near.min()


def test_the_hand_lies_in_manos_frame():
    np.testing.assert_allclose(JOINTS[0], [0.095, 0.006, 0.006], atol=2e-4)
    assert (TIPS[1:, 0] < -0.02).all(), "fingers point to -x"
    assert TIPS[0, 2] > JOINTS[1, 2] + 0.02, "the thumb lies towards +z"
    assert TIPS[0, 1] < JOINTS[1, 1] - 0.02, "on the palm's side, -y"
    thumb, index = JOINTS[14] - JOINTS[13], JOINTS[2] - JOINTS[1]
    angle = np.degrees(np.arccos(thumb @ index / np.linalg.norm(thumb) / np.linalg.norm(index)))
    assert 30.0 < angle < 50.0, "about 40 degrees off the index finger"


@pytest.mark.parametrize("digit", DIGITS)
def test_segment_lengths_are_the_published_means(digit: str):
    first = 1 + 3 * DIGITS.index(digit)
    chain = np.vstack([JOINTS[first : first + 3], TIPS[TIP_ROW[digit]]])
    lengths_mm = 1000.0 * np.linalg.norm(np.diff(chain, axis=0), axis=1)
    published = SEGMENT_LENGTHS_MM[digit]
    bones = published[:3] if digit == "thumb" else published[1:4]
    np.testing.assert_allclose(lengths_mm, [bones[0], bones[1], bones[2] + published[-1]], atol=0.5)


def _breadth_ends() -> tuple[int, int]:
    """The outermost vertices on both sides of the palm at the level of the four knuckles."""
    level = np.abs(VERTS[:, 0] - JOINTS[[1, 4, 7, 10], 0].mean()) < 0.012
    ids = np.flatnonzero(level & (HAND["weights"][:, 13:].sum(1) < 0.3))
    return int(ids[VERTS[ids, 2].argmax()]), int(ids[VERTS[ids, 2].argmin()])


def _palm_girth() -> tuple[float, float]:
    """Length of a tape around the four knuckles and thickness of the section under it, thumb left out."""
    center, across = (JOINTS[1] + JOINTS[7]) / 2.0, JOINTS[1] - JOINTS[7]
    normal = np.cross(across, [0.0, 1.0, 0.0])
    normal /= np.linalg.norm(normal)
    height = (VERTS - center) @ normal
    without_thumb = HAND["weights"][:, 13:].sum(1) < 0.5
    cut = [
        (height[a] * VERTS[b] - height[b] * VERTS[a]) / (height[a] - height[b])
        for a, b in FACES[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
        if height[a] * height[b] < 0.0 and without_thumb[a] and without_thumb[b]
    ]
    side = across - normal * (normal @ across)
    side /= np.linalg.norm(side)
    up = np.cross(normal, side)
    section = np.stack([(np.array(cut) - center) @ side, (np.array(cut) - center) @ up], axis=1)
    return ConvexHull(section).area, float(np.ptp(section[:, 1]))


def test_hand_dimensions_are_those_of_the_adult_population():
    length_mean, length_sd = pooled("hand_length")
    assert abs(np.linalg.norm(TIPS[2] - JOINTS[0]) - length_mean) < 0.5 * length_sd
    one, other = _breadth_ends()
    breadth_mean, breadth_sd = pooled("hand_breadth")
    assert abs(np.linalg.norm(VERTS[one] - VERTS[other]) - breadth_mean) < 0.5 * breadth_sd
    girth_mean, girth_sd = pooled("hand_circumference")
    girth, thickness = _palm_girth()
    assert abs(girth - girth_mean) < girth_sd
    thickness_mean, thickness_sd = pooled("hand_thickness")
    assert abs(thickness - thickness_mean) < thickness_sd
    ring = VERTS[BORDER]
    around = np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=1).sum()
    wrist_mean, wrist_sd = pooled("wrist_circumference")
    assert abs(around - wrist_mean) < wrist_sd


# --- Shape space ---


def test_shape_directions_are_orthogonal_and_fall_in_size():
    flat = HAND["shapedirs"].reshape(-1, 10)
    gram = flat.T @ flat
    size = np.sqrt(np.diag(gram))
    np.testing.assert_allclose(gram / np.outer(size, size), np.eye(10), atol=1e-4)
    assert (np.diff(size) < 0.0).all()


def test_unit_variance_betas_give_the_published_spread():
    betas = np.random.default_rng(0).standard_normal((3000, 10))
    one, other = _breadth_ends()
    joint = np.einsum("v,vck->ck", HAND["J_regressor"][0], HAND["shapedirs"])
    arm = TIPS[2] - JOINTS[0] + betas @ (HAND["shapedirs"][HAND["tip_ids"][2]] - joint).T
    across = VERTS[one] - VERTS[other] + betas @ (HAND["shapedirs"][one] - HAND["shapedirs"][other]).T
    lengths, breadths = np.linalg.norm(arm, axis=1), np.linalg.norm(across, axis=1)
    for measured, name in ((lengths, "hand_length"), (breadths, "hand_breadth")):
        mean, sd = pooled(name)
        assert measured.std() / measured.mean() == pytest.approx(sd / mean, rel=0.15)
    assert 0.5 < np.corrcoef(lengths, breadths)[0, 1] < 0.85


@pytest.mark.parametrize("component", range(10))
def test_three_sigma_shapes_stay_free_of_intersections(component: int):
    for sign in (-3.0, 3.0):
        verts = VERTS + sign * HAND["shapedirs"][:, :, component]
        assert len(self_intersections(verts, FACES)) == 0


def test_random_shapes_stay_free_of_intersections():
    for betas in np.random.default_rng(4).standard_normal((10, 10)):
        assert len(self_intersections(VERTS + HAND["shapedirs"] @ betas, FACES)) == 0


# --- Deformation ---


@pytest.mark.parametrize("joint", range(1, 16), ids=JOINT_LABELS)
def test_bending_a_joint_keeps_the_volume_and_the_skin_apart(joint: int):
    rest = _volume_ml(VERTS)
    low, high = RANGE_OF_MOTION_RAD[joint - 1, FLEXION]
    for flexion in (low, 0.5 * high, high):
        assert abs(_volume_ml(_pose_mesh(_flexed(joint, flexion))) - rest) < 0.02 * rest
    # A knuckle hardly bends further than this while its neighbours stay straight.
    alone = 0.65 * high if joint in KNUCKLES else high
    assert len(self_intersections(_pose_mesh(_flexed(joint, alone)), FACES)) == 0


def test_the_four_knuckles_bend_together_through_their_whole_range():
    rest = _volume_ml(VERTS)
    for flexion in np.deg2rad([-20.0, 30.0, 60.0, 90.0]):
        posed = _pose_mesh(sum(_flexed(joint, flexion) for joint in KNUCKLES))
        assert len(self_intersections(posed, FACES)) == 0
        assert abs(_volume_ml(posed) - rest) < 0.04 * rest


@pytest.mark.parametrize("joint", [2, 3, 5, 6, 8, 9, 11, 12, 14, 15])
def test_correctives_give_back_the_volume_that_plain_skinning_loses(joint: int):
    rest = _volume_ml(VERTS)
    pose = _flexed(joint, RANGE_OF_MOTION_RAD[joint - 1, FLEXION, 1])
    plain = _volume_ml(_pose_mesh(pose, correct=False)) - rest
    corrected = _volume_ml(_pose_mesh(pose)) - rest
    assert plain < -0.2
    assert abs(corrected) < 0.3 * abs(plain)


def test_correctives_are_local():
    reach = np.linalg.norm(HAND["posedirs"].reshape(N_VERTS, 3, 15, 9), axis=(1, 3))
    for joint in range(1, 16):
        far = np.linalg.norm(VERTS - JOINTS[joint], axis=1) > 0.075
        assert reach[far, joint - 1].max() < 1e-4


@pytest.mark.parametrize("name", list(named_poses(AXES)))
def test_named_poses_do_not_intersect(name: str):
    assert len(self_intersections(_pose_mesh(named_poses(AXES)[name]), FACES)) == 0


def test_a_fist_closes_and_the_thumb_lies_over_it():
    posed = _pose_mesh(named_poses(AXES)["fist"])
    tips = posed[HAND["tip_ids"]]
    palm = JOINTS[[0, 1, 4, 7, 10]].mean(0)
    assert np.linalg.norm(tips[1:] - palm, axis=1).max() < 0.045
    assert tips[0, 1] < tips[1:, 1].min(), "the thumb's tip lies outside the curled fingers"


@pytest.mark.parametrize("name", ["ok", "pinch"])
def test_thumb_and_index_finger_meet(name: str):
    posed = _pose_mesh(named_poses(AXES)[name])
    thumb = posed[HAND["weights"][:, 15] > 0.9]
    index = posed[HAND["weights"][:, 3] > 0.9]
    assert np.linalg.norm(thumb[:, None] - index[None], axis=2).min() < 0.006


# --- Pose space ---


def test_pose_components_are_orthonormal_and_describe_the_samples():
    rows = HAND["hands_components"]
    np.testing.assert_allclose(rows @ rows.T, np.eye(45), atol=1e-5)
    poses = sample_poses(AXES, 1000, np.random.default_rng(11)) - HAND["hands_mean"]
    spread = (poses @ rows.T).var(0)
    assert spread[:10].sum() > 0.85 * spread.sum(), "ten components hold most of natural movement"
    assert spread[:5].min() > spread[10:].max()


def test_mean_pose_is_relaxed():
    assert len(self_intersections(_pose_mesh(HAND["hands_mean"]), FACES)) == 0
    flexion = np.einsum("jc,jc->j", HAND["hands_mean"].reshape(15, 3), AXES[:, FLEXION])
    assert (np.degrees(flexion[:12]) > 5.0).all()
    assert (np.degrees(flexion[:12]) < 50.0).all()


# --- The build ---


@pytest.mark.slow
def test_the_builder_reproduces_the_shipped_file():
    from dhpe_fast.hand.builder.build import build_hand

    built = build_hand()
    assert set(built) == set(HAND)
    for key, array in built.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, HAND[key], atol=2e-5, err_msg=key)
        else:
            np.testing.assert_array_equal(array, HAND[key], err_msg=key)


def test_written_files_depend_on_the_arrays_alone(tmp_path):
    from dhpe_fast.hand.builder.export import write_npz

    arrays = {"b": np.arange(6.0), "a": np.array("text")}
    write_npz(tmp_path / "one.npz", arrays)
    write_npz(tmp_path / "two.npz", dict(reversed(arrays.items())))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["b"], arrays["b"])
    with pytest.raises(TypeError):
        write_npz(tmp_path / "three.npz", {"a": np.arange(2), 5: np.arange(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"], "no half-written file"
