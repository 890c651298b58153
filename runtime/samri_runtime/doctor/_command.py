"""`samri-doctor`: which providers work here, where a model really runs, and what to do about the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from samri.manifest import Precision
from samri_runtime.cli import (
    GivenModel,
    command,
    emit,
    json_option,
    precision_option,
    provider_option,
    provider_settings_option,
    say,
    say_error,
)
from samri_runtime.doctor._diagnosis import Diagnosis, ProviderState, diagnose
from samri_runtime.providers import Provider


@command("samri-doctor")
@click.option(
    "--model",
    type=GivenModel(),
    metavar="BUNDLE",
    help="Model to run once, to show on which provider each graph runs: a bundle's folder, or samri-tiny.",
)
@provider_option()
@precision_option(help="Precision of the graphs of --model.")
@provider_settings_option()
@json_option("Print the diagnosis as JSON.")
@click.pass_context
def main(
    context: click.Context,
    model: str | None,
    provider: Provider,
    precision: Precision,
    provider_options: dict[str, str],
    as_json: bool,
) -> None:
    """Show which ONNX Runtime wheels and providers are installed, which of them work, and what to do about the rest.

    With --model also on which provider each part of that model really runs. Exits with 1, and says why on stderr, if
    the requested provider cannot be used, wheels are in conflict, or heavy parts of the model ran elsewhere.
    """
    diagnosis = diagnose(provider, model, precision=precision, provider_options=provider_options, progress=say)
    emit(json.dumps(diagnosis.to_json(), indent=2) if as_json else _as_text(diagnosis))
    for problem in diagnosis.problems:
        say_error(f"error: {problem}")
    if diagnosis.problems:
        context.exit(1)


def _as_text(diagnosis: Diagnosis) -> str:
    """The diagnosis in sections, without its problems, which go to stderr."""
    sections = [
        _machine(diagnosis),
        _runtime(diagnosis),
        _providers(diagnosis),
        _extras(diagnosis),
        _requested(diagnosis),
    ]
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines)


def _machine(diagnosis: Diagnosis) -> Iterator[str]:
    machine = diagnosis.machine
    yield f"samri {machine['samri']}, Python {machine['python']}, numpy {machine['numpy']}"
    yield f"{machine['system']}; {machine['processor']}, {machine['cores']} cores"
    nvidia = machine["nvidia"]
    if nvidia["driver"]:
        yield f"NVIDIA driver for CUDA up to {nvidia['cuda']}; GPUs: {', '.join(nvidia['gpus']) or 'none'}"
    else:
        yield "no NVIDIA driver"


def _runtime(diagnosis: Diagnosis) -> Iterator[str]:
    if diagnosis.onnxruntime is None:
        yield "ONNX Runtime: can't be imported"
    else:
        yield f"ONNX Runtime {diagnosis.onnxruntime['version']} for {diagnosis.onnxruntime['device']}"
        yield f"  {diagnosis.onnxruntime['build']}"
    yield f"  wheels: {', '.join(map(str, diagnosis.wheels)) or 'none'}"
    if diagnosis.cuda_libraries is not None:
        yield f"  CUDA's libraries: {'; '.join(diagnosis.cuda_libraries) or 'loaded'}"


def _providers(diagnosis: Diagnosis) -> Iterator[str]:
    if diagnosis.providers:
        yield "Providers"
    for state in diagnosis.providers:
        yield f"  {state.provider:<9} {_verdict(state)}"


def _extras(diagnosis: Diagnosis) -> Iterator[str]:
    if diagnosis.extras:
        yield "Extras"
    for extra in diagnosis.extras:
        yield f"  {extra.name:<9} {extra}"


def _verdict(state: ProviderState) -> str:
    verdict = "works" if state.usable else "doesn't work" if state.offered else "absent"
    return f"{verdict}: {state.reason}" if state.reason and state.offered else verdict


def _requested(diagnosis: Diagnosis) -> Iterator[str]:
    yield f"Requested {diagnosis.requested}: {'runs on ' + diagnosis.runs_on if diagnosis.runs_on else 'does not run'}"
    for note in diagnosis.notes:
        yield f"  note: {note}"
    for trial in diagnosis.graphs:
        yield f"  {trial.role} {trial.precision} on {trial.provider}"
        for share in trial.placement.shares:
            yield f"    {share.execution_provider}: {share.nodes} nodes, {share.milliseconds:.1f} ms"
