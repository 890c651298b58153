"""The exported graphs, run as a host runs them: ONNX Runtime on the CPU, with SAMRI's numpy before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from samri.contract import (
    Feeds,
    decoder_feeds,
    decoder_image_feeds,
    decoder_prompts_feeds,
    encoder_feeds,
    sam_decoder_feeds,
)
from samri.manifest import Role
from samri.postprocessing import upscale_logits
from samri.preprocessing import Profile, preprocess
from samri.prompts import to_batch, to_model_frame
from samri_export._reference import DecoderOutput, Floats
from samri_export._verification_cases import PromptCase, VerificationSlice
from samri_runtime.providers import load_onnxruntime


class Exported:
    """The graphs of one precision.

    Raises:
        MissingDependencyError: ONNX Runtime isn't installed.
    """

    def __init__(self, graphs: Mapping[Role, Path], profile: Profile, image_size: int) -> None:
        onnxruntime = load_onnxruntime()
        # A session of its own, not samri_runtime's: the graphs must hold without any host's tuning.
        self._sessions = {
            role: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            for role, path in graphs.items()
        }
        self._masks = next(
            each.shape[1] for each in self._sessions["decoder"].get_outputs() if each.name == "iou_predictions"
        )
        self._profile = profile
        self._size = image_size

    def encode(self, picture: VerificationSlice) -> tuple[Floats, Floats]:
        """The model input, (1, 3, S, S), and its embedding, (1, C, G, G)."""
        image = preprocess(picture.pixels, self._profile, self._size, intensity_range=picture.intensity_range)
        (embedding,) = self._sessions["encoder"].run(["image_embeddings"], encoder_feeds(image))
        return image, embedding

    def decode(
        self, embedding: Floats, case: PromptCase, shape: tuple[int, int], masks: Floats | None
    ) -> DecoderOutput:
        """All prompts of the batch in one call; see `Reference.decode`."""
        feeds = self.decoder_feeds(embedding, case, shape, masks)
        low_res, scores = self._sessions["decoder"].run(["low_res_masks", "iou_predictions"], feeds)
        return DecoderOutput(low_res, scores, self._at_size(low_res, shape))

    def decode_in_stages(self, embedding: Floats, case: PromptCase, shape: tuple[int, int]) -> DecoderOutput:
        """All prompts of the batch, without masks, through `decoder_image` and `decoder_prompts`.

        As hosts do, it asks for the single mask and for the candidates in calls of their own.
        """
        image, prompts = self._sessions["decoder_image"], self._sessions["decoder_prompts"]
        names = [each.name for each in image.get_outputs()]
        stage = dict(zip(names, image.run(None, decoder_image_feeds(embedding)), strict=True))
        points = self._points(case, shape)
        answers = [
            prompts.run(["low_res_masks", "iou_predictions"], decoder_prompts_feeds(stage, *points, indices))
            for indices in np.split(np.arange(self._masks, dtype=np.int64), [1])
        ]
        low_res, scores = (np.concatenate(parts, axis=1) for parts in zip(*answers, strict=True))
        return DecoderOutput(low_res, scores, self._at_size(low_res, shape))

    def decoder_feeds(self, embedding: Floats, case: PromptCase, shape: tuple[int, int], masks: Floats | None) -> Feeds:
        """The inputs of `decoder.onnx` for all prompts of the batch."""
        return decoder_feeds(embedding, *self._points(case, shape), masks)

    def decode_sam_contract(
        self, role: Role, embedding: Floats, case: PromptCase, shape: tuple[int, int], masks: Floats | None
    ) -> DecoderOutput:
        """The one prompt of `case` through a decoder with Meta's interface."""
        at_size, scores, low_res = self._sessions[role].run(
            ["masks", "iou_predictions", "low_res_masks"],
            sam_decoder_feeds(embedding, *self._points(case, shape), shape, masks),
        )
        return DecoderOutput(low_res, scores, at_size)

    def _points(self, case: PromptCase, shape: tuple[int, int]) -> tuple[Floats, Floats]:
        coords, labels = to_batch(case.prompts)
        return to_model_frame(coords, shape, self._profile, self._size), labels

    def _at_size(self, low_res: Floats, shape: tuple[int, int]) -> Floats:
        at_size = upscale_logits(low_res, shape, self._profile, self._size)
        if self._profile.upscale == "probabilities-direct":
            half = np.float32(0.5)
            at_size = half * np.tanh(half * at_size)  # The probability less 0.5.
        return at_size
