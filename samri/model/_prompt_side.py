"""The decoder in two parts: what depends on the image alone, once an image, and the rest, once a call.

Without mask prompts the image side is the same for all prompts until the tokens of a prompt first write into it. What
the first layer reads of it is projected once; and so is its share of the upscaling, the dearest product of a prompt:

A layer turns the image side x into LN(x + A V), with A the (P, h*T) weights of the image's look at the tokens and V the
(h*T, C) values that they write. At each position LayerNorm is affine but for one number, the standard deviation s:

    LN(x) W = (x - mean(x)) (g * W) / s + b W = x W' / s + b W,        W' = (g * W) minus its mean over the C rows

with gain g and bias b. So a product with W behind L layers can be pulled through all of them. Times s_1 ... s_L, with
W_{L+1} = W and W_l = (W_{l+1})' by layer l's gain, it is

    X W_1 + sum over l of (s_1 ... s_{l-1}) A_l (V_l W_l) + sum over l of (s_1 ... s_l) b_l W_{l+1}

where X is the image side that no prompt has touched. X W_1 is computed once an image; a prompt is left with a product
of h*T rather than C columns for each layer. (h*T is 56 for a box, C is 256.) The factor s_1 ... s_L drops out, since
the next step of the upscaling is a LayerNorm itself (but for its `eps` of 1e-6).
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn

from samri.model._attention import (
    image_weights,
    projected_image,
    projected_image_weights,
    token_to_image_attention,
    token_to_projected_image_attention,
    written_values,
)
from samri.model._decoder import (
    PromptDecoder,
    after_image_attention,
    after_self_attention,
    all_tokens,
    final_answers,
    image_places,
    image_positions,
    mask_weights,
)
from samri.model._pixel_blocks import upscaled_mask_logits, upscaling_matrix


class ImageSide(PromptDecoder):
    """What the decoder computes of an image alone, for prompts without masks: a bundle's `decoder_image.onnx`."""

    def forward(self, image_embeddings: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(1, C, G, G) -> what `PromptSide` takes, in its order.

        Returns:
            positions and places, (1, P, C) each; the first layer's keys (1, h, d, P), values (1, h, P, d) and queries
            (1, P, D); and the share of the upscaling's first step, (1, P, C), that no prompt changes.
        """
        positions = image_positions(self.prompt_encoder, image_embeddings)
        places = image_places(self.prompt_encoder)
        placed = positions + places
        layer = self.mask_decoder.transformer.layers[0]
        keys, values = projected_image(layer.cross_attn_token_to_image, placed, positions)
        queries = layer.cross_attn_image_to_token.q_proj(placed)
        return positions, places, keys, values, queries, positions @ _pulled_through(self.mask_decoder)[0]


class PromptSide(PromptDecoder):
    """The rest of the decoder: B prompts on an image side that is computed already: `decoder_prompts.onnx`."""

    def forward(  # type: ignore[override]
        self,
        positions: Tensor,
        places: Tensor,
        first_keys: Tensor,
        first_values: Tensor,
        first_queries: Tensor,
        first_upscaled: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        wanted_masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode B prompts of N points each; see `ImageSide.forward` and `PromptDecoder.forward`.

        Args:
            positions: And the five that follow it, from `ImageSide`.
            places: (1, P, C).
            first_keys: (1, h, d, P).
            first_values: (1, h, P, d).
            first_queries: (1, P, D).
            first_upscaled: (1, P, C).
            point_coords: (B, N, 2).
            point_labels: (B, N).
            wanted_masks: (M,) int64, numbers of masks: 0 for the single-mask answer, 1 and more for the candidates.

        Returns:
            low_res_masks (B, M, 4G, 4G) logits and iou_predictions (B, M).
        """
        tokens, absent = all_tokens(self, point_coords, point_labels)
        queries = tokens
        upscaling = _PulledUpscaling(self.mask_decoder)
        for number, layer in enumerate(self.mask_decoder.transformer.layers):
            queries = after_self_attention(layer, queries, tokens, absent)
            look, write = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            if number == 0:
                seen = token_to_projected_image_attention(look, queries + tokens, first_keys, first_values)
                queries = after_image_attention(layer, queries, seen)
                weights = projected_image_weights(write, first_queries, queries + tokens, absent)
            else:
                placed = positions + places
                seen = token_to_image_attention(look, queries + tokens, placed, positions)
                queries = after_image_attention(layer, queries, seen)
                weights = image_weights(write, placed, queries + tokens, absent)
            values = written_values(write, queries)
            positions, inverse_deviation = _layer_norm(positions + weights @ values, layer.norm4)
            upscaling.add(weights, values, inverse_deviation)
        answers = final_answers(self.mask_decoder, queries, tokens, positions + places, positions, wanted_masks)
        token_weights = mask_weights(self.mask_decoder, answers[:, 1:], wanted_masks)
        grid = self.prompt_encoder.image_embedding_size[0]
        masks = upscaled_mask_logits(self.mask_decoder, upscaling.total(first_upscaled), token_weights, grid)
        scores = self.mask_decoder.iou_prediction_head(answers[:, 0])
        return masks, scores.index_select(1, wanted_masks)


class _PulledUpscaling:
    """The sums of the module's docstring, layer by layer: one product (B, P, K)(B, K, C) with K = L (h*T + 1)."""

    def __init__(self, mask_decoder: MaskDecoder) -> None:
        self._matrices = _pulled_through(mask_decoder)
        self._biases = [layer.norm4.bias for layer in mask_decoder.transformer.layers]
        self._last_bias = upscaling_matrix(mask_decoder.output_upscaling[0])[1]
        self._deviations: list[Tensor] = []  # Of each layer l, s_1 ... s_l: (B, P, 1).
        self._columns: list[Tensor] = []  # (B, P, h*T) and (B, P, 1)
        self._rows: list[Tensor] = []  # (B, h*T, C) and (B, 1, C)

    def add(self, weights: Tensor, values: Tensor, inverse_deviation: Tensor) -> None:
        """Take in a layer: (B, P, h*T), (B, h*T, C), and (B, P, 1), one over the deviation that its norm found."""
        layer = len(self._deviations)
        before = self._deviations[-1] if layer else None
        self._deviations.append((1.0 if before is None else before) / inverse_deviation)
        self._columns += [weights if before is None else weights * before, self._deviations[-1]]
        self._rows.append(values @ self._matrices[layer])
        constant = self._biases[layer] @ self._matrices[layer + 1]
        if layer + 1 == len(self._biases):
            constant = constant + self._last_bias
        self._rows.append(constant.view(1, 1, -1).expand(values.shape[0], -1, -1))

    def total(self, first: Tensor) -> Tensor:
        """With X W_1, (1, P, C): (B, P, C), the upscaling's first product times s_1 ... s_L."""
        return torch.cat(self._columns, dim=2) @ torch.cat(self._rows, dim=1) + first


def _layer_norm(rows: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """The normed (..., C) rows, and one over the deviation of each, (..., 1)."""
    normed: tuple[Tensor, Tensor] = _LayerNorm.apply(rows, norm.weight, norm.bias, norm.eps)
    return normed


class _LayerNorm(torch.autograd.Function):
    """PyTorch's own; a function of ours since its exporter would compute the deviation a second time in four steps."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        del ctx
        normed, _, inverse_deviation = torch.native_layer_norm(rows, weight.shape, weight, bias, eps)
        return normed, inverse_deviation

    @staticmethod
    def symbolic(graph: Any, rows: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any]:
        """The one ONNX operator that gives both."""
        normed, _, inverse_deviation = graph.op(
            "LayerNormalization", rows, weight, bias, axis_i=-1, epsilon_f=eps, outputs=3
        )
        return normed, inverse_deviation


def _pulled_through(mask_decoder: MaskDecoder) -> list[Tensor]:
    """W_1 to W_{L+1} for the upscaling's first matrix, (C, C) each."""
    matrices = [upscaling_matrix(mask_decoder.output_upscaling[0])[0]]
    for layer in reversed(mask_decoder.transformer.layers):
        gained = layer.norm4.weight.unsqueeze(1) * matrices[0]
        matrices.insert(0, gained - gained.mean(dim=0, keepdim=True))
    return matrices
