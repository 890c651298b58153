"""What an export may replace: a bundle, and the rounded checkpoint that the bundle names."""

from __future__ import annotations

from pathlib import Path

from samri.errors import BundleError, OutputError
from samri.hashing import file_sha256
from samri.manifest import FILE_NAME, Manifest
from samri.opening import JSON_LIMIT, read_regular
from samri.ownership import refuse_foreign_content


def check_bundle(folder: Path) -> None:
    """Refuse to replace a folder that is no bundle, or holds more than one.

    Raises:
        OutputError: It says what it holds.
    """
    manifest = _manifest(folder)
    if manifest is None:
        raise OutputError(f"{folder} is not a bundle, so --overwrite doesn't replace it: name another output")
    files = [file.path for graph in manifest.graphs for file in (graph.file, *graph.external_data)]
    refuse_foreign_content(folder, [FILE_NAME, *files], "samri-export")


def check_rounded_checkpoint(path: Path, bundle: Path) -> None:
    """Refuse to replace a checkpoint that isn't the one made with the bundle that is replaced.

    Raises:
        OutputError: It is another one.
    """
    manifest = _manifest(bundle)
    provenance = {} if manifest is None else manifest.checkpoint
    if provenance.get("rounded_name") != path.name or provenance.get("rounded_sha256") != file_sha256(path):
        raise OutputError(
            f"{path} is not the rounded checkpoint of {bundle}, so --overwrite doesn't replace it: name another file"
        )


def _manifest(folder: Path) -> Manifest | None:
    try:
        text = read_regular(folder / FILE_NAME, error=BundleError, limit=JSON_LIMIT).decode()
        return Manifest.from_json(text, str(folder / FILE_NAME))
    except (BundleError, UnicodeDecodeError):
        return None
