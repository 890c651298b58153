"""Thousands of small kernels as one launch: what a GPU does in a step, recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WARM_UP = 3  # Calls in which libraries choose their kernels and take their memory.


class Replayed:
    """A function of tensors that fills gradients, on a CUDA device, as a CUDA graph.

    Recorded in the first call; later ones must bring the same shapes and types. All that isn't among the inputs stays
    what and where it was then: parameters may change in place, numbers may not. Gradients stay in the graph's memory,
    and each call replaces them.

    Args:
        function: (tensors on the device) -> tensors. It must not wait for the device, and drops old gradients itself.
        device: A CUDA device.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], device: torch.device) -> None:
        self._function, self._device = function, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Sequence[Tensor] = ()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """What the function makes of the inputs, which may be on the CPU; pinned ones don't hold it up."""
        if self._graph is None:
            self._graph = self._recorded(inputs)
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new, non_blocking=True)
        self._graph.replay()
        return [output.clone() for output in self._outputs]

    def _recorded(self, inputs: Sequence[Tensor]) -> torch.cuda.CUDAGraph:
        self._inputs = [value.to(self._device, copy=True) for value in inputs]
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._function(*self._inputs)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Meanwhile a loader's thread may pin memory, which by default would spoil the recording.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._outputs = self._function(*self._inputs)
        return graph
