"""The image tokens of B prompts as factors, which are never multiplied out to (P, C). Symbols: the package's docstring.

Positions are the last axis here: Z is (B, K, P) for B prompts, and an image's projections are (1, h, d, P).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor

from samri.model._attention import flat_heads, heads_of, merged_heads, scaled_heads, unflat_heads, value_heads


def apply_norms(layers: Sequence[TwoWayAttentionBlock], rows: Tensor) -> Tensor:
    """Rows (..., C) of R that were added before the norms of `layers`, after them, times those norms' deviations."""
    for layer in layers:
        rows = subtract_mean(rows) * layer.norm4.weight
    return rows


def fold_norms(layers: Sequence[TwoWayAttentionBlock], matrix: Tensor) -> Tensor:
    """W' of shape (C, D) for W, such that `apply_norms(layers, rows) @ W` is `rows @ W'`."""
    for layer in reversed(layers):
        scaled = layer.norm4.weight.unsqueeze(1) * matrix
        matrix = scaled - scaled.mean(dim=0, keepdim=True)
    return matrix


def subtract_mean(rows: Tensor) -> Tensor:
    """c(rows): rows (..., C) without their mean."""
    return rows - rows.mean(dim=-1, keepdim=True)


class TokenToImageInputs(NamedTuple):
    """What the image alone decides of an attention of tokens to it, with the weights Wk and Wv.

    Attributes:
        keys: X M Wk^T, (1, h, d, P).
        values: X M Wv^T, (1, h, d, P).
        pe_keys: `image_pe` Wk^T, (1, h, d, P); None where `keys` includes it: before the first update.
    """

    keys: Tensor
    values: Tensor
    pe_keys: Tensor | None


class ImageToTokenInputs(NamedTuple):
    """What the image alone decides of its own attention to tokens, with the weight Wq, and of the norm after it.

    Attributes:
        queries: X M Wq^T, (1, h, d, P); before the first update as `pe_queries`.
        pe_queries: `image_pe` Wq^T and one more row, of ones, (1, h, d + 1, P). None before the first update: then
            `queries` includes both.
        row_norms: |c(X M)|^2, plus twice c(X M) . (the first layer's output bias): (1, 1, P).
        cross_terms: For each layer up to this one: c(X M) . (its output projection), per head, (1, h, d, P).
        bias_terms: For each layer but the first, up to this one: twice c(X M) . (the bias of the norm before it plus
            its own output bias), (1, 1, P).
    """

    queries: Tensor
    pe_queries: Tensor | None
    row_norms: Tensor
    cross_terms: tuple[Tensor, ...]
    bias_terms: tuple[Tensor, ...]


