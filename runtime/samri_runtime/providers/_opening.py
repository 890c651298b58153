"""Opening an ONNX graph on a provider: it runs there, or an error says why not.

ONNX Runtime leaves out a provider that fails to load, logs the reason, and continues with the others. Here that is an
error with the reason in it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samri.bundle import GraphFile
from samri.errors import BundleError, ProviderError
from samri.process import thread_limit
from samri_runtime.providers._names import (
    CPU,
    CUDA,
    EXECUTION_PROVIDERS,
    TENSORRT,
    Provider,
    auto_candidates,
    check_provider,
    execution_provider,
    provider_of,
)
from samri_runtime.providers._options import device_memory, with_defaults
from samri_runtime.providers._ort_log import Record, captured_log, failure_reason, one_line, ort_errors
from samri_runtime.providers._probe_graph import PROBE, probe_feeds, probe_result
from samri_runtime.providers._session import Session
from samri_runtime.providers._wheels import (
    conflict_line,
    installed_wheels,
    load_onnxruntime,
    not_offered,
    plugin_device,
    plugin_providers,
)

_LOG = logging.getLogger("samri")
# Of the probe's largest value; half precision stays well inside.
_PROBE_TOLERANCE = 0.02
# ONNX Runtime starts any number of threads, beyond what a system can bear.
_MOST_THREADS = 1024
_LOG_ERRORS_ONLY = 3
_preloading = threading.Lock()
# ONNX Runtime's exceptions for a faulty file, as opposed to a faulty provider.
_GRAPH_FAULTS = {"NoSuchFile", "InvalidProtobuf", "InvalidGraph", "NoModel"}


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
        graph: The ONNX file. `Bundle.verified_graph` returns it with its SHA-256, so that it isn't hashed again to
            name the folder of compiled engines.
        provider: A named provider is used or an error is raised; `auto` takes the fastest that works.
        provider_options: Passed to the provider unchanged, over SAMRI's defaults; not with `auto`.
        threads: CPU threads; by default one per core that this process may use.
        fixed_axes: Sizes of named axes: the graph then has static shapes, for providers that compile one for each.
        profile: Prefix of a JSON file for the time and provider of every node (see `Session.end_profiling`).

    Raises:
        ProviderError: The provider can't be used, and why.
        BundleError: The file isn't a graph that the installed ONNX Runtime can load.
        MissingDependencyError: ONNX Runtime isn't installed.

    Example:
        >>> from samri.bundle import Bundle
        >>> from samri_runtime import models
        >>> from samri_runtime.providers import open_session
        >>> bundle = Bundle.open(models.find("samri-tiny"))
        >>> session = open_session(bundle.graph_path("encoder"), "cpu")
        >>> session.provider, [tensor.name for tensor in session.outputs]
        ('cpu', ['image_embeddings'])
    """
    file = graph if isinstance(graph, GraphFile) else GraphFile(graph)
    if not file.path.is_file():
        raise BundleError(f"there is no graph at {file.path}: copy the bundle again")
    started = time.perf_counter()
    session = _open(file, provider, provider_options or {}, _Settings(threads, dict(fixed_axes or {}), profile))
    _LOG.info("%s opened on %s in %.2f s", file.path, session.provider, time.perf_counter() - started)
    return session


def is_cpu(provider: Provider) -> bool:
    """Whether `provider` means the CPU here: by name, or because `auto` has no other choice with this wheel.

    Raises:
        MissingDependencyError: ONNX Runtime isn't installed.
    """
    return provider == "cpu" or (provider == "auto" and _auto_candidates() == ("cpu",))


def open_probe(
    provider: Provider, *, provider_options: Mapping[str, str] | None = None, profile: Path | None = None
) -> Session:
    """Run a tiny graph on a provider to check that it works; returns the session it ran in.

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
        raise ProviderError(f"{provider} can't be used: it computes wrong numbers on a test graph; update its driver")
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
    """The fastest provider that works, with a note on each one before it that doesn't."""
    conflict = conflict_line(installed_wheels())
    *accelerators, cpu = _auto_candidates()
    failures = []
    for provider in accelerators:
        try:
            probe_provider(provider)
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
def probe_provider(provider: Provider) -> None:
    """Run the probe once per process: an old driver, or a GPU that the wheel has no code for, fails only then.

    Raises:
        ProviderError: It doesn't work.
    """
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
    source = graph.path if isinstance(graph, GraphFile) else graph
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    threads, fixed = settings.threads, settings.fixed_axes
    chain = [(name, with_defaults(name, file, options, threads=threads, version=version, fixed_axes=fixed))]
    if device is not None:
        chain[0][1].pop("device_type", None)  # The device is chosen already; a plug-in has no such option.
    if name == TENSORRT and CUDA in offered:
        # Nodes that TensorRT doesn't take stay on the GPU.
        chain.append((CUDA, with_defaults(CUDA, None, {}, threads=None, version=version)))
    session, logged = make_session(
        onnxruntime, source, provider, chain, device=device, threads=threads, fixed_axes=fixed, profile=settings.profile
    )
    notes = [f"ONNX Runtime says: {line}" for line in logged]
    if name != EXECUTION_PROVIDERS[provider][0]:
        notes.append(f"{provider} runs as {provider_of(name)}, since this ONNX Runtime has no provider of that name")
    memory = device_memory(name, options) if device is None else ("cpu", 0)
    return Session(str(source) if file else "the probe graph", session, name, notes, memory)


