"""Frames, units, joint orders and the layout of ``h``: every constant of the package, in one place.

This module holds facts and no logic; every other module may import it, it imports nothing of the package.

Units
    Metres for hand models (``_m``), pixels for images (``_px``), radians for angles.

Image frame (OpenCV)
    x right, y down, z away from the camera. The pixel in row i and column j has its centre at
    ``(x, y) = (j + 0.5, i + 0.5)``; the image spans ``[0, width] x [0, height]``. Images are RGB.
    Mirroring an image of width W therefore maps x to ``W - x``.

Crop frame
    The square crop seen by an orthographic camera looking along +z: x and y run over [-1, 1] from the left to
    the right and from the top to the bottom border, z has the same unit and grows away from the camera.
    ``x_px = (x + 1) / 2 * CROP_SIZE_PX``.

Model frame (right hand, rest pose)
    As in MANO: the fingers point to -x, the thumb side lies towards +z, the palm faces -y, the wrist joint is
    near (+0.095, 0.006, 0.006) m. A left hand is its mirror image in x.

Hand parameters
    ``h`` (B, 63) = pose 45 | shape 10 | quat 4 | scale 1 | trans 3, see ``H_LAYOUT``. ``pose`` is the
    *absolute* axis-angle of joints 1..15 in the MANO16 order, ``quat`` is (w, x, y, z), normalised where it
    is used, and the mesh in the crop frame is ``scale * R(quat) @ verts_m + trans``, with ``verts_m`` posed
    at identity root rotation.

Joints
    The package speaks STD: wrist, thumb, index, middle, ring, little, each finger from base to tip (the order
    of OpenPose, MediaPipe, FreiHAND and manopth). Kinematics inside a hand model speak MANO16, in which the
    little finger comes before the ring finger and tips are vertices, not joints. Every other order is a row
    of ``JOINT_ORDERS``.
"""

from __future__ import annotations

# --- Sizes of a hand model ----------------------------------------------------------------------------------

N_VERTS = 778
N_FACES = 1538
N_JOINTS = 16
"""Kinematic joints of MANO: the wrist and three for each finger."""
N_ARTICULATED = 15
"""Kinematic joints which the pose turns: all but the wrist."""
N_JOINTS_STD = 21
"""Joints of the skeleton which the package reports: the kinematic joints and five fingertips."""
N_SHAPE = 10
N_POSE = 3 * N_ARTICULATED
N_POSE_FEATURE = 9 * N_ARTICULATED
"""Length of the pose feature: (R_j - I) of joints 1..15, row-major."""
N_WRIST_RING = 16
"""Vertices on the open border at the wrist; it follows from 778 vertices and 1538 faces of a disc."""

CROP_SIZE_PX = 224
"""Side of the network's input crop."""

CROP_MARGIN = 1.5
"""Side of the paper's crop by the longer side of the tight box around the 2D joints (Eq. 8)."""

BORDER_GREY = 128
"""Value of a network's crop beyond the image: mid-grey, as in Zimmermann and Brox, whose inputs are centred on it."""

# --- Layout of h --------------------------------------------------------------------------------------------

H_LAYOUT: dict[str, slice] = {
    "pose": slice(0, 45),
    "shape": slice(45, 55),
    "quat": slice(55, 59),
    "scale": slice(59, 60),
    "trans": slice(60, 63),
}
H_SIZE = 63

# --- Joint names and trees ----------------------------------------------------------------------------------

FINGERS = ("thumb", "index", "middle", "ring", "little")

JOINT_NAMES = (
    "wrist",
    "thumb_cmc",
    "thumb_mcp",
    "thumb_ip",
    "thumb_tip",
    "index_mcp",
    "index_pip",
    "index_dip",
    "index_tip",
    "middle_mcp",
    "middle_pip",
    "middle_dip",
    "middle_tip",
    "ring_mcp",
    "ring_pip",
    "ring_dip",
    "ring_tip",
    "little_mcp",
    "little_pip",
    "little_dip",
    "little_tip",
)
"""The 21 joints in STD order."""

STD_PARENTS = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)

