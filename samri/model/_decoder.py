"""SAM's prompt encoder and mask decoder for a batch of prompts, equal to segment-anything's and much cheaper."""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor, nn

from samri.model._attention import image_to_token_attention, token_attention, token_to_image_attention
from samri.model._pixel_blocks import mask_features, mask_logits


class PromptDecoder(nn.Module):
    """From image embeddings and prompts to low-resolution logits: the contract of a bundle's `decoder.onnx`.

    A module over the parameters of the `Sam` that it is given, not a copy: training this trains that, and
    `sam.state_dict()` is the checkpoint.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder
        self.image_size: int = sam.image_encoder.img_size

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode B prompts of N points each.

        Args:
            image_embeddings: (1, C, G, G), one image for all prompts, or (B, C, G, G), an image for each.
            point_coords: (B, N, 2) float32, (x, y) in the S x S model frame.
            point_labels: (B, N), 1 foreground, 0 background, 2 and 3 a box's corners, -1 the learned token of a prompt
                without a box, -2 absent (padding that changes nothing).
            mask_input: (B, 1, 4G, 4G) logits of an earlier answer; None when no prompt has one.
            has_mask_input: (B,), above 0 where `mask_input` counts; None when it counts everywhere.

        Returns:
            low_res_masks (B, M, 4G, 4G) logits, mask 0 the single-mask answer, and iou_predictions (B, M).
        """
        positions = image_positions(self.prompt_encoder, image_embeddings, mask_input, has_mask_input)
        places = image_places(self.prompt_encoder)
        tokens, absent = all_tokens(self, point_coords, point_labels)
        queries = tokens
        for layer in self.mask_decoder.transformer.layers:
            placed = positions + places
            queries = after_self_attention(layer, queries, tokens, absent)
            seen = token_to_image_attention(layer.cross_attn_token_to_image, queries + tokens, placed, positions)
            queries = after_image_attention(layer, queries, seen)
            written = image_to_token_attention(
                layer.cross_attn_image_to_token, placed, queries + tokens, queries, absent
            )
            positions = layer.norm4(positions + written)
        answers = final_answers(self.mask_decoder, queries, tokens, positions + places, positions)
        grid = self.prompt_encoder.image_embedding_size[0]
        masks = mask_logits(self.mask_decoder, positions, mask_weights(self.mask_decoder, answers[:, 1:]), grid)
        return masks, self.mask_decoder.iou_prediction_head(answers[:, 0])


def image_positions(
    prompt_encoder: PromptEncoder,
    image_embeddings: Tensor,
    mask_input: Tensor | None = None,
    has_mask_input: Tensor | None = None,
) -> Tensor:
    """(B or 1, P, C): the embedding and what a mask prompt adds to it.

    Without mask prompts the image side stays (1, P, C) for all B prompts until the tokens have written into it.
    """
    positions = image_embeddings.flatten(2).transpose(1, 2)
    no_mask: Tensor = prompt_encoder.no_mask_embed.weight  # (1, C)
    if mask_input is None:
        return positions + no_mask
    dense = mask_features(prompt_encoder, mask_input)
    if has_mask_input is not None:
        dense = torch.where(has_mask_input.view(-1, 1, 1) > 0, dense, no_mask)
    return positions + dense


def image_places(prompt_encoder: PromptEncoder) -> Tensor:
    """The encoding of every position of the grid, (1, P, C)."""
    with _all_digits(prompt_encoder):
        places: Tensor = prompt_encoder.get_dense_pe()
    return places.flatten(2).transpose(1, 2)


