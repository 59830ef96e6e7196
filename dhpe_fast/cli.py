"""The command line ``dhpe-fast``: fit, demo and doctor for hands, and commands to make networks: data, synth, train,
eval, progress and export.

Everything heavy is imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dhpe_fast.data import Dataset

app = typer.Typer(
    name="dhpe-fast",
    help="A dense 3D hand from one RGB image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


_TRAIN_PACKAGES = ("matplotlib", "pydantic", "safetensors", "scipy", "tensorboard", "tqdm", "yaml")
"""Of the extra `train`."""


_HANDS = ("auto", "left", "right")
_SOURCES = ("auto", "networks", "mediapipe")
_MESH_FORMATS = ("glb", "obj", "ply", "npz")
"""Mesh files that ``io.save_fit`` writes."""


@app.command()
def fit(
    files: Annotated[
        list[Path], typer.Argument(help="Pictures or videos of hands, or folders of them.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if missing.")] = Path(
        "out"
    ),
    keypoints: Annotated[
        Path | None,
        typer.Option(
            help="2D joints in pixels: .npy (21, 2 or 3), or .json, which may name several images; of a video "
            "(frames, 21, 2 or 3), or .json with a list for its frames. Without it hands are looked for."
        ),
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="Joint order of the keypoints, for instance std, mano21, rhd, interhand.")
    ] = None,
    evidence: Annotated[
        str,
        typer.Option(
            metavar="|".join(_SOURCES),
            help="Who finds hands and their joints: the package's own networks, MediaPipe, or MediaPipe where it is "
            "installed and the networks elsewhere (auto).",
        ),
    ] = "auto",
    hand: Annotated[
        str,
        typer.Option(metavar="|".join(_HANDS), help="Which hand it is, in all pictures; networks see no other."),
    ] = "auto",
    mano: Annotated[
        Path | None, typer.Option(help="A licensed MANO file, MANO_RIGHT.pkl, instead of the default hand.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = None,
    iterations: Annotated[int, typer.Option(min=0, help="The most steps of refinement; of pictures.")] = 50,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", metavar="|".join(_MESH_FORMATS), help="Mesh format of pictures; repeat it for several."
        ),
    ] = None,
    smooth: Annotated[bool, typer.Option(help="Whether the hands of a video are smoothed over time.")] = True,
    profile: Annotated[bool, typer.Option("--profile", help="Print where the time went.")] = False,
) -> None:
    """Fit hands in pictures and videos: an overlay, and all parameters of each; of pictures a mesh.

    IMAGE.jpg gives IMAGE_overlay.png, IMAGE.glb and IMAGE.json; with several hands each has a number. VIDEO.mp4
    gives VIDEO_overlay.mp4 and VIDEO_hands.jsonl, with a line for each frame. What fails is reported, the others
    go on, and the exit code is 1.
    """
    with _one_line_errors():
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its notes on damaged videos; we say what is wrong
        from dhpe_fast import cli_fit

        for option, given, known in (("--hand", [hand], _HANDS), ("--evidence", [evidence], _SOURCES)):
            _check_choice(option, given, known)
        _check_choice("--format", formats or [], _MESH_FORMATS)
        job = cli_fit.FitJob.of(output, keypoints, order, mano)
        _check_device(device)
        if keypoints is not None and evidence != "auto":
            raise ValueError("--evidence: is for files without --keypoints, which already say where the joints are")
        options = {"hand": hand, "device": device, "model": job.model, "evidence": evidence}
        suffixes = tuple(f".{item}" for item in formats or ["glb"])
        _make_folder(output)
        job = replace(job, options=options, iterations=iterations, suffixes=suffixes, smooth=smooth, profile=profile)
        inputs = cli_fit.expanded(files)
        failures = cli_fit.fit_all(inputs, job)
    done = len(inputs) - len(failures)
    kind = "files" if any(cli_fit.is_video(file) for file in inputs) else "pictures"
    typer.echo(f"{done} of {len(inputs)} {kind} fitted, results in {output}", err=True)
    for file, reason in failures:
        typer.secho(f"  {file}: {reason.removeprefix(f'{file}: ')}", fg=typer.colors.RED, err=True)
    if failures:
        raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if missing.")] = Path(
        "out"
    ),
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = None,
) -> None:
    """Fit the sample picture that ships with the package, and compare with its known answer."""
    import time

    import numpy as np

    import dhpe_fast
    from dhpe_fast.cli_fit import save_hand
    from dhpe_fast.data.demo import load_demo
    from dhpe_fast.metrics import pa_mpjpe_mm

    with _one_line_errors():
        _check_device(device)
        known = load_demo()
        _make_folder(output)
        options = {"keypoints": known.keypoints2d_px, "hand": known.side, "device": device}
        dhpe_fast.fit(known.image, **options)  # the first call loads the hand and warms up
        start = time.perf_counter()
        found = dhpe_fast.fit(known.image, **options)
        elapsed_ms = 1000 * (time.perf_counter() - start)
        written = save_hand(found, found.overlay(known.image), output / "demo", [".glb"])
    offsets_px = found.joints2d_px.cpu().numpy() - known.keypoints2d_px
    rows = {
        "2D joints, mean error": f"{float(np.linalg.norm(offsets_px, axis=1).mean()):.2f} px",
        "3D joints, PA-MPJPE": f"{float(pa_mpjpe_mm(found.joints_m.cpu(), known.joints_m)):.2f} mm",
        "778 vertices, aligned alike": f"{float(pa_mpjpe_mm(found.verts_m.cpu(), known.verts_m)):.2f} mm",
        "time of the fit": f"{elapsed_ms:.0f} ms on {found.verts_m.device}, {found.iterations} steps",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(f"{name:<{width}}  {value}")
    for file in written:
        typer.echo(f"wrote {file}")


@app.command()
def synth(
    root: Annotated[Path, typer.Argument(help="Folder of the data set; must not exist yet.", show_default=False)],
    training: Annotated[int, typer.Option(min=0, help="Number of training images.")] = 2000,
    evaluation: Annotated[int, typer.Option(min=0, help="Number of evaluation images.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 320,
    max_angle: Annotated[
        float, typer.Option(help="How far hands are turned away from an upright one, degrees; 180 is any orientation.")
    ] = 180.0,
    backgrounds: Annotated[Path | None, typer.Option(help="Folder of photographs; without it they are drawn.")] = None,
    gestures: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the hands near a gesture: flat, spread, a fist, pointing, a pinch and others."
        ),
    ] = 0.0,
    held: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pictures in which a hand holds something.")
    ] = 0.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one for each core by default.")] = None,
) -> None:
    """Draw a data set of hands in the layout of RHD: images, masks, depth, 2D and 3D joints.

    Interrupted, the same command goes on.
    """
    with _one_line_errors():
        from tqdm import tqdm

        from dhpe_fast.data.synthetic import write_synthetic

        _make_folder(root.parent, "ROOT")
        with tqdm(total=training + evaluation, desc=f"drawing {root}", disable=None) as bar:
            write_synthetic(
                root,
                training,
                evaluation,
                seed=seed,
                size_px=size,
                max_angle_deg=max_angle,
                backgrounds=backgrounds,
                gestures=gestures,
                held=held,
                workers=workers,
                on_image=bar.update,
            )
    typer.echo(f"{training} training and {evaluation} evaluation images in {root}", err=True)


@app.command()
def train(
    config: Annotated[
        str,
        typer.Option(
            help="A YAML file, or the name of a shipped configuration: paper, synthetic, tiny; pose2d, gestures, "
            "dhpe, lifter, locator."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; runs/CONFIGURATION by default."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="Go on if the run is there, else start it: for schedulers.")
    ] = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change the configuration: section.key=value; repeat for several.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = None,
) -> None:
    """Train networks: the paper's (under torchrun, on all of its processes), or the one that the file names."""
    with _one_line_errors():
        from dhpe_fast.config import load_config
        from dhpe_fast.train import TrainingDivergedError, train

        _check_device(device)
        settings = load_config(config, change or ())
        folder = Path("runs") / Path(config).stem if output is None else output
        _check_folder(folder)  # before data are drawn for it
        try:
            weights = train(settings, folder, resume="auto" if auto_resume else resume, device=device)
        except TrainingDivergedError as error:
            raise ValueError(str(error)) from None
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started, one
        typer.echo(f"the {Path(weights).name} weights are in {weights}", err=True)


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results; RUN/evaluation by default.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="FORMAT:ROOT:SPLIT, as rhd:data/RHD_published_v2:evaluation.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Of the reader of --data, as NAME=VALUE, for instance camera=sk; repeat it for several."),
    ] = None,
    refine: Annotated[bool, typer.Option(help="Whether to measure the testing refinement (Eq. 11), too.")] = True,
    alignment: Annotated[
        str | None,
        typer.Option(
            help="root, root_scale, zb2017, centroid_scale, procrustes, or true_depth: left where they are, at the "
            "true depth of the root. root by default; of fingertips alone true_depth."
        ),
    ] = None,
    visible_only: Annotated[bool, typer.Option("--visible-only", help="Score annotated-visible joints only.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure only so many samples, spread evenly.")] = None,
    checkpoint: Annotated[str, typer.Option(help="last, or best on the validation sets.")] = "last",
    batch_size: Annotated[int, typer.Option(min=1, help="Hands at a time.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 1,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = None,
) -> None:
    """Measure trained networks: errors, PCK, masks, with and without refinement; numbers, plots and pictures."""
    with _one_line_errors():
        from dhpe_fast.config import data_source
        from dhpe_fast.evaluate import EvaluationOptions, as_text, evaluate

        _check_device(device)
        if option and data is None:
            raise ValueError("--option: is for the reader of --data, which was not given")
        _check_run(run)
        options = EvaluationOptions(
            source=None if data is None else data_source(data, _options(option or [])),
            refinement=refine,
            alignment=alignment,
            visible_only=visible_only,
            limit=limit,
            checkpoint=checkpoint,
            batch_size=batch_size,
            workers=workers,
            device=device,
        )
        folder = run / "evaluation" if output is None else output
        _make_folder(folder)
        typer.echo(as_text(evaluate(run, folder, options)))
    typer.echo(f"results in {folder}", err=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.", show_default=False)],
    name: Annotated[str, typer.Option(help="Which network: dhpe, lifter or locator.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of weights; made if missing.")],
    checkpoint: Annotated[str, typer.Option(help="last, or best on the validation sets.")] = "last",
    accuracy: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE, what was measured of these weights; repeat it for several. Without it, the run's own "
            "last scores."
        ),
    ] = None,
) -> None:
    """Write the weights of a run in half precision, and where they come from: NAME.pt and manifest.json."""
    with _one_line_errors():
        from dhpe_fast.train.export import export_run

        _check_run(run)
        _make_folder(output)
        measured = None if accuracy is None else _options(accuracy, "--accuracy")
        file = export_run(run, name, output, checkpoint=checkpoint, accuracy=measured)
    typer.echo(f"wrote {file}, {file.stat().st_size / 1e6:.1f} MB")


