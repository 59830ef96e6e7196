"""The installed package: version, public names, what an import costs, what the wheel carries."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata, resources

import pytest
import torch

import dhpe_fast
from dhpe_fast.ops import _library


def run_python(code: str, cwd) -> str:
    """Output of a fresh interpreter, which has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_version_is_the_same_everywhere():
    assert dhpe_fast.__version__ == metadata.version("dhpe-fast")


def test_an_import_loads_nothing_until_a_name_is_used(tmp_path):
    code = """
import sys, dhpe_fast
print(sorted({"torch", "numpy", "cv2"} & set(sys.modules)))
dhpe_fast.fit, dhpe_fast.HandFit, dhpe_fast.HandModel, dhpe_fast.HandParams
print(sorted({"mediapipe", "trimesh", "typer", "scipy", "matplotlib"} & set(sys.modules)))
"""
    assert run_python(code, tmp_path).split("\n")[:2] == ["[]", "[]"]


@pytest.mark.parametrize(
    "first", ["import dhpe_fast.fit", "from dhpe_fast import HandFit", "from dhpe_fast import fit"]
)
def test_fit_is_the_function_whatever_was_imported_first(tmp_path, first):
    code = f"{first}\nimport dhpe_fast\nprint(type(dhpe_fast.fit).__name__, dhpe_fast.HandFit.__name__)"
    assert run_python(code, tmp_path).strip() == "function HandFit"


def test_public_names_are_listed_and_unknown_ones_refused():
    for name in dhpe_fast.__all__:
        assert getattr(dhpe_fast, name) is not None
        assert name in dir(dhpe_fast)
    with pytest.raises(AttributeError, match="no attribute 'Fit'"):
        _ = dhpe_fast.Fit


def test_the_package_carries_its_hand():
    data = (resources.files("dhpe_fast") / "hand" / "default_hand.npz").read_bytes()
    assert data[:2] == b"PK"
    assert len(data) < 2**20


def test_the_package_carries_its_licences():
    names = {path.name for path in metadata.files("dhpe-fast") or ()}
    assert {"LICENSE", "NOTICE"} <= names
    assert metadata.metadata("dhpe-fast")["License-Expression"] == "Apache-2.0"


def test_the_command_is_installed():
    (command,) = metadata.entry_points(group="console_scripts", name="dhpe-fast")
    assert callable(command.load())


def test_runtime_dependencies_are_few():
    requirements = [line.split(";") for line in metadata.requires("dhpe-fast") or ()]
    runtime = {line[0].split(">")[0].strip() for line in requirements if len(line) == 1}
    assert runtime == {"torch", "numpy", "opencv-python-headless", "trimesh", "typer"}


def test_a_torch_that_is_too_old_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(ImportError, match=r"needs torch 2.10 or later and found 2.9.1.*pip install --upgrade torch"):
        _library._check_torch_version()


def test_a_missing_compiled_module_is_named_with_the_remedy(monkeypatch):
    monkeypatch.delattr(dhpe_fast, "_C")
    monkeypatch.setitem(sys.modules, "dhpe_fast._C", None)
    with pytest.raises(ImportError, match=r"compiled module could not be loaded.*pip install"):
        _library._load_cpu()


def test_the_cuda_library_may_lie_beside_a_torch_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _library._load_cuda() == "this torch is a CPU build"
