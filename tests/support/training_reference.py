"""Training written out plainly on segment-anything's modules: one sample at a time, formulas as in the papers."""

from __future__ import annotations

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from samri_training.train._samples import TrainingBatch


def doubled(sam: Sam) -> Sam:
    """`sam` in float64, in which two ways of adding up agree to many digits.

    segment-anything makes coordinates float32 whatever the weights are; those of `random_batch` are exact in it.
    """
    sam.double()
    places = sam.prompt_encoder.pe_layer
    encode = places._pe_encoding
    places._pe_encoding = lambda coords: encode(coords.double())
    return sam


def random_batch(size: int, seed: int = 0, kinds: str = "box", grid: int = 16, channels: int = 64) -> TrainingBatch:
    """Embeddings, prompts and targets of `size` samples; `kinds` alternate: boxes and points by turns."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, channels, grid, grid, generator=generator, dtype=torch.float64).half()
    targets = torch.zeros(size, 1, 4 * grid, 4 * grid, dtype=torch.bool)
    coords = torch.zeros(size, 2, 2)
    labels = torch.zeros(size, 2)
    rng = np.random.default_rng(seed)
    for at in range(size):
        top, left = rng.integers(2, 20, 2)
        bottom, right = rng.integers(30, 60, 2)
        targets[at, 0, top:bottom, left:right] = True
        if kinds == "box" or at % 2 == 0:
            coords[at] = torch.tensor([[2.0 * left, 2 * top], [2.0 * right, 2 * bottom]])
            labels[at] = torch.tensor([2.0, 3])
        else:
            coords[at, 0] = torch.tensor([left + right, top + bottom])
            labels[at] = torch.tensor([1.0, -1])
    return TrainingBatch(features, coords, labels, targets)


def reference_masks(sam: Sam, batch: TrainingBatch, at: int) -> tuple[Tensor, Tensor]:
    """All masks and scores of sample `at`, by segment-anything's own modules in their own dtype."""
    dtype = sam.mask_decoder.iou_token.weight.dtype
    coords, labels = batch.coords[at : at + 1].to(dtype), batch.labels[at : at + 1]
    box = coords.reshape(1, 4) if labels[0, 0] == 2 else None
    point = None if labels[0, 0] == 2 else (coords[:, :1], labels[:, :1])
    sparse, dense = sam.prompt_encoder(points=point, boxes=box, masks=None)
    low_res, scores = sam.mask_decoder.predict_masks(
        image_embeddings=batch.features[at : at + 1].to(dtype),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    return low_res[0], scores[0]


def reference_mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice with squared denominators + 10 focal with gamma 2 of one mask, (L, L) each."""
    probability, wanted = torch.sigmoid(logits), target.to(logits.dtype)
    together = 2 * (probability * wanted).sum() + 1e-5
    dice = 1 - together / ((probability**2).sum() + (wanted**2).sum() + 1e-5)
    right = torch.where(target, probability, 1 - probability).clamp(min=1e-30)
    return dice + 10 * (-((1 - right) ** 2) * torch.log(right)).mean()


def reference_loss(sam: Sam, batch: TrainingBatch, at: int, train_scores: bool = False) -> Tensor:
    """The loss of one sample."""
    masks, scores = reference_masks(sam, batch, at)
    target = batch.targets[at, 0]
    loss = reference_mask_loss(masks[0], target)
    if train_scores:
        loss = loss + torch.stack([reference_mask_loss(mask, target) for mask in masks[1:]]).min()
        for mask, score in zip(masks, scores, strict=True):
            found = mask.detach() > 0
            iou = (found & target).sum() / (found | target).sum()
            loss = loss + (score - iou) ** 2 / len(masks)
    return loss
