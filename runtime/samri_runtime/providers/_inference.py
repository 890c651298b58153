"""Making ONNX Runtime's `InferenceSession`, and making sure that it has the provider that was asked for.

ONNX Runtime leaves out a provider that fails to load, logs the reason, and goes on with the rest. Here that is an error
with the reason in it.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samri.errors import BundleError, ProviderError
from samri.process import thread_limit
from samri_runtime.providers._failure import failure_reason
from samri_runtime.providers._names import CPU, CUDA, TENSORRT, Provider
from samri_runtime.providers._ort_log import Record, captured_log, one_line

_LOG_ERRORS_ONLY = 3
_preloading = threading.Lock()
# ONNX Runtime's names for what is wrong with a file, not with a provider.
_GRAPH_FAULTS = {"NoSuchFile", "InvalidProtobuf", "InvalidGraph", "NoModel"}


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
    """An `InferenceSession` that has the first provider of `chain`, and the errors that were logged all the same.

    Args:
        onnxruntime: The module.
        graph: The ONNX file, or its bytes.
        provider: What the user asked for, to name in errors.
        chain: ONNX Runtime's names of the providers, the best first, each with its options; the CPU comes after them.
        device: The device of a plug-in provider (`OrtEpDevice`), which stands for the first of `chain`.
        threads: Threads on the CPU; by default one for each core that this process may use.
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
    said = preload_cuda(onnxruntime) if name in (CUDA, TENSORRT) else []
    session, error = None, None
    log: list[Record] = []
    failures: tuple[type[Exception], ...] = (*ort_errors(onnxruntime), ValueError)
    with contextlib.ExitStack() as capture:
        if name != CPU:
            log = capture.enter_context(captured_log())
        try:
            source = graph if isinstance(graph, bytes) else str(graph)
            # Without enable_fallback=0, ONNX Runtime prints to stdout and goes on without the provider.
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
        reason = failure_reason(name, [*log, *(Record("I", line) for line in said)], error)
        raise ProviderError(f"{provider} can't be used: {reason}") from error
    return session, [record.text for record in log if record.level in "EF"]


def ort_errors(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions, which share no base class of their own."""
    state = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    return (RuntimeError, *(value for value in state if isinstance(value, type) and issubclass(value, Exception)))


def preload_cuda(onnxruntime: Any) -> list[str]:
    """Load CUDA's and cuDNN's libraries from NVIDIA's wheels, where this ONNX Runtime can; what it prints meanwhile."""
    if not hasattr(onnxruntime, "preload_dlls"):
        return []
    # It prints to stdout, which belongs to results. Two threads that redirect at once would lose it for good.
    with _preloading, contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    return [one_line(line) for line in printed.getvalue().splitlines() if line.strip()]


def _settings(onnxruntime: Any, threads: int | None, profile: Path | None) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _LOG_ERRORS_ONLY
    # A host has better use for its cores than waiting in a loop, and two sessions would each wait on all of them.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The planner would allocate everything anew at the second run of each shape; DirectML doesn't allow it at all.
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
