"""The rows and tables of refinement: iterations, stages of a fit, solvers, knobs of the feature term."""

from __future__ import annotations

import json
from typing import Any

from result_files import RESULTS, Result, Row, machine, markdown, number, plural, ratios, read

GEOMETRIC_MS = 0.25
CNN_SHARE = 1.05
GPU_MS = {"geometric": 0.04, "full": 1.0}
FIT_MS = 25.0
NEWTON_SHARE = 0.9
OURS = {"geometric": "fused, one call for 50", "full": "fused"}
"""The implementation that is held against the goals."""

Cells = tuple[str, ...]


def figure_rows() -> list[tuple[str, str, str]]:
    """For the README's table of figures."""
    return [*_iteration_figures(), *_fit_figures(), *_newton_figures()]


def goal_rows() -> list[Cells]:
    """For the README's table of goals: work, goal, reached, the goal here where that is less, nothing."""
    rows = [*_cpu_goals(), *_fit_goals(), *_newton_goals()]
    for result in _gpu_results():
        rows += _gpu_goals(result)
    return rows


# ---- One iteration ---------------------------------------------------------------------------------------------------


def iterations_table() -> str:
    """Every row of bench_refine.py, on the CPU and on GPUs."""
    results = [result for result in (read("refine"), *_gpu_results()) if result is not None]
    if not results:
        return "Not measured yet: `python bench/bench_refine.py`."
    return "\n\n".join(_iterations(result) for result in results)


def _iterations(result: Result) -> str:
    peers = [key for key in dict.fromkeys(key for row in result["rows"] for key in row) if key.startswith("times_")]
    head = ("iteration", "threads", "implementation", "median, ms", "IQR, ms")
    head += tuple(f"x {peer.removeprefix('times_')}" for peer in peers)
    rows = [
        (f"{row['job']}, {plural(row['batch'], 'hand')}", str(row["threads"]), f"`{row['implementation']}`",
         number(row["median_ms"]), f"{row['iqr_ms']:.2g}", *(f"{row[key]:.2f}" if key in row else "" for key in peers))
        for row in result["rows"]
    ]  # fmt: skip
    paper = ", ".join(f"{what} {ms:g} ms" for what, ms in result["paper_ms"].items())
    network = f"ResNet-{result['depth']}, {result['weights']} weights, silhouette `{result['mode']}`"
    return f"{_origin(result['run'])} {network}. The paper, GPU of 2019: {paper}.\n\n{markdown(head, *rows)}"


def _row(result: Result, job: str, implementation: str, batch: int = 1, threads: int | None = None) -> Row | None:
    """None where it was not measured; without a number of threads, the row with most of them."""
    found = [
        row
        for row in result["rows"]
        if (row["job"], row["implementation"], row["batch"]) == (job, implementation, batch)
        and threads in (None, row["threads"])
    ]
    return max(found, key=lambda row: row["threads"]) if found else None


def _iteration_figures() -> list[tuple[str, str, str]]:
    result = read("refine")
    if result is None:
        return []
    command = f"`bench/bench_refine.py`, {machine(result['run'])}"
    rows = []
    with_cnn = f"the same with the CNN, ResNet-{result['depth']}"
    for job, name in (("geometric", "an iteration of Eq. 11 without the CNN"), ("full", with_cnn)):
        for row in (row for row in result["rows"] if (row["job"], row["implementation"]) == (job, OURS[job])):
            if row["threads"] == result["run"]["threads"]:
                compared = ", ".join(f"{value:.2f} x {_named(peer)}" for peer, value in ratios(row).items())
                figure = f"{number(row['median_ms'])} ms{': ' * bool(compared)}{compared}"
                rows.append((f"{name}, {plural(row['batch'], 'hand')}", figure, command))
    return rows


def _named(peer: str) -> str:
    return {"composed": "manopth with a torch renderer", "unfused": "unfused", "cnn": "the bare CNN"}[peer]


def _cpu_goals() -> list[Cells]:
    result = read("refine")
    rows: list[Cells] = []
    row = result and _row(result, "geometric", OURS["geometric"], threads=1)
    if row:
        reached = f"{number(row['median_ms'])} ms"
        missed = f"{GEOMETRIC_MS:g} ms" if row["median_ms"] > GEOMETRIC_MS else ""
        rows.append(("geometric iteration of Eq. 11, 1 hand, 1 thread", f"{GEOMETRIC_MS:g} ms", reached, missed, ""))
    row, cnn = (result and _row(result, "full", name) for name in (OURS["full"], "cnn"))
    if row and cnn:
        share = row["median_ms"] / cnn["median_ms"]
        reached = f"{number(row['median_ms'])} ms, {share:.2f} x the CNN as torch runs it"
        frozen = _row(result, "full", "frozen cnn")
        if frozen:
            reached += f", {row['median_ms'] / frozen['median_ms']:.2f} x the faster copy of it"
        missed = f"{number(CNN_SHARE * cnn['median_ms'])} ms" if share > CNN_SHARE else ""
        rows.append(("full iteration of Eq. 11, 1 hand", f"{CNN_SHARE:g} x the bare CNN", reached, missed, ""))
        paper = result["paper_ms"]["iteration"]
        reached, missed = f"{number(row['median_ms'])} ms", f"{paper:g} ms" if row["median_ms"] > paper else ""
        rows.append(("the same", f"{paper:g} ms, the paper's GPU of 2019", reached, missed, ""))
    return rows


def _gpu_results() -> list[Result]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("refine_*.json"))]


