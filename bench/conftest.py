"""Lets pytest find the modules of this folder, as python does for its scripts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]
