"""The picture of bench_fit.py's curves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from PIL import Image
from scaling_plot import INK

SOLVERS = {
    "gd": ("descent", "#d55e00", "o"),
    "gd, Eq. 11": ("descent on Eq. 11 without the CNN", "#e69f00", "D"),
    "adam": ("Adam", "#cc79a7", "s"),
    "lm": ("Levenberg-Marquardt", "#0072b2", "^"),
    "pso": ("particle swarm, 64 particles", "#555555", "v"),
}
"""Name, colour (Okabe and Ito's) and marker."""
MEASURES = {
    "error2d_px": "mesh in the image: mean error, px of 224",
    "pa_mpvpe_mm": "mesh, Procrustes aligned: mean error, mm",
}
LABELLED = (1, 10, 50, 200)
"""Numbers of iterations that are written beside their points."""


def draw(result: dict[str, Any], path: Path) -> Path:
    """Draws both measures against time and writes the picture."""
    plt.rcParams.update({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#999999"})
    plt.rcParams.update({"xtick.color": INK, "ytick.color": INK})
    figure, panels = plt.subplots(1, len(MEASURES), figsize=(11, 4.2), layout="constrained")
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        _panel(axes, result["curves"], measure)
        axes.set_title(title, loc="left", fontsize=10)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[1].legend(frameon=False, loc="lower right", fontsize=8)
    panels[1].set_ylim(bottom=0)
    panels[0].annotate(
        "the paper's 50 iterations,\nGPU of 2019: 250 ms", (250, 0.02), xycoords=("data", "axes fraction"),
        xytext=(-4, 0), textcoords="offset points", ha="right", va="bottom", fontsize=7, color="#777777",
    )  # fmt: skip
    run, n = result["run"], result["arguments"]["n"]
    threads = f"{run['threads']} thread{'s' * (run['threads'] > 1)}"
    figure.suptitle(
        f"{n} hands from perturbed parameters, exact 2D joints; 0 to 200 iterations. {run['processor']}, {threads}",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    Image.open(picture).convert("RGB").quantize(64).save(path, optimize=True)
    return path


def _panel(axes: Axes, points: list[dict[str, Any]], measure: str) -> None:
    for solver, (name, colour, marker) in SOLVERS.items():
        line = [point for point in points if point["solver"] == solver]
        axes.plot(
            [point["ms"] for point in line], [point[measure] for point in line],
            color=colour, marker=marker, ms=3.5, lw=1.4, label=name,
        )  # fmt: skip
        for point in line:
            if point["iterations"] in LABELLED:
                axes.annotate(
                    str(point["iterations"]), (point["ms"], point[measure]), xytext=(3, 4), textcoords="offset points",
                    color=colour, fontsize=7,
                )  # fmt: skip
    axes.axvline(250, color="#999999", ls=":", lw=1)
    axes.set_xscale("log")
    axes.set_xlabel("ms for one hand")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(which="major", color="#dddddd", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
