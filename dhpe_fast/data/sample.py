"""One annotated hand of a data set, and a data set as a sequence of them; images are read when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import cv2
import numpy as np

from dhpe_fast.conventions import N_JOINTS_STD, N_VERTS
from dhpe_fast.data.errors import DatasetError, MissingDataError
from dhpe_fast.data.joint0 import JOINT0, Joint0
from dhpe_fast.hand import CropBox, Pinhole

Side = Literal["right", "left"]
ANY_MASK_ID = (1, 255)
_FILE_END = {
    b"\x89PNG": (b"\x00\x00\x00\x00IEND\xae\x42\x60\x82", None),
    b"\xff\xd8\xff": (b"\xff\xd9", 4096),
}
"""First bytes of a format -> the bytes that end it, and in how many last bytes they must be, as some software writes
more after them; None is anywhere. A JPEG may have another whole one in its head, as a thumbnail."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One hand in one image: labels as arrays, pictures as files.

    Camera frame: OpenCV, metres. Pixels: centres at half numbers, whatever the data set's files count. Joints
    are in STD order. NaN in `joints_m` and `joints2d_px` marks what is not annotated.
    """

    name: str
    """Unique in its data set, e.g. 'training/00012'; error messages carry it."""
    image_file: Path
    side: Side
    joints_m: np.ndarray
    """(21, 3) float64."""
    joints2d_px: np.ndarray
    """(21, 2) float64, image."""
    visible: np.ndarray
    """(21,) bool; all True where the data set does not say."""
    camera: Pinhole
    joint0: Joint0
    """What joint 0 of the labels is."""
    mask_file: Path | None = None
    mask_ids: tuple[int, int] = ANY_MASK_ID
    """Lowest and highest grey value, both inclusive, of `mask_file` that are this hand."""
    verts_m: np.ndarray | None = None
    """(778, 3) MANO mesh."""
    crop: CropBox | None = None
    """The square to crop, where the joints cannot give it."""
    image_size: tuple[int, int] | None = None
    """(height, width) that the files must have, if the data set states it."""

    def __post_init__(self) -> None:
        shapes = {"joints_m": (N_JOINTS_STD, 3), "joints2d_px": (N_JOINTS_STD, 2), "visible": (N_JOINTS_STD,)}
        if self.verts_m is not None:
            shapes["verts_m"] = (N_VERTS, 3)
        for field, shape in shapes.items():
            if np.shape(getattr(self, field)) != shape:
                raise ValueError(
                    f"Sample.{field} of {self.name}: expected {shape}, got {np.shape(getattr(self, field))}"
                )
        if self.side not in ("right", "left"):
            raise ValueError(f"Sample.side of {self.name}: expected 'right' or 'left', got {self.side!r}")
        if self.joint0 not in JOINT0:
            raise ValueError(f"Sample.joint0 of {self.name}: expected 'palm' or 'wrist', got {self.joint0!r}")

    @property
    def annotated(self) -> np.ndarray:
        """(21,) bool: the joints whose place in space is known."""
        return np.isfinite(self.joints_m).all(axis=1)

    def read_image(self) -> np.ndarray:
        """The image, uint8 RGB (H, W, 3).

        Raises:
            MissingDataError: if there is no such file.
            DatasetError: if it is no whole image, or has another size than `image_size`.
        """
        return cv2.cvtColor(self._decode(self.image_file, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def read_mask(self) -> np.ndarray | None:
        """The pixels of this hand, bool (H, W); None if the data set has no masks.

        Raises:
            MissingDataError, DatasetError: as ``read_image``.
        """
        if self.mask_file is None:
            return None
        grey = self._decode(self.mask_file, cv2.IMREAD_GRAYSCALE)
        low, high = self.mask_ids
        return (grey >= low) & (grey <= high)

    def _decode(self, file: Path, mode: int) -> np.ndarray:
        image = decode_file(file, mode, self.name)
        if self.image_size is not None and image.shape[:2] != self.image_size:
            (height, width), (rows, columns) = self.image_size, image.shape[:2]
            raise DatasetError(
                f"{file}: is {columns} x {rows} pixels (width x height), expected {width} x {height}; the labels of "
                f"sample {self.name} are for that size"
            )
        return image


def decode_file(file: Path, mode: int, name: str | None = None) -> np.ndarray:
    """The picture as OpenCV decodes it, its EXIF orientation left alone, as labels are for the pixels as stored.

    Args:
        file: of a format of OpenCV.
        mode: ``cv2.IMREAD_COLOR`` or another flag.
        name: of the sample that it belongs to, for messages.

    Raises:
        MissingDataError: if there is no such file.
        DatasetError: if it is not a whole image.
    """
    of = "" if name is None else f"; it belongs to sample {name}"
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"{file}: no such file{of}") from None
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}{of}") from error
    # OpenCV fills in what a cut-off file lacks; so its end is looked for here.
    end, within = next((rule for start, rule in _FILE_END.items() if data.startswith(start)), (b"", None))
    whole = data and end in (data if within is None else data[-within:])
    image = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION) if whole else None
    if image is None:
        fault = f"is empty or cut off after {len(data)} bytes" if not whole else "is no image that OpenCV reads"
        raise DatasetError(f"{file}: {fault}{of}")
    return image


@dataclass(frozen=True, eq=False)
class Labels:
    """The columns from which a data set makes its samples; N rows each.

    Text is kept in arrays, too: worker processes share their memory, while each look at a Python object of a list
    changes its reference count, and thereby copies it.
    """

    names: Sequence[str] | np.ndarray
    image_files: Sequence[str | Path] | np.ndarray
    sides: Sequence[Side] | np.ndarray
    joints_m: np.ndarray
    """(N, 21, 3)"""
    joints2d_px: np.ndarray
    """(N, 21, 2)"""
    visible: np.ndarray
    """(N, 21) bool"""
    cameras: np.ndarray
    """(N, 4): fx, fy, cx, cy; pixel centres at half numbers."""
    joint0: Joint0
    mask_files: Sequence[str | Path] | np.ndarray | None = None
    mask_ids: np.ndarray | None = None
    """(N, 2) lowest and highest grey value of the hand."""
    verts_m: np.ndarray | None = None
    """(N, 778, 3)"""
    crops: Sequence[CropBox] | None = None

    def __post_init__(self) -> None:
        for name in ("names", "image_files", "sides", "mask_files"):
            column = getattr(self, name)
            if column is not None and not isinstance(column, np.ndarray):
                object.__setattr__(self, name, np.array([str(text) for text in column], dtype=np.str_))
        n = len(self.names)
        lengths = {name: len(column) for name, column in vars(self).items() if column is not None and name != "joint0"}
        if any(length != n for length in lengths.values()):
            raise ValueError(f"Labels: columns of different lengths: {lengths}")

    def take(self, indices: Sequence[int]) -> Labels:
        """The rows at these indices."""
        indices = np.asarray(indices, dtype=np.int64)
        chosen: dict[str, Any] = {
            name: column[indices] for name, column in vars(self).items() if isinstance(column, np.ndarray)
        }
        if self.crops is not None:
            chosen["crops"] = [self.crops[i] for i in indices]
        return replace(self, **chosen)


@dataclass(frozen=True, eq=False)
class Dataset(Sequence[Sample]):
    """The samples of one split of one data set; files are touched only by the samples' read functions."""

    name: str
    """'rhd', 'stb', 'dexter_object', 'freihand', or 'synthetic' for drawn hands, which have the format of 'rhd'."""
    split: str
    """'train' or 'test'."""
    labels: Labels
    image_size: tuple[int, int] | None = None
    """(height, width) of every image, if the data set states it."""

    def __len__(self) -> int:
        return len(self.labels.names)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Sample | Dataset:
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"index {index} of {n} samples of {self.name}, split {self.split}")
        row = self.labels
        return Sample(
            name=str(row.names[index]),
            image_file=Path(row.image_files[index]),
            side=str(row.sides[index]),
            joints_m=row.joints_m[index].astype(np.float64),
            joints2d_px=row.joints2d_px[index].astype(np.float64),
            visible=row.visible[index].copy(),
            camera=Pinhole(*row.cameras[index].tolist()),
            joint0=row.joint0,
            mask_file=None if row.mask_files is None else Path(row.mask_files[index]),
            mask_ids=ANY_MASK_ID if row.mask_ids is None else tuple(row.mask_ids[index].tolist()),
            verts_m=None if row.verts_m is None else row.verts_m[index].astype(np.float64),
            crop=None if row.crops is None else row.crops[index],
            image_size=self.image_size,
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {self.split!r}, {len(self)} samples)"

    def subset(self, indices: Iterable[int]) -> Dataset:
        """The samples at these indices, in this order."""
        return replace(self, labels=self.labels.take(list(indices)))
