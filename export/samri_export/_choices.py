"""What a caller may choose: one `Literal` each for the types, the command's options and the tests."""

from __future__ import annotations

from typing import Literal, get_args

from samri.manifest import PRECISIONS, Precision

Level = Literal["full", "quick", "off"]
"""How much of an export is verified."""
LEVELS: tuple[Level, ...] = get_args(Level)

Contract = Literal["sam", "sam-multi"]
"""Meta's published decoder interface, with one mask or with all."""
CONTRACTS: tuple[Contract, ...] = get_args(Contract)

OFFERED_PRECISIONS: tuple[Precision, ...] = PRECISIONS
"""What this version can write, of the precisions that a bundle may hold."""
