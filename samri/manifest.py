"""`manifest.json`: what a bundle holds, in plain JSON. The schema is written out in docs/bundle.md."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from samri.errors import BundleError, printable
from samri.hashing import file_sha256
from samri.preprocessing import Profile

FORMAT = "samri-bundle"
FORMAT_VERSION = "1.0"
FILE_NAME = "manifest.json"

Role = Literal["encoder", "decoder", "decoder_image", "decoder_prompts", "decoder_sam", "decoder_sam_multi"]
ROLES: tuple[Role, ...] = get_args(Role)
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_PATH = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")

_T = TypeVar("_T")


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle: its path relative to the folder, with forward slashes, its size and its SHA-256."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, folder: Path, path: str) -> BundleFile:
        """Measure and hash the file at `path` in `folder`."""
        return cls(path, (folder / path).stat().st_size, file_sha256(folder / path))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"path": self.path, "bytes": self.bytes, "sha256": self.sha256}

    @classmethod
    def from_json(cls, values: Any, where: str) -> BundleFile:
        """Read and check one entry; `where` names it in errors."""
        entry = _Reader(values, where)
        path = entry.get("path", str)
        _check_path(path, where)
        digest = entry.get("sha256", str)
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise BundleError(f"{where}: sha256 is not 64 hexadecimal digits")
        return cls(path, entry.get("bytes", int), digest)


def sha256_of_files(digests: Sequence[str]) -> str:
    """One SHA-256 for several files: of a single one its own, else that of their hexadecimal digests in a row."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class Graph:
    """One ONNX graph of a bundle.

    Attributes:
        role: What it computes.
        precision: Precision of its weights and arithmetic; inputs and outputs are float32 in every precision.
        file: The `.onnx` file.
        external_data: The files beside it that hold its weights, if any do.
        embedding_id: Encoders only: embeddings with the same id may be mixed, others may not.
    """

    role: Role
    precision: Precision
    file: BundleFile
    external_data: tuple[BundleFile, ...] = ()
    embedding_id: str | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of the graph with its weights: its file's or, with files beside it, that of all their SHA-256s."""
        return sha256_of_files([file.sha256 for file in (self.file, *self.external_data)])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = {"role": self.role, "precision": self.precision, **self.file.to_json()}
        values["external_data"] = [file.to_json() for file in self.external_data]
        if self.embedding_id is not None:
            values["embedding_id"] = self.embedding_id
        return values

    @classmethod
    def from_json(cls, values: Any, where: str) -> Graph:
        """Read and check one entry; `where` names it in errors."""
        entry = _Reader(values, where)
        role, precision = entry.choice("role", ROLES), entry.choice("precision", PRECISIONS)
        external = entry.get("external_data", list, default=[])
        file = BundleFile.from_json(values, where)
        if not file.path.endswith(".onnx"):
            raise BundleError(f"{where}: the path of a graph ends in .onnx, not {file.path!r}")
        return cls(
            role,
            precision,
            file,
            tuple(BundleFile.from_json(file, f"{where}: external_data") for file in external),
            entry.get("embedding_id", str) if role == "encoder" else None,
        )


