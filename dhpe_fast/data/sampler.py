"""Which items make which batch: a shuffle of each epoch that any number of processes share and can resume."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one process; the batches of all ranks together are those of one process.

    The order of an epoch depends on (seed, epoch) only. Global batch k is its k-th piece of `batch_size`, and rank r
    gets the r-th of `world_size` equal slices of it. An iteration yields what is left of one epoch; it takes epoch and
    first batch when it starts, and stores nothing, so that a run resumes with ``set_epoch(epoch, batches_done)``.

    >>> sampler = EpochSampler(len(crops), seed=0, batch_size=64)
    >>> loader = make_loader(crops, sampler, workers=8)
    >>> for epoch in range(first_epoch, n_epochs):
    ...     sampler.set_epoch(epoch, first_batch)
    ...     for batch in loader:
    ...         ...
    ...     first_batch = 0
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 64,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        """States the epoch 0 from its beginning.

        Args:
            length: number of items.
            seed: of the shuffle, >= 0.
            rank: of this process, 0 <= rank < world_size.
            world_size: number of processes.
            batch_size: of the global batch, a multiple of `world_size`.
            shuffle: False keeps the items in order, as for evaluation.
            drop_last: leave the last, smaller batch out. Otherwise its slices are smaller, and some ranks may get none.

        Raises:
            ValueError: if an argument is not as above, or there is not one whole batch.
        """
        for name, value, least in (("length", length, 0), ("seed", seed, 0), ("batch_size", batch_size, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")
        if not (isinstance(rank, int) and isinstance(world_size, int) and 0 <= rank < world_size):
            raise ValueError(
                f"rank, world_size: expected whole numbers 0 <= rank < world_size, got {rank}, {world_size}"
            )
        if batch_size % world_size:
            raise ValueError(f"batch_size: expected a multiple of world_size {world_size}, got {batch_size}")
        if drop_last and length < batch_size:
            raise ValueError(f"batch_size: {batch_size} is more than the {length} items there are, with drop_last=True")
        self.length, self.seed, self.rank, self.world_size = length, seed, rank, world_size
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.epoch, self.first_batch = 0, 0

    @property
    def batches_per_epoch(self) -> int:
        """Number of global batches in a whole epoch."""
        whole, rest = divmod(self.length, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """What the next iteration yields: the batches of `epoch` from `first_batch` on.

        Raises:
            ValueError: if a number is negative, or there are fewer batches in an epoch.
        """
        if not (isinstance(epoch, int) and epoch >= 0):
            raise ValueError(f"epoch: expected a whole number >= 0, got {epoch!r}")
        if not (isinstance(first_batch, int) and 0 <= first_batch <= self.batches_per_epoch):
            raise ValueError(f"first_batch: expected 0 to {self.batches_per_epoch}, got {first_batch!r}")
        self.epoch, self.first_batch = epoch, first_batch

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the items (length,) in the order of that epoch."""
        if not self.shuffle:
            return np.arange(self.length)
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._batches(self.epoch, self.first_batch)

    def __len__(self) -> int:
        return sum(1 for start in self._starts(self.first_batch) if start < self.length)

    def _batches(self, epoch: int, first_batch: int) -> Iterator[list[tuple[int, int]]]:
        order, share = self.order(epoch), self.batch_size // self.world_size
        for start in self._starts(first_batch):
            indices = order[start : start + share].tolist()
            if indices:
                yield [(epoch, index) for index in indices]

    def _starts(self, first_batch: int) -> range:
        """Where this rank's slices start."""
        offset = self.rank * (self.batch_size // self.world_size)
        return range(
            first_batch * self.batch_size + offset, self.batches_per_epoch * self.batch_size + offset, self.batch_size
        )
