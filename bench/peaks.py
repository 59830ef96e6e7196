"""What a processor can do at most, measured: reading from its caches and from memory, copying, multiplying and adding.

Everything is done by torch's own kernels, in calls long enough (a millisecond or so) for what a call costs not to
count, and the fastest of many rounds is taken: whatever disturbs a round makes it slower.

- Reading: sums over the rows of a matrix whose rows overlap, each starting one cache line after the one before it. The
  call walks through the same memory again and again, as often as it takes, and that memory is as large as one likes:
  half of the L2 cache, a quarter of the L3 cache, or eight times as much as fits the L3 cache. Two threads take
  different rows, and so each of them walks through all of the memory. Reading from L2 is an under-estimate: the sum
  itself cannot go faster, even from L1.
- Copying: memory to memory, eight times the L3 cache; bytes read and bytes written both count.
- Arithmetic: a 3 x 3 convolution over 64 channels by oneDNN, which takes the widest vectors that the processor has, and
  a matrix product; the faster one counts. (MKL's matrix product uses half of the width on processors that are not
  Intel's.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from common import time_ms

SECONDS = 0.3
LINE = 16  # floats of a cache line
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Caches:
    """Bytes: L2 of one core, and the L3 cache that the cores share."""

    l2: int
    l3: int


@dataclass(frozen=True)
class Peaks:
    """Of so many threads together."""

    threads: int
    read_l2_gb_s: float
    read_l3_gb_s: float
    read_memory_gb_s: float
    copy_memory_gb_s: float
    fma_gflop_s: float


def caches() -> Caches:
    """As Linux reports them; 1 MiB and 32 MiB where it does not."""
    return Caches(_cache_bytes(2, 2**20), _cache_bytes(3, 2**25))


def measure_peaks(threads: int) -> Peaks:
    """About two seconds."""
    sizes = caches()
    with torch_threads(threads):
        return Peaks(
            threads,
            _read_gb_s(sizes.l2 // 2),
            _read_gb_s(sizes.l3 // 4),
            _read_gb_s(8 * sizes.l3),
            _copy_gb_s(8 * sizes.l3),
            max(_convolution_gflop_s(), _product_gflop_s()),
        )


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch uses so many threads within, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cache_bytes(level: int, default: int) -> int:
    for index in sorted(_CACHES.glob("index*")):
        if (index / "level").read_text().strip() == str(level):
            return int((index / "size").read_text().strip().removesuffix("K")) * 1024
    return default


def _fastest_s(call: Callable[[], object]) -> float:
    return min(time_ms(call, SECONDS)) / 1000


def _read_gb_s(n_bytes: int) -> float:
    n = n_bytes // 4
    rows = max(2, 2**24 // n)
    memory = torch.ones(n + LINE * rows)
    overlapping = memory.as_strided((rows, n), (LINE, 1))
    sums = torch.empty(rows)
    return 4 * n * rows / _fastest_s(lambda: torch.sum(overlapping, 1, out=sums)) / 1e9


def _copy_gb_s(n_bytes: int) -> float:
    source, target = torch.ones(n_bytes // 4), torch.empty(n_bytes // 4)
    return 2 * n_bytes / _fastest_s(lambda: target.copy_(source)) / 1e9


def _convolution_gflop_s() -> float:
    channels, side = 64, 112
    image, weight = torch.ones(1, channels, side, side), torch.ones(channels, channels, 3, 3)
    image, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (image, weight))
    with torch.no_grad():
        seconds = _fastest_s(lambda: torch.nn.functional.conv2d(image, weight, padding=1))
    inside = 3 * side - 2  # products along one side, where the kernel hangs over the border one is missing
    return 2 * (channels * inside) ** 2 / seconds / 1e9


def _product_gflop_s() -> float:
    n = 512
    a, b, c = torch.ones(n, n), torch.ones(n, n), torch.empty(n, n)
    return 2 * n**3 / _fastest_s(lambda: torch.mm(a, b, out=c)) / 1e9
