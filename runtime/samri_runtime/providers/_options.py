"""Options of the providers: SAMRI's defaults, and those that users pass as key=value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from samri.bundle import GraphFile
from samri.errors import ProviderError
from samri_runtime.machine import user_folder
from samri_runtime.providers._names import COREML, CPU, CUDA, DIRECTML, MIGRAPHX, OPENVINO, ROCM, TENSORRT

# Convolutions are a small part of SAM, so an exhaustive search at each new shape isn't worth it. The arena grows by the
# requested size, not by doubling. TensorFloat-32 drops 13 of 23 mantissa bits, so masks would differ from those of the
# verification at export; `use_tf32=1` trades that for speed.
_CUDA = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
_MIGRAPHX_CACHE_SINCE = (1, 23)
_OPENVINO_DEVICES = ("CPU", "GPU", "NPU", "AUTO", "HETERO", "MULTI", "BATCH")


def parse_provider_options(pairs: Iterable[str]) -> dict[str, str]:
    """Options given as `key=value`; the value may hold further `=`.

    Raises:
        ProviderError: A pair without `=` or key, or a key given twice.
    """
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ProviderError(f"provider option {pair!r} is not of the form key=value")
        if key in options:
            raise ProviderError(f"provider option {key!r} is given twice")
        options[key] = value.strip()
    return options


def with_defaults(
    execution_provider: str,
    graph: GraphFile | None,
    user_options: Mapping[str, str],
    *,
    threads: int | None,
    version: tuple[int, ...],
    fixed_axes: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """The options to pass to a provider: SAMRI's defaults, overridden by the user's.

    Args:
        execution_provider: ONNX Runtime's name.
        graph: The graph, whose compiled engines are kept on disk; None keeps nothing.
        user_options: The user's options.
        threads: CPU threads, for providers that have a thread pool of their own there.
        version: ONNX Runtime's version.
        fixed_axes: Sizes of axes that are static in this session: its engines are kept apart.

    Raises:
        ProviderError: An option that the provider is known to misunderstand.
    """
    user_options = {key: str(value) for key, value in user_options.items()}
    if execution_provider == CPU and user_options:
        raise ProviderError(
            f"the cpu provider has no options: leave out {', '.join(user_options)} (--threads sets threads)"
        )
    if execution_provider == OPENVINO:
        return _openvino(user_options, threads, lambda: engine_folder(graph, fixed_axes))
    return {**_defaults(execution_provider, version, lambda: engine_folder(graph, fixed_axes)), **user_options}


def device_memory(execution_provider: str, user_options: Mapping[str, str]) -> tuple[str, int]:
    """Where a provider's tensors can be kept between runs: ONNX Runtime's name of the memory and the device's number.

    It is `cpu` for providers that take their inputs from the host, or whose memory Python can't allocate.
    """
    name = {CUDA: "cuda", TENSORRT: "cuda", DIRECTML: "dml"}.get(execution_provider, "cpu")
    number = user_options.get("device_id", "0")
    return name, int(number) if name != "cpu" and number.isdecimal() else 0


def _defaults(
    execution_provider: str, version: tuple[int, ...], make_folder: Callable[[], str | None]
) -> dict[str, str]:
    if execution_provider == CUDA:
        return dict(_CUDA)
    if execution_provider == ROCM:
        return {"arena_extend_strategy": "kSameAsRequested"}
    folder = make_folder() if execution_provider in (TENSORRT, MIGRAPHX, COREML) else None
    if folder is None:
        return {"ModelFormat": "MLProgram"} if execution_provider == COREML else {}
    if execution_provider == TENSORRT:
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    if execution_provider == MIGRAPHX:
        # Older releases refuse unknown options.
        return {"migraphx_model_cache_dir": folder} if version >= _MIGRAPHX_CACHE_SINCE else {}
    return {"ModelFormat": "MLProgram", "ModelCacheDirectory": folder}


def _openvino(
    user_options: Mapping[str, str], threads: int | None, make_folder: Callable[[], str | None]
) -> dict[str, str]:
    """OpenVINO takes its properties by device, as JSON in `load_config`; the user's override the defaults.

    On the CPU a cache of compiled graphs saves no time and takes as much disk as the model, so it is off by default.
    """
    device = user_options.get("device_type", "CPU")
    config: dict[str, dict[str, Any]] = {}
    # Without a hint, OpenVINO computes in bf16 or f16 wherever the hardware can. `precision` is the same hint.
    if device == "CPU" or device.startswith(("GPU", "NPU")):
        properties: dict[str, Any] = config.setdefault(device.partition(".")[0], {})
        if "precision" not in user_options and not device.startswith("NPU"):
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        if device == "CPU" and threads is not None and "num_of_threads" not in user_options:
            properties["INFERENCE_NUM_THREADS"] = str(threads)
        folder = make_folder() if device != "CPU" and "cache_dir" not in user_options else None
        if folder is not None:
            properties["CACHE_DIR"] = folder
    for name, device_options in _load_config(user_options.get("load_config")).items():
        config[name] = {**config.get(name, {}), **device_options}
    config = {name: properties for name, properties in config.items() if properties}
    options = {"device_type": device, **user_options}
    if config:
        options["load_config"] = json.dumps(config)
    return options


def _load_config(text: str | None) -> dict[str, dict[str, Any]]:
    """OpenVINO's `load_config`, which is JSON text; given a file name, ONNX Runtime would fall back silently."""
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ProviderError(
            f"OpenVINO's load_config must be JSON text, an object for each device, not {text!r}"
        ) from error
    if not isinstance(config, dict) or not all(isinstance(properties, dict) for properties in config.values()):
        raise ProviderError(f"OpenVINO's load_config must be JSON text, an object for each device, not {text!r}")
    unknown = [device for device in config if device.partition(".")[0] not in _OPENVINO_DEVICES]
    if unknown:  # OpenVINO would ignore them.
        raise ProviderError(f"OpenVINO's load_config names {unknown[0]!r}: choose among {', '.join(_OPENVINO_DEVICES)}")
    return config


def engine_folder(graph: GraphFile | None, fixed_axes: Mapping[str, int] | None = None) -> str | None:
    """A folder in the user's cache for what a provider compiles from `graph`, or None where none can be created.

    Each graph has its own, named by the SHA-256 of the graph and its weights: TensorRT names engines by file and node
    names, so two bundles that differ in weights alone would otherwise share one, and return each other's masks. For the
    same reason, sessions with different fixed axes have separate folders.

    Raises:
        BundleError: The files of the graph were changed since the export.
    """
    if graph is None:
        return None
    try:
        axes = json.dumps(sorted(fixed_axes.items())) if fixed_axes else ""
        digest = hashlib.sha256(f"{graph.sha256()}{axes}".encode())
        folder = user_folder("cache") / "engines" / digest.hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # The home folder is unknown or read-only: compile each time.
        return None
    return str(folder)
