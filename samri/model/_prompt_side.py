"""The decoder in two parts: what depends on the image alone, once an image, and the rest, once a call.

Without mask prompts the image side is the same for all prompts until the tokens of a prompt write into it, and even
then it need not be computed: `samri.model._written_image` has the algebra. All products of (P, C) with (C, D) are in
the first part; between the second's (h*T, P) scores and the upscaling there is none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor

from samri.model._architecture import Architecture
from samri.model._decoder import (
    PromptDecoder,
    after_image_attention,
    after_self_attention,
    all_tokens,
    image_places,
    image_positions,
    mask_weights,
)
from samri.model._pixel_blocks import upscaled_mask_logits, upscaling_matrix
from samri.model._written_image import LookSide, WriteSide, WrittenImage, centred, pulled_through, through

_ENLARGED = 1024.0
"""What the upscaling's first step is multiplied with, beside t, so that the `eps` of the norm behind it counts for
nothing however small t is. A power of two, which rounds nothing."""


def image_side_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of what `ImageSide` returns and `PromptSide` takes, in order.

    A layer n's `LookSide` (`samri.model._written_image`): keys_n, values_n, place_keys_n; n = depth is the last look.
    Its `WriteSide`: queries_n, place_queries_n, squares_n, meetings_n_m, biases_n_m. Last, `upscaled`:
    the image's share of the upscaling's first step, (1, P, C).
    """
    positions, width, heads = architecture.grid**2, architecture.decoder_width, architecture.decoder_heads
    depth = width // architecture.attention_downsample // heads
    shapes: dict[str, tuple[int, ...]] = {}
    for name in _names(architecture.decoder_depth):
        if name.startswith(("squares", "biases")):
            shapes[name] = (1, 1, positions)
        else:
            shapes[name] = (1, heads, depth + name.startswith(("queries_0", "place_queries")), positions)
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


