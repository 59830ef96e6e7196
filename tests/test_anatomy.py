"""Anatomical axes and poses: which way positive angles turn, on both hands, and how natural poses behave."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dhpe_fast.hand.anatomy import (
    ABDUCTION,
    FLEXION,
    RANGE_OF_MOTION_RAD,
    TWIST,
    angles_from_pose,
    joint_axes,
    named_poses,
    pose_from_angles,
    sample_gestures,
    sample_poses,
)

MIRROR_X = np.array([-1.0, 1.0, 1.0])
TIP_ROW = {"index": 1, "middle": 2, "little": 4, "ring": 3, "thumb": 0}


def _toy_hand() -> tuple[np.ndarray, np.ndarray]:
    """Joints and tips of a schematic right hand in MANO's frame: fingers to -x, thumb side +z, palm -y."""
    joints, tips = np.zeros((16, 3)), np.zeros((5, 3))
    joints[0] = (0.095, 0.006, 0.006)
    for digit, (name, aside) in enumerate({"index": 0.024, "middle": 0.002, "little": -0.036, "ring": -0.018}.items()):
        base = np.array([0.01, 0.007, aside])
        along = np.array([-1.0, -0.05, 3.0 * aside])
        along /= np.linalg.norm(along)
        for segment, reach in enumerate((0.0, 0.042, 0.068)):
            joints[1 + 3 * digit + segment] = base + reach * along
        tips[TIP_ROW[name]] = base + 0.09 * along
    along = np.array([-0.74, -0.38, 0.56]) / np.linalg.norm([0.74, 0.38, 0.56])
    for segment, reach in enumerate((0.0, 0.046, 0.078)):
        joints[13 + segment] = np.array([0.072, -0.003, 0.026]) + reach * along
    tips[0] = joints[13] + 0.105 * along
    return joints, tips


JOINTS, TIPS = _toy_hand()
AXES = joint_axes(JOINTS, TIPS)


def _tip_motion(joints: np.ndarray, tips: np.ndarray, axes: np.ndarray, joint: int, component: int) -> np.ndarray:
    """Where the digit's tip goes when one joint turns by +0.2 rad about one anatomical axis."""
    digit = ("index", "middle", "little", "ring", "thumb")[(joint - 1) // 3]
    arm = tips[TIP_ROW[digit]] - joints[joint]
    return Rotation.from_rotvec(0.2 * axes[joint - 1, component]).apply(arm) - arm


def test_axes_are_right_handed_orthonormal_rows():
    products = np.einsum("jab,jcb->jac", AXES, AXES)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), (15, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(AXES), 1.0, atol=1e-12)


@pytest.mark.parametrize("joint", range(1, 13))
def test_positive_finger_flexion_moves_the_tip_into_the_palm(joint: int):
    motion = _tip_motion(JOINTS, TIPS, AXES, joint, FLEXION)
    assert motion[1] < -0.9 * np.linalg.norm(motion)


@pytest.mark.parametrize("joint", [13, 14, 15])
def test_positive_thumb_flexion_sweeps_the_tip_across_the_palm(joint: int):
    motion = _tip_motion(JOINTS, TIPS, AXES, joint, FLEXION)
    assert motion[1] < 0.0, "towards the palm's side"
    assert motion[2] < 0.0, "towards the little finger"
    before = np.linalg.norm(TIPS[0] - JOINTS[7])
    assert np.linalg.norm(TIPS[0] + motion - JOINTS[7]) < before, "nearer to the little finger's knuckle"


@pytest.mark.parametrize("joint", [1, 4, 7, 10])
def test_positive_finger_abduction_moves_the_tip_towards_the_thumbs_side(joint: int):
    motion = _tip_motion(JOINTS, TIPS, AXES, joint, ABDUCTION)
    assert motion[2] > 0.9 * np.linalg.norm(motion)


