"""All that decides how stage 1 goes: its phases, and the course of its learning rates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one size.

    Attributes:
        side: Pixels of the window of the frame.
        images: In a batch.
        prompts: For each image.
        steps: Number of optimizer steps.
    """

    side: int
    images: int
    prompts: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """All that decides how stage 1 goes.

    Attributes:
        phases: In order.
        lr: AdamW's, after `warmup` steps; constant, then falling linearly to zero.
        matrix_lr: Muon's, with the same course.
        warmup: Steps.
        cooldown: Fraction of the steps over which the learning rates fall, above 0.
        weight_decay: Weight decay of both optimizers.
        clip_norm: Maximum norm of the gradient.
        ema: Decay of the weights' moving average, which is the result.
        seed: Random seed of weights, slices and prompts.
        bf16: Matrix products in bfloat16: twice as fast on processors made for it, ten times slower on others; on an
            H100 no faster: 115 ms a step of 48 frames with 16 prompts, and 117 in TensorFloat-32.
    """

    phases: tuple[Phase, ...] = (Phase(64, 24, 8, 900), Phase(128, 10, 16, 1800), Phase(256, 4, 24, 1800))
    lr: float = 2e-3
    matrix_lr: float = 1e-2
    warmup: int = 100
    cooldown: float = 0.6
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema: float = 0.995
    seed: int = 2026
    bf16: bool = False

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def pace(self, step: int) -> float:
        """Factor of the learning rates in step `step`, counted from 0."""
        return min((step + 1) / self.warmup, 1.0, (self.steps - step) / (self.cooldown * self.steps))
