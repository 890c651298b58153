"""One ONNX graph on one provider: it runs where it was asked to, or says why not."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samri.bundle import GraphFile
from samri.errors import BundleError, ProviderError
from samri_runtime.providers._binding import BoundSession, allocate
from samri_runtime.providers._inference import make_session, ort_errors
from samri_runtime.providers._names import (
    CUDA,
    DIRECTML,
    EXECUTION_PROVIDERS,
    TENSORRT,
    Provider,
    auto_candidates,
    check_provider,
    execution_provider,
    not_offered,
    provider_of,
)
from samri_runtime.providers._options import device_memory, with_defaults
from samri_runtime.providers._ort_log import one_line
from samri_runtime.providers._plugins import plugin_device, plugin_providers
from samri_runtime.providers._probe_graph import PROBE, probe_feeds, probe_result
from samri_runtime.providers._wheels import conflict_line, installed_wheels, load_onnxruntime

_LOG = logging.getLogger("samri")
# Of the probe's largest value; half precision stays well inside.
_PROBE_TOLERANCE = 0.02
# Beyond any processor; ONNX Runtime would start as many as it is told.
_MOST_THREADS = 1024


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
        provider: What really runs, by the name a user would ask with.
        execution_provider: The same, by ONNX Runtime's name.
        notes: Plain lines about what isn't as asked: fallbacks of `auto`, one name that stands for another.
        device: Where tensors can be kept for it between runs: ONNX Runtime's name of the memory, and its number.
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
        """Memory on the session's device for an input of fixed shape: an `OrtValue` of zeros, to share by `bound`."""
        with self._guarded():
            return allocate(next(tensor.shape for tensor in self.inputs if tensor.name == name), self.device)

    def bound(self, shared: Mapping[str, Any] | None = None) -> BoundSession:
        """The same session with its inputs and outputs in place; it must have been opened with static shapes.

        Args:
            shared: From `allocate`: inputs that other sessions read too.

        Raises:
            ProviderError: The device has no room.
        """
        return BoundSession(self, self._session, self._guarded, shared or {})

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Its turn, and ONNX Runtime's exceptions as SAMRI's."""
        try:
            with self._turn:
                yield
        except self._failures as error:
            reason = one_line(str(error))
            if type(error).__name__ == "InvalidArgument":
                raise ValueError(f"{self.source}: {reason}") from error
            raise ProviderError(f"{self.provider} failed while running {self.source}: {reason}") from error

    def end_profiling(self) -> Path:
        """Close the profile of a session that was opened with `profile`; the JSON file it is in."""
        return Path(self._session.end_profiling())


def open_session(
    graph: str | Path | GraphFile,
    provider: Provider = "auto",
    *,
    provider_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    fixed_axes: Mapping[str, int] | None = None,
    profile: Path | None = None,
) -> Session:
    """Open an ONNX graph on a provider.

    Args:
        graph: The ONNX file. `Bundle.opening` gives it with its SHA-256, so that it isn't hashed again to name the
            folder of compiled engines.
        provider: A name is a promise: the session has that provider, or this raises. `auto` takes the first that works.
        provider_options: Laid over SAMRI's defaults and passed to the provider as they are; not with `auto`.
        threads: Threads that compute on the CPU; by default one for each core that this process may use.
        fixed_axes: Sizes of named axes: the graph then has static shapes, for providers that compile one for each.
        profile: Prefix of a JSON file for every node's time and provider (see `Session.end_profiling`).

    Raises:
        ProviderError: The provider can't be used, and why.
        BundleError: The file isn't a graph that the installed ONNX Runtime can load.
        MissingDependencyError: ONNX Runtime isn't installed.
    """
    file = graph if isinstance(graph, GraphFile) else GraphFile(graph)
    if not file.path.is_file():
        raise BundleError(f"there is no graph at {file.path}: copy the bundle again")
    started = time.perf_counter()
    session = _open(file, provider, provider_options or {}, _Settings(threads, dict(fixed_axes or {}), profile))
    _LOG.info("%s opened on %s in %.2f s", file.path, session.provider, time.perf_counter() - started)
    return session


def is_cpu(provider: Provider) -> bool:
    """Whether `provider` means the CPU here: by name, or because the wheel leaves `auto` no other choice.

    Raises:
        MissingDependencyError: ONNX Runtime isn't installed.
    """
    return provider == "cpu" or (provider == "auto" and _auto_candidates() == ("cpu",))


def open_probe(
    provider: Provider, *, provider_options: Mapping[str, str] | None = None, profile: Path | None = None
) -> Session:
    """Run a tiny graph on a provider, to see whether it really works; returns the session it ran in.

    Args:
        provider: As for `open_session`.
        provider_options: As for `open_session`.
        profile: As for `open_session`.

    Raises:
        ProviderError: It can't be used, failed while running, or gave wrong numbers.
        MissingDependencyError: ONNX Runtime isn't installed.
    """
    session = _open(PROBE, provider, provider_options or {}, _Settings(profile=profile))
    (result,) = session.run(probe_feeds()).values()
    expected = probe_result()
    if not np.allclose(result, expected, rtol=0, atol=_PROBE_TOLERANCE * float(np.abs(expected).max())):
        raise ProviderError(f"{provider} can't be used: it gives wrong numbers on a tiny graph; update its driver")
    return session


@dataclass(frozen=True)
class _Settings:
    threads: int | None = None
    fixed_axes: Mapping[str, int] = field(default_factory=dict)
    profile: Path | None = None


def _open(graph: GraphFile | bytes, provider: str, options: Mapping[str, str], settings: _Settings) -> Session:
    known = check_provider(provider)
    if settings.threads is not None and not 1 <= settings.threads <= _MOST_THREADS:
        raise ProviderError(f"the number of threads must be from 1 to {_MOST_THREADS}, not {settings.threads}")
    if known != "auto":
        return _open_promised(graph, known, options, settings)
    if options:
        raise ProviderError("provider options belong to one provider: name it, instead of auto")
    return _open_first(graph, settings)


def _open_first(graph: GraphFile | bytes, settings: _Settings) -> Session:
    """The best provider that works; each one that didn't leaves a note."""
    conflict = conflict_line(installed_wheels())
    *accelerators, cpu = _auto_candidates()
    failures = []
    for provider in accelerators:
        try:
            prove_once(provider)
            session = _open_promised(graph, provider, {}, settings)
            break
        except ProviderError as error:
            failures.append(str(error))
    else:
        session = _open_promised(graph, cpu, {}, settings)
    notes = [f"{failure}; running on {session.provider} instead" for failure in failures]
    session.notes = (*([conflict] if conflict else []), *notes, *session.notes)
    return session


