"""The command that opens a data set: what it says, draws, and reports as broken."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from dataset_files import write_dexter_object, write_freihand, write_rhd, write_stb
from test_cli import run

from dhpe_fast.data.dexter_object import read_dexter_object
from dhpe_fast.data.freihand import read_freihand
from dhpe_fast.data.overview import overview, unreadable_files
from dhpe_fast.data.stb import SEQUENCES
from dhpe_fast.image import read_image


def test_what_the_labels_say(tmp_path):
    write_dexter_object(tmp_path / "dexter")
    rows = overview(read_dexter_object(tmp_path / "dexter"))
    assert rows["hands"] == "18: 18 left, 0 right"
    assert rows["images"] == "640 x 480 px (width x height)"
    assert rows["joints"] == "3.0 of 21 annotated, 3.0 visible on average", "5, 4 and 0 in each sequence"
    assert "finger bones" not in rows
    write_freihand(tmp_path / "freihand")
    assert overview(read_freihand(tmp_path / "freihand", "train"))["finger bones"].startswith("29.6 mm")
    assert "depth" not in overview(read_freihand(tmp_path / "freihand", "test"))


def test_the_command_with_pictures(tmp_path):
    write_stb(tmp_path / "stb", ["B1Counting", "B1Random"])
    sheet = tmp_path / "sheet.png"
    code, output = run("data", "stb", tmp_path / "stb", "--split", "test", "--option", "camera=sk", "--pictures", sheet)
    assert code == 0
    assert "data set      stb, split test" in output
    assert "hands         6: 6 left, 0 right" in output
    assert "masks         no" in output
    assert "joint 0       palm" in output
    # Images are black; so what is bright are the drawn labels.
    assert (read_image(sheet).min(axis=2) > 200).any()


def test_files_that_cannot_be_read_are_listed(tmp_path):
    write_rhd(tmp_path, 4)
    for kind, number in (("color", 2), ("mask", 3)):
        file = tmp_path / "training" / kind / f"0000{number}.png"
        file.write_bytes(file.read_bytes()[:60])
    code, output = run("data", "rhd", tmp_path, "--read-all")
    assert code == 1
    assert "2 files cannot be used" in output
    assert "color/00002.png: is empty or cut off" in output
    assert "mask/00003.png: is empty or cut off" in output


def test_errors_are_one_line(tmp_path):
    code, output = run("data", "rhd", tmp_path / "nowhere")
    assert (code, output.count("\n")) == (1, 1)
    assert "no such folder, expected the train split of RHD" in output
    assert run("data", "rhd", tmp_path, "--option", "hand")[1].startswith("dhpe-fast: --option: expected NAME=VALUE")
    assert "expected one of rhd, stb" in run("data", "coco", tmp_path)[1]


def test_every_sample_is_counted(tmp_path):
    write_freihand(tmp_path)
    seen = []
    assert unreadable_files(read_freihand(tmp_path, "train"), lambda: seen.append(1)) == []
    assert np.sum(seen) == 3


def test_the_page_about_data_sets(tmp_path, monkeypatch):
    """Its Python runs, in the folders that it draws."""
    monkeypatch.chdir(tmp_path)
    write_rhd(tmp_path / "RHD_published_v2", 2)
    (tmp_path / "STB").mkdir()
    write_stb(tmp_path / "STB", SEQUENCES["train"], n=1)
    write_dexter_object(tmp_path / "dexter+object", n=2)
    write_freihand(tmp_path / "FreiHAND_pub_v2", n=1)
    page = (Path(__file__).resolve().parents[1] / "docs" / "datasets.md").read_text()
    names = {}
    lengths = []
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
        lengths.append(len(names["dataset"]))
    assert lengths == [2, 2, 2, 20, 12, 4]
    assert names["batch"].images.shape == (4, 3, 224, 224)
