"""Plots of evaluations and of training runs, written as PNG files; needs matplotlib (the extra ``train``)."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dhpe_fast.atomic_write import write_whole
from dhpe_fast.published_results import PublishedAuc

COLORS = ("#1f5fa8", "#d1495b", "#2a9d6f", "#e09f3e", "#7b5ea7", "#5c6b73", "#9c6644", "#111111")

_STYLE = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Curve:
    """A named line."""

    label: str
    x: np.ndarray
    y: np.ndarray


def pck_plot(
    path: str | os.PathLike[str],
    curves: Sequence[Curve],
    *,
    title: str,
    published: Sequence[PublishedAuc] = (),
) -> None:
    """Share of joints (y, in [0, 1]) within an error (x, millimetres), and published areas as text beside it."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(5.6 if not published else 7.6, 3.8)
        for curve, color in zip(curves, _colors(len(curves)), strict=True):
            axes.plot(curve.x, curve.y, color=color, label=curve.label)
        axes.set(xlabel="error threshold, mm", ylabel="share of joints within it (PCK)", title=title, ylim=(0, 1.01))
        axes.set_xlim(min(c.x.min() for c in curves), max(c.x.max() for c in curves))
        axes.legend(loc="lower right")
        if published:
            axes.text(1.03, 0.98, _published_text(published), transform=axes.transAxes, va="top", fontsize=8)
        _write(figure, path)


def progress_plot(
    path: str | os.PathLike[str],
    runs: Mapping[str, Sequence[Mapping[str, float]]],
) -> None:
    """Fig. 5(f): test error (solid, left) and share of hands aligned to within tau (dashed, right) over the epochs.

    Args:
        path: of the picture.
        runs: by name, their ``validation`` lines of ``metrics.jsonl``.

    Raises:
        ValueError: if a run has finished no epoch.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(6.4, 3.8)
        shares = axes.twinx()
        for (name, lines), color in zip(runs.items(), _colors(len(runs)), strict=True):
            if not lines:
                raise ValueError(f"runs: {name} has no finished epoch yet")
            epochs = [line["epoch"] + 1 for line in lines]
            axes.plot(epochs, [line["epe_mm"] for line in lines], color=color, label=f"{name}: error")
            share = [line["below_tau"] for line in lines]
            shares.plot(epochs, share, color=color, linestyle="--", label=f"{name}: aligned")
        axes.set(xlabel="epoch", ylabel="mean error of held-out joints, mm")
        axes.set_ylim(0, None)
        shares.set(ylabel="share of hands closer than τ in 2D", ylim=(0, 1.01))
        shares.grid(visible=False)
        lines = [*axes.get_lines(), *shares.get_lines()]
        axes.legend(lines, [str(line.get_label()) for line in lines], loc="center right", fontsize=8)
        _write(figure, path)


def line_plot(
    path: str | os.PathLike[str],
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log_x: bool = False,
) -> None:
    """Lines over a common axis."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(5.6, 3.6)
        for curve, color in zip(curves, _colors(len(curves)), strict=True):
            axes.plot(curve.x, curve.y, color=color, label=curve.label)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        if log_x:
            axes.set_xscale("log")
        axes.legend()
        _write(figure, path)


def _published_text(published: Sequence[PublishedAuc]) -> str:
    low, high = published[0].range_mm
    rows = sorted(published, key=lambda row: -row.auc)
    return f"published AUC, {low:g}-{high:g} mm\n" + "\n".join(f"{row.auc:.3f}  {row.method}" for row in rows)


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _figure(width: float, height: float):
    # Without pyplot: no global state, no display.
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _write(figure: Figure, path: str | os.PathLike[str]) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    write_whole(Path(path), buffer.getvalue())
