"""SAM's prompt encoder and mask decoder for a batch of prompts, equal to segment-anything's and much cheaper."""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor, nn

from samri.model._attention import image_to_token_attention, token_attention, token_to_image_attention
from samri.model._mask_convolutions import embed_masks, mask_logits


class SamDecoder(nn.Module):
    """From image embeddings and prompts to low-resolution logits: the contract of a bundle's `decoder.onnx`.

    A module over the parameters of the `Sam` it is given, not a copy: training this trains that, and `sam.state_dict()`
    is the checkpoint.
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
            point_coords: (B, N, 2) float32, (x, y) in model coordinates: pixels of the S x S input.
            point_labels: (B, N), 1 foreground, 0 background, 2 and 3 a box's corners, -1 the learned token of a prompt
                without a box, -2 absent (padding that changes nothing).
            mask_input: (B, 1, 4G, 4G) logits of an earlier prediction; None when no prompt has one.
            has_mask_input: (B,), above 0 where `mask_input` counts; None when it counts everywhere.

        Returns:
            low_res_masks (B, M, 4G, 4G) logits, mask 0 the single-mask output, and iou_predictions (B, M).
        """
        keys = image_tokens(self.prompt_encoder, image_embeddings, mask_input, has_mask_input)
        key_pe = image_pe(self.prompt_encoder)
        tokens, padding_mask = decoder_tokens(self, point_coords, point_labels)
        queries = tokens
        for layer in self.mask_decoder.transformer.layers:
            keys_with_pe = keys + key_pe
            queries = self_attention_step(layer, queries, tokens, padding_mask)
            attn_out = token_to_image_attention(layer.cross_attn_token_to_image, queries + tokens, keys_with_pe, keys)
            queries = mlp_step(layer, queries, attn_out)
            attn_out = image_to_token_attention(
                layer.cross_attn_image_to_token, keys_with_pe, queries + tokens, queries, padding_mask
            )
            keys = layer.norm4(keys + attn_out)
        hs = final_attention_step(self.mask_decoder, queries, tokens, keys + key_pe, keys)
        hyper_in = hypernetwork_outputs(self.mask_decoder, hs[:, 1:])
        masks = mask_logits(self.mask_decoder, keys, hyper_in, self.prompt_encoder.image_embedding_size[0])
        return masks, self.mask_decoder.iou_prediction_head(hs[:, 0])


def image_tokens(
    prompt_encoder: PromptEncoder,
    image_embeddings: Tensor,
    mask_input: Tensor | None = None,
    has_mask_input: Tensor | None = None,
) -> Tensor:
    """The image embeddings plus the dense prompt embeddings, as tokens: (B or 1, P, C).

    Without mask prompts they stay (1, P, C) for all B prompts until the first image-to-token attention.
    """
    tokens = image_embeddings.flatten(2).transpose(1, 2)
    no_mask: Tensor = prompt_encoder.no_mask_embed.weight  # (1, C)
    if mask_input is None:
        return tokens + no_mask
    dense_prompt_embeddings = embed_masks(prompt_encoder, mask_input)
    if has_mask_input is not None:
        dense_prompt_embeddings = torch.where(has_mask_input.view(-1, 1, 1) > 0, dense_prompt_embeddings, no_mask)
    return tokens + dense_prompt_embeddings


def image_pe(prompt_encoder: PromptEncoder) -> Tensor:
    """The positional encoding of every image token, (1, P, C)."""
    with _full_precision(prompt_encoder):
        dense_pe: Tensor = prompt_encoder.get_dense_pe()
    return dense_pe.flatten(2).transpose(1, 2)


