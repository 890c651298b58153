"""From a checkpoint to a bundle: graphs written, compared with the model, described, and put in place as a whole."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from samri import __version__
from samri.bundle import Bundle, write_manifest
from samri.contract import GraphSpec, graph_spec
from samri.errors import BundleError, CheckpointError
from samri.manifest import Graph, Manifest, Precision, Role, embedding_id
from samri.model import (
    Architecture,
    Checkpoint,
    DecoderImageStage,
    DecoderPromptStage,
    ImageEncoder,
    SamDecoder,
    encoder_sha256,
    image_stage_shapes,
    load_checkpoint,
)
from samri.preprocessing import ProfileName, unclear_profile
from samri.preprocessing import profile as profile_named
from samri.staging import staged_folder
from samri_export._bindings import beyond_bindings
from samri_export._choices import OFFERED_PRECISIONS, Contract, Level, check_choices
from samri_export._compact import ROUNDED_TO, round_weights, staged_checkpoint, stored_in_half
from samri_export._gate_slices import gate_slices
from samri_export._lower_precisions import LowerPrecisions, file_name, measured_graph, without_unneeded
from samri_export._onnx_writing import OPSET, write_graph
from samri_export._replacing import check_bundle
from samri_export._report import VerificationReport
from samri_export._sam_contract import SamContractDecoder
from samri_export._verification import verify as verify_graphs
from samri_export._verification_cases import VerificationSlice, user_slices

_CONTRACT_ROLES: dict[Contract, Role] = {"sam": "decoder_sam", "sam-multi": "decoder_sam_multi"}
_TOOLS = ("torch", "segment-anything", "onnx", "onnxsim", "onnxruntime")


def export_bundle(
    checkpoint: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    profile: ProfileName | None = None,
    name: str | None = None,
    contracts: Sequence[Contract] = (),
    precisions: Sequence[Precision] = ("fp32",),
    encoder_from: str | Path | None = None,
    verify: Level = "full",
    verify_images: Sequence[str | Path] = (),
    compact: bool = False,
    rounded_checkpoint: str | Path | None = None,
    force: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Export a SAM, SAMRI or MedSAM checkpoint to a bundle of ONNX graphs, and prove that they agree with it.

    The bundle appears at `output` as a whole, or not at all.

    Args:
        checkpoint: A .pth, .pt, .bin or .safetensors file.
        output: Folder to make.
        base: For a decoder-only checkpoint, the full one that it was tuned from.
        profile: Preprocessing that the checkpoint was trained with; it can't be read off the weights. None means
            `samri`, unless the file's name says medsam: then it must be named.
        name: Name of the model; the checkpoint's file name by default.
        contracts: Decoders with Meta's published interface to add.
        precisions: Precisions of the graphs; see `OFFERED_PRECISIONS`. A lower one is compared with fp32 on real
            slices, and left out if it falls below its threshold; graphs that it lacks (`int8` has an encoder only) are
            added as fp32.
        encoder_from: A bundle whose encoder, made of the same weights, is copied instead of exported anew.
        verify: How much to compare with the checkpoint before anything is kept.
        verify_images: Scans or pictures to compare on, besides the built-in ones; lower precisions are judged on these
            alone, or on the T1 template that comes with nilearn.
        compact: Round the weights to half precision, before anything else, and store them so: about half the size. All
            arithmetic stays in the precision asked for, and `verify` compares with the rounded weights.
        rounded_checkpoint: A .pth file to make of the rounded weights; for compact bundles only.
        force: Keep a precision that falls below its threshold, or that wasn't compared; the manifest records it.
        overwrite: Replace the bundle at `output`, and the rounded checkpoint made with it; nothing else.
        progress: Receives one line for each stage.

    Returns:
        The bundle, opened; `manifest.verification` is the report.

    Raises:
        CheckpointError: The checkpoint can't be read, doesn't fit, or leaves the profile open.
        BundleError: `encoder_from` is no bundle, or its encoder is another one.
        VerificationError: A graph doesn't give the model's results, or no requested precision reaches its threshold.
        InputError: A scan can't be read, or a precision needs real slices and there are none.
        OutputError: `output` or `rounded_checkpoint` exists and isn't to be overwritten, or can't be written.
        ValueError: The options don't go together; see `check_choices`.
    """
    output = Path(output)
    profile_name = _chosen_profile(profile, checkpoint, base)
    check_choices(
        profile=profile_name,
        contracts=contracts,
        precisions=precisions,
        verify=verify,
        verify_images=verify_images,
        force=force,
        compact=compact,
        rounded_checkpoint=rounded_checkpoint,
    )
    lower = tuple(dict.fromkeys(precision for precision in precisions if precision != "fp32"))
    rounded_path = None if rounded_checkpoint is None else Path(rounded_checkpoint)
    progress(f"profile {profile_name}" + ("" if profile else " (the default; --profile names another)"))
    scans = [Path(image) for image in verify_images]
    slices = gate_slices(scans, profile_named(profile_name)) if lower and verify != "off" else None
    # First, so that an unreadable scan or an impossible output is reported before minutes of work.
    user_images = () if verify == "off" else user_slices(scans, profile_named(profile_name))
    with (
        staged_folder(output, overwrite=overwrite, check=check_bundle) as folder,
        staged_checkpoint(rounded_path, outside=output, overwrite=overwrite) as save_rounded,
    ):
        source = load_checkpoint(checkpoint, base)
        for note in source.notes:
            progress(f"note: {note}")
        progress(f"{source.path.name}: {source.architecture.backbone}, {_millions(source)} M parameters")
        if compact:
            round_weights(source)
            progress(f"weights rounded to {ROUNDED_TO}")
        ids = _embedding_ids(source, profile_name)
        if encoder_from is None:
            progress("writing the encoder")
            encoder = _write_encoder(source, folder, ids["fp32"])
        else:
            encoder = _copy_encoder(Path(encoder_from), folder, ids["fp32"])
            progress(f"encoder taken from {encoder_from}")
        progress("writing the decoder")
        graphs = [encoder, *_write_decoders(source, folder, contracts)]
        if compact:
            graphs = [stored_in_half(folder, graph) for graph in graphs]
        report = _verified(source, profile_name, folder, graphs, verify, user_images, progress)
        precisions_to_add = LowerPrecisions(lower, ids, slices, force)
        added, results = precisions_to_add.add(
            folder, graphs, profile_named(profile_name), source.architecture.image_size, progress
        )
        report = dataclasses.replace(report, variants=results)
        graphs = [*without_unneeded(folder, graphs, precisions, results), *added]
        for line in report.table():
            progress(line)
        provenance = _provenance(source)
        if compact:
            provenance |= {"rounded_to": ROUNDED_TO, **save_rounded(source)}
        write_manifest(folder, _manifest(source, provenance, profile_name, name, graphs, report))
    return Bundle.open(output)


