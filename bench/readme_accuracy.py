"""The rows and tables of accuracy: what ships, generated hands, ablations, photographs, tones of skin, failures."""

from __future__ import annotations

import json
from typing import Any

from result_files import RESULTS, Result, Row, markdown, number, plural, read

MANIFEST = RESULTS.parents[1] / "dhpe_fast" / "weights" / "manifest.json"
SCORES = {
    "auc_zb2017_20_50": "AUC, 20 to 50 mm",
    "auc_zb2017_0_50": "AUC, 0 to 50 mm",
    "auc_20_50_zb2017": "AUC, 20 to 50 mm, joint 0 and one bone aligned",
    "epe_mm": "joints, root aligned, mean error, mm",
    "pa_mpjpe_mm": "joints, Procrustes aligned, mm",
    "joints2d_px": "2D joints, px of a 224 crop",
    "iou": "mask, IoU",
    "precision": "mask, precision",
    "recall": "mask, recall",
    "f1": "mask, F1",
}
KEPT = {
    "epe_mm": "joints, root aligned, mean error, mm",
    "joints2d_px": "2D joints, px of a 224 crop",
    "heatmap_px": "2D joints of f_J2D, px of a 224 crop",
    "iou": "mask, IoU",
    "below_tau": "share of hands within the gate of Eq. 10",
    "average_precision": "average precision",
    "threshold": "threshold of the score",
    "precision": "precision there",
    "recall": "recall there",
    "side_accuracy": "share of the hands found whose side is right",
    "false_alarms": "boxes in a picture without hands",
}
"""What the scores are that a run keeps of its validation, and the manifest of the run."""
KEPT_OF_NOISE = {
    "epe_mm": "joints, root aligned, mm, median of the likeliest hypotheses",
    "best_epe_mm": "joints, root aligned, mm, median of the nearest hypotheses",
    "pa_mpjpe_mm": "joints, Procrustes aligned, mm, median of the likeliest hypotheses",
    "best_pa_mpjpe_mm": "joints, Procrustes aligned, mm, median of the nearest hypotheses",
    "noise": "what it takes for the noise",
}
"""Of those that are measured at several levels of noise: their keys end with ``_noise`` and percent of the crop."""
RENDERED = "rhd_"
"""Pictures whose names begin so are renderings, of the Rendered Handpose Dataset."""
STAGES = {"networks": "without testing refinement", "refined": "with it"}
SHEETS = {
    "worst": "Of every hundred test hands, the one that the fit misses most: true joints left, fit right",
    "kinds": "The worst of each kind",
    "whole": "Whole pictures: the first that were missed, and whose side was swapped",
}


def figure_rows() -> list[tuple[str, str, str]]:
    """For the README's table of figures."""
    rows = []
    result = read("accuracy_generated")
    if result is not None:
        by_name = {row["name"]: row for row in result["rows"]}
        for name, what in (
            ("after Eq. 11", "the networks and Eq. 11"),
            ("fit", "`fit` with the package's networks, crops given"),
            ("fit, end to end", "`fit` with the package's networks, nothing given"),
        ):
            if name in by_name:
                row = by_name[name]
                text = f"AUC {row['auc_zb2017_20_50']:.3f}; {number(row['epe_mm']) if row['epe_mm'] else '-'} mm; "
                what = f"{what}, {plural(row['hands'], 'generated test hand')}: AUC 20 to 50 mm; mean error; mask IoU"
                rows.append((what, f"{text}{row['iou']:.3f}", _command("generated", result)))
    result = read("accuracy_photographs")
    if result is not None:
        for source in dict.fromkeys(row["source"] for row in result["rows"]):
            own = [row for row in result["rows"] if row["source"] == source]
            errors = ", ".join(_photo_cell(row) for row in own)
            what = f"{_pictures(own)}, {source}: 2D error of the fit, by the hand's box"
            rows.append((what, errors, _command("photographs", result)))
    return rows


# ---- The model card --------------------------------------------------------------------------------------------------


