"""Write a hand model as a compressed npz whose bytes depend on the arrays alone."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from dhpe_fast.atomic_write import whole_file


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as ``np.savez_compressed`` does, but with fixed time stamps; whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(arrays[name], order="C"), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            out.writestr(entry, buffer.getvalue())