def _chosen_profile(profile: ProfileName | None, checkpoint: str | Path, base: str | Path | None) -> ProfileName:
    if profile is None and (unclear := unclear_profile(checkpoint, base)) is not None:
        raise CheckpointError(unclear)
    return profile or "samri"


def _embedding_ids(source: Checkpoint, profile: ProfileName) -> dict[Precision, str]:
    weights = encoder_sha256(source.sam)
    size = source.architecture.image_size
    return {
        precision: embedding_id(weights, profile_named(profile), size, precision) for precision in OFFERED_PRECISIONS
    }


def _spec(architecture: Architecture, role: Role) -> GraphSpec:
    return graph_spec(
        role,
        image_size=architecture.image_size,
        embedding_shape=architecture.embedding_shape,
        masks=architecture.mask_tokens,
        image_stage=image_stage_shapes(architecture),
    )


def _write_encoder(source: Checkpoint, folder: Path, identity: str) -> Graph:
    path = folder / file_name("encoder", "fp32")
    encoder = ImageEncoder(source.sam.image_encoder)
    external = write_graph(encoder, _spec(source.architecture, "encoder"), path, sizes={"images": 1})
    return measured_graph(folder, "encoder", "fp32", path, external, identity)


def _copy_encoder(bundle_folder: Path, folder: Path, identity: str) -> Graph:
    bundle = Bundle.open(bundle_folder)
    graph = bundle.graph("encoder")
    if graph.embedding_id != identity:
        raise BundleError(
            f"{bundle_folder}: its encoder has other weights, another profile ({bundle.manifest.profile.name}) or "
            f"another image size ({bundle.manifest.image_size}): leave out --encoder-from"
        )
    beyond = beyond_bindings(onnx.load(str(bundle.graph_path("encoder")), load_external_data=False).graph)
    if beyond is not None:
        raise BundleError(
            f"{bundle_folder}: its encoder was made by an older version ({beyond}): leave out --encoder-from"
        )
    for file in (graph.file, *graph.external_data):
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / file.path, folder / file.path)
    return graph


