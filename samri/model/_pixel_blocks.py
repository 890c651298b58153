"""SAM's 2 x 2, stride-2 convolutions as matrix products, with channels last and pixels moved once.

Such a convolution has no overlap: each 2 x 2 block of pixels and its one coarse position are tied by a matrix. Staying
in (positions, channels) layout makes LayerNorm2d the ordinary LayerNorm over the last axis, and leaves a single shuffle
of pixels, on a tensor of few channels: the mask, where it enters and where it leaves.

Two such steps lie between a position of the grid and its 4 x 4 pixels, so a position holds 2 x 2 coarse blocks of 2 x 2
pixels each, in the order (block row, block column, pixel row, pixel column).
"""

from __future__ import annotations

from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional


def mask_features(prompt_encoder: PromptEncoder, masks: Tensor) -> Tensor:
    """The dense embedding of mask prompts: (B, 1, 4G, 4G) logits -> (B, P, C).

    A 2 x 2, stride-2 convolution is y[o] = sum over (i, a, b) of x[i, a, b] W[o, i, a, b] + bias[o] in each block, so
    (positions, 4i)(4i, o) + (o,).
    """
    first, first_norm, first_act, second, second_norm, second_act, last = prompt_encoder.mask_downscaling
    grid = prompt_encoder.image_embedding_size[0]
    blocks = masks.view(-1, grid, 2, 2, grid, 2, 2).permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, 4)
    coarse = first_act(_layer_norm(_shrinking(first, blocks), first_norm))
    fine = coarse.view(-1, 4 * first.out_channels)
    positions = second_act(_layer_norm(_shrinking(second, fine), second_norm))
    features = functional.linear(positions, last.weight.flatten(1), last.bias)
    return features.view(-1, grid * grid, last.out_channels)


def mask_logits(mask_decoder: MaskDecoder, positions: Tensor, token_weights: Tensor, grid: int) -> Tensor:
    """The decoder's upscaling and its product with the mask tokens.

    A 2 x 2, stride-2 transposed convolution is y[o, a, b] = sum over i of x[i] W[i, o, a, b] + bias[o] at each
    position, so (positions, i)(i, 4o) + (4o,).

    Args:
        mask_decoder: Its `output_upscaling` is applied.
        positions: (B, P, C) image side after the transformer.
        token_weights: (B, M, C / 8), the hypernetworks' answer for each mask token.
        grid: G, with P = G * G.

    Returns:
        (B, M, 4G, 4G) logits.
    """
    weight, bias = upscaling_matrix(mask_decoder.output_upscaling[0])
    return upscaled_mask_logits(mask_decoder, functional.linear(positions, weight.t(), bias), token_weights, grid)


def upscaling_matrix(convolution: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """The (in, 4 * out) matrix of a transposed convolution and its (4 * out,) bias, ordered (pixel, channel)."""
    assert convolution.bias is not None
    return convolution.weight.permute(0, 2, 3, 1).flatten(1), convolution.bias.repeat(4)


def upscaled_mask_logits(mask_decoder: MaskDecoder, upscaled: Tensor, token_weights: Tensor, grid: int) -> Tensor:
    """`mask_logits` from what its first convolution gave, (B, P, 4 * C / 4), or any positive multiple at a position."""
    _, norm, first_act, second, second_act = mask_decoder.output_upscaling
    masks = token_weights.shape[1]
    coarse = first_act(_layer_norm(upscaled.reshape(-1, second.in_channels), norm))
    weight, bias = upscaling_matrix(second)
    # The bias is added apart, to whole positions, since ONNX Runtime takes it into GELU then: a prompt was answered
    # 1.03 times as fast as with the bias in the product.
    positions = (coarse @ weight).view(-1, grid * grid, 16 * second.out_channels)
    fine = second_act(positions + bias.repeat(4))
    # Pixel by pixel in the end: (B, M, C / 8)(C / 8, P * 16).
    pixels = token_weights @ fine.view(-1, grid * grid * 16, second.out_channels).transpose(-2, -1)
    # In three moves of large pieces, which take half the time of one permutation of eight axes: positions last, the
    # 4 x 4 pixels of a position in the order of rows and columns, and those pixels put in their places.
    planes = pixels.view(-1, grid * grid, 16).transpose(1, 2)
    ordered = planes.reshape(-1, 2, 2, 2, 2, grid * grid).transpose(2, 3).reshape(-1, 16, grid, grid)
    return functional.pixel_shuffle(ordered, 4).view(-1, masks, 4 * grid, 4 * grid)


def _shrinking(convolution: nn.Conv2d, blocks: Tensor) -> Tensor:
    """(rows, 4 * in), ordered (pixel, channel) -> (rows, out)."""
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    return functional.linear(blocks, weight, convolution.bias)


def _layer_norm(rows: Tensor, norm: LayerNorm2d) -> Tensor:
    return functional.layer_norm(rows, norm.weight.shape, norm.weight, norm.bias, norm.eps)
