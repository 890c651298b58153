"""The command line of `samri-evaluate`: parse, call, print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from samri.staging import staged_folder
from samri_runtime.cli import (
    GivenFolder,
    OutputFolder,
    Progress,
    Stages,
    command,
    emit,
    json_option,
    overwrite_option,
    provider_option,
    renamed_option,
    say,
)
from samri_runtime.providers import Provider
from samri_training.evaluate._earlier import check_report
from samri_training.evaluate._evaluation import Protocol, evaluate
from samri_training.evaluate._files import to_json, write_files
from samri_training.evaluate._models import open_model
from samri_training.evaluate._report import overview
from samri_training.evaluate._requests import requested_label_names, requested_models
from samri_training.evaluate._sources import TEST_SPLIT, EmbeddedSlices, SliceFolder
from samri_training.evaluate._summary import summarize
from samri_training.extras import require_packages
from samri_training.mixing import refuse_mixed_splits
from samri_training.parts import parts_of
from samri_training.prompting import PROMPT_KINDS, PromptKind
from samri_training.published import open_embeddings
from samri_training.slices import SPLITS, Split
from samri_training.store import Embeddings, EncoderFacts

_BOX_AND_POINT = "box+point"


def _prompt_kinds(_context: click.Context, _option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    kinds = ("mixed" if name == _BOX_AND_POINT else name for name in names or ("box",))
    return tuple(dict.fromkeys(kinds))


@command("samri-evaluate")
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="[NAME=]PATH",
    help="Model to evaluate: a bundle's folder, a checkpoint (.pth, .pt, .bin, .safetensors), or samri-tiny. Repeat to "
    "compare models.",
)
@click.option(
    "--data-dir",
    type=GivenFolder(),
    metavar="FOLDER",
    help="Slices with masks, as samri-prepare writes them; of a divided dataset the testing slices.",
)
@click.option(
    "--split", type=click.Choice(SPLITS), help="Split to evaluate on.  [default: testing, if the data is divided]"
)
@click.option(
    "--embedding-dir",
    "embedding_dirs",
    multiple=True,
    type=GivenFolder(),
    metavar="FOLDER",
    help="Embedding store or published cache, instead of --data-dir; all models must share its encoder. Repeatable.",
)
@renamed_option(
    "-o",
    "--output",
    former=["--save-dir"],
    required=True,
    type=OutputFolder(),
    metavar="FOLDER",
    help="Folder to create for cases.csv, summary.json, report.md and the plots.",
)
@overwrite_option("Replace FOLDER if samri-evaluate made it.")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    type=click.Choice((*PROMPT_KINDS, _BOX_AND_POINT)),
    callback=_prompt_kinds,
    help="Prompt sampled from the ground truth; mixed is another name of box+point. Repeatable.  [default: box]",
)
@click.option("--jitter", is_flag=True, help="Move the sides of boxes at random, as in training.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Random seed of the sampled prompts.",
)
@click.option("--multimask", is_flag=True, help="Take the best-scored of three candidate masks, not the single mask.")
@click.option(
    "--min-pixels",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Smallest area of a structure on a slice, in pixels; smaller ones are only counted.",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="[NAME=]PROFILE",
    help="Preprocessing of all checkpoints, or of the one with this NAME: sam, samri or medsam. Repeatable.  "
    "[default: samri]",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="[NAME=]PRECISION",
    help="Precision of the arithmetic of all bundles, or of the one with this NAME: fp32, fp16 or int8. Repeatable.  "
    "[default: by provider]",
)
@click.option(
    "--base",
    "bases",
    multiple=True,
    metavar="[NAME=]PATH",
    help="Full checkpoint from which decoder-only checkpoints, or the one with this NAME, were fine-tuned. Repeatable.",
)
@click.option(
    "--label-name",
    "label_names",
    multiple=True,
    metavar="NUMBER=NAME",
    help="Name of a label in the tables. Repeatable.  [default: its number]",
)
@provider_option(
    help="Execution provider for bundles. The command fails if it cannot be used; only auto falls back to another."
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="PyTorch device for checkpoints: cpu, cuda, cuda:1 or mps.",
)
@click.option("--no-plots", is_flag=True, help="Do not draw the box plots, which need matplotlib.")
@json_option("Print summary.json instead of the table of mean Dice.")
@click.pass_context
def main(
    context: click.Context,
    models: tuple[str, ...],
    data_dir: Path | None,
    split: Split | None,
    embedding_dirs: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    prompts: tuple[PromptKind, ...],
    jitter: bool,
    seed: int,
    multimask: bool,
    min_pixels: int,
    profiles: tuple[str, ...],
    precisions: tuple[str, ...],
    bases: tuple[str, ...],
    label_names: tuple[str, ...],
    provider: Provider,
    device: str,
    no_plots: bool,
    as_json: bool,
) -> None:
    """Evaluate and compare models on slices with ground truth.

    Prompts are sampled from the ground truth and are the same for all models. Writes a row per case (cases.csv), all
    numbers (summary.json), tables with statistical tests between the models (report.md) and box plots.

    Example: samri-evaluate -m sam_vit_b_01ec64.pth -m tuned=best.pth --data-dir slices -o evaluation
    """
    requests = requested_models(models, profiles, precisions, bases)
    names = requested_label_names(label_names)
    if (data_dir is None) == (not embedding_dirs):
        raise click.UsageError("give either --data-dir or --embedding-dir.")
    checkpoints = any(request.is_checkpoint for request in requests)
    require_packages(
        "evaluating",
        "scipy",
        *(("torch", "segment_anything") if checkpoints else ()),
        *(() if no_plots else ("matplotlib",)),
    )
    protocol = Protocol(prompts, seed, jitter, multimask, min_pixels)
    # The folder is claimed first: hours of work must not end in a name that is taken.
    with staged_folder(output, overwrite=overwrite, check=check_report) as stage:
        stages = context.with_resource(Stages())
        stages.begin("finding the slices")
        slices = None if data_dir is None else SliceFolder(data_dir, split)
        parts = [
            part for folder in embedding_dirs for part in parts_of(folder, split or TEST_SPLIT, asked=split is not None)
        ]
        stages.begin("opening the models")
        opened = [open_model(request, provider, device) for request in requests]
        # A cache without provenance is taken to be the first model's own.
        source = slices or EmbeddedSlices(*_opened(parts, embedding_dirs, opened[0].facts("fp32")))
        stages.end()
        with Progress(len(source), "slice") as progress:
            evaluation = evaluate(source, opened, protocol, on_slice=progress.advance)
        stages.begin("comparing the models")
        summary = summarize(evaluation)
        described = [model.describe() for model in opened]
        provenance = {
            "source": source.describe(),
            "models": described,
            "label_names": {str(number): name for number, name in names.items()},
        }
        stages.begin("writing tables and plots")
        files = write_files(stage, evaluation, summary, provenance, names, plots=not no_plots)
        stages.end()
    for note in [*source.notes, *(f"{model['name']}: {line}" for model in described for line in model["notes"])]:
        say(f"note: {note}")
    if as_json:
        emit(json.dumps(to_json(evaluation, summary, provenance), indent=2, allow_nan=False))
    else:
        emit(overview(evaluation, summary))
    say(f"{evaluation.structures} structures of {len(evaluation.cases)} case(s): {output}: {', '.join(files)}")


def _opened(parts: Sequence[Path], folders: Sequence[Path], facts: EncoderFacts) -> list[Embeddings]:
    opened = [open_embeddings(part, facts) for part in parts]
    for folder in folders:
        refuse_mixed_splits(folder, [part for part in opened if part.path.is_relative_to(folder)])
    return opened
