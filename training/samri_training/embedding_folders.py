"""Folders of embeddings: the stores and published caches of each split, and which of them must not be mixed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from samri.errors import InputError
from samri_training.published import holds_embedding
from samri_training.slices import KNOWN_NAMES, SPLITS, Split, split_named
from samri_training.store import PLAN_NAME, Embeddings

_NAMED = 3


def refuse_mixed_splits(folder: Path, sources: Sequence[Embeddings]) -> None:
    """Refuse embeddings of several splits that would be taken as one, by the names of the folders that they lie in.

    Args:
        folder: What the person named.
        sources: The stores and caches at or below it.

    Raises:
        InputError: There are several; it names their folders.
    """
    examples: dict[Split, str] = {}
    for source in sources:
        below = source.path.relative_to(folder).parts if source.path.is_relative_to(folder) else ()
        for above in {name.rpartition("/")[0] for name, _ in source.names()}:
            for each in reversed((*below, *above.split("/"))):
                split = split_named(each)
                if split is not None:
                    examples.setdefault(split, each)
                    break
    if len(examples) > 1:
        there = ", ".join(examples[split] for split in SPLITS if split in examples)
        raise InputError(
            f"{folder} holds embeddings in {there}, which would be read as one set: name one of these folders, "
            f"or rename them to {', '.join(SPLITS)}"
        )


def refuse_shared_cases(training: Sequence[Embeddings], validation: Sequence[Embeddings], *, together: bool) -> None:
    """Refuse validation slices of patients that are trained on.

    Args:
        training: What is learned from.
        validation: What is validated on.
        together: Both lie in one folder, whose datasets may each have a case of one name.

    Raises:
        InputError: Cases are in both; it names some.
    """
    learned = {key for source in training for key in _cases(source, together)}
    shared = sorted({case for source in validation for _, case in learned & _cases(source, together)})
    if shared:
        names = ", ".join(shared[:_NAMED]) + (" ..." if len(shared) > _NAMED else "")
        raise InputError(
            f"{len(shared)} case(s) are in the training and in the validation slices ({names}), so validation "
            "would be too optimistic: split them by patient, or pass --allow-shared-cases if only the names "
            "are the same"
        )


def _cases(source: Embeddings, together: bool) -> set[tuple[str, str]]:
    """(dataset, case) of a source; the dataset is its folder without the split's."""
    folders = source.path.absolute().parts if together else ()
    dataset = "/".join(folder for folder in folders if split_named(folder) is None)
    return {(dataset, case) for _, case in source.names()}


def folders_by_split(folder: Path) -> dict[Split | None, list[Path]]:
    """Every store and published cache at or below a folder, by the last split's name among the folders above it.

    Folders are called `training`, `train`, `Embedding_train` and so on (`samri_training.slices.split_named`).
    A folder that is itself called `training`, say, and has no splits in it, is that split. None stands for embeddings
    that belong to no split; nothing is found in a folder without embeddings.

    Raises:
        InputError: No such folder, one that can't be read, or some embeddings belong to a split and others to none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: check the path")

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    by_split: dict[Split | None, list[Path]] = {}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        is_store = PLAN_NAME in names
        if is_store or any(holds_embedding(name) for name in names):
            split, root = _split_and_root(folder, Path(parent).relative_to(folder).parts)
            folders_found, own_folder = by_split.setdefault(split, []), Path(parent) if is_store else root
            folders_found.extend([own_folder] if own_folder not in folders_found else [])
        if is_store:
            folders.clear()
    if None in by_split and len(by_split) > 1:
        raise InputError(
            f"{folder}: {by_split[None][0]} holds embeddings outside of folders for {KNOWN_NAMES}, and others lie in "
            "these: name one of them, or move the embeddings"
        )
    own_split = _own_split(folder)
    return {own_split: by_split[None]} if None in by_split else by_split


def folders_of_split(folder: Path, split: Split, *, named: bool = False) -> list[Path]:
    """The stores and caches of a split below a folder; all of them where the folder has no splits, or is itself one.

    Args:
        folder: A store, a cache, a folder of them, or one with `training`, `validation` and `testing` in it or below.
        split: Which part is meant, where there are several.
        named: A person named the split, so that no other will do.

    Raises:
        InputError: The folder has splits and not this one, or none at all although it was asked for.
    """
    by_split = folders_by_split(folder)
    if split in by_split:
        return by_split[split]
    if not by_split and not named:
        return [folder]  # Opening it gives the precise error.
    if not named and set(by_split) == {_own_split(folder)}:
        return next(iter(by_split.values()))
    there = ", ".join(name for name in SPLITS if name in by_split)
    if there:
        raise InputError(f"{folder} holds no embeddings for {split}, only for {there}: name the folder you need")
    raise InputError(f"{folder} has no folders for {KNOWN_NAMES} in it, so its split is unknown: leave out --split")


def _own_split(folder: Path) -> Split | None:
    return split_named(folder.absolute().name)


def _split_and_root(folder: Path, below: tuple[str, ...]) -> tuple[Split | None, Path]:
    """The last split among the folders below `folder`, and the path down to it."""
    for count in range(len(below), 0, -1):
        split = split_named(below[count - 1])
        if split is not None:
            return split, folder.joinpath(*below[:count])
    return None, folder
