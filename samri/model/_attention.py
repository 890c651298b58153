"""The decoder's attention, with all that can be moved from the image side to the token side moved there.

A prompt has T tokens, seven for a box, against P = G * G = 4096 image positions. Projecting keys, values or queries at
all positions costs more than anything else in the decoder; a matrix product is associative, so the projection can be
applied to the few tokens instead. Notation: C width of a token, D width inside the attention, h heads, d = D / h.

All functions read the parameters of segment-anything's own `Attention` modules, so gradients reach them.
"""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor


def token_attention(attention: Attention, queries: Tensor, values: Tensor, absent: Tensor) -> Tensor:
    """Attention among the tokens themselves.

    Args:
        attention: The layer's weights.
        queries: (B, T, C), used as keys too.
        values: (B, T, C).
        absent: (B, 1, 1, T) float, 0 for a token and -inf for padding, which then weighs exactly nothing.

    Returns:
        (B, T, C).
    """
    q = _heads(attention.q_proj(queries), attention)
    k = _heads(attention.k_proj(queries), attention)
    v = _heads(attention.v_proj(values), attention)
    weights = (_scaled(q, attention) @ k.transpose(-2, -1) + absent).softmax(dim=-1)
    merged: Tensor = attention.out_proj(_merged(weights @ v, attention))
    return merged


