"""Damaged, hostile and senseless inputs: each ends with a right result or one line."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.ground import Ground
from tests.fuzz.targets import TARGETS
from tests.fuzz.trial import Failure, run_trials

# Whole commands or graphs for each input: how many times as long as the others one of theirs takes.
COST = {"resume": 12, "journal": 4, "options": 3, "tuned": 3, "graph": 2}
FEW = 24
LARGE_RUN = 300


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The targets that were asked for, slow ones marked so."""
    if "target" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("fuzz_target") or list(TARGETS)
    marked = [pytest.param(name, marks=pytest.mark.slow) if name in COST else name for name in chosen]
    metafunc.parametrize("target", marked)


@pytest.fixture(scope="module")
def ground(bundle: Path, checkpoint: Path) -> Ground:
    return Ground(bundle, checkpoint)


def test_every_input_ends_well(
    target: str, ground: Ground, tmp_path: Path, fuzz_seed: int, request: pytest.FixtureRequest
) -> None:
    asked = request.config.getoption("fuzz_inputs")
    count = asked if asked is not None else FEW // COST.get(target, 1)
    _try(target, ground, tmp_path, count, fuzz_seed, request.config.getoption("fuzz_only"))


@pytest.mark.exhaustive
def test_thousands_of_inputs_end_well(target: str, ground: Ground, tmp_path: Path, fuzz_seed: int) -> None:
    _try(target, ground, tmp_path, _large(target), fuzz_seed + 1, None)


def test_the_large_run_has_three_thousand_inputs() -> None:
    assert sum(map(_large, TARGETS)) >= 3000


def _large(target: str) -> int:
    return LARGE_RUN // (1 + COST.get(target, 1) // 4)


def _class(failure: Failure) -> str:
    """What failures have in common: the exception's class and the line of ours that raised, or the text itself."""
    ours = [line.strip() for line in failure.details.splitlines() if "/samri" in line and "File " in line]
    if ours:
        return failure.kind.partition(":")[0] + ours[-1]
    return re.sub(r"\d+|0x[0-9a-f]+", "#", failure.kind[:60])


def _try(target: str, ground: Ground, folder: Path, count: int, seed: int, only: int | None) -> None:
    indices = list(range(count)) if only is None else [only]
    failures = run_trials(target, functools.partial(TARGETS[target], ground), folder, seed, indices)
    counts = Counter(_class(failure) for failure in failures)
    first = {_class(failure): failure for failure in reversed(failures)}
    told = "\n\n".join(f"{counts[kind]} x {failure}" for kind, failure in first.items())
    assert not failures, f"{len(failures)} of {len(indices)} inputs of {target} broke a promise\n\n{told}"
