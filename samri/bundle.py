"""A bundle: the folder that holds all a host needs, opened with care.

Nothing in it is believed: a graph's hash and the size and path of each file are checked before ONNX Runtime sees them,
and the hash of weights that lie beside it before it answers. Hashes show damage, not authorship; for that, compare the
manifest's own hash with one from a source you trust (`expect_sha256`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from samri.errors import BundleError
from samri.hashing import file_sha256
from samri.manifest import FILE_NAME, BundleFile, Graph, Manifest, Precision, Role, sha256_of_files
from samri.onnx_wire import external_locations
from samri.opening import open_regular, read_regular

_MANIFEST_LIMIT = 16_000_000
_CHECKPOINT_SUFFIXES = {".pth", ".pt", ".ckpt", ".safetensors", ".bin"}


class GraphFile:
    """An ONNX graph on disk, and the SHA-256 of all its bytes, weights beside it included.

    Attributes:
        path: The ONNX file.
    """

    def __init__(self, path: str | Path, sha256: Callable[[], str] | None = None) -> None:
        self.path = Path(path)
        self._sha256 = sha256

    def sha256(self) -> str:
        """The SHA-256 that the files really have: a bundle's graph has it from its checks, another is hashed now.

        Raises:
            BundleError: A file of a bundle's graph was changed, or the graph can't be parsed.
            OSError: A file can't be read.
        """
        if self._sha256 is None:
            beside = [self.path.parent / location for location in sorted(external_locations(self.path))]
            digest = sha256_of_files([file_sha256(file) for file in (self.path, *beside)])
            self._sha256 = lambda: digest
        return self._sha256()


class Bundle:
    """An opened bundle.

    Attributes:
        folder: Where it lies.
        manifest: What it says of itself.
        sha256: SHA-256 of `manifest.json`, which holds the hashes of all other files.
    """

    def __init__(self, folder: Path, manifest: Manifest, sha256: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.sha256 = sha256
        self._checked: set[Graph] = set()

    @classmethod
    def open(cls, path: str | Path, *, expect_sha256: str | None = None) -> Bundle:
        """Open the bundle in folder `path`, or with its manifest at `path`; graphs are checked when asked for.

        Args:
            path: The folder.
            expect_sha256: The SHA-256 that `manifest.json` must have; it vouches for every graph too.

        Raises:
            BundleError: No bundle there, or its manifest is damaged, unsafe, too new or not the expected one.

        Example:
            >>> from samri.bundle import Bundle
            >>> from samri_runtime import models
            >>> bundle = Bundle.open(models.find("samri-tiny"))
            >>> bundle.manifest.name, bundle.manifest.image_size, bundle.manifest.profile.name
            ('samri-tiny', 256, 'samri')
        """
        file = _manifest_file(Path(path))
        text = read_regular(file, error=BundleError, limit=_MANIFEST_LIMIT)
        sha256 = hashlib.sha256(text).hexdigest()
        if expect_sha256 is not None and sha256 != expect_sha256.strip().lower():
            raise BundleError(f"{file} has SHA-256 {sha256}, not the expected {expect_sha256}: this is another bundle")
        try:
            manifest = Manifest.from_json(text.decode(), str(file))
        except UnicodeDecodeError as error:
            raise BundleError(f"{file} is not text: copy the bundle again") from error
        return cls(file.parent, manifest, sha256)

    def graph(self, role: Role, precision: Precision = "fp32") -> Graph:
        """The graph of that role and precision.

        Raises:
            BundleError: The bundle doesn't hold it.
        """
        graph = self.manifest.find(role, precision)
        if graph is None:
            available = (
                ", ".join(f"{graph.role} {graph.precision}" for graph in self.manifest.graphs) or "no graph at all"
            )
            raise BundleError(
                f"{self.folder} holds no {precision} {role}, only {available}: export it with samri-export"
            )
        return graph

    def graph_path(self, role: Role, precision: Precision = "fp32") -> Path:
        """Path of a graph whose files were found whole, unchanged and inside the folder.

        Raises:
            BundleError: The graph or a file of it is missing, changed, or would open a file outside the bundle.
        """
        with self.verified_graph(role, precision) as file:
            return file.path

    @contextlib.contextmanager
    def verified_graph(self, role: Role, precision: Precision = "fp32") -> Iterator[GraphFile]:
        """A graph to open within the block; use the opened graph only once the block has ended.

        By then all its files were found whole, unchanged and inside the folder. The graph itself is before the block
        begins. The weights beside it, which are plain numbers, are hashed while the block runs: where there is another
        core, and ONNX Runtime lets Python's threads go on while it opens a graph, that takes no time of its own. Within
        the block, `GraphFile.sha256` waits for them.

        Raises:
            BundleError: As `graph_path`; if it is for the weights, at the end of the block, in place of an exception of
                the block's own.
        """
        graph = self.graph(role, precision)
        path = self.folder / graph.file.path
        if graph in self._checked:
            yield GraphFile(path, lambda: graph.sha256)
            return
        for file in (graph.file, *graph.external_data):
            self._check_place_and_size(file)
        self._check_hash(graph.file)
        self._check_external_data(graph)
        if graph.external_data:
            with self._hashed_meanwhile(graph.external_data) as wait:

                def checked_sha256() -> str:
                    wait()
                    return graph.sha256

                yield GraphFile(path, checked_sha256)
        else:
            yield GraphFile(path, lambda: graph.sha256)
        self._checked.add(graph)

    def verify(self) -> None:
        """Check the files of every graph now.

        Raises:
            BundleError: As `graph_path`.
        """
        for graph in self.manifest.graphs:
            self.graph_path(graph.role, graph.precision)

    @contextlib.contextmanager
    def _hashed_meanwhile(self, files: Sequence[BundleFile]) -> Iterator[Callable[[], None]]:
        """Hash files in the background; yields what waits for all of them, as the end of the block does."""
        from concurrent.futures import ThreadPoolExecutor  # Takes longer to import than a small bundle to open.

        background = ThreadPoolExecutor(max_workers=1)
        checks = [background.submit(self._check_hash, file) for file in files]

        def wait() -> None:
            for check in checks:
                check.result()

        try:
            try:
                yield wait
            except Exception:
                wait()
                raise
            wait()
        finally:
            background.shutdown(wait=False, cancel_futures=True)

    def _check_place_and_size(self, file: BundleFile) -> None:
        path = self.folder / file.path
        if not path.exists():
            raise BundleError(f"{path} is missing: copy the whole bundle again")
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise BundleError(f"{path} is a link that leaves the bundle: copy the file itself into it")
        with open_regular(path, error=BundleError) as opened:
            size = os.fstat(opened.fileno()).st_size
        if size != file.bytes:
            raise BundleError(f"{path} has {size} bytes, not {file.bytes}: copy the bundle again")

    def _check_hash(self, file: BundleFile) -> None:
        path = self.folder / file.path
        try:
            actual = file_sha256(path)
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}") from error
        if actual != file.sha256:
            raise BundleError(f"{path} was changed since the export (its SHA-256 differs): copy the bundle again")

    def _check_external_data(self, graph: Graph) -> None:
        """The graph opens exactly the files that the manifest lists, so that none of them goes unchecked."""
        path = self.folder / graph.file.path
        beside = Path(graph.file.path).parent
        listed = {Path(file.path) for file in graph.external_data}
        for location in sorted(external_locations(path)):
            if beside / location not in listed:
                raise BundleError(
                    f"{path} would open {location!r}, which its manifest doesn't list: don't use this bundle"
                )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a bundle folder that is being made (see `samri.staging.staged_folder`)."""
    (folder / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8", newline="\n")


def _manifest_file(path: Path) -> Path:
    try:
        return _found_manifest(path)
    except OSError as error:  # A name that is too long, or a folder that may not be entered.
        raise BundleError(f"no bundle at {path}: {error.strerror}") from error


def _found_manifest(path: Path) -> Path:
    if path.name == FILE_NAME and path.is_file():
        return path
    if path.is_file() and path.suffix.lower() in _CHECKPOINT_SUFFIXES:
        raise BundleError(
            f"{path} is a checkpoint, not a bundle: export it first with "
            f"samri-export --checkpoint {path} --output {path.with_suffix('')}"
        )
    if path.is_file():
        raise BundleError(f"{path} is a file, not a bundle: pass the folder that holds {FILE_NAME}")
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}: there is no such folder (samri-export makes one)")
    if not (path / FILE_NAME).exists():
        raise BundleError(f"{path} is not a bundle: it holds no {FILE_NAME} (samri-export writes one)")
    return path / FILE_NAME
