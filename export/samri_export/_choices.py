"""What a caller may choose: one `Literal` each for the types, the command's options and the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from samri.manifest import PRECISIONS, Precision
from samri.preprocessing import ProfileName

Level = Literal["full", "quick", "off"]
"""How much of an export is verified."""
LEVELS: tuple[Level, ...] = get_args(Level)

Contract = Literal["sam", "sam-multi"]
"""Meta's published decoder interface, with one mask or with all."""
CONTRACTS: tuple[Contract, ...] = get_args(Contract)

OFFERED_PRECISIONS: tuple[Precision, ...] = PRECISIONS
"""What this version can write, of the precisions that a bundle may hold."""


def check_choices(
    *,
    profile: ProfileName | None,
    contracts: Sequence[Contract],
    precisions: Sequence[Precision],
    verify: Level,
    verify_images: Sequence[str | Path],
    force: bool,
    compact: bool,
    rounded_checkpoint: str | Path | None,
) -> None:
    """Check that the options of an export go together, before anything is read; messages name the command's options.

    Raises:
        ValueError: They don't.
    """
    unknown = [precision for precision in precisions if precision not in OFFERED_PRECISIONS]
    if unknown or not precisions:
        raise ValueError(f"--precision is {', '.join(OFFERED_PRECISIONS)}, not {unknown or 'none'}")
    if contracts and profile == "medsam":
        raise ValueError(
            "--contract resizes as SAM does, by the longest side, so it can't be combined with --profile medsam"
        )
    if verify == "off" and verify_images:
        raise ValueError("--verify-image can't be combined with --verify off")
    if verify == "off" and set(precisions) != {"fp32"} and not force:
        raise ValueError("a precision below fp32 must be compared with fp32: leave out --verify off, or add --force")
    if rounded_checkpoint is None:
        return
    if not compact:
        raise ValueError("--rounded-checkpoint needs --compact, which rounds the weights")
    if Path(rounded_checkpoint).suffix not in (".pth", ".pt"):
        raise ValueError(f"--rounded-checkpoint must be a .pth or .pt file, not {Path(rounded_checkpoint).name}")
