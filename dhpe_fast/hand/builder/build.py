"""Build the default hand from its parts, top to bottom."""

from __future__ import annotations

import numpy as np

from dhpe_fast.conventions import FINGERS, MANO16_PARENTS
from dhpe_fast.hand.anatomy import joint_axes
from dhpe_fast.hand.builder.anthropometry import mean_skeleton
from dhpe_fast.hand.builder.correctives import pose_directions
from dhpe_fast.hand.builder.pose_space import pose_components
from dhpe_fast.hand.builder.rig import joint_regressor, skinning_weights
from dhpe_fast.hand.builder.shape_space import RestHand, sample_shapes, shape_directions
from dhpe_fast.hand.builder.surface import HandSurface
from dhpe_fast.hand.builder.texture import texture_map
from dhpe_fast.hand.builder.topology import build_mesh
from dhpe_fast.hand.builder.wrapping import wrap

SEED = 20190415
_SHAPE_SAMPLES = 1500
_REGRESSOR_SAMPLES = 40


def build_hand() -> dict[str, np.ndarray]:
    """Return the arrays of the default right hand by their MANO names: float32, indices int32."""
    skeleton = mean_skeleton()
    surface = HandSurface(skeleton)
    mesh = wrap(build_mesh(surface), surface)
    axes = joint_axes(skeleton.joints_m, skeleton.tips())
    weights = skinning_weights(mesh, surface)
    hand = RestHand(mesh.verts_m, mesh.faces, skeleton.joints_m, axes, weights)

    shapes, shape_joints = sample_shapes(hand, _SHAPE_SAMPLES, np.random.default_rng(SEED))
    few = slice(0, _REGRESSOR_SAMPLES)
    regressor = joint_regressor(hand.verts_m, hand.joints_m, shapes[few], shape_joints[few], _reaches(hand))
    mean_pose, components = pose_components(axes, np.random.default_rng(SEED + 1))
    uv, uv_faces = texture_map(hand.verts_m, hand.faces, mesh.seam)
    floats = {
        "v_template": hand.verts_m,
        "shapedirs": shape_directions(hand, shapes),
        "posedirs": pose_directions(hand, np.random.default_rng(SEED + 2)),
        "J_regressor": regressor,
        "weights": weights,
        "hands_mean": mean_pose,
        "hands_components": components,
        "uv": uv,
    }
    parents = np.array(MANO16_PARENTS)
    integers = {
        "f": hand.faces,
        "kintree_table": np.stack([parents, np.arange(16)]),
        "tip_ids": np.array([mesh.tips[digit] for digit in FINGERS]),
        "uv_faces": uv_faces,
    }
    texts = {"side": "right", "name": "dhpe-fast default hand", "licence": "Apache-2.0"}
    return (
        {key: value.astype(np.float32) for key, value in floats.items()}
        | {key: value.astype(np.int32) for key, value in integers.items()}
        | {key: np.array(value) for key, value in texts.items()}
    )


def _reaches(hand: RestHand) -> np.ndarray:  # (16,)
    """How far the vertices that locate a joint may lie: a little more than the local thickness."""
    reach = np.full(16, 0.0165)
    reach[0] = 0.036
    reach[[1, 4, 7, 10]] = 0.019
    reach[13] = 0.028
    reach[[14, 15]] = 0.018
    return reach
