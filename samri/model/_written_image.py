"""The image side of the decoder while tokens write into it, without its (P, C) numbers ever being computed.

A layer turns the image side x, C numbers at each of P positions, into LN(x + A V): A are the (P, h*T) weights of the
image's look at the T tokens of a prompt, V the (h*T, C) rows that they write. At each position LayerNorm is affine but
for one number, the standard deviation s:

    LN(y) = c(y) * g / s + b,        c(y) = y minus its mean over the C channels

with gain g and bias b. So with t, the product of the deviations so far, x stays a sum of few terms,

    x = (X M + sum over layers l of Z_l R_l) / t + b

with X the image side that no prompt has touched, M a (C, C) matrix of weights alone, and b of the last norm. A layer
adds columns Z and rows R: with the t before its own norm, t A V = Z R. A's weights sum to 1 in each head, so that its
first token, which is never absent, takes what the others leave. Where R has the rows of the others less the first's,
Z needs the columns t A of the others alone; and one column more, t itself, for the row that all first tokens write
together, with the output's bias and, from the second layer on, the b of the norm before. That is K = h (T - 1) + 1
columns, 49 for a box, where C is 256; and R is small. M and R take the step c(row) * g of every norm behind them
(`through`), which for a matrix W that x is multiplied with can be taken from the other side (`pulled_through`).

Whatever reads the image side reads a product x W with some projection:

    x W = (X M W + sum of Z_l (R_l W)) / t + b W

X M W is computed once an image, (P, C)(C, D), R W is small, and b W is the same at all positions. The next deviation
is as cheap. Let y be what the next norm takes, and R stand for rows that are centred already:

    (t s)^2 = t^2 |c(y)|^2 / C + eps t^2
    t^2 |c(y)|^2 = |c(X M)|^2 + sum over k of Z_k (2 c(X M) . R_k + sum over l of (R_k . R_l) Z_l)

at each position. The first term is computed once an image. Of c(X M) . R_k too, since a row that a token writes is a
head's d values times d rows of the output projection, what an image decides are (P, d) numbers a head; for the biases
in R, one number a position.

Positions stand in the last axis here: Z is (B, K, P) for B prompts, an image's projections are (1, h, d, P).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor

from samri.model._attention import flat_heads, heads_of, merged_heads, scaled_heads, unflat_heads, value_heads


def through(layers: Sequence[TwoWayAttentionBlock], rows: Tensor) -> Tensor:
    """Rows (..., C) that were written before the norms of `layers`, behind them: times those norms' deviations."""
    for layer in layers:
        rows = centred(rows) * layer.norm4.weight
    return rows


def pulled_through(layers: Sequence[TwoWayAttentionBlock], matrix: Tensor) -> Tensor:
    """W' of shape (C, D) for W: `through(layers, rows) @ W` is `rows @ W'`."""
    for layer in reversed(layers):
        gained = layer.norm4.weight.unsqueeze(1) * matrix
        matrix = gained - gained.mean(dim=0, keepdim=True)
    return matrix


def centred(rows: Tensor) -> Tensor:
    """Rows (..., C) without their mean."""
    return rows - rows.mean(dim=-1, keepdim=True)


class LookSide(NamedTuple):
    """What an image decides of a look of tokens at it, with the weights Wk and Wv.

    Attributes:
        keys: X M Wk^T, (1, h, d, P).
        values: X M Wv^T, (1, h, d, P).
        places: Of the places Wk^T, (1, h, d, P); None where `keys` holds them too: before the first write.
    """

    keys: Tensor
    values: Tensor
    places: Tensor | None


class WriteSide(NamedTuple):
    """What an image decides of its own look at tokens, with the weight Wq, and of the norm behind it.

    Attributes:
        queries: X M Wq^T, (1, h, d, P); without `places` as they are.
        places: Of the places Wq^T with one row more, of ones, (1, h, d + 1, P). None before the first write: then
            `queries` holds them and that row.
        squares: |c(X M)|^2, and twice what the first layer's output bias meets of c(X M): (1, 1, P).
        meetings: For each layer so far and this one, what its tokens' values meet of c(X M): (1, h, d, P).
        biases: For each layer but the first, up to this one: twice what the bias of the norm before it and its own
            output bias meet of c(X M), (1, 1, P).
    """

    queries: Tensor
    places: Tensor | None
    squares: Tensor
    meetings: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


