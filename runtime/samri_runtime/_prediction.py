"""What a predictor answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from samri.postprocessing import upscale_logits
from samri.preprocessing import Profile
from samri.prompts import Prompt


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to B prompts: one mask each, or three candidates each with `multimask`.

    Attributes:
        masks: (B, H, W) bool, or (B, 3, H, W).
        scores: (B,) float32, or (B, 3): the model's own estimate of the IoU.
        low_res_logits: (B, L, L) float32, or (B, 3, L, L); one of them can be the next call's `mask_input`.
        prompts: What was asked, after clipping.
        notes: Plain lines on what was clipped.
        profile: How low-resolution logits become masks.
        image_size: S of the model.
    """

    masks: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    low_res_logits: npt.NDArray[np.float32]
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...]
    profile: Profile
    image_size: int
    _logits: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def logits(self) -> npt.NDArray[np.float32]:
        """Logits at the slice's size, in the shape of `masks`; a mask is where they are above 0. Don't change them."""
        if self._logits is not None:
            return self._logits
        height, width = self.masks.shape[-2:]
        return upscale_logits(self.low_res_logits, (height, width), self.profile, self.image_size)
