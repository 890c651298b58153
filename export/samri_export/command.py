"""`samri-export`: a checkpoint goes in, a verified bundle of ONNX graphs comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from samri.bundle import Bundle
from samri.manifest import Precision
from samri.preprocessing import ProfileName, unclear_profile
from samri_export._choices import CONTRACTS, LEVELS, OFFERED_PRECISIONS, Contract, Level, check_choices
from samri_runtime.cli import (
    GivenPath,
    OutputFolder,
    Stages,
    command,
    emit,
    json_option,
    overwrite_option,
    precision_option,
    profile_option,
)


@command("samri-export")
@click.option(
    "--checkpoint",
    "-c",
    type=GivenPath(),
    required=True,
    metavar="FILE",
    help="Checkpoint of SAM, SAMRI or MedSAM to export: .pth, .pt, .bin or .safetensors.",
)
@click.option(
    "--output", "-o", type=OutputFolder(), required=True, metavar="FOLDER", help="Folder to create: the bundle."
)
@click.option(
    "--base",
    type=GivenPath(),
    metavar="FILE",
    help="Full checkpoint from which a decoder-only --checkpoint was fine-tuned.",
)
@profile_option()
@click.option("--name", help="Name of the model in the manifest.  [default: the checkpoint's file name]")
@precision_option(
    "precisions",
    type=click.Choice(OFFERED_PRECISIONS),
    multiple=True,
    default=("fp32",),
    help="Precision of the graphs. Repeatable. One below fp32 is kept only if its masks match those of fp32 on real "
    "slices.",
)
@click.option("--force", is_flag=True, help="Keep a precision whose masks do not match; the manifest records it.")
@click.option(
    "--contract",
    "contracts",
    type=click.Choice(CONTRACTS),
    multiple=True,
    help="Add a decoder with Meta's published interface: sam returns one mask, sam-multi all of them. Repeatable.",
)
@click.option(
    "--encoder-from",
    type=GivenPath(),
    metavar="BUNDLE",
    help="Bundle whose encoder is copied instead of exporting it again; it must come from the same weights.",
)
@click.option(
    "--verify",
    type=click.Choice(LEVELS),
    default="full",
    show_default=True,
    help="Verification against PyTorch: full on three images, quick on one, or off.",
)
@click.option(
    "--verify-image",
    "verify_images",
    type=GivenPath(),
    multiple=True,
    metavar="IMAGE",
    help="Scan to verify on as well. Repeatable.",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Round the weights to half precision and store them so: half the size, the same precision of arithmetic.",
)
@click.option(
    "--rounded-checkpoint",
    type=GivenPath(),
    metavar="FILE",
    help="With --compact: also save the rounded weights, of which the bundle is an exact export, as this .pth or .pt.",
)
@overwrite_option("Replace an existing bundle at --output.")
@json_option("Print a summary as JSON instead of the bundle's path.")
def main(
    checkpoint: Path,
    output: Path,
    base: Path | None,
    profile: ProfileName | None,
    name: str | None,
    precisions: tuple[Precision, ...],
    force: bool,
    contracts: tuple[Contract, ...],
    encoder_from: Path | None,
    verify: Level,
    verify_images: tuple[Path, ...],
    compact: bool,
    rounded_checkpoint: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Export a checkpoint to a folder of ONNX graphs, verified against PyTorch, for samri-run and other programs.

    Prints the path of the bundle; progress and the table of differences go to stderr. If the export fails or is
    stopped, nothing is left behind.

    Example: samri-export -c samri_vitb_bp.pth -o samri-b
    """
    if profile is None and (unclear := unclear_profile(checkpoint, base)) is not None:
        raise click.UsageError(f"{unclear}.")
    try:
        check_choices(
            profile=profile,
            contracts=contracts,
            precisions=precisions,
            verify=verify,
            verify_images=verify_images,
            force=force,
            compact=compact,
            rounded_checkpoint=rounded_checkpoint,
        )
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    with Stages() as stages:
        stages.begin("loading PyTorch")
        from samri_export import export_bundle

        bundle = export_bundle(
            checkpoint,
            output,
            base=base,
            profile=profile,
            name=name,
            contracts=contracts,
            precisions=tuple(dict.fromkeys(precisions)),
            encoder_from=encoder_from,
            verify=verify,
            verify_images=verify_images,
            compact=compact,
            rounded_checkpoint=rounded_checkpoint,
            force=force,
            overwrite=overwrite,
            progress=stages.say,
        )
    emit(json.dumps(_summary(bundle), indent=2) if as_json else str(output))


def _summary(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.folder),
        "manifest_sha256": bundle.sha256,
        "name": manifest.name,
        "backbone": manifest.backbone,
        "profile": manifest.profile.name,
        "graphs": [graph.to_json() for graph in manifest.graphs],
        "verification": dict(manifest.verification),
    }