def test_positive_thumb_abduction_leaves_the_plane_of_the_palm():
    motion = _tip_motion(JOINTS, TIPS, AXES, 13, ABDUCTION)
    assert motion[1] < -0.4 * np.linalg.norm(motion)


def test_thumb_flexes_in_a_plane_of_its_own():
    angle = np.degrees(np.arccos(AXES[12, FLEXION] @ AXES[0, FLEXION]))
    assert 40.0 < angle < 75.0


def test_twist_points_along_the_bone_to_the_tip():
    np.testing.assert_allclose(AXES[0, TWIST], (JOINTS[2] - JOINTS[1]) / np.linalg.norm(JOINTS[2] - JOINTS[1]))
    np.testing.assert_allclose(AXES[14, TWIST], (TIPS[0] - JOINTS[15]) / np.linalg.norm(TIPS[0] - JOINTS[15]))


def test_axes_turn_with_the_hand():
    turn = Rotation.from_euler("xyz", [0.7, -1.1, 2.0]).as_matrix()
    shift = np.array([0.3, -0.2, 0.9])
    turned = joint_axes(JOINTS @ turn.T + shift, TIPS @ turn.T + shift)
    np.testing.assert_allclose(turned, AXES @ turn.T, atol=1e-12)


def test_the_same_angles_move_a_left_hand_as_in_a_mirror():
    left_axes = joint_axes(JOINTS * MIRROR_X, TIPS * MIRROR_X, side="left")
    np.testing.assert_allclose(np.linalg.det(left_axes), 1.0, atol=1e-12)
    for joint in range(1, 16):
        for component in (FLEXION, ABDUCTION, TWIST):
            right = _tip_motion(JOINTS, TIPS, AXES, joint, component)
            left = _tip_motion(JOINTS * MIRROR_X, TIPS * MIRROR_X, left_axes, joint, component)
            np.testing.assert_allclose(left, right * MIRROR_X, atol=1e-12)


def test_a_left_pose_is_the_mirrored_right_pose():
    left_axes = joint_axes(JOINTS * MIRROR_X, TIPS * MIRROR_X, side="left")
    for name, right in named_poses(AXES).items():
        # Rotation vectors are axial: a mirror in x keeps their x part and flips the others.
        mirrored = right.reshape(15, 3) * np.array([1.0, -1.0, -1.0])
        np.testing.assert_allclose(named_poses(left_axes)[name], mirrored.reshape(45), atol=1e-12)


def test_angles_and_pose_are_inverse():
    angles = np.random.default_rng(3).normal(size=(4, 15, 3))
    np.testing.assert_allclose(angles_from_pose(AXES, pose_from_angles(AXES, angles)), angles, atol=1e-12)
    pose = np.zeros((15, 3))
    pose[4] = 0.7 * AXES[4, FLEXION]
    np.testing.assert_allclose(angles_from_pose(AXES, pose.reshape(45))[4], [0.7, 0.0, 0.0], atol=1e-12)


def test_range_of_motion_holds_the_rest_pose_and_published_flexions():
    low, high = RANGE_OF_MOTION_RAD[..., 0], RANGE_OF_MOTION_RAD[..., 1]
    assert (low < 0.0).all()
    assert (high > 0.0).all()
    flexion_deg = np.degrees(high[:, FLEXION]).reshape(5, 3)
    # American Academy of Orthopaedic Surgeons: MCP 90, PIP 100 to 110, DIP 70 to 90; thumb MCP 50 to 60, IP 80.
    np.testing.assert_allclose(flexion_deg[:4], np.tile([90.0, 110.0, 80.0], (4, 1)))
    np.testing.assert_allclose(flexion_deg[4, 1:], [60.0, 80.0])


def test_samples_stay_within_the_limits_and_repeat():
    poses = sample_poses(AXES, 500, np.random.default_rng(1))
    assert poses.shape == (500, 45)
    angles = angles_from_pose(AXES, poses)
    assert (angles >= RANGE_OF_MOTION_RAD[..., 0] - 1e-9).all()
    assert (angles <= RANGE_OF_MOTION_RAD[..., 1] + 1e-9).all()
    np.testing.assert_array_equal(poses, sample_poses(AXES, 500, np.random.default_rng(1)))
    assert sample_poses(AXES, 0, np.random.default_rng(1)).shape == (0, 45)


