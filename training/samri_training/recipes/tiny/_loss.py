"""The loss of stage 1: Dice and a cross entropy that is balanced around the target, so that nothing collapses.

Most of a picture is background. Averaged over all of it, a cross entropy (and a focal loss more so) is soon content
with empty masks, and a training from nothing stays there for long. In the target's own box about half of the pixels
belong to it: averaged there and outside separately, being right about the structure always pays.
"""

from __future__ import annotations

from monai.losses.dice import DiceLoss
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, max_pool1d

from samri_training.train._loss import true_iou

MARGIN = 1
"""Low-resolution pixels around the target's box that count as near."""

_dice = DiceLoss(sigmoid=True, soft_label=True, reduction="none")


def prompt_losses(logits: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
    """The loss of each prompt, (B,): mask 0's, that of the best of the others, and the error of the scores.

    Only the best of masks 1 to 3 learns, so that they stay different; every score learns its mask's real IoU.

    Args:
        logits: (B, 4, L, L) float.
        scores: (B, 4), predicted IoU.
        targets: (B, 1, L, L), 0 to 1.
    """
    logits = logits.float()
    masks = _mask_losses(logits, targets)
    error = (scores.float() - true_iou(logits, targets.round())).square().mean(1)
    return masks[:, 0] + 0.5 * masks[:, 1:].min(1).values + error


def _mask_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, M): Dice, and the mean cross entropy near the target and far from it."""
    wanted = targets.expand_as(logits)
    dice: Tensor = _dice(logits, wanted)[:, :, 0, 0]
    entropy = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    near = _near(targets)
    inside = (entropy * near).sum((2, 3)) / near.sum((2, 3))
    outside = (entropy * (1 - near)).sum((2, 3)) / (1 - near).sum((2, 3)).clamp(min=1)
    return dice + inside + outside


def _near(targets: Tensor) -> Tensor:
    """(B, 1, L, L), 1 in the target's box and `MARGIN` pixels around it, else 0."""
    used = targets > 0
    rows, columns = (_span(used.any(axis)[:, 0].float()) for axis in (3, 2))
    return (rows[:, :, None] * columns[:, None, :])[:, None]


def _span(used: Tensor) -> Tensor:
    """(B, L): 1 from the first to the last used place and `MARGIN` beyond, else 0."""
    widened = max_pool1d(used, 2 * MARGIN + 1, stride=1, padding=MARGIN)
    return widened.cummax(1).values * widened.flip(1).cummax(1).values.flip(1)
