"""Writes the measured tables of README.md and the pages in docs from the files in bench/results: no figure can drift.

    python bench/readme_table.py            # rewrites the tables
    python bench/readme_table.py --check    # exit code 1 if a page says something else

Each table stands between two marks, the first of which names it; BLOCKS has a function for every name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import readme_accuracy
import readme_gpu
import readme_refine
from readme_goals import goals_table
from result_files import RESULTS, Row, machine, markdown, number, own_row, plural, ratios, read

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "kernels", "model-card")))
BLOCK = re.compile(
    r"(<!-- measured: (\w+); bench/readme_table\.py writes this -->\n).*?(<!-- end of measured -->)", flags=re.DOTALL
)


def main() -> int:
    """Rewrites or checks the pages; the exit code."""
    stale = 0
    for page in PAGES:
        text = page.read_text()
        if not BLOCK.search(text):
            raise ValueError(f"{page}: no pair of marks is left that names a table")
        fresh = BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)
        stale += fresh != text
        if "--check" not in sys.argv[1:]:
            page.write_text(fresh)
    return int("--check" in sys.argv[1:] and stale > 0)


def not_measured(command: str) -> str:
    """In place of a table."""
    return f"Not measured yet: `{command}`."


# ---- README.md -------------------------------------------------------------------------------------------------------


def figures() -> str:
    """What was reached, in short."""
    fits = (*readme_accuracy.figure_rows(), *_fit_rows(), *readme_refine.figure_rows())
    return markdown(("what", "figure", "command"), *fits, *_raster_rows(), *_area_rows(), *_lbs_rows())


def goals() -> str:
    """What was to be reached, what was, and why not more."""
    return goals_table(read("lbs"), read("raster"), read("roofline"), readme_refine.goal_rows())


def training() -> str:
    """What small networks learn in minutes, on held-out hands."""
    result = read("training")
    if result is None:
        return not_measured("python bench/training.py")
    names = {
        "epe_mm": "joints, root aligned, mean error, mm",
        "pa_mpjpe_mm": "joints, Procrustes aligned, mm",
        "auc_zb2017_20_50": "AUC, 20 to 50 mm",
        "joints2d_px": "2D joints, px of a 224 crop",
        "iou": "mask, IoU",
    }
    gated, constant = (next(row for row in result["rows"] if row["run"] == name) for name in ("gated", "constant"))
    constant_answers = [name for name in ("mean skeleton", "mean-pose hand") if name in gated["scores"]]
    columns = [gated["scores"][name] for name in (*constant_answers, "regression", "refined")]
    columns += [constant["scores"][name] for name in ("regression", "refined")]
    head = (plural(gated["samples"], "held-out hand"), *constant_answers, "networks", "refined, Eq. 11")
    head += ("networks, constant λ", "the same, refined")
    rows = [
        (text, *("" if scores.get(key) is None else number(scores[key]) for scores in columns))
        for key, text in names.items()
    ]
    minutes = f"Trained in {gated['minutes']:.0f} minutes: {machine(result['run'])}"
    minutes += f"; measured at {result['evaluated']['commit']}." if "evaluated" in result else "."
    return f"{markdown(head, *rows)}\n\n{minutes}"


def _fit_rows() -> list[tuple[str, str, str]]:
    result = read("keypoint_fit_weak_noise0px_cpu")
    if result is None:
        return []
    n, found = result["arguments"]["n"], result["summary"]
    command = f"`bench/keypoint_fit.py`, {machine(result['run'])}"
    error, space, time = (found[key] for key in ("error2d_percent", "pa_mpjpe_mm", "time_ms"))
    return [
        (f"fit to the exact 2D joints of {n} rendered hands: 2D error, median (90 %)",
         f"{error['median']:.2f} % ({error['p90']:.2f} %) of the hand's box", command),
        ("the same: joints after Procrustes alignment, median (90 %)",
         f"{space['median']:.1f} mm ({space['p90']:.1f} mm)", command),
        ("the same: whole `fit`, default hand, median", f"{time['median']:.0f} ms", command),
    ]  # fmt: skip


def _raster_rows() -> list[tuple[str, str, str]]:
    result = read("raster")
    if result is None:
        return _single_silhouettes()
    rows = []
    for job, name in (
        ("rasterize", "`rasterize`: face, barycentrics and depth"),
        ("nmr", "silhouette, `nmr`"),
        ("edge", "silhouette, `edge`"),
        ("soft", "silhouette, `soft`"),
        ("interpolate", "`interpolate`: three values a vertex"),
    ):
        found = []
        for batch in (1, 32):
            ms = [own_row(result, job, direction, batch)["median_ms"] for direction in ("forward", "backward")]
            found.append(f"{plural(batch, 'hand')} {number(ms[0])} ms, {number(ms[1])} ms")
        for direction, when in (("forward", "forward"), ("backward", "with backward")):
            compared = [f"{value:.1f} x {peer}" for peer, value in ratios(own_row(result, job, direction, 1)).items()]
            found += [f"1 hand {when} {', '.join(compared)}"] * bool(compared)
        command = f"`bench/bench_raster.py`, {machine(result['run'])}"
        rows.append((f"{name}, 224 x 224: forward, with backward", "; ".join(found), command))
    return rows


def _single_silhouettes() -> list[tuple[str, str, str]]:
    result = read("silhouette_area")
    command = f"`bench/silhouette_area.py`, {machine(result['run'])}"
    return [
        (f"silhouette of a hand, 224 x 224, `{mode}`: forward; with backward",
         f"{found['ms']['forward']['median']:.2f} ms; {found['ms']['with_backward']['median']:.2f} ms", command)
        for mode, found in result["result"].items()
    ]  # fmt: skip


def _area_rows() -> list[tuple[str, str, str]]:
    result = read("silhouette_area")
    if result is None:
        return []
    bias = result["result"]["edge"]
    return [
        (f"area of the `edge` silhouette against the true one, {result['arguments']['n']} hands: mean; worst",
         f"{abs(bias['mean_percent']):.4f} %; {abs(bias['largest_percent']):.4f} %",
         f"`bench/silhouette_area.py`, {machine(result['run'])}"),
    ]  # fmt: skip


def _lbs_rows() -> list[tuple[str, str, str]]:
    result = read("lbs")
    if result is None:
        return []
    command = f"`bench/bench_lbs.py`, {machine(result['run'])}"
    rows = []
    for direction, name in (("forward", "forward"), ("backward", "with backward")):
        for batch in (1, 32, 1024):
            row = own_row(result, "lbs", direction, batch)
            compared = ", ".join(f"{value:.1f} x {peer}" for peer, value in ratios(row).items())
            what = f"skinning `ops.lbs`, {plural(batch, 'hand')}, {name}"
            rows.append((what, f"{number(row['median_ms'])} ms{': ' * bool(compared)}{compared}", command))
    return rows


# ---- docs/benchmarks.md ----------------------------------------------------------------------------------------------


def timings_table(name: str) -> str:
    """Every row of a pytest benchmark."""
    result = read(name)
    if result is None:
        return not_measured(f"pytest bench/bench_{name}.py --benchmark-only")
    peers = [key for key in dict.fromkeys(key for row in result["rows"] for key in row) if key.startswith("times_")]
    head = ("work", "implementation", "median, ms", "IQR, ms", *(f"x {peer.removeprefix('times_')}" for peer in peers))
    rows = [
        (_work(row), f"`{row['implementation']}`", number(row["median_ms"]), f"{row['iqr_ms']:.2g}",
         *(f"{row[peer]:.2f}" if peer in row else "" for peer in peers))
        for row in result["rows"]
    ]  # fmt: skip
    return f"{_origin(result['run'])} {plural(result['run']['threads'], 'thread')}.\n\n{markdown(head, *rows)}"


def peaks_table() -> str:
    """What the processor can do."""
    result = read("roofline")
    if result is None:
        return not_measured("python bench/roofline.py")
    names = {
        "read_l2_gb_s": "reading from L2, GB/s, at least",
        "read_l3_gb_s": "reading from L3, GB/s",
        "read_memory_gb_s": "reading from memory, GB/s",
        "copy_memory_gb_s": "copying in memory, GB/s read and written",
        "fma_gflop_s": "float32 multiplications and additions, GFLOP/s",
    }
    peaks = result["peaks"]
    head = ("peak", *(plural(peak["threads"], "thread") for peak in peaks))
    rows = [(text, *(f"{peak[name]:.0f}" for peak in peaks)) for name, text in names.items()]
    sizes = " and ".join(f"{size / 2**20:g} MiB of {level.upper()}" for level, size in result["caches"].items())
    return f"{_origin(result['run'])} {sizes}.\n\n{markdown(head, *rows)}"


def roofline_table() -> str:
    """Operations, bytes, floor and measured time."""
    result = read("roofline")
    if result is None:
        return not_measured("python bench/roofline.py")
    head = ("work", "threads", "Mop", "MB", "floor, ms", "by", "measured, ms", "share", "call alone, ms")
    rows = [
        (_work(row), str(row["threads"]), number(row["mega_operations"]), number(row["megabytes"]),
         number(row["floor_ms"]), row["limit"], number(row["measured_ms"]), f"{100 * row['share']:.0f} %",
         number(row["call_ms"]))
        for row in result["rows"]
    ]  # fmt: skip
    return markdown(head, *rows)


def directions_table() -> str:
    """One hand and ever more pose directions."""
    result = read("roofline")
    if result is None:
        return not_measured("python bench/roofline.py")
    by_threads: dict[int, dict[int, Row]] = {}
    for row in result["directions"]:
        by_threads.setdefault(row["threads"], {})[row["pose_directions"]] = row
    one, two = by_threads[1], by_threads[2]
    head = ("pose directions", "basis, MB", "call alone, µs", "vertices, µs, 1 thread", "2 threads")
    rows = [
        (str(n), f"{one[n]['basis_mb']:.2f}", f"{one[n]['call_us']:.1f}", f"{one[n]['verts_us']:.1f}",
         f"{two[n]['verts_us']:.1f}")
        for n in one
    ]  # fmt: skip
    rates = []
    for reading in result["reading"]:
        within, beyond = reading.get("within_l2_gb_s"), reading.get("beyond_l2_gb_s")
        sides = [f"{rate:.0f} GB/s {place}" for rate, place in ((within, "within L2"), (beyond, "beyond it")) if rate]
        if within and beyond and beyond > within:  # noise: the two slopes cannot be told apart
            sides = [f"about {min(within, beyond):.0f} to {max(within, beyond):.0f} GB/s"]
        threads = plural(reading["threads"], "thread")
        rates.append(f"{threads}: {' and '.join(sides)}, {reading['without_directions_us']:.1f} µs without directions")
    return f"{markdown(head, *rows)}\n\nWhat a further direction takes, by least squares. {'. '.join(rates)}."


def scaling_picture() -> str:
    """The picture, with its origin."""
    result = read("scaling")
    if result is None or not (RESULTS / "scaling.png").is_file():
        return not_measured("python bench/scaling.py")
    alt = "Time of a hand, of a pixel and of an image against hands, pixels and faces"
    threads = plural(result["run"]["threads"], "thread")
    return f"![{alt}](../bench/results/scaling.png)\n\n{_origin(result['run'])} {threads}."


def _work(row: Row) -> str:
    direction = "with backward" if row["direction"] == "backward" else "forward"
    size = f", {row['image_size']} px" if row.get("image_size", 224) != 224 else ""
    device = f", {row['device']}" if row.get("device", "cpu") != "cpu" else ""
    return f"{row.get('job', 'lbs')}, {plural(row['batch'], 'hand')}{size}, {direction}{device}"


def _origin(run: Row) -> str:
    return f"{run['processor']}, torch {run['torch']}, commit {run['commit']}, {run['date'][:10]}."


BLOCKS: dict[str, Callable[[], str]] = {
    "figures": figures,
    "training": training,
    "goals": goals,
    "lbs": lambda: timings_table("lbs"),
    "raster": lambda: timings_table("raster"),
    "peaks": peaks_table,
    "roofline": roofline_table,
    "directions": directions_table,
    "scaling": scaling_picture,
    "iterations": readme_refine.iterations_table,
    "stages": readme_refine.stages_table,
    "kernels": readme_gpu.kernels_table,
    "curves": readme_refine.curves_picture,
    "knobs": readme_refine.knobs_table,
    "weights": readme_accuracy.weights_table,
    "accuracy": readme_accuracy.accuracy_table,
    "ablations": readme_accuracy.ablations_table,
    "photographs": readme_accuracy.photographs_table,
    "tones": readme_accuracy.tones_table,
    "failures": readme_accuracy.failures_table,
}


if __name__ == "__main__":
    sys.exit(main())
