"""Three ways to run a bundle's decoder on any number of prompts of any length.

- `FlexibleDecoder`: one session of `decoder.onnx` with free shapes.
- `StaticDecoder`: the same graph in a few static sizes. Providers that compile a graph for every shape they meet would
  stop for it at each new number of boxes or points. For them, prompts are padded with the label *absent*, which changes
  nothing, to one of a few sizes; each size is a session of static shapes with its tensors in place on the device, and
  all of them read the same embedding there.
- `SplitDecoder`: `decoder_image.onnx` once per image and `decoder_prompts.onnx` once per call. Prompts with masks, or
  of many points, go to `decoder.onnx`, which is opened when the first of them comes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from samri.contract import (
    Floats,
    concatenate_outputs,
    decoder_feeds,
    decoder_image_feeds,
    decoder_prompts_feeds,
    prompt_chunks,
)
from samri.prompts import ABSENT
from samri_runtime._graphs import check_pair
from samri_runtime.providers import BoundSession, Session, copy_to_device

SINGLE, CANDIDATES, ALL = slice(0, 1), slice(1, None), slice(None)
"""SAM's masks: one for a prompt that leaves no doubt, and candidates for one that does."""

_STATIC_PROMPTS = (1, 4, 16)
_STATIC_POINTS = (4, 16, 64)

# The arithmetic of `decoder_prompts` grows with the square of the points, that of `decoder` in proportion to them.
_MOST_POINTS = 16

# They compile, or record, a graph for each shape.
_COMPILE_EACH_SHAPE = ("tensorrt", "migraphx", "directml", "coreml")


class Decoder(Protocol):
    """Decodes batches of prompts."""

    @property
    def session(self) -> Session:
        """The session that was opened first."""

    def __call__(
        self, features: Floats, coords: Floats, labels: Floats, masks: Floats | None, requested: slice
    ) -> tuple[Floats, Floats]:
        """Decode B prompts of N points.

        Args:
            features: (1, C, G, G) float32 or float16.
            coords: (B, N, 2) in model coordinates.
            labels: (B, N).
            masks: (B, 1, L, L) logits of earlier predictions, or None.
            requested: Which of the decoder's masks: `SINGLE`, `CANDIDATES` or `ALL`. Others need not be computed.

        Returns:
            Logits (B, M, L, L) and scores (B, M).
        """


def needs_static_shapes(session: Session, options: Mapping[str, str]) -> bool:
    """Whether a provider wants the same few shapes again and again.

    Args:
        session: On that provider.
        options: What the user passes to it.
    """
    if session.provider == "cuda":
        return options.get("enable_cuda_graph") in ("1", "True", "true")
    if session.provider == "openvino":
        return options.get("device_type", "CPU").startswith(("GPU", "NPU"))
    return session.provider in _COMPILE_EACH_SHAPE


