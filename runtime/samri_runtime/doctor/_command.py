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
    the provider asked for cannot be used, wheels are in conflict, or heavy parts of the model ran elsewhere.
    """
    found = diagnose(provider, model, precision=precision, provider_options=provider_options, progress=say)
    emit(json.dumps(found.to_json(), indent=2) if as_json else as_text(found))
    for problem in found.problems:
        say_error(f"error: {problem}")
    if found.problems:
        context.exit(1)
