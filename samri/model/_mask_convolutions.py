"""SAM's 2 x 2, stride-2 convolutions as matrix products: mask downscaling, and upscaling with the mask product.

Such a convolution has no overlap: each 2 x 2 block of pixels and its one coarse position are tied by a matrix. Staying
in (positions, channels) layout makes LayerNorm2d the ordinary LayerNorm over the last axis, and leaves a single shuffle
of pixels, on a tensor of few channels: the mask, where it enters and where it leaves.

Two such steps lie between an image token and its 4 x 4 pixels, so a token holds 2 x 2 coarse blocks of 2 x 2 pixels
each, in the order (block row, block column, pixel row, pixel column).
"""

from __future__ import annotations

from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional


def embed_masks(prompt_encoder: PromptEncoder, masks: Tensor) -> Tensor:
    """The dense prompt embeddings of mask prompts: (B, 1, 4G, 4G) logits -> (B, P, C).

    A 2 x 2, stride-2 convolution is y[o] = sum over (i, a, b) of x[i, a, b] W[o, i, a, b] + bias[o] in each block, so
    (positions, 4i)(4i, o) + (o,).
    """
    first, first_norm, first_act, second, second_norm, second_act, last = prompt_encoder.mask_downscaling
    grid = prompt_encoder.image_embedding_size[0]
    blocks = masks.view(-1, grid, 2, 2, grid, 2, 2).permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, 4)
    coarse = first_act(_layer_norm(_downscaling(first, blocks), first_norm))
    fine = coarse.view(-1, 4 * first.out_channels)
    tokens = second_act(_layer_norm(_downscaling(second, fine), second_norm))
    features = functional.linear(tokens, last.weight.flatten(1), last.bias)
    return features.view(-1, grid * grid, last.out_channels)


def mask_logits(mask_decoder: MaskDecoder, image_tokens: Tensor, hyper_in: Tensor, grid: int) -> Tensor:
    """The decoder's upscaling and its product with the hypernetworks' outputs.

    A 2 x 2, stride-2 transposed convolution is y[o, a, b] = sum over i of x[i] W[i, o, a, b] + bias[o] at each
    position, so (positions, i)(i, 4o) + (4o,).

    Args:
        mask_decoder: Its `output_upscaling` is applied.
        image_tokens: (B, P, C) after the transformer.
        hyper_in: (B, M, C / 8), from the hypernetworks.
        grid: G, with P = G * G.

    Returns:
        (B, M, 4G, 4G) logits.
    """
    weight, bias = upscaling_matrix(mask_decoder.output_upscaling[0])
    upscaled_once = functional.linear(image_tokens, weight.t(), bias)
    return mask_logits_after_first_upscaling(mask_decoder, upscaled_once, hyper_in, grid)


def upscaling_matrix(convolution: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """The (in, 4 * out) matrix of a transposed convolution and its (4 * out,) bias, ordered (pixel, channel)."""
    assert convolution.bias is not None
    return convolution.weight.permute(0, 2, 3, 1).flatten(1), convolution.bias.repeat(4)


def mask_logits_after_first_upscaling(
    mask_decoder: MaskDecoder, upscaled_once: Tensor, hyper_in: Tensor, grid: int
) -> Tensor:
    """`mask_logits` from the first convolution's output, (B, P, 4 * C / 4), or any positive multiple per position."""
    _, norm, first_act, second, second_act = mask_decoder.output_upscaling
    masks = hyper_in.shape[1]
    coarse = first_act(_layer_norm(upscaled_once.reshape(-1, second.in_channels), norm))
    weight, bias = upscaling_matrix(second)
    # The bias is added apart, to whole positions, since ONNX Runtime then fuses it into GELU: a prompt was decoded
    # 1.03 times as fast as with the bias in the product.
    positions = (coarse @ weight).view(-1, grid * grid, 16 * second.out_channels)
    upscaled_embedding = second_act(positions + bias.repeat(4))
    # Pixel by pixel in the end: (B, M, C / 8)(C / 8, P * 16).
    pixels = hyper_in @ upscaled_embedding.view(-1, grid * grid * 16, second.out_channels).transpose(-2, -1)
    # In three moves of large pieces, which take half the time of one permutation of eight axes: positions last, the
    # 4 x 4 pixels of a position in the order of rows and columns, and those pixels moved to where they belong.
    planes = pixels.view(-1, grid * grid, 16).transpose(1, 2)
    ordered = planes.reshape(-1, 2, 2, 2, 2, grid * grid).transpose(2, 3).reshape(-1, 16, grid, grid)
    return functional.pixel_shuffle(ordered, 4).view(-1, masks, 4 * grid, 4 * grid)


def _downscaling(convolution: nn.Conv2d, blocks: Tensor) -> Tensor:
    """(rows, 4 * in), ordered (pixel, channel) -> (rows, out)."""
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    return functional.linear(blocks, weight, convolution.bias)


def _layer_norm(rows: Tensor, norm: LayerNorm2d) -> Tensor:
    return functional.layer_norm(rows, norm.weight.shape, norm.weight, norm.bias, norm.eps)
