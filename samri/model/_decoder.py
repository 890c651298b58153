"""SAM's prompt encoder and mask decoder for a batch of prompts, equal to segment-anything's and much cheaper."""

from __future__ import annotations

import torch
from segment_anything.modeling import PromptEncoder, Sam
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
        sparse = embed_points(self.prompt_encoder, point_coords, point_labels, self.image_size)
        positions = self._image_side(image_embeddings, mask_input, has_mask_input)
        outputs = torch.cat([self.mask_decoder.iou_token.weight, self.mask_decoder.mask_tokens.weight])
        tokens = torch.cat([outputs.unsqueeze(0).expand(sparse.shape[0], -1, -1), sparse], dim=1)
        absent = _absent_bias(point_labels, outputs.shape[0])
        tokens, positions = self._two_way(tokens, positions, absent)
        scores = self.mask_decoder.iou_prediction_head(tokens[:, 0])
        token_weights = torch.stack(
            [mlp(tokens[:, 1 + mask]) for mask, mlp in enumerate(self.mask_decoder.output_hypernetworks_mlps)], dim=1
        )
        grid = self.prompt_encoder.image_embedding_size[0]
        return mask_logits(self.mask_decoder, positions, token_weights, grid), scores

    def _image_side(self, image_embeddings: Tensor, mask_input: Tensor | None, has_mask_input: Tensor | None) -> Tensor:
        """(B or 1, P, C): embedding plus what the mask prompt adds.

        Without mask prompts the image side stays (1, P, C) for all B prompts until the tokens have written into it.
        """
        positions = image_embeddings.flatten(2).transpose(1, 2)
        no_mask: Tensor = self.prompt_encoder.no_mask_embed.weight  # (1, C)
        if mask_input is None:
            return positions + no_mask
        dense = mask_features(self.prompt_encoder, mask_input)
        if has_mask_input is not None:
            dense = torch.where(has_mask_input.view(-1, 1, 1) > 0, dense, no_mask)
        return positions + dense

    def _two_way(self, tokens: Tensor, positions: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
        """SAM's two-way transformer: (B, T, C) tokens and (B or 1, P, C) positions, both returned with batch B."""
        transformer = self.mask_decoder.transformer
        place = self.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2)  # (1, P, C)
        queries = tokens
        for layer in transformer.layers:
            queries, positions = _two_way_layer(layer, queries, positions, tokens, place, absent)
        seen = token_to_image_attention(
            transformer.final_attn_token_to_image, queries + tokens, positions + place, positions
        )
        return transformer.norm_final_attn(queries + seen), positions


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
    places = prompt_encoder.pe_layer._pe_encoding((coords + 0.5) / image_size)
    places = torch.where(labels.unsqueeze(-1) >= 0, places, 0.0)
    return places + kinds[labels.to(torch.int64) + 2]


def _two_way_layer(
    layer: TwoWayAttentionBlock, queries: Tensor, positions: Tensor, tokens: Tensor, place: Tensor, absent: Tensor
) -> tuple[Tensor, Tensor]:
    placed = positions + place  # Read twice: positions change only at the layer's end.
    if layer.skip_first_layer_pe:
        queries = token_attention(layer.self_attn, queries, queries, absent)
    else:
        queries = queries + token_attention(layer.self_attn, queries + tokens, queries, absent)
    queries = layer.norm1(queries)
    seen = token_to_image_attention(layer.cross_attn_token_to_image, queries + tokens, placed, positions)
    queries = layer.norm2(queries + seen)
    queries = layer.norm3(queries + layer.mlp(queries))
    written = image_to_token_attention(layer.cross_attn_image_to_token, placed, queries + tokens, queries, absent)
    return queries, layer.norm4(positions + written)


def _absent_bias(labels: Tensor, output_tokens: int) -> Tensor:
    """(B, 1, 1, T): -inf for the tokens labelled -2, 0 for the others and for the decoder's own output tokens."""
    bias = torch.where(labels < -1, float("-inf"), 0.0)
    own = torch.zeros_like(bias[:, :1]).expand(-1, output_tokens)
    return torch.cat([own, bias], dim=1)[:, None, None]
