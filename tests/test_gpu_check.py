"""What `make gpu-check` and `make gpu-bench` name is there: they run on other machines, late for a misspelt name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "gpu_check.sh"
PAGE = (ROOT / "docs" / "kernels.md").read_text()


def sanitized() -> tuple[list[str], list[str]]:
    """The files and the parts of names that choose the tests under compute-sanitizer."""
    text = SCRIPT.read_text()
    files = re.search(r"files=\((.*)\)", text)[1].split()
    names = " ".join(re.findall(r'names\+?="(.*)"', text))
    return files, re.split(r"\s+or\s+", names.strip())


def names_on_the_gpu(file: str) -> list[str]:
    """Names of the tests that run on CUDA: by a marker, or by a fixture that has CUDA among its devices."""
    text = (ROOT / "tests" / file).read_text()
    all_of_them = "pytestmark = pytest.mark.needs_cuda" in text
    tests = re.findall(r"((?:^@.*\n(?:^[ )].*\n)*)*)^def (test_\w+)\(([^)]*)\)", text, flags=re.MULTILINE)
    return [
        name
        for marks, name, arguments in tests
        if all_of_them or "needs_cuda" in marks or re.search(r"\bdevice\b", arguments)
    ]


def test_the_script_is_a_script():
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    assert SCRIPT.stat().st_mode & 0o100


@pytest.mark.parametrize("part", sanitized()[1])
def test_every_name_under_the_sanitizers_is_that_of_a_test_on_the_gpu(part):
    assert any(part in name for file in sanitized()[0] for name in names_on_the_gpu(file))


@pytest.mark.parametrize("file", sanitized()[0])
def test_every_file_under_the_sanitizers_has_a_test_that_is_chosen(file):
    assert any(part in name for part in sanitized()[1] for name in names_on_the_gpu(file))


def test_every_benchmark_of_the_makefile_is_there():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"bench/(\w+)\.py", makefile))
    for variable in ("GPU_BENCHES", "GPU_SCRIPTS", "BENCH_SCRIPTS"):
        named |= set(re.search(rf"^{variable} := (.*)$", makefile, flags=re.MULTILINE)[1].split())
    assert {"bench_lbs", "roofline"} <= named
    assert not [name for name in named if not (ROOT / "bench" / f"{name}.py").is_file()]


def test_the_page_of_kernels_names_files_and_kernels_that_are_there():
    files = {path.name for folder in ("csrc", "tests", "bench", "dhpe_fast") for path in (ROOT / folder).rglob("*.*")}
    named = set(re.findall(r"`(?:[\w/]+/)?(\w+\.(?:cu|h|py|sh))`", PAGE))
    assert len(named) > 20
    assert not named - files
    sources = "".join(path.read_text() for path in (ROOT / "csrc").rglob("*.cu*")) + "".join(
        path.read_text() for path in (ROOT / "csrc").rglob("*_cuda*.h")
    )
    kernels = set(re.findall(r"`(\w+_kernel)`", PAGE))
    assert len(kernels) > 5
    assert not [kernel for kernel in kernels if not re.search(rf"\b{kernel}\(", sources)]


@pytest.mark.parametrize("source", sorted(path.name for path in (ROOT / "csrc").rglob("*.cu")))
def test_every_cuda_source_is_on_the_page_of_kernels(source):
    assert f"`{source}`" in PAGE
