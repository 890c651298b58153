"""From a checkpoint to a bundle: graphs written, compared with the model, described, and put in place as a whole."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samri import __version__
from samri.bundle import Bundle, write_manifest
from samri.errors import BundleError, CheckpointError
from samri.manifest import BundleFile, Graph, Manifest, Precision, Role, embedding_id
from samri.model import Checkpoint, ImageEncoder, PromptDecoder, encoder_sha256, load_checkpoint
from samri.preprocessing import ProfileName, says_medsam
from samri.preprocessing import profile as profile_named
from samri.staging import staged_folder
from samri_export._choices import OFFERED_PRECISIONS, Contract, Level
from samri_export._graph_specs import OPSET, decoder_spec, encoder_spec, sam_contract_spec
from samri_export._onnx_writing import write_graph
from samri_export._report import Report
from samri_export._sam_contract import SamContractDecoder
from samri_export._verification import verify as verify_graphs

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
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Export a SAM, SAMRI or MedSAM checkpoint to a bundle of ONNX graphs, and prove that they agree with it.

    The bundle appears at `output` as a whole, or not at all.

    Args:
        checkpoint: A .pth, .pt or .safetensors file.
        output: Folder to make.
        base: For a decoder-only checkpoint, the full one that it was tuned from.
        profile: Preprocessing that the checkpoint was trained with; it can't be read off the weights. None means
            `samri`, unless the file's name says medsam: then it has to be said.
        name: Name of the model; the checkpoint's file name by default.
        contracts: Decoders with Meta's published interface to add.
        precisions: Of the graphs; see `OFFERED_PRECISIONS`.
        encoder_from: A bundle whose encoder, made of the same weights, is copied instead of exported anew.
        verify: How much to compare with the checkpoint before anything is kept.
        verify_images: Scans or pictures to compare on, besides the built-in ones.
        overwrite: Replace what is at `output`.
        progress: Gets plain lines on what is going on.

    Returns:
        The bundle, opened; `manifest.verification` is the report.

    Raises:
        CheckpointError: The checkpoint can't be read, doesn't fit, or leaves the profile open.
        BundleError: `encoder_from` is no bundle, or its encoder is another one.
        VerificationError: A graph doesn't give the model's results.
        OutputError: `output` exists and isn't to be overwritten, or can't be written.
        ValueError: A precision that isn't offered, or a contract that doesn't suit the profile.
    """
    output = Path(output)
    chosen = _chosen_profile(profile, checkpoint, base)
    _check_request(chosen, contracts, precisions)
    progress(f"profile {chosen}" + ("" if profile else " (the default; --profile names another)"))
    # First of all, so that an output that can't be is told before minutes of work.
    with staged_folder(output, overwrite=overwrite) as folder:
        source = load_checkpoint(checkpoint, base)
        progress(f"{source.path.name}: {source.architecture.backbone}, {_millions(source)} M parameters")
        ids = _embedding_ids(source, chosen, precisions)
        graphs = []
        for precision in precisions:
            if encoder_from is None:
                progress("writing the encoder")
                graphs.append(_write_encoder(source, folder, precision, ids[precision]))
            else:
                graphs.append(_copy_encoder(Path(encoder_from), folder, precision, ids[precision]))
                progress(f"encoder taken from {encoder_from}")
            progress("writing the decoder")
            graphs += _write_decoders(source, folder, precision, contracts)
        report = _verified(source, chosen, folder, graphs, verify, [Path(image) for image in verify_images], progress)
        for line in report.table():
            progress(line)
        write_manifest(folder, _manifest(source, chosen, name, graphs, report))
    return Bundle.open(output)


def _chosen_profile(profile: ProfileName | None, checkpoint: str | Path, base: str | Path | None) -> ProfileName:
    if profile is None and says_medsam(checkpoint, base):
        raise CheckpointError(
            f"{checkpoint}: the name says medsam, whose preprocessing differs from SAM's, and the weights don't tell: "
            "pass --profile medsam, or --profile sam or samri if it was trained that way"
        )
    return profile or "samri"


