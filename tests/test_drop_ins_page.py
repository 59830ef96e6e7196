"""The page on drop-ins tells the truth: its Python runs as written, on the hand that needs no file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "drop-ins.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_python_runs_and_gives_the_shapes_it_says(block):
    names: dict = {}
    exec(compile(block, "drop-ins.md", "exec"), names)
    if "verts_mm" in names:
        assert (tuple(names["verts_mm"].shape), tuple(names["joints_mm"].shape)) == ((4, 778, 3), (4, 21, 3))
    if "output" in names:
        output = names["output"]
        assert (tuple(output.vertices.shape), tuple(output.joints.shape)) == ((2, 778, 3), (2, 16, 3))
    if "renderer" in names:
        shapes = [tuple(names[name].shape) for name in ("rgb", "depth", "alpha", "masks")]
        assert shapes == [(1, 3, 128, 128), *[(1, 128, 128)] * 3]
        assert 0.05 < float(names["masks"].detach().mean()) < 0.95, "the hand is in the picture"
        assert names["vertices"].grad.any()
    assert {"verts_mm", "output", "renderer"} & set(names), "a block that nothing is asked of"


def test_there_is_python_to_run():
    assert len(BLOCKS) >= 3
