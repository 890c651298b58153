"""SAM's way of asking again: the answer goes back in as a mask prompt, with a point where it was wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from samri.prompts import ABSENT


def corrected(coords: Tensor, labels: Tensor, logits: Tensor, targets: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts with one more point each, anywhere in the error: 1 where something is missing, 0 where too much is.

    Args:
        coords: (B, N, 2) in pixels of a frame twice as fine as the logits.
        labels: (B, N).
        logits: (B, 1, L, L), the answer.
        targets: (B, 1, L, L), 0 to 1.
        chance: (B, L * L) float, independent and exponentially distributed: where the randomness comes from.

    Returns:
        (B, N + 1, 2) and (B, N + 1); the point is absent where nothing was wrong.
    """
    wanted, found = targets.flatten(1) > 0.5, logits.flatten(1) > 0
    wrong = (wanted != found).float()
    perfect = ~wrong.any(1)
    # The largest of weights divided by exponential variables is each one with the weight's share of probability. So
    # torch.multinomial draws too, but it waits for a GPU to check the weights.
    place = ((wrong + perfect[:, None].float()) / chance).argmax(1, keepdim=True)
    side = logits.shape[-1]
    point = torch.cat([place % side, place // side], dim=1) * 2.0 + 0.5  # The middle of two by two pixels.
    label = wanted.gather(1, place).float().masked_fill(perfect[:, None], ABSENT)
    return torch.cat([coords, point[:, None]], dim=1), torch.cat([labels, label], dim=1)
