"""The command line of `samri-evaluate`: parse, call, print."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from samri.manifest import FILE_NAME, PRECISIONS
from samri.preprocessing import PROFILE_NAMES, unclear_profile
from samri.staging import staged_folder
from samri_runtime.cli import (
    GivenFolder,
    OutputFolder,
    ProgressBar,
    Stages,
    command,
    emit,
    json_option,
    overwrite_option,
    provider_option,
    renamed_option,
    say,
)
from samri_runtime.models import locate
from samri_runtime.providers import Provider
from samri_training.embedding_folders import folders_of_split, refuse_mixed_splits
from samri_training.evaluate._evaluation import Protocol, evaluate
from samri_training.evaluate._files import check_report, to_json, write_files
from samri_training.evaluate._models import ModelRequest, open_model
from samri_training.evaluate._report import overview
from samri_training.evaluate._sources import TEST_SPLIT, EmbeddedSlices, SliceFolder
from samri_training.evaluate._summary import summarize
from samri_training.extras import require_packages
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
        folders = [
            each
            for folder in embedding_dirs
            for each in folders_of_split(folder, split or TEST_SPLIT, named=split is not None)
        ]
        stages.begin("opening the models")
        opened = [open_model(request, provider, device) for request in requests]
        # A cache without provenance is taken to be the first model's own.
        source = slices or EmbeddedSlices(*_opened(folders, embedding_dirs, opened[0].facts("fp32")))
        stages.end()
        with ProgressBar(len(source), "slice") as progress:
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


def _opened(paths: Sequence[Path], folders: Sequence[Path], facts: EncoderFacts) -> list[Embeddings]:
    opened = [open_embeddings(path, facts) for path in paths]
    for folder in folders:
        refuse_mixed_splits(folder, [source for source in opened if source.path.is_relative_to(folder)])
    return opened


_T = TypeVar("_T")


def requested_models(
    models: Sequence[str], profiles: Sequence[str], precisions: Sequence[str], bases: Sequence[str]
) -> list[ModelRequest]:
    """Models from `NAME=PATH` or `PATH`, with their settings from `NAME=VALUE` or, for all that can have it, `VALUE`.

    Raises:
        click.UsageError: Two models of one name, or a setting of a model that isn't there or that can't have it.
    """
    requests = [_name_and_path(text) for text in models]
    names = [request.name for request in requests]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"two models are called {name!r}: name them with --model NAME=PATH.")
    checkpoints = [request.name for request in requests if request.is_checkpoint]
    bundles = [request.name for request in requests if not request.is_checkpoint]
    profile = _settings("--profile", profiles, names, checkpoints, lambda text: _choice(text, PROFILE_NAMES))
    precision = _settings("--precision", precisions, names, bundles, lambda text: _choice(text, PRECISIONS))
    base = _settings("--base", bases, names, checkpoints, Path)
    for name in checkpoints:
        path = next(request.path for request in requests if request.name == name)
        unclear = unclear_profile(path, name, base.get(name), option=f"--profile {name}=")
        if name not in profile and unclear is not None:
            raise click.UsageError(f"{unclear}.")
    return [
        ModelRequest(
            request.name,
            request.path,
            profile.get(request.name),
            precision.get(request.name, "auto"),
            base.get(request.name),
        )
        for request in requests
    ]


def requested_label_names(pairs: Sequence[str]) -> dict[int, str]:
    """Names of labels from `NUMBER=NAME`.

    Raises:
        click.UsageError: Not of that form.
    """
    names = {}
    for pair in pairs:
        number, _, name = (part.strip() for part in pair.partition("="))
        if not (number.isdecimal() and name):
            raise click.UsageError(f"--label-name {pair!r} is not of the form NUMBER=NAME.")
        names[int(number)] = name
    return names


def _name_and_path(text: str) -> ModelRequest:
    name, equals, path = text.partition("=")
    # A path may hold an equals sign of its own.
    if equals and name.strip() and path and not Path(text).exists():
        return ModelRequest(name.strip(), locate(path))
    request = ModelRequest("", locate(text))
    if request.is_checkpoint:
        return ModelRequest(request.path.stem, request.path)
    # Resolved, since `.` has a name too.
    folder = Path(os.path.realpath(request.path))
    return ModelRequest(folder.parent.name if folder.name == FILE_NAME else folder.name, request.path)


def _settings(
    option: str, texts: Sequence[str], names: Sequence[str], able: Sequence[str], read: Callable[[str], _T]
) -> dict[str, _T]:
    """The setting of each model that has one; `able` are the models that can."""
    general: dict[str, _T] = {}
    by_name: dict[str, _T] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                general = dict.fromkeys(able, read(text))
                continue
            if name not in names:
                raise click.UsageError(f"{option} {text}: no model is called {name!r}, only {', '.join(names)}.")
            if name not in able:
                raise click.UsageError(f"{option} {text}: {name!r} is a {_kind(option)}, where it has no effect.")
            by_name[name] = read(value)
        except ValueError as error:
            raise click.UsageError(f"{option} {text}: {error}.") from error
    return general | by_name


def _kind(option: str) -> str:
    return "checkpoint" if option == "--precision" else "bundle"


def _choice(text: str, choices: Sequence[_T]) -> _T:
    for choice in choices:
        if choice == text:
            return choice
    raise ValueError(f"{text!r} is none of {', '.join(str(choice) for choice in choices)}")
