"""Metadata of a store: encoder, preprocessing and number format of its embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from samri import __version__
from samri.errors import InputError
from samri.manifest import PRECISIONS, Manifest, Precision, embedding_id
from samri.preprocessing import PROFILE_NAMES, ProfileName, profile

if TYPE_CHECKING:
    from samri.model import Checkpoint

StoredDtype = Literal["fp16", "fp32"]
STORED_DTYPES: tuple[StoredDtype, ...] = get_args(StoredDtype)

_NUMPY: dict[StoredDtype, npt.DTypeLike] = {"fp16": "<f2", "fp32": "<f4"}

# Pixels along a side of an encoder's input.
_LARGEST_IMAGE = 1 << 16

_T = TypeVar("_T")


@dataclass(frozen=True)
class EncoderFacts:
    """Which encoder makes embeddings, and from what.

    Attributes:
        embedding_id: Decides what may be mixed: encoder weights, profile, image size and precision (samri.manifest).
        profile: Name of the preprocessing.
        image_size: S, the side of the encoder's input in pixels.
        embedding_shape: (C, G, G).
        backbone: `vit_b` and so on.
        precision: Precision of the encoder's arithmetic.
        checkpoint: Name of the file that the weights came from.
        checkpoint_sha256: SHA-256 of that file.
    """

    embedding_id: str
    profile: ProfileName
    image_size: int
    embedding_shape: tuple[int, int, int]
    backbone: str
    precision: Precision
    checkpoint: str
    checkpoint_sha256: str

    @classmethod
    def of_checkpoint(
        cls, checkpoint: Checkpoint, weights_sha256: str, profile_name: ProfileName, precision: Precision = "fp32"
    ) -> EncoderFacts:
        """The facts of a checkpoint's encoder; `weights_sha256` is `samri.model.encoder_sha256` of it."""
        architecture = checkpoint.architecture
        return cls(
            embedding_id=embedding_id(weights_sha256, profile(profile_name), architecture.image_size, precision),
            profile=profile_name,
            image_size=architecture.image_size,
            embedding_shape=architecture.embedding_shape,
            backbone=architecture.backbone,
            precision=precision,
            # A decoder-only file's encoder came from its base.
            checkpoint=(checkpoint.base_path or checkpoint.path).name,
            checkpoint_sha256=checkpoint.base_sha256 or checkpoint.sha256,
        )

    @classmethod
    def of_bundle(cls, manifest: Manifest, precision: Precision) -> EncoderFacts:
        """The facts of a bundle's encoder of that precision; without it, an id that equals no other."""
        return cls(
            embedding_id=manifest.embedding_id(precision) or f"none in {precision}",
            profile=manifest.profile.name,
            image_size=manifest.image_size,
            embedding_shape=manifest.embedding_shape,
            backbone=manifest.backbone,
            precision=precision,
            checkpoint=str(manifest.checkpoint.get("name", manifest.name)),
            checkpoint_sha256=str(manifest.checkpoint.get("sha256", "")),
        )


@dataclass(frozen=True)
class StoreInfo:
    """What every embedding of a store has in common.

    Attributes:
        embedding_id: As in `EncoderFacts`, like the six after it.
        profile: Name of the preprocessing.
        image_size: S.
        embedding_shape: (C, G, G).
        backbone: The encoder's backbone.
        encoder_precision: Precision of the encoder's arithmetic.
        checkpoint: Name of the file that the weights came from.
        checkpoint_sha256: SHA-256 of that file.
        dtype: In which the embeddings are stored.
        source: What was embedded: `slices`, or `published cache`, which doesn't record its encoder.
        spacing_known: Whether pixel sizes are real millimetres; where they aren't, they read 1.
        samri_version: That began the store.
    """

    embedding_id: str
    profile: ProfileName
    image_size: int
    embedding_shape: tuple[int, int, int]
    backbone: str
    encoder_precision: Precision
    checkpoint: str
    checkpoint_sha256: str
    dtype: StoredDtype
    source: str
    spacing_known: bool
    samri_version: str

    @classmethod
    def of(cls, facts: EncoderFacts, dtype: StoredDtype, source: str, spacing_known: bool = True) -> StoreInfo:
        """The info of a store that this version of samri begins."""
        return cls(
            embedding_id=facts.embedding_id,
            profile=facts.profile,
            image_size=facts.image_size,
            embedding_shape=facts.embedding_shape,
            backbone=facts.backbone,
            encoder_precision=facts.precision,
            checkpoint=facts.checkpoint,
            checkpoint_sha256=facts.checkpoint_sha256,
            dtype=dtype,
            source=source,
            spacing_known=spacing_known,
            samri_version=__version__,
        )

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of the stored embeddings, little-endian."""
        return np.dtype(_NUMPY[self.dtype])

    @property
    def bytes_per_slice(self) -> int:
        """Bytes of one embedding, without its mask."""
        return math.prod(self.embedding_shape) * self.numpy_dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"embedding_shape": list(self.embedding_shape)}

    @classmethod
    def from_json(cls, values: Any, where: str) -> StoreInfo:
        """Read and check what `to_json` wrote; `where` names the file in errors.

        Raises:
            InputError: A value is missing or can't be.
        """
        shape = field(values, "embedding_shape", list, where)
        if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
            raise InputError(f"{where}: embedding_shape is three sizes, not {shape}: copy the store again")
        image_size = field(values, "image_size", int, where)
        if not 0 < image_size <= _LARGEST_IMAGE:
            raise InputError(f"{where}: image_size can't be {image_size}: copy the store again")
        return cls(
            embedding_id=field(values, "embedding_id", str, where),
            profile=_choice(values, "profile", PROFILE_NAMES, where),
            image_size=image_size,
            embedding_shape=(shape[0], shape[1], shape[2]),
            backbone=field(values, "backbone", str, where),
            encoder_precision=_choice(values, "encoder_precision", PRECISIONS, where),
            checkpoint=field(values, "checkpoint", str, where),
            checkpoint_sha256=field(values, "checkpoint_sha256", str, where),
            dtype=_choice(values, "dtype", STORED_DTYPES, where),
            source=field(values, "source", str, where),
            spacing_known=field(values, "spacing_known", bool, where),
            samri_version=field(values, "samri_version", str, where),
        )


def field(values: Any, key: str, kind: type[_T], where: str) -> _T:
    """The value of `key` in a JSON object, of that very type.

    Raises:
        InputError: There is none, or it has another type; `where` names the file.
    """
    value = values.get(key) if isinstance(values, Mapping) else None
    if type(value) is not kind:
        raise InputError(f"{where} is damaged ({key!r} is missing or no {kind.__name__}): copy the store again")
    return value


def _choice(values: Any, key: str, choices: tuple[_T, ...], where: str) -> _T:
    value = field(values, key, str, where)
    for choice in choices:
        if choice == value:
            return choice
    known = ", ".join(str(choice) for choice in choices)
    raise InputError(f"{where}: {key} is {value!r}, and this samri knows {known}: use the samri that wrote the store")