class ImageSide(PromptDecoder):
    """What the decoder computes of an image alone, for prompts without masks: a bundle's `decoder_image.onnx`."""

    def forward(self, image_embeddings: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(1, C, G, G) -> the tensors of `image_side_shapes`."""
        image = image_positions(self.prompt_encoder, image_embeddings).transpose(1, 2)  # X, (1, C, P).
        places = image_places(self.prompt_encoder).transpose(1, 2)
        transformer = self.mask_decoder.transformer
        layers = list(transformer.layers)
        looks = [*(layer.cross_attn_token_to_image for layer in layers), transformer.final_attn_token_to_image]
        side: dict[str, Tensor] = {}
        for n in range(len(layers) + 1):
            look, before = looks[n], layers[:n]
            side[f"values_{n}"] = self._by_head(look.v_proj.weight, before, image)
            side |= self._placed(f"keys_{n}", look.k_proj.weight, before, image, places)
            if n < len(layers):
                weight = layers[n].cross_attn_image_to_token.q_proj.weight
                queries = self._placed(f"queries_{n}", weight, before, image, places)
                last = list(queries)[-1]  # The one that holds the places, which gets the row of ones.
                side |= queries | {last: torch.cat([queries[last], torch.ones_like(queries[last][:, :, :1])], dim=2)}
                side |= self._met(layers[: n + 1], image)
        matrix, _ = upscaling_matrix(self.mask_decoder.output_upscaling[0])
        side["upscaled"] = image.transpose(1, 2) @ pulled_through(layers, _ENLARGED * matrix)
        return tuple(side[name] for name in _names(len(layers)))

    def _placed(
        self, name: str, weight: Tensor, before: list[TwoWayAttentionBlock], image: Tensor, places: Tensor
    ) -> dict[str, Tensor]:
        """Keys or queries, which hold places too: apart from each other once layers have divided by their deviation."""
        if not before:
            return {name: self._by_head(weight, before, image + places)}
        return {name: self._by_head(weight, before, image), f"place_{name}": self._by_head(weight, [], places)}

    def _by_head(self, weight: Tensor, before: list[TwoWayAttentionBlock], image: Tensor) -> Tensor:
        """X M W^T of a (D, C) weight W behind some layers, (1, C, P) -> (1, h, d, P)."""
        heads = self.mask_decoder.transformer.num_heads
        return (pulled_through(before, weight.t()).t() @ image).view(1, heads, -1, image.shape[2])

    def _met(self, layers: list[TwoWayAttentionBlock], image: Tensor) -> dict[str, Tensor]:
        """What the last of `layers` needs for its deviations, of (1, C, P)."""
        n, width = len(layers) - 1, image.shape[1]
        ones = image.new_ones(1, 1, width)
        if n == 0:
            spread = image - ones @ image / width  # c(X M), (1, C, P).
        else:
            spread = (
                pulled_through(layers[:n], centred(torch.eye(width, dtype=image.dtype, device=image.device))).t()
                @ image
            )
        met = {f"squares_{n}": ones @ spread.square()}
        for m in range(n + 1):
            attention = layers[m].cross_attn_image_to_token
            met[f"meetings_{n}_{m}"] = self._by_head(through(layers[m:n], attention.out_proj.weight.t()), [], spread)
            bias = attention.out_proj.bias + (layers[m - 1].norm4.bias if m else 0.0)
            # The weights of a head sum to 1, so the output's bias comes out whole, times t: 1 before the first layer.
            of_biases = 2 * through(layers[m:n], bias).view(1, 1, -1) @ spread
            if m == 0:
                met[f"squares_{n}"] = met[f"squares_{n}"] + of_biases
            else:
                met[f"biases_{n}_{m}"] = of_biases
        return met


class PromptSide(PromptDecoder):
    """The rest of the decoder: B prompts on an image side that is computed already: `decoder_prompts.onnx`."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Decode B prompts of N points each; see `PromptDecoder.forward`.

        Args:
            inputs: The tensors of `image_side_shapes`; then `point_coords` (B, N, 2), `point_labels` (B, N), and
                `wanted_masks` (M,) int64, numbers of masks: 0 for the single-mask answer, 1 and more for the
                candidates.

        Returns:
            low_res_masks (B, M, 4G, 4G) logits and iou_predictions (B, M).
        """
        *given, point_coords, point_labels, wanted_masks = inputs
        layers = list(self.mask_decoder.transformer.layers)
        side = dict(zip(_names(len(layers)), given, strict=True))
        tokens, absent = all_tokens(self, point_coords, point_labels)
        queries, image = tokens, WrittenImage()
        for n, layer in enumerate(layers):
            queries = after_self_attention(layer, queries, tokens, absent)
            seen = image.look(layer.cross_attn_token_to_image, queries + tokens, _look_side(side, n))
            queries = after_image_attention(layer, queries, seen)
            image.write(layer, queries + tokens, queries, absent, _write_side(side, n))
        queries, tokens = _wanted(queries, wanted_masks), _wanted(tokens, wanted_masks)
        last = self.mask_decoder.transformer.final_attn_token_to_image
        seen = image.look(last, queries + tokens, _look_side(side, len(layers)))
        answers = self.mask_decoder.transformer.norm_final_attn(queries + seen)
        token_weights = mask_weights(self.mask_decoder, answers[:, 1:], wanted_masks)
        matrix, bias = upscaling_matrix(self.mask_decoder.output_upscaling[0])
        grid = self.prompt_encoder.image_embedding_size[0]
        # The next step is a LayerNorm, in which a factor at a position drops out, but for its `eps`.
        upscaled = image.upscaled(_ENLARGED * matrix, _ENLARGED * bias, side["upscaled"])
        masks = upscaled_mask_logits(self.mask_decoder, upscaled, token_weights, grid)
        scores = self.mask_decoder.iou_prediction_head(answers[:, 0])
        return masks, scores.index_select(1, wanted_masks)


def _look_side(side: Mapping[str, Tensor], n: int) -> LookSide:
    return LookSide(side[f"keys_{n}"], side[f"values_{n}"], side.get(f"place_keys_{n}"))


def _write_side(side: Mapping[str, Tensor], n: int) -> WriteSide:
    meetings = tuple(side[f"meetings_{n}_{m}"] for m in range(n + 1))
    biases = tuple(side[f"biases_{n}_{m}"] for m in range(1, n + 1))
    return WriteSide(side[f"queries_{n}"], side.get(f"place_queries_{n}"), side[f"squares_{n}"], meetings, biases)


def _wanted(tokens: Tensor, masks: Tensor) -> Tensor:
    """The decoder's own tokens that are still read, (B, 1 + M, C): the score's, which is the first, and M masks'."""
    return tokens.index_select(1, torch.cat([torch.zeros_like(masks[:1]), masks + 1]))
