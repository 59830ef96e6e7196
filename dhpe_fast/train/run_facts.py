"""What a finished run says of itself in ``run.json``: how long it took, on what, and how good it was at its end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dhpe_fast.atomic_write import write_whole

RUN_FACTS = "run.json"


def write_facts(
    run: Path,
    trained: nn.Module,
    device: torch.device,
    scores: Mapping[str, float],
    **facts: Any,
) -> None:
    """Writes ``run.json``.

    Args:
        run: folder of the run.
        trained: the network; its weights are counted.
        device: where; it is named.
        scores: the last ones, on examples that were not trained on.
        facts: what else is known, such as the `network`, `steps`, and `seconds` of wall time over all resumptions.
    """
    on_gpu = device.type == "cuda"
    facts |= {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "weights": sum(parameter.numel() for parameter in trained.parameters()),
        "scores": {name: value if math.isfinite(value) else None for name, value in scores.items()},
    }
    write_whole(run / RUN_FACTS, (json.dumps(facts, indent=2) + "\n").encode())


def read_facts(run: Path) -> dict[str, Any]:
    """What ``write_facts`` wrote.

    Raises:
        ValueError: if the run has no such file, as it was not trained to its end, or a damaged one.
    """
    file = run / RUN_FACTS
    try:
        facts = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); was the run trained to its end?") from None
    except ValueError as error:
        raise ValueError(f"{file}: is no JSON ({error})") from None
    if not isinstance(facts, dict):
        raise ValueError(f"{file}: holds {type(facts).__name__}, expected the facts of a run")
    return facts
