"""The file of a session: which scan, which model, and the edits. docs/session.md describes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samri.errors import InputError, OutputError, SamriError, printable
from samri.hashing import file_sha256
from samri.io import Scan, read_scan
from samri.opening import read_regular
from samri.staging import staged_file
from samri_runtime.session._edits import Edit, SlicePosition, edit_from_json

FORMAT = "samri-session"
SCHEMA_VERSION = "1.0"

_LIMIT = 64_000_000  # Bytes.


@dataclass(frozen=True)
class Document:
    """What a session's file holds.

    Attributes:
        scan: `name`, `sha256`, `kind`, `shape`, `frame` and `frames` of the scan.
        model: `name`, `sha256`, `profile`, `precision`, `graphs` and more of the bundle.
        provider: `requested`, and `ran`: graph role to provider.
        versions: Of SAMRI and what it ran on.
        direction: A position in the direction in which slices are counted unless an edit says otherwise.
        edits: All of them, those that were undone at the end.
        applied: How many are in effect.
        created: When the session was begun, ISO 8601.
        sha256: Of the file that it was read from.
    """

    scan: Mapping[str, Any]
    model: Mapping[str, Any]
    provider: Mapping[str, Any]
    versions: Mapping[str, Any]
    direction: SlicePosition
    edits: tuple[Edit, ...] = ()
    applied: int = 0
    created: str = ""
    sha256: str | None = None

    def text(self) -> str:
        """The file's content."""
        values = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "created": self.created,
            "versions": dict(self.versions),
            "scan": dict(self.scan),
            "model": dict(self.model),
            "provider": dict(self.provider),
            "direction": self.direction.to_json(),
            "applied": self.applied,
        }
        lines = [f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in values.items()]
        edits = ",\n".join(f"    {json.dumps(edit.to_json(), allow_nan=False)}" for edit in self.edits)
        return "{\n" + ",\n".join([*lines, f'  "edits": [\n{edits}\n  ]']) + "\n}\n"

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: It can't be written.
        """
        with staged_file(path) as staged:
            staged.write_text(self.text(), "utf-8")


def read_document(path: Path) -> Document:
    """Read a session's file.

    Raises:
        InputError: It is missing, damaged, no session, or of a newer major version.
    """
    remedy = "give a file that samri.Session wrote"
    data = read_regular(path, limit=_LIMIT)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no session (not JSON): {remedy}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f"{path} is no session: {remedy}")
    version = values.get("schema_version")
    major = version.partition(".")[0] if isinstance(version, str) else ""
    if not major.isdecimal() or int(major) < 1:
        raise InputError(f"{path} is damaged (its schema_version is {printable(version, 40)}): {remedy}")
    if major != SCHEMA_VERSION.partition(".")[0]:
        raise InputError(
            f"{path} is a session of schema {printable(version, 40)}, and this version of SAMRI reads "
            f"{SCHEMA_VERSION}: update SAMRI"
        )
    scan, model, provider = (_part(path, values, name) for name in ("scan", "model", "provider"))
    edits, applied = values.get("edits"), values.get("applied")
    for part in (scan, model):
        if not isinstance(part.get("sha256"), str) or not isinstance(part.get("name"), str):
            raise InputError(f"{path} is damaged (the scan and the model have a name and a sha256): {remedy}")
    if not isinstance(edits, list) or type(applied) is not int or not 0 <= applied <= len(edits):
        raise InputError(f"{path} is damaged (edits and applied): {remedy}")
    read = []
    for number, each in enumerate(edits, start=1):
        try:
            read.append(edit_from_json(each))
        except SamriError as error:
            raise InputError(f"{path}, edit {number}: {error}") from error
    try:
        direction = SlicePosition(**_part(path, values, "direction"))
    except (TypeError, SamriError) as error:
        raise InputError(f"{path} is damaged (direction): {remedy}") from error
    return Document(
        scan,
        model,
        provider,
        _part(path, values, "versions"),
        direction,
        tuple(read),
        applied,
        str(values.get("created", "")),
        hashlib.sha256(data).hexdigest(),
    )


def check_new(path: Path) -> Path:
    """The path; refuse one whose file would be replaced by the first edit of a new session.

    Raises:
        OutputError: There is a file.
    """
    if path.exists():
        raise OutputError(f"{path} is there already: continue it with Session.load, or name another file")
    return path


def check_replaceable(path: Path) -> None:
    """Refuse to replace a file that is no session.

    Raises:
        OutputError: There is another file.
    """
    if not path.exists():
        return
    try:
        read_document(path)
    except InputError as error:
        raise OutputError(f"{path} is there already and is no session: name another file") from error


def frame_of(document: Document) -> int | None:
    """The frame of a 4-D scan that a session is of; None for other scans."""
    frame = document.scan.get("frame")
    return frame if type(frame) is int else None


def read_session_scan(path: Path, scan: Path) -> Scan:
    """The scan that the session in `path` is of, from the file `scan`: the same frame of it.

    Raises:
        InputError: Either can't be read, or the session is of another scan.
    """
    document = read_document(path)
    try:
        read = read_scan(scan, frame_of(document))
    except InputError:
        if scan.is_file():  # Another scan may have no such frame, which isn't what is wrong.
            _check_sha256(document, file_sha256(scan), scan, path)
        raise
    check_scan(document, read, path)
    return read


def check_scan(document: Document, scan: Scan, path: Path) -> None:
    """Refuse a session of another scan.

    Raises:
        InputError: It is of another scan, or of another frame of it.
    """
    _check_sha256(document, scan.sha256, scan.path, path)
    if (frame_of(document) or 0) != scan.frame:
        raise InputError(f"{path} is a session of frame {frame_of(document) or 0}, not of frame {scan.frame}")


def _check_sha256(document: Document, sha256: str, scan: Path, path: Path) -> None:
    if document.scan["sha256"] != sha256:
        raise InputError(
            f"{path} is a session of another scan: of {printable(document.scan['name'], 80)} with SHA-256 "
            f"{printable(document.scan['sha256'][:9])}..., and {scan} has {sha256[:9]}...: give that scan"
        )


def differences(saved: Document, now: Document) -> list[str]:
    """Notes on what may make the masks differ from those of when the session was saved."""
    notes = []
    if saved.model["sha256"] != now.model["sha256"]:
        names = printable(saved.model["name"], 80), now.model["name"]
        notes.append("the session was made with another model ({}, not {}): its masks may differ".format(*names))
    elif saved.model.get("graphs") != now.model["graphs"]:
        notes.append("the session was made with other graphs of the model (precision or mode): its masks may differ")
    ran, runs = saved.provider.get("ran"), now.provider["ran"]
    before = ran.get("decoder") if isinstance(ran, dict) else None
    if before != runs.get("decoder"):
        notes.append(
            f"the session was made on provider {printable(before, 40)}, not {runs.get('decoder')}: "
            "its masks may differ in some voxels"
        )
    before, runs = saved.versions.get("onnxruntime"), now.versions["onnxruntime"]
    if before != runs:
        notes.append(f"the session was made with ONNX Runtime {printable(before, 40)}, not {runs}")
    return notes


def _part(path: Path, values: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = values.get(name)
    if not isinstance(part, dict):
        raise InputError(f"{path} is damaged ({name} is missing): give a file that samri.Session wrote")
    return part
