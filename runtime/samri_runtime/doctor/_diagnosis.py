"""The findings of `samri-doctor`: what is installed, which providers work, and where the graphs of a bundle run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samri.errors import MissingDependencyError, ProviderError
from samri.manifest import Precision
from samri_runtime.doctor._extras import Extra, as_json, installed_extras
from samri_runtime.doctor._trial import (
    Placement,
    Trial,
    misplaced_graphs,
    misplaced_nodes,
    trial_graphs,
    try_graph,
    try_probe,
)
from samri_runtime.machine import machine
from samri_runtime.providers._names import CUDA, PROVIDERS, Provider, auto_candidates, execution_provider
from samri_runtime.providers._opening import preload_cuda
from samri_runtime.providers._wheels import (
    PLUGINS,
    Wheel,
    conflict_line,
    installed_wheels,
    load_onnxruntime,
    plugin_providers,
)


@dataclass(frozen=True)
class ProviderState:
    """One provider: whether an installed wheel has it, whether it works, and the reason if not."""

    provider: Provider
    offered: bool
    usable: bool
    reason: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All findings.

    Attributes:
        machine: Versions and hardware.
        onnxruntime: Its version, device and build, or None when it can't be imported.
        wheels: Installed distributions of the ONNX Runtime family.
        cuda_libraries: Messages of ONNX Runtime from loading CUDA's libraries; None when the wheel has no CUDA.
        providers: Every provider but `auto`.
        requested: The requested provider.
        runs_on: The provider that runs, or None.
        graphs: Where the graphs of the bundle ran.
        notes: Messages that need no action.
        problems: Messages that need action.
        extras: SAMRI's extras, and what each lacks.
    """

    machine: Mapping[str, Any]
    onnxruntime: Mapping[str, str] | None
    wheels: tuple[Wheel, ...]
    cuda_libraries: tuple[str, ...] | None
    providers: tuple[ProviderState, ...]
    requested: Provider
    runs_on: Provider | None
    graphs: tuple[Trial, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    extras: tuple[Extra, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        values["asked"] = values.pop("requested")  # The released name in the JSON.
        return {**values, "graphs": [trial.to_json() for trial in self.graphs], "extras": as_json(self.extras)}


def diagnose(
    provider: Provider = "auto",
    model: str | Path | None = None,
    *,
    precision: Precision = "fp32",
    provider_options: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Examine the machine, the wheels and, with a bundle, one run of each graph that a predictor would use.

    Args:
        provider: The provider to use; `auto` takes the fastest that works.
        model: A bundle's folder or a model's name.
        precision: Precision of the graphs to run.
        provider_options: As for `open_session`.
        progress: Called with a line of text before each step that may take long.

    Raises:
        BundleError: The bundle can't be used.
    """
    graphs = trial_graphs(model, precision) if model is not None else []
    wheels = installed_wheels()
    extras = installed_extras(wheels)
    try:
        onnxruntime = load_onnxruntime()
    except MissingDependencyError as error:
        return Diagnosis(machine(), None, wheels, None, (), provider, None, (), (), (str(error),), extras)
    offered = [*onnxruntime.get_available_providers(), *plugin_providers(wheels)]
    libraries = tuple(preload_cuda(onnxruntime)) if CUDA in offered else None
    runs_on: Provider | None = None
    trials: list[Trial] = []
    notes: list[str] = []
    try:
        _tell(progress, provider, offered)
        session, placement = try_probe(provider, provider_options or {})
        tried = [graph for graph in graphs if graph.runs_on(session.provider)]
        for graph in tried:
            progress(f"running {graph.role} {graph.precision} on {session.provider}")
            trials.append(try_graph(graph, provider, provider_options or {}))
        runs_on = session.provider
        notes = [*session.notes, *(note for trial in trials for note in trial.notes)]
        problems = misplaced_graphs(trials) if trials else _misplaced_on_probe(session.provider, placement)
    except ProviderError as error:
        problems = [str(error)]
    if provider == "auto" and runs_on is not None:
        notes, problems = [*notes, *problems], []  # `auto` may run anywhere.
    conflict = conflict_line(wheels)
    if conflict is not None:
        # `auto` notes it too, and errors give it as the reason for a provider that the imported wheel lacks.
        notes = [note for note in notes if note != conflict]
        problems = problems if any(conflict in problem for problem in problems) else [conflict, *problems]
    return Diagnosis(
        machine=machine(),
        onnxruntime={
            "version": onnxruntime.__version__,
            "device": onnxruntime.get_device(),
            "build": onnxruntime.get_build_info(),
        },
        wheels=wheels,
        cuda_libraries=libraries,
        providers=tuple(_state(name, offered, progress) for name in PROVIDERS if name != "auto"),
        requested=provider,
        runs_on=runs_on,
        graphs=tuple(trials),
        notes=tuple(dict.fromkeys([*notes, *_unknown_plugins(wheels)])),
        problems=tuple(problems),
        extras=extras,
    )


def _misplaced_on_probe(provider: Provider, placement: Placement) -> list[str]:
    misplaced = misplaced_nodes(placement)
    return [f"{provider} doesn't run everything: {misplaced}"] if misplaced else []


def _tell(progress: Callable[[str], None], provider: Provider, offered: Sequence[str]) -> None:
    """Report that an accelerator is tried, which loads gigabytes of libraries; the CPU takes no time."""
    accelerated = len(auto_candidates(offered)) > 1 if provider == "auto" else provider != "cpu"
    if accelerated:
        progress(f"trying {provider}")


def _state(provider: Provider, offered: Sequence[str], progress: Callable[[str], None]) -> ProviderState:
    if execution_provider(provider, offered) is None:
        return ProviderState(provider, False, False, "the installed wheel doesn't have it")
    _tell(progress, provider, offered)
    try:
        session, placement = try_probe(provider, {})
    except ProviderError as error:
        return ProviderState(provider, True, False, str(error).removeprefix(f"{provider} can't be used: "))
    misplaced = misplaced_nodes(placement)
    return ProviderState(provider, True, misplaced is None, misplaced or " ".join(session.notes) or None)


def _unknown_plugins(wheels: Sequence[Wheel]) -> list[str]:
    return [f"samri doesn't use {wheel}" for wheel in wheels if wheel.is_plugin and wheel.name not in PLUGINS]
