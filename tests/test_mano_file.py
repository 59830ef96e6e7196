"""Reading MANO files: the released form, its variants, damaged files, and files that mean harm.

The files are synthetic, as MANO's licence forbids to ship one; they are written with the class paths, opcodes
and sparse and chumpy members of the released ones (``synthetic_mano.mano_pickle``).

Measured once with such files against the packages themselves, 64 random poses, shapes and global rotations,
with and without the mean pose, right and left, this random model and the default hand; largest difference of
a vertex or joint coordinate:

    manopth 4f1dcad (axis-angle, 12 PCA components; with tips)   3.0e-7 m in float32, 1.9e-9 m in float64
    smplx 1265df7 (axis-angle)                                   1.2e-7 m in float32, 1.1e-8 m in float64

(both packages keep some constants in float32). The kept oracle is ``synthetic_mano.mano_by_loops``.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_mano import mano_by_loops, mano_pickle, synthetic_mano

from dhpe_fast.conventions import JOINT_ORDERS, TIP_VERTEX_IDS
from dhpe_fast.hand import HandModel, ModelFileError, UnsafePickleError, read_mano
from dhpe_fast.hand import mano_pickle as reader
from dhpe_fast.hand.mano_file import MissingModelFileError, write_npz

ARRAYS = synthetic_mano()
RELEASED = mano_pickle(ARRAYS)
KEYS = [
    key for key, value in ARRAYS.items() if isinstance(value, np.ndarray) and key not in ("tip_ids", "uv", "uv_faces")
]


@pytest.fixture
def right(tmp_path: Path) -> Path:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(RELEASED)
    return path


def _write(tmp_path: Path, arrays: dict, name: str = "MANO_RIGHT.pkl") -> Path:
    path = tmp_path / name
    path.write_bytes(mano_pickle(arrays))
    return path


# --- The released form and its variants ---


def test_the_test_file_has_the_form_of_the_released_ones() -> None:
    found = {arg for opcode, arg, _ in pickletools.genops(RELEASED) if opcode.name == "GLOBAL"}
    assert found == {
        "numpy.core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
        "__builtin__ set",
        "chumpy.ch Ch",
        "chumpy.reordering Select",
        "scipy.sparse.csc csc_matrix",
    }
    assert RELEASED[:2] == b"\x80\x02"
    assert "BINSTRING" in {opcode.name for opcode, _, _ in pickletools.genops(RELEASED)}


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"select_module": "chumpy.ch"},
        {"csc_module": "scipy.sparse._csc"},
        {"csc_module": "scipy.sparse"},
        {"python2": False, "protocol": 0},
        {"python2": False, "protocol": 1},
        {"python2": False, "protocol": 2},
        {"python2": False, "protocol": 3},
        {"python2": False, "protocol": 4},
        {"python2": False, "protocol": 5},
    ],
    ids=str,
)
def test_every_variant_gives_the_same_arrays(tmp_path: Path, variant: dict) -> None:
    path = tmp_path / "hand.pkl"
    path.write_bytes(mano_pickle(ARRAYS, **variant))
    found = read_mano(path)
    assert set(found) == set(KEYS)
    for key in KEYS:
        np.testing.assert_array_equal(found[key], ARRAYS[key], err_msg=key)
        assert found[key].dtype == (np.int64 if key in ("f", "kintree_table") else np.float64)


def test_plain_arrays_and_other_byte_orders_are_read(tmp_path: Path) -> None:
    plain = {key: ARRAYS[key] for key in KEYS}
    plain["v_template"] = plain["v_template"].astype(">f8")
    plain["weights"] = np.asfortranarray(plain["weights"])
    path = tmp_path / "hand.pkl"
    path.write_bytes(pickle.dumps(plain))
    found = read_mano(path)
    np.testing.assert_array_equal(found["v_template"], ARRAYS["v_template"])
    np.testing.assert_array_equal(found["weights"], ARRAYS["weights"])


def test_neither_chumpy_nor_scipy_is_imported(right: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("chumpy", "scipy")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("chumpy", "scipy"):
        monkeypatch.setitem(sys.modules, name, None)  # any import of them now fails
    read_mano(right)


def test_model_from_mano_agrees_with_loops(right: Path) -> None:
    model = HandModel.from_mano(right, tip_ids="manopth", dtype=torch.float64)
    rng = np.random.default_rng(0)
    for _ in range(3):
        pose, betas, orient = rng.normal(0, 0.5, 45), rng.normal(size=10), rng.normal(size=3)
        verts_m, joints_m = mano_by_loops(ARRAYS, pose, betas, orient)
        mesh = model(*(torch.from_numpy(value) for value in (pose, betas, orient)))
        np.testing.assert_allclose(mesh.verts_m, verts_m, atol=1e-12)
        tips_m = verts_m[[745, 317, 444, 556, 673]]
        expected = np.concatenate([joints_m, tips_m])[list(JOINT_ORDERS["mano21"])]
        np.testing.assert_allclose(mesh.joints_m, expected, atol=1e-12)


def test_known_numbers(right: Path) -> None:
    """A few vertices and joints, fixed when all of manopth, smplx and the loops agreed on them."""
    mesh = HandModel.from_mano(right, tip_ids="manopth", dtype=torch.float64)(
        torch.linspace(-0.6, 0.6, 45, dtype=torch.float64),
        torch.linspace(1, -1, 10, dtype=torch.float64),
        torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64),
    )
    np.testing.assert_allclose(mesh.verts_m[[0, 400, 777]], KNOWN_VERTS_M, atol=1e-9)
    np.testing.assert_allclose(mesh.joints_m[[0, 7, 20]], KNOWN_JOINTS_M, atol=1e-9)


KNOWN_VERTS_M = [
    [0.082330258, -0.011495550, 0.038433559],
    [0.003101428, -0.048117490, 0.005367553],
    [-0.018310084, -0.078296532, -0.091153854],
]
KNOWN_JOINTS_M = [
    [0.099762510, 0.006278306, 0.006256430],
    [-0.005159985, -0.027960410, -0.046311367],
    [-0.023358543, -0.019544387, -0.066821351],
]

# --- Sides, tips and the left file's fault ---


def _left(*, with_fault: bool) -> dict:
    arrays = HandModel(ARRAYS, dtype=torch.float64).mirrored().arrays()
    if with_fault:  # as released: x components with the sign of the right hand
        arrays["shapedirs"][:, 0, :] *= -1
    return arrays


def test_side_comes_from_the_name_or_the_geometry(tmp_path: Path, right: Path) -> None:
    left = _left(with_fault=False)
    assert HandModel.from_mano(right).side == "right"
    assert HandModel.from_mano(_write(tmp_path, left, "mano_left_v1.2.pkl")).side == "left"
    assert HandModel.from_mano(_write(tmp_path, left, "hand.pkl")).side == "left"
    assert HandModel.from_mano(_write(tmp_path, ARRAYS, "hand.pkl")).side == "right"


def test_a_name_that_contradicts_the_hand_is_an_error_unless_the_side_is_given(tmp_path: Path) -> None:
    path = _write(tmp_path, ARRAYS, "MANO_LEFT.pkl")
    with pytest.raises(ValueError, match=r"the name says left, but the fingers point to -x .* pass side="):
        HandModel.from_mano(path)
    assert HandModel.from_mano(path, side="right").side == "right"
    with pytest.raises(ValueError, match="side: expected 'right' or 'left', got 'Left'"):
        HandModel.from_mano(path, side="Left")


def test_the_left_files_fault_is_corrected_only_where_it_is(tmp_path: Path, right: Path) -> None:
    sound = _left(with_fault=False)["shapedirs"].transpose(2, 0, 1)
    faulty = _left(with_fault=True)["shapedirs"].transpose(2, 0, 1)
    for arrays, fix, expected, fixed in (
        (_left(with_fault=True), True, sound, True),
        (_left(with_fault=True), False, faulty, False),
        (_left(with_fault=False), True, sound, False),
    ):
        path = _write(tmp_path, arrays, "MANO_LEFT.pkl")
        model = HandModel.from_mano(path, fix_left_shapedirs=fix, dtype=torch.float64)
        np.testing.assert_array_equal(model.basis.shapedirs, expected)
        assert model.left_shapedirs_fixed is fixed
    assert not HandModel.from_mano(right).left_shapedirs_fixed


def test_the_default_left_hand_shows_no_fault_and_would_with_the_wrong_sign(tmp_path: Path) -> None:
    arrays = HandModel.default("left", dtype=torch.float64).arrays()
    assert not HandModel.from_mano(_write(tmp_path, arrays, "MANO_LEFT.pkl")).left_shapedirs_fixed
    arrays["shapedirs"][:, 0, :] *= -1
    assert HandModel.from_mano(_write(tmp_path, arrays, "MANO_LEFT.pkl")).left_shapedirs_fixed


def test_from_npz_corrects_nothing(tmp_path: Path) -> None:
    faulty = HandModel(_left(with_fault=True))
    faulty.save_npz(tmp_path / "hand.npz")
    assert torch.equal(HandModel.from_npz(tmp_path / "hand.npz").basis.shapedirs, faulty.basis.shapedirs)


def test_tip_ids_by_name_by_number_and_by_default(tmp_path: Path, right: Path) -> None:
    assert HandModel.from_mano(right).tip_ids == TIP_VERTEX_IDS["paper"]
    assert HandModel.from_mano(right, tip_ids="smplx").tip_ids == TIP_VERTEX_IDS["smplx"]
    assert HandModel.from_mano(right, tip_ids=[1, 2, 3, 4, 5]).tip_ids == (1, 2, 3, 4, 5)
    left = _write(tmp_path, _left(with_fault=False), "MANO_LEFT.pkl")
    assert HandModel.from_mano(left, tip_ids="manopth").tip_ids == TIP_VERTEX_IDS["manopth_left"]
    for wrong in ("nails", [1, 2, 3], [0, 1, 2, 3, 778], [0.5] * 5):
        with pytest.raises(ValueError, match="tip_ids"):
            HandModel.from_mano(right, tip_ids=wrong)


# --- Files that mean harm ---


class _Calls:
    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch owned",), r"(posix|nt)\.system"),
        (eval, ("1+1",), r"(builtins|__builtin__)\.eval"),
        (getattr, ("x", "upper"), r"(builtins|__builtin__)\.getattr"),
        (np.load, ("x",), r"numpy\.load"),
    ],
)
def test_calls_are_refused_by_name(tmp_path: Path, monkeypatch, protocol, function, args, name) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "MANO_RIGHT.pkl"
    content = {**{key: ARRAYS[key] for key in KEYS}, "extra": _Calls(function, *args)}
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UnsafePickleError, match=rf"MANO_RIGHT.pkl: refused: the pickle asks for {name}"):
        read_mano(path)
    assert not (tmp_path / "owned").exists()


def _tuple_bomb() -> bytes:
    """A tuple of pairs of pairs ... of pairs, used as a key: hashing it would take 2**200 steps."""
    return b"\x80\x02}()" + b"2\x86" * 200 + b"K\x01s."


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        pytest.param(b"\x80\x02}Pthing\n.", "refers to an object outside", id="persistent id"),
        pytest.param(b"\x80\x02\x82\x05.", "copyreg extension", id="extension"),
        pytest.param(b"\x80\x02cnumpy\ndtype\n}U\x04codeK\x01sb.", "changes a type", id="changes a class"),
        pytest.param(b"\x80\x02}U\x01aK\x01sb.", "not a well-formed pickle", id="changes nothing"),
        pytest.param(_tuple_bomb(), "uses a tuple as a key", id="hash bomb"),
        pytest.param(b"\x80\x04\x8f(" + _tuple_bomb()[3:-4] + b"\x90.", "as a key", id="set bomb"),
        pytest.param(b"\x80\x02" + b"(0" * 1_000_001 + b"}.", "more than 1000000 steps", id="endless"),
        pytest.param(b"\x80\x02cnumpy\ndtype\n)\x81.", "holds a DtypeRecord", id="object without __init__"),
        pytest.param(b"c__main__\nos.system\n.", r"__main__.os.system", id="dotted name"),
        pytest.param(b"c_codecs\nencode\n(U\x01xU\x03hextR.", "as Latin-1", id="codec"),
        pytest.param(
            b"ccopy_reg\n_reconstructor\n(c__builtin__\nobject\nc__builtin__\nobject\nNtR.",
            "unexpected class",
            id="other class",
        ),
    ],
)
def test_hostile_streams_are_refused_at_once(tmp_path: Path, stream: bytes, message: str) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(stream)
    with pytest.raises(ValueError, match=message):
        read_mano(path)


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", id="bytes of a terabyte"),
        pytest.param(b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", id="bytearray of a terabyte"),
        pytest.param(b"\x80\x02}r\xff\xff\xff\xff.", id="memo index of 4 billion"),
        pytest.param(b"}p99999999999999\n.", id="memo index in text"),
        pytest.param(b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.", id="frame of an exabyte"),
    ],
)
def test_sizes_that_are_not_there_take_no_memory(tmp_path: Path, stream: bytes) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(stream)
    with pytest.raises(ModelFileError, match=r"neither a MANO pickle nor an npz|no hand model"):
        read_mano(path)


def test_an_array_of_absurd_shape_is_refused_before_it_is_made(tmp_path: Path) -> None:
    honest = pickle.dumps({**{key: ARRAYS[key] for key in KEYS}, "v_template": np.zeros((778, 3))}, 2)
    shape = b"M\x0a\x03K\x03\x86"  # (778, 3)
    assert honest.count(shape) >= 1
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(honest.replace(shape, b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"))
    with pytest.raises(
        ModelFileError, match=r"'v_template' states the shape \(2147483647, 2147483647\) for 2334 numbers"
    ):
        read_mano(path)


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps({**{key: ARRAYS[key] for key in KEYS}, "weights": np.array([{}, None])}))
    with pytest.raises(ModelFileError, match="'weights' holds values of dtype 'O8', not plain numbers"):
        read_mano(path)


def test_an_npz_with_a_pickle_inside_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "hand.npz", v_template=np.array([_Calls(os.system, "false")], dtype=object))
    with pytest.raises(ModelFileError, match=r"hand.npz: not a readable npz .*allow_pickle=False"):
        read_mano(tmp_path / "hand.npz")


def test_a_zip_bomb_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "hand.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("v_template.npy", bytes(300 * 2**20))
    with pytest.raises(ModelFileError, match="unpacks to 314572800 bytes"):
        read_mano(tmp_path / "hand.npz")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_never_do_anything_but_raise_value_errors(data: st.DataObject) -> None:
    """Random edits of the small parts of the stream, between the long runs of numbers, and truncation."""
    positions = [position for _, _, position in pickletools.genops(RELEASED)]
    damaged = bytearray(RELEASED)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from(positions)) + data.draw(st.integers(0, 6))
        damaged[at % len(damaged)] = data.draw(st.integers(0, 255))
    keep = data.draw(st.sampled_from([len(damaged), *positions]))
    with contextlib.suppress(ValueError):  # anything else fails the test
        content = reader.load_pickle(bytes(damaged[:keep]))
        for value in content.values() if isinstance(content, dict) else ():
            reader.to_array(value)


# --- Files that are something else, or damaged ---


def test_missing_file_folder_and_archive_say_what_to_do(tmp_path: Path, right: Path) -> None:
    with pytest.raises(MissingModelFileError, match=r"nothing.pkl: no such file.*mano.is.tue.mpg.de.*default"):
        read_mano(tmp_path / "nothing.pkl")
    with pytest.raises(FileNotFoundError):
        read_mano(tmp_path / "nothing.pkl")
    with pytest.raises(ModelFileError, match=r"is a folder, .* name a file in it: MANO_RIGHT.pkl"):
        HandModel.from_mano(tmp_path)
    with zipfile.ZipFile(tmp_path / "mano_v1_2.zip", "w") as archive:
        archive.write(right, "mano_v1_2/models/MANO_RIGHT.pkl")
    with pytest.raises(
        ModelFileError, match=r"is a zip archive.* unpack it and name one of mano_v1_2/models/MANO_RIGHT"
    ):
        read_mano(tmp_path / "mano_v1_2.zip")


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"hello", b"PK\x03\x04 no zip", RELEASED[:-1], RELEASED[:5000]]
)
def test_garbage_and_truncated_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"MANO_RIGHT.pkl: (neither a MANO pickle nor an npz|not a readable npz)"):
        read_mano(path)


def test_a_file_of_absurd_size_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "MANO_RIGHT.pkl"
    with open(path, "wb") as stream:
        stream.truncate(2**40)  # sparse: takes no space
    with pytest.raises(ModelFileError, match="1099511627776 bytes, more than"):
        read_mano(path)


def test_another_model_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "SMPL.pkl"
    path.write_bytes(pickle.dumps({"v_template": ARRAYS["v_template"], "shapedirs": ARRAYS["shapedirs"]}))
    with pytest.raises(ModelFileError, match=r"no hand model: posedirs, .* missing; found shapedirs, v_template"):
        read_mano(path)
    path.write_bytes(pickle.dumps({**{key: ARRAYS[key] for key in KEYS}, "v_template": np.zeros((6890, 3))}))
    with pytest.raises(
        ModelFileError, match=r"\(6890, 3\), expected \(778, 3\) \(this is a SMPL or SMPL\+H body model\)"
    ):
        read_mano(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ModelFileError, match="holds a list, expected a dictionary"):
        read_mano(path)


def _with(key: str, change) -> dict:
    arrays = {name: np.array(ARRAYS[name]) for name in KEYS}
    arrays[key] = change(arrays[key])
    return arrays


def _set(array: np.ndarray, index, value) -> np.ndarray:
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("shapedirs", lambda a: a[:, :, :9], r"'shapedirs' has shape \(778, 3, 9\), expected \(778, 3, 10\)"),
        ("posedirs", lambda a: _set(a, (5, 1, 7), np.nan), "'posedirs' holds 1 values that are not finite"),
        ("weights", lambda a: a * 1.1, r"rows of 'weights' sum to one within 0\.1, expected 0\.001"),
        (
            "weights",
            lambda a: _set(_set(a, 3, 0), (3, slice(0, 2)), (1.5, -0.5)),
            "'weights' go down to -0.5",
        ),
        ("J_regressor", lambda a: a * 0.9, "rows of 'J_regressor' sum to one within 0.1"),
        ("f", lambda a: _set(a, (0, 0), 778), "'f' runs from 0 to 778, expected 0 to 777"),
        ("f", lambda a: _set(a, 0, a[0, ::-1].copy()), "'f' has two faces on the same side of an edge"),
        ("f", lambda a: _set(a, 800, a[801].copy()), "'f' has two faces on the same side"),
        ("f", lambda a: a.astype(np.float64), "'f' has dtype float64, expected integers"),
        (
            "kintree_table",
            lambda a: _set(a, (0, 5), 3),
            r"'kintree_table' is .* expected the parents \[-1, 0, 1",
        ),
        ("hands_mean", lambda a: a[None], r"'hands_mean' has shape \(1, 45\), expected \(45,\)"),
        ("hands_coeffs", lambda a: a[:, :6], r"'hands_coeffs' has shape \(20, 6\), expected \(N, 45\)"),
    ],
)
def test_wrong_entries_are_named_in_a_pickle_and_in_an_npz(tmp_path: Path, key, change, message) -> None:
    arrays = _with(key, change)
    (tmp_path / "hand.pkl").write_bytes(pickle.dumps(arrays))
    np.savez(tmp_path / "hand.npz", **arrays)
    for name in ("hand.pkl", "hand.npz"):
        with pytest.raises(ModelFileError, match=f"{name}: .*{message}" if "rows" not in message else message):
            read_mano(tmp_path / name)


@pytest.mark.parametrize("root", [-1, 0, 2**32 - 1])
@pytest.mark.parametrize("kind", ["int32", "int64", "uint32"])
def test_every_spelling_of_the_root_parent(tmp_path: Path, root: int, kind: str) -> None:
    table = np.where(ARRAYS["kintree_table"] < 0, root, ARRAYS["kintree_table"]).astype(np.int64).astype(kind)
    (tmp_path / "hand.pkl").write_bytes(pickle.dumps(_with("kintree_table", lambda _: table)))
    np.testing.assert_array_equal(read_mano(tmp_path / "hand.pkl")["kintree_table"], ARRAYS["kintree_table"])


def test_sparse_matrices_that_contradict_themselves() -> None:
    for attribute, wrong in (("indptr", [0, 5]), ("indices", [99]), ("data", [1.0])):
        record = reader.SparseRecord()
        state = {"_shape": (2, 2), "data": [1.0, 1.0], "indices": [0, 1], "indptr": [0, 1, 2]} | {attribute: wrong}
        record.set_state({key: _record(value) if key != "_shape" else value for key, value in state.items()})
        with pytest.raises(ValueError, match=r"sparse matrix \(2, 2\) whose indices contradict"):
            reader.to_array(record)


def test_entries_that_a_sparse_matrix_repeats_add_up() -> None:
    record = reader.SparseRecord()
    state = {"data": [1.0, 2.0, 4.0, 8.0], "indices": [1, 1, 0, 1], "indptr": [0, 3, 4]}
    record.set_state({"_shape": (2, 2)} | {key: _record(value) for key, value in state.items()})
    np.testing.assert_array_equal(reader.to_array(record), [[4.0, 0.0], [3.0, 8.0]])


def _record(values: list) -> reader.ArrayRecord:
    array, kind, record = np.array(values), reader.DtypeRecord(), reader.ArrayRecord()
    kind.code = array.dtype.str[1:]
    record.set_state((1, array.shape, kind, False, array.tobytes()))
    return record


def test_records_without_contents() -> None:
    """NEWOBJ makes objects without calling __init__, so a record may know nothing at all."""
    record = reader.ArrayRecord.__new__(reader.ArrayRecord)
    with pytest.raises(ValueError, match="an array without contents"):
        reader.to_array(record)
    record.set_state((1, (1,), reader.DtypeRecord.__new__(reader.DtypeRecord), False, b"12345678"))
    with pytest.raises(ValueError, match="values of dtype ''"):
        reader.to_array(record)
    for kind in (reader.ChumpyRecord, reader.SparseRecord):
        with pytest.raises(ValueError, match="without its attributes"):
            reader.to_array(kind.__new__(kind))


def test_a_selection_outside_of_its_source() -> None:
    record, source = reader.ChumpyRecord(), reader.ChumpyRecord()
    source.set_state({"x": _record([1.0, 2.0])})
    for wrong in ([2], [-1], [0.5]):
        record.set_state({"a": source, "idxs": _record(wrong), "preferred_shape": (1,)})
        with pytest.raises(ValueError, match="selects outside of the 2 numbers"):
            reader.to_array(record)
    record.set_state({"a": record, "idxs": _record([0])})
    with pytest.raises(ValueError, match="nest deeper"):
        reader.to_array(record)


# --- The package's npz ---


def test_npz_round_trip_is_exact(tmp_path: Path) -> None:
    model = HandModel(ARRAYS, dtype=torch.float64)
    model.save_npz(tmp_path / "hand.npz")
    again = HandModel.from_npz(tmp_path / "hand.npz", dtype=torch.float64)
    for (name, buffer), (_, other) in zip(model.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert (again.side, again.name, again.licence, again.tip_ids) == (
        "right",
        "synthetic",
        "none",
        model.tip_ids,
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "hand.npz"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hand.npz"
    path.write_bytes(b"old")

    def full_disk(stream: io.IOBase, **_: object) -> None:
        stream.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="No space left"):
        HandModel(ARRAYS).save_npz(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_but_a_whole_model_is_written(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="weights missing"):
        write_npz(tmp_path / "hand.npz", {key: value for key, value in ARRAYS.items() if key != "weights"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": "middle"}, "'side' is 'middle', expected 'right' or 'left'"),
        ({"name": np.array([1.0])}, "'name' has dtype float64"),
        ({"tip_ids": np.array([0, 1, 2, 3, 900])}, "'tip_ids' runs from 0 to 900"),
        ({"uv_faces": np.full((1538, 3), 10_000)}, "'uv_faces' runs from 10000 to 10000"),
        ({"uv": np.zeros((5, 3))}, r"'uv' has shape \(5, 3\), expected \(N, 2\)"),
    ],
)
def test_wrong_extras_are_named(tmp_path: Path, change: dict, message: str) -> None:
    np.savez(tmp_path / "hand.npz", **(ARRAYS | change))
    with pytest.raises(ModelFileError, match=message):
        read_mano(tmp_path / "hand.npz")
