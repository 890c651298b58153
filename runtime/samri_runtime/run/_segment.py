"""From a slice and its prompts to label maps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import ProviderError
from samri.geometry import SliceView
from samri.io import Scan
from samri.preprocessing import percentile_range
from samri.prompts import Prompt
from samri_runtime._embedding import Embedding
from samri_runtime._predictor import Predictor

Labels = npt.NDArray[Any]  # uint8, or uint16 for more than 255 objects.


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Objects 1 to B on one slice, once, or as three candidates.

    Attributes:
        label_maps: One (H, W) map of 0 to B; three with `multimask`, of the model's first to third candidates.
        scores: (maps, B) float32: the model's own estimate of the IoU.
        embedding: What the prompts were asked of, and whether it came from the cache.
        intensity_range: What was mapped to black and white, where the profile takes that from the volume.
        seconds: Step to duration.
    """

    label_maps: tuple[Labels, ...]
    scores: npt.NDArray[np.float32]
    embedding: Embedding
    intensity_range: tuple[float, float] | None
    seconds: dict[str, float]

    def voxels(self, candidate: int, label: int) -> int:
        """How many voxels an object has."""
        return int(np.count_nonzero(self.label_maps[candidate] == label))


def segment(
    predictor: Predictor, scan: Scan, view: SliceView, prompts: Sequence[Prompt], *, multimask: bool = False
) -> Segmentation:
    """Encode the slice and answer the prompts.

    Args:
        predictor: The model.
        scan: The image. MedSAM's intensities are percentiles of all of it, not of the slice.
        view: The slice.
        prompts: B prompts in pixels of the slice as shown.
        multimask: Three candidates rather than one mask.

    Raises:
        ProviderError: The model computed something that isn't finite.
        SamriError: As `Predictor.encode` and `Predictor.predict`.
    """
    profile = predictor.manifest.profile
    volume_range = percentile_range(scan.voxels, profile) if profile.intensity == "percentile" else None
    started = time.perf_counter()
    embedding = predictor.encode(view.extract(scan.voxels), intensity_range=volume_range)
    encoded = time.perf_counter()
    prediction = predictor.predict(embedding, prompts=prompts, multimask=multimask)
    scores = prediction.scores if multimask else prediction.scores[:, np.newaxis]
    maps = [LabelMap(view.shape, len(prompts)) for _ in range(scores.shape[1])]
    if not (np.isfinite(prediction.low_res_logits).all() and np.isfinite(scores).all()):
        raise ProviderError(
            f"{scan.path}: {predictor.bundle.folder} answered with NaN or infinite numbers on "
            f"{predictor.providers['decoder']}: use --precision fp32 or --provider cpu, or export the bundle again"
        )
    for logits in prediction.each_logits():
        for drawn, candidate in zip(maps, logits if multimask else logits[np.newaxis], strict=True):
            drawn.add(candidate)
    label_maps = tuple(drawn.labels for drawn in maps)
    seconds = {"encode": encoded - started, "decode": time.perf_counter() - encoded}
    return Segmentation(
        label_maps, scores.T, embedding, volume_range, {step: round(lasted, 3) for step, lasted in seconds.items()}
    )


class LabelMap:
    """Objects in one map: b + 1 where mask b is the surest of those above 0, the first one in a tie; 0 elsewhere.

    Masks come one after the other, so that a map of many objects takes no more memory than one of a few.

    Args:
        shape: (H, W).
        objects: How many will come.

    Attributes:
        labels: (H, W) uint8, or uint16 for more than 255 objects.
    """

    def __init__(self, shape: tuple[int, int], objects: int) -> None:
        self.labels: Labels = np.zeros(shape, np.uint8 if objects <= np.iinfo(np.uint8).max else np.uint16)
        self._surest = np.zeros(shape, np.float32)
        self._drawn = 0

    def add(self, logits: npt.NDArray[np.float32]) -> None:
        """Draw the next object: (H, W), above 0 inside."""
        self._drawn += 1
        surer = logits > self._surest
        np.copyto(self._surest, logits, where=surer)
        np.copyto(self.labels, self.labels.dtype.type(self._drawn), where=surer)
