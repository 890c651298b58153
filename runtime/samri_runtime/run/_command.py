"""The command line of `samri-run`: parse, call, print."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from samri.geometry import PLANES, Plane, SliceView
from samri.io import MissingFrameError, Scan, read_scan
from samri.manifest import PRECISIONS, Precision
from samri_runtime import models
from samri_runtime._interruptible import Background
from samri_runtime._predictor import Predictor
from samri_runtime._result_files import check_output, check_replaceable, claimed
from samri_runtime.cache import STORED_PRECISIONS, StoredPrecision
from samri_runtime.cli import (
    GivenFile,
    GivenModel,
    GivenPath,
    OutputFolder,
    ProgressBar,
    Stages,
    command,
    emit,
    json_option,
    overwrite_option,
    precision_option,
    provider_option,
    provider_settings_option,
    renamed_option,
    say,
    threads_option,
)
from samri_runtime.providers import Provider, is_cpu
from samri_runtime.run._placed import on_one_slice, place, placed_options
from samri_runtime.run._prompts_file import gather_placed
from samri_runtime.run._replay import replay_session
from samri_runtime.run._request import (
    MODEL_TYPES,
    XY,
    XYXY,
    build_keyframes,
    build_prompts,
    byte_size_of,
    check_model_type,
    choose_cache,
    choose_provider,
    require_names,
)
from samri_runtime.segment import Segmentation, SliceChoiceError, choose_view, segment
from samri_runtime.volume import VolumeSegmentation, segment_volume


@command("samri-run")
@renamed_option(
    "-c",
    "--model",
    former=["--checkpoint"],
    default=models.DEFAULT,
    show_default=True,
    type=GivenModel(),
    metavar="BUNDLE",
    help="Exported model: a folder made by samri-export, or the name of a model that comes with SAMRI. The default is "
    "a demonstration, not for clinical use.",
)
@click.option(
    "-i",
    "--input",
    "source",
    required=True,
    type=GivenPath(),
    metavar="IMAGE",
    help="Image to segment: NIfTI (.nii, .nii.gz, .hdr with .img), FreeSurfer (.mgz), PNG, JPEG or TIFF.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=OutputFolder(),
    metavar="FOLDER",
    help="Folder for the results; created if missing.",
)
@overwrite_option("Replace files in FOLDER even if an earlier run on the same slice did not make them.")
@click.option(
    "--box",
    "boxes",
    multiple=True,
    nargs=4,
    type=float,
    metavar="X1 Y1 X2 Y2",
    help="Box around an object, in pixels of the slice as shown: x to the right, y down, from the top left corner. "
    "Repeat for more objects.",
)
@click.option(
    "--point",
    "points",
    multiple=True,
    nargs=2,
    type=float,
    metavar="X Y",
    help="Pixel inside the object. All points, with at most one box, form one prompt. Repeatable.",
)
@click.option(
    "--negative-point",
    "negative_points",
    multiple=True,
    nargs=2,
    type=float,
    metavar="X Y",
    help="Pixel outside the object. Repeatable.",
)
@placed_options
@click.option(
    "--label",
    "names",
    multiple=True,
    metavar="NAME",
    help="Name of an object in the results. Give one per object, in the order of the prompts.",
)
@click.option("--multimask", is_flag=True, help="Write the model's three candidate masks instead of one mask.")
@click.option(
    "--propagate",
    is_flag=True,
    help="Follow the objects from slice K through the volume, in both directions, until each one ends.",
)
@click.option(
    "--range",
    "slices",
    type=(int, int),
    metavar="A B",
    help="With --propagate: first and last slice that may be segmented.  [default: the whole volume]",
)
@click.option(
    "--keyframe",
    "keyframes",
    multiple=True,
    type=(int, float, float, float, float),
    metavar="K X1 Y1 X2 Y2",
    help="With --propagate: box of the object on slice K; between keyframes boxes are interpolated. Repeatable.",
)
@click.option(
    "--session",
    "session",
    type=GivenFile(),
    metavar="FILE",
    help="Replay a session saved by samri.Session, instead of prompts, and write its label map.",
)
@click.option("--slice", "index", type=int, metavar="K", help="Index of the slice, from 0. Required for a volume.")
@click.option(
    "--axis", type=click.IntRange(0, 2), metavar="A", help="Array axis along which slices are cut.  [default: 2]"
)
@click.option(
    "--plane",
    type=click.Choice(PLANES),
    help="Anatomical plane of the slice, instead of --axis; shown in radiological convention.",
)
@click.option("--frame", type=int, metavar="T", help="Index of the time point of a 4-D image, from 0.")
@provider_option(
    default=None,
    help="Execution provider. The command fails if it cannot be used; only auto falls back to another.  "
    "[default: auto]",
)
@provider_settings_option()
@click.option(
    "--device",
    metavar="NAME",
    help="PyTorch device, instead of --provider, as the published scripts take it: cpu, cuda, cuda:1 or mps.",
)
@threads_option()
@precision_option(
    type=click.Choice(("auto", *PRECISIONS)),
    default="auto",
    help="Precision of the model's arithmetic; auto chooses by provider among those that give the masks of fp32.",
)
@click.option(
    "--cache-dir",
    type=GivenPath(),
    metavar="FOLDER",
    help="Folder for cached embeddings, so that each slice is encoded only once.  [default: the user's cache folder]",
)
@click.option("--no-cache", is_flag=True, help="Neither read nor write cached embeddings.")
@click.option(
    "--cache-size",
    callback=byte_size_of,
    metavar="SIZE",
    help="Maximum size of the cache, such as 500MB; the oldest embeddings are removed.  [default: 4GB]",
)
@renamed_option(
    "--cache-dtype",
    "cache_precision",
    former=["--cache-precision"],
    type=click.Choice(STORED_PRECISIONS),
    help="Number format of cached embeddings; fp16 takes half the space and rounds.  [default: fp32]",
)
@click.option(
    "--expect-sha256",
    metavar="HEX",
    help="SHA-256 of the model's manifest.json; a model with another one is refused.",
)
@click.option("--model-type", type=click.Choice(MODEL_TYPES), hidden=True)
@click.option("--no-png", is_flag=True, help="Write neither the PNG mask nor the overlay picture.")
@json_option("Print the provenance as JSON instead of the paths of the files.")
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
    propagate: bool,
    slices: tuple[int, int] | None,
    keyframes: tuple[tuple[int, float, float, float, float], ...],
    session: Path | None,
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
    **placed_settings: Any,
) -> None:
    """Segment one slice of a scan from boxes or points; with --propagate, objects in the volume.

    Writes NAME_seg_.nii.gz (the mask, in the space of the scan), NAME_seg_.json (provenance), NAME_seg_.png and
    NAME_overlay.png (to look at), and prints the score and size of each object and the paths of the files. With
    --propagate, NAME_slices.csv and NAME_montage.png instead of the two pictures.

    Example: samri-run -i scan.nii.gz -o results --slice 80 --box 40 60 110 120
    """
    placed = gather_placed(**placed_settings)
    prompted = bool(boxes or points or negative_points or keyframes)
    provider, options = choose_provider(provider, device, provider_options)
    cache = choose_cache(cache_dir, no_cache, cache_size, cache_precision)
    open_tuned = functools.partial(
        Predictor.tuned,
        model,
        provider,
        precision=precision,
        provider_options=options,
        threads=threads,
        expect_sha256=expect_sha256,
        cache=cache,
    )
    if session is not None:
        chosen = (index, axis, plane, frame, slices, model_type) != (None,) * 6
        if prompted or placed or names or multimask or propagate or chosen:
            raise click.UsageError("--session holds all prompts, names and slices: leave out the options for them.")
        replay_session(session, source, output, open_tuned, overwrite=overwrite, as_json=as_json)
        return
    if not propagate and (slices or keyframes):
        raise click.UsageError("--range and --keyframe are for --propagate: add it.")
    if propagate and multimask:
        raise click.UsageError("--multimask gives candidates on one slice: leave it out with --propagate.")
    given: Path | Scan = source
    if placed:
        if prompted:
            raise click.UsageError("give all prompts in one way: in pixels, in voxels or millimeters, or in a file.")
        given = _read_scan(source, frame)
        objects, own = place(placed, given, index, axis, plane, lps=placed_settings["lps"])
        if own and names:
            raise click.UsageError("--prompts names the objects: leave out --label.")
        names = names or own
        if not propagate:
            index, prompts, objects = *on_one_slice(given, objects), []
        else:
            prompts = [prompt for slices_of in objects for prompt in slices_of.values()]
    else:
        prompts = build_prompts(boxes, points, negative_points, keyframed=bool(keyframes))
        objects = build_keyframes(prompts, index, keyframes) if propagate else []
    require_names(names, len(objects) if propagate else len(prompts))
    started = time.perf_counter()
    open_model = functools.partial(open_tuned, prompts_per_image=len(prompts))
    candidates, png = 3 if multimask else 1, not no_png
    kind = {"png": png, "named": propagate or bool(names), "volume": propagate}
    stages = click.get_current_context().with_resource(Stages())
    with Background(functools.partial(_opened_early, open_model, provider)) as opening:
        check_output(output, source, candidates, **kind)
        click.get_current_context().with_resource(claimed(output, source))
        stages.begin("reading the scan")
        scan, view = _read(given, frame, min(objects[0]) if objects else index, axis, plane)
        if not overwrite:
            check_replaceable(output, scan, view, candidates, **kind)
        stages.begin("opening the model")
        predictor = opening.result() or open_model()
    if model_type is not None:
        check_model_type(model_type, predictor.manifest.backbone, model)
    result: Segmentation | VolumeSegmentation
    if propagate:
        stages.end()
        total = slices[1] - slices[0] + 1 if slices else 0
        with ProgressBar(total, "slice") as progress:
            result = segment_volume(
                scan,
                predictor,
                keyframes=objects,
                names=names,
                axis=axis,
                plane=plane,
                slices=slices,
                on_slice=lambda _number: progress.advance(),
            )
    else:
        stages.begin("encoding the slice and decoding the prompts")
        result = segment(
            scan, predictor, prompts=prompts, slice=index, axis=axis, plane=plane, names=names, multimask=multimask
        )
    seconds = time.perf_counter() - started
    stages.begin("writing the results")
    files = result.write(output, png=png, overwrite=overwrite)
    stages.end()
    provenance = json.loads(next(file for file in files if file.suffix == ".json").read_text("utf-8"))
    for note in [*result.notes, *provenance["notes"][len(result.notes) :]]:
        say(f"note: {note}")
    ran = ", ".join(dict.fromkeys(predictor.providers.values()))
    cached = ", embedding from the cache" if provenance["embedding"]["from_cache"] else ""
    count, profile = len(objects) or len(prompts), predictor.manifest.profile.name
    say(f"{count} object(s) in {seconds:.1f} s on {ran}, profile {profile}{cached}")
    if as_json:
        emit(json.dumps({**provenance, "files": [str(file) for file in files]}, indent=2, allow_nan=False))
    else:
        lines = _volume_lines(provenance["volume"]) if propagate else _object_lines(provenance["candidates"])
        emit("\n".join([*lines, *(str(file) for file in files)]))


def _opened_early(open_model: Callable[[], Predictor], provider: Provider) -> Predictor | None:
    """The model on the CPU, where it opens in a moment, while the scan is read; errors of the scan are reported first.

    Other providers may compile for minutes, during which a mistake in the scan's path would go unreported; and they
    redirect stderr, to which reading the scan may write.
    """
    return open_model() if is_cpu(provider) else None


def _read(
    source: Path | Scan, frame: int | None, index: int | None, axis: int | None, plane: Plane | None
) -> tuple[Scan, SliceView]:
    scan = source if isinstance(source, Scan) else _read_scan(source, frame)
    try:
        return scan, choose_view(scan, index, axis, plane)
    except SliceChoiceError as error:
        raise click.UsageError(f"{error}.") from error


def _read_scan(source: Path, frame: int | None) -> Scan:
    try:
        return read_scan(source, frame)
    except MissingFrameError as error:
        raise click.UsageError(f"{error}.") from error


def _volume_lines(volume: dict[str, Any]) -> list[str]:
    """A line per object: its name, size and slices, and one per end that says why it is there."""
    lines = []
    for one in volume["objects"]:
        size = "" if one["volume_mm3"] is None else f", {one['volume_mm3']:.6g} mm3"
        lines += [
            f"object {one['label']} ({one['name']}): slices {one['first_slice']} to {one['last_slice']}, "
            f"{one['voxels']} voxels{size}",
            f"  first: {one['ends']['first']}",
            f"  last: {one['ends']['last']}",
        ]
    return lines


def _object_lines(candidates: list[list[dict[str, Any]]]) -> list[str]:
    """A line per object: its number and name, score, voxels and volume."""
    lines = []
    for number, objects in enumerate(candidates, start=1):
        of_candidate = f"candidate {number}, " if len(candidates) > 1 else ""
        for one in objects:
            name = f" ({one['name']})" if one["name"] else ""
            volume = "" if one["volume_mm3"] is None else f", {one['volume_mm3']:.6g} mm3"
            score = f"score {one['score']:.3f}, {one['voxels']} voxels{volume}"
            lines.append(f"{of_candidate}object {one['label']}{name}: {score}")
    return lines
