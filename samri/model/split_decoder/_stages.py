"""The two stages of the decoder: what depends on the image alone, and the rest. Symbols: the package's docstring."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor

from samri.model._architecture import Architecture
from samri.model._decoder import (
    SamDecoder,
    decoder_tokens,
    hypernetwork_outputs,
    image_pe,
    image_tokens,
    mlp_step,
    self_attention_step,
)
from samri.model._mask_convolutions import mask_logits_after_first_upscaling, upscaling_matrix
from samri.model.split_decoder._factored_tokens import (
    FactoredImageTokens,
    ImageToTokenInputs,
    TokenToImageInputs,
    apply_norms,
    fold_norms,
    subtract_mean,
)

_UPSCALING_FACTOR = 1024.0
"""The upscaling's first step is multiplied by this, besides t, so that the `eps` of the norm after it is negligible
however small t is. A power of two, which rounds nothing."""


def image_stage_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of each output of `DecoderImageStage`, which `DecoderPromptStage` takes in the same order.

    The names are those of bundle format 1.0. A layer n's `TokenToImageInputs` are keys_n, values_n and place_keys_n
    (`pe_keys`); n = depth is the final attention. Its `ImageToTokenInputs` are queries_n, place_queries_n
    (`pe_queries`), squares_n (`row_norms`), meetings_n_m (`cross_terms`) and biases_n_m (`bias_terms`), m = 0 ... n.
    Last comes `upscaled`: the image's share of the upscaling's first step, (1, P, C).
    """
    positions, width, heads = architecture.grid**2, architecture.decoder_width, architecture.decoder_heads
    head_width = width // architecture.attention_downsample // heads
    shapes: dict[str, tuple[int, ...]] = {}
    for name in _names(architecture.decoder_depth):
        if name.startswith(("squares", "biases")):
            shapes[name] = (1, 1, positions)
        else:
            shapes[name] = (1, heads, head_width + name.startswith(("queries_0", "place_queries")), positions)
    shapes["upscaled"] = (1, positions, width)
    return shapes


def _names(depth: int) -> list[str]:
    names = []
    for n in range(depth + 1):
        names += [f"keys_{n}", f"values_{n}"] + ([f"place_keys_{n}"] if n else [])
        if n < depth:
            names += [f"queries_{n}"] + ([f"place_queries_{n}"] if n else [])
            names += [f"squares_{n}", *(f"meetings_{n}_{m}" for m in range(n + 1))]
            names += [f"biases_{n}_{m}" for m in range(1, n + 1)]
    return [*names, "upscaled"]


