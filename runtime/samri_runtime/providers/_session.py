"""An open ONNX graph: a session of any shapes, and one of fixed shapes whose tensors stay on its device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samri.errors import ProviderError
from samri_runtime.providers._names import DIRECTML, Provider, provider_of
from samri_runtime.providers._ort_log import one_line, ort_errors
from samri_runtime.providers._wheels import load_onnxruntime


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph: its name, its shape (a name or None where a size is free) and its ONNX type."""

    name: str
    shape: tuple[int | str | None, ...]
    type: str


class Session:
    """A graph that is ready to run. `run` may be called from several threads.

    Attributes:
        source: The ONNX file, for messages.
        provider: The provider that it runs on.
        execution_provider: ONNX Runtime's name of it.
        notes: Messages for the user on what differs from the request: fallbacks of `auto`, or an alias.
        device: Where its tensors can stay between runs: ONNX Runtime's name of the memory, and the device's number.
        inputs: By position.
        outputs: By position.
    """

    def __init__(
        self,
        source: str,
        session: Any,
        execution_provider: str,
        notes: Sequence[str] = (),
        device: tuple[str, int] = ("cpu", 0),
    ) -> None:
        self.source = source
        self.device = device
        self.execution_provider = execution_provider
        self.provider: Provider = provider_of(execution_provider)
        self.notes = tuple(notes)
        self.inputs = tuple(Tensor(value.name, tuple(value.shape), value.type) for value in session.get_inputs())
        self.outputs = tuple(Tensor(value.name, tuple(value.shape), value.type) for value in session.get_outputs())
        self._session = session
        self._failures = ort_errors(load_onnxruntime())
        # DirectML alone doesn't let one session run twice at the same time.
        self._turn: Any = threading.Lock() if execution_provider == DIRECTML else contextlib.nullcontext()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs.

        Args:
            feeds: Every input by its name, in the graph's type and shape.

        Returns:
            Every output by its name.

        Raises:
            ValueError: An input is missing or unknown, or has another type or shape than the graph's.
            ProviderError: The provider failed while computing.
        """
        names = [tensor.name for tensor in self.outputs]
        with self._guarded():
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def allocate(self, name: str) -> Any:
        """Memory on the device for an input of fixed shape: an `OrtValue` of zeros, to share through `bound`."""
        with self._guarded():
            return allocate(next(tensor.shape for tensor in self.inputs if tensor.name == name), self.device)

    def bound(self, shared: Mapping[str, Any] | None = None) -> BoundSession:
        """The same session with inputs and outputs allocated on the device; it must have static shapes.

        Args:
            shared: Inputs that other sessions read too, from `allocate`.

        Raises:
            ProviderError: The device is out of memory.
        """
        return BoundSession(self, self._session, self._guarded, shared or {})

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Takes turns where the provider needs it, and turns ONNX Runtime's exceptions into SAMRI's."""
        try:
            with self._turn:
                yield
        except self._failures as error:
            reason = one_line(str(error))
            if type(error).__name__ == "InvalidArgument":
                raise ValueError(f"{self.source}: {reason}") from error
            raise ProviderError(f"{self.provider} failed while running {self.source}: {reason}") from error

    def end_profiling(self) -> Path:
        """Finish the profile of a session that was opened with `profile`; returns the JSON file."""
        return Path(self._session.end_profiling())


class BoundSession:
    """Runs with ONNX Runtime's IO binding: an input that isn't passed again keeps its value on the device.

    No address ever changes, which CUDA graphs (`enable_cuda_graph=1`) require. Float32 only. `run` may be called from
    several threads; they take turns.

    Args:
        of: The session to bind; its shapes are static.
        session: ONNX Runtime's `InferenceSession`.
        guard: Context in which to call that: it turns exceptions into SAMRI's.
        shared: Inputs by name that other sessions are bound to as well, from `Session.allocate`.
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
            allocated = {
                tensor.name: allocate(tensor.shape, of.device) for tensor in of.inputs if tensor.name not in shared
            }
            self._inputs = {**shared, **allocated}
            self._outputs = {tensor.name: allocate(tensor.shape, of.device) for tensor in of.outputs}
            self._binding = session.io_binding()
            for name, value in self._inputs.items():
                self._binding.bind_ortvalue_input(name, value)
            for name, value in self._outputs.items():
                self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Compute all outputs.

        Args:
            feeds: Inputs by name, in the graph's shape. Those left out keep their values, which are zeros at first.

        Returns:
            Copies of all outputs, by name.

        Raises:
            ValueError: An input is unknown or has another shape than the graph's.
            ProviderError: The provider failed while computing.
        """
        with self._lock, self._guard():
            for name, array in feeds.items():
                copy_to_device(self._inputs, name, array)
            self._session.run_with_iobinding(self._binding)
            # On the CPU, numpy() returns a view, which the next run overwrites.
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


def copy_to_device(values: Mapping[str, Any], name: str, array: NDArray[np.float32]) -> None:
    """Copy an array into the `OrtValue` of that name; ONNX Runtime itself checks neither type nor shape.

    Raises:
        ValueError: There is no such name, or it has another shape.
    """
    if name not in values:
        raise ValueError(f"there is no input {name!r}, only {', '.join(values)}")
    if list(array.shape) != list(values[name].shape()):
        raise ValueError(f"{name} has the shape {tuple(values[name].shape())}, not {array.shape}")
    values[name].update_inplace(np.ascontiguousarray(array, dtype=np.float32))
