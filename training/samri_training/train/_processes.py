"""Processes of a run, one or torchrun's many: sums over all of them, and stopping together."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, distributed

from samri.errors import ProviderError, SamriError
from samri_training.devices import torch_device

_T = TypeVar("_T")


class StoppedWithOthersError(SamriError, RuntimeError):
    """Another process of the run had to stop; its own line says why."""


class Processes:
    """This process's place among those of the run, and what they do together."""

    def __init__(self, device: torch.device, rank: int = 0, count: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.count = count

    @property
    def first(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all processes."""
        if self.count > 1:
            distributed.all_reduce(tensor)

    def agree(self, action: Callable[[], _T]) -> _T:
        """Do `action` in every process; when it fails in one, all stop.

        Raises:
            SamriError: What `action` raised, in the first process where it did.
            StoppedWithOthersError: In all other processes.
        """
        failure: SamriError | None = None
        try:
            result = action()
        except SamriError as error:
            failure = error
        failed = torch.zeros(self.count, device=self.device)
        failed[self.rank] = failure is not None
        self.sum(failed)
        if failure is not None and not failed[: self.rank].any():
            raise failure
        if failed.any():
            raise StoppedWithOthersError("another process of this run stopped; its own line says why")
        return result


@contextlib.contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started (gloo on CPU; NCCL, or RCCL in its place, on GPU), or be the only one.

    Raises:
        ProviderError: The device can't be used.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = torch_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if count == 1:
        yield Processes(place)
        return
    if place.type == "mps":
        raise ProviderError("several processes can't share an mps device: start one, without torchrun")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=datetime.timedelta(minutes=30))
    try:
        yield Processes(place, rank, count)
    finally:
        distributed.destroy_process_group()
