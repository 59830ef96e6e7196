"""The picture of scaling.py's measurements."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from PIL import Image

INK = "#333333"
COLOURS = {
    "ops.lbs": "#0072b2", "manopth": "#d55e00", "smplx": "#cc79a7",
    "rasterize": "#555555", "nmr": "#d55e00", "edge": "#0072b2", "soft": "#009e73",
}  # fmt: skip
"""Of implementations and jobs: Okabe and Ito's, which the colour-blind tell apart."""
MARKERS = {"ops": "o", "ops.lbs": "o", "manopth": "s", "smplx": "^", "pytorch3d": "s", "drtk": "^"}
FACES = [1500, 5000, 15000, 50000, 150000]
STYLES = {"forward": "-", "backward": "--"}


def draw(result: dict[str, Any], path: Path) -> Path:
    """Draws the three series side by side and writes the picture."""
    plt.rcParams.update({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#999999"})
    plt.rcParams.update({"xtick.color": INK, "ytick.color": INK, "axes.titlelocation": "left", "axes.titlesize": 10})
    figure, (batch, size, faces) = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    points, run = result["points"], result["run"]

    _lines(batch, points["batch"], "batch", lambda p: 1000 * p["median"] / p["batch"])
    _finish(batch, "Skinning: time of a hand", "hands in a batch", "µs a hand", [1, 4, 16, 64, 256, 1024, 4096])
    _lines(size, points["image_size"], "image_size", lambda p: 1e6 * p["median"] / p["image_size"] ** 2)
    _finish(size, "One hand: time of a pixel", "pixels along the image's side", "ns a pixel", [64, 128, 256, 512, 1024])
    _lines(faces, points["faces"], "faces", lambda p: p["median"])
    _finish(
        faces, "One hand at 224 × 224: time of an image", "faces", "ms an image", [1500, 5000, 15000, 50000, 150000]
    )

    _legend(batch, points["batch"], "implementation")
    _legend(size, points["image_size"], "job")
    directions = [Line2D([], [], color=INK, ls=style) for style in STYLES.values()]
    figure.legend(directions, ["forward", "forward and backward"], loc="outside upper right", ncols=2, frameon=False)
    threads = f"{run['threads']} thread{'s' * (run['threads'] > 1)}"
    figure.suptitle(
        f"dhpe-fast {run['dhpe_fast']}, float32, {run['processor']}, {threads}: medians", x=0.01, ha="left", fontsize=10
    )
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    Image.open(picture).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the size
    return path


def _lines(axes: Axes, points: list[dict[str, Any]], grows: str, time: Any) -> None:
    series: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for point in points:
        series.setdefault((point.get("job", ""), point["implementation"], point["direction"]), []).append(point)
    for (job, implementation, direction), line in series.items():
        axes.loglog(
            [point[grows] for point in line], [time(point) for point in line], STYLES[direction],
            color=COLOURS[job or implementation], marker=MARKERS[implementation], ms=3.5, lw=1.4,
            alpha=1.0 if implementation.startswith("ops") else 0.6,
        )  # fmt: skip


def _finish(axes: Axes, title: str, x: str, y: str, ticks: list[int]) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(which="major", color="#dddddd", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _legend(axes: Axes, points: list[dict[str, Any]], names: str) -> None:
    """Colours stand for jobs, or for implementations where all have one job; markers for implementations."""
    found = list(dict.fromkeys(point[names] for point in points))
    handles = [Line2D([], [], color=COLOURS[name], marker=MARKERS.get(name, ""), ms=4) for name in found]
    if names == "job":
        others = list(dict.fromkeys(point["implementation"] for point in points if point["implementation"] != "ops"))
        handles += [Line2D([], [], color=INK, marker=MARKERS[name], ls="", ms=4, alpha=0.6) for name in others]
        found += others
    axes.set_ylim(top=2 * axes.get_ylim()[1])
    axes.legend(handles, found, frameon=False, loc="upper right")