class WrittenImage:
    """The image side of B prompts behind the layers that have written so far: none at first."""

    def __init__(self) -> None:
        self._layers: list[TwoWayAttentionBlock] = []
        self._scales: list[Tensor] = []  # t behind each layer, (B, 1, P).
        self._columns: list[Tensor] = []  # Z of each layer, (B, K, P), t last.
        self._others: list[Tensor] = []  # The same without t, (B, K - 1, P).
        self._rows: list[Tensor] = []  # R of each layer, (B, K, C).
        # What its tokens wrote, before the output projection: the first (B, D), the others less it (B, h, T - 1, d).
        self._first: list[Tensor] = []
        self._values: list[Tensor] = []

    def look(self, attention: Attention, queries: Tensor, side: LookSide) -> Tensor:
        """Tokens look at the image, (B, T, C) -> (B, T, C)."""
        weight, bias = attention.v_proj.weight, attention.v_proj.bias
        # What is the same for all positions, as the keys' bias is, softmax doesn't see.
        q = scaled_heads(attention.q_proj(queries), attention)
        scores = self._products(q, attention.k_proj.weight, side.keys)
        weights = (scores if side.places is None else scores + q @ side.places).softmax(dim=-1)
        if self._layers:
            bias = bias + weight @ self._layers[-1].norm4.bias
            weights = weights / self._scales[-1].unsqueeze(1)
        seen = weights @ side.values.transpose(-2, -1)
        for columns, rows in zip(self._columns, self._rows, strict=True):
            of_rows = unflat_heads(flat_heads(weights) @ columns.transpose(-2, -1), attention.num_heads)
            seen = seen + of_rows @ heads_of(rows @ weight.t(), attention.num_heads)
        attended: Tensor = attention.out_proj(merged_heads(seen) + bias)
        return attended

    def write(self, layer: TwoWayAttentionBlock, keys: Tensor, values: Tensor, absent: Tensor, side: WriteSide) -> None:
        """Go through a layer's last attention, in which the image looks at tokens, and its last norm.

        Args:
            layer: Its weights.
            keys: (B, T, C).
            values: (B, T, C).
            absent: (B, 1, 1, T), 0 for a token and -inf for padding.
            side: Of this layer.
        """
        attention = layer.cross_attn_image_to_token
        k = scaled_heads(attention.k_proj(keys), attention)
        # What is the same at all positions goes with the row of ones.
        constant = attention.q_proj.bias
        if self._layers:
            constant = constant + attention.q_proj.weight @ self._layers[-1].norm4.bias
        constant = k @ constant.view(attention.num_heads, -1, 1) + absent.transpose(-2, -1)
        with_constant = _less_first(torch.cat([k, constant], dim=-1))
        if side.places is None:
            scores = with_constant @ side.queries
        else:
            scores = self._products(_less_first(k), attention.q_proj.weight, side.queries) + with_constant @ side.places
        of_tokens = value_heads(attention, values)
        self._first.append(of_tokens[:, :, 0].flatten(1))
        self._values.append(_less_first(of_tokens))
        self._others.append(self._weights(scores))
        before = self._scales[-1] if self._scales else torch.ones_like(self._others[0][:, :1])
        self._columns.append(torch.cat([self._others[-1], before], dim=1))
        self._rows.append(self._written(attention))
        self._rows = [centred(rows) for rows in self._rows]
        self._scales.append(self._next_scale(layer, side))
        self._rows = [rows * layer.norm4.weight for rows in self._rows]
        self._layers.append(layer)

    def upscaled(self, matrix: Tensor, bias: Tensor, image: Tensor) -> Tensor:
        """Of a (C, D) matrix W and its (D,) bias, t (x W + bias), (B, P, D); `image` is X M W, (1, P, D).

        All layers must have written.
        """
        last = (self._layers[-1].norm4.bias @ matrix + bias).expand(self._rows[0].shape[0], 1, -1)
        columns = torch.cat([*self._columns, self._scales[-1]], dim=1)
        return columns.transpose(-2, -1) @ torch.cat([*(rows @ matrix for rows in self._rows), last], dim=1) + image

    def _products(self, tokens: Tensor, projection: Tensor, image: Tensor) -> Tensor:
        """(B, h, T, d) queries or keys times all positions' x W^T, but for b: (B, h, T, P).

        Args:
            tokens: The queries or keys.
            projection: W, (D, C).
            image: X M W^T, (1, h, d, P).
        """
        products = tokens @ image
        for columns, rows in zip(self._columns, self._rows, strict=True):
            of_rows = tokens @ heads_of(rows @ projection.t(), tokens.shape[1]).transpose(-2, -1)
            products = products + unflat_heads(flat_heads(of_rows) @ columns, tokens.shape[1])
        return products / self._scales[-1].unsqueeze(1) if self._scales else products

    def _weights(self, scores: Tensor) -> Tensor:
        """Columns t A of all tokens but the first: softmax over the tokens of each head, times t.

        In single steps, since ONNX Runtime turns the axes for a softmax that isn't over the last one.

        Args:
            scores: Above the first token's, (B, h, T - 1, P).

        Returns:
            (B, h * (T - 1), P).
        """
        highest = scores.amax(dim=2, keepdim=True).clamp(min=0)
        powers = (scores - highest).exp()
        total = powers.sum(dim=2, keepdim=True) + (-highest).exp()
        return flat_heads(powers * (self._scales[-1].unsqueeze(1) / total) if self._scales else powers / total)

    def _written(self, attention: Attention) -> Tensor:
        """R of the last values, (B, K, C)."""
        outwards = attention.out_proj.weight.t().view(attention.num_heads, -1, attention.embedding_dim)
        together = attention.out_proj(self._first[-1])
        if self._layers:
            together = together + self._layers[-1].norm4.bias
        return torch.cat([flat_heads(self._values[-1] @ outwards), together.unsqueeze(1)], dim=1)

    def _next_scale(self, layer: TwoWayAttentionBlock, side: WriteSide) -> Tensor:
        """The next t behind a layer whose columns and rows are there already, all rows centred.

        It comes from a sum of squares, of which much may cancel: where tokens undo nearly all that the image side is,
        twice as many digits are lost as in the difference itself. What a trained decoder's write is of its own size.
        """
        total = side.squares
        for bias, scale in zip(side.biases, self._scales, strict=True):
            total = total + bias * scale
        for k, (columns, all_rows) in enumerate(zip(self._columns, self._rows, strict=True)):
            rows, together = all_rows[:, :-1], all_rows[:, -1:]
            # What another token's row and the row of t meet of each other is counted here, twice, and not with t.
            meets_all = rows @ torch.cat([rows, 2 * together], dim=1).transpose(-2, -1)
            met = flat_heads(2 * self._values[k] @ side.meetings[k]) + meets_all @ columns
            met_first = (2 * self._first[k] @ side.meetings[k].flatten(0, 2)).unsqueeze(1)
            before = self._scales[k - 1] if k else 1.0
            met_first = met_first + together.square().sum(-1, keepdim=True) * before
            for earlier, earlier_rows in zip(self._columns[:k], self._rows, strict=False):
                met = met + 2 * rows @ earlier_rows.transpose(-2, -1) @ earlier
                met_first = met_first + 2 * together @ earlier_rows.transpose(-2, -1) @ earlier
            total = total + _summed(met * self._others[k]) + met_first * before
        # Rounding could leave less than nothing of a position where all channels are alike.
        mean = total.clamp(min=0) / self._rows[-1].shape[-1]
        floor: Tensor | float = self._scales[-1].square() if self._scales else 1.0
        deviation: Tensor = (mean + layer.norm4.eps * floor).sqrt()
        return deviation


def _less_first(tokens: Tensor) -> Tensor:
    """(B, h, T, X) -> (B, h, T - 1, X): each token but the first, less the first."""
    return tokens[:, :, 1:] - tokens[:, :, :1]


def _summed(columns: Tensor) -> Tensor:
    """(B, K, P) -> (B, 1, P): as a product, which several threads share where a sum over such an axis takes one."""
    return torch.ones_like(columns[:, :, :1]).transpose(-2, -1) @ columns