def _gpu_goals(result: Result) -> list[Cells]:
    rows = []
    for job, goal in GPU_MS.items():
        found = [_row(result, job, name) for name in (OURS[job], "fused, graph", "fused, float16, graph")]
        for row in filter(None, found):
            missed = f"{goal:g} ms" if row["median_ms"] > goal else ""
            work = f"{job} iteration of Eq. 11, 1 hand, {result['run']['device']}, `{row['implementation']}`"
            rows.append((work, f"{goal:g} ms", f"{number(row['median_ms'])} ms", missed, ""))
    return rows


# ---- A fit, by stage; solvers ----------------------------------------------------------------------------------------


def stages_table() -> str:
    """Milliseconds of each stage."""
    result = read("fit")
    if result is None:
        return "Not measured yet: `python bench/bench_fit.py`."
    names = list(dict.fromkeys(stage for row in result["stages"] for stage in row["ms"]))
    titles = {"read": "decode the file", "first_estimate": "first estimate", "draw": "draw the overlay"}
    titles["draw_fast"] = "the same with `fast=True`"
    titles["fit"] = "all of `fit`, with decoding"
    head = ("stage, median ms (90 %)", *(f"given {row['given']}" for row in result["stages"]))
    rows = [(titles.get(name, name), *(_median(row["ms"].get(name)) for row in result["stages"])) for name in names]
    last = result["stages"][-1]
    pictures = f"{plural(last['n'], 'picture')} of 640 x 480"
    found = f"given {last['given']}, {plural(last['hands'], 'hand')} found in them"
    return f"{_origin(result['run'])} {pictures}; {found}.\n\n{markdown(head, *rows)}"


def _median(found: dict[str, float] | None) -> str:
    return f"{number(found['median'])} ({number(found['p90'])})" if found else ""


def curves_picture() -> str:
    """The picture, with its origin."""
    result = read("fit")
    if result is None or not (RESULTS / "fit_curves.png").is_file():
        return "Not measured yet: `python bench/bench_fit.py`."
    alt = "Error against time for descent, Adam, Levenberg-Marquardt and particle swarm"
    return f"![{alt}](../bench/results/fit_curves.png)\n\n{_origin(result['run'])}"


def _fit_ms(row: dict[str, Any]) -> float:
    """Without reading the file."""
    return row["ms"]["fit"]["median"] - row["ms"]["read"]["median"]


def _fit_figures() -> list[tuple[str, str, str]]:
    result = read("fit")
    if result is None:
        return []
    command = f"`bench/bench_fit.py`, {machine(result['run'])}"
    rows = [
        (f"whole `fit`, given {row['given']}, median", f"{number(_fit_ms(row))} ms", command)
        for row in result["stages"]
    ]
    return rows


def _fit_goals() -> list[Cells]:
    result = read("fit")
    rows = []
    for row in () if result is None else result["stages"]:
        if row["given"] == "2D joints":
            ms = _fit_ms(row)
            missed = f"{FIT_MS:g} ms" if ms > FIT_MS else ""
            rows.append(("whole `fit`, given 2D joints", f"{FIT_MS:g} ms", f"{number(ms)} ms", missed, ""))
    return rows


def _newton_rows() -> list[tuple[Result, Row]]:
    result = read("newton_against_descent")
    return [] if result is None else [(result, row) for row in result["rows"]]


def _newton_figures() -> list[tuple[str, str, str]]:
    return [
        (f"Levenberg-Marquardt steps to the loss of 50 of descent, {row['objective']}, {plural(row['n'], 'hand')}",
         f"median {row['steps_median']:.0f}, 90 % {row['steps_p90']:.0f}, most {row['steps_most']}",
         f"`bench/newton_against_descent.py`, {machine(result['run'])}")
        for result, row in _newton_rows()
    ]  # fmt: skip


def _newton_goals() -> list[Cells]:
    rows = []
    for _, row in _newton_rows():
        reached = f"{100 * row['reached_share']:.1f} % of {plural(row['n'], 'hand')}"
        missed = f"{100 * NEWTON_SHARE:.0f} %" if row["reached_share"] < NEWTON_SHARE else ""
        work = f"10 Levenberg-Marquardt steps on the {row['objective']} reach the loss of 50 of descent"
        rows.append((work, f"{100 * NEWTON_SHARE:.0f} % of hands", reached, missed, ""))
    return rows


# ---- Knobs -----------------------------------------------------------------------------------------------------------


def knobs_table() -> str:
    """What the feature term's knobs cost."""
    result = read("feature_knobs")
    if result is None:
        return "Not measured yet: `python bench/feature_knobs.py RUN`."
    head = ("knob", "trained network, ms an iteration", "joints, root aligned, mm", "2D joints, px of 224", "mask, IoU")
    head += ("ResNet-50 at 224, ms an iteration",)
    rows = [
        (row["knob"], number(row["ms"]) if "ms" in row else "", f"{row['epe_mm']:.2f}", f"{row['joints2d_px']:.2f}",
         f"{row['iou']:.3f}", number(row["resnet50_ms"]) if "resnet50_ms" in row else "")
        for row in result["rows"]
    ]  # fmt: skip
    network = f"{result['network']}, {plural(result['samples'], 'held-out hand')}, {result['iterations']} iterations"
    return f"{_origin(result['run'])} {network}.\n\n{markdown(head, *rows)}"


def _origin(run: Row) -> str:
    return f"{run['processor']}, torch {run['torch']}, commit {run['commit']}, {run['date'][:10]}."
