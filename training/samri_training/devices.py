"""The torch device that a person named, if it can be used."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from samri.errors import ProviderError
from samri.process import thread_limit

if TYPE_CHECKING:
    import torch

_KNOWN = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def is_torch_device(name: str) -> bool:
    """Whether a text is of the form `auto`, `cpu`, `mps`, `cuda` or `cuda:1`."""
    return _KNOWN.fullmatch(name) is not None


def torch_device(name: str, local_rank: int = 0) -> torch.device:
    """The torch device of a process; `auto` takes the best there is.

    PyTorch's threads are limited to what a container's quota leaves, which PyTorch doesn't look at.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        local_rank: This process's number on its machine: which GPU `cuda` means, where each process has its own.

    Raises:
        ProviderError: No such device, or it can't be used.
    """
    import torch

    if not is_torch_device(name):
        raise ProviderError(f"there is no torch device {name!r}: use auto, cpu, cuda, cuda:1 or mps")
    if (threads := thread_limit()) is not None and threads < torch.get_num_threads():
        torch.set_num_threads(threads)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        return torch.device(name)
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise ProviderError(f"mps can't be used: torch {torch.__version__} finds no Apple GPU; use --device cpu")
        return torch.device(name)
    _, _, number = name.partition(":")
    if number and local_rank:
        raise ProviderError(f"{name} is one GPU, and every process needs its own: use --device cuda")
    index = int(number or local_rank)
    if index >= gpus:
        raise ProviderError(
            f"cuda:{index} can't be used: torch {torch.__version__} finds {gpus} GPUs; start no more processes than "
            "that, see nvidia-smi, or install torch's CUDA or ROCm build"
        )
    return torch.device("cuda", index)