MIDDLE_MCP = 9
"""STD index of the middle finger's MCP joint, the root of the paper's normalisation (Eq. 8)."""

FINGER_MCPS = (5, 9, 13, 17)
"""STD indices of the MCP joints of the four fingers, index to little; the PIP joint of each follows it."""

SCALE_BONE = (MIDDLE_MCP, MIDDLE_MCP + 1)
"""Middle MCP to PIP: the bone whose length gives the scale in Zimmermann and Brox 2017."""

STD_TIPS = (4, 8, 12, 16, 20)
"""STD indices of the fingertips, thumb to little."""

MANO16_JOINT_NAMES = (
    "wrist",
    "index_mcp",
    "index_pip",
    "index_dip",
    "middle_mcp",
    "middle_pip",
    "middle_dip",
    "little_mcp",
    "little_pip",
    "little_dip",
    "ring_mcp",
    "ring_pip",
    "ring_dip",
    "thumb_cmc",
    "thumb_mcp",
    "thumb_ip",
)
"""The kinematic joints in the order of MANO files: index, middle, little, ring, thumb."""

MANO16_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)

# --- Joint orders -------------------------------------------------------------------------------------------

_STD = tuple(range(N_JOINTS_STD))

JOINT_ORDERS: dict[str, tuple[int, ...]] = {
    "std": _STD,
    "openpose": _STD,
    "mediapipe": _STD,
    "freihand": _STD,
    "manopth": _STD,
    # RHD (one hand) and the networks of Zimmermann and Brox: fingers as in STD, each from tip to base.
    "rhd": (0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17),
    # STB: little to thumb, each from base to tip; its joint 0 is the centre of the palm, not the wrist.
    "stb": (0, 17, 18, 19, 20, 13, 14, 15, 16, 9, 10, 11, 12, 5, 6, 7, 8, 1, 2, 3, 4),
    # HO-3D: the MANO16 joints, then the tips of thumb, index, middle, ring, little.
    "mano21": (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20),
    # InterHand2.6M (one hand): fingers as in STD, each from tip to base, the wrist last.
    "interhand": (20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16),
    # BigHand2.2M and HANDS'19: wrist, the five finger bases, then the other three joints of each finger.
    "bighand": (0, 1, 6, 7, 8, 2, 9, 10, 11, 3, 12, 13, 14, 4, 15, 16, 17, 5, 18, 19, 20),
}
"""Gather tables to the package's order: ``joints_std = joints_src[..., JOINT_ORDERS[src], :]``."""


def joint_permutation(src: str, dst: str = "std") -> tuple[int, ...]:
    """Gather table between two named joint orders: ``joints_dst = joints_src[..., table, :]``.

    Args:
        src: name of the order at hand, a key of ``JOINT_ORDERS``.
        dst: name of the order wanted.

    Raises:
        ValueError: if a name is unknown.
    """
    for argument, name in (("src", src), ("dst", dst)):
        if name not in JOINT_ORDERS:
            raise ValueError(f"{argument}: unknown joint order {name!r}; known are {', '.join(JOINT_ORDERS)}")
    std_of_dst = JOINT_ORDERS[dst]
    table = [0] * N_JOINTS_STD
    for std_index, dst_index in enumerate(std_of_dst):
        table[dst_index] = JOINT_ORDERS[src][std_index]
    return tuple(table)


# --- Fingertip vertices -------------------------------------------------------------------------------------

TIP_VERTEX_IDS: dict[str, tuple[int, int, int, int, int]] = {
    # The paper's first author, in the HANDS'19 toolbox (also Boukhayma et al. 2019).
    "paper": (745, 333, 444, 555, 672),
    "manopth": (745, 317, 444, 556, 673),
    "manopth_left": (745, 317, 445, 556, 673),
    "smplx": (744, 320, 443, 554, 671),
    "freihand": (744, 320, 443, 555, 672),
    "ho3d": (744, 333, 444, 555, 672),
    "hamr": (734, 333, 443, 555, 678),
}
"""Vertices of the MANO mesh which packages call the tips of thumb, index, middle, ring and little finger."""
