"""The decoder's attention, with the projections of image tokens moved over to the few prompt tokens.

A prompt has T tokens, seven for a box, against P = G * G = 4096 image tokens. Projecting keys, values or queries at
all positions costs more than anything else in the decoder; a matrix product is associative, so the projection can be
applied to the few tokens instead. Notation: C width of a token, D width inside the attention, h heads, d = D / h.

All functions read the parameters of segment-anything's own `Attention` modules, so gradients reach them.
"""

from __future__ import annotations

import math

from segment_anything.modeling.transformer import Attention
from torch import Tensor


def token_attention(attention: Attention, queries: Tensor, values: Tensor, padding_mask: Tensor) -> Tensor:
    """Attention among the tokens themselves.

    Args:
        attention: The layer's weights.
        queries: (B, T, C), used as keys too.
        values: (B, T, C).
        padding_mask: (B, 1, 1, T) float, 0 for a token and -inf for padding, which then weighs exactly nothing.

    Returns:
        (B, T, C).
    """
    q = scaled_heads(attention.q_proj(queries), attention)
    k = heads_of(attention.k_proj(queries), attention.num_heads)
    v = value_heads(attention, values)
    weights = (q @ k.transpose(-2, -1) + padding_mask).softmax(dim=-1)
    merged: Tensor = attention.out_proj(merged_heads(weights @ v))
    return merged


def token_to_image_attention(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Tokens attend to the image: (B, T, C) queries, (B or 1, P, C) keys and values -> (B, T, C).

    Per head, with Wk, Wv of shape (d, C), and X, Y the keys and values of shape (P, C):

        scores = q (X Wk^T + bk)^T = (q Wk) X^T + q bk        (T, d)(d, C)(C, P)
        output = A (Y Wv^T + bv)   = (A Y) Wv^T + bv          (T, P)(P, C)(C, d)

    q bk is the same for all positions, so softmax ignores it; a row of A sums to 1, so bv comes out whole. The two
    (P, C)(C, D) projections are gone.
    """
    q = scaled_heads(attention.q_proj(queries), attention)
    folded = flat_heads(q @ _per_head(attention.k_proj.weight, attention))  # (B, h*T, C)
    weights = (folded @ keys.transpose(-2, -1)).softmax(dim=-1)  # (B, h*T, P)
    heads = unflat_heads(weights @ values, attention.num_heads)  # (B, h, T, C)
    v_weight = _per_head(attention.v_proj.weight, attention).transpose(-2, -1)
    v_bias = attention.v_proj.bias.view(attention.num_heads, 1, -1)
    attended: Tensor = attention.out_proj(merged_heads(heads @ v_weight + v_bias))
    return attended


def image_to_token_attention(
    attention: Attention, queries: Tensor, keys: Tensor, values: Tensor, padding_mask: Tensor
) -> Tensor:
    """The image attends to the tokens: (B or 1, P, C) queries, (B, T, C) keys and values -> (B, P, C).

    Per head, with Wq of shape (d, C) and X the queries, the query projection goes into the tokens' keys:

        scores = (X Wq^T + bq) k^T = X (k Wq)^T + k bq        (P, C)(C, T) + (T,)

    `padding_mask`, (B, 1, 1, T), joins the (T,) term at no cost. The sum over heads becomes one product of the weights,
    (B, P, h*T), and of what each token adds to an image token that attends to it alone, (B, h*T, C): with Wo a head's
    (d, C) rows of the output projection, v Wo + bo / h. The weights of a head sum to 1, so that each head carries its
    part of the output's bias, and the (P, C) result is touched once.
    """
    k = scaled_heads(attention.k_proj(keys), attention)  # (B, h, T, d)
    folded = flat_heads(k @ _per_head(attention.q_proj.weight, attention))  # (B, h*T, C)
    bias = k @ attention.q_proj.bias.view(attention.num_heads, -1, 1) + padding_mask.transpose(-2, -1)  # (B, h, T, 1)
    scores = queries @ folded.transpose(-2, -1) + flat_heads(bias).transpose(-2, -1)
    weights = scores.view(scores.shape[0], scores.shape[1], attention.num_heads, -1).softmax(dim=-1)
    outwards = attention.out_proj.weight.t().view(attention.num_heads, -1, attention.embedding_dim)
    rows = value_heads(attention, values) @ outwards + attention.out_proj.bias / attention.num_heads
    added: Tensor = weights.view(scores.shape) @ flat_heads(rows)
    return added


def value_heads(attention: Attention, tokens: Tensor) -> Tensor:
    """(B, T, C) -> the values of its heads, (B, h, T, d)."""
    return heads_of(attention.v_proj(tokens), attention.num_heads)


def heads_of(tokens: Tensor, heads: int) -> Tensor:
    """(B, T, D) -> (B, h, T, d)."""
    return tokens.view(tokens.shape[0], -1, heads, tokens.shape[2] // heads).transpose(1, 2)


def scaled_heads(tokens: Tensor, attention: Attention) -> Tensor:
    """(B, T, D) queries or keys -> (B, h, T, d), divided by the root of d."""
    return heads_of(tokens, attention.num_heads) / math.sqrt(attention.internal_dim // attention.num_heads)


def merged_heads(heads: Tensor) -> Tensor:
    """(B, h, T, d) -> (B, T, D)."""
    return heads.transpose(1, 2).reshape(heads.shape[0], -1, heads.shape[1] * heads.shape[3])


def flat_heads(heads: Tensor) -> Tensor:
    """(B, h, T, X) -> (B, h*T, X)."""
    return heads.reshape(heads.shape[0], -1, heads.shape[3])


def unflat_heads(rows: Tensor, heads: int) -> Tensor:
    """(B, h*T, X) -> (B, h, T, X)."""
    return rows.view(rows.shape[0], heads, -1, rows.shape[2])


def _per_head(weight: Tensor, attention: Attention) -> Tensor:
    """The (D, C) weight of a projection into the heads, as (h, d, C)."""
    return weight.view(attention.num_heads, -1, attention.embedding_dim)
