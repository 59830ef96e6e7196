"""What readers of data sets raise: the message names the file, what was found, and what was expected."""

from __future__ import annotations


class DatasetError(ValueError):
    """A file of a data set that cannot be used as it is."""


class MissingDataError(DatasetError, FileNotFoundError):
    """A folder or file that the data set should have is not there."""