def token_to_image_attention(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Tokens look at the image: (B, T, C) queries, (B or 1, P, C) keys and values -> (B, T, C).

    Per head, with Wk, Wv of shape (d, C), and X, Y the keys and values of shape (P, C):

        scores = q (X Wk^T + bk)^T = (q Wk) X^T + q bk        (T, d)(d, C)(C, P)
        output = A (Y Wv^T + bv)   = (A Y) Wv^T + bv          (T, P)(P, C)(C, d)

    q bk is the same for all positions, so softmax ignores it; a row of A sums to 1, so bv comes out whole. The two
    (P, C)(C, D) projections are gone.
    """
    q = _scaled(_heads(attention.q_proj(queries), attention), attention)
    folded = _flat(q @ _per_head(attention.k_proj.weight, attention))  # (B, h*T, C)
    weights = (folded @ keys.transpose(-2, -1)).softmax(dim=-1)  # (B, h*T, P)
    seen = _unflat(weights @ values, attention)  # (B, h, T, C)
    v_weight = _per_head(attention.v_proj.weight, attention).transpose(-2, -1)
    v_bias = attention.v_proj.bias.view(attention.num_heads, 1, -1)
    attended: Tensor = attention.out_proj(_merged(seen @ v_weight + v_bias, attention))
    return attended


def projected_image(attention: Attention, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What `token_to_projected_image_attention` reads of an image side, (1, P, C) keys and values.

    Returns:
        Keys (1, h, d, P) and values (1, h, P, d).
    """
    k = _heads(attention.k_proj(keys), attention).transpose(-2, -1)
    return k.contiguous(), _heads(attention.v_proj(values), attention).contiguous()


def token_to_projected_image_attention(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`token_to_image_attention` on an image side that was projected already, once for any number of prompts.

    Projecting all positions, (P, C)(C, D), is dear, but once an image; after it the scores of a prompt cost
    (T, d)(d, P) a head, where the folded form costs (T, C)(C, P). The tokens of all prompts stand in one row of B*T.

    Args:
        attention: The layer's weights.
        queries: (B, T, C).
        keys: (1, h, d, P), from `projected_image`.
        values: (1, h, P, d).
    """
    batch = queries.shape[0]
    q = _scaled(_heads(attention.q_proj(queries).view(1, -1, attention.internal_dim), attention), attention)
    weights = (q @ keys).softmax(dim=-1)  # (1, h, B*T, P)
    seen = _merged(weights @ values, attention).view(batch, -1, attention.internal_dim)
    attended: Tensor = attention.out_proj(seen)
    return attended


def image_to_token_attention(
    attention: Attention, queries: Tensor, keys: Tensor, values: Tensor, absent: Tensor
) -> Tensor:
    """The image looks at the tokens: (B or 1, P, C) queries, (B, T, C) keys and values -> (B, P, C).

    The sum over heads becomes one product of `image_weights`, (B, P, h*T), and `written_values`, (B, h*T, C).
    """
    written: Tensor = image_weights(attention, queries, keys, absent) @ written_values(attention, values)
    return written


def image_weights(attention: Attention, queries: Tensor, keys: Tensor, absent: Tensor) -> Tensor:
    """How much each position of the image takes from each token: (B or 1, P, C), (B, T, C) -> (B, P, h*T).

    Per head, with Wq of shape (d, C) and X the queries, the query projection goes into the tokens' keys:

        scores = (X Wq^T + bq) k^T = X (k Wq)^T + k bq        (P, C)(C, T) + (T,)

    `absent`, (B, 1, 1, T), joins the (T,) term at no cost.
    """
    k = _scaled(_heads(attention.k_proj(keys), attention), attention)  # (B, h, T, d)
    folded = _flat(k @ _per_head(attention.q_proj.weight, attention))  # (B, h*T, C)
    bias = k @ attention.q_proj.bias.view(attention.num_heads, -1, 1) + absent.transpose(-2, -1)  # (B, h, T, 1)
    return _by_head(queries @ folded.transpose(-2, -1) + _flat(bias).transpose(-2, -1), attention)


def projected_image_weights(attention: Attention, queries: Tensor, keys: Tensor, absent: Tensor) -> Tensor:
    """`image_weights` with queries that were projected already, `attention.q_proj(X)`, once for any number of prompts.

    The heads' (D / h, T) keys stand on the diagonal of one (D, h*T) matrix: D rather than the folded form's C columns
    (half of them in the published models), in a product that needs no shuffling of heads.

    Args:
        attention: The layer's weights.
        queries: (1, P, D).
        keys: (B, T, C).
        absent: (B, 1, 1, T).
    """
    k = _scaled(_heads(attention.k_proj(keys), attention), attention).transpose(-2, -1)  # (B, h, d, T)
    heads = attention.num_heads
    diagonal = k.unsqueeze(3) * torch.eye(heads, dtype=k.dtype, device=k.device).view(1, heads, 1, heads, 1)
    absent = absent.expand(-1, -1, heads, -1).reshape(k.shape[0], 1, -1)
    return _by_head(queries @ diagonal.reshape(k.shape[0], attention.internal_dim, -1) + absent, attention)


def written_values(attention: Attention, values: Tensor) -> Tensor:
    """What each token writes into a position that looks at it alone: (B, T, C) -> (B, h*T, C).

    With Wo a head's (d, C) rows of the output projection, v Wo + bo / h: the weights of a head sum to 1, so that each
    head carries its part of the output's bias, and the (P, C) result is touched once.
    """
    v = _heads(attention.v_proj(values), attention)
    outwards = attention.out_proj.weight.t().view(attention.num_heads, -1, attention.embedding_dim)
    return _flat(v @ outwards + attention.out_proj.bias / attention.num_heads)


def _by_head(scores: Tensor, attention: Attention) -> Tensor:
    """Softmax of (B, P, h*T) over the tokens of each head."""
    weights = scores.view(scores.shape[0], scores.shape[1], attention.num_heads, -1).softmax(dim=-1)
    return weights.view(scores.shape)


def _heads(tokens: Tensor, attention: Attention) -> Tensor:
    """(B, T, D) -> (B, h, T, d)."""
    width = attention.internal_dim // attention.num_heads
    return tokens.view(tokens.shape[0], -1, attention.num_heads, width).transpose(1, 2)


def _merged(heads: Tensor, attention: Attention) -> Tensor:
    """(B, h, T, d) -> (B, T, D)."""
    return heads.transpose(1, 2).reshape(heads.shape[0], -1, attention.internal_dim)


def _scaled(heads: Tensor, attention: Attention) -> Tensor:
    return heads / math.sqrt(attention.internal_dim // attention.num_heads)


def _per_head(weight: Tensor, attention: Attention) -> Tensor:
    """The (D, C) weight of a projection into the heads, as (h, d, C)."""
    return weight.view(attention.num_heads, -1, attention.embedding_dim)


def _flat(heads: Tensor) -> Tensor:
    """(B, h, T, X) -> (B, h*T, X)."""
    return heads.reshape(heads.shape[0], -1, heads.shape[3])


def _unflat(rows: Tensor, attention: Attention) -> Tensor:
    """(B, h*T, X) -> (B, h, T, X)."""
    return rows.view(rows.shape[0], attention.num_heads, -1, attention.embedding_dim)
