"""From data sets to batches: crops made by worker processes, the same whatever their number.

>>> crops = HandCrops(open_dataset("rhd", root, "train"), augmentation=CropAugmentation.standard(), seed=0)
>>> loader = make_loader(crops, EpochSampler(len(crops), batch_size=64), workers=8)
>>> for batch in loader:
...     batch = apply_colour(batch.to("cuda"))
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from dhpe_fast.conventions import CROP_SIZE_PX
from dhpe_fast.data.augmentation import CropAugmentation, Look
from dhpe_fast.data.batch import Appearance, HandBatch
from dhpe_fast.data.crop import CropItem, joints_in_crop, make_crop
from dhpe_fast.data.errors import DatasetError
from dhpe_fast.data.joint0 import JOINT0, WRIST_OF_PALM, Joint0
from dhpe_fast.data.sample import Dataset, Sample


class HandCrops(TorchDataset[CropItem]):
    """The crops of one or more data sets, one after the other.

    The item for (epoch, index) depends on `seed`, epoch and index only: not on the process, nor on what was read
    before.
    """

    def __init__(
        self,
        datasets: Dataset | Sequence[Dataset],
        size: int = CROP_SIZE_PX,
        augmentation: CropAugmentation | None = None,
        seed: int = 0,
        joint0: Joint0 = "palm",
        *,
        wrist_rule: str = "ring",
    ) -> None:
        """Reads nothing yet.

        Args:
            datasets: where the samples are.
            size: side of the crops, pixels.
            augmentation: ranges of random variation; None is the paper's crop as it is.
            seed: of the random numbers, >= 0.
            joint0: what joint 0 of the labels is to be.
            wrist_rule: how to get the wrist of a palm, a key of ``joint0.WRIST_OF_PALM``.

        Raises:
            ValueError: if there is no sample, or an argument is not as above.
        """
        self.datasets = (datasets,) if isinstance(datasets, Dataset) else tuple(datasets)
        self._ends = list(accumulate(len(dataset) for dataset in self.datasets))
        if not self._ends or self._ends[-1] == 0:
            raise ValueError("datasets: expected at least one sample, got none")
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed: expected a whole number >= 0, got {seed!r}")
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size: expected a whole number of pixels >= 1, got {size!r}")
        if joint0 not in JOINT0 or wrist_rule not in WRIST_OF_PALM:
            raise ValueError(
                f"joint0, wrist_rule: expected one of {', '.join(JOINT0)} and one of {', '.join(WRIST_OF_PALM)}, got "
                f"{joint0!r} and {wrist_rule!r}"
            )
        self.size, self.augmentation, self.seed = size, augmentation, seed
        self.joint0, self.wrist_rule = joint0, wrist_rule

    def __len__(self) -> int:
        return self._ends[-1]

    def sample(self, index: int) -> Sample:
        """The sample of item `index`."""
        dataset, own_index = self._place(index)
        return dataset[own_index]

    def joints_crop(self, index: int) -> np.ndarray:
        """Labels (21, 3) of item `index` in the crop frame, not augmented, NaN where not annotated; no file is read."""
        return joints_in_crop(self.sample(index), self.joint0, wrist_rule=self.wrist_rule)

    def __getitem__(self, key: int | tuple[int, int]) -> CropItem:
        """The crop for (epoch, index); a lone index is of epoch 0.

        Raises:
            DatasetError: if the sample cannot be used; names it, also in a worker process.
            IndexError: if there is no such item.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        dataset, own_index = self._place(index)
        rng = None if self.augmentation is None else np.random.default_rng((self.seed, epoch, index))
        augmentation = CropAugmentation() if self.augmentation is None else self.augmentation
        try:
            item = make_crop(dataset[own_index], self.size, rng, augmentation, self.joint0, wrist_rule=self.wrist_rule)
        except DatasetError:
            raise
        except Exception as error:
            name = dataset.labels.names[own_index]
            raise DatasetError(f"sample {name} of {dataset!r}: {type(error).__name__}: {error}") from error
        return replace(item, index=index)

    def _place(self, index: int) -> tuple[Dataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} crops")
        number = bisect_right(self._ends, index)
        return self.datasets[number], index - (self._ends[number - 1] if number else 0)


def collate(items: Sequence[CropItem]) -> HandBatch:
    """The batch of these items; images and masks are uint8, images in channels-last memory.

    Raises:
        ValueError: if items differ in what joint 0 is.
    """
    joint0 = {item.joint0 for item in items}
    if len(joint0) != 1:
        raise ValueError(f"items: expected at least one, with one meaning of joint 0, got {len(items)} with {joint0}")
    size = len(items[0].image)
    no_mask = np.zeros((size, size), np.uint8)
    has_verts = all(item.verts_m is not None for item in items)
    return HandBatch(
        images=torch.from_numpy(np.stack([item.image for item in items])).permute(0, 3, 1, 2),
        masks=torch.from_numpy(np.stack([no_mask if item.mask is None else item.mask for item in items])),
        has_mask=torch.tensor([item.mask is not None for item in items]),
        joints_crop=_floats([np.where(item.valid[:, None], item.joints_crop, 0) for item in items]),
        valid=torch.from_numpy(np.stack([item.valid for item in items])),
        visible=torch.from_numpy(np.stack([item.visible for item in items])),
        index=torch.tensor([item.index for item in items]),
        joints_m=_floats([np.where(item.valid[:, None], item.joints_m, 0) for item in items]),
        camera=_floats([item.camera for item in items]),
        center_px=_floats([item.center_px for item in items]),
        size_px=_floats([item.size_px for item in items]),
        angle=_floats([item.angle for item in items]),
        root_depth_m=_floats([item.root_depth_m for item in items]),
        mirrored=torch.tensor([item.mirrored for item in items]),
        names=tuple(item.name for item in items),
        joint0=items[0].joint0,
        appearance=_appearance([item.look for item in items]),
        verts_m=_floats([item.verts_m for item in items]) if has_verts else None,
    )


def make_loader(
    crops: HandCrops,
    sampler: Sampler,
    workers: int = 0,
    *,
    pin_memory: bool | None = None,
    prefetch: int = 4,
) -> DataLoader:
    """Batches of crops in the order of `sampler`, made by so many worker processes that live as long as the loader.

    Args:
        crops: the items.
        sampler: yields lists of keys, as ``EpochSampler`` does.
        workers: number of processes; 0 makes the batches in this one.
        pin_memory: page-locked memory, for fast copies to a GPU; None is where CUDA is there.
        prefetch: batches that each worker keeps ready.
    """
    return DataLoader(
        crops,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # leaves the global one alone, from which torch would draw a seed for workers
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # processes are the parallelism here; torch does the same for itself


def _floats(rows: Sequence) -> Tensor:
    return torch.from_numpy(np.asarray(rows, dtype=np.float32))


def _appearance(looks: Sequence[Look | None]) -> Appearance | None:
    """What was drawn, as tensors; all items have the same ranges, so that what one leaves out none has."""
    first = looks[0]
    if first is None:
        return None
    names = ("gain", "contrast", "saturation", "hue", "blur_px", "noise", "occluders")
    columns = {
        name: _floats([getattr(look, name) for look in looks]) for name in names if getattr(first, name) is not None
    }
    seeds = torch.tensor([look.noise_seed for look in looks])
    return Appearance(**{"noise": None, **columns}, blur_radius=first.blur_radius, noise_seed=seeds)
