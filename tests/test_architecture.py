"""The shape of the package: which room may import which, and the habits that keep every room the same."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dhpe_fast
import dhpe_fast.ops
import dhpe_fast.reference

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dhpe_fast"
CSRC = ROOT / "csrc"

ROOMS = (
    "conventions",
    "atomic_write",
    "rotation",
    "boxes",
    "stages",
    "torch_settings",
    "reference",
    "ops",
    "hand",
    "nets",
    "pretrained",
    "losses",
    "projection",
    "refinement",
    "alignment",
    "first_estimate",
    "image",
    "shading",
    "evidence",
    "data",
    "augment",
    "metrics",
    "hand_fit",
    "fit",
    "one_euro",
    "warm_start",
    "hand_filter",
    "tracks",
    "hand_tracker",
    "video_file",
    "video",
    "io",
    "video_io",
    "viz",
    "doctor",
    "published_results",
    "plots",
    "config",
    "train",
    "scores",
    "evaluate",
    "cli_fit",
    "cli",
    "compat",
)
"""Low to high: a module imports only from its own room and from rooms before it."""

UPWARD_CALLS = {("hand_fit", "viz"), ("hand_fit", "io"), ("video", "viz")}
"""Methods `overlay` and `save` are doors to higher rooms; they import them when they are called, never before."""

OPS = [name for name in dhpe_fast.ops.__all__ if name.islower()]
COMPOSED = {"join_meshes", "sample_texture"}
"""Ops made of torch's own, for which nothing is compiled here."""
FAMILIES = {"refine_mask": "refine", "refine_gradient": "refine", "refine_descend": "refine"}
"""Ops that share a test file with others, and its stem."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_rooms(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Room, line, and whether the import waits inside a function; type-checking blocks do not count."""
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    unrun = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in unrun:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            whole = node.module == "dhpe_fast"
            names = [f"dhpe_fast.{alias.name}" for alias in node.names] if whole else [node.module]
        for name in names:
            if name.startswith("dhpe_fast.") and name != "dhpe_fast.__version__":
                room = name.split(".")[1]
                # Public names of the package stand for the room they live in.
                yield dhpe_fast._HOME.get(room, f".{room}").split(".")[1], node.lineno, id(node) in inner


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_to_lower_rooms(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in ROOMS, f"a new room: give {room!r} its place in ROOMS"
    for target, line, waits in imported_rooms(ast.parse(path.read_text())):
        if target == "_C":  # the compiled module
            assert room == "ops", f"{name_of(path)}:{line} imports _C; only the ops may"
        elif ROOMS.index(target) > ROOMS.index(room):
            allowed = waits and (room, target) in UPWARD_CALLS
            assert allowed, f"{name_of(path)}:{line}: {room} imports {target}, which lies above it"


def test_conventions_import_nothing_of_the_package():
    assert not list(imported_rooms(ast.parse((PACKAGE / "conventions.py").read_text())))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from dhpe_fast.ops import lbs", [("ops", 1, False)]),
        ("from dhpe_fast import viz, io", [("viz", 1, False), ("io", 1, False)]),
        ("import dhpe_fast.data.rendered as r", [("data", 1, False)]),
        ("def f():\n    from dhpe_fast import viz", [("viz", 2, True)]),
        ("if TYPE_CHECKING:\n    from dhpe_fast.hand_fit import HandFit", []),
        ("from dhpe_fast import HandModel", [("hand", 1, False)]),
        ("from dhpe_fast import __version__", []),
        ("import torch", []),
    ],
)
def test_the_reader_of_imports(source, expected):
    assert list(imported_rooms(ast.parse(source))) == expected


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_twin_a_test_and_sources(op):
    twin = getattr(dhpe_fast.reference, op, None)
    assert twin is not None, f"dhpe_fast.reference has no {op}"
    signatures = [
        [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
        for function in (getattr(dhpe_fast.ops, op), twin)
    ]
    assert signatures[0] == signatures[1], f"{op} and its twin differ in their parameters"
    assert (ROOT / "tests" / f"test_{FAMILIES.get(op, op)}.py").is_file()
    has_schema = re.search(rf'"{op}(_\w+)?\(', (CSRC / "library.cpp").read_text()) is not None
    assert has_schema != (op in COMPOSED), f"csrc/library.cpp and COMPOSED disagree on {op}"


@pytest.mark.parametrize("path", sorted(CSRC.rglob("*.cu*")), ids=name_of)
def test_every_cuda_launch_is_checked(path):
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if "<<<" not in line or line.lstrip().startswith("//"):
            continue
        end = next(n for n in range(number, len(lines)) if ";" in lines[n])
        following = "".join(lines[end : end + 3])
        assert "STD_CUDA_KERNEL_LAUNCH_CHECK" in following, f"{name_of(path)}:{number + 1}"


def text_files() -> list[Path]:
    folders = ("dhpe_fast", "csrc", "tests", "bench", "docs")
    suffixes = (".py", ".h", ".cuh", ".cpp", ".cu", ".md")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return sorted(inside) + [ROOT / name for name in ("CMakeLists.txt", "Makefile", "README.md", "pyproject.toml")]


def test_files_stay_readable_in_one_sitting():
    limits = {path: 600 if path.parent.name == "tests" else 500 for path in text_files()}
    lengths = {path: len(path.read_text().splitlines()) for path in limits}
    assert not {name_of(path): length for path, length in lengths.items() if length > limits[path]}


def test_no_file_knows_the_machine_it_was_written_on():
    machine_path = re.compile(r"(?<![\w.])/(" + "|".join(("work", "root", "home", "Users", "tmp")) + r")/\w")
    found = [name_of(path) for path in text_files() if machine_path.search(path.read_text())]
    assert not found


def test_no_file_leaves_work_for_later():
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")
    found = [name_of(path) for path in text_files() if marks.search(path.read_text())]
    assert not found
