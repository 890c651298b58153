"""`samri-export`: a checkpoint goes in, a verified bundle of ONNX graphs comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from samri.bundle import Bundle
from samri.manifest import Precision
from samri.preprocessing import ProfileName, says_medsam
from samri_export._choices import CONTRACTS, LEVELS, OFFERED_PRECISIONS, Contract, Level
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
    help="SAM, SAMRI or MedSAM weights: .pth, .pt, .bin, .safetensors.",
)
@click.option("--output", "-o", type=OutputFolder(), required=True, help="Folder to make: the bundle.")
@click.option("--base", type=GivenPath(), help="For a decoder-only checkpoint: the full one that it was tuned from.")
@profile_option()
@click.option("--name", help="Name of the model in the manifest. Default: the checkpoint's file name.")
@precision_option(
    "precisions",
    type=click.Choice(OFFERED_PRECISIONS),
    multiple=True,
    default=("fp32",),
    help="Of the graphs; may be repeated. Lower ones are kept if their masks are fp32's, on real slices.",
)
@click.option("--force", is_flag=True, help="Keep a precision that falls below its bar; the manifest says so.")
@click.option(
    "--contract",
    "contracts",
    type=click.Choice(CONTRACTS),
    multiple=True,
    help="Add a decoder with Meta's published interface: sam gives one mask, sam-multi all. May be repeated.",
)
@click.option(
    "--encoder-from", type=GivenPath(), help="Copy the encoder of this bundle, if it was made of the same weights."
)
@click.option(
    "--verify",
    type=click.Choice(LEVELS),
    default="full",
    show_default=True,
    help="Compare with PyTorch on three pictures, on one (quick leaves out the landscape and the large one), or not.",
)
@click.option(
    "--verify-image",
    "verify_images",
    type=GivenPath(),
    multiple=True,
    help="Compare on this scan too. May be repeated.",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Round the weights to half precision and store them so: half the size, arithmetic as before.",
)
@click.option(
    "--rounded-checkpoint",
    type=GivenPath(),
    metavar="FILE",
    help="With --compact: keep the rounded weights as this .pth, which the bundle then equals.",
)
@overwrite_option("Replace the bundle at the output.")
@json_option("Print the result as JSON.")
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

    Progress and the table of differences go to stderr, the path of the bundle to stdout. Nothing is left behind when
    the export fails or is stopped.
    """
    if profile is None and says_medsam(checkpoint, base):
        raise click.UsageError(
            f"{checkpoint.name} says medsam, which preprocesses differently, and weights don't tell: "
            "pass --profile medsam (or sam or samri, if it was trained that way)"
        )
    if profile == "medsam" and contracts:
        raise click.UsageError(
            "--contract resizes as SAM does, by the longest side: it doesn't go with --profile medsam"
        )
    if verify == "off" and verify_images:
        raise click.UsageError("--verify-image has nothing to do with --verify off")
    if rounded_checkpoint is not None and not compact:
        raise click.UsageError("--rounded-checkpoint goes with --compact: nothing else rounds the weights")
    if rounded_checkpoint is not None and rounded_checkpoint.suffix not in (".pth", ".pt"):
        raise click.UsageError(f"--rounded-checkpoint is a .pth or .pt file, not {rounded_checkpoint.name}")
    if verify == "off" and set(precisions) != {"fp32"} and not force:
        raise click.UsageError(
            "a precision below fp32 is compared before it is kept: leave out --verify off, or add --force"
        )
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
