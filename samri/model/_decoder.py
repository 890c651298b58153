"""SAM's prompt encoder and mask decoder for a batch of prompts, equal to segment-anything's and much cheaper."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from segment_anything.modeling import PromptEncoder, Sam
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

from samri.model._attention import (
    image_to_token_attention,
    projected_image,
    token_attention,
    token_to_image_attention,
    token_to_projected_image_attention,
)
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
        positions = self._image_side(image_embeddings, mask_input, has_mask_input)
        places = image_places(self.prompt_encoder)
        attention = self.mask_decoder.transformer.layers[0].cross_attn_token_to_image
        placed = positions + places

        look = functools.partial(_look, attention, placed, positions)
        return self._decode(positions, places, placed, look, point_coords, point_labels)

    def _decode(
        self,
        positions: Tensor,
        places: Tensor,
        placed: Tensor,
        look_first: Callable[[Tensor], Tensor],
        point_coords: Tensor,
        point_labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """From the image side, (B or 1, P, C), to masks and scores; `look_first` is the first layer's look at it."""
        sparse = embed_points(self.prompt_encoder, point_coords, point_labels, self.image_size)
        outputs = torch.cat([self.mask_decoder.iou_token.weight, self.mask_decoder.mask_tokens.weight])
        tokens = torch.cat([outputs.unsqueeze(0).expand(sparse.shape[0], -1, -1), sparse], dim=1)
        absent = _absent_bias(point_labels, outputs.shape[0])
        transformer = self.mask_decoder.transformer
        queries = tokens
        for number, layer in enumerate(transformer.layers):
            if number:
                placed = positions + places
            look = functools.partial(_look, layer.cross_attn_token_to_image, placed, positions)
            queries = _tokens_through(layer, queries, tokens, absent, look if number else look_first)
            written = image_to_token_attention(
                layer.cross_attn_image_to_token, placed, queries + tokens, queries, absent
            )
            positions = layer.norm4(positions + written)
        # From here on only the decoder's own tokens are read; a prompt's have said what they had to say.
        own = outputs.shape[0]
        looking = queries[:, :own] + tokens[:, :own]
        seen = token_to_image_attention(transformer.final_attn_token_to_image, looking, positions + places, positions)
        answers = transformer.norm_final_attn(queries[:, :own] + seen)
        scores = self.mask_decoder.iou_prediction_head(answers[:, 0])
        token_weights = torch.stack(
            [mlp(answers[:, 1 + mask]) for mask, mlp in enumerate(self.mask_decoder.output_hypernetworks_mlps)], dim=1
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


class ImageSide(PromptDecoder):
    """What the decoder computes of an image alone, for prompts without masks: a bundle's `decoder_image.onnx`."""

    def forward(self, image_embeddings: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(1, C, G, G) -> what `PromptSide` takes, in its order.

        Returns:
            positions, places and their sum, (1, P, C) each, and the first layer's keys (1, h, d, P) and values
            (1, h, P, d).
        """
        positions = self._image_side(image_embeddings, None, None)
        places = image_places(self.prompt_encoder)
        placed = positions + places
        attention = self.mask_decoder.transformer.layers[0].cross_attn_token_to_image
        return positions, places, placed, *projected_image(attention, placed, positions)


class PromptSide(PromptDecoder):
    """The rest of the decoder: B prompts on an image side that is computed already: `decoder_prompts.onnx`."""

    def forward(  # type: ignore[override]
        self,
        positions: Tensor,
        places: Tensor,
        placed: Tensor,
        first_keys: Tensor,
        first_values: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode B prompts of N points each; see `ImageSide.forward` and `PromptDecoder.forward`."""
        attention = self.mask_decoder.transformer.layers[0].cross_attn_token_to_image

        def look(queries: Tensor) -> Tensor:
            return token_to_projected_image_attention(attention, queries, first_keys, first_values)

        return self._decode(positions, places, placed, look, point_coords, point_labels)


def image_places(prompt_encoder: PromptEncoder) -> Tensor:
    """The encoding of every position of the grid, (1, P, C)."""
    places: Tensor = prompt_encoder.get_dense_pe()
    return places.flatten(2).transpose(1, 2)


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


def _look(attention: Attention, placed: Tensor, positions: Tensor, queries: Tensor) -> Tensor:
    return token_to_image_attention(attention, queries, placed, positions)


def _tokens_through(
    layer: TwoWayAttentionBlock, queries: Tensor, tokens: Tensor, absent: Tensor, look: Callable[[Tensor], Tensor]
) -> Tensor:
    """A layer's part on the side of the tokens, (B, T, C) -> (B, T, C): among themselves, at the image, MLP."""
    if layer.skip_first_layer_pe:
        queries = token_attention(layer.self_attn, queries, queries, absent)
    else:
        queries = queries + token_attention(layer.self_attn, queries + tokens, queries, absent)
    queries = layer.norm1(queries)
    queries = layer.norm2(queries + look(queries + tokens))
    looked: Tensor = layer.norm3(queries + layer.mlp(queries))
    return looked


def _absent_bias(labels: Tensor, output_tokens: int) -> Tensor:
    """(B, 1, 1, T): -inf for the tokens labelled -2, 0 for the others and for the decoder's own output tokens."""
    bias = torch.where(labels < -1, float("-inf"), 0.0)
    own = torch.zeros_like(bias[:, :1]).expand(-1, output_tokens)
    return torch.cat([own, bias], dim=1)[:, None, None]
