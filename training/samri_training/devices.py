"""PyTorch devices by name: which are known, which can be used here, and what bf16 costs on this processor."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from samri.errors import ProviderError
from samri.process import thread_limit

if TYPE_CHECKING:
    import torch

# What Linux calls the units of x86 and of ARM that multiply bfloat16 numbers.
_BF16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}

_KNOWN = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def is_torch_device(name: str) -> bool:
    """Whether a text is of the form `auto`, `cpu`, `mps`, `cuda` or `cuda:1`."""
    return _KNOWN.fullmatch(name) is not None


def bf16_note(amp: str, device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """A line when mixed precision in bf16 makes a processor slower, since it has no units for it; None if it may."""
    if amp != "bf16" or device.type != "cpu" or has_bf16_units(cpuinfo) is not False:
        return None
    return (
        "note: this processor has no bf16 units (avx512_bf16, amx_bf16), so --amp makes training several times slower: "
        "leave it out on this machine"
    )


def has_bf16_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the processor multiplies bfloat16 numbers itself; None where the system doesn't say."""
    if sys.platform != "linux":
        return None
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = [line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return bool(_BF16_UNITS & set(flags[0])) if flags else None


def torch_device(name: str, local_rank: int = 0) -> torch.device:
    """The torch device of a process; `auto` takes a GPU where there is one.

    PyTorch's threads are limited to what a container's quota leaves, which PyTorch doesn't look at.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        local_rank: This process's number on its machine: which GPU `cuda` means, where each process has its own.

    Raises:
        ProviderError: No such device, or it can't be used.
    """
    import torch

    if not is_torch_device(name):
        raise ProviderError(f"unknown torch device {name!r}: use auto, cpu, cuda, cuda:1 or mps")
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
        raise ProviderError(f"{name} is a single GPU, and every process needs its own: use --device cuda")
    index = int(number or local_rank)
    if index >= gpus:
        raise ProviderError(
            f"cuda:{index} can't be used: torch {torch.__version__} finds {gpus} GPUs; start no more processes than "
            "that, see nvidia-smi, or install torch's CUDA or ROCm build"
        )
    return torch.device("cuda", index)
