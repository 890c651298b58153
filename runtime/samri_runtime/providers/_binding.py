"""A graph of fixed shapes whose inputs and outputs stay in place on its device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samri_runtime.providers._wheels import load_onnxruntime

if TYPE_CHECKING:
    from samri_runtime.providers._session import Session


class BoundSession:
    """Runs with ONNX Runtime's IO binding: an input that isn't given again keeps its value where it is.

    No address ever changes, which is what CUDA graphs (`enable_cuda_graph=1`) ask for. Float32 only. `run` may be
    called from several threads; they take turns.

    Args:
        of: The session to bind; its shapes are static.
        session: ONNX Runtime's own.
        guard: Context in which to call it: turns its exceptions into SAMRI's.
        shared: Inputs that other sessions are bound to as well, by name, from `allocate`.
    """

    def __init__(
        self, of: Session, session: Any, guard: Callable[[], AbstractContextManager[None]], shared: Mapping[str, Any]
    ) -> None:
        self.provider = of.provider
        self.notes = of.notes
        self._session = session
        self._guard = guard
        self._lock = threading.Lock()
        with guard():
            own = {tensor.name: allocate(tensor.shape, of.device) for tensor in of.inputs if tensor.name not in shared}
            self._inputs = {**shared, **own}
            self._outputs = {tensor.name: allocate(tensor.shape, of.device) for tensor in of.outputs}
            self._binding = session.io_binding()
            for name, value in self._inputs.items():
                self._binding.bind_ortvalue_input(name, value)
            for name, value in self._outputs.items():
                self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Compute all outputs.

        Args:
            feeds: Inputs by name, in the graph's shape. Those left out are what they were; zeros at first.

        Returns:
            Every output by its name: copies.

        Raises:
            ValueError: An input is unknown or has another shape than the graph's.
            ProviderError: The provider failed while computing.
        """
        with self._lock, self._guard():
            for name, array in feeds.items():
                put(self._inputs, name, array)
            self._session.run_with_iobinding(self._binding)
            # On the CPU, numpy() is a view of what the next run overwrites.
            return {name: np.array(value.numpy()) for name, value in self._outputs.items()}


def allocate(shape: tuple[int | str | None, ...], device: tuple[str, int]) -> Any:
    """An `OrtValue` of zeros.

    Raises:
        ValueError: The shape has a free axis.
    """
    fixed = [size for size in shape if isinstance(size, int)]
    if len(fixed) != len(shape):
        raise ValueError(f"only a tensor of fixed shape can be bound, not {shape}")
    value = load_onnxruntime().OrtValue.ortvalue_from_shape_and_type(fixed, np.float32, *device)
    value.update_inplace(np.zeros(fixed, np.float32))
    return value


def put(values: Mapping[str, Any], name: str, array: NDArray[np.float32]) -> None:
    """Copy an array into the `OrtValue` of that name; ONNX Runtime itself checks neither type nor shape.

    Raises:
        ValueError: There is none, or it has another shape.
    """
    if name not in values:
        raise ValueError(f"there is no input {name!r}, only {', '.join(values)}")
    if list(array.shape) != list(values[name].shape()):
        raise ValueError(f"{name} has the shape {tuple(values[name].shape())}, not {array.shape}")
    values[name].update_inplace(np.ascontiguousarray(array, dtype=np.float32))