def decoder_tokens(decoder: SamDecoder, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The output tokens (IoU, then masks), followed by the sparse prompt embeddings.

    Returns:
        tokens (B, T, C), and padding_mask (B, 1, 1, T): 0 for a token, -inf for padding.
    """
    sparse_prompt_embeddings = embed_points(decoder.prompt_encoder, coords, labels, decoder.image_size)
    output_tokens = torch.cat([decoder.mask_decoder.iou_token.weight, decoder.mask_decoder.mask_tokens.weight])
    tokens = torch.cat(
        [output_tokens.unsqueeze(0).expand(sparse_prompt_embeddings.shape[0], -1, -1), sparse_prompt_embeddings], dim=1
    )
    padding_mask = torch.where(labels < -1, float("-inf"), 0.0)
    padding_mask = torch.cat(
        [torch.zeros_like(padding_mask[:, :1]).expand(-1, output_tokens.shape[0]), padding_mask], dim=1
    )
    return tokens, padding_mask[:, None, None]


def embed_points(prompt_encoder: PromptEncoder, coords: Tensor, labels: Tensor, image_size: int) -> Tensor:
    """The sparse prompt embeddings of points of all labels, (B, N, 2) and (B, N) -> (B, N, C); padding is zeros."""
    label_embeddings = torch.cat(
        [
            torch.zeros_like(prompt_encoder.not_a_point_embed.weight),
            prompt_encoder.not_a_point_embed.weight,
            *(embedding.weight for embedding in prompt_encoder.point_embeddings),
        ]
    )
    # segment-anything's own positional encoding; padding and points labeled -1 have none.
    with _full_precision(prompt_encoder):
        point_pe = prompt_encoder.pe_layer._pe_encoding((coords + 0.5) / image_size)
    point_pe = torch.where(labels.unsqueeze(-1) >= 0, point_pe, 0.0)
    return point_pe + label_embeddings[labels.to(torch.int64) + 2]


def _full_precision(prompt_encoder: PromptEncoder) -> torch.autocast:
    """No mixed precision: encoded in bfloat16, points of a 1024-pixel input move by 0.4 pixels, at most by 1.3."""
    return torch.autocast(prompt_encoder.not_a_point_embed.weight.device.type, enabled=False)


def self_attention_step(layer: TwoWayAttentionBlock, queries: Tensor, query_pe: Tensor, padding_mask: Tensor) -> Tensor:
    """The layer's attention among tokens, and its norm: (B, T, C)."""
    if layer.skip_first_layer_pe:
        queries = token_attention(layer.self_attn, queries, queries, padding_mask)
    else:
        queries = queries + token_attention(layer.self_attn, queries + query_pe, queries, padding_mask)
    normed: Tensor = layer.norm1(queries)
    return normed


def mlp_step(layer: TwoWayAttentionBlock, queries: Tensor, attn_out: Tensor) -> Tensor:
    """The output of the token-to-image attention added, and the layer's MLP, each with its norm: (B, T, C) all."""
    queries = layer.norm2(queries + attn_out)
    normed: Tensor = layer.norm3(queries + layer.mlp(queries))
    return normed


def final_attention_step(
    mask_decoder: MaskDecoder, queries: Tensor, tokens: Tensor, keys_with_pe: Tensor, keys: Tensor
) -> Tensor:
    """The output tokens after the last token-to-image attention, (B, 1 + M, C): IoU, then masks.

    The prompt's tokens are not read any more, so they are left out.

    Args:
        mask_decoder: Its weights.
        queries: (B, T, C).
        tokens: (B, T, C), from `decoder_tokens`.
        keys_with_pe: (B, P, C), `keys` plus the positional encoding.
        keys: (B, P, C).
    """
    transformer, outputs = mask_decoder.transformer, 1 + mask_decoder.num_mask_tokens
    queries, tokens = queries[:, :outputs], tokens[:, :outputs]
    attn_out = token_to_image_attention(transformer.final_attn_token_to_image, queries + tokens, keys_with_pe, keys)
    hs: Tensor = transformer.norm_final_attn(queries + attn_out)
    return hs


def hypernetwork_outputs(
    mask_decoder: MaskDecoder, mask_tokens_out: Tensor, mask_indices: Tensor | None = None
) -> Tensor:
    """segment-anything's `hyper_in`: each mask token through its own MLP, (B, M, C) -> (B, M, C / 8).

    The MLPs have one shape, so that the M of them in `mask_indices` (None: all) run as one batch.
    """
    mlps = mask_decoder.output_hypernetworks_mlps
    values = mask_tokens_out.transpose(0, 1)
    last = mlps[0].num_layers - 1
    for number in range(last + 1):
        weights = torch.stack([mlp.layers[number].weight for mlp in mlps])
        biases = torch.stack([mlp.layers[number].bias for mlp in mlps])
        if mask_indices is not None:
            weights, biases = weights.index_select(0, mask_indices), biases.index_select(0, mask_indices)
        values = torch.baddbmm(biases.unsqueeze(1), values, weights.transpose(1, 2))
        values = values if number == last else values.relu()
    return values.transpose(0, 1)
