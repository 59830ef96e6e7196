"""The README tells the truth: its Python runs as written, its pictures and targets exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_python_runs_and_prints_what_it_says(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    promised = re.findall(r"^print\(.*\)  # (.*)$", block, flags=re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == promised
    assert len(promised) == block.count("print(")


def test_there_is_python_to_run():
    assert BLOCKS


def test_files_it_points_to_exist():
    pointed = re.findall(r"\]\(([^):]+)\)|`(dhpe_fast/[\w/]+\.\w+|LICENSE|NOTICE|constraints\.txt)`", README)
    names = {first or second for first, second in pointed}
    assert len(names) >= 4
    assert not [name for name in names if not (ROOT / name).is_file()]


def test_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_figure_is_that_of_its_result_file():
    done = subprocess.run([sys.executable, ROOT / "bench" / "readme_table.py", "--check"], check=False)
    assert done.returncode == 0, "run `python bench/readme_table.py`"
