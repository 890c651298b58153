"""The demo model's shape: segment-anything's own classes, a twenty-fifth of ViT-B's parameters."""

from __future__ import annotations

import math
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.transformer import Attention
from torch import nn

IMAGE_SIZE, PATCH = 256, 8
GRID = IMAGE_SIZE // PATCH
WIDTH, DEPTH, HEADS, WINDOW, GLOBAL_BLOCKS = 192, 6, 3, 8, (2, 5)
CHANNELS = 128
PLACE_SCALES = (0.125, 8.0)


def tiny_sam(seed: int = 0, side: int = IMAGE_SIZE) -> Sam:
    """A `Sam` with seeded weights, 3.9 M parameters at the usual `side`.

    Args:
        seed: Seed of the weights; the global generator is left as it was.
        side: Pixels of the square input, a multiple of 8.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grid = side // PATCH
        encoder = ImageEncoderViT(
            img_size=side,
            patch_size=PATCH,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            out_chans=CHANNELS,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=WINDOW,
            global_attn_indexes=GLOBAL_BLOCKS,
        )
        sam = Sam(
            encoder,
            PromptEncoder(CHANNELS, (grid, grid), (side, side), mask_in_chans=16),
            MaskDecoder(
                transformer_dim=CHANNELS,
                transformer=TwoWayTransformer(
                    depth=2, embedding_dim=CHANNELS, num_heads=8, mlp_dim=512, attention_downsample_rate=1
                ),
                iou_head_hidden_dim=CHANNELS,
            ),
        )
        _initialise_encoder(sam.image_encoder)
        _initialise_places(sam.prompt_encoder)
        _initialise_decoder(sam.mask_decoder)
        return sam


def _initialise_encoder(encoder: ImageEncoderViT) -> None:
    """Positions that differ and small linear weights, as ViTs are started; the class leaves zeros."""
    assert encoder.pos_embed is not None
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    for module in encoder.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


def _initialise_places(prompt_encoder: PromptEncoder) -> None:
    """Half of the frequencies along x alone, half along y, from coarse to fine.

    The class draws random directions of one scale: a place is then like those around it. A box differs: its
    structure touches the line x = left somewhere and crosses it nowhere. With an axis to each frequency, the product of
    two encodings is a term in x plus one in y, so attention finds lines from the start, as with the sine encodings of
    detection transformers. After 400 steps on windows of 64 pixels, boxes got a mean Dice of 0.65 instead of 0.61.
    """
    frequencies = prompt_encoder.pe_layer.positional_encoding_gaussian_matrix  # (2, C / 2), times 2 pi
    each = frequencies.shape[1] // 2
    coarsest, finest = (math.log10(scale) for scale in PLACE_SCALES)
    frequencies.zero_()
    frequencies[0, :each] = frequencies[1, each:] = torch.logspace(coarsest, finest, each)


def _initialise_decoder(decoder: MaskDecoder) -> None:
    """Weights that keep a signal's variance from layer to layer: the default start answers with logits near zero.

    Keys start as queries do, so that from the first step on tokens and places near each other attend to each other.
    """
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ConvTranspose2d):  # Kernels don't overlap: a pixel gets one tap of each input.
            nn.init.normal_(module.weight, std=math.sqrt(2 / module.in_channels))
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for module in decoder.modules():
        if isinstance(module, Attention):
            module.k_proj.weight.data.copy_(module.q_proj.weight)
