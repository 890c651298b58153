"""The loss of stage 1: the balanced one, so that nothing collapses, and what teaches the scores."""

from __future__ import annotations

from torch import Tensor

from samri_training.train._loss import balanced_losses, true_iou


def prompt_losses(logits: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
    """The loss of each prompt, (B,): mask 0's, that of the best of the others, and the error of the scores.

    Only the best of masks 1 to 3 learns, so that they stay different; every score learns its mask's real IoU.

    Args:
        logits: (B, 4, L, L) float.
        scores: (B, 4), predicted IoU.
        targets: (B, 1, L, L), 0 to 1.
    """
    logits = logits.float()
    masks = balanced_losses(logits, targets)
    error = (scores.float() - true_iou(logits, targets)).square().mean(1)
    return masks[:, 0] + 0.5 * masks[:, 1:].min(1).values + error