def _write_decoders(source: Checkpoint, folder: Path, contracts: Sequence[Contract]) -> list[Graph]:
    decoder = SamDecoder(source.sam)
    modules: dict[Role, nn.Module] = {
        "decoder": decoder,
        "decoder_image": DecoderImageStage(source.sam),
        "decoder_prompts": DecoderPromptStage(source.sam),
    }
    for contract in contracts:
        modules[_CONTRACT_ROLES[contract]] = SamContractDecoder(decoder, single_mask=contract == "sam")
    graphs = []
    for role, module in modules.items():
        path = folder / file_name(role, "fp32")
        sizes = {"prompts": 2, "points": 3, "masks": 2, "num_points": 3}
        external = write_graph(module, _spec(source.architecture, role), path, sizes=sizes)
        graphs.append(measured_graph(folder, role, "fp32", path, external))
    return graphs


def _verified(
    source: Checkpoint,
    profile: ProfileName,
    folder: Path,
    graphs: Sequence[Graph],
    level: Level,
    user_images: Sequence[VerificationSlice],
    progress: Callable[[str], None],
) -> VerificationReport:
    files: dict[Precision, dict[Role, Path]] = {}
    for graph in graphs:
        files.setdefault(graph.precision, {})[graph.role] = folder / graph.file.path
    return verify_graphs(source, profile_named(profile), files, level=level, user_images=user_images, progress=progress)


def _manifest(
    source: Checkpoint,
    provenance: Mapping[str, Any],
    profile: ProfileName,
    name: str | None,
    graphs: Sequence[Graph],
    report: VerificationReport,
) -> Manifest:
    return Manifest(
        name=name or source.path.stem,
        backbone=source.architecture.backbone,
        image_size=source.architecture.image_size,
        embedding_shape=source.architecture.embedding_shape,
        profile=profile_named(profile),
        opset=OPSET,
        graphs=tuple(graphs),
        masks=source.architecture.mask_tokens,
        checkpoint=provenance,
        tools=_tool_versions(),
        verification=report.to_json(),
    )


def _provenance(source: Checkpoint) -> dict[str, Any]:
    files: dict[str, Any] = {"name": source.path.name, "sha256": source.sha256}
    if source.base_path is not None:
        files |= {"base_name": source.base_path.name, "base_sha256": source.base_sha256}
    return files


def _tool_versions() -> dict[str, str]:
    versions = {"samri": __version__, "python": platform.python_version()}
    for tool in _TOOLS:
        try:
            versions[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            # ONNX Runtime comes under several names, and none is needed without verification.
            continue
    return versions


def _millions(source: Checkpoint) -> str:
    return f"{sum(weight.numel() for weight in source.sam.parameters()) / 1e6:.1f}"
