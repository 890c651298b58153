"""The split that a folder holds, by its name: `training`, but also `train`, `imagesTr` or `Embedding_val`."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Literal, get_args

Split = Literal["training", "validation", "testing"]
SPLITS: tuple[Split, ...] = get_args(Split)

KNOWN_NAMES = "training or train, validation or val, testing or test"
"""For messages; `split_named` knows more."""

_WHAT = "embeddings?|images?|imgs?|labels?|masks?|slices?|volumes?|scans?|cases?|data"
_NAME = re.compile(
    rf"(?:(?:{_WHAT})[_-]?)?(?:(?P<training>train|training)|(?P<validation>val|valid|validation)|"
    rf"(?P<testing>test|testing))(?:[_-]?set|[_-](?:{_WHAT}))?"
    r"|(?:images|labels)(?:(?P<tr>tr)|(?P<ts>ts))",
    re.IGNORECASE,
)
_NNUNET: dict[str, Split] = {"tr": "training", "ts": "testing"}


def split_named(folder: str) -> Split | None:
    """The split that a folder of that name holds; None where the name says nothing of it."""
    match = _NAME.fullmatch(folder)
    if match is None:
        return None
    group = next(group for group, found in match.groupdict().items() if found is not None)
    return _NNUNET.get(group) or next(split for split in SPLITS if split == group)


def split_of(name: str) -> Split | None:
    """The split that a slice belongs to: by the last of the folders in its name that is called like one."""
    return split_of_folders(PurePath(name).parts[:-1])


def split_of_folders(folders: tuple[str, ...]) -> Split | None:
    """The split of what lies in these folders, each in the one before: by the last that is called like one."""
    return next((split for folder in reversed(folders) if (split := split_named(folder)) is not None), None)
