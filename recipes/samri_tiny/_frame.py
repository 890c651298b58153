"""The model on a window of its frame: a quarter of the cost for three quarters of the training.

Attention over a 128-pixel window costs a fraction of that over the whole 256-pixel frame. What depends on the place is
cut out of the full model's own parameters and buffers: the absolute positions at the window, the relative ones within
reach, the decoder's position encoding. So all steps train the same weights, and the last ones go over the whole frame.
"""

from __future__ import annotations

import copy

import torch
from segment_anything.modeling import PromptEncoder, Sam
from torch import Tensor, nn
from torch.func import functional_call

from samri.model import ImageEncoder, SamDecoder
from samri_tiny.architecture import GRID, IMAGE_SIZE, PATCH, tiny_sam


class FrameWindow(nn.Module):
    """A square window of the model's frame, at a corner that may change from step to step.

    Attributes:
        side: Pixels of the window.
        corner: (row, column) of its top left in patches.
    """

    def __init__(self, sam: Sam, side: int) -> None:
        super().__init__()
        self.side = side
        self.corner = (0, 0)
        self._grid = side // PATCH
        self._sam = sam
        self._full = ImageEncoder(sam.image_encoder, query_rows=GRID)
        self._encoder = ImageEncoder(tiny_sam(side=side).image_encoder, query_rows=self._grid).to(sam.device)
        self._decoder = SamDecoder(sam)
        self._decoder.prompt_encoder = self._window_prompts()

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, side, side) preprocessed -> (N, C, g, g)."""
        weights = {name: self._in_window(name, weight) for name, weight in self._full.named_parameters()}
        embeddings: Tensor = functional_call(self._encoder, weights, (images,))
        return embeddings

    def decode(
        self, embeddings: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `SamDecoder`, with `coords` (B, N, 2) in pixels of the window."""
        row, column = self.corner
        placed = torch.stack([coords[..., 0] + column * PATCH, coords[..., 1] + row * PATCH], dim=-1)
        answer: tuple[Tensor, Tensor] = self._decoder(embeddings, placed, labels, mask_input)
        return answer

    def _in_window(self, name: str, weight: Tensor) -> Tensor:
        if name == "pos_embed":
            return self._cut(weight.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if "rel_pos" in name:
            # Row `GRID - 1` of a global block's table is distance 0; a windowed block's is short enough as it is.
            reach = min(len(weight), 2 * self._grid - 1)
            first = (len(weight) - reach) // 2
            return weight[first : first + reach]
        return weight

    def _cut(self, grid: Tensor) -> Tensor:
        """(..., GRID, GRID) -> (..., g, g)."""
        row, column = self.corner
        return grid[..., row : row + self._grid, column : column + self._grid]

    def _window_prompts(self) -> PromptEncoder:
        """The prompt encoder, the same parameters, for which the window is all there is."""
        window: PromptEncoder = copy.copy(self._sam.prompt_encoder)
        window.image_embedding_size = (self._grid, self._grid)
        window.get_dense_pe = lambda: self._cut(self._sam.prompt_encoder.get_dense_pe())
        return window


def corners(side: int) -> int:
    """How many corners, along an axis, a window of `side` pixels can have."""
    return (IMAGE_SIZE - side) // PATCH + 1