def _check_request(profile: ProfileName, contracts: Sequence[Contract], precisions: Sequence[Precision]) -> None:
    unknown = [precision for precision in precisions if precision not in OFFERED_PRECISIONS]
    if unknown or not precisions:
        raise ValueError(f"precisions are {', '.join(OFFERED_PRECISIONS)}, not {unknown or 'none'}")
    if contracts and profile_named(profile).resize != "longest-side-bilinear":
        raise ValueError(
            "Meta's interface resizes by the longest side, which the medsam profile doesn't: "
            "leave out --contract, or export with --profile sam for applications that preprocess as SAM does"
        )


def _embedding_ids(source: Checkpoint, profile: ProfileName, precisions: Sequence[Precision]) -> dict[Precision, str]:
    weights = encoder_sha256(source.sam)
    size = source.architecture.image_size
    return {precision: embedding_id(weights, profile_named(profile), size, precision) for precision in precisions}


def _write_encoder(source: Checkpoint, folder: Path, precision: Precision, identity: str) -> Graph:
    path = folder / _file_name("encoder", precision)
    encoder = ImageEncoder(source.sam.image_encoder)
    external = write_graph(encoder, encoder_spec(source.architecture), path, sizes={"images": 1})
    return _graph(folder, "encoder", precision, path, external, identity)


def _copy_encoder(bundle_folder: Path, folder: Path, precision: Precision, identity: str) -> Graph:
    bundle = Bundle.open(bundle_folder)
    graph = bundle.graph("encoder", precision)
    if graph.embedding_id != identity:
        raise BundleError(
            f"{bundle_folder}: its encoder has other weights, another profile ({bundle.manifest.profile.name}) or "
            f"another image size ({bundle.manifest.image_size}): leave out --encoder-from"
        )
    bundle.graph_path("encoder", precision)
    for file in (graph.file, *graph.external_data):
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / file.path, folder / file.path)
    return graph


def _write_decoders(
    source: Checkpoint, folder: Path, precision: Precision, contracts: Sequence[Contract]
) -> list[Graph]:
    decoder = PromptDecoder(source.sam)
    path = folder / _file_name("decoder", precision)
    external = write_graph(decoder, decoder_spec(source.architecture), path, sizes={"prompts": 2, "points": 3})
    graphs = [_graph(folder, "decoder", precision, path, external)]
    for contract in dict.fromkeys(contracts):
        role = _CONTRACT_ROLES[contract]
        module = SamContractDecoder(decoder, single_mask=contract == "sam")
        path = folder / _file_name(role, precision)
        external = write_graph(module, sam_contract_spec(source.architecture, role), path, sizes={"num_points": 3})
        graphs.append(_graph(folder, role, precision, path, external))
    return graphs


def _verified(
    source: Checkpoint,
    profile: ProfileName,
    folder: Path,
    graphs: Sequence[Graph],
    level: Level,
    images: Sequence[Path],
    progress: Callable[[str], None],
) -> Report:
    files: dict[Precision, dict[Role, Path]] = {}
    for graph in graphs:
        files.setdefault(graph.precision, {})[graph.role] = folder / graph.file.path
    return verify_graphs(source, profile_named(profile), files, level=level, scans=images, progress=progress)


def _manifest(
    source: Checkpoint, profile: ProfileName, name: str | None, graphs: Sequence[Graph], report: Report
) -> Manifest:
    return Manifest(
        name=name or source.path.stem,
        backbone=source.architecture.backbone,
        image_size=source.architecture.image_size,
        embedding_shape=source.architecture.embedding_shape,
        profile=profile_named(profile),
        opset=OPSET,
        graphs=tuple(graphs),
        checkpoint=_provenance(source),
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


def _graph(
    folder: Path, role: Role, precision: Precision, path: Path, external: Sequence[Path], identity: str | None = None
) -> Graph:
    return Graph(
        role,
        precision,
        BundleFile.of(folder, path.name),
        tuple(BundleFile.of(folder, file.name) for file in external),
        embedding_id=identity,
    )


def _file_name(role: Role, precision: Precision) -> str:
    return f"{role}.onnx" if precision == "fp32" else f"{role}.{precision}.onnx"


def _millions(source: Checkpoint) -> str:
    return f"{sum(weight.numel() for weight in source.sam.parameters()) / 1e6:.1f}"
