"""The command line of `samri-embed`: parse, call, print."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from samri.errors import InputError, ProviderError
from samri.manifest import Precision
from samri.preprocessing import ProfileName, unclear_profile
from samri_runtime import models
from samri_runtime.cli import (
    GivenFile,
    GivenFolder,
    GivenModel,
    OutputFolder,
    RenamedOption,
    Stages,
    command,
    duration,
    emit,
    json_option,
    precision_option,
    profile_option,
    provider_option,
    provider_settings_option,
    renamed_option,
    say,
)
from samri_runtime.providers import NUMBERED, Provider, provider_of_device
from samri_training.embed._division import WorkShare, parse_share, share_from
from samri_training.embed._encoders import BundleEncoder, Encoder, TorchEncoder, checkpoint_facts
from samri_training.embed._run import EmbedOutcome, embed
from samri_training.embed._sources import find_sources
from samri_training.embedding_folders import folders_by_split
from samri_training.extras import require_packages
from samri_training.store import PLAN_NAME, EmbeddingStore, EncoderFacts, StoredDtype
from samri_training.store._info import STORED_DTYPES


def _share(_context: click.Context, _option: click.Parameter, text: str | None) -> WorkShare | None:
    try:
        return None if text is None else parse_share(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


@command("samri-embed")
@click.option(
    "--data-dir",
    type=GivenFolder(),
    metavar="FOLDER",
    help="Slices to embed (*_img_*.nii.gz with *_seg_*.nii.gz), or a published embedding cache to convert (*.npz, "
    "*.npy, *.pt).",
)
@click.option(
    "--save-dir",
    type=OutputFolder(),
    required=True,
    metavar="FOLDER",
    help="Folder for the embedding store. Data in training, validation and testing folders (or train, val, test ...) "
    "makes one store for each, in subfolders of these names.",
)
@click.option("--checkpoint", type=GivenFile(), metavar="FILE", help="Checkpoint whose encoder runs in PyTorch.")
@click.option(
    "--base",
    type=GivenFile(),
    metavar="FILE",
    help="Full checkpoint from which a decoder-only --checkpoint was fine-tuned.",
)
@click.option(
    "--model",
    type=GivenModel(),
    metavar="BUNDLE",
    help="Bundle whose encoder runs in ONNX Runtime, instead of --checkpoint: a folder, or samri-tiny.",
)
@profile_option(help="Preprocessing of --checkpoint; a bundle has its own.  [default: samri]")
@click.option(
    "--device",
    metavar="NAME",
    help="PyTorch device for --checkpoint: cpu, cuda, cuda:1 or mps.  [default: auto]",
)
@provider_option(
    default=None,
    help="Execution provider for --model. The command fails if it cannot be used; only auto falls back to another.  "
    "[default: auto]",
)
@provider_settings_option(help="Option passed unchanged to the execution provider of --model. Repeatable.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of slices encoded at once.",
)
@click.option(
    "--num-workers",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    metavar="N",
    help="Number of threads that read and preprocess slices ahead of the encoder.",
)
@click.option(
    "--store-dtype",
    "dtype",
    type=click.Choice(STORED_DTYPES),
    default="fp16",
    show_default=True,
    help="Number format in which embeddings are stored.",
)
@precision_option(
    "encoder_precision",
    former=["--encoder-precision"],
    cls=RenamedOption,
    help="Precision of the encoder's arithmetic. Embeddings of different precisions are not mixed.",
)
@renamed_option(
    "--part",
    "part",
    former=["--shard"],
    callback=_share,
    metavar="I/N",
    help="Share of the work: part I of N, from 0/N.  [default: by SLURM's array and torchrun's rank; else all]",
)
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of slices per shard, that is per file of the store.  [default: 16 to 256, by number of slices]",
)
@click.option("--verify", is_flag=True, help="Check the SHA-256 of every shard in --save-dir, and do nothing else.")
@json_option("Print the outcome as JSON instead of the folders of the stores.")
def main(
    data_dir: Path | None,
    save_dir: Path,
    checkpoint: Path | None,
    base: Path | None,
    model: str | None,
    profile: ProfileName | None,
    device: str | None,
    provider: Provider | None,
    provider_options: dict[str, str],
    batch_size: int,
    num_workers: int,
    dtype: StoredDtype,
    encoder_precision: Precision,
    part: WorkShare | None,
    shard_size: int | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Run the frozen encoder once over all slices, and store the embeddings for training.

    If the command is stopped, the same command resumes. Under torchrun or in a SLURM array each process does its part.

    Example: samri-embed --data-dir slices --save-dir embeddings --checkpoint sam_vit_b_01ec64.pth
    """
    if verify:
        _verify(save_dir)
        return
    if data_dir is None:
        raise click.UsageError("--data-dir is missing: give the folder with the slices.")
    if (checkpoint is None) == (model is None):
        raise click.UsageError("give either --checkpoint, for PyTorch, or --model, for ONNX Runtime.")
    if model is not None and (profile is not None or base is not None):
        raise click.UsageError("--model has its own profile and needs no base: leave out --profile and --base.")
    if checkpoint is not None and provider is not None:
        raise click.UsageError("--provider is for --model: name a PyTorch device with --device.")
    share = share_from(os.environ, part)
    with Stages() as stages:
        stages.begin("loading packages")
        _require_packages(by_torch=checkpoint is not None)
        stages.begin("finding the slices")
        sources = find_sources(data_dir)
        stages.begin("opening the encoder")
        encoder: Encoder | None
        if model is not None:
            encoder = _open_bundle(model, _provider(provider, device), provider_options, encoder_precision)
            facts = encoder.facts
        else:
            assert checkpoint is not None
            cached = all(source.is_encoded for source in sources)
            profile = profile or _default_profile(checkpoint, base)
            encoder = (
                None if cached else _open_checkpoint(checkpoint, base, profile, device or "auto", encoder_precision)
            )
            facts = encoder.facts if encoder else checkpoint_facts(checkpoint, profile, encoder_precision, base)
    slices = sum(len(source.slices) for source in sources)
    say(
        f"{slices} slices, {facts.checkpoint}, profile {facts.profile}, stored as {dtype}, "
        f"{f'on {encoder.runs_on}' if encoder else 'taken over as they are'}" + (f", part {share}" * (share.count > 1))
    )
    outcome = embed(
        sources,
        save_dir,
        facts,
        encoder,
        dtype=dtype,
        batch_size=batch_size,
        workers=num_workers,
        share=share,
        slices_per_shard=shard_size,
    )
    _report(outcome, facts, as_json)


