"""Seeded SAM models whose masks are worth comparing: each covers a part of its image and depends on its prompt.

A freshly initialised SAM answers every prompt with the same empty or full mask, because its attention is almost uniform
and its logits sit far on one side of zero. `seeded_sam` sharpens the attention, gives the encoder's positions something
to say, and shifts each mask token's last bias until its logits are centred.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from segment_anything.modeling import Sam

from samri.model import Architecture, SamDecoder, build_sam, infer_architecture

SMALL = Architecture(
    image_size=128,
    patch_size=8,
    encoder_width=64,
    encoder_depth=4,
    encoder_heads=4,
    encoder_mlp=160,
    window_size=6,  # 16 tokens are no multiple of it: windows are padded, as they are in ViT-B.
    global_blocks=(1, 3),
    decoder_width=64,
    decoder_depth=2,
    decoder_mlp=128,
    attention_downsample=2,
    mask_tokens=4,
    mask_channels=16,
    score_head_depth=3,
    score_head_width=48,
)
"""Exports in seconds, and differs from ViT-B in every number that a hard-wired 1024, 64 or 256 would get wrong."""

MEDIUM = dataclasses.replace(
    SMALL, image_size=256, patch_size=16, encoder_width=96, encoder_heads=3, window_size=5, decoder_width=128
)

VIT_B = Architecture(
    image_size=1024,
    patch_size=16,
    encoder_width=768,
    encoder_depth=12,
    encoder_heads=12,
    encoder_mlp=3072,
    window_size=14,
    global_blocks=(2, 5, 8, 11),
    decoder_width=256,
    decoder_depth=2,
    decoder_mlp=2048,
    attention_downsample=2,
    mask_tokens=4,
    mask_channels=16,
    score_head_depth=3,
    score_head_width=256,
)


def seeded_sam(architecture: Architecture = SMALL, seed: int = 0) -> Sam:
    """A SAM model of that shape; the same seed gives the same weights."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        sam = build_sam(architecture)
        _liven_encoder(sam)
        _liven_decoder(sam)
        _centre_masks(sam)
    return sam


def with_other_decoder(sam: Sam, seed: int) -> Sam:
    """A model with the encoder of `sam` and a decoder of its own, as fine-tuning leaves it."""
    other = seeded_sam(infer_architecture(sam.state_dict(), "sam"), seed)
    other.image_encoder.load_state_dict(sam.image_encoder.state_dict())
    return other


def save_checkpoint(path: Path, sam: Sam) -> Path:
    """Write an ordinary state dict, as Meta's checkpoints are."""
    torch.save(sam.state_dict(), path)
    return path


def _liven_encoder(sam: Sam) -> None:
    """Places and neighbours matter, and no bias is zero or scale one, so that a dropped one shows."""
    for name, weight in sam.image_encoder.named_parameters():
        if "rel_pos" in name:
            weight.normal_(0, 0.15)
        elif name == "pos_embed":
            weight.normal_(0, 0.5)
        elif weight.ndim == 1:
            weight.add_(0.1 * torch.randn_like(weight))


def _liven_decoder(sam: Sam) -> None:
    """Attention that picks places and tokens, instead of averaging over all, and logits and scores of a few units."""
    for name, weight in sam.mask_decoder.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.mul_(3)
        elif name.endswith(("v_proj.weight", "out_proj.weight")) or ("hypernetworks" in name and weight.ndim == 2):
            weight.mul_(2)
        elif weight.ndim == 1:
            weight.add_(0.1 * torch.randn_like(weight))
    for mlp in sam.mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.mul_(10)
        mlp.layers[-1].bias.mul_(10)
    sam.mask_decoder.iou_prediction_head.layers[-1].weight.mul_(5)


def _centre_masks(sam: Sam) -> None:
    """Shift each hypernetwork's last bias until its mask's logits average zero over places and prompts.

    The mean logit is affine in that bias, so its gradient gives the exact step. An embedding is not computed for this:
    normalised noise around a common vector has the statistics of the livened encoder's.
    """
    channels, grid = sam.prompt_encoder.embed_dim, sam.prompt_encoder.image_embedding_size[0]
    noise = 0.8 * torch.randn(1, channels, grid, grid) + 0.6 * torch.randn(1, channels, 1, 1)
    coords, labels = _scattered_prompts(sam.image_encoder.img_size)
    biases = [mlp.layers[-1].bias for mlp in sam.mask_decoder.output_hypernetworks_mlps]
    with torch.enable_grad():
        logits, _ = SamDecoder(sam)(sam.image_encoder.neck[3](noise), coords, labels)
        means = logits.mean((0, 2, 3))
        slopes = torch.autograd.grad(means.sum(), biases)
    for bias, mean, slope in zip(biases, means.detach(), slopes, strict=True):
        bias.sub_(mean * slope / slope.square().sum())


def _scattered_prompts(image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four boxes and four pairs of points in the model frame: coordinates (8, 3, 2) and labels (8, 3)."""
    corners, _ = torch.sort(image_size * torch.rand(4, 2, 2), dim=1)
    coords = torch.cat([corners, image_size * torch.rand(4, 2, 2)])
    labels = torch.tensor([[2.0, 3, -2]] * 4 + [[1.0, 0, -1]] * 4)
    return torch.cat([coords, torch.zeros(8, 1, 2)], dim=1), labels
