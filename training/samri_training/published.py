"""Published caches: embeddings as the original SAMRI tools write them, one file per slice.

    <case>_img_<k>.npz            img (1, C, G, G) float32, mask (1, H, W) labels, ori_size (H, W)
    <case>_img_<k>.npy or .pt     the embedding alone, with <case>_seg_<k>.nii.gz (or .npy, .png ...) beside it

A name without `_img_` finds its mask as NAME_seg or NAME_mask. Pickled objects are refused, in every one of them.
These files don't record their encoder. The reader has to know it, and a wrong guess can't be detected.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.io import Scan, read_scan
from samri.opening import open_regular
from samri_training.slices import SPLITS, label_map, one_slice, slice_spacing, split_named, split_of
from samri_training.store import EmbeddedSlice, Embeddings, EmbeddingStore, EncoderFacts, StoredDtype, StoreInfo

KIND = "published cache"
SUFFIXES = (".npz", ".npy", ".pt", ".pth")
_MASK_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".npy", ".npz", ".pt", ".png", ".tif", ".tiff")
_MASK_ENDS = ("_seg", "_mask")
# No embedding or mask is larger; a compressed file may claim any size.
_LARGEST_ARRAY = 1 << 30
_LARGEST_MASK = 1 << 28  # Pixels.
# What the readers of archives and arrays, and torch's restricted unpickler, were seen to raise on damaged files.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, SyntaxError, pickle.UnpicklingError),
    *(RuntimeError, EOFError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError),
)


@dataclass(frozen=True)
class CachedSlice:
    """One cached embedding.

    Attributes:
        name: Its path below the folder that was searched, without the suffix.
        case: What stands before `_img_`, behind the folders above it but for the split.
        file: With the embedding.
        mask: File with the label map, or None when the embedding's own file holds it.
    """

    name: str
    case: str
    file: Path
    mask: Path | None

    def read(self, embedding_shape: tuple[int, int, int]) -> EmbeddedSlice:
        """Read the embedding, in the number format of its file, and its label map.

        Raises:
            InputError: A file is damaged, carries objects, or holds something else.
        """
        content = _arrays(self.file)
        features = _embedding(self.file, content["img"], embedding_shape)
        if self.mask is None and "mask" not in content:
            raise _no_mask(self.file)
        if self.mask is None:
            scan = _as_scan(self.file, content["mask"])
        elif self.mask.suffix in SUFFIXES:
            masks = _arrays(self.mask)
            scan = _as_scan(self.mask, masks.get("mask", masks["img"]))
        else:
            scan = read_scan(self.mask)
        view = one_slice(scan)
        mask = view.extract(label_map(scan))
        _check_size(self.file, content.get("ori_size"), view.shape)
        if not mask.any():
            raise InputError(f"{self.mask or self.file} has an empty mask: every pixel is 0; remove the slice")
        spacing = (1.0, 1.0) if scan.nifti is None else slice_spacing(scan, view)
        return EmbeddedSlice(self.name, self.case, features, mask, spacing)


class PublishedCache:
    """A folder of cached embeddings that reads like a store.

    Args:
        path: The folder; those below it are searched too.
        facts: The encoder that made the embeddings, as far as anybody knows (`samri_training.embed.checkpoint_facts`).

    Raises:
        InputError: There is none, one has no mask beside it, or they belong to more than one split.
    """

    def __init__(self, path: str | Path, facts: EncoderFacts) -> None:
        self.path = Path(path)
        self.slices = find_cached(self.path)
        splits = {split_of(cached.name) for cached in self.slices}
        if len(splits) > 1:
            there = ", ".join(name for name in SPLITS if name in splits)
            raise InputError(f"{self.path} holds the slices of {there}, which must not be mixed: name one of them")
        first = self.slices[0].read(facts.embedding_shape)
        dtype: StoredDtype = "fp16" if first.features.dtype == np.float16 else "fp32"
        self.info = StoreInfo.of(facts, dtype, KIND, spacing_known(self.slices))
        self.content_sha256: str | None = None  # Its files hold no checksums, and reading them all takes too long.

    def __len__(self) -> int:
        return len(self.slices)

    def names(self) -> Iterator[tuple[str, str]]:
        """(name, case) of every slice, in order; no file is read."""
        return ((cached.name, cached.case) for cached in self.slices)

    def __getitem__(self, index: int) -> EmbeddedSlice:
        """Slice `index`, in the order of the names.

        Raises:
            IndexError: There are fewer slices.
            InputError: The file is damaged.
        """
        return self.slices[index].read(self.info.embedding_shape)


def spacing_known(slices: Sequence[CachedSlice]) -> bool:
    """Whether all masks are NIfTI or MGH files, which say how large a pixel is."""
    return all(cached.mask is not None and cached.mask.suffix in (".gz", ".nii", ".mgz", ".mgh") for cached in slices)


def open_embeddings(path: str | Path, facts: EncoderFacts) -> Embeddings:
    """The store in a folder, or the published cache in it, whose encoder is then taken to be that of `facts`.

    Raises:
        InputError: Neither is there.
    """
    folder = Path(path)
    if (folder / "store.json").is_file() or not any(_files(folder)):
        return EmbeddingStore.open(folder)
    return PublishedCache(folder, facts)


def find_cached(folder: Path) -> list[CachedSlice]:
    """All cached embeddings below a folder, sorted by name.

    Raises:
        InputError: There is none, one has no mask beside it, or two have the same name.
    """
    slices: dict[str, CachedSlice] = {}
    for file in _files(folder):
        name = file.relative_to(folder).as_posix()[: -len(file.suffix)]
        if name in slices:
            raise InputError(
                f"{slices[name].file} and {file} have the same name but for the suffix: remove one of them"
            )
        mask = None if file.suffix == ".npz" else _mask_beside(file)
        above = [part for part in Path(name).parent.parts if split_named(part) is None]
        slices[name] = CachedSlice(name, "/".join([*above, _case_and_mask(file.stem)[0]]), file, mask)
    if not slices:
        raise InputError(f"{folder} holds no cached embeddings (*.npz, or *.npy and *.pt beside their masks)")
    return [slices[name] for name in sorted(slices)]


def holds_embedding(name: str) -> bool:
    """Whether a file of that name is an embedding of a cache, and not a mask or something else."""
    file = Path(name)
    is_mask = "_img_" not in name and ("_seg_" in name or file.stem.endswith(_MASK_ENDS))
    return file.suffix in SUFFIXES and not is_mask and not name.startswith(".")


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: check the path")
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if holds_embedding(name):
                yield Path(parent, name)


def _case_and_mask(stem: str) -> tuple[str, str]:
    """Case of an embedding's file, and the name that its mask should have, both without a suffix."""
    case, separator, tail = stem.rpartition("_img_")
    if separator:
        return case, f"{case}_seg_{tail}"
    case = stem.removesuffix("_img")
    return case, f"{case}_seg"


