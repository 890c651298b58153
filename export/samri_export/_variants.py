"""Lower precisions of a bundle's graphs, each judged against the float32 ones on real slices before it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from samri.manifest import Precision, Role
from samri.preprocessing import Profile
from samri.prompts import ABSENT
from samri_export._compact import stored_in_full
from samri_export._exported import Exported
from samri_export._fp16 import Feeds, halved, overflowing
from samri_export._int8 import quantized
from samri_export._onnx_writing import hold_constants_as_weights, save_graph
from samri_export._reference import Answer, Floats
from samri_export._report import relative_difference, telling_dice
from samri_export._variant_report import Measured
from samri_export._verification_cases import Picture, PromptCase, prompt_cases

ROLES: dict[Precision, tuple[Role, ...]] = {"fp16": ("encoder", "decoder"), "int8": ("encoder",)}
"""The graphs that a precision has; the others are float32's. See docs/precision.md for why."""


@dataclass(frozen=True)
class Encoded:
    """A real slice, and what the float32 encoder made of it."""

    picture: Picture
    image: Floats
    embedding: Floats


class Judge:
    """The float32 graphs of a bundle and real slices, against which lower precisions are held.

    Raises:
        MissingDependencyError: ONNX Runtime isn't installed.
    """

    def __init__(
        self, float32: Mapping[Role, Path], profile: Profile, image_size: int, pictures: Sequence[Picture]
    ) -> None:
        self._files = float32
        self._profile = profile
        self._size = image_size
        self._float32 = Exported(float32, profile, image_size)
        self._encoded = [Encoded(picture, *self._float32.encode(picture)) for picture in pictures]

    def overflowing(self, role: Role) -> dict[str, float]:
        """The tensors of a graph that come too near to half precision's largest number on these slices."""
        return overflowing(self._files[role], self._runs(role))

    def measure(self, variant: Mapping[Role, Path], too_large: Mapping[str, float]) -> Measured:
        """Compare masks, logits and scores; graphs that the variant lacks are float32's.

        Args:
            variant: Its graphs.
            too_large: What `overflowing` found, for the report.
        """
        other = Exported({**self._files, **variant}, self._profile, self._size)
        embeddings, logits, largest, scores, dice = [], [], [], [], []
        masks = 0
        for encoded in self._encoded:
            picture = encoded.picture
            _, embedding = other.encode(picture)
            embeddings.append(_deviation(encoded.embedding, embedding))
            for case, refined, expected in self._answers(encoded):
                answer = other.answer(embedding, case, picture.shape, refined)
                logits.append(_deviation(expected.low_res, answer.low_res))
                largest.append(relative_difference(expected.low_res, answer.low_res))
                scores.append(np.abs(expected.scores - answer.scores).ravel())
                dice.append(telling_dice(expected, answer))
                masks += expected.scores.size
        told, missed = np.concatenate(dice), np.concatenate(scores)
        return Measured(
            pictures=tuple(encoded.picture.name for encoded in self._encoded),
            masks=masks,
            masks_without_dice=masks - told.size,
            embedding=float(np.mean(embeddings)),
            logits=float(np.mean(logits)),
            largest_logit=float(np.max(largest)),
            scores=float(missed.mean()),
            largest_score=float(missed.max()),
            mean_dice=float(told.mean()) if told.size else None,
            low_dice=float(np.quantile(told, 0.05)) if told.size else None,
            smallest_dice=float(told.min()) if told.size else None,
            overflowing=dict(too_large),
        )

    def _answers(self, encoded: Encoded) -> Iterator[tuple[PromptCase, Floats | None, Answer]]:
        """Each case, the mask that it refines if it does, and float32's answer."""
        first: Answer | None = None
        for case in prompt_cases(encoded.picture.shape):
            refined = first.low_res[:1, :1] if case.refines and first is not None else None
            answer = self._float32.answer(encoded.embedding, case, encoded.picture.shape, refined)
            first = first or answer
            yield case, refined, answer

    def _runs(self, role: Role) -> Iterator[Feeds]:
        for encoded in self._encoded:
            if role == "encoder":
                yield {"image": encoded.image}
                continue
            for case, refined, _ in self._answers(encoded):
                # Absent tokens are masked by minus infinity, which is no overflow.
                feeds = self._float32.decoder_feeds(encoded.embedding, case, encoded.picture.shape, refined)
                if feeds["point_labels"].min() > ABSENT:
                    yield feeds


def write_variant(
    precision: Precision, float32: Mapping[Role, Path], path_of: Callable[[Role], Path], judge: Judge | None
) -> tuple[dict[Role, tuple[Path, tuple[Path, ...]]], dict[str, float]]:
    """Write the graphs of a lower precision.

    Args:
        precision: `fp16` or `int8`.
        float32: The graphs to start from.
        path_of: Where a graph goes.
        judge: Looks for overflow; None when nothing is to be run.

    Returns:
        Each graph's file and the external files beside it, and the tensors that half precision couldn't hold.
    """
    written: dict[Role, tuple[Path, tuple[Path, ...]]] = {}
    found: dict[str, float] = {}
    for role in ROLES[precision]:
        model = stored_in_full(onnx.load(str(float32[role])))
        if precision == "int8":
            # Weights beside the graph made them so already: int8 is to be the same however fp32 is stored.
            hold_constants_as_weights(model.graph)
            model = quantized(model)
        else:
            too_large = {} if judge is None else judge.overflowing(role)
            found |= too_large
            model = halved(model, too_large)
        path = path_of(role)
        written[role] = (path, save_graph(model, path))
    return written, found


def _deviation(reference: Floats, other: Floats) -> float:
    """Root mean square of the difference, as a fraction of the reference's standard deviation."""
    return float(np.sqrt(np.square(reference - other, dtype=np.float64).mean()) / reference.std(dtype=np.float64))
