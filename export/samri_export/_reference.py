"""What segment-anything itself makes of a picture and its prompts: the other side of every comparison.

Only its own modules and torch compute here. For `medsam`, whose preprocessing lives in MedSAM's scripts, the model
input is taken from SAMRI; everything after it is independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch.nn import functional

from samri.preprocessing import Profile, preprocess, to_uint8
from samri.prompts import Prompt
from samri_export._verification_cases import PromptCase, VerificationSlice

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DecoderOutput:
    """A decoder's output for B prompts with M masks each.

    Attributes:
        low_res: (B, M, 4G, 4G) logits.
        scores: (B, M).
        at_size: (B, M, H, W) at the picture's size, a mask being what is above 0: logits, or for `medsam`, which
            resizes probabilities, the probability less 0.5.
    """

    low_res: Floats
    scores: Floats
    at_size: Floats

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(B, M, H, W) bool."""
        return self.at_size > 0


class Reference:
    """The checkpoint's model, run by segment-anything."""

    def __init__(self, sam: Sam, profile: Profile) -> None:
        self._sam = sam
        self._profile = profile
        self._size: int = sam.image_encoder.img_size
        self._transform = ResizeLongestSide(self._size)

    @torch.no_grad()
    def encode(self, picture: VerificationSlice) -> tuple[Floats, torch.Tensor]:
        """The model input, (1, 3, S, S), and its embedding, (1, C, G, G)."""
        image = self._model_input(picture)
        return image.numpy(), self._sam.image_encoder(image)

    @torch.no_grad()
    def decode(
        self, embedding: torch.Tensor, case: PromptCase, shape: tuple[int, int], masks: Floats | None
    ) -> DecoderOutput:
        """Each prompt of the batch on its own, so that batching is tested too.

        Args:
            embedding: From `encode`.
            case: The prompts.
            shape: (H, W) of the picture.
            masks: (B, 1, 4G, 4G) logits to refine, or None.
        """
        answers = [
            self._answer_one(embedding, prompt, shape, None if masks is None else torch.from_numpy(masks[i : i + 1]))
            for i, prompt in enumerate(case.prompts)
        ]
        low_res = torch.cat([low_res for low_res, _ in answers])
        scores = torch.cat([score for _, score in answers])
        return DecoderOutput(low_res.numpy(), scores.numpy(), self._at_size(low_res, shape))

    def _answer_one(
        self, embedding: torch.Tensor, prompt: Prompt, shape: tuple[int, int], mask: torch.Tensor | None
    ) -> Any:
        points = None
        if len(prompt.points):
            labels = torch.as_tensor(prompt.labels, dtype=torch.float32)[None]
            points = (self._scaled(prompt.points, shape)[None], labels)
        box = None if prompt.box is None else self._scaled(prompt.box.reshape(2, 2), shape).reshape(1, 4)
        sparse, dense = self._sam.prompt_encoder(points=points, boxes=box, masks=mask)
        return self._sam.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=self._sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )

    def _model_input(self, picture: VerificationSlice) -> torch.Tensor:
        if self._profile.resize == "square-spline":
            return torch.from_numpy(
                preprocess(picture.pixels, self._profile, self._size, intensity_range=picture.intensity_range)
            )
        gray = to_uint8(picture.pixels, self._profile)
        rgb = gray if gray.ndim == 3 else np.repeat(gray[:, :, None], 3, axis=2)
        resized = self._transform.apply_image(rgb)
        image: torch.Tensor = self._sam.preprocess(torch.as_tensor(resized).permute(2, 0, 1)[None].float())
        return image

    def _scaled(self, coords: npt.NDArray[np.float64], shape: tuple[int, int]) -> torch.Tensor:
        if self._profile.resize == "square-spline":
            scaled = coords * (self._size / np.array([shape[1], shape[0]]))
        else:
            scaled = self._transform.apply_coords(coords, shape)
        return torch.as_tensor(scaled, dtype=torch.float32)

    def _at_size(self, low_res: torch.Tensor, shape: tuple[int, int]) -> Floats:
        if self._profile.upscale == "probabilities-direct":
            upscaled = functional.interpolate(low_res.sigmoid(), shape, mode="bilinear", align_corners=False) - 0.5
        else:
            filled = self._transform.get_preprocess_shape(*shape, self._size)
            upscaled = self._sam.postprocess_masks(low_res, filled, shape)
        array: Floats = upscaled.numpy()
        return array
