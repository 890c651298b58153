"""The command line of `samri-prepare`: parse, call, print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import click

from samri.geometry import PLANES, Plane
from samri_runtime.cli import (
    GivenFolder,
    OutputFolder,
    ProgressBar,
    command,
    emit,
    json_option,
    overwrite_option,
    renamed_option,
    say,
)
from samri_training.extras import require_packages
from samri_training.prepare._cut import Cut
from samri_training.prepare._dataset import prepare
from samri_training.prepare._sources import check_pattern


def _index_or_all(_context: click.Context, _option: click.Parameter, value: str | None) -> int | Literal["all"] | None:
    if value is None:
        return None
    if value == "all":
        return "all"
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither an index from 0 nor 'all'.")
    return int(value)


@command("samri-prepare")
@click.option(
    "-i",
    "--input",
    "source",
    required=True,
    type=GivenFolder(),
    metavar="FOLDER",
    help="Folder with images and their label maps.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=OutputFolder(),
    metavar="FOLDER",
    help="Folder to create: the slice dataset.",
)
@click.option(
    "--pattern",
    nargs=2,
    metavar="IMAGE MASK",
    help="Paths of images and masks below --input, such as 'images/{case}.nii.gz' 'masks/{case}_label.nii.gz'; "
    "{patient} may be used too.  [default: recognized: *_img_* with *_seg_*, nnU-Net, BIDS, or one folder of "
    "segmentations per case]",
)
@click.option("--images", metavar="GLOB", help="Use only these images, such as '*_T1w.nii.gz'.  [default: all]")
@click.option(
    "--masks", metavar="GLOB", help="Use only these masks, such as '*_desc-manual_dseg.nii.gz'.  [default: all]"
)
@click.option(
    "--plane",
    type=click.Choice(PLANES),
    help="Anatomical plane of the slices, instead of --axis; shown in radiological convention.",
)
@click.option(
    "--axis", type=click.IntRange(0, 2), metavar="A", help="Array axis along which slices are cut.  [default: 2]"
)
@click.option(
    "--frame",
    callback=_index_or_all,
    metavar="T|all",
    help="Index of the time point of 4-D images, from 0; all makes each time point a case.",
)
@click.option(
    "--min-pixels",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Smallest area of a label on a slice, in pixels; smaller ones are removed from the slice.",
)
@renamed_option(
    "--ratios",
    "shares",
    former=["--split"],
    nargs=3,
    type=click.FloatRange(min=0),
    metavar="TRAIN VAL TEST",
    help="Divide the patients anew, in these ratios.  [default: the division of the input; without one 0.8 0.1 0.1]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Random seed of the division of the patients.",
)
@renamed_option(
    "--split-files",
    former=["--splits"],
    type=GivenFolder(),
    metavar="FOLDER",
    help="Folder with train.txt, val.txt and test.txt, one patient or case per line.  [default: INPUT/splits, if it "
    "exists]",
)
@click.option(
    "--patient",
    metavar="REGEX",
    help="Regular expression whose first group, found in the name of a case, is the patient: '^(patient[0-9]+)'.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out pairs that cannot be used, instead of stopping.")
@overwrite_option("Replace an earlier slice dataset at --output.")
@click.option(
    "--num-workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Number of extra processes; 0 cuts the slices in this one.",
)
@json_option("Print the report as JSON instead of text.")
def main(
    source: Path,
    output: Path,
    pattern: tuple[str, str] | None,
    images: str | None,
    masks: str | None,
    plane: Plane | None,
    axis: int | None,
    frame: int | Literal["all"] | None,
    min_pixels: int,
    shares: tuple[float, float, float] | None,
    seed: int,
    split_files: Path | None,
    patient: str | None,
    skip_bad: bool,
    overwrite: bool,
    num_workers: int,
    as_json: bool,
) -> None:
    """Make a slice dataset from volumes with label maps, or from ready 2-D pairs.

    Images and masks are matched by name. Writes *_img_*.nii.gz and *_seg_*.nii.gz files in training, validation and
    testing folders, report.json and report.txt, and prints the report.

    Example: samri-prepare -i volumes -o slices --plane axial
    """
    require_packages("samri-prepare", "nibabel")
    _check_usage(pattern, plane, axis, shares, split_files, patient)
    if split_files is None and shares is None and (source / "splits").is_dir():
        split_files = source / "splits"
        say(f"note: patients are divided as in {split_files}; --ratios divides them anew")
    with ProgressBar(0, "pair") as progress:
        report = prepare(
            source,
            output,
            Cut(plane, 2 if axis is None else axis, frame, min_pixels),
            pattern=pattern,
            images=images,
            masks=masks,
            patient=patient,
            shares=shares,
            seed=seed,
            split_files=split_files,
            skip_bad=skip_bad,
            overwrite=overwrite,
            num_workers=num_workers,
            progress=progress.reach,
        )
    say(f"{report.slices} slices in {output}")
    emit(json.dumps(report.to_json(), indent=2, allow_nan=False) if as_json else report.to_text().rstrip("\n"))


def _check_usage(
    pattern: tuple[str, str] | None,
    plane: Plane | None,
    axis: int | None,
    shares: tuple[float, float, float] | None,
    split_files: Path | None,
    patient: str | None,
) -> None:
    if plane is not None and axis is not None:
        raise click.UsageError("give --plane or --axis, not both.")
    if shares is not None and split_files is not None:
        raise click.UsageError("give --ratios or --split-files, not both.")
    if shares is not None and not sum(shares) > 0:
        raise click.UsageError("--ratios needs a number above 0.")
    if pattern is not None and (wrong := check_pattern(pattern)) is not None:
        raise click.UsageError(f"--pattern: {wrong}.")
    if patient is not None:
        try:
            groups = re.compile(patient).groups
        except re.error as error:
            raise click.UsageError(f"--patient {patient!r} is not a regular expression: {error}.") from error
        if not groups:
            raise click.UsageError(f"--patient {patient!r} needs a group in parentheses that matches the patient.")