def test_samples_show_finger_synergies():
    flexion = angles_from_pose(AXES, sample_poses(AXES, 2000, np.random.default_rng(2)))[..., FLEXION]
    correlation = np.corrcoef(flexion.T)
    for finger in range(4):
        assert correlation[3 * finger + 1, 3 * finger + 2] > 0.9, "the end joint follows the middle joint"
    assert correlation[4, 10] > 0.5, "middle and ring finger curl together"
    assert correlation[4, 10] < 0.98, "but not as one"


def test_gestures_stay_within_the_limits_and_repeat():
    poses = sample_gestures(AXES, 500, np.random.default_rng(1))
    angles = angles_from_pose(AXES, poses)
    assert (angles >= RANGE_OF_MOTION_RAD[..., 0] - 1e-9).all()
    assert (angles <= RANGE_OF_MOTION_RAD[..., 1] + 1e-9).all()
    np.testing.assert_array_equal(poses, sample_gestures(AXES, 500, np.random.default_rng(1)))
    assert sample_gestures(AXES, 0, np.random.default_rng(1)).shape == (0, 45)
    assert len(np.unique(angles.round(6), axis=0)) == 500, "no two are alike"


def test_gestures_are_near_every_named_pose_and_natural_poses_seldom_are():
    named = angles_from_pose(AXES, np.stack(list(named_poses(AXES).values())))

    def nearest(sample):
        angles = angles_from_pose(AXES, sample(AXES, 600, np.random.default_rng(3)))
        distances = np.linalg.norm((angles[:, None] - named).reshape(600, 12, -1), axis=2)
        return distances.argmin(1), distances.min(1)

    which, gestures_rad = nearest(sample_gestures)
    assert np.bincount(which, minlength=12).min() > 15
    assert np.median(gestures_rad) < 0.6 * np.median(nearest(sample_poses)[1])


def test_the_twelve_named_poses_are_natural():
    poses = named_poses(AXES)
    assert len(poses) == 12
    np.testing.assert_array_equal(poses["flat"], np.zeros(45))
    for name, pose in poses.items():
        angles = angles_from_pose(AXES, pose)
        assert (angles >= RANGE_OF_MOTION_RAD[..., 0] - 1e-9).all(), name
        assert (angles <= RANGE_OF_MOTION_RAD[..., 1] + 1e-9).all(), name


def test_joint_axes_leaves_its_arguments_alone():
    joints, tips = JOINTS.copy(), TIPS.copy()
    joint_axes(joints, tips)
    np.testing.assert_array_equal(joints, JOINTS)
    np.testing.assert_array_equal(tips, TIPS)


@pytest.mark.parametrize(
    ("joints", "tips", "side", "message"),
    [
        (JOINTS[:15], TIPS, "right", r"joints_m: expected shape \(16, 3\)"),
        (JOINTS, TIPS.T, "right", r"tips_m: expected shape \(5, 3\)"),
        (JOINTS, TIPS, "both", "side: expected"),
        (JOINTS * np.nan, TIPS, "right", "finite"),
        (np.zeros((16, 3)), TIPS, "right", "coincide"),
    ],
)
def test_bad_input_is_named(joints: np.ndarray, tips: np.ndarray, side: str, message: str):
    with pytest.raises(ValueError, match=message):
        joint_axes(joints, tips, side)


def test_a_negative_count_of_gestures_is_refused():
    with pytest.raises(ValueError, match="expected a count of poses, got -1"):
        sample_gestures(AXES, -1, np.random.default_rng(0))


def test_a_negative_count_of_samples_is_refused():
    with pytest.raises(ValueError, match="n: expected a count"):
        sample_poses(AXES, -1, np.random.default_rng(0))
