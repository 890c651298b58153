"""The decoder in two graphs: what it computes of an image alone, once an image, and the rest, once a call.

Most prompts come without a mask of an earlier answer, and several of them are asked of one slice. For those the bundle
may hold `decoder_image` and `decoder_prompts`. Prompts with masks, and of many points, go to the whole decoder, opened
when one comes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from samri_runtime._decoder import FlexibleDecoder, Floats, joined, prompts_at_once
from samri_runtime._graphs import check_pair
from samri_runtime.providers import Session

# The two graphs' arithmetic grows with the square of the points, the whole decoder's in proportion to them.
_MOST_POINTS = 16


class PromptDecoder:
    """The decoder of a bundle that holds it in two graphs too; it may be called from several threads.

    Args:
        session: Of `decoder_prompts`.
        masks: How many the decoder has.
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
        # The image side of the features that were asked last: eight times their size, so no more than one is kept.
        self._last: tuple[weakref.ref[Floats], dict[str, npt.NDArray[np.float32]]] | None = None
        self._lock = threading.Lock()

    def __call__(
        self, features: Floats, coords: Floats, labels: Floats, masks: Floats | None, wanted: slice
    ) -> tuple[Floats, Floats]:
        """See `Decoder`; the image side is computed once while the same array is asked again."""
        if masks is not None or labels.shape[1] > _MOST_POINTS:
            return self._whole_decoder()(features, coords, labels, masks, wanted)
        numbers = np.arange(self._masks, dtype=np.int64)[wanted]
        feeds: dict[str, npt.NDArray[Any]] = {**self._image_side(features), "wanted_masks": numbers}
        return joined(
            [
                self.session.run({**feeds, "point_coords": coords[part], "point_labels": labels[part]})
                for part in prompts_at_once(len(labels))
            ]
        )

    def _image_side(self, features: Floats) -> dict[str, npt.NDArray[np.float32]]:
        with self._lock:
            if self._last is None or self._last[0]() is not features:
                if self._image is None:
                    image = self._open_image()
                    check_pair(image, self.session)
                    self._image = image
                full = np.asarray(features, dtype=np.float32)
                self._last = (weakref.ref(features), self._image.run({"image_embeddings": full}))
            return self._last[1]

    def _whole_decoder(self) -> FlexibleDecoder:
        with self._lock:
            if self._whole is None:
                self._whole = FlexibleDecoder(self._open_whole())
            return self._whole
