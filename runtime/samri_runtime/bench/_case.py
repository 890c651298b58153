"""What is measured: provider, precision and threads for the graphs of a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from samri.errors import ProviderError
from samri.manifest import Manifest, Precision
from samri.process import usable_cores
from samri_runtime.providers import Provider, load_onnxruntime
from samri_runtime.providers._names import auto_candidates
from samri_runtime.providers._opening import open_probe
from samri_runtime.providers._wheels import installed_wheels, plugin_providers


@dataclass(frozen=True)
class Case:
    """A provider, a precision and a number of threads.

    Attributes:
        provider: A named one; never `auto`, whose choice would be hidden.
        precision: Precision of the graphs.
        threads: CPU threads; None for one per core.
        options: Passed to the provider.
        static_shapes: As for `Predictor`.
        name: For tables, in place of the options.
    """

    provider: Provider
    precision: Precision = "fp32"
    threads: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    static_shapes: bool | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.provider == "auto":
            raise ProviderError("auto can't be measured, since its choice differs by machine: name a provider")

    @property
    def label(self) -> str:
        """The provider, and settings other than precision and threads."""
        static = {None: "", True: " static", False: " free shapes"}[self.static_shapes]
        given = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"{self.provider}{static}{' ' + self.name if self.name else given}"

    def __str__(self) -> str:
        threads = f" {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.label} {self.precision}{threads}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "provider": self.provider,
            "precision": self.precision,
            "threads": self.threads,
            "options": dict(self.options),
            "static_shapes": self.static_shapes,
            "name": self.name,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Case:
        """The case from the values of `to_json`."""
        return cls(**values)


REFERENCE = Case("cpu")
"""The case that all others are compared with: fp32 on the CPU."""


def cases(
    providers: Sequence[Provider],
    precisions: Sequence[Precision],
    threads: Sequence[int | None],
    options: Mapping[str, str] | None = None,
    static_shapes: bool | None = None,
) -> list[Case]:
    """All combinations; options go to every provider but the CPU, which has none."""
    return [
        Case(provider, precision, count, {} if provider == "cpu" else dict(options or {}), static_shapes)
        for provider, precision, count in product(providers, precisions, threads)
    ]


def accelerator_cases(precisions: Sequence[Precision]) -> list[Case]:
    """For `--gpu`: the accelerators that work here, with default settings and with faster ones."""
    providers = usable_providers()
    if "cuda" in providers and _works("tensorrt"):  # Not among the candidates of `auto`, since it compiles for minutes.
        providers.append("tensorrt")
    return [case for provider in providers for case in _variants(provider, precisions)]


def usable_providers() -> list[Provider]:
    """The providers of the installed wheels that compute a tiny graph correctly; the CPU first."""
    wheels = installed_wheels()
    offered = [*load_onnxruntime().get_available_providers(), *plugin_providers(wheels)]
    *accelerators, cpu = auto_candidates(offered)
    return [provider for provider in (cpu, *accelerators) if _works(provider)]


def _works(provider: Provider) -> bool:
    try:
        open_probe(provider)
    except ProviderError:
        return False
    return True


def thread_counts() -> list[int | None]:
    """The thread counts that `--tune` tries: the default, half the cores and one."""
    cores = usable_cores()
    return [None, *sorted({max(1, cores // 2), 1} - {cores}, reverse=True)]


def precisions_of(manifest: Manifest) -> tuple[Precision, ...]:
    """The precisions in which a bundle holds an encoder, fp32 first."""
    return manifest.precisions("encoder")


def _variants(provider: Provider, precisions: Sequence[Precision]) -> Iterator[Case]:
    if provider == "cpu":
        return
    for precision in precisions:
        yield Case(provider, precision)
    if provider == "cuda":
        for precision in precisions:
            yield Case("cuda", precision, options={"enable_cuda_graph": "1"}, name="with CUDA graphs")
        yield Case("cuda", "fp32", options={"use_tf32": "1"}, name="with TensorFloat-32")
    if provider == "tensorrt":
        yield Case("tensorrt", "fp32", options={"trt_fp16_enable": "1"}, name="in fp16")