class FlexibleDecoder:
    """One session of free shapes; it may be called from several threads."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(
        self, features: Floats, coords: Floats, labels: Floats, masks: Floats | None, requested: slice
    ) -> tuple[Floats, Floats]:
        """See `Decoder`."""
        image_embeddings = np.asarray(features, dtype=np.float32)
        outputs = []
        for chunk in prompt_chunks(len(labels)):
            chunk_masks = None if masks is None else masks[chunk]
            outputs.append(self.session.run(decoder_feeds(image_embeddings, coords[chunk], labels[chunk], chunk_masks)))
        low_res, scores = concatenate_outputs(outputs)
        return low_res[:, requested], scores[:, requested]


class StaticDecoder:
    """A session for each of a few sizes, opened when first needed; several threads take turns.

    Args:
        session: Session of free shapes; only its description is used.
        open_fixed: Opens the same graph with axes of fixed sizes.
    """

    def __init__(self, session: Session, open_fixed: Callable[[Mapping[str, int]], Session]) -> None:
        self.session = session
        self._open_fixed = open_fixed
        self._embedding = session.allocate("image_embeddings")
        self._resident: weakref.ref[Floats] | None = None
        self._sizes: dict[tuple[int, int], BoundSession] = {}
        self._lock = threading.Lock()

    def __call__(
        self, features: Floats, coords: Floats, labels: Floats, masks: Floats | None, requested: slice
    ) -> tuple[Floats, Floats]:
        """See `Decoder`; `features` stay on the device for as long as calls pass the same array."""
        with self._lock:
            if self._resident is None or self._resident() is not features:
                copy_to_device({"image_embeddings": self._embedding}, "image_embeddings", features)
                self._resident = weakref.ref(features)
            outputs = []
            for chunk in prompt_chunks(len(labels), _STATIC_PROMPTS[-1]):
                outputs.append(self._run(coords[chunk], labels[chunk], None if masks is None else masks[chunk]))
        low_res, scores = concatenate_outputs(outputs)
        return low_res[:, requested], scores[:, requested]

    def _run(self, coords: Floats, labels: Floats, masks: Floats | None) -> dict[str, Floats]:
        count, points = labels.shape
        size = static_size(count, points)
        if size not in self._sizes:
            session = self._open_fixed({"prompts": size[0], "points": size[1]})
            self._sizes[size] = session.bound({"image_embeddings": self._embedding})
        padding = ((0, size[0] - count), (0, size[1] - points))
        feeds = {
            "point_coords": np.pad(coords, (*padding, (0, 0))),
            "point_labels": np.pad(labels, padding, constant_values=ABSENT),
            "has_mask_input": np.full(size[0], masks is not None, np.float32),
        }
        if masks is not None:  # Without masks, what lies on the device stays there: nothing reads it.
            feeds["mask_input"] = np.pad(masks, (padding[0], (0, 0), (0, 0), (0, 0)))
        return {name: values[:count] for name, values in self._sizes[size].run(feeds).items()}


class SplitDecoder:
    """The decoder in two graphs; it may be called from several threads.

    Args:
        session: Session of `decoder_prompts`.
        masks: M, the number of masks per prompt.
        open_image: Opens `decoder_image`, when first needed.
        open_whole: Opens `decoder`, when first needed.
    """

    def __init__(
        self, session: Session, masks: int, open_image: Callable[[], Session], open_whole: Callable[[], Session]
    ) -> None:
        self.session = session
        self._masks = masks
        self._open_image, self._open_whole = open_image, open_whole
        self._image: Session | None = None
        self._whole: FlexibleDecoder | None = None
        # The image stage of the features that were passed last: eight times their size, so only one is retained.
        self._last: tuple[weakref.ref[Floats], dict[str, Floats]] | None = None
        self._lock = threading.Lock()

    def __call__(
        self, features: Floats, coords: Floats, labels: Floats, masks: Floats | None, requested: slice
    ) -> tuple[Floats, Floats]:
        """See `Decoder`; `decoder_image` runs once for as long as calls pass the same array."""
        if masks is not None or labels.shape[1] > _MOST_POINTS:
            return self._whole_decoder()(features, coords, labels, masks, requested)
        mask_indices = np.arange(self._masks, dtype=np.int64)[requested]
        stage = self._image_stage(features)
        return concatenate_outputs(
            [
                self.session.run(decoder_prompts_feeds(stage, coords[chunk], labels[chunk], mask_indices))
                for chunk in prompt_chunks(len(labels))
            ]
        )

    def _image_stage(self, features: Floats) -> dict[str, Floats]:
        with self._lock:
            if self._last is None or self._last[0]() is not features:
                if self._image is None:
                    image = self._open_image()
                    check_pair(image, self.session)
                    self._image = image
                image_embeddings = np.asarray(features, dtype=np.float32)
                self._last = (weakref.ref(features), self._image.run(decoder_image_feeds(image_embeddings)))
            return self._last[1]

    def _whole_decoder(self) -> FlexibleDecoder:
        with self._lock:
            if self._whole is None:
                self._whole = FlexibleDecoder(self._open_whole())
            return self._whole


def static_size(prompts: int, points: int) -> tuple[int, int]:
    """The size to which that many prompts of that many points are padded."""
    most = _STATIC_POINTS[-1]
    return (
        next(size for size in _STATIC_PROMPTS if size >= prompts),
        next((size for size in _STATIC_POINTS if size >= points), -(-points // most) * most),
    )