def weights_table() -> str:
    """What ships: files, sizes, how they were trained."""
    if not MANIFEST.is_file():
        return "Nothing ships yet."
    entries = json.loads(MANIFEST.read_text())
    head = ("file", "MB", "weights", "trained in", "steps", "device", "seed", "at its end, on held-out examples")
    rows, origins = [], []
    for name, entry in entries.items():
        runs = _lineage(entry)
        rows.append(
            (
                f"`{name}`",
                f"{entry['bytes'] / 1e6:.1f}",
                f"{entry['weights'] / 1e6:.2f} M",
                " + ".join(f"{run['wall_time_s'] / 60:.0f} min" for run in runs),
                " + ".join(f"{run['steps']:,}" for run in runs),
                "; ".join(dict.fromkeys(run["device"] for run in runs)),
                str(entry["seed"]),
                _figures(entry.get("accuracy") or {}),
            )
        )
        recipes = "; then ".join(dict.fromkeys(_recipe(run["recipe"]) for run in runs))
        origins.append(f"- `{name}`: {recipes}; SHA-256 `{entry['sha256']}`")
    total = sum(entry["bytes"] for entry in entries.values()) / 1e6
    return f"{markdown(head, *rows)}\n\n{total:.1f} MB in all. Drawn by:\n\n" + "\n".join(origins)


def accuracy_table() -> str:
    """The paper's measures, an answer a column."""
    result = read("accuracy_generated")
    if result is None:
        return _not_measured("generated")
    rows = result["rows"]
    head = ("", *(f"{row['name']}, {plural(row['hands'], 'hand')}" for row in rows))
    cells = [(text, *(_score(row, key) for row in rows)) for key, text in SCORES.items()]
    missing = ("no answer, counted as infinitely far", *(str(row["missing"]) for row in rows))
    recipe = f"{_recipe(result['data']['recipe'])}; {result['networks']}; commit {result['run']['commit']}."
    seen = result["joints2d"]
    mean, median = f"{seen['mean_px']:.1f} ± {seen['half_width_px']:.1f} px", f"{seen['median_px']:.1f} px"
    joints2d = f" The 2D joints of f_J2D are off by {mean} of a 224 crop, half of them by less than {median}."
    text = f"{recipe}{_test_hands(result)}{joints2d}{_end_to_end(result)}"
    return f"{markdown(head, *cells, missing)}\n\n{text}{_picture('accuracy_generated_pck')}"


def ablations_table() -> str:
    """Every variant beside the full one, and which parts do not show their gain."""
    result = read("accuracy_ablations")
    if result is None:
        return _not_measured("ablations")
    shown = ("auc_zb2017_20_50", "epe_mm", "pa_mpjpe_mm", "joints2d_px", "iou")
    head = ("trained", "", "mean error against full, mm", *(SCORES[key] for key in shown))
    rows = []
    for row in result["rows"]:
        for stage, what in STAGES.items():
            gap = _gap(row["difference"][stage]) if row["overrides"] else ""
            own = row["scores"][stage]
            cells = tuple(_score(own, key) for key in shown)
            rows.append((row["variant"], f"{what}, {plural(own['hands'], 'hand')}", gap, *cells))
    steps = sorted({row["steps"] for row in result["rows"]})
    count = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    minutes = sum(row["minutes"] for row in result["rows"])
    origin = f"{count} steps each, {minutes:.0f} minutes in all on a shared machine; commit {result['run']['commit']}."
    pictures = _picture("accuracy_ablations_pck", "Share of joints within an error, of each variant")
    pictures += _picture(
        "accuracy_ablations_gate", "Test error and share of aligned hands over the epochs, as in Fig. 5(f)"
    )
    return f"{markdown(head, *rows)}\n\n{origin} {shown_gains(result)}{pictures}"