class DecoderImageStage(SamDecoder):
    """What the decoder computes from an image alone, for prompts without masks: a bundle's `decoder_image.onnx`."""

    def forward(self, image_embeddings: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(1, C, G, G) -> the tensors of `image_stage_shapes`."""
        image = image_tokens(self.prompt_encoder, image_embeddings).transpose(1, 2)  # X, (1, C, P).
        pe = image_pe(self.prompt_encoder).transpose(1, 2)
        transformer = self.mask_decoder.transformer
        layers = list(transformer.layers)
        token_to_image = [*(layer.cross_attn_token_to_image for layer in layers), transformer.final_attn_token_to_image]
        outputs: dict[str, Tensor] = {}
        for n in range(len(layers) + 1):
            attention, before = token_to_image[n], layers[:n]
            outputs[f"values_{n}"] = self._by_head(attention.v_proj.weight, before, image)
            outputs |= self._with_pe(f"keys_{n}", attention.k_proj.weight, before, image, pe)
            if n < len(layers):
                weight = layers[n].cross_attn_image_to_token.q_proj.weight
                queries = self._with_pe(f"queries_{n}", weight, before, image, pe)
                last = list(queries)[-1]  # The one that includes the encoding gets the row of ones.
                outputs |= queries | {last: torch.cat([queries[last], torch.ones_like(queries[last][:, :, :1])], dim=2)}
                outputs |= self._norm_terms(layers[: n + 1], image)
        matrix, _ = upscaling_matrix(self.mask_decoder.output_upscaling[0])
        outputs["upscaled"] = image.transpose(1, 2) @ fold_norms(layers, _UPSCALING_FACTOR * matrix)
        return tuple(outputs[name] for name in _names(len(layers)))

    def _with_pe(
        self, name: str, weight: Tensor, before: list[TwoWayAttentionBlock], image: Tensor, pe: Tensor
    ) -> dict[str, Tensor]:
        """Keys or queries, and those of the positional encoding: apart once layers have divided the former by t."""
        if not before:
            return {name: self._by_head(weight, before, image + pe)}
        return {name: self._by_head(weight, before, image), f"place_{name}": self._by_head(weight, [], pe)}

    def _by_head(self, weight: Tensor, before: list[TwoWayAttentionBlock], image: Tensor) -> Tensor:
        """X M W^T of a (D, C) weight W after some layers, (1, C, P) -> (1, h, d, P)."""
        heads = self.mask_decoder.transformer.num_heads
        return (fold_norms(before, weight.t()).t() @ image).view(1, heads, -1, image.shape[2])

    def _norm_terms(self, layers: list[TwoWayAttentionBlock], image: Tensor) -> dict[str, Tensor]:
        """What the norm of the last of `layers` needs for its deviation, from (1, C, P)."""
        n, width = len(layers) - 1, image.shape[1]
        ones = image.new_ones(1, 1, width)
        if n == 0:
            centered = image - ones @ image / width  # c(X M), (1, C, P).
        else:
            centered = (
                fold_norms(layers[:n], subtract_mean(torch.eye(width, dtype=image.dtype, device=image.device))).t()
                @ image
            )
        terms = {f"squares_{n}": ones @ centered.square()}
        for m in range(n + 1):
            attention = layers[m].cross_attn_image_to_token
            rows = apply_norms(layers[m:n], attention.out_proj.weight.t())
            terms[f"meetings_{n}_{m}"] = self._by_head(rows, [], centered)
            bias = attention.out_proj.bias + (layers[m - 1].norm4.bias if m else 0.0)
            # The weights of a head sum to 1, so the output bias comes out whole, times t: 1 before the first layer.
            bias_term = 2 * apply_norms(layers[m:n], bias).view(1, 1, -1) @ centered
            if m == 0:
                terms[f"squares_{n}"] = terms[f"squares_{n}"] + bias_term
            else:
                terms[f"biases_{n}_{m}"] = bias_term
        return terms


class DecoderPromptStage(SamDecoder):
    """The rest of the decoder: B prompts on the outputs of `DecoderImageStage`: a bundle's `decoder_prompts.onnx`."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Decode B prompts of N points each; see `SamDecoder.forward`.

        Args:
            inputs: The tensors of `image_stage_shapes`; then `point_coords` (B, N, 2), `point_labels` (B, N), and
                `wanted_masks` (M,) int64, the indices of the masks to compute: 0 for the single mask, 1 and more for
                the candidates.

        Returns:
            low_res_masks (B, M, 4G, 4G) logits and iou_predictions (B, M).
        """
        *image_outputs, point_coords, point_labels, mask_indices = inputs
        layers = list(self.mask_decoder.transformer.layers)
        stage = dict(zip(_names(len(layers)), image_outputs, strict=True))
        tokens, padding_mask = decoder_tokens(self, point_coords, point_labels)
        queries, image = tokens, FactoredImageTokens()
        for n, layer in enumerate(layers):
            queries = self_attention_step(layer, queries, tokens, padding_mask)
            attn_out = image.token_to_image(
                layer.cross_attn_token_to_image, queries + tokens, _token_to_image_inputs(stage, n)
            )
            queries = mlp_step(layer, queries, attn_out)
            image.image_to_token(layer, queries + tokens, queries, padding_mask, _image_to_token_inputs(stage, n))
        queries, tokens = _output_tokens(queries, mask_indices), _output_tokens(tokens, mask_indices)
        final = self.mask_decoder.transformer.final_attn_token_to_image
        attn_out = image.token_to_image(final, queries + tokens, _token_to_image_inputs(stage, len(layers)))
        hs = self.mask_decoder.transformer.norm_final_attn(queries + attn_out)
        hyper_in = hypernetwork_outputs(self.mask_decoder, hs[:, 1:], mask_indices)
        matrix, bias = upscaling_matrix(self.mask_decoder.output_upscaling[0])
        grid = self.prompt_encoder.image_embedding_size[0]
        # The next step is a LayerNorm, in which a factor per position cancels, but for its `eps`.
        upscaled_once = image.projected(_UPSCALING_FACTOR * matrix, _UPSCALING_FACTOR * bias, stage["upscaled"])
        masks = mask_logits_after_first_upscaling(self.mask_decoder, upscaled_once, hyper_in, grid)
        iou_predictions = self.mask_decoder.iou_prediction_head(hs[:, 0])
        return masks, iou_predictions.index_select(1, mask_indices)


def _token_to_image_inputs(stage: Mapping[str, Tensor], n: int) -> TokenToImageInputs:
    return TokenToImageInputs(stage[f"keys_{n}"], stage[f"values_{n}"], stage.get(f"place_keys_{n}"))


def _image_to_token_inputs(stage: Mapping[str, Tensor], n: int) -> ImageToTokenInputs:
    return ImageToTokenInputs(
        queries=stage[f"queries_{n}"],
        pe_queries=stage.get(f"place_queries_{n}"),
        row_norms=stage[f"squares_{n}"],
        cross_terms=tuple(stage[f"meetings_{n}_{m}"] for m in range(n + 1)),
        bias_terms=tuple(stage[f"biases_{n}_{m}"] for m in range(1, n + 1)),
    )


def _output_tokens(tokens: Tensor, mask_indices: Tensor) -> Tensor:
    """The output tokens that are still read, (B, 1 + M, C): the IoU token, which is the first, and M mask tokens."""
    return tokens.index_select(1, torch.cat([torch.zeros_like(mask_indices[:1]), mask_indices + 1]))