@app.command()
def progress(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture.")] = Path("progress.png"),
) -> None:
    """Plot test error and share of aligned instances over the epochs of runs, as in the paper's Fig. 5(f)."""
    with _one_line_errors():
        from dhpe_fast.plots import progress_plot
        from dhpe_fast.train import read_log

        progress_plot(output, {name: read_log(run, "validation") for name, run in _named(runs).items()})
    typer.echo(f"wrote {output}", err=True)


@app.command()
def data(
    format: Annotated[str, typer.Argument(help="rhd, stb, dexter_object or freihand.", show_default=False)],
    root: Annotated[Path, typer.Argument(help="The folder of the data set.", show_default=False)],
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    option: Annotated[
        list[str] | None,
        typer.Option(help="Of the reader, as NAME=VALUE, for instance camera=sk; repeat it for several."),
    ] = None,
    read_all: Annotated[bool, typer.Option("--read-all", help="Also decode every image and mask.")] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="An image file for 16 crops with their labels drawn in, to look at.")
    ] = None,
) -> None:
    """Open a data set, check its labels and files, and say what is in it."""
    with _one_line_errors():
        from dhpe_fast.data import open_dataset
        from dhpe_fast.data.overview import overview, unreadable_files

        dataset = open_dataset(format, root, split, **{"check": "all", **_options(option or [])})
        rows = {"data set": f"{dataset.name}, split {dataset.split}", **overview(dataset)}
        for name, value in rows.items():
            typer.echo(f"{name:<{max(map(len, rows))}}  {value}")
        if pictures is not None:
            _save_crops(dataset, pictures)
            typer.echo(f"wrote {pictures}")
        faults = []
        if read_all:
            with typer.progressbar(length=len(dataset), label="reading", file=sys.stderr) as bar:
                faults = unreadable_files(dataset, lambda: bar.update(1))
            typer.echo(f"{len(faults)} files cannot be used")
    for fault in faults:
        typer.secho(f"  {fault}", fg=typer.colors.RED, err=True)
    if faults:
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """Report versions, processors and kernels, and check each op against its twin; 1 if one is broken."""
    from dhpe_fast import doctor

    raise typer.Exit(doctor.main())


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from dhpe_fast import __version__

        typer.echo(f"dhpe-fast {__version__}")
        raise typer.Exit()


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.device(device or "cpu")
    except RuntimeError:
        raise ValueError(f"--device: expected cpu, cuda or cuda:NUMBER, got {device!r}") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def _check_choice(option: str, given: list[str], known: tuple[str, ...]) -> None:
    for value in given:
        if value not in known:
            raise ValueError(f"{option}: expected {', '.join(known[:-1])} or {known[-1]}, got {value!r}")


