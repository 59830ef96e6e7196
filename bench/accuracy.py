"""How accurate the package is: the paper's measures on generated hands, ablations, photographs, and where it fails.

    python bench/accuracy.py generated                                  # 2,000 test hands of the shipped networks
    python bench/accuracy.py ablations --pose2d RUN --steps-per-variant 2000
    python bench/accuracy.py photographs --folder ../shared/data/hands --output out
    python bench/accuracy.py tones                                      # the same scenes with six tones of skin
    python bench/accuracy.py failures                                   # after `generated`: its worst hands, a sheet

Figures go to bench/results/accuracy_*.json, pictures beside them. They are errors, no times: the load of the machine
does not change them, the commit does. Test hands are drawn once, into runs/bench-accuracy, from a seed of their own
(``accuracy_hands.TEST_SEED``): training and validation never see them. `--data` is the set of training hands, for the
mean skeleton and the ablations; without it that of the configuration. `--run` measures the networks of a training run
instead of those of the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def main() -> None:
    """Runs one of the measurements."""
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "generated":
        from accuracy_generated import generated as measurement
    elif arguments.what == "ablations":
        from accuracy_ablations import ablations as measurement
    elif arguments.what == "photographs":
        from accuracy_photographs import photographs as measurement
    elif arguments.what == "tones":
        from accuracy_tones import tones as measurement
    else:
        from accuracy_failures import failures as measurement
    measurement(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--run", type=Path, help="folder of a training run; the shipped networks without it")
    shared.add_argument("--config", default="dhpe", help="of the shipped networks, for their data and Eq. 11")
    shared.add_argument("--data", type=Path, help="drawn set of training hands; the configuration's without it")
    shared.add_argument("--threads", type=int, default=torch.get_num_threads())
    kinds = parser.add_subparsers(dest="what", required=True)

    def kind(name: str, text: str) -> argparse.ArgumentParser:
        added = kinds.add_parser(name, parents=[shared], help=text)
        added.add_argument("--name", default=f"accuracy_{name}", help="of the result file")
        return added

    generated = kind("generated", "the paper's measures on generated test hands")
    generated.add_argument("--hands", type=int, default=2000)
    generated.add_argument("--refined", type=int, default=500, help="how many of them Eq. 11 refines")
    generated.add_argument("--end-to-end", type=int, default=500, help="pictures without crops; 0 for none")
    ablations = kind("ablations", "networks trained without one part each")
    ablations.add_argument("--pose2d", type=Path, help="run whose 2D pose network all variants share")
    ablations.add_argument("--steps-per-variant", type=int, default=2000)
    ablations.add_argument("--variants", nargs="+", help="some of them; `full` is always among them")
    ablations.add_argument("--training-hands", type=int, help="train on the first so many, for more epochs in a budget")
    ablations.add_argument("--folder", type=Path, help="where the runs go; runs/bench-accuracy/ablations without it")
    ablations.add_argument("--hands", type=int, default=1000, help="test hands")
    ablations.add_argument("--refined", type=int, default=300, help="how many of them Eq. 11 refines")
    ablations.add_argument("--set", dest="changes", action="append", default=[], help="section.key=value, of all")
    photographs = kind("photographs", "evidence sources and fits on annotated photographs")
    photographs.add_argument("--folder", type=Path, default=Path("../shared/data/hands"))
    photographs.add_argument("--output", type=Path, help="folder for overlays; none are drawn without it")
    tones = kind("tones", "the same scenes with six tones of skin")
    tones.add_argument("--hands", type=int, default=200, help="scenes, each drawn with every tone")
    failures = kind("failures", "the worst hands of `generated`, by rule, as a sheet")
    failures.add_argument("--each", type=int, default=100, help="one hand of so many: the worst")
    return parser


if __name__ == "__main__":
    main()
