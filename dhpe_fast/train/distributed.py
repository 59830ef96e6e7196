"""One process or many: what a run asks of the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_SINCE_2_13 = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_OWN_BUFFERS = {"forward_sync_buffers" if _SINCE_2_13 else "broadcast_buffers": False}
"""Statistics are shared by the layers themselves, all other buffers are constant."""


@dataclass(frozen=True)
class World:
    """The processes of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def mean(self, tensor: Tensor) -> Tensor:
        """Of all processes."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.size

    def all_true(self, value: bool) -> bool:
        """Whether `value` holds in every process."""
        if self.size == 1:
            return value
        flag = torch.tensor(float(value), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The value of the first process, in all of them."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def distributed(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes, and batch statistics taken over all of them."""
        if self.size == 1:
            return module
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            return DistributedDataParallel(module, device_ids=[self.device], **_OWN_BUFFERS)
        return DistributedDataParallel(SharedBatchNorm2d.convert(module), **_OWN_BUFFERS)


@contextmanager
def world(device: str | None) -> Iterator[World]:
    """The processes that ``torchrun`` started, or this one alone.

    Args:
        device: where to compute; None is the GPU of the process's local rank, or the CPU where there is none.

    Raises:
        ValueError: if `device` is none.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    where = check_device(device)
    if size == 1:
        yield World(0, 1, where)
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield World(rank, size, where)
    finally:
        dist.destroy_process_group()


def check_device(name: str | None) -> torch.device:
    """The device of that name; raises ValueError if there is none, see ``world``."""
    own_gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if name is None:
        name = own_gpu if torch.cuda.is_available() else "cpu"
    elif name == "cuda":
        name = own_gpu
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: {name!r} is none: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {name!r} was asked for, but torch sees no CUDA device")
    return device


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, for the CPU, which torch's own does not serve."""

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """Turns every BatchNorm2d inside `module` into one that shares its statistics, in place."""
        for child in module.modules():
            if type(child) is nn.BatchNorm2d:
                child.__class__ = cls
        return module

    def forward(self, input: Tensor) -> Tensor:  # (B, C, H, W)
        """As ``BatchNorm2d`` of the batches put together."""
        if not self.training:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _SumOverProcesses.apply(x.sum((0, 2, 3))) / count
        # In two rounds: the difference of the mean square and the squared mean would lose half of the digits.
        centred = x - mean[:, None, None]
        variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(variance.to(self.running_var) * (count / max(count - 1, 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total