def _check_run(run: Path) -> None:
    if not (run / "config.yaml").is_file():
        raise ValueError(f"RUN: {str(run)!r} is no folder of a training run, it has no config.yaml")


def _make_folder(folder: Path, name: str = "--output") -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{name}: the folder {str(folder)!r} cannot be made ({error.strerror})") from None


def _check_folder(folder: Path) -> None:
    """Whether it can be made; it is not, if it is not there."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    _make_folder(folder)
    for part in missing:
        with suppress(OSError):  # another process of the run has put something there
            part.rmdir()


def _named(runs: list[Path]) -> dict[str, Path]:
    """Folders by their names, or where names repeat by their paths."""
    names = [run.resolve().name for run in runs]
    return {str(run) if names.count(name) > 1 else name: run for name, run in zip(names, runs, strict=True)}


def _options(pairs: list[str], name_of_option: str = "--option") -> dict[str, Any]:
    """NAME=VALUE with values as in JSON, or else as text."""
    import json

    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ValueError(f"{name_of_option}: expected NAME=VALUE, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _save_crops(dataset: Dataset, file: Path, n: int = 16) -> None:
    import numpy as np

    from dhpe_fast.data import make_crop
    from dhpe_fast.io import save_image
    from dhpe_fast.viz import contact_sheet, draw_skeleton

    chosen = dataset.subset(np.unique(np.linspace(0, len(dataset) - 1, n).astype(int)))
    crops = [make_crop(sample) for sample in chosen]
    places_px = [(crop.joints_crop[:, :2] + 1) / 2 * len(crop.image) for crop in crops]
    drawn = [draw_skeleton(crop.image, places) for crop, places in zip(crops, places_px, strict=True)]
    save_image(file, contact_sheet(drawn, [crop.name for crop in crops]))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Bad input and what is not installed end the program with one line instead of a traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        known = (error.name or "").split(".")[0] in _TRAIN_PACKAGES
        hint = f"{error.name} is not installed: pip install 'dhpe-fast[train]'" if known else str(error)
        typer.secho(f"dhpe-fast: {hint}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        # Of what torch raises, this alone is for the user to mend.
        out_of_memory = type(error).__name__ == "OutOfMemoryError"
        if isinstance(error, RuntimeError) and not out_of_memory:
            raise
        hint = "; make the batch smaller" if out_of_memory else ""
        typer.secho(f"dhpe-fast: {error}{hint}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
