"""The tables of the model card, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from samri_tiny.evaluate._answers import BASELINES, WAYS
from samri_tiny.evaluate._summary import Group, Test

_SIGNIFICANT = 0.05


def group_table(groups: Sequence[Group]) -> str:
    """One row for each group and model: mean Dice of every way of asking, the baselines, margins over the better."""
    several = len({group.model for group in groups}) > 1
    heads = [
        "structures",
        *(["model"] if several else []),
        "cases",
        "box",
        *BASELINES,
        "margin",
        "tight box",
        "its margin",
        *WAYS[2:],
        "score error",
    ]
    rows = [
        [
            _plain(group.name),
            *([_plain(group.model)] if several else []),
            str(group.cases),
            f"**{group.dice['box']:.3f}**",
            *(f"{group.baselines[baseline]['box']:.3f}" for baseline in BASELINES),
            "" if group.trivial else f"{group.margin('box'):+.3f}",
            f"{group.dice['tight box']:.3f}",
            "" if group.trivial else f"{group.margin('tight box'):+.3f}",
            *(f"{group.dice[way]:.3f}" for way in WAYS[2:]),
            f"{group.score_error:.3f}",
        ]
        for group in groups
    ]
    return _table(heads, rows, left=1 + several)


def comparison_table(found: Sequence[Test]) -> str:
    """One row for each pair that was compared."""
    rows = [
        [
            f"{_plain(test.first)} → {_plain(test.second)}",
            test.way,
            str(test.comparison.cases),
            f"{test.comparison.mean_difference:+.3f}",
            f"{test.comparison.effect_size:+.2f}",
            _p(test.p_holm),
        ]
        for test in found
    ]
    return _table(["compared", "asked by", "slices", "difference", "effect r", "p"], rows, left=2)


def _p(p: float) -> str:
    text = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return f"**{text}**" if p < _SIGNIFICANT else text


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A Markdown table whose first `left` columns are text and whose others are numbers."""
    rule = [":--" if column < left else "--:" for column in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows])


def _plain(name: str) -> str:
    """A name that can't break a table."""
    return name.replace("|", "\\|").replace("\n", " ")