def shown_gains(result: Result) -> str:
    """In words: what is worse without a part by more than the interval, and what is not."""
    shows, hides = [], []
    for row in result["rows"]:
        if not row["overrides"]:
            continue
        gap = row["difference"]["networks"]
        (shows if gap["epe_mm"] > gap["half_width_mm"] else hides).append(row["variant"])
    gain = _refinement_gain(result)
    (shows if gain[0] > gain[1] else hides).append("without testing refinement")
    parts = []
    if shows:
        parts.append(f"Worse by more than the interval: {', '.join(shows)}.")
    if hides:
        parts.append(f"Shows no gain of its part in mean error here: {', '.join(hides)}.")
    return " ".join(parts)


def photographs_table() -> str:
    """Every source on every photograph."""
    result = read("accuracy_photographs")
    if result is None:
        return _not_measured("photographs")
    head = ("source", "picture", "found", "2D joints of the source, % of the box", "fit, %", "side", "hands in all")
    rows = []
    for row in result["rows"]:
        known = row["found"] != "none"
        cells = (f"{row['evidence_percent']:.1f}", f"{row['fit_percent']:.1f}") if known else ("", "")
        side = f"{row['side']}{'' if row['side_right'] else ', wrong'}" if known else ""
        rows.append((row["source"], row["photograph"], row["found"], *cells, side, str(row["hands"])))
    return f"{markdown(head, *rows)}\n\nCommit {result['run']['commit']}."


def tones_table() -> str:
    """Every tone, and how far it is from the mean of all."""
    result = read("accuracy_tones")
    if result is None:
        return _not_measured("tones")
    head = ("tone, sRGB", "2D joints, px of a 224 crop", "against the mean of all", "fit, mean error, mm")
    head += ("against the mean of all", "fit, AUC 20 to 50 mm", "mask, IoU", "no answer")
    rows = []
    for row, color in zip(result["rows"], result["skin_tones"], strict=True):
        hexadecimal = "".join(f"{round(255 * part):02x}" for part in color)
        rows.append(
            (f"`#{hexadecimal}`", f"{row['joints2d_px']:.1f}",
             f"{row['joints2d_difference_px']:+.2f} ± {row['joints2d_half_width_px']:.2f}", f"{row['fit_epe_mm']:.1f}",
             f"{row['fit_difference_mm']:+.2f} ± {row['fit_half_width_mm']:.2f}", f"{row['fit_auc_20_50']:.3f}",
             f"{row['fit_iou']:.3f}", str(row["fit_missing"]))
        )  # fmt: skip
    scenes = plural(result["hands"], "scene")
    return f"{markdown(head, *rows)}\n\n{scenes}, each drawn with every tone; commit {result['run']['commit']}."


def failures_table() -> str:
    """Errors by kind, and the sheets."""
    result = read("accuracy_failures")
    if result is None:
        return _not_measured("failures")
    head = ("kind", "hands", "fit, mean error, mm", "no answer")
    own = [row for row in result["kinds"] if "epe_mm" in row]
    rows = [(row["kind"], str(row["hands"]), _error(row), str(row["missing"])) for row in own]
    whole = [row for row in result["kinds"] if "share" in row]
    shares = ", ".join(f"{row['kind']} {100 * row['share']:.1f} %" for row in whole)
    text = markdown(head, *rows)
    if whole:
        text += f"\n\nOf {plural(whole[0]['pictures'], 'whole picture')}: {shares}."
    pictures = "".join(_picture(f"accuracy_failures_{name}", alt) for name, alt in SHEETS.items())
    return f"{text}\n\nCommit {result['run']['commit']}.{pictures}"


def _error(row: Row) -> str:
    if row["epe_mm"] is None:
        return ""
    return f"{row['epe_mm']:.1f}" + ("" if row["half_width_mm"] is None else f" ± {row['half_width_mm']:.1f}")


def _score(row: Row, key: str) -> str:
    """A cell; a mean over hands of which some have no answer is none."""
    value = row.get(key)
    if value is None:
        return ""
    half = {"auc_zb2017_20_50": "auc_20_50_half_width", "epe_mm": "epe_half_width_mm"}.get(key)
    text = f"{value:.3f}" if value < 1 else f"{value:.1f}"
    if half is None or row.get(half) is None:
        return text
    return f"{text} ± {row[half]:.3f}" if value < 1 else f"{text} ± {row[half]:.1f}"


