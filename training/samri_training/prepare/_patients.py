"""The split of patients into training, validation and testing: all slices of a patient stay together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samri.errors import InputError
from samri_training.prepare._sources import LeftOut, SourcePair
from samri_training.slices import SPLITS, Split

SPLIT_FILES: dict[Split, str] = {"training": "train.txt", "validation": "val.txt", "testing": "test.txt"}
DEFAULT_SHARES = (0.8, 0.1, 0.1)


def divide(patients: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, Split]:
    """Deal patients out at random, the same for the same seed and patients whatever their order.

    Args:
        patients: Their names.
        shares: Shares of training, validation and testing; need not add up to 1. Each above 0 gets a patient at least.
        seed: Random seed of the shuffle.

    Raises:
        InputError: Fewer patients than shares above 0.
    """
    nonzero = [share > 0 for share in shares]
    if len(patients) < sum(nonzero):
        who = f"one patient ({patients[0]})" if len(patients) == 1 else f"{len(patients)} patients"
        into = ", ".join(split for split, is_nonzero in zip(SPLITS, nonzero, strict=True) if is_nonzero)
        raise InputError(
            f"the dataset has {who}, too few to divide into {into} by patient: give a share of 0 to the rest, such as "
            "--ratios 1 0 0 to put all into training"
        )
    counts = _counts(len(patients), shares)
    shuffled = [sorted(patients)[index] for index in np.random.default_rng(seed).permutation(len(patients))]
    dealt = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return dict(zip(shuffled, dealt, strict=True))


def read_split_files(folder: Path, pairs: Sequence[SourcePair]) -> tuple[dict[str, Split], list[LeftOut]]:
    """Patient to split by `train.txt`, `val.txt` and `test.txt`: one patient or case per line, `#` begins a comment.

    Raises:
        InputError: None of the files, a name that no pair has, or a patient in two of them.
    """
    patients_of: dict[str, set[str]] = {}
    for pair in pairs:
        for name in (pair.patient, pair.case):
            patients_of.setdefault(name, set()).add(pair.patient)
    split_of: dict[str, Split] = {}
    files = {split: folder / name for split, name in SPLIT_FILES.items() if (folder / name).is_file()}
    if not files:
        raise InputError(f"{folder} holds none of {', '.join(SPLIT_FILES.values())}: check the path")
    for split, file in files.items():
        for name in _lines(file):
            if name not in patients_of:
                raise InputError(f"{file} names {name}, but no pair is of a patient or case of that name")
            for patient in patients_of[name]:
                if split_of.setdefault(patient, split) != split:
                    raise InputError(
                        f"{file} puts {name} into {split}, but {SPLIT_FILES[split_of[patient]]} has the same patient "
                        f"({patient}): a patient belongs to one split"
                    )
    left_out = [
        LeftOut(str(pair.image), f"its patient {pair.patient} is in no file of {folder.name}")
        for pair in pairs
        if pair.patient not in split_of
    ]
    return split_of, left_out


def keep_given(pairs: Sequence[SourcePair], shares: Sequence[float], seed: int) -> dict[str, Split]:
    """Patients stay in the split whose folder they lie in; the others are divided among the splits that have none.

    Raises:
        InputError: A patient lies in two of the folders, or too few patients are left to divide.
    """
    split_of: dict[str, Split] = {}
    for pair in pairs:
        if pair.split is not None and split_of.setdefault(pair.patient, pair.split) != pair.split:
            raise InputError(
                f"{pair.image} is of patient {pair.patient}, who is also in {split_of[pair.patient]}: a patient "
                "belongs to one split: split again with --ratios, or name the patients with --patient"
            )
    rest = sorted({pair.patient for pair in pairs} - split_of.keys())
    if rest:
        remaining = [0.0 if split in split_of.values() else share for split, share in zip(SPLITS, shares, strict=True)]
        split_of |= divide(rest, remaining if sum(remaining) else (1.0, 0.0, 0.0), seed)
    return split_of


def _counts(total: int, shares: Sequence[float]) -> list[int]:
    """How many of `total` each share gets, by largest remainder; a share above 0 gets one at least."""
    exact = [share / sum(shares) * total for share in shares]
    counts = [int(part) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    for index, share in enumerate(shares):
        if share > 0 and counts[index] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[index] = 1
    return counts


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file in UTF-8: save it as one") from error
    names = (line.partition("#")[0].strip() for line in text.splitlines())
    return [name for name in names if name]
