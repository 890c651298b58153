"""The optimizer step over all processes: gradients, their sum, checks, learning rate, loss scale, moving average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from samri.errors import SamriError
from samri.model import SamDecoder
from samri_training.train._loss import sample_losses
from samri_training.train._processes import Processes, StoppedWithOthersError
from samri_training.train._samples import TrainingBatch
from samri_training.train._settings import Settings

MAX_BAD_STEPS = 30
"""So many in a row are no accident; more than fp16's scale needs to come down from where it starts."""

_LOSS, _COUNT, _FAILED, _EXTRA = 0, 1, 2, 3


class TrainingError(SamriError, RuntimeError):
    """Training must stop: it diverged, or memory ran out."""


@dataclass(frozen=True)
class StepResult:
    """What one step did, over all processes."""

    loss: float
    """Sum over the samples; not finite when the step was bad."""
    samples: int
    grad_norm: float
    """Norm of the mean gradient, before clipping."""
    moved: bool
    """False: nothing to learn from, or not finite."""
    bad: bool
    overflow: bool
    """Only fp16's scale was too high: it was lowered, and the step left out."""


def decoder_parameters(decoder: SamDecoder, train_scores: bool) -> dict[str, torch.nn.Parameter]:
    """Trained parameters, by name in the checkpoint: the mask decoder, without what the loss doesn't reach.

    Without `train_scores` that leaves out the score head and the other masks' own heads. Weight decay would shrink them
    step by step though nothing teaches them.
    """
    untaught = () if train_scores else ("iou_prediction_head.", "output_hypernetworks_mlps.")
    taught_anyway = "output_hypernetworks_mlps.0."
    return {
        f"mask_decoder.{name}": parameter
        for name, parameter in decoder.mask_decoder.named_parameters()
        if name.startswith(taught_anyway) or not name.startswith(untaught)
    }


