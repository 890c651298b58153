"""`python -m samri_tiny.evaluate`: the measurement of the demo model, in one command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import click

from samri.staging import staged_folder
from samri_runtime import Predictor
from samri_runtime.cli import ProgressBar, command, emit, say
from samri_runtime.providers import Provider
from samri_tiny.evaluate._answers import Baseline, TestSet, evaluate_set
from samri_tiny.evaluate._card import check_card, write_figures
from samri_tiny.evaluate._cases import TestSlice
from samri_tiny.evaluate._files import tables, write_files
from samri_tiny.evaluate._frozen import PUBLISHED, compared, read_list, write_list
from samri_tiny.evaluate._slices import (
    dataset_slices,
    mricrop_slices,
    synthetic_slices,
    template_slices,
)
from samri_training.extras import require_packages

PER_SUBJECT = 25  # Drawn slices.
TEMPLATE_STEP, MRICROP_STEP = 8, 4  # Between the slices of a plane.
QUICK = 8  # So many times fewer.

DRAWN = TestSet(
    "synthetic",
    "Synthetic slices of held-out subjects",
    "Drawn as in training, with random contrast, plane and magnification, from label maps that no training saw.",
    "drawn",
    published=True,
)
MRICROP = TestSet(
    "mricrop",
    "Real: ITK-SNAP's T1-weighted crop",
    f"Every {MRICROP_STEP}th slice in three planes of a real scan with 8 structures drawn by a person; names are ours.",
    "real",
    published=True,
)
TEMPLATE = TestSet(
    "template",
    "Real: MNI152 T1 template",
    f"Every {TEMPLATE_STEP}th slice in three planes of the template that nilearn carries, without its skull, and its "
    "tissue maps above 0.5. A whole brain on black proves nothing, so it has no margin.",
    "real",
    trivial=("brain",),
    published=True,
)

_PATHS = click.Path(path_type=Path)


@command("samri_tiny.evaluate")
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="[NAME=]BUNDLE",
    help="A bundle, as Predictor takes it. Repeat to compare, for instance stage 1 with stage 2.",
)
@click.option(
    "--label-maps", type=_PATHS, metavar="FOLDER", help="The recipe's label maps; the held-out ones are drawn."
)
@click.option("--template/--no-template", default=True, show_default=True, help="The T1 template that nilearn carries.")
@click.option(
    "--mricrop", type=_PATHS, metavar="FOLDER", help="ITK-SNAP's MRIcrop-orig.gipl.gz and MRIcrop-seg.gipl.gz."
)
@click.option(
    "--slices", multiple=True, type=_PATHS, metavar="DATASET", help="Slices as samri-prepare writes them. Repeatable."
)
@click.option("-o", "--output", required=True, type=_PATHS, metavar="FOLDER", help="For tables, cases and pictures.")
@click.option("--overwrite", is_flag=True, help="Replace FOLDER if it exists.")
@click.option("--model-card", type=_PATHS, metavar="FILE", help="Put the tables between the markers of this file too.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed of drawn slices and boxes."
)
@click.option("--quick", is_flag=True, help=f"About one slice in {QUICK}, to try the command out.")
@click.option(
    "--frozen", type=_PATHS, metavar="FILE", help="List of cases to compare with.  [default: the published one]"
)
@click.option("--write-list", "new_list", type=_PATHS, metavar="FILE", help="Write the list of these cases.")
@click.option("--no-pictures", is_flag=True, help="Leave out the contact sheets.")
@click.option("--provider", type=click.Choice(get_args(Provider)), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of a model.  [default: one per core]")
def main(
    models: tuple[str, ...],
    label_maps: Path | None,
    template: bool,
    mricrop: Path | None,
    slices: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    model_card: Path | None,
    seed: int,
    quick: bool,
    frozen: Path | None,
    new_list: Path | None,
    no_pictures: bool,
    provider: Provider,
    threads: int | None,
) -> None:
    """Measure the demo model: Dice on drawn slices of subjects kept out of training, and on real scans.

    Prompts come from the truth. An ellipse in the box and Otsu's threshold inside it stand beside every figure. The
    tables go to stdout; cases.csv, results.json, tables.md and a contact sheet of each set into FOLDER.
    """
    names = _named(models)
    if not (label_maps or template or mricrop or slices):
        raise click.UsageError("nothing to measure on: give --label-maps, --template, --mricrop or --slices.")
    require_packages("measuring", "scipy", *([] if no_pictures else ["matplotlib"]))
    if model_card is not None:
        check_card(model_card)
    known = read_list(frozen or PUBLISHED)
    with staged_folder(output, overwrite=overwrite) as stage:
        predictors = {name: Predictor(path, provider, threads=threads) for name, path in names.items()}
        results, lists = [], {}
        for of, of_slices in _sets(label_maps, template, mricrop, slices, seed, QUICK if quick else 1):
            with ProgressBar(0, "slice") as progress:
                found = evaluate_set(of, of_slices, predictors, seed, on_slice=progress.advance)
            results.append(found)
            lists[of.name] = compared(of.name, found.digests, seed, known)
        text = f"{tables(results, lists)}\n{measured_on(predictors)}\n"
        files = write_files(stage, results, text, _provenance(predictors, seed, quick, lists), pictures=not no_pictures)
    if new_list is not None:
        write_list(new_list, seed, {each.of.name: each.digests for each in results if each.of.published})
    if model_card is not None:
        write_figures(model_card, text)
    emit(text)
    for name, predictor in predictors.items():
        for note in predictor.notes:
            say(f"note: {name}: {note}")
    for each in results:
        say(f"{each.of.name}: {lists[each.of.name]}")
    say(f"{output}: {', '.join(files)}")


def measured_on(predictors: Mapping[str, Predictor]) -> str:
    """A line with the first digits of the SHA-256 of each model's graphs: which weights the tables are about."""
    lines = []
    for name, predictor in predictors.items():
        graphs = {graph.file.path: graph.sha256[:12] for graph in predictor.manifest.graphs}
        lines.append(f"{name}: {', '.join(f'{path} {digest}' for path, digest in sorted(graphs.items()))}")
    return f"Graphs, SHA-256: {'; '.join(lines)}."


