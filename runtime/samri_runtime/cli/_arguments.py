"""What click lets pass on a command line: numbers written with commas, and an option given twice."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from samri.errors import printable

# A line on the screen holds the cause and the way out; more is what somebody pasted.
_LONGEST_LINE = 600
_KEPT_AT_THE_END = 200
_EXAMPLE = ("40", "60", "110", "120", "80", "80")
_ONE_SPACE = re.compile(r" *[^\S ]\s*")  # Line ends and the like; the spaces of a table stay.
_NUMBERS = (type(click.FLOAT), type(click.INT))  # Ranges derive from them.


def split_numbers(command: click.Command, context: click.Context, arguments: Sequence[str]) -> list[str]:
    """The arguments with `--box 40,60,110,120` as `--box 40 60 110 120`, for every option of several numbers.

    Raises:
        click.UsageError: An option has more or fewer numbers than it takes.
    """
    normalize = context.token_normalize_func or str
    options = {
        name: option
        for option in command.params
        if isinstance(option, click.Option) and option.nargs > 1 and isinstance(option.type, _NUMBERS)
        for name in (*option.opts, *getattr(option, "former", ()))
    }
    waiting, parsed = list(arguments), list[str]()
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            return [*parsed, argument, *waiting]
        name, equals, value = argument.partition("=")
        option = options.get(normalize(name))
        if option is None:
            parsed.append(argument)
            continue
        if equals:
            waiting.insert(0, value)
        values, numbers = list[str](), list[str]()
        while waiting and len(numbers) < option.nargs and not waiting[0].startswith("--"):
            values.append(waiting.pop(0))
            numbers += [number for number in re.split(r"[,\s]+", values[-1]) if number] or [values[-1]]
        if any("," in text for text in values) and len(numbers) != option.nargs:
            example = " ".join(_EXAMPLE[: option.nargs])
            raise click.UsageError(
                f"{name} takes {option.nargs} numbers, as in {name} {example}; not {' '.join(values)!r}."
            )
        parsed += [name, *numbers]
    return parsed


def refuse_repeated(context: click.Context, arguments: Sequence[str]) -> None:
    """Every option that takes one value is given once: of two, click would silently keep the last.

    Raises:
        click.UsageError: It names the option.
    """
    _, _, order = context.command.make_parser(context).parse_args(list(arguments))
    for option in dict.fromkeys(order):
        if not isinstance(option, click.Option) or option.multiple or option.count:
            continue
        if option.is_flag and not option.secondary_opts:
            continue
        times = order.count(option)
        if times > 1:
            raise click.UsageError(f"{_name(option)} is given {times} times: give it once.")


def plain(text: str) -> str:
    """A message on one line, without control characters, and shortened in the middle if it is very long."""
    line = " ".join(printable(part) if part else "" for part in _ONE_SPACE.sub(" ", text).strip().split(" "))
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: _LONGEST_LINE - _KEPT_AT_THE_END - 5]} ... {line[-_KEPT_AT_THE_END:]}"


def _name(option: click.Option) -> str:
    return max(option.opts, key=lambda name: name.startswith("--"))


__all__ = ["plain", "refuse_repeated", "split_numbers"]