class Training:
    """The state that steps change: weights, optimiser, moving average, loss scale.

    The gradients of all parameters are views of one flat buffer with three numbers at its end (loss, count of samples,
    failures). A step sums losses, not means, so a single sum of this buffer over the processes gives everything: it is
    divided by the count of valid samples of all of them, and what isn't finite anywhere is seen everywhere, at the same
    step. No process can wait for another that skipped its backward pass.
    """

    def __init__(self, decoder: SamDecoder, settings: Settings, processes: Processes, total_steps: int) -> None:
        self.decoder = decoder
        self.settings = settings
        self.total_steps = total_steps
        self.step_number = 0
        """Steps planned so far, also those that were left out: the schedule follows it."""
        self._processes = processes
        decoder.requires_grad_(False)
        self.parameters = decoder_parameters(decoder, settings.train_scores)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.average = MovingAverage(self.parameters, settings.ema) if settings.ema else None
        self.loss_scale = LossScale.starting(settings.amp == "fp16")
        self.bad_in_a_row = 0
        self._buffer = self._gradient_buffer()

    def step(self, batches: Iterable[TrainingBatch]) -> StepResult:
        """Learn from this process's batches together with those of the other processes.

        Raises:
            SamriError: A batch could not be loaded, here or elsewhere.
            TrainingError: Bad steps, and the settings say stop, or there were too many in a row.
        """
        self._buffer.zero_()
        tail = self._buffer[-_EXTRA:]
        failure = ""
        for batch in batches:
            if batch.failure:
                failure = batch.failure
                tail[_FAILED] = 1
            elif len(batch.features):
                for chunk in batch.chunks(self.settings.batch_size):
                    total = self.losses(chunk).sum()
                    torch.autograd.backward(total * self.loss_scale.scale)
                    tail[_LOSS] += total.detach()
                    tail[_COUNT] += len(chunk.features)
        self._processes.sum(self._buffer)
        return self._moved(failure)

    def losses(self, batch: TrainingBatch) -> Tensor:
        """The loss of each sample of a batch, (B,); one decoder pass."""
        device = self._processes.device
        dtype = next(iter(self.parameters.values())).dtype
        features, coords, labels, targets = (
            tensor.to(device, non_blocking=True)
            for tensor in (batch.features, batch.coords, batch.labels, batch.targets)
        )
        with autocast(self.settings, device):
            logits, scores = self.decoder(features.to(dtype), coords.to(dtype), labels.to(dtype))
        return sample_losses(logits, scores, targets, self.settings.train_scores, self.settings.loss)

    def _gradient_buffer(self) -> Tensor:
        """A flat buffer of which every parameter's `.grad` is a view; backward adds into it in place."""
        parameters = list(self.parameters.values())
        size = sum(parameter.numel() for parameter in parameters)
        buffer = torch.zeros(size + _EXTRA, dtype=parameters[0].dtype, device=parameters[0].device)
        pieces = torch.split(buffer[:size], [parameter.numel() for parameter in parameters])
        for parameter, gradient in zip(parameters, pieces, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return buffer

    def _moved(self, failure: str) -> StepResult:
        gradients, tail = self._buffer[:-_EXTRA], self._buffer[-_EXTRA:]
        gradients.div_(tail[_COUNT].clamp(min=1) * self.loss_scale.scale)
        # The only synchronization with the device in a step.
        norm, loss, samples, failed = torch.cat([gradients.norm()[None], tail]).tolist()
        self.step_number += 1
        if failure:
            raise TrainingError(failure)
        if failed:
            raise StoppedWithOthersError("another process of this run stopped; its own line says why")
        finite = math.isfinite(norm) and math.isfinite(loss)
        overflow = not finite and math.isfinite(loss) and self.loss_scale.dynamic
        report = StepResult(loss, int(samples), norm, finite and samples > 0, not finite and not overflow, overflow)
        self._judge(report)
        if report.moved:
            self._move(norm)
        return report

    def _move(self, norm: float) -> None:
        if 0 < self.settings.clip_norm < norm:
            self._buffer[:-_EXTRA].mul_(self.settings.clip_norm / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step_number - 1, self.total_steps)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def _judge(self, report: StepResult) -> None:
        """The same in every process, since the report is."""
        self.loss_scale.learn(report)
        if not report.bad and not report.overflow:
            self.bad_in_a_row = 0
            return
        self.bad_in_a_row += 1
        if report.bad and self.settings.bad_steps == "stop":
            raise TrainingError(
                f"step {self.step_number} has a loss or gradient that is not finite, and --bad-steps is stop: "
                "look at the slices of this step, lower --lr, or pass --bad-steps skip"
            )
        if self.bad_in_a_row >= MAX_BAD_STEPS:
            raise TrainingError(
                f"{MAX_BAD_STEPS} steps in a row up to step {self.step_number} were not finite: "
                "the weights or embeddings are beyond repair; lower --lr, use --amp bf16 or off, and resume"
            )


@dataclass
class LossScale:
    """The factor that keeps fp16's small gradients above zero: halved when they overflow, doubled after a long calm."""

    scale: float = 1.0
    dynamic: bool = False
    calm: int = 0

    _CALM_STEPS = 2000

    @classmethod
    def starting(cls, dynamic: bool) -> LossScale:
        """65536 for fp16, else always 1."""
        return cls(65536.0 if dynamic else 1.0, dynamic)

    def learn(self, report: StepResult) -> None:
        """Adapt to what a step showed."""
        if not self.dynamic or report.bad:
            return
        self.calm = 0 if report.overflow else self.calm + 1
        if report.overflow:
            self.scale /= 2
        elif self.calm == self._CALM_STEPS:
            self.scale, self.calm = self.scale * 2, 0


def autocast(settings: Settings, device: torch.device) -> torch.amp.autocast_mode.autocast:
    """The mixed precision that the settings ask for; the loss stays outside it."""
    dtype = torch.float16 if settings.amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=settings.amp != "off")


def learning_rate(settings: Settings, step: int, total_steps: int) -> float:
    """The rate of step 0, 1, ...: a linear rise over `warmup_steps`, then constant, or a cosine down to `min_lr`.

    It depends on the step alone, so that a resumed run needs nothing else.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if settings.scheduler == "constant":
        return settings.lr
    # The last step still learns a little: it stands one short of the end.
    progress = (step - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
    return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


class MovingAverage:
    """An exponential moving average of `parameters`: a smoother checkpoint than the last step.

    It decays faster in the first steps, so that the initial weights are forgotten.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.updates = 0
        self.weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for name, weight in self.weights.items():
            weight.lerp_(self._parameters[name], 1 - decay)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Go on where another run's average stood."""
        self.updates = updates
        for name, weight in self.weights.items():
            weight.copy_(weights[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts, the model has the averaged weights."""
        with torch.no_grad():
            trained = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
            self._swap(self.weights)
        try:
            yield
        finally:
            with torch.no_grad():
                self._swap(trained)

    def _swap(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])
