"""The command line of `samri-embed`: parse, call, print."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import click

from samri.errors import InputError
from samri.manifest import PRECISIONS, Precision
from samri.preprocessing import PROFILE_NAMES, ProfileName, says_medsam
from samri_runtime import models
from samri_runtime._command import GivenModel, command, say
from samri_runtime.providers import Provider
from samri_training.embed._division import Share, parse_share, share_from
from samri_training.embed._encoders import BundleEncoder, Encoder, TorchEncoder, checkpoint_facts
from samri_training.embed._progress import duration
from samri_training.embed._run import Outcome, embed
from samri_training.embed._sources import find_sources
from samri_training.extras import require_packages
from samri_training.parts import parts_by_split
from samri_training.store import PLAN_NAME, EmbeddingStore, EncoderFacts, StoredDtype
from samri_training.store._info import STORED_DTYPES

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(path_type=Path)  # Or the folder of a model in several files.
# Providers that take a GPU's number.
_NUMBERED: tuple[Provider, ...] = ("cuda", "tensorrt", "rocm", "migraphx")
_TORCH_DEVICES: dict[str, Provider] = {"mps": "coreml"}


def _share(_context: click.Context, _option: click.Parameter, text: str | None) -> Share | None:
    try:
        return None if text is None else parse_share(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def _key_and_value(_context: click.Context, _option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs]
    for (key, equals, _), pair in zip(split, pairs, strict=True):
        if not (key and equals):
            raise click.BadParameter(f"{pair!r} is not of the form key=value.")
    return {key: value for key, _, value in split}


@command("samri-embed")
@click.option(
    "--data-dir",
    type=_FOLDER,
    metavar="FOLDER",
    help="Slices (*_img_*.nii.gz with *_seg_*.nii.gz), or a published cache (*.npz, *.npy, *.pt) to take over.",
)
@click.option(
    "--save-dir",
    type=_FOLDER,
    required=True,
    metavar="FOLDER",
    help="The store; where the data lies in folders for training, validation and testing (or train, val, test ...), "
    "one store each in folders so named.",
)
@click.option("--checkpoint", type=_FILE, metavar="FILE", help="Encode by torch, with the encoder of this .pth.")
@click.option(
    "--base", type=_FILE, metavar="FILE", help="The full checkpoint that a decoder-only --checkpoint was tuned from."
)
@click.option(
    "--model",
    type=GivenModel(),
    metavar="BUNDLE",
    help="Encode by ONNX Runtime, with the encoder of this bundle, or of samri-tiny.",
)
@click.option(
    "--profile",
    type=click.Choice(PROFILE_NAMES),
    help="Preprocessing that the checkpoint was trained with; a bundle has its own.  [default: samri]",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="With --checkpoint a torch device (cpu, cuda, cuda:1, mps), with --model a provider (cpu, cuda, ...).",
)
@click.option(
    "--provider-option",
    "provider_options",
    multiple=True,
    callback=_key_and_value,
    metavar="KEY=VALUE",
    help="Passed to the provider of a bundle as it is. Repeatable.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Slices encoded at once.")
@click.option(
    "--num-workers",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Threads that read and preprocess slices ahead of the encoder.",
)
@click.option(
    "--precision",
    "dtype",
    type=click.Choice(STORED_DTYPES),
    default="fp16",
    show_default=True,
    help="In which embeddings are stored.",
)
@click.option(
    "--encoder-precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Of the encoder's arithmetic; embeddings of different ones are not mixed.",
)
@click.option(
    "--shard",
    "part",
    callback=_share,
    metavar="I/N",
    help="Do part I of N, from 0/N on.  [default: SLURM's array, and torchrun's rank, where there are any]",
)
@click.option("--shard-size", type=click.IntRange(min=1), help="Slices in one file of the store.  [default: 16 to 256]")
@click.option("--verify", is_flag=True, help="Compare the SHA-256 of every shard in --save-dir, and do nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON rather than the stores' folders.")
def main(
    data_dir: Path | None,
    save_dir: Path,
    checkpoint: Path | None,
    base: Path | None,
    model: str | None,
    profile: ProfileName | None,
    device: str,
    provider_options: dict[str, str],
    batch_size: int,
    num_workers: int,
    dtype: StoredDtype,
    encoder_precision: Precision,
    part: Share | None,
    shard_size: int | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Run the frozen encoder over all slices once, and keep what it saw for training.

    Stopped at any moment, the same command goes on where it was. Started by torchrun or as a SLURM array, each
    process does its part.
    """
    if verify:
        _verify(save_dir)
        return
    if data_dir is None:
        raise click.UsageError("--data-dir is missing: name the folder with the slices.")
    if (checkpoint is None) == (model is None):
        raise click.UsageError("give --checkpoint, for torch, or --model, for ONNX Runtime.")
    if model is not None and (profile is not None or base is not None):
        raise click.UsageError("a bundle has its own --profile and needs no --base: leave them out.")
    share = share_from(os.environ, part)
    _require_packages(by_torch=checkpoint is not None)
    sources = find_sources(data_dir)
    encoder: Encoder | None
    if model is not None:
        encoder = _open_bundle(model, device, provider_options, encoder_precision)
        facts = encoder.facts
    else:
        assert checkpoint is not None
        cached = all(source.is_encoded for source in sources)
        profile = profile or _default_profile(checkpoint, base)
        encoder = None if cached else _open_checkpoint(checkpoint, base, profile, device, encoder_precision)
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
    if says_medsam(checkpoint, base):
        raise click.UsageError(f"{checkpoint} looks like MedSAM, whose preprocessing differs: pass --profile medsam.")
    return "samri"