def all_tokens(decoder: PromptDecoder, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's own tokens, then those of the points: (B, T, C), and (B, 1, 1, T), -inf for the absent ones."""
    sparse = embed_points(decoder.prompt_encoder, coords, labels, decoder.image_size)
    own = torch.cat([decoder.mask_decoder.iou_token.weight, decoder.mask_decoder.mask_tokens.weight])
    tokens = torch.cat([own.unsqueeze(0).expand(sparse.shape[0], -1, -1), sparse], dim=1)
    absent = torch.where(labels < -1, float("-inf"), 0.0)
    absent = torch.cat([torch.zeros_like(absent[:, :1]).expand(-1, own.shape[0]), absent], dim=1)
    return tokens, absent[:, None, None]


def embed_points(prompt_encoder: PromptEncoder, coords: Tensor, labels: Tensor, image_size: int) -> Tensor:
    """Points of all kinds as tokens, (B, N, 2) and (B, N) -> (B, N, C); absent ones are zeros."""
    kinds = torch.cat(
        [
            torch.zeros_like(prompt_encoder.not_a_point_embed.weight),
            prompt_encoder.not_a_point_embed.weight,
            *(embedding.weight for embedding in prompt_encoder.point_embeddings),
        ]
    )
    # segment-anything's own encoding of places, of which absent and -1 tokens have none.
    with _all_digits(prompt_encoder):
        places = prompt_encoder.pe_layer._pe_encoding((coords + 0.5) / image_size)
    places = torch.where(labels.unsqueeze(-1) >= 0, places, 0.0)
    return places + kinds[labels.to(torch.int64) + 2]


def _all_digits(prompt_encoder: PromptEncoder) -> torch.autocast:
    """No mixed precision: encoded in bfloat16, places of a 1024-pixel frame move by 0.4 pixels, at most by 1.3."""
    return torch.autocast(prompt_encoder.not_a_point_embed.weight.device.type, enabled=False)


def after_self_attention(layer: TwoWayAttentionBlock, queries: Tensor, tokens: Tensor, absent: Tensor) -> Tensor:
    """The tokens after they attended to each other, (B, T, C)."""
    if layer.skip_first_layer_pe:
        queries = token_attention(layer.self_attn, queries, queries, absent)
    else:
        queries = queries + token_attention(layer.self_attn, queries + tokens, queries, absent)
    normed: Tensor = layer.norm1(queries)
    return normed


def after_image_attention(layer: TwoWayAttentionBlock, queries: Tensor, seen: Tensor) -> Tensor:
    """The tokens after they took in what they saw of the image, (B, T, C) both."""
    queries = layer.norm2(queries + seen)
    normed: Tensor = layer.norm3(queries + layer.mlp(queries))
    return normed


def final_answers(
    mask_decoder: MaskDecoder, queries: Tensor, tokens: Tensor, placed: Tensor, positions: Tensor
) -> Tensor:
    """The decoder's own tokens after their last look at the image, (B, 1 + M, C): the score's, then the masks'.

    The other tokens have said what they had to say and aren't read any more.

    Args:
        mask_decoder: Its weights.
        queries: (B, T, C).
        tokens: (B, T, C), as they were in the beginning.
        placed: (B, P, C) positions with their places.
        positions: (B, P, C).
    """
    transformer, own = mask_decoder.transformer, 1 + mask_decoder.num_mask_tokens
    queries, tokens = queries[:, :own], tokens[:, :own]
    seen = token_to_image_attention(transformer.final_attn_token_to_image, queries + tokens, placed, positions)
    answers: Tensor = transformer.norm_final_attn(queries + seen)
    return answers


def mask_weights(mask_decoder: MaskDecoder, answers: Tensor, wanted: Tensor | None = None) -> Tensor:
    """What each mask's own network makes of its token: (B, M, C) -> (B, M, C / 8) weights of the pixels' channels.

    The networks are of one shape, so that those of the M masks that are `wanted` go as one batch.
    """
    networks = mask_decoder.output_hypernetworks_mlps
    values = answers.transpose(0, 1)
    last = networks[0].num_layers - 1
    for number in range(last + 1):
        weights = torch.stack([network.layers[number].weight for network in networks])
        biases = torch.stack([network.layers[number].bias for network in networks])
        if wanted is not None:
            weights, biases = weights.index_select(0, wanted), biases.index_select(0, wanted)
        values = torch.baddbmm(biases.unsqueeze(1), values, weights.transpose(1, 2))
        values = values if number == last else values.relu()
    return values.transpose(0, 1)