def _require_packages(*, by_torch: bool) -> None:
    modules = ("torch", "segment_anything") if by_torch else ("onnxruntime",)
    require_packages("samri-embed", "nibabel", *modules)


def _default_profile(checkpoint: Path, base: Path | None) -> ProfileName:
    if (unclear := unclear_profile(checkpoint, base)) is not None:
        raise click.UsageError(f"{unclear}.")
    return "samri"


def _open_checkpoint(
    checkpoint: Path, base: Path | None, profile: ProfileName, device: str, precision: Precision
) -> Encoder:
    if precision == "int8":
        raise click.UsageError("int8 needs a bundle: give --model instead of --checkpoint, or --precision fp16.")
    encoder = TorchEncoder(
        checkpoint, profile, device, precision, base, local_rank=int(os.environ.get("LOCAL_RANK", "0"))
    )
    for note in encoder.notes:
        say(f"note: {note}")
    return encoder


def _provider(provider: Provider | None, device: str | None) -> str:
    """What `--provider` names, or `--device`, which took providers before there was that option."""
    if provider is not None and device is not None:
        raise click.UsageError("--device is for --checkpoint: give --provider alone.")
    return provider or device or "auto"


def _open_bundle(model: str, device: str, options: dict[str, str], precision: Precision) -> Encoder:
    try:
        provider, of_device = provider_of_device(device)
    except ProviderError as error:
        raise click.UsageError(f"--device: {error}.") from error
    rank = os.environ.get("LOCAL_RANK", "")
    if rank and provider in NUMBERED:
        of_device = {"device_id": rank} | of_device
    options = of_device | options
    if rank not in ("", "0") and provider == "auto":
        say("note: --provider auto leaves every process on the first GPU: name the provider, as in --provider cuda")
    encoder = BundleEncoder(models.locate(model), provider, precision, options)
    for note in (*models.notes_on(model), *encoder.notes):
        say(f"note: {note}")
    return encoder


def _verify(save_dir: Path) -> None:
    folders = [part for parts in folders_by_split(save_dir).values() for part in parts if (part / PLAN_NAME).is_file()]
    if not folders:
        raise InputError(f"{save_dir} holds no embedding store: name the --save-dir of samri-embed")
    for folder in folders:
        store = EmbeddingStore.open(folder)
        shards = sum(1 for _ in store.verify())
        emit(f"{folder}: {len(store)} slices in {shards} shard(s), all whole")


def _report(outcome: EmbedOutcome, facts: EncoderFacts, as_json: bool) -> None:
    if outcome.slices:
        say(f"{outcome.slices} slices in {duration(outcome.seconds)}, {outcome.rate:.3g} per second")
    for folder, missing in outcome.stores.items():
        if missing:
            say(f"{folder}: {missing} shard(s) still missing: other parts write them, or run the command again")
    if as_json:
        values: dict[str, Any] = {
            "stores": [{"path": str(folder), "missing_shards": n} for folder, n in outcome.stores.items()],
            "embedding_id": facts.embedding_id,
            "part": str(outcome.share),
            "slices": outcome.slices,
            "changed_shards": outcome.changed,
            "seconds": round(outcome.seconds, 3),
        }
        emit(json.dumps(values, indent=2))
        return
    for folder in outcome.stores:
        emit(str(folder))
