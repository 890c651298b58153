"""SAM's image encoder, arranged for a CPU's caches and for ONNX; equal to segment-anything's."""

from __future__ import annotations

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import Attention, Block, ImageEncoderViT
from torch import Tensor, nn
from torch.nn import functional

QUERY_ROWS = 4
"""Rows of the token grid whose queries attend at once in a global block: the scores of 4 rows are 50 MB at ViT-B where
all 64 would be 805 MB. docs/precision.md has what other numbers of rows were measured to cost."""


class ImageEncoder(nn.Module):
    """From a preprocessed image to its embedding: the contract of a bundle's `encoder.onnx`.

    A module over the parameters of the `ImageEncoderViT` that it is given, and nothing but those.
    """

    def __init__(self, encoder: ImageEncoderViT, query_rows: int = QUERY_ROWS) -> None:
        super().__init__()
        self.patch_embed = encoder.patch_embed.proj
        self.pos_embed = encoder.pos_embed
        self.grid = encoder.img_size // encoder.patch_embed.proj.kernel_size[0]
        self.blocks = nn.ModuleList(
            _WindowBlock(block, self.grid) if block.window_size else _GlobalBlock(block, self.grid, query_rows)
            for block in encoder.blocks
        )
        self.neck = encoder.neck

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) float32, preprocessed -> (N, C, G, G)."""
        assert self.pos_embed is not None
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)  # (N, P, width)
        # Two axes from here on, so that each linear layer is a plain (N*P, width) matrix product with its bias in it.
        tokens = (patches + self.pos_embed.flatten(1, 2)).flatten(0, 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self._neck(tokens)

    def _neck(self, tokens: Tensor) -> Tensor:
        reduce, reduce_norm, smooth, smooth_norm = self.neck
        reduced = _layer_norm(functional.linear(tokens, reduce.weight.flatten(1)), reduce_norm)
        smoothed = smooth(self._image(reduced))
        return self._image(_layer_norm(smoothed.flatten(2).transpose(1, 2), smooth_norm))

    def _image(self, tokens: Tensor) -> Tensor:
        """(N*P, C) or (N, P, C) -> (N, C, G, G)."""
        channels = tokens.shape[-1]
        return tokens.reshape(-1, self.grid, self.grid, channels).permute(0, 3, 1, 2)


class _GlobalBlock(nn.Module):
    """A transformer block in which every token attends to all others, a few rows of queries at a time."""

    def __init__(self, block: Block, grid: int, query_rows: int) -> None:
        super().__init__()
        self.block = block
        self.grid = grid
        self.query_rows = query_rows

    def forward(self, tokens: Tensor) -> Tensor:
        attention = self.block.attn
        qkv = attention.qkv(self.block.norm1(tokens)).view(-1, self.grid * self.grid, tokens.shape[1] * 3)
        attended = _attend(attention, qkv, self.grid, self.query_rows)
        return _finish_block(self.block, tokens, attended.flatten(0, 1))


class _WindowBlock(nn.Module):
    """A transformer block in which tokens attend within windows of w x w.

    The grid is padded with zeros to a multiple of w. Query, key and value of a zero token are the projection's bias; so
    the P real tokens are projected, and padding points to one more row that holds the bias. One gather pads and sorts
    tokens into windows; another one takes the real tokens back before the output projection.
    """

    source: Tensor
    target: Tensor

    def __init__(self, block: Block, grid: int) -> None:
        super().__init__()
        self.block = block
        window = block.window_size
        self.window = window
        self.tokens = grid * grid
        across = -(-grid // window)
        padded = torch.full((across * window, across * window), self.tokens)
        padded[:grid, :grid] = torch.arange(self.tokens).view(grid, grid)
        source = padded.view(across, window, across, window).transpose(1, 2).flatten()
        self.padded = across * window > grid
        # Of the windows' slots, the token in it; of the tokens, the slot that it is in.
        self.register_buffer("source", source, persistent=False)
        self.register_buffer("target", torch.argsort(source, stable=True)[: self.tokens], persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        attention = self.block.attn
        width = tokens.shape[1]
        qkv = attention.qkv(self.block.norm1(tokens)).view(-1, self.tokens, 3 * width)
        if self.padded:
            qkv = torch.cat([qkv, attention.qkv.bias.view(1, 1, -1).expand(qkv.shape[0], -1, -1)], dim=1)
        windows = qkv.index_select(1, self.source).view(-1, self.window * self.window, 3 * width)
        attended = _attend(attention, windows, self.window, self.window)
        attended = attended.view(-1, self.source.shape[0], width).index_select(1, self.target)
        return _finish_block(self.block, tokens, attended.flatten(0, 1))


def _attend(attention: Attention, qkv: Tensor, side: int, query_rows: int) -> Tensor:
    """Attention with SAM's decomposed relative positions over a square of `side` x `side` tokens.

    The score of query (i, j) and key (k, l) is q . k / sqrt(d) + q . Rh[i - k] + q . Rw[j - l]: the last two are small
    tensors, (.., side, side, side) each, broadcast over one axis of the large one.

    Args:
        attention: The block's weights.
        qkv: (N, side * side, 3 * width).
        side: Tokens along a side.
        query_rows: Rows of queries to attend at once; the result doesn't depend on it.

    Returns:
        (N, side * side, width).
    """
    heads, head_width = attention.num_heads, qkv.shape[2] // (3 * attention.num_heads)
    split = qkv.view(-1, side * side, 3, heads, head_width).permute(2, 0, 3, 1, 4)
    q, k, v = split.unbind(0)  # (N, h, side * side, d) each
    grid = q.reshape(-1, heads, side, side, head_width)
    down = grid @ _relative(attention.rel_pos_h, side)  # (N, h, i, j, k)
    across = (grid.transpose(2, 3) @ _relative(attention.rel_pos_w, side)).transpose(2, 3)  # (N, h, i, j, l)
    q = q * attention.scale
    k = k.transpose(2, 3)
    attended = []
    for top in range(0, side, query_rows):
        bottom = min(top + query_rows, side)
        scores = (q[:, :, top * side : bottom * side] @ k).view(-1, heads, bottom - top, side, side, side)
        scores = scores + down[:, :, top:bottom].unsqueeze(5) + across[:, :, top:bottom].unsqueeze(4)
        weights = scores.view(-1, heads, (bottom - top) * side, side * side).softmax(dim=-1)
        attended.append(weights @ v)
    merged = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
    return merged.transpose(1, 2).reshape(-1, side * side, heads * head_width)


def _relative(table: Tensor, side: int) -> Tensor:
    """The (2 * side - 1, d) table as (side, d, side): for query i, the column of key k is the row of distance i - k."""
    positions = torch.arange(side, device=table.device)
    return table[positions[:, None] - positions[None, :] + side - 1].transpose(1, 2)


def _finish_block(block: Block, tokens: Tensor, attended: Tensor) -> Tensor:
    tokens = tokens + block.attn.proj(attended)
    finished: Tensor = tokens + block.mlp(block.norm2(tokens))
    return finished


def _layer_norm(rows: Tensor, norm: LayerNorm2d) -> Tensor:
    return functional.layer_norm(rows, norm.weight.shape, norm.weight, norm.bias, norm.eps)
