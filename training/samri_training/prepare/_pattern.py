"""`--pattern`: paths with placeholders such as `{case}`."""

from __future__ import annotations

import re

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def placeholders(template: str) -> list[str]:
    """The names in it, each once, in their order."""
    return list(dict.fromkeys(_PLACEHOLDER.findall(template)))


def check_pattern(pattern: tuple[str, str]) -> str | None:
    """What is wrong with a `--pattern`, if anything is."""
    image, mask = ({*_PLACEHOLDER.findall(template)} for template in pattern)
    if not all(name.isidentifier() for name in image | mask):
        return "a placeholder is a word that begins with a letter, such as {case}"
    if not image:
        return "a pattern needs a placeholder such as {case}, where the names of two cases differ"
    if image != mask:
        return f"both patterns need the same placeholders: {sorted(image)} and {sorted(mask)} differ"
    return None


def compiled(template: str) -> re.Pattern[str]:
    """`{name}` stands for any characters but a slash; named twice, for the same ones."""
    parts, seen = [], set()
    for index, part in enumerate(_PLACEHOLDER.split(template)):
        if index % 2 == 0:
            parts.append(re.escape(part))
        else:
            parts.append(f"(?P={part})" if part in seen else f"(?P<{part}>[^/]+?)")
            seen.add(part)
    return re.compile("".join(parts))
