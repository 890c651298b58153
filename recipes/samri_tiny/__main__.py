"""`python -m samri_tiny`: from label maps to the demo model's bundle, in one command."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click
import torch

from samri.errors import InputError
from samri.model import infer_architecture, load_checkpoint
from samri.process import usable_cores
from samri.staging import staged_file
from samri_runtime.cli import command, emit, say
from samri_tiny.architecture import IMAGE_SIZE, tiny_sam
from samri_tiny.finetuning import finetune
from samri_tiny.plan import Phase, Plan
from samri_tiny.pretraining import pretrain
from samri_tiny.synthesis import hold_out, read_label_maps
from samri_training.devices import torch_device

_PATHS = click.Path(path_type=Path)


@command("samri_tiny")
@click.option("--label-maps", type=_PATHS, metavar="FOLDER", required=True, help="NIfTI label maps to draw from.")
@click.option("--output", type=_PATHS, metavar="FOLDER", required=True, help="For states, logs and checkpoints.")
@click.option(
    "--phases",
    default=",".join(":".join(map(str, dataclasses.astuple(phase))) for phase in Plan.phases),
    show_default=True,
    help="Phases of stage 1: side:images:prompts:steps,...",
)
@click.option("--lr", default=Plan.lr, show_default=True, help="Learning rate of AdamW, which moves all but matrices.")
@click.option(
    "--matrix-lr", default=Plan.matrix_lr, show_default=True, help="Learning rate of Muon, which moves the matrices."
)
@click.option(
    "--cooldown",
    type=click.FloatRange(0, 1, min_open=True),
    default=Plan.cooldown,
    show_default=True,
    help="Fraction of the steps, at the end, in which the learning rates fall to 0.",
)
@click.option(
    "--from", "start", type=_PATHS, metavar="FILE", help="Checkpoint to start from.  [default: random weights]"
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--bf16", is_flag=True, help="Train in bf16; ten times slower on processors without bf16 arithmetic.")
@click.option("--slices", default=1500, show_default=True, help="Number of slices drawn for stage 2.")
@click.option("--epochs", type=click.IntRange(0), default=10, show_default=True, help="Epochs of stage 2; 0 skips it.")
@click.option("--seed", default=2026, show_default=True, help="Random seed of stage 1.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True, help="Number of PyTorch threads.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes that draw slices.  [default: 1; beside a GPU, one per core]",
)
def main(
    label_maps: Path,
    output: Path,
    phases: str,
    lr: float,
    matrix_lr: float,
    cooldown: float,
    start: Path | None,
    device: str,
    bf16: bool,
    slices: int,
    epochs: int,
    seed: int,
    threads: int,
    workers: int | None,
) -> None:
    """Train samri-tiny: stage 1 on drawn slices, then SAMRI's own fine-tuning of the decoder.

    Every fifth label map is left out, for the evaluation. Started again, it resumes where it stopped.
    """
    torch.set_num_threads(threads)
    runs_on = torch_device(device)
    if workers is None:
        workers = 1 if runs_on.type == "cpu" else usable_cores()
    if not label_maps.is_dir():
        raise InputError(f"{label_maps} is no folder: name one that holds .nii or .nii.gz label maps")
    used, kept = hold_out([*label_maps.glob("*.nii"), *label_maps.glob("*.nii.gz")])
    maps = read_label_maps(used)
    say(f"{len(maps)} label maps to draw from; {len(kept)} left out for the evaluation; training on {runs_on}")
    weights = None if start is None else _weights(start)
    plan = Plan(phases=_phases(phases), lr=lr, matrix_lr=matrix_lr, cooldown=cooldown, seed=seed, bf16=bf16)
    model = pretrain(maps, output / "stage1", plan, start=weights, device=runs_on, workers=workers, progress=say)
    first = output / "stage1.pth"
    with staged_file(first) as path:
        torch.save(model.state_dict(), path)
    emit(str(first))
    if epochs:
        emit(str(finetune(maps, first, output / "stage2", slices=slices, epochs=epochs, device=str(runs_on))))


def _weights(start: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(start)
    if checkpoint.architecture != infer_architecture(tiny_sam().state_dict(), "samri-tiny"):
        raise InputError(f"{start} is a {checkpoint.architecture.backbone}: start from a samri-tiny")
    weights: dict[str, torch.Tensor] = checkpoint.sam.state_dict()
    return weights


def _phases(text: str) -> tuple[Phase, ...]:
    try:
        phases = tuple(Phase(*map(int, part.split(":"))) for part in text.split(","))
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"--phases {text!r} is not side:images:prompts:steps,...") from error
    for phase in phases:
        if min(dataclasses.astuple(phase)) < 1 or phase.side % 64 or phase.side > IMAGE_SIZE:
            raise click.UsageError(f"--phases {text!r}: sides are 64, 128, 192 or 256, and all numbers above 0")
    return phases


if __name__ == "__main__":
    main()