def _mask_beside(file: Path) -> Path | None:
    """The file with the mask; None when the embedding's own may hold it, which only reading it can tell."""
    _, named = _case_and_mask(file.stem)
    for stem in (named, *(file.stem + end for end in _MASK_ENDS)):
        for suffix in _MASK_SUFFIXES:
            if (mask := file.with_name(stem + suffix)).is_file():
                return mask
    if file.suffix == ".npy":
        raise _no_mask(file)
    return None


def _no_mask(file: Path) -> InputError:
    return InputError(f"{file} has no mask beside it: add {_case_and_mask(file.stem)[1]}.nii.gz, .npy or .png")


def _arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file by name; a bare one is called `img`."""
    open_regular(file, limit=_LARGEST_ARRAY).close()
    try:
        if file.suffix == ".npz":
            return _read_npz(file)
        if file.suffix == ".npy":
            return {"img": np.load(file, mmap_mode="r", allow_pickle=False)}
        return _read_pt(file)
    except InputError:
        raise
    except (OSError, MemoryError, *_UNREADABLE) as error:
        raise InputError(
            f"{file} can't be read as an embedding: it is truncated, or carries objects; copy it again"
        ) from error


def _read_npz(file: Path) -> dict[str, npt.NDArray[Any]]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        for key in ("img", "mask", "ori_size"):
            member = members.get(f"{key}.npy")
            if member is None:
                raise InputError(f"{file} holds no {key!r}: a published cache has img, mask and ori_size")
            if member.file_size > _LARGEST_ARRAY:
                raise InputError(
                    f"{file} claims {member.file_size} bytes for {key!r}, which is not an embedding or mask"
                )
            with archive.open(member) as stream:
                _check_claim(file, key, stream, member.file_size)
            with archive.open(member) as stream:
                arrays[key] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _check_claim(file: Path, key: str, stream: IO[bytes], content: int) -> None:
    """Numpy makes room for what the array's header claims before it reads the numbers."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if math.prod(shape) * dtype.itemsize > content:
        raise InputError(f"{file} claims an array of shape {shape} for {key!r} in {content} bytes: copy it again")


def _read_pt(file: Path) -> dict[str, npt.NDArray[Any]]:
    import torch

    content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor):
        content = {"img": content}
    if not isinstance(content, Mapping) or not isinstance(content.get("img"), torch.Tensor):
        raise InputError(f"{file} holds a {type(content).__name__}, not a tensor or img, mask and ori_size")
    return {name: _as_array(file, content[name]) for name in ("img", "mask", "ori_size") if name in content}


def _as_array(file: Path, value: Any) -> npt.NDArray[Any]:
    import torch

    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    # An expanded tensor takes no room in the file, and all of it once it is computed with.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(
            f"{file} claims a tensor of shape {tuple(value.shape)} in {value.untyped_storage().nbytes()} bytes (an "
            "expanded one): save it with .contiguous()"
        )
    plain = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
    array: npt.NDArray[Any] = plain.numpy()
    return array


def _embedding(file: Path, values: npt.NDArray[Any], shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    if values.dtype not in (np.float16, np.float32, np.float64) or values.shape not in (shape, (1, *shape)):
        raise InputError(
            f"{file} holds {values.dtype} {values.shape}, and this encoder makes embeddings of shape {(1, *shape)}: "
            "name the checkpoint that made the cache"
        )
    return values.reshape(shape)


def _as_scan(file: Path, values: npt.NDArray[Any]) -> Scan:
    """An array that has no place in space, as `label_map` takes it."""
    if values.dtype.kind not in "buif" or values.ndim not in (2, 3) or not values.size:
        raise InputError(
            f"{file} holds a {values.dtype} mask of shape {values.shape}: it must be labels, (1, H, W) or (H, W)"
        )
    if values.size > _LARGEST_MASK:
        raise InputError(f"{file} holds a mask of {values.shape} pixels, which is not a slice")
    return Scan(file, "nifti", values, np.eye(4))


def _check_size(file: Path, recorded: npt.NDArray[Any] | None, shape: tuple[int, int]) -> None:
    if recorded is not None and tuple(np.ravel(recorded).tolist()) != shape:
        raise InputError(f"{file}: ori_size is {np.ravel(recorded).tolist()}, and its mask has shape {list(shape)}")
