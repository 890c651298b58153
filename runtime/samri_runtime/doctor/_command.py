"""`samri-doctor`: which providers work here, where a model really runs, and what to do about the rest."""

from __future__ import annotations

import json

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
from samri_runtime.doctor._diagnosis import diagnose
from samri_runtime.doctor._text import as_text
from samri_runtime.providers import Provider


@command("samri-doctor")
@click.option("--model", type=GivenModel(), help="A bundle, or samri-tiny: run it once and tell where each graph ran.")
@provider_option()
@precision_option(help="Precision of the graphs to run.")
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
    """Tell which ONNX Runtime wheels and providers are here, which of them work, and where a model really runs.

    Ends with 0 when all is well, and with 1 when the provider asked for can't be used, wheels are in conflict, or heavy
    parts of the model ran elsewhere; the reason is on stderr.
    """
    found = diagnose(provider, model, precision=precision, provider_options=provider_options, progress=say)
    emit(json.dumps(found.to_json(), indent=2) if as_json else as_text(found))
    for problem in found.problems:
        say_error(f"error: {problem}")
    if found.problems:
        context.exit(1)
