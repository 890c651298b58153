"""Label names of a dataset, from nnU-Net's `dataset.json` or BIDS tables (`*_dseg.tsv`).

https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
https://bids-specification.readthedocs.io/en/stable/derivatives/imaging.html#common-image-derived-labels
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.opening import read_json, read_regular

_REMEDY = "correct it, or remove it to take the labels without names"
_LARGEST_TABLE = 16_000_000
_HIGHEST_LABEL = int(np.iinfo(np.uint16).max)


@dataclass(frozen=True)
class Labels:
    """The labels of a dataset.

    Attributes:
        file: The file they were read from.
        names: (label, name) of each structure, sorted by label; without background and `ignore`.
        declared: All labels that may be there, but for `ignore`; None where others may be there too.
        ignore: Label of regions without annotation, if there is one.
        channels: (four digits of a file's name, name) of each channel.
        file_ending: File ending of the dataset's images, if recorded.
        notes: Notes for the user, one line each.
    """

    file: Path
    names: tuple[tuple[int, str], ...]
    declared: frozenset[int] | None = None
    ignore: int | None = None
    channels: tuple[tuple[str, str], ...] = ()
    file_ending: str | None = None
    notes: tuple[str, ...] = ()

    def checked(self, values: npt.NDArray[np.uint16], mask: Path) -> tuple[npt.NDArray[np.uint16], tuple[str, ...]]:
        """A label map without what is to be ignored, and a note on that.

        Raises:
            InputError: It holds labels that the dataset doesn't declare.
        """
        notes: tuple[str, ...] = ()
        if self.ignore is not None and (values == self.ignore).any():
            values = np.where(values == self.ignore, 0, values).astype(np.uint16)
            notes = (f"label {self.ignore} (ignore) counts as background, in {mask.name} and maybe in others",)
        if self.declared is not None:
            others = sorted({int(value) for value in np.unique(values)} - self.declared - {0})
            if others:
                known = ", ".join(map(str, sorted(self.declared)))
                raise InputError(
                    f"{mask} holds {', '.join(map(str, others[:5]))}, which {self.file.name} doesn't declare (only "
                    f"{known}): correct one of them"
                )
        return values, notes


def read_dataset_json(file: Path) -> Labels:
    """nnU-Net's `dataset.json`, of its second version (name to label) or its first and the Decathlon's (the reverse).

    Raises:
        InputError: It is damaged, or its labels are invalid.
    """
    content = read_json(file, remedy=_REMEDY)
    labels = content.get("labels") if isinstance(content, Mapping) else None
    if not isinstance(labels, Mapping) or not labels:
        raise InputError(f"{file} has no labels: {_REMEDY}")
    if all(str(key).isdecimal() for key in labels):
        labels = {name: int(key) for key, name in labels.items()} if _distinct(labels) else _refuse(file, labels)
    names: dict[int, str] = {}
    declared: set[int] = set()
    ignore: int | None = None
    notes = []
    for name, value in labels.items():
        region = value if isinstance(value, list) else [value]
        if not region or not all(type(label) is int and 0 <= label <= _HIGHEST_LABEL for label in region):
            _refuse(file, {name: value})
        if name == "ignore" and len(region) == 1:
            ignore = region[0]
            continue
        declared.update(region)
        if len(region) > 1:
            parts = ", ".join(map(str, region))
            notes.append(f"{file.name}: the region {name} is labels {parts}: each is a structure of its own")
        elif region[0] != 0:
            if region[0] in names:
                raise InputError(f"{file} names label {region[0]} {names[region[0]]} and {name}: {_REMEDY}")
            names[region[0]] = str(name)
    channels = content.get("channel_names", content.get("modality"))
    channels = channels if isinstance(channels, Mapping) else {}
    ending = content.get("file_ending")
    return Labels(
        file,
        tuple(sorted(names.items())),
        frozenset(declared - {ignore}),
        ignore,
        tuple((str(key).zfill(4), str(value)) for key, value in channels.items()),
        ending if isinstance(ending, str) else None,
        tuple(notes),
    )


def read_bids_table(file: Path) -> Labels:
    """A `dseg.tsv`: the columns index and name are used.

    Raises:
        InputError: It is damaged.
    """
    try:
        text = read_regular(file, limit=_LARGEST_TABLE).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
        names = {int(row["index"]): row["name"].strip() for row in rows}
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(
            f"{file} is not a table of the columns index and name, separated by tabs: {_REMEDY}"
        ) from error
    if len(names) != len(rows):
        raise InputError(f"{file} has an index twice: {_REMEDY}")
    return Labels(file, tuple(sorted((label, name) for label, name in names.items() if label)))


def bids_table_of(mask: Path, folder: Path) -> Path | None:
    """The table that describes a label map: the nearest of the folders up to the dataset's that has one which fits.

    It fits when each of its entities is the mask's too (the inheritance principle); of several, the one with most.
    """
    entities = set(mask.name.partition(".")[0].split("_"))
    here = mask.parent
    while True:
        fitting = [
            table
            for table in here.glob("*dseg.tsv")
            if set(table.name.removesuffix(".tsv").split("_")) <= entities | {"dseg"}
        ]
        if fitting:
            return max(fitting, key=lambda table: (len(table.name.split("_")), table.name))
        if here == folder or folder not in here.parents:
            return None
        here = here.parent


def merged_names(labels: Iterable[Labels]) -> dict[int, str]:
    """Label to name over all of a dataset's pairs.

    Raises:
        InputError: One label means two things.
    """
    names: dict[int, str] = {}
    sources: dict[int, Path] = {}
    for each in labels:
        for label, name in each.names:
            if names.setdefault(label, name) != name:
                raise InputError(
                    f"{each.file} calls label {label} {name}, and {sources[label]} calls it {names[label]}: make the "
                    "labels of all cases mean the same"
                )
            sources.setdefault(label, each.file)
    return dict(sorted(names.items()))


def _distinct(labels: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) for name in labels.values()) and len(set(labels.values())) == len(labels)


def _refuse(file: Path, labels: Mapping[Any, Any]) -> Any:
    raise InputError(f"{file}: its labels are invalid ({str(dict(labels))[:80]}): {_REMEDY}")