def _end_to_end(result: Result) -> str:
    whole = result.get("end_to_end")
    if whole is None:
        return ""
    found, false_finds = f"{100 * whole['found']:.1f} %", f"{whole['false_finds_per_picture']:.3f}"
    of_found = ""
    if "side_right" in whole:
        error, offset = f"{whole['epe_of_found_mm']:.1f} mm", f"{whole['joints2d_of_found_px']:.1f} px of a 224 crop"
        of_found = f" (these are off by {error}, {offset}; their side is right in {100 * whole['side_right']:.1f} %)"
    pictures = plural(whole["pictures"], "picture")
    found = f"the labelled hand is found in {found}{of_found}"
    return f" End to end, {pictures}: {found}; {false_finds} fits a picture are of no hand."


def _refinement_gain(result: Result) -> tuple[float, float]:
    """How much nearer Eq. 11 brings the full variant, hand by hand, and half of the interval."""
    gain = result["refinement_gain"]
    return gain["epe_mm"], gain["half_width_mm"]


def _gap(difference: dict[str, float]) -> str:
    return f"{difference['epe_mm']:+.2f} ± {difference['half_width_mm']:.2f}"


def _photo_cell(row: Row) -> str:
    if row["found"] != "the hand":
        return row["found"]
    return f"{row['fit_percent']:.1f} %{'' if row['side_right'] else ' (other side)'}"


def _lineage(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The run, after those that it started from."""
    earlier = entry.get("starts_from")
    return [*(_lineage(earlier) if earlier else []), entry]


def _recipe(recipe: Any) -> str:
    """The arguments of the generator in one line."""
    if not isinstance(recipe, dict):
        return str(recipe)
    known = {key: value for key, value in recipe.items() if value is not None and not isinstance(value, dict | list)}
    return ", ".join(f"{key} {value}" for key, value in known.items())


def _figures(accuracy: dict[str, Any]) -> str:
    """Scores in words; a key that is not known stands for itself, and what could not be measured is left out."""
    figures: dict[str, dict[str, str]] = {}
    for key, value in accuracy.items():
        name, _, percent = key.partition("_noise")
        if value is not None:
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            figures.setdefault((KEPT_OF_NOISE if percent else KEPT).get(name, name), {})[percent] = text
    parts = []
    for name, found in figures.items():
        levels = [percent for percent in found if percent]
        at = f" with noise of {', '.join(levels)} % of the crop" if levels else ""
        parts.append(f"{name}{at}: {', '.join(found.values())}")
    return "; ".join(parts)


def _pictures(rows: list[Row]) -> str:
    """3 photographs and 1 rendering."""
    rendered = sum(row["photograph"].startswith(RENDERED) for row in rows)
    kinds = ((len(rows) - rendered, "photograph"), (rendered, "rendering"))
    return " and ".join(plural(count, kind) for count, kind in kinds if count)


def _test_hands(result: Result) -> str:
    """Where test hands come from, by the seeds of what was drawn for them and for the networks."""
    if not MANIFEST.is_file():
        return ""
    seed = result["data"]["recipe"]["seed"]
    runs = _lineage(json.loads(MANIFEST.read_text())["dhpe.pt"])
    theirs = {run["recipe"]["seed"] for run in runs if "seed" in run["recipe"]}
    if seed in theirs:
        return f" These hands, of seed {seed}, are those on which the networks were validated while they were trained."
    seeds = ", ".join(map(str, sorted(theirs)))
    return (
        f" Test hands come from seed {seed}, those of training and validation from seed {seeds}: from the same "
        "generator, and the same few background photographs."
    )


def _picture(name: str, alt: str = "Share of joints within an error, of each answer") -> str:
    return f"\n\n![{alt}](../bench/results/{name}.png)" if (RESULTS / f"{name}.png").is_file() else ""


def _command(what: str, result: Result) -> str:
    return f"`bench/accuracy.py {what}`, {result['run']['commit']}"


def _not_measured(what: str) -> str:
    return f"Not measured yet: `python bench/accuracy.py {what}`."
