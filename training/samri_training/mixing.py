"""What must not be mixed: splits of one dataset, slices of one patient on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samri.errors import InputError
from samri_training.slices import SPLITS, Split, split_named
from samri_training.store import Embeddings

_NAMED = 3


def refuse_mixed_splits(folder: Path, parts: Sequence[Embeddings]) -> None:
    """Refuse embeddings of several splits that would be taken as one, by the names of the folders that they lie in.

    Args:
        folder: What the person named.
        parts: The stores and caches at or below it.

    Raises:
        InputError: There are several; it names their folders.
    """
    found: dict[Split, str] = {}
    for part in parts:
        below = part.path.relative_to(folder).parts if part.path.is_relative_to(folder) else ()
        for above in {name.rpartition("/")[0] for name, _ in part.names()}:
            for each in reversed((*below, *above.split("/"))):
                split = split_named(each)
                if split is not None:
                    found.setdefault(split, each)
                    break
    if len(found) > 1:
        there = ", ".join(found[split] for split in SPLITS if split in found)
        raise InputError(
            f"{folder} holds embeddings in {there}, which would be taken as one set: name one of these folders, or "
            f"call them {', '.join(SPLITS)}"
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
    learned = {key for part in training for key in _cases(part, together)}
    shared = sorted({case for part in validation for _, case in learned & _cases(part, together)})
    if shared:
        some = ", ".join(shared[:_NAMED]) + (" ..." if len(shared) > _NAMED else "")
        raise InputError(
            f"{len(shared)} case(s) are in the training and in the validation slices ({some}), so validation would say "
            "too much: divide them by patient, or pass --allow-shared-cases if only the names are the same"
        )


def _cases(part: Embeddings, together: bool) -> set[tuple[str, str]]:
    """(dataset, case) of a part; the dataset is its folder without the split's."""
    folders = part.path.absolute().parts if together else ()
    dataset = "/".join(folder for folder in folders if split_named(folder) is None)
    return {(dataset, case) for _, case in part.names()}