def make_session(
    onnxruntime: Any,
    graph: Path | bytes,
    provider: Provider,
    chain: Sequence[tuple[str, Mapping[str, str]]],
    *,
    device: Any = None,
    threads: int | None = None,
    fixed_axes: Mapping[str, int] | None = None,
    profile: Path | None = None,
) -> tuple[Any, list[str]]:
    """An `InferenceSession` on the first provider of `chain`, and the errors that ONNX Runtime logged nevertheless.

    Args:
        onnxruntime: The module.
        graph: The ONNX file, or its bytes.
        provider: The requested one, for error messages.
        chain: ONNX Runtime's names of the providers in order of preference, with their options; the CPU is added last.
        device: Device of a plug-in provider (`OrtEpDevice`), used in place of the first of `chain`.
        threads: CPU threads; by default one per core that this process may use.
        fixed_axes: Sizes of named axes, which are then static.
        profile: Prefix of the profile to write, if any.

    Raises:
        ProviderError: The session lacks the provider.
        BundleError: The graph can't be loaded.
    """
    settings = _settings(onnxruntime, threads, profile)
    for axis, size in (fixed_axes or {}).items():
        settings.add_free_dimension_override_by_name(axis, size)
    name = chain[0][0]
    providers: list[Any] | None = [(name, dict(options)) for name, options in [*chain, (CPU, {})]]
    if name == CPU:
        providers = [CPU]
    if device is not None:
        settings.add_provider_for_devices([device], dict(chain[0][1]))
        providers = None
    printed = preload_cuda(onnxruntime) if name in (CUDA, TENSORRT) else []
    session, error = None, None
    log: list[Record] = []
    failures: tuple[type[Exception], ...] = (*ort_errors(onnxruntime), ValueError)
    with contextlib.ExitStack() as capture:
        if name != CPU:
            log = capture.enter_context(captured_log())
        try:
            source = graph if isinstance(graph, bytes) else str(graph)
            # Without enable_fallback=0, ONNX Runtime prints to stdout and continues without the provider.
            session = onnxruntime.InferenceSession(source, settings, providers=providers, enable_fallback=0)
        except failures as caught:
            error = caught
    if error is not None and (name == CPU or _is_graph_fault(error)):
        shown = str(graph) if isinstance(graph, Path) else "the graph"
        reason = one_line(str(error)).removeprefix(f"Load model from {shown}").removeprefix(" failed:").strip()
        raise BundleError(
            f"{shown} can't be loaded by ONNX Runtime {onnxruntime.__version__} ({reason}): "
            "copy the bundle again, or upgrade ONNX Runtime"
        ) from error
    if session is None or name not in session.get_providers():
        reason = failure_reason(name, [*log, *(Record("I", line) for line in printed)], error)
        raise ProviderError(f"{provider} can't be used: {reason}") from error
    return session, [record.text for record in log if record.level in "EF"]


def preload_cuda(onnxruntime: Any) -> list[str]:
    """Load CUDA's and cuDNN's libraries from NVIDIA's wheels, where this ONNX Runtime can; returns what it prints."""
    if not hasattr(onnxruntime, "preload_dlls"):
        return []
    # It prints to stdout, which is for results. If two threads redirected it at once, it would stay redirected.
    with _preloading, contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    return [one_line(line) for line in printed.getvalue().splitlines() if line.strip()]


def _settings(onnxruntime: Any, threads: int | None, profile: Path | None) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _LOG_ERRORS_ONLY
    # Spinning threads would take the cores from the host program, and from other sessions.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The planner allocates everything anew at the second run of each shape; DirectML doesn't support it.
    settings.enable_mem_pattern = False
    if threads is None:
        threads = thread_limit()  # ONNX Runtime's own default counts the machine's cores and pins a thread to each.
    if threads is not None:
        settings.intra_op_num_threads = threads
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    return settings


def _is_graph_fault(error: Exception) -> bool:
    return type(error).__name__ in _GRAPH_FAULTS or "Load model" in str(error)