def _named(models: Iterable[str]) -> dict[str, str]:
    """Models by name, from `NAME=BUNDLE` or `BUNDLE`.

    Raises:
        click.UsageError: Two of one name, or an empty one.
    """
    named: dict[str, str] = {}
    for text in models:
        name, given, path = text.partition("=")
        name, path = (name, path) if given else (Path(text).name, text)
        if not name or not path:
            raise click.UsageError(f"--model {text!r} is not of the form NAME=BUNDLE or BUNDLE.")
        if name in named:
            raise click.UsageError(f"two models are called {name!r}: tell them apart with --model NAME=BUNDLE.")
        if name in get_args(Baseline):
            raise click.UsageError(f"a model can't be called {name!r}, as a baseline is: use --model NAME=BUNDLE.")
        named[name] = path
    return named


def _sets(
    label_maps: Path | None, template: bool, mricrop: Path | None, datasets: Iterable[Path], seed: int, thinning: int
) -> Iterable[tuple[TestSet, Iterable[TestSlice]]]:
    if label_maps is not None:
        count = max(PER_SUBJECT // thinning, 1)
        yield DRAWN, synthetic_slices(label_maps, count, seed)
    if mricrop is not None:
        yield MRICROP, mricrop_slices(mricrop, MRICROP_STEP, thinning)
    if template:
        yield TEMPLATE, template_slices(TEMPLATE_STEP, thinning)
    for number, folder in enumerate(datasets, start=1):
        name = f"dataset_{number}"
        yield TestSet(name, f"Slices of {folder.resolve().name}", "A dataset.", "real"), dataset_slices(folder)


def _provenance(
    predictors: Mapping[str, Predictor], seed: int, quick: bool, lists: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "models": {
            name: {
                "manifest_sha256": predictor.bundle.sha256,
                "checkpoint": dict(predictor.manifest.checkpoint),
                "profile": predictor.manifest.profile.name,
                "precision": predictor.precision,
                "ran_on": predictor.providers,
            }
            for name, predictor in predictors.items()
        },
        "seed": seed,
        "quick": quick,
        "cases": dict(lists),
    }
