"""The command line of `samri-bench`: parse, call, print."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from samri.bundle import Bundle
from samri.errors import MissingDependencyError, OutputError, ProviderError
from samri.manifest import Precision
from samri.ownership import refuse_foreign_files
from samri_runtime import models
from samri_runtime._tuned import check_can_save, save_tuned
from samri_runtime.bench._case import (
    accelerator_cases,
    cases,
    phantom_scene,
    precisions_of,
    scan_scene,
    usable_providers,
)
from samri_runtime.bench._measure import Measurements, Repeats, measure
from samri_runtime.bench._report import FILES, BenchReport, environment, import_matplotlib
from samri_runtime.bench._tune import best, candidates, seconds_of, settings_of
from samri_runtime.cli import (
    GivenModel,
    GivenPath,
    OutputFolder,
    command,
    emit,
    json_option,
    overwrite_option,
    precision_option,
    provider_option,
    provider_settings_option,
    say,
    say_error,
    threads_option,
)
from samri_runtime.providers import PROVIDERS, Provider

_NAMED = tuple(name for name in PROVIDERS if name != "auto")


@command("samri-bench")
@click.option(
    "--model",
    default=models.DEFAULT,
    show_default=True,
    type=GivenModel(),
    metavar="BUNDLE",
    help="Model to measure: a bundle's folder, or the name of a model that comes with SAMRI.",
)
@provider_option(
    "providers",
    multiple=True,
    type=click.Choice(_NAMED),
    default=None,
    show_default=False,
    help="Execution provider to measure. Repeatable.  [default: all that work here]",
)
@precision_option(
    "precisions",
    multiple=True,
    default=None,
    show_default=False,
    help="Precision of the graphs to measure. Repeatable.  [default: all that the bundle has]",
)
@threads_option(multiple=True, help="Number of CPU threads. Repeatable.  [default: one per core]")
@click.option(
    "--boxes",
    "batches",
    multiple=True,
    type=click.IntRange(1, 256),
    metavar="N",
    help="Number of boxes per decoder call. Repeatable.  [default: 1 and 16]",
)
@provider_settings_option(help="Option passed unchanged to every execution provider except the CPU. Repeatable.")
@click.option(
    "--static-shapes/--free-shapes",
    default=None,
    help="Pad prompts to a few fixed sizes, or leave them as they are.  [default: depends on the provider]",
)
@click.option("--gpu", is_flag=True, help="Measure every accelerator here in every precision, also with CUDA graphs.")
@click.option("--tune", is_flag=True, help="Find the fastest settings with correct masks and save them for later runs.")
@click.option(
    "-i", "--input", "source", type=GivenPath(), metavar="IMAGE", help="Scan to measure on.  [default: a phantom]"
)
@click.option(
    "--slice",
    "index",
    type=int,
    metavar="K",
    help="Index of the slice of --input along its last axis, from 0.  [default: the middle one]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    metavar="N",
    help="Number of processes per case.",
)
@click.option(
    "--encodes",
    type=click.IntRange(1, 1000),
    metavar="N",
    default=3,
    show_default=True,
    help="Number of images encoded per process, not counting the first.",
)
@click.option(
    "--decodes",
    type=click.IntRange(1, 10000),
    metavar="N",
    default=20,
    show_default=True,
    help="Number of decoder calls per process and number of boxes.",
)
@click.option(
    "-o",
    "--output",
    type=OutputFolder(),
    metavar="FOLDER",
    help="Folder for bench.csv, bench.json, bench.md and bench.png.  [default: no files]",
)
@overwrite_option("Replace such files in FOLDER.")
@click.option("--no-png", is_flag=True, help="Do not draw bench.png, which needs matplotlib.")
@json_option("Print the results as JSON instead of a table.")
@click.pass_context
def main(
    context: click.Context,
    model: str,
    providers: tuple[Provider, ...],
    precisions: tuple[Precision, ...],
    threads: tuple[int, ...],
    batches: tuple[int, ...],
    provider_options: dict[str, str],
    static_shapes: bool | None,
    gpu: bool,
    tune: bool,
    source: Path | None,
    index: int | None,
    rounds: int,
    encodes: int,
    decodes: int,
    output: Path | None,
    overwrite: bool,
    no_png: bool,
    as_json: bool,
) -> None:
    """Measure a model on this machine: cold start, encoding, decoding, memory, and agreement with fp32 on the CPU.

    Cases take turns, each in its own process. Figures are medians, with the 10th and 90th percentiles in brackets.
    """
    if (gpu or tune) and (providers or threads or provider_options or static_shapes is not None):
        raise click.UsageError(
            "--gpu and --tune choose what to measure: leave out --provider, its options, --threads and --static-shapes."
        )
    if gpu and tune:
        raise click.UsageError("give --gpu or --tune, not both.")
    if index is not None and source is None:
        raise click.UsageError("--slice needs --input.")
    bundle = Bundle.open(models.locate(model))
    if tune:
        check_can_save()
    png = output is not None and not no_png and _can_plot()
    if output is not None and output.exists() and not output.is_dir():
        raise OutputError(f"cannot write {output}: it is not a folder; name another --output")
    if output is not None and not overwrite:
        refuse_foreign_files(output, FILES, known=())
    requested_precisions = precisions or precisions_of(bundle.manifest)
    for precision in requested_precisions:
        bundle.graph("encoder", precision)
    say("looking for providers that work here")
    if tune:
        requested = [case for case in candidates(bundle.manifest) if case.precision in requested_precisions]
    elif gpu:
        requested = accelerator_cases(requested_precisions)
        if not requested:
            raise ProviderError("no accelerator works here: run samri-doctor to see why")
    else:
        requested = cases(
            providers or usable_providers(), requested_precisions, threads or (None,), provider_options, static_shapes
        )
    scene = phantom_scene() if source is None else scan_scene(source, index)
    repeats = Repeats(rounds, encodes, decodes, tuple(sorted({*(batches or (1, 16)), *((1,) if tune else ())})))
    samples = measure(bundle.folder, requested, scene, repeats, progress=say)
    typed = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    report = BenchReport(environment(bundle), scene.name, samples, repeats.batches, typed)
    if output is not None:
        for path in report.write(output, png=png):
            say(f"wrote {path}")
    emit(json.dumps(report.to_json(), indent=2, allow_nan=False) if as_json else report.to_text())
    if tune:
        _keep_best(bundle, samples)
    elif failed := [sample for sample in samples if sample.error is not None]:
        for sample in failed:
            say_error(f"error: {sample.case}: {sample.error}")
        context.exit(1)


def _can_plot() -> bool:
    """Whether the picture can be drawn; asked before the work, which takes minutes."""
    try:
        import_matplotlib()
    except MissingDependencyError as error:
        say(f"note: bench.png is left out: {error}")
        return False
    return True


def _keep_best(bundle: Bundle, samples: Sequence[Measurements]) -> None:
    winner, left_out = best(samples)
    for line in left_out:
        say(f"left out: {line}")
    tuned = settings_of(winner)
    path = save_tuned(bundle, tuned, progress=say)
    seconds, usual = seconds_of(winner), seconds_of(samples[0])
    say(f"best here: {tuned}: {seconds:.3g} s for an image and ten boxes; fp32 on the CPU takes {usual:.3g} s")
    say(f"saved to {path}: used by runs without --provider, --precision and --threads")
