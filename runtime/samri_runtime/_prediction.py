"""The masks that a predictor returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from samri.postprocessing import upscale_logits
from samri.preprocessing import Profile
from samri.prompts import Prompt


@dataclass(frozen=True, eq=False)
class Prediction:
    """Masks for B prompts: one each, or three candidates each with `multimask`.

    Masks and logits at the size of the slice are computed when first used.

    Attributes:
        scores: (B,) float32, or (B, 3): the model's own estimate of the IoU.
        low_res_logits: (B, L, L) float32, or (B, 3, L, L); each can be the `mask_input` of a later call.
        shape: (H, W) of the slice.
        prompts: The prompts, after clipping.
        notes: Messages for the user, on boxes that were clipped.
        profile: How low-resolution logits become masks.
        image_size: S of the model.
    """

    scores: npt.NDArray[np.float32]
    low_res_logits: npt.NDArray[np.float32]
    shape: tuple[int, int]
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...]
    profile: Profile
    image_size: int

    @cached_property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(B, H, W) bool, or (B, 3, H, W)."""
        flat = self.low_res_logits.reshape(-1, *self.low_res_logits.shape[-2:])
        masks = np.empty((len(flat), *self.shape), dtype=np.bool_)
        for mask, low_res in zip(masks, flat, strict=True):
            np.greater(self._upscaled(low_res), 0, out=mask)
        return masks.reshape(*self.low_res_logits.shape[:-2], *self.shape)

    def logits(self) -> npt.NDArray[np.float32]:
        """Logits at the size of the slice, in the shape of `masks`, which are where they exceed 0. Don't change them.

        They take 4 bytes per pixel and prompt; `each_logits` needs memory for one prompt at a time.
        """
        return self._logits

    def each_logits(self) -> Iterator[npt.NDArray[np.float32]]:
        """The logits of each prompt in turn: (H, W), or (3, H, W)."""
        return (self._upscaled(low_res) for low_res in self.low_res_logits)

    @cached_property
    def _logits(self) -> npt.NDArray[np.float32]:
        return self._upscaled(self.low_res_logits)

    def _upscaled(self, low_res: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return upscale_logits(low_res, self.shape, self.profile, self.image_size)