@dataclass(frozen=True)
class Manifest:
    """Description of a bundle.

    Attributes:
        name: Name of the model, for people.
        backbone: `vit_b`, `vit_l`, `vit_h`, or a description such as `vit-192x6` for any other encoder.
        image_size: S, the side of the encoder's input in pixels.
        embedding_shape: (C, G, G) of one image embedding.
        profile: How a slice becomes the encoder's input, and logits become a mask.
        opset: ONNX operator set of the graphs.
        graphs: The ONNX files.
        masks: M, what the decoder answers each prompt with: the single mask, and candidates.
        checkpoint: File names and SHA-256 of the weights it was made from.
        tools: Versions of the programs that made it.
        verification: What was compared with the original model, on what, with which result.
    """

    name: str
    backbone: str
    image_size: int
    embedding_shape: tuple[int, int, int]
    profile: Profile
    opset: int
    graphs: tuple[Graph, ...]
    masks: int = 4
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, Any] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)

    def find(self, role: Role, precision: Precision) -> Graph | None:
        """The graph of that role and precision, if the bundle holds it."""
        return next((graph for graph in self.graphs if (graph.role, graph.precision) == (role, precision)), None)

    def precisions(self, role: Role) -> tuple[Precision, ...]:
        """The precisions in which the bundle holds that role."""
        return tuple(graph.precision for graph in self.graphs if graph.role == role)

    def precision_with(self, role: Role, precision: Precision) -> Precision:
        """The precision of the graph of that role which goes with an encoder of `precision`.

        The same where the bundle holds it, else fp32: int8 bundles have an int8 encoder and a float32 decoder.
        """
        available = self.precisions(role)
        choices = [precision] if role == "encoder" else [precision, "fp32", *available]
        return next((choice for choice in choices if choice in available), precision)

    def embedding_id(self, precision: Precision = "fp32") -> str | None:
        """The id of embeddings that the encoder of that precision makes."""
        graph = self.find("encoder", precision)
        return graph.embedding_id if graph else None

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "backbone": self.backbone,
            "image_size": self.image_size,
            "embedding_shape": list(self.embedding_shape),
            "profile": self.profile.to_json(),
            "opset": self.opset,
            "masks": self.masks,
            "graphs": [graph.to_json() for graph in self.graphs],
            "checkpoint": dict(self.checkpoint),
            "tools": dict(self.tools),
            "verification": dict(self.verification),
        }
        return json.dumps(values, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Manifest:
        """Read and check the text of a `manifest.json`; unknown keys are left for newer minor versions.

        Raises:
            BundleError: Not JSON, not a bundle's manifest, a newer major version, or a value that can't be; `source`
                names the file.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{source} is not valid JSON: copy the bundle again") from error
        entry = _Reader(values, source)
        if (stated := entry.get("format", str)) != FORMAT:
            raise BundleError(f"{source} doesn't describe a SAMRI bundle: its format is {printable(stated, 60)}")
        _check_version(entry.get("format_version", str), source)
        image_size = entry.positive("image_size")
        shape = entry.get("embedding_shape", list)
        if len(shape) != 3 or not all(_is_a(size, int) and size > 0 for size in shape) or shape[1] != shape[2]:
            raise BundleError(f"{source}: embedding_shape is [channels, grid, grid], not {printable(shape, 60)}")
        listed = enumerate(entry.get("graphs", list))
        graphs = [Graph.from_json(item, f"{source}: graphs[{i}]") for i, item in listed if not _is_newer(item)]
        keys = [(graph.role, graph.precision) for graph in graphs]
        if len(set(keys)) != len(keys):
            raise BundleError(f"{source}: two graphs have the same role and precision")
        return cls(
            name=entry.get("name", str),
            backbone=entry.get("backbone", str),
            image_size=image_size,
            embedding_shape=(shape[0], shape[1], shape[2]),
            profile=Profile.from_json(entry.get("profile", dict), source),
            opset=entry.positive("opset"),
            graphs=tuple(graphs),
            masks=entry.positive("masks", default=4),
            checkpoint=entry.get("checkpoint", dict, default={}),
            tools=entry.get("tools", dict, default={}),
            verification=entry.get("verification", dict, default={}),
        )


def embedding_id(weights_sha256: str, profile: Profile, image_size: int, precision: Precision) -> str:
    """What decides whether two embeddings may be mixed: 32 hexadecimal digits.

    The first half of the SHA-256 of the encoder weights' hash, the profile, the image size and the precision, in
    canonical JSON. Fine-tuning the decoder doesn't change it.
    """
    values = {
        "encoder_weights": weights_sha256,
        "profile": profile.to_json(),
        "image_size": image_size,
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


class _Reader:
    """Typed access to a JSON object; says in one line which key of which file is wrong."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise BundleError(f"{where}: expected a JSON object, not {type(values).__name__}")
        self._values = values
        self._where = where

    def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        value = self._values.get(key, default)
        if value is None:
            raise BundleError(f"{self._where}: {key!r} is missing")
        if not _is_a(value, kind):
            raise BundleError(f"{self._where}: {key!r} must be of type {kind.__name__}, not {type(value).__name__}")
        result: _T = value
        return result

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.get(key, int, default)
        if value <= 0:
            raise BundleError(f"{self._where}: {key!r} must be above 0, not {printable(value, 60)}")
        return value

    def choice(self, key: str, choices: tuple[_T, ...]) -> _T:
        value = self._values.get(key)
        if not isinstance(value, str) or value not in choices:
            known = ", ".join(str(choice) for choice in choices)
            raise BundleError(f"{self._where}: {key!r} is {printable(value, 60)}; this samri knows {known}")
        return next(choice for choice in choices if choice == value)


def _is_a(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _check_version(version: str, source: str) -> None:
    major = version.partition(".")[0]
    if not major.isdecimal():
        raise BundleError(f"{source}: format_version {printable(version, 60)} is not of the form 1.0")
    if major != FORMAT_VERSION.partition(".")[0]:
        raise BundleError(
            f"{source} has format version {printable(version, 60)}, and this samri reads {FORMAT_VERSION}: "
            "upgrade with pip install -U samri, or export the checkpoint again"
        )


def _is_newer(graph: Any) -> bool:
    """Whether a newer minor version added its role or precision: it is left out, and the rest is read."""
    if not isinstance(graph, dict):
        return False
    role, precision = graph.get("role"), graph.get("precision")
    return isinstance(role, str) and isinstance(precision, str) and (role not in ROLES or precision not in PRECISIONS)


def _check_path(path: str, where: str) -> None:
    """A path that means the same file on every system, and one inside the folder."""
    if not _PATH.fullmatch(path) or len(path) > 200 or {".", ".."} & set(path.split("/")):
        raise BundleError(
            f"{where}: path {path[:200]!r} must be a plain relative path inside the bundle, "
            "of letters, digits, dots, dashes, underscores and forward slashes"
        )
