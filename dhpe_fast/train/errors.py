"""What ends a run."""


class TrainingDivergedError(RuntimeError):
    """Too many steps running had a loss or gradient that is not finite."""
