"""Joint orders, trees and the layout of h, each checked against names or another, independent statement."""

from __future__ import annotations

import pytest

from dhpe_fast import conventions as c

FINGER_JOINTS = {
    "thumb": ["thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip"],
    **{f: [f"{f}_mcp", f"{f}_pip", f"{f}_dip", f"{f}_tip"] for f in ("index", "middle", "ring", "little")},
}


def _names(order: str) -> list[str]:
    """Each order spelled out in words, from its public description."""
    base_to_tip = FINGER_JOINTS
    tip_to_base = {finger: joints[::-1] for finger, joints in FINGER_JOINTS.items()}
    match order:
        case "std" | "openpose" | "mediapipe" | "freihand" | "manopth":
            return ["wrist"] + [j for f in ("thumb", "index", "middle", "ring", "little") for j in base_to_tip[f]]
        case "rhd":
            return ["wrist"] + [j for f in ("thumb", "index", "middle", "ring", "little") for j in tip_to_base[f]]
        case "stb":
            return ["wrist"] + [j for f in ("little", "ring", "middle", "index", "thumb") for j in base_to_tip[f]]
        case "interhand":
            return [j for f in ("thumb", "index", "middle", "ring", "little") for j in tip_to_base[f]] + ["wrist"]
        case "mano21":
            joints = [j for f in ("index", "middle", "little", "ring", "thumb") for j in base_to_tip[f][:3]]
            return ["wrist", *joints, "thumb_tip", "index_tip", "middle_tip", "ring_tip", "little_tip"]
        case "bighand":
            bases = [base_to_tip[f][0] for f in ("thumb", "index", "middle", "ring", "little")]
            return ["wrist", *bases] + [
                j for f in ("thumb", "index", "middle", "ring", "little") for j in base_to_tip[f][1:]
            ]
    raise AssertionError(order)


@pytest.mark.parametrize("src", c.JOINT_ORDERS)
@pytest.mark.parametrize("dst", c.JOINT_ORDERS)
def test_joint_permutation_agrees_with_the_names(src: str, dst: str) -> None:
    src_names = _names(src)
    assert [src_names[i] for i in c.joint_permutation(src, dst)] == _names(dst)


def test_joint_names_are_the_std_order() -> None:
    assert list(c.JOINT_NAMES) == _names("std")
    assert list(c.MANO16_JOINT_NAMES) == _names("mano21")[:16]
    assert [c.JOINT_NAMES[i] for i in c.STD_TIPS] == [f"{f}_tip" for f in c.FINGERS]
    assert c.JOINT_NAMES[c.MIDDLE_MCP] == "middle_mcp"


def test_known_index_of_the_middle_mcp_in_each_order() -> None:
    known = {"std": 9, "rhd": 12, "stb": 9, "mano21": 4, "bighand": 3, "interhand": 11}
    for order, index in known.items():
        assert c.joint_permutation(order)[c.MIDDLE_MCP] == index, order


def test_unknown_order_is_named() -> None:
    with pytest.raises(ValueError, match=r"src: unknown joint order 'coco'.*mediapipe"):
        c.joint_permutation("coco")
    with pytest.raises(ValueError, match="dst"):
        c.joint_permutation("std", "coco")


def test_trees_follow_the_fingers() -> None:
    for names, parents in ((c.JOINT_NAMES, c.STD_PARENTS), (c.MANO16_JOINT_NAMES, c.MANO16_PARENTS)):
        assert len(names) == len(parents)
        for name, parent in zip(names[1:], parents[1:], strict=True):
            finger = name.split("_")[0]
            position = FINGER_JOINTS[finger].index(name)
            assert names[parent] == (FINGER_JOINTS[finger][position - 1] if position else "wrist")
        assert parents[0] == -1


def test_h_layout_tiles_63_numbers() -> None:
    covered = [i for part in c.H_LAYOUT.values() for i in range(part.start, part.stop)]
    assert covered == list(range(63))
    assert c.H_SIZE == 63
    widths = {name: part.stop - part.start for name, part in c.H_LAYOUT.items()}
    assert widths == {"pose": 45, "shape": 10, "quat": 4, "scale": 1, "trans": 3}


def test_mesh_sizes_fit_together() -> None:
    # Euler characteristic of a disc: V - E + F = 1 with E = (3 F + ring) / 2.
    edges = (3 * c.N_FACES + c.N_WRIST_RING) / 2
    assert c.N_VERTS - edges + c.N_FACES == 1


def test_tip_vertices_are_five_distinct_vertices_of_the_mesh() -> None:
    for ids in c.TIP_VERTEX_IDS.values():
        assert len(set(ids)) == 5
        assert all(0 <= i < c.N_VERTS for i in ids)
