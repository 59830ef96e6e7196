"""What a run leaves behind: one JSON line a step, curves and pictures for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from dhpe_fast.atomic_write import write_whole


class RunLog:
    """Writes ``metrics.jsonl`` and ``tensorboard/`` of a run's folder, from `step` and `epoch` on.

    Without epochs (None), measurements count by their step.

    JSON knows no number that is not finite: null stands for it, and is read as NaN.

    A resumed run goes on after its checkpoint: what an interrupted one wrote later is dropped.
    """

    def __init__(self, run: Path, step: int, epoch: int | None = None) -> None:
        self._file = run / "metrics.jsonl"
        done = {"train": lambda line: line["step"] <= step, "validation": lambda line: line["epoch"] < epoch}
        if epoch is None:
            done["validation"] = done["train"]
        kept = [line for line in _lines(self._file) if done[line["kind"]](line)]
        write_whole(self._file, "".join(map(_encoded, kept)).encode())
        self._stream = self._file.open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def scalars(self, kind: str, step: int, values: Mapping[str, float], **facts: Any) -> None:
        """Writes the numbers of a step; `kind` is train or validation."""
        line = {"kind": kind, "step": step} | facts | {key: float(value) for key, value in values.items()}
        self._stream.write(_encoded(line))
        self._stream.flush()
        for key, value in values.items():
            self._board.add_scalar(f"{kind}/{key}", value, step)

    def picture(
        self,
        kind: str,
        step: int,
        image: np.ndarray,  # (H, W, 3) uint8
    ) -> None:
        """Shows a picture."""
        self._board.add_image(f"{kind}/hands", image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is pending."""
        self._stream.close()
        self._board.close()


def read_log(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind that a run has written so far."""
    return [line for line in _lines(run / "metrics.jsonl") if line["kind"] == kind]


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    lines = []
    for text in file.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # the line at which a process was killed
            continue
        lines.append({key: math.nan if value is None else value for key, value in line.items()})
    return lines


def _encoded(line: Mapping[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
