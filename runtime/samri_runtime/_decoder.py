"""The decoder's graph for any number of prompts, of any length: as it is, or in a few static sizes.

Providers that compile a graph for every shape they meet would stop for it at each new number of boxes or points. For
them, prompts are padded with the label *absent*, which changes nothing, to one of a few sizes; each size is a session
of static shapes with its tensors in place on the device, and all of them read the same embedding there.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from samri.prompts import ABSENT, PROMPTS_AT_ONCE
from samri_runtime.providers import BoundSession, Session, put

Floats = npt.NDArray[np.float32]

SINGLE, CANDIDATES, ALL = slice(0, 1), slice(1, None), slice(None)
"""SAM's masks: one for a prompt that leaves no doubt, and candidates for one that does."""

_STATIC_PROMPTS = (1, 4, 16)
_STATIC_POINTS = (4, 16, 64)

# They compile, or record, a graph for each shape.
_COMPILE_EACH_SHAPE = ("tensorrt", "migraphx", "directml", "coreml")


class Decoder(Protocol):
    """What answers packed prompts."""

    @property
    def session(self) -> Session:
        """The session that was opened first."""

    def __call__(
        self, features: Floats, coords: Floats, labels: Floats, masks: Floats | None, wanted: slice
    ) -> tuple[Floats, Floats]:
        """Answer B prompts of N points.

        Args:
            features: (1, C, G, G) float32 or float16.
            coords: (B, N, 2) in the model frame.
            labels: (B, N).
            masks: (B, 1, L, L) logits of earlier answers, or None.
            wanted: Which of the decoder's masks: `SINGLE`, `CANDIDATES` or `ALL`. What isn't wanted may be spared.

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
        self, features: Floats, coords: Floats, labels: Floats, masks: Floats | None, wanted: slice
    ) -> tuple[Floats, Floats]:
        """See `Decoder`."""
        side, full = 4 * features.shape[-1], np.asarray(features, dtype=np.float32)
        answers = []
        for part in prompts_at_once(len(labels)):
            prompts = labels[part]
            feeds = {
                "image_embeddings": full,
                "point_coords": coords[part],
                "point_labels": prompts,
                "mask_input": np.zeros((len(prompts), 1, side, side), np.float32) if masks is None else masks[part],
                "has_mask_input": np.full(len(prompts), masks is not None, np.float32),
            }
            answers.append(self.session.run(feeds))
        low_res, scores = joined(answers)
        return low_res[:, wanted], scores[:, wanted]


class StaticDecoder:
    """A session for each of a few sizes, opened when first needed; several threads take turns.

    Args:
        session: Of free shapes; only its description is used.
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
        self, features: Floats, coords: Floats, labels: Floats, masks: Floats | None, wanted: slice
    ) -> tuple[Floats, Floats]:
        """See `Decoder`; `features` stay on the device while the same array is asked again."""
        with self._lock:
            if self._resident is None or self._resident() is not features:
                put({"image_embeddings": self._embedding}, "image_embeddings", features)
                self._resident = weakref.ref(features)
            answers = []
            for part in _parts(len(labels), _STATIC_PROMPTS[-1]):
                answers.append(self._answer(coords[part], labels[part], None if masks is None else masks[part]))
        low_res, scores = joined(answers)
        return low_res[:, wanted], scores[:, wanted]

    def _answer(self, coords: Floats, labels: Floats, masks: Floats | None) -> dict[str, Floats]:
        count, points = labels.shape
        size = static_size(count, points)
        if size not in self._sizes:
            session = self._open_fixed({"prompts": size[0], "points": size[1]})
            self._sizes[size] = session.bound({"image_embeddings": self._embedding})
        room = ((0, size[0] - count), (0, size[1] - points))
        feeds = {
            "point_coords": np.pad(coords, (*room, (0, 0))),
            "point_labels": np.pad(labels, room, constant_values=ABSENT),
            "has_mask_input": np.full(size[0], masks is not None, np.float32),
        }
        if masks is not None:
            feeds["mask_input"] = np.pad(masks, (room[0], (0, 0), (0, 0), (0, 0)))
        return {name: values[:count] for name, values in self._sizes[size].run(feeds).items()}


def static_size(prompts: int, points: int) -> tuple[int, int]:
    """The size to which that many prompts of that many points are padded."""
    most = _STATIC_POINTS[-1]
    return (
        next(size for size in _STATIC_PROMPTS if size >= prompts),
        next((size for size in _STATIC_POINTS if size >= points), -(-points // most) * most),
    )


def prompts_at_once(count: int) -> list[slice]:
    """Which prompts to decode in one run, of so many that each holds several image-sized arrays."""
    return _parts(count, PROMPTS_AT_ONCE)


def _parts(count: int, most: int) -> list[slice]:
    return [slice(start, start + most) for start in range(0, count, most)]


def joined(answers: list[dict[str, Floats]]) -> tuple[Floats, Floats]:
    """The logits and scores of several runs, one after the other."""
    if len(answers) == 1:
        return answers[0]["low_res_masks"], answers[0]["iou_predictions"]
    low_res, scores = (
        np.concatenate([answer[name] for answer in answers]) for name in ("low_res_masks", "iou_predictions")
    )
    return low_res, scores