def _open_checkpoint(
    checkpoint: Path, base: Path | None, profile: ProfileName, device: str, precision: Precision
) -> Encoder:
    if precision == "int8":
        raise click.UsageError("int8 is for bundles: pass --model, or --encoder-precision fp16.")
    encoder = TorchEncoder(
        checkpoint, profile, device, precision, base, local_rank=int(os.environ.get("LOCAL_RANK", "0"))
    )
    for note in encoder.notes:
        say(f"note: {note}")
    return encoder


def _open_bundle(model: str, device: str, options: dict[str, str], precision: Precision) -> Encoder:
    name, _, number = device.partition(":")
    name = _TORCH_DEVICES.get(name, name)
    provider = next((known for known in get_args(Provider) if known == name), None)
    if provider is None or (number and provider not in _NUMBERED) or (number and not number.isdecimal()):
        known = ", ".join(get_args(Provider))
        raise click.UsageError(f"unknown --device {device!r} for a bundle: choose one of {known}, cuda:N.")
    number = number or os.environ.get("LOCAL_RANK", "")
    if number and provider in _NUMBERED:
        options = {"device_id": number, **options}
    elif number not in ("", "0") and provider == "auto":
        say("note: --device auto leaves every process on the first GPU; name it, as in --device cuda")
    encoder = BundleEncoder(models.locate(model), provider, precision, options)
    for note in (*models.notes_on(model), *encoder.notes):
        say(f"note: {note}")
    return encoder


def _verify(save_dir: Path) -> None:
    folders = [part for parts in parts_by_split(save_dir).values() for part in parts if (part / PLAN_NAME).is_file()]
    if not folders:
        raise InputError(f"{save_dir} holds no embedding store: name the --save-dir of samri-embed")
    for folder in folders:
        store = EmbeddingStore.open(folder)
        shards = sum(1 for _ in store.verify())
        click.echo(f"{folder}: {len(store)} slices in {shards} shard(s), all whole")


def _report(outcome: Outcome, facts: EncoderFacts, as_json: bool) -> None:
    if outcome.slices:
        say(f"{outcome.slices} slices in {duration(outcome.seconds)}, {outcome.rate:.3g} a second")
    for folder, missing in outcome.stores.items():
        if missing:
            say(f"{folder}: {missing} shard(s) still missing; other parts make them, or run the command again")
    if as_json:
        values: dict[str, Any] = {
            "stores": [{"path": str(folder), "missing_shards": n} for folder, n in outcome.stores.items()],
            "embedding_id": facts.embedding_id,
            "part": str(outcome.share),
            "slices": outcome.slices,
            "changed_shards": outcome.changed,
            "seconds": round(outcome.seconds, 3),
        }
        click.echo(json.dumps(values, indent=2))
        return
    for folder in outcome.stores:
        click.echo(str(folder))
