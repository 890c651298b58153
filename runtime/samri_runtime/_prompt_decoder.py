"""The decoder in two graphs: what it computes of an image alone, once an image, and the rest, once a call.

Most prompts come without a mask of an earlier answer, and several of them are asked of one slice. For those the bundle
may hold `decoder_image` and `decoder_prompts`; prompts with masks go to the whole decoder.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from samri_runtime._decoder import FlexibleDecoder, Floats, joined, prompts_at_once
from samri_runtime.providers import Session


class PromptDecoder:
    """The decoder of a bundle that holds it in two graphs too; it may be called from several threads.

    Args:
        session: Of the whole decoder.
        masks: How many it has.
        open_sides: Opens `decoder_image` and `decoder_prompts`, when first needed.
    """

    def __init__(self, session: Session, masks: int, open_sides: Callable[[], tuple[Session, Session]]) -> None:
        self.session = session
        self._masks = masks
        self._whole = FlexibleDecoder(session)
        self._open_sides = open_sides
        self._sides: tuple[Session, Session] | None = None
        # The image side of the features that were asked last: six times their size, so no more than one is kept.
        self._last: tuple[weakref.ref[Floats], dict[str, npt.NDArray[np.float32]]] | None = None
        self._lock = threading.Lock()

    def __call__(
        self, features: Floats, coords: Floats, labels: Floats, masks: Floats | None, wanted: slice
    ) -> tuple[Floats, Floats]:
        """See `Decoder`; the image side is computed once while the same array is asked again."""
        if masks is not None:
            return self._whole(features, coords, labels, masks, wanted)
        image_side, prompts = self._image_side(features)
        feeds: dict[str, npt.NDArray[Any]] = {**image_side, "wanted_masks": np.arange(self._masks)[wanted]}
        return joined(
            [
                prompts.run({**feeds, "point_coords": coords[part], "point_labels": labels[part]})
                for part in prompts_at_once(len(labels))
            ]
        )

    def _image_side(self, features: Floats) -> tuple[dict[str, npt.NDArray[np.float32]], Session]:
        with self._lock:
            if self._sides is None:
                self._sides = self._open_sides()
            image, prompts = self._sides
            if self._last is None or self._last[0]() is not features:
                full = np.asarray(features, dtype=np.float32)
                self._last = (weakref.ref(features), image.run({"image_embeddings": full}))
            return self._last[1], prompts
