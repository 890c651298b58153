"""The learning rate as a function of the step alone, so that a resumed run needs nothing but its step."""

from __future__ import annotations

import math

from samri_training.train._settings import Settings


def learning_rate(settings: Settings, step: int, total_steps: int) -> float:
    """The rate of step 0, 1, ...: a linear rise over `warmup_steps`, then constant, or a cosine down to `min_lr`."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if settings.scheduler == "constant":
        return settings.lr
    # The last step still learns a little: it stands one short of the end.
    done = (step - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
    return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
