"""The loss of a sample: Dice + 10 focal on the decoder's own logits, and what teaches the scores."""

from __future__ import annotations

import torch
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import FocalLoss
from torch import Tensor

FOCAL_WEIGHT = 10.0

_dice = DiceLoss(sigmoid=True, squared_pred=True, reduction="none")
_focal = FocalLoss(gamma=2.0, reduction="none")


def mask_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice + 10 * focal of each mask by itself: (B, M, L, L) logits and (B, 1, L, L) targets 0 or 1 -> (B, M).

    The mean of column 0 is MONAI's `DiceFocalLoss(sigmoid=True, squared_pred=True, lambda_dice=1, lambda_focal=10)`.
    Nothing is averaged over the batch here, so that a sample's loss does not depend on its company.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()  # Sums over 65536 pixels.
    wanted = targets.to(logits.dtype).expand_as(logits)
    dice: Tensor = _dice(logits, wanted)[:, :, 0, 0]
    focal: Tensor = _focal(logits, wanted).mean((2, 3))
    return dice + FOCAL_WEIGHT * focal


def sample_losses(logits: Tensor, scores: Tensor, targets: Tensor, train_scores: bool) -> Tensor:
    """The loss of each sample, (B,).

    That of mask 0, the answer to an unambiguous prompt. With `train_scores` also, as SAM was trained: that of the best
    of the other masks (only the winner learns, so that they stay different), and the squared error of every score
    against its mask's real IoU.

    Args:
        logits: (B, M, L, L) float.
        scores: (B, M) float, predicted IoU.
        targets: (B, 1, L, L), 0 or 1.
        train_scores: Teach the other masks and the scores too.
    """
    if not train_scores:
        return mask_losses(logits[:, :1], targets)[:, 0]
    losses = mask_losses(logits, targets)
    error = (scores.to(losses.dtype) - true_iou(logits, targets).to(losses.dtype)).square().mean(1)
    return losses[:, 0] + losses[:, 1:].min(1).values + error


def true_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of each mask (logits above 0) with its target: (B, M, L, L) and (B, 1, L, L) -> (B, M) float, no gradient."""
    found, wanted = logits.detach() > 0, targets > 0
    common = (found & wanted).sum((2, 3))
    return common / (found | wanted).sum((2, 3)).clamp(min=1)
