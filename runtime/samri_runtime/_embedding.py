"""What the encoder saw in one slice, in memory and as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.staging import staged_file
from samri_runtime.cache._file import (
    DamagedFileError,
    StoredEmbedding,
    StoredPrecision,
    fits,
    pack,
    unpack,
)


@dataclass(frozen=True, eq=False)
class Embedding:
    """What the encoder saw in one slice; any number of prompts can be asked of it.

    Attributes:
        features: (1, C, G, G) float32, or float16 after `half`. Don't change them: a device may hold a copy.
        shape: (H, W) of the slice, which prompts and masks refer to.
        embedding_id: Which encoder, preprocessing and precision made it.
        cached: It was read from the embedding cache; the encoder wasn't opened for it.
        made: How it came about: SHA-256 of the encoder's graph, provider, versions.
        notes: Plain lines a person should see, such as that a cached embedding was damaged.
    """

    features: npt.NDArray[Any]
    shape: tuple[int, int]
    embedding_id: str | None
    cached: bool = False
    made: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def half(self) -> Embedding:
        """The same in half the memory, for hosts that keep many slices: float16, which moves logits a little.

        Raises:
            ValueError: The embedding holds numbers that float16 can't.
        """
        if not fits(self.features, "fp16"):
            raise ValueError("the embedding holds numbers that float16 can't: keep it as it is")
        return replace(self, features=self.features.astype(np.float16))

    def save(self, path: str | Path, precision: StoredPrecision = "fp32") -> None:
        """Write a file that `load` reads on any machine; it derives from a patient, so only its owner can read it.

        Args:
            path: Any name; `.safetensors` tells other programs what it is.
            precision: `fp16` takes half the space and rounds.

        Raises:
            ValueError: The embedding has no `embedding_id`, or numbers that the precision can't hold.
            OutputError: The file can't be written.
        """
        if self.embedding_id is None:
            raise ValueError("an embedding without embedding_id can't be saved: nobody could tell what it fits")
        if not fits(self.features, precision):
            raise ValueError(f"the embedding holds numbers that {precision} can't: save it as fp32, or encode again")
        pieces = pack(StoredEmbedding(self.features, precision, self.shape, self.embedding_id, "", self.made))
        with staged_file(path) as staged:
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(pieces)

    @classmethod
    def load(cls, path: str | Path) -> Embedding:
        """Read what `save` wrote, or an entry of the embedding cache.

        Raises:
            InputError: There is no such file, or it is damaged.
        """
        try:
            stored = unpack(Path(path).read_bytes())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except DamagedFileError as error:
            raise InputError(f"{path} is no whole embedding ({error}): copy it again, or encode the image") from error
        return cls(stored.features, stored.shape, stored.embedding_id, made=stored.made)
