"""The precisions that were asked for, in the bundle: written, judged, and left out where they don't hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samri.errors import VerificationError
from samri.manifest import BundleFile, Graph, Precision, Role
from samri.preprocessing import Profile
from samri_export._variant_report import VariantResult
from samri_export._variants import ROLES, Judge, write_variant
from samri_export._verification_cases import Picture


@dataclass(frozen=True)
class Variants:
    """The lower precisions to add to a bundle's float32 graphs.

    Attributes:
        precisions: Without `fp32`.
        embedding_ids: Of the encoder in each precision.
        pictures: Real slices to judge them on; None when nothing is to be compared.
        force: Keep those that fall below their bar too.
    """

    precisions: tuple[Precision, ...]
    embedding_ids: Mapping[Precision, str]
    pictures: Sequence[Picture] | None
    force: bool

    def add(
        self,
        folder: Path,
        float32: Sequence[Graph],
        profile: Profile,
        image_size: int,
        progress: Callable[[str], None],
    ) -> tuple[list[Graph], tuple[VariantResult, ...]]:
        """Write and judge them; the graphs that are kept, and what was found.

        Args:
            folder: Of the bundle that is being made.
            float32: Its graphs so far.
            profile: Of the bundle.
            image_size: S.
            progress: Gets a line for each precision.
        """
        if not self.precisions:
            return [], ()
        files = {graph.role: folder / graph.file.path for graph in float32}
        judge = None
        if self.pictures is not None:
            progress(f"running fp32 on {len(self.pictures)} real slices")
            judge = Judge(files, profile, image_size, self.pictures)
        kept: list[Graph] = []
        results = []
        for precision in self.precisions:
            progress(f"writing and judging {precision}")
            graphs, result = self._one(precision, folder, files, judge)
            results.append(result)
            if result.kept:
                kept += graphs
        return kept, tuple(results)

    def _one(
        self, precision: Precision, folder: Path, float32: Mapping[Role, Path], judge: Judge | None
    ) -> tuple[list[Graph], VariantResult]:
        def path_of(role: Role) -> Path:
            return folder / file_name(role, precision)

        written, too_large = write_variant(precision, float32, path_of, judge)
        graphs = []
        for role, (path, external) in written.items():
            identity = self.embedding_ids[precision] if role == "encoder" else None
            graphs.append(graph_of(folder, role, precision, path, external, identity))
        measured = None
        if judge is not None:
            measured = judge.measure({role: path for role, (path, _) in written.items()}, too_large)
        result = VariantResult(precision, ROLES[precision], False, measured)
        if self.force or not result.failures():
            return graphs, VariantResult(precision, ROLES[precision], True, measured)
        for path, external in written.values():
            for file in (path, *external):
                file.unlink()
        return [], result


def without_unneeded(
    folder: Path, float32: Sequence[Graph], asked: Sequence[Precision], results: Sequence[VariantResult]
) -> list[Graph]:
    """The float32 graphs to keep: all if fp32 was asked for, else those that a lower precision runs without a own.

    Raises:
        VerificationError: No precision that was asked for is left.
    """
    if "fp32" in asked:
        return list(float32)
    kept = [result for result in results if result.kept]
    if not kept:
        reasons = "; ".join(f"{result.precision}: {result.failures()[0]}" for result in results)
        raise VerificationError(f"no precision that was asked for reaches its bar ({reasons}); nothing was written")
    needed = [graph for graph in float32 if not all(graph.role in result.roles for result in kept)]
    for graph in float32:
        if graph not in needed:
            for file in (graph.file, *graph.external_data):
                (folder / file.path).unlink()
    return needed


def graph_of(
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
