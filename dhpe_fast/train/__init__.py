"""Training, resumable at any step: Eq. 7 on mini-batches of crops, on one process or many; others on a stream."""

from dhpe_fast.train.checkpoint import BEST, LAST, CheckpointError
from dhpe_fast.train.log import read_log
from dhpe_fast.train.loop import build_model, load_model, open_crops
from dhpe_fast.train.networks import train
from dhpe_fast.train.step_guard import TrainingDivergedError
from dhpe_fast.train.validation import joints_in_metres

__all__ = [
    "BEST",
    "LAST",
    "CheckpointError",
    "TrainingDivergedError",
    "build_model",
    "joints_in_metres",
    "load_model",
    "open_crops",
    "read_log",
    "train",
]
