"""The command line of `samri-run`: parse, call, print."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import click

from samri.errors import InputError
from samri.geometry import PLANES, Plane
from samri.io import MissingFrameError, Scan, read_scan
from samri.manifest import PRECISIONS, Precision
from samri.outliers import outlier_note
from samri.privacy import without_folders
from samri_runtime import models
from samri_runtime._command import GivenModel, GivenPath, OutputFolder, command, emit, provider_options_of, say
from samri_runtime._interruptible import Background
from samri_runtime._predictor import Predictor
from samri_runtime.cache import STORED_PRECISIONS, StoredPrecision
from samri_runtime.providers import Provider, is_cpu
from samri_runtime.run._caching import byte_size_of, choose_cache
from samri_runtime.run._claim import check_replaceable, claimed
from samri_runtime.run._notes import empty, replaced, unknown_orientation
from samri_runtime.run._published import MODEL_TYPES, check_model_type, provider_of_device
from samri_runtime.run._request import XY, XYXY, build_prompts, check_names, choose_view
from samri_runtime.run._results import check_output, describe_run, write_results
from samri_runtime.run._segment import segment


@command("samri-run")
@click.option(
    "-c",
    "--model",
    "--checkpoint",
    default=models.DEFAULT,
    show_default=True,
    type=GivenModel(),
    metavar="BUNDLE",
    help="Folder with the exported model (samri-export makes one from a .pth), or the name of one that comes with "
    "SAMRI: a demonstration, not for clinical use.",
)
@click.option(
    "-i",
    "--input",
    "source",
    required=True,
    type=GivenPath(),
    metavar="IMAGE",
    help="NIfTI (.nii, .nii.gz, .hdr with .img), FreeSurfer's .mgz, PNG, JPEG or TIFF.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=OutputFolder(),
    metavar="FOLDER",
    help="Where the results go; made if missing.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace files in FOLDER that an earlier run of the same slice didn't make."
)
@click.option(
    "--box",
    "boxes",
    multiple=True,
    nargs=4,
    type=float,
    metavar="X1 Y1 X2 Y2",
    help="Box in pixels of the slice as shown: x to the right, y down. Repeat for more objects.",
)
@click.option(
    "--point",
    "points",
    multiple=True,
    nargs=2,
    type=float,
    metavar="X Y",
    help="A pixel that belongs to the object. All points, with at most one box, form one prompt.",
)
@click.option(
    "--negative-point",
    "negative_points",
    multiple=True,
    nargs=2,
    type=float,
    metavar="X Y",
    help="A pixel that doesn't belong to it.",
)
@click.option(
    "--label", "names", multiple=True, metavar="NAME", help="Name of an object; one for each, in the order given."
)
@click.option("--multimask", is_flag=True, help="Write the model's three candidates instead of one mask.")
@click.option("--slice", "index", type=int, metavar="K", help="Slice of a volume, from 0.")
@click.option("--axis", type=click.IntRange(0, 2), help="Array axis that the slices lie along.  [default: 2]")
@click.option("--plane", type=click.Choice(PLANES), help="Anatomical plane, shown as radiologists do.")
@click.option("--frame", type=int, metavar="T", help="Frame of a 4-D image, from 0.")
@click.option("--provider", type=click.Choice(get_args(Provider)), help="Where to run.  [default: auto]")
@click.option(
    "--provider-option",
    "provider_options",
    multiple=True,
    callback=provider_options_of,
    metavar="KEY=VALUE",
    help="Passed to ONNX Runtime's provider as it is. Repeatable.",
)
@click.option("--device", help="PyTorch's name of a provider, as the published scripts take it: cpu, cuda:0, mps.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: one a core]")
@click.option(
    "--precision",
    type=click.Choice(("auto", *PRECISIONS)),
    default="auto",
    show_default=True,
    help="Of the model's arithmetic; auto takes what suits the provider.",
)
@click.option(
    "--cache-dir",
    type=GivenPath(),
    metavar="FOLDER",
    help="Where embeddings are kept, so that a slice is encoded once.  [default: in the user's cache folder]",
)
@click.option("--no-cache", is_flag=True, help="Neither keep embeddings nor use what is kept.")
@click.option(
    "--cache-size", callback=byte_size_of, metavar="SIZE", help="Most that is kept, as 500MB.  [default: 4GB]"
)
@click.option(
    "--cache-precision",
    type=click.Choice(STORED_PRECISIONS),
    help="Of kept embeddings; fp16 takes half the space and rounds.  [default: fp32]",
)
@click.option("--expect-sha256", metavar="HEX", help="Refuse the bundle unless its manifest.json has this SHA-256.")
@click.option("--model-type", type=click.Choice(MODEL_TYPES), hidden=True)
@click.option("--no-png", is_flag=True, help="Leave out the PNG mask and the overlay picture.")
@click.option("--json", "as_json", is_flag=True, help="Print the provenance as JSON rather than the files' paths.")
def main(
    model: str,
    source: Path,
    output: Path,
    overwrite: bool,
    boxes: tuple[XYXY, ...],
    points: tuple[XY, ...],
    negative_points: tuple[XY, ...],
    names: tuple[str, ...],
    multimask: bool,
    index: int | None,
    axis: int | None,
    plane: Plane | None,
    frame: int | None,
    provider: Provider | None,
    provider_options: dict[str, str],
    device: str | None,
    threads: int | None,
    precision: Precision | Literal["auto"],
    cache_dir: Path | None,
    no_cache: bool,
    cache_size: int | None,
    cache_precision: StoredPrecision | None,
    expect_sha256: str | None,
    model_type: str | None,
    no_png: bool,
    as_json: bool,
) -> None:
    """Segment one slice of a scan from boxes or points.

    Writes NAME_seg_.nii.gz, in the scan's own space, NAME_seg_.json (how it came about), NAME_seg_.png and
    NAME_overlay.png (what to look at first), and prints their paths.
    """
    asked = build_prompts(boxes, points, negative_points)
    check_names(names, len(asked))
    provider, options = _choose_provider(provider, device, provider_options)
    cache = choose_cache(cache_dir, no_cache, cache_size, cache_precision)
    started = time.perf_counter()
    open_model = functools.partial(
        Predictor,
        model,
        provider,
        precision=precision,
        provider_options=options,
        threads=threads,
        expect_sha256=expect_sha256,
        cache=cache,
        prompts_per_image=len(asked),
    )
    with Background(functools.partial(_opened_early, open_model, provider)) as opening:
        check_output(output, source, 3 if multimask else 1, png=not no_png, named=bool(names))
        click.get_current_context().with_resource(claimed(output, source))
        scan = _read(source, frame)
        view = choose_view(scan, index, axis, plane)
        if not overwrite:
            check_replaceable(output, scan, view, 3 if multimask else 1, png=not no_png, named=bool(names))
        checked = [prompt.validate(view.shape) for prompt in asked]
        prompts = [prompt for prompt, _ in checked]
        predictor = opening.result() or open_model()
    if model_type is not None:
        check_model_type(model_type, predictor.manifest.backbone, model)
    try:
        segmentation = segment(predictor, scan, view, prompts, multimask=multimask)
    except MemoryError as error:
        rows, columns = view.shape
        raise InputError(
            f"out of memory with a slice of {rows} x {columns} pixels: close other programs, cut out the part that is "
            "needed, or name a smaller --model"
        ) from error
    hidden = outlier_note(view.extract(scan.voxels), predictor.manifest.profile)
    outliers = [] if hidden is None else [hidden]
    seconds = time.perf_counter() - started
    notes = [
        *scan.notes,
        *unknown_orientation(scan, plane),
        *(note for _, clipped in checked for note in clipped),
        *predictor.notes,
        *segmentation.embedding.notes,
        *outliers,
        *empty(segmentation),
        *replaced(output, source, 3 if multimask else 1, png=not no_png, named=bool(names)),
    ]
    places = [source.parent, output, predictor.bundle.folder, *([] if cache_dir is None else [cache_dir])]
    kept_notes = [without_folders(note, places) for note in notes]
    provenance = describe_run(predictor, provider, scan, view, prompts, segmentation, kept_notes, names)
    files = write_results(
        output, scan, view, prompts, segmentation, provenance, names=names, png=not no_png, overwrite=overwrite
    )
    for note in notes:
        say(f"note: {note}")
    ran = ", ".join(dict.fromkeys(predictor.providers.values()))
    cached = ", embedding from the cache" if segmentation.embedding.cached else ""
    say(f"{len(prompts)} object(s) in {seconds:.1f} s on {ran}, profile {predictor.manifest.profile.name}{cached}")
    _print_results(files, as_json)


def _choose_provider(
    provider: Provider | None, device: str | None, options: dict[str, str]
) -> tuple[Provider, dict[str, str]]:
    if device is None:
        return provider or "auto", options
    if provider is not None:
        raise click.UsageError("give --provider or --device, not both.")
    named, device_options = provider_of_device(device)
    return named, {**device_options, **options}


def _opened_early(open_model: Callable[[], Predictor], provider: Provider) -> Predictor | None:
    """The model, where it opens in a moment, beside the reading of the scan; whose errors are told first.

    Other providers than the CPU may compile for minutes, in which a mistake in the scan's path would go untold; and
    stderr is redirected meanwhile, to which reading the scan may write.
    """
    return open_model() if is_cpu(provider) else None


def _read(source: Path, frame: int | None) -> Scan:
    try:
        return read_scan(source, frame)
    except MissingFrameError as error:
        raise click.UsageError(f"{error}.") from error


def _print_results(files: list[Path], as_json: bool) -> None:
    """Results only: everything else of this command goes to stderr."""
    # As it was written: with the hashes of the other files.
    provenance = json.loads(next(file for file in files if file.suffix == ".json").read_text("utf-8"))
    if as_json:
        emit(json.dumps({**provenance, "files": [str(file) for file in files]}, indent=2, allow_nan=False))
    else:
        emit("\n".join([*_objects(provenance["candidates"]), *(str(file) for file in files)]))


def _objects(candidates: list[list[dict[str, Any]]]) -> list[str]:
    """A line for each object: its number and name, score, voxels and volume."""
    lines = []
    for number, objects in enumerate(candidates, start=1):
        of_candidate = f"candidate {number}, " if len(candidates) > 1 else ""
        for one in objects:
            name = f" ({one['name']})" if one["name"] else ""
            volume = "" if one["volume_mm3"] is None else f", {one['volume_mm3']:.6g} mm3"
            score = f"score {one['score']:.3f}, {one['voxels']} voxels{volume}"
            lines.append(f"{of_candidate}object {one['label']}{name}: {score}")
    return lines
