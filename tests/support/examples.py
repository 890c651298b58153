"""How many examples Hypothesis draws, where a test sets the number."""

from __future__ import annotations

import hypothesis


def examples(count: int) -> int:
    """`count` as it stands, a quarter of it in the profile `fast`, ten times as many in `exhaustive`."""
    return max(1, count * hypothesis.settings().max_examples // 100)