class FactoredImageTokens:
    """The image tokens x = (X M + sum_l Z_l R_l) / t + b of B prompts, after the layers that have updated them."""

    def __init__(self) -> None:
        self._layers: list[TwoWayAttentionBlock] = []
        self._scales: list[Tensor] = []  # t after each layer, (B, 1, P).
        self._left: list[Tensor] = []  # Z of each layer, (B, K, P), t last.
        self._left_attention: list[Tensor] = []  # The same without t, (B, K - 1, P).
        self._right: list[Tensor] = []  # R of each layer, (B, K, C).
        # The tokens' values before the output projection: the first token's (B, D), the others' minus it
        # (B, h, T - 1, d).
        self._first_values: list[Tensor] = []
        self._other_values: list[Tensor] = []

    def token_to_image(self, attention: Attention, queries: Tensor, inputs: TokenToImageInputs) -> Tensor:
        """Tokens attend to the image, (B, T, C) -> (B, T, C)."""
        weight, bias = attention.v_proj.weight, attention.v_proj.bias
        # Softmax is invariant to terms that are constant over positions, such as the key bias.
        q = scaled_heads(attention.q_proj(queries), attention)
        scores = self._products(q, attention.k_proj.weight, inputs.keys)
        weights = (scores if inputs.pe_keys is None else scores + q @ inputs.pe_keys).softmax(dim=-1)
        if self._layers:
            bias = bias + weight @ self._layers[-1].norm4.bias
            weights = weights / self._scales[-1].unsqueeze(1)
        heads = weights @ inputs.values.transpose(-2, -1)
        for left, right in zip(self._left, self._right, strict=True):
            of_rows = unflat_heads(flat_heads(weights) @ left.transpose(-2, -1), attention.num_heads)
            heads = heads + of_rows @ heads_of(right @ weight.t(), attention.num_heads)
        attn_out: Tensor = attention.out_proj(merged_heads(heads) + bias)
        return attn_out

    def image_to_token(
        self,
        layer: TwoWayAttentionBlock,
        keys: Tensor,
        values: Tensor,
        padding_mask: Tensor,
        inputs: ImageToTokenInputs,
    ) -> None:
        """Update the image tokens: a layer's last attention, in which the image attends to tokens, and its last norm.

        Args:
            layer: Its weights.
            keys: (B, T, C).
            values: (B, T, C).
            padding_mask: (B, 1, 1, T), 0 for a token and -inf for padding.
            inputs: The layer's inputs.
        """
        attention = layer.cross_attn_image_to_token
        k = scaled_heads(attention.k_proj(keys), attention)
        # Terms that are constant over positions go with the row of ones.
        constant = attention.q_proj.bias
        if self._layers:
            constant = constant + attention.q_proj.weight @ self._layers[-1].norm4.bias
        constant = k @ constant.view(attention.num_heads, -1, 1) + padding_mask.transpose(-2, -1)
        with_constant = _minus_first_token(torch.cat([k, constant], dim=-1))
        if inputs.pe_queries is None:
            scores = with_constant @ inputs.queries
        else:
            scores = (
                self._products(_minus_first_token(k), attention.q_proj.weight, inputs.queries)
                + with_constant @ inputs.pe_queries
            )
        v = value_heads(attention, values)
        self._first_values.append(v[:, :, 0].flatten(1))
        self._other_values.append(_minus_first_token(v))
        self._left_attention.append(self._attention_columns(scores))
        before = self._scales[-1] if self._scales else torch.ones_like(self._left_attention[0][:, :1])
        self._left.append(torch.cat([self._left_attention[-1], before], dim=1))
        self._right.append(self._last_rows(attention))
        self._right = [subtract_mean(rows) for rows in self._right]
        self._scales.append(self._next_scale(layer, inputs))
        self._right = [rows * layer.norm4.weight for rows in self._right]
        self._layers.append(layer)

    def projected(self, matrix: Tensor, bias: Tensor, image: Tensor) -> Tensor:
        """T (x W + bias) of a (C, D) matrix W and a (D,) bias, (B, P, D); `image` is X M W, (1, P, D).

        At least one layer must have updated the tokens.
        """
        last = (self._layers[-1].norm4.bias @ matrix + bias).expand(self._right[0].shape[0], 1, -1)
        left = torch.cat([*self._left, self._scales[-1]], dim=1)
        return left.transpose(-2, -1) @ torch.cat([*(rows @ matrix for rows in self._right), last], dim=1) + image

    def _products(self, tokens: Tensor, projection: Tensor, image: Tensor) -> Tensor:
        """(B, h, T, d) queries or keys times the x W^T of all positions, without b: (B, h, T, P).

        Args:
            tokens: The queries or keys.
            projection: W, (D, C).
            image: X M W^T, (1, h, d, P).
        """
        products = tokens @ image
        for left, right in zip(self._left, self._right, strict=True):
            of_rows = tokens @ heads_of(right @ projection.t(), tokens.shape[1]).transpose(-2, -1)
            products = products + unflat_heads(flat_heads(of_rows) @ left, tokens.shape[1])
        return products / self._scales[-1].unsqueeze(1) if self._scales else products

    def _attention_columns(self, scores: Tensor) -> Tensor:
        """Columns t A of all tokens but the first: softmax over the tokens of each head, times t.

        In single steps, since ONNX Runtime transposes for a softmax that isn't over the last axis.

        Args:
            scores: Minus the first token's, (B, h, T - 1, P).

        Returns:
            (B, h * (T - 1), P).
        """
        highest = scores.amax(dim=2, keepdim=True).clamp(min=0)
        powers = (scores - highest).exp()
        total = powers.sum(dim=2, keepdim=True) + (-highest).exp()
        return flat_heads(powers * (self._scales[-1].unsqueeze(1) / total) if self._scales else powers / total)

    def _last_rows(self, attention: Attention) -> Tensor:
        """R of the last values, (B, K, C)."""
        out_weight = attention.out_proj.weight.t().view(attention.num_heads, -1, attention.embedding_dim)
        shared = attention.out_proj(self._first_values[-1])
        if self._layers:
            shared = shared + self._layers[-1].norm4.bias
        return torch.cat([flat_heads(self._other_values[-1] @ out_weight), shared.unsqueeze(1)], dim=1)

    def _next_scale(self, layer: TwoWayAttentionBlock, inputs: ImageToTokenInputs) -> Tensor:
        """T after a layer whose Z and R are here already, the rows of every R centered.

        It comes from a sum of squares whose terms may cancel: where tokens undo nearly all of an image token, twice as
        many digits are lost as in the difference itself. A trained decoder's updates are no larger than the tokens.
        """
        total = inputs.row_norms
        for bias, scale in zip(inputs.bias_terms, self._scales, strict=True):
            total = total + bias * scale
        for k, (left, right) in enumerate(zip(self._left, self._right, strict=True)):
            rows, shared = right[:, :-1], right[:, -1:]
            # The product of another token's row and the row of t is counted here, twice, and not with t.
            products = rows @ torch.cat([rows, 2 * shared], dim=1).transpose(-2, -1)
            cross = flat_heads(2 * self._other_values[k] @ inputs.cross_terms[k]) + products @ left
            cross_first = (2 * self._first_values[k] @ inputs.cross_terms[k].flatten(0, 2)).unsqueeze(1)
            before = self._scales[k - 1] if k else 1.0
            cross_first = cross_first + shared.square().sum(-1, keepdim=True) * before
            for earlier, earlier_rows in zip(self._left[:k], self._right, strict=False):
                cross = cross + 2 * rows @ earlier_rows.transpose(-2, -1) @ earlier
                cross_first = cross_first + 2 * shared @ earlier_rows.transpose(-2, -1) @ earlier
            total = total + _sum_columns(cross * self._left_attention[k]) + cross_first * before
        # Rounding could leave a negative sum at a position where all channels are alike.
        mean = total.clamp(min=0) / self._right[-1].shape[-1]
        floor: Tensor | float = self._scales[-1].square() if self._scales else 1.0
        deviation: Tensor = (mean + layer.norm4.eps * floor).sqrt()
        return deviation


def _minus_first_token(tokens: Tensor) -> Tensor:
    """(B, h, T, X) -> (B, h, T - 1, X): each token but the first, minus the first."""
    return tokens[:, :, 1:] - tokens[:, :, :1]


def _sum_columns(columns: Tensor) -> Tensor:
    """(B, K, P) -> (B, 1, P): as a product, which several threads share where a sum over such an axis takes one."""
    return torch.ones_like(columns[:, :, :1]).transpose(-2, -1) @ columns
