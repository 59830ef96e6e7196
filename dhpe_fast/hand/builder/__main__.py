"""Command line: ``python -m dhpe_fast.hand.builder --output PATH``."""

from __future__ import annotations

import argparse
from pathlib import Path

from dhpe_fast.hand.builder.build import build_hand
from dhpe_fast.hand.builder.export import write_npz


def main() -> None:
    """Build the default hand and write it."""
    parser = argparse.ArgumentParser(prog="python -m dhpe_fast.hand.builder", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="npz file to write")
    arguments = parser.parse_args()
    write_npz(arguments.output, build_hand())
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