def _auto_candidates() -> tuple[Provider, ...]:
    return auto_candidates([*load_onnxruntime().get_available_providers(), *plugin_providers(installed_wheels())])


@functools.cache
def prove_once(provider: Provider) -> None:
    """A driver that is too old, or a GPU that the wheel has no code for, shows only when something runs."""
    open_probe(provider)


def _open_promised(
    graph: GraphFile | bytes, provider: Provider, options: Mapping[str, str], settings: _Settings
) -> Session:
    onnxruntime, wheels = load_onnxruntime(), installed_wheels()
    offered = onnxruntime.get_available_providers()
    name, device = execution_provider(provider, offered), None
    if name is None:
        device = plugin_device(onnxruntime, provider, wheels, options)
        if device is None:
            raise not_offered(provider, offered, wheels)
        name = device.ep_name
    file = graph if isinstance(graph, GraphFile) else None
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    threads, fixed = settings.threads, settings.fixed_axes
    chain = [(name, with_defaults(name, file, options, threads=threads, version=version, fixed_axes=fixed))]
    if device is not None:
        chain[0][1].pop("device_type", None)  # The device is chosen already; a plug-in has no such option.
    if name == TENSORRT and CUDA in offered:
        # Nodes that TensorRT doesn't take stay on the GPU.
        chain.append((CUDA, with_defaults(CUDA, None, {}, threads=None, version=version)))
    source = graph.path if isinstance(graph, GraphFile) else graph
    session, logged = make_session(
        onnxruntime, source, provider, chain, device=device, threads=threads, fixed_axes=fixed, profile=settings.profile
    )
    notes = [f"ONNX Runtime says: {line}" for line in logged]
    if name != EXECUTION_PROVIDERS[provider][0]:
        notes.append(f"{provider} runs as {provider_of(name)}, since this ONNX Runtime has no provider of that name")
    memory = device_memory(name, options) if device is None else ("cpu", 0)
    return Session(str(source) if file else "the probe graph", session, name, notes, memory)
