"""The frozen list: which cases the published figures are about, so that a later run can say whether it asked the same.

Everything is drawn from seeds; what is kept is a digest of each slice's cases, by set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from samri.errors import InputError
from samri.staging import staged_file

PUBLISHED = Path(__file__).with_name("frozen.json")

FORMAT, FORMAT_VERSION = "samri-tiny-cases", 1

Digests = dict[str, dict[str, str]]
"""Set, then slice, to `digest` of its cases; slices without a case are left out."""


def read_list(file: Path) -> tuple[int, Digests]:
    """The seed and the digests of a frozen list.

    Raises:
        InputError: The file is missing, or isn't such a list.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {content['format']} {content['format_version']}")
        digests = {str(name): {str(key): str(each) for key, each in of.items()} for name, of in content["sets"].items()}
        return int(content["seed"]), digests
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not a frozen list of cases ({error}): write it again with --write-list") from error


def write_list(file: Path, seed: int, digests: Mapping[str, Mapping[str, str]]) -> None:
    """Write the frozen list of an evaluation."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "seed": seed, "sets": digests}
    with staged_file(file) as staged:
        staged.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def compared(name: str, asked: Mapping[str, str], seed: int, frozen: tuple[int, Digests]) -> str:
    """One line on whether the cases of a set are those of the frozen list.

    Args:
        name: Name of the set.
        asked: Slice to digest, of this run.
        seed: Seed of this run.
        frozen: What `read_list` gave.
    """
    listed = frozen[1].get(name, {})
    if not listed:
        return "aren't in the frozen list"
    if seed != frozen[0]:
        return f"aren't those of the frozen list, whose seed is {frozen[0]}"
    same = sum(listed.get(key) == each for key, each in asked.items())
    if same < len(asked):
        return f"DIFFER from the frozen list in {len(asked) - same} of {len(asked)} slices"
    return f"are those of the frozen list ({same} of its {len(listed)} slices)"
