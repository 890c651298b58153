"""Lower precisions of a bundle: written, compared with fp32 on real slices, and left out where they fall short."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from samri.errors import VerificationError
from samri.manifest import BundleFile, Graph, Precision, Role
from samri.preprocessing import Profile
from samri.prompts import ABSENT
from samri_export._compact import stored_in_full
from samri_export._exported import Exported
from samri_export._fp16 import Feeds, overflowing, to_fp16
from samri_export._int8 import to_int8
from samri_export._onnx_writing import hold_constants_as_weights, save_graph
from samri_export._reference import DecoderOutput, Floats
from samri_export._report import PrecisionMeasurement, PrecisionResult, informative_dice, relative_difference
from samri_export._verification_cases import PromptCase, VerificationSlice, prompt_cases

ROLES: dict[Precision, tuple[Role, ...]] = {"fp16": ("encoder", "decoder"), "int8": ("encoder",)}
"""The graphs that a precision has; the others are float32's. See docs/precision.md for why."""


@dataclass(frozen=True)
class Encoded:
    """A real slice, and what the float32 encoder made of it."""

    picture: VerificationSlice
    image: Floats
    embedding: Floats


class PrecisionGate:
    """The float32 graphs of a bundle and real slices, against which lower precisions are held.

    Raises:
        MissingDependencyError: ONNX Runtime isn't installed.
    """

    def __init__(
        self, float32: Mapping[Role, Path], profile: Profile, image_size: int, pictures: Sequence[VerificationSlice]
    ) -> None:
        self._files = float32
        self._profile = profile
        self._size = image_size
        self._float32 = Exported(float32, profile, image_size)
        self._encoded = [Encoded(picture, *self._float32.encode(picture)) for picture in pictures]

    def overflowing(self, role: Role) -> dict[str, float]:
        """The tensors of a graph that come too near to half precision's largest number on these slices."""
        return overflowing(self._files[role], self._runs(role))

    def measure(self, lower: Mapping[Role, Path], too_large: Mapping[str, float]) -> PrecisionMeasurement:
        """Compare masks, logits and scores; graphs that the lower precision lacks are fp32's.

        Args:
            lower: Its graphs.
            too_large: What `overflowing` found, for the report.
        """
        other = Exported({**self._files, **lower}, self._profile, self._size)
        embeddings, logits, largest, scores, dice = [], [], [], [], []
        masks = 0
        for encoded in self._encoded:
            picture = encoded.picture
            _, embedding = other.encode(picture)
            embeddings.append(_deviation(encoded.embedding, embedding))
            for case, refined, expected in self._answers(encoded):
                answer = other.decode(embedding, case, picture.shape, refined)
                logits.append(_deviation(expected.low_res, answer.low_res))
                largest.append(relative_difference(expected.low_res, answer.low_res))
                scores.append(np.abs(expected.scores - answer.scores).ravel())
                dice.append(informative_dice(expected, answer))
                masks += expected.scores.size
        informative, score_errors = np.concatenate(dice), np.concatenate(scores)
        return PrecisionMeasurement(
            pictures=tuple(encoded.picture.name for encoded in self._encoded),
            masks=masks,
            masks_without_dice=masks - informative.size,
            embedding=float(np.mean(embeddings)),
            logits=float(np.mean(logits)),
            largest_logit=float(np.max(largest)),
            scores=float(score_errors.mean()),
            largest_score=float(score_errors.max()),
            mean_dice=float(informative.mean()) if informative.size else None,
            low_dice=float(np.quantile(informative, 0.05)) if informative.size else None,
            smallest_dice=float(informative.min()) if informative.size else None,
            overflowing=dict(too_large),
        )

    def _answers(self, encoded: Encoded) -> Iterator[tuple[PromptCase, Floats | None, DecoderOutput]]:
        """Each case, the mask that it refines if it does, and float32's answer."""
        first: DecoderOutput | None = None
        for case in prompt_cases(encoded.picture.shape):
            refined = first.low_res[:1, :1] if case.refines and first is not None else None
            answer = self._float32.decode(encoded.embedding, case, encoded.picture.shape, refined)
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


def write_precision(
    precision: Precision, float32: Mapping[Role, Path], path_of: Callable[[Role], Path], gate: PrecisionGate | None
) -> tuple[dict[Role, tuple[Path, tuple[Path, ...]]], dict[str, float]]:
    """Write the graphs of a lower precision.

    Args:
        precision: `fp16` or `int8`.
        float32: The graphs to start from.
        path_of: Where a graph goes.
        gate: Looks for overflow; None when nothing is to be run.

    Returns:
        Each graph's file and the external files beside it, and the tensors that half precision couldn't hold.
    """
    written: dict[Role, tuple[Path, tuple[Path, ...]]] = {}
    overflowing: dict[str, float] = {}
    for role in ROLES[precision]:
        model = stored_in_full(onnx.load(str(float32[role])))
        if precision == "int8":
            # Weights beside the graph made them so already: int8 is to be the same however fp32 is stored.
            hold_constants_as_weights(model.graph)
            model = to_int8(model)
        else:
            too_large = {} if gate is None else gate.overflowing(role)
            overflowing |= too_large
            model = to_fp16(model, too_large)
        path = path_of(role)
        written[role] = (path, save_graph(model, path))
    return written, overflowing


