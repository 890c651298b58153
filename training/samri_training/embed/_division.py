"""This process's share of the work, from --part, SLURM's array and torchrun's rank; no communication is needed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from samri.errors import InputError

_T = TypeVar("_T")


@dataclass(frozen=True)
class WorkShare:
    """Part `index`, from 0, of `count` equal parts."""

    index: int = 0
    count: int = 1

    def of(self, work: Sequence[_T]) -> Sequence[_T]:
        """Every `count`-th piece: each piece belongs to exactly one share."""
        return work[self.index :: self.count]

    def within(self, outer: WorkShare) -> WorkShare:
        """This share of that share."""
        return WorkShare(outer.index * self.count + self.index, outer.count * self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_share(text: str) -> WorkShare:
    """`2/8` is the third of eight parts.

    Raises:
        ValueError: It is none of 0/8 to 7/8.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError(f"{text!r} is not a part: of eight, give 0/8 to 7/8")
    return WorkShare(int(match[1]), int(match[2]))


def share_from(environment: Mapping[str, str], outer: WorkShare | None = None) -> WorkShare:
    """This process's share: `torchrun`'s rank within a SLURM array's task, or within `outer` where that is given.

    Args:
        environment: `os.environ`.
        outer: From `--part`; the array is then ignored.

    Raises:
        InputError: The variables contradict each other, as they do when single tasks of an array are repeated.
    """
    rank = WorkShare(_number(environment, "RANK", 0), _number(environment, "WORLD_SIZE", 1))
    if outer is None:
        outer = _array_task(environment)
    for share, name in ((rank, "RANK and WORLD_SIZE"), (outer, "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT")):
        if not 0 <= share.index < share.count:
            raise InputError(
                f"{name} give part {share}, which is out of range: name the part with --part 0/{share.count}"
            )
    return rank.within(outer)


def _array_task(environment: Mapping[str, str]) -> WorkShare:
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return WorkShare()
    task, count = _number(environment, "SLURM_ARRAY_TASK_ID", 0), _number(environment, "SLURM_ARRAY_TASK_COUNT", 1)
    first = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
    last = _number(environment, "SLURM_ARRAY_TASK_MAX", first + count - 1)
    step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1) or 1
    if first + (count - 1) * step != last or (task - first) % step:
        raise InputError(
            f"this SLURM array is not a simple range ({count} tasks from {first} to {last}), so its parts are unknown: "
            "name them with --part i/n, the n of the whole array"
        )
    return WorkShare((task - first) // step, count)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r} in the environment, which is not a number: unset it, or use --part")
    return int(text)
