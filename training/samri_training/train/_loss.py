"""Losses of a sample: of its masks, on the decoder's low-resolution logits, and of its predicted scores."""

from __future__ import annotations

import torch
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import FocalLoss
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, max_pool1d

from samri_training.train._settings import Loss

FOCAL_WEIGHT = 10.0
MARGIN = 1
"""Low-resolution pixels around the target's box that count as near, for the balanced loss."""

_dice = DiceLoss(sigmoid=True, squared_pred=True, reduction="none")
_focal = FocalLoss(gamma=2.0, reduction="none")
_soft_dice = DiceLoss(sigmoid=True, soft_label=True, reduction="none")


def sample_losses(
    logits: Tensor, scores: Tensor, targets: Tensor, train_scores: bool, loss: Loss = "dice-focal"
) -> Tensor:
    """The loss of each sample, (B,).

    That of mask 0, the answer to an unambiguous prompt. With `train_scores` also, as SAM was trained: that of the best
    of the other masks (only the winner learns, so that they stay different), and the squared error of every score
    against its mask's real IoU.

    Args:
        logits: (B, M, L, L) float.
        scores: (B, M) float, predicted IoU.
        targets: (B, 1, L, L), 0 or 1; for the balanced loss 0 to 1.
        train_scores: Teach the other masks and the scores too.
        loss: Which, of the masks.
    """
    if not train_scores:
        return mask_losses(logits[:, :1], targets, loss)[:, 0]
    losses = mask_losses(logits, targets, loss)
    error = (scores.to(losses.dtype) - true_iou(logits, targets).to(losses.dtype)).square().mean(1)
    # A structure that covers no pixel by more than half has no IoU at this resolution.
    has_target = (targets > 0.5).flatten(1).any(1)
    return losses[:, 0] + losses[:, 1:].min(1).values + error * has_target


def mask_losses(logits: Tensor, targets: Tensor, loss: Loss = "dice-focal") -> Tensor:
    """The chosen loss of each mask by itself: (B, M, L, L) logits and (B, 1, L, L) targets 0 to 1 -> (B, M)."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()  # Sums over 65536 pixels.
    truth = targets.to(logits.dtype)
    return dice_focal_losses(logits, truth) if loss == "dice-focal" else balanced_losses(logits, truth)


def dice_focal_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice + 10 * focal of each mask by itself: (B, M, L, L) logits and (B, 1, L, L) targets 0 or 1 -> (B, M).

    The mean of column 0 is MONAI's `DiceFocalLoss(sigmoid=True, squared_pred=True, lambda_dice=1, lambda_focal=10)`.
    Nothing is averaged over the batch here, so that a sample's loss does not depend on its company.
    """
    truth = targets.expand_as(logits)
    dice: Tensor = _dice(logits, truth)[:, :, 0, 0]
    focal: Tensor = _focal(logits, truth).mean((2, 3))
    return dice + FOCAL_WEIGHT * focal


def balanced_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice, and the mean cross entropy near the target and far from it, of each mask: shapes as in `dice_focal_losses`.

    Most of a picture is background. Averaged over all of it, a cross entropy (and a focal loss more so) is soon content
    with empty masks, and a training from nothing stays there for long. In the target's own box about half of the pixels
    belong to it: averaged there and outside separately, being right about the structure always pays.
    """
    truth = targets.expand_as(logits)
    dice: Tensor = _soft_dice(logits, truth)[:, :, 0, 0]
    entropy = binary_cross_entropy_with_logits(logits, truth, reduction="none")
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


def true_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of each mask (logits above 0) with its target (above a half): (B, M, L, L) and (B, 1, L, L) -> (B, M) float,
    no gradient.
    """
    predicted, truth = logits.detach() > 0, targets > 0.5
    common = (predicted & truth).sum((2, 3))
    return common / (predicted | truth).sum((2, 3)).clamp(min=1)