@dataclass(frozen=True)
class LowerPrecisions:
    """The lower precisions to add to a bundle's float32 graphs.

    Attributes:
        precisions: Without `fp32`.
        embedding_ids: Embedding id of the encoder in each precision.
        pictures: Real slices to gate them on; None when nothing is to be compared.
        force: Keep those that fall below their threshold too.
    """

    precisions: tuple[Precision, ...]
    embedding_ids: Mapping[Precision, str]
    pictures: Sequence[VerificationSlice] | None
    force: bool

    def add(
        self,
        folder: Path,
        float32: Sequence[Graph],
        profile: Profile,
        image_size: int,
        progress: Callable[[str], None],
    ) -> tuple[list[Graph], tuple[PrecisionResult, ...]]:
        """Write and gate them; the graphs that are kept, and what was found.

        Args:
            folder: Folder of the bundle that is being made.
            float32: Its graphs so far.
            profile: Profile of the bundle.
            image_size: S.
            progress: Gets a line for each precision.
        """
        if not self.precisions:
            return [], ()
        files = {graph.role: folder / graph.file.path for graph in float32}
        gate = None
        if self.pictures is not None:
            progress(f"running fp32 on {len(self.pictures)} real slices")
            gate = PrecisionGate(files, profile, image_size, self.pictures)
        bundled: list[Graph] = []
        results = []
        for precision in self.precisions:
            progress(f"writing and judging {precision}")
            graphs, result = self._one(precision, folder, files, gate)
            results.append(result)
            if result.included:
                bundled += graphs
        return bundled, tuple(results)

    def _one(
        self, precision: Precision, folder: Path, float32: Mapping[Role, Path], gate: PrecisionGate | None
    ) -> tuple[list[Graph], PrecisionResult]:
        def path_of(role: Role) -> Path:
            return folder / file_name(role, precision)

        written, too_large = write_precision(precision, float32, path_of, gate)
        graphs = []
        for role, (path, external) in written.items():
            identity = self.embedding_ids[precision] if role == "encoder" else None
            graphs.append(measured_graph(folder, role, precision, path, external, identity))
        measured = None
        if gate is not None:
            measured = gate.measure({role: path for role, (path, _) in written.items()}, too_large)
        result = PrecisionResult(precision, ROLES[precision], False, measured)
        if self.force or not result.failures():
            return graphs, PrecisionResult(precision, ROLES[precision], True, measured)
        for path, external in written.values():
            for file in (path, *external):
                file.unlink()
        return [], result


def without_unneeded(
    folder: Path, float32: Sequence[Graph], requested: Sequence[Precision], results: Sequence[PrecisionResult]
) -> list[Graph]:
    """The float32 graphs to keep: all if fp32 was asked for, else those that a lower precision runs without a own.

    Raises:
        VerificationError: No precision that was asked for is left.
    """
    if "fp32" in requested:
        return list(float32)
    included = [result for result in results if result.included]
    if not included:
        reasons = "; ".join(f"{result.precision}: {result.failures()[0]}" for result in results)
        raise VerificationError(f"no requested precision reaches its threshold ({reasons}); nothing was written")
    needed = [graph for graph in float32 if not all(graph.role in result.roles for result in included)]
    for graph in float32:
        if graph not in needed:
            for file in (graph.file, *graph.external_data):
                (folder / file.path).unlink()
    return needed


def measured_graph(
    folder: Path, role: Role, precision: Precision, path: Path, external: Sequence[Path], identity: str | None = None
) -> Graph:
    """Measure and hash a graph's files."""
    return Graph(
        role,
        precision,
        BundleFile.of(folder, path.name),
        tuple(BundleFile.of(folder, file.name) for file in external),
        embedding_id=identity,
    )


def file_name(role: Role, precision: Precision) -> str:
    """`encoder.onnx` for fp32, `encoder.int8.onnx` for another precision."""
    return f"{role}.onnx" if precision == "fp32" else f"{role}.{precision}.onnx"


def _deviation(reference: Floats, other: Floats) -> float:
    """Root mean square of the difference, as a fraction of the reference's standard deviation."""
    return float(np.sqrt(np.square(reference - other, dtype=np.float64).mean()) / reference.std(dtype=np.float64))
