"""Fills the command reference from the click commands that `[project.scripts]` names."""

from __future__ import annotations

import importlib
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[2]
MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a section for each command in the place of `MARK`."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def reference() -> str:
    """Markdown of every command: what it does, its usage line and a table of its options."""
    sys.path[:0] = [str(ROOT / folder) for folder in (".", "runtime", "export", "training")]
    table = re.search(r"^\[project\.scripts\]\n(.*?)^$", (ROOT / "pyproject.toml").read_text("utf-8"), re.M | re.S)
    assert table is not None
    entries = re.findall(r'^([\w-]+) = "([\w.]+):(\w+)"', table[1], re.MULTILINE)
    return "\n\n".join(
        section(name, getattr(importlib.import_module(module), function)) for name, module, function in entries
    )


def section(name: str, command: click.Command) -> str:
    """Markdown of one command."""
    context = click.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    rows = [record for option in command.get_params(context) if (record := option.get_help_record(context))]
    lines = [f"## {name}", paragraphs(command.help or ""), f"```\n{usage}\n```", "| option | meaning |\n|---|---|"]
    table = "\n".join(f"| {code(names)} | {cell(text)} |" for names, text in rows)
    return "\n\n".join(lines) + "\n" + table


def paragraphs(text: str) -> str:
    """Help text as Markdown; click's mark for a block that keeps its lines becomes code."""
    blocks = [block.strip("\n") for block in re.split(r"\n\s*\n", text.split("\f")[0])]
    return "\n\n".join(
        "```\n" + block.split("\n", 1)[1] + "\n```" if block.startswith("\b") else cell(block) for block in blocks
    )


def code(names: str) -> str:
    """Each spelling of an option in code, so that none is broken at a hyphen."""
    spellings = (escape(name).replace("|", "&#124;") for name in names.split(", "))
    return "<br>".join(f'<code class="option">{spelling}</code>' for spelling in spellings)


def cell(text: str) -> str:
    """Text on one line, with nothing that Markdown would take as a mark."""
    return re.sub(r"([|<*_\[\]])", r"\\\1", " ".join(text.split()))
