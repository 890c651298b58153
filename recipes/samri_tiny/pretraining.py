"""Stage 1: all of the small SAM, from random weights, on drawn slices; windows of the frame first, then all of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.utils.data import DataLoader

from samri.errors import InputError
from samri.model import weights_sha256
from samri.staging import staged_file
from samri_tiny._cuda_graph import Replayed
from samri_tiny._examples import DrawnExamples, ExampleBatch, collate, one_thread
from samri_tiny._frame import FrameWindow, corners
from samri_tiny._log import Log
from samri_tiny._loss import prompt_losses
from samri_tiny._optimizers import optimizers
from samri_tiny._rounds import corrected
from samri_tiny.architecture import tiny_sam
from samri_tiny.plan import Plan
from samri_tiny.synthesis import LabelMap
from samri_training.train._step import MovingAverage

FREQUENCIES = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
CPU = torch.device("cpu")
AGAIN = 1 / 3
"""Share of prompts that are asked a second time, with a correction."""
ASKED = ("box", "point", "both", "before", "refined")
"""Prompts whose Dice is logged: by kind, and before and after a correction."""

Teacher = Callable[..., Sequence[Tensor]]
"""(a batch's tensors, what is asked again, chance) -> the loss and the Dice of `ASKED`; fills the gradients."""


def pretrain(
    label_maps: Sequence[LabelMap],
    folder: Path,
    plan: Plan,
    *,
    start: Mapping[str, Tensor] | None = None,
    device: torch.device = CPU,
    workers: int = 1,
    save_every: int = 250,
    log_every: int = 25,
    progress: Callable[[str], None] = print,
) -> Sam:
    """Train, or go on where an earlier run in `folder` stopped.

    Args:
        label_maps: Subjects to draw from; none means shapes alone.
        folder: Gets `last.pt` (the state to go on from) and `log.jsonl`.
        plan: How.
        start: Weights to start from, a state dict of `tiny_sam`; None for random ones. The frequencies of places, which
            aren't learnt, are those of today's `tiny_sam` all the same.
        device: To train on.
        workers: Processes that draw; what they draw doesn't depend on how many there are.
        save_every: Steps between two states.
        log_every: Steps between two lines of the log.
        progress: Called with a line now and then.

    Returns:
        The model with its averaged weights, on the CPU.

    Raises:
        InputError: `folder` holds the state of another plan or start, or a loss wasn't finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _PretrainingRun(plan, start, device)
    run.resume(folder / "last.pt")
    log = Log(folder / "log.jsonl", run.step, log_every, progress)
    with _tensor_float32():
        for batch, window, teach in run.batches(label_maps, workers):
            rate = plan.lr * plan.pace(run.step)
            said = run.learn(batch, window, teach)
            saved = run.step % save_every == 0 or run.step == plan.steps
            if device == CPU or saved or run.step % log_every == 0:  # Elsewhere a check waits for the device.
                run.check()
            log.add(run.step, window.side, rate, said)
            if saved:
                run.save(folder / "last.pt")
    return run.averaged()


@contextlib.contextmanager
def _tensor_float32() -> Iterator[None]:
    """While this lasts, GPUs that have it multiply float32 matrices with 10 bits of mantissa."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _PretrainingRun:
    """The state that steps change."""

    def __init__(self, plan: Plan, start: Mapping[str, Tensor] | None, device: torch.device) -> None:
        self.plan = plan
        self.step = 0
        self.sam = tiny_sam(plan.seed)
        self._start: str | None = None
        if start is not None:
            self.sam.load_state_dict({**start, FREQUENCIES: self.sam.state_dict()[FREQUENCIES]})
            self._start = weights_sha256(self.sam)
        self.sam.to(device).train()
        self._device = device
        parameters = dict(self.sam.named_parameters())
        self._optimizers = optimizers(parameters, lr=plan.lr, matrix_lr=plan.matrix_lr, weight_decay=plan.weight_decay)
        self._average = MovingAverage(parameters, plan.ema)
        self._diverged = torch.zeros((), dtype=torch.bool, device=device)

    def batches(
        self, label_maps: Sequence[LabelMap], workers: int
    ) -> Iterator[tuple[ExampleBatch, FrameWindow, Teacher]]:
        """What is left to learn from, the window to do it in, and what teaches there."""
        first = 0
        for phase in self.plan.phases:
            last = first + phase.steps
            if self.step < last:
                window = FrameWindow(self.sam, phase.side)
                teach = self._teacher(window)
                # Neither an earlier phase nor the training that a start comes from drew the same slices.
                seed = (self.plan.seed, first, int((self._start or "0")[:8], 16))
                examples = DrawnExamples(label_maps, seed, phase.side, phase.prompts, phase.images * phase.steps)
                # Forked, also beside a GPU: spawned workers would import PyTorch anew, a quarter minute in each phase,
                # and these draw with numpy and OpenCV alone.
                rest = range((self.step - first) * phase.images, phase.images * phase.steps)
                loader = DataLoader(
                    examples,
                    batch_size=phase.images,
                    sampler=rest,
                    num_workers=workers,
                    prefetch_factor=6,
                    collate_fn=collate,
                    worker_init_fn=one_thread,
                    pin_memory=self._device.type == "cuda",
                )
                for batch in loader:
                    yield batch, window, teach
            first = last

    def learn(self, batch: ExampleBatch, window: FrameWindow, teach: Teacher) -> dict[str, Tensor]:
        """One step: every prompt is asked, and some of them a second time with a correction."""
        seed = self.plan.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(seed)
        choices = corners(window.side)
        row, column = torch.randint(choices, (2,), generator=generator).tolist()
        window.corner = (row, column)
        prompts = len(batch.labels)
        again = torch.randperm(prompts, generator=generator)[: max(round(AGAIN * prompts), 1)]
        if self._device != CPU:
            generator = torch.Generator(self._device).manual_seed(seed)
        chance = torch.empty(len(again), batch.quarters[0].numel(), device=self._device)
        chance.exponential_(generator=generator)
        loss, *dice = teach(*batch.tensors(), again, chance)
        self._move()
        self._diverged |= ~loss.isfinite()
        return {"loss": loss} | dict(zip(ASKED, dice, strict=True))

    def _teacher(self, window: FrameWindow) -> Teacher:
        """What fills the gradients; a CUDA device does so in one launch, if nothing but tensors changes."""
        teach = partial(self._gradients, window)
        fixed = corners(window.side) == 1
        return Replayed(teach, self._device) if fixed and self._device.type == "cuda" else teach

    def _gradients(self, window: FrameWindow, *tensors: Tensor) -> list[Tensor]:
        """The loss, whose gradients are filled, and the mean Dice of `ASKED`; nothing waits for the device in here."""
        self.sam.zero_grad(set_to_none=True)
        *fields, again, chance = (tensor.to(self._device, non_blocking=True) for tensor in tensors)
        batch = ExampleBatch(*fields)
        images, targets = batch.images(), batch.targets()
        with self._autocast():
            embeddings = window.encode(images).repeat_interleave(len(targets) // len(images), 0)
            logits, scores = window.decode(embeddings, batch.coords, batch.labels)
        kept = logits[again, :1].detach().float()
        coords, labels = corrected(batch.coords[again], batch.labels[again], kept, targets[again], chance)
        with self._autocast():
            second, second_scores = window.decode(embeddings[again], coords, labels, kept)
        first_losses = prompt_losses(logits, scores, targets)
        second_losses = prompt_losses(second, second_scores, targets[again])
        loss = torch.cat([first_losses, second_losses]).mean()
        torch.autograd.backward(loss)
        return [loss.detach(), *_dice_by_prompt(logits[:, :1].detach(), second[:, :1].detach(), targets, again, batch)]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.plan.bf16)

    def _move(self) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * self.plan.pace(self.step)
        torch.nn.utils.clip_grad_norm_(self.sam.parameters(), self.plan.clip_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        self._average.update()
        self.step += 1

    def check(self) -> None:
        """InputError if a loss wasn't finite."""
        if self._diverged:
            raise InputError(f"by step {self.step} the loss is not finite; lower the plan's lr")

    def averaged(self) -> Sam:
        """The model, with its averaged weights in place."""
        with self._average.in_place():
            state = {name: value.to(CPU, copy=True) for name, value in self.sam.state_dict().items()}
        result = tiny_sam(self.plan.seed)
        result.load_state_dict(state)
        return result.eval()

    def save(self, file: Path) -> None:
        """Everything that `resume` needs."""
        state = {
            "step": self.step,
            "plan": _identity(self.plan),
            "start": self._start,
            "model": self.sam.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "average": self._average.weights,
            "updates": self._average.updates,
        }
        with staged_file(file) as path:
            torch.save(state, path)

    def resume(self, file: Path) -> None:
        """Go on from a saved state, if there is one."""
        if not file.exists():
            return
        state = torch.load(file, weights_only=True, map_location=CPU)
        if (state["plan"], state["start"]) != (_identity(self.plan), self._start):
            raise InputError(f"{file} is of another plan or start: name another folder, or remove it to start anew")
        self.sam.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._average.load(state["average"], state["updates"])
        self.step = int(state["step"])


def _identity(plan: Plan) -> dict[str, Any]:
    """What two runs must share to be one; how long they take and when the rate falls may be decided on the way."""
    values = dataclasses.asdict(plan)
    del values["phases"], values["cooldown"]
    return values


def _dice_by_prompt(first: Tensor, second: Tensor, targets: Tensor, again: Tensor, batch: ExampleBatch) -> list[Tensor]:
    """Mean Dice of mask 0, of each of `ASKED`; NaN where nothing was asked so."""
    dice, refined = _dice(first, targets), _dice(second, targets[again])
    boxed, pointed = batch.labels[:, 1] >= 2, batch.labels[:, 0] == 1
    groups = (boxed & ~pointed, pointed & ~boxed, boxed & pointed)
    return [*((dice * members).sum() / members.sum() for members in groups), dice[again].mean(), refined.mean()]


def _dice(logits: Tensor, targets: Tensor) -> Tensor:
    """`samri.metrics.dice` of each mask of a batch, on its own device: (B, 1, L, L) twice -> (B,)."""
    found, wanted = logits.flatten(1) > 0, targets.flatten(1) > 0.5
    return 2 * (found & wanted).sum(1) / (found.sum(1) + wanted.sum(1)).clamp(min=1)
