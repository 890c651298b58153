"""The options that several commands have, each defined once, and the types of paths that options take."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from samri.errors import ProviderError
from samri.manifest import PRECISIONS
from samri.preprocessing import PROFILE_NAMES
from samri_runtime.providers import Provider, parse_provider_options

# `Path.is_file` and its kin raise errors for a name that is too long, those of os.path don't.
# ruff: noqa: PTH112, PTH113

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class RenamedOption(click.Option):
    """An option that also answers to former spellings, which the help doesn't show.

    Args:
        former: The spellings, such as `--shard`.
    """

    def __init__(self, *arguments: Any, former: Sequence[str], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.former = list(former)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Tell the parser all spellings."""
        shown = self.opts
        self.opts = [*shown, *self.former]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = shown


def renamed_option(*names: str, former: Sequence[str], **settings: Any) -> _Decorator:
    """`click.option` with former spellings; see `RenamedOption`."""
    return click.option(*names, cls=RenamedOption, former=former, **settings)


class GivenPath(click.Path):
    """A path; an empty one, which a script's unset variable makes, isn't taken for the current folder."""

    def __init__(self, path_type: type = Path) -> None:
        super().__init__(path_type=path_type)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text as a path."""
        if value in ("", b""):
            self.fail("the path is empty.", param, ctx)
        return super().convert(value, param, ctx)


_SUFFIXES_OF_FILES = (
    *(".nii", ".gz", ".mgz", ".nrrd", ".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff"),
    *(".json", ".csv", ".md", ".txt", ".npz", ".npy", ".onnx", ".pth", ".pt", ".safetensors"),
)


class OutputFolder(GivenPath):
    """A folder to make or to write into; a name that looks like a file's is wrong usage, unless there is such a folder.

    Programs that write one file take its name in this place, and a folder called `mask.nii.gz` helps nobody.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text as a path."""
        path = super().convert(value, param, ctx)
        if path.name.lower().endswith(_SUFFIXES_OF_FILES) and not os.path.isdir(path):
            self.fail(f"{path} looks like a file: give a folder.", param, ctx)
        return path


class GivenModel(GivenPath):
    """A bundle's folder or a model's name, as it was typed: `./samri-tiny` and `samri-tiny` are two things."""

    def __init__(self) -> None:
        super().__init__(path_type=str)


class GivenFolder(GivenPath):
    """A folder to read; a file in its place is wrong usage."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text as a path."""
        path = super().convert(value, param, ctx)
        if os.path.isfile(path):
            self.fail(f"{path} is a file: give a folder.", param, ctx)
        return path


class GivenFile(GivenPath):
    """A file to read; a folder in its place is wrong usage."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text as a path."""
        path = super().convert(value, param, ctx)
        if os.path.isdir(path):
            self.fail(f"{path} is a folder: give a file.", param, ctx)
        return path


def provider_option(*names: str, **settings: Any) -> _Decorator:
    """`--provider NAME`; `names` add spellings or the parameter's name, `settings` replace those of the option."""
    return click.option(
        "--provider",
        *names,
        **{
            "type": click.Choice(get_args(Provider)),
            "default": "auto",
            "show_default": True,
            "help": "Execution provider. The command fails if it cannot be used; only auto falls back to another.",
            **settings,
        },
    )


def provider_settings_option(**settings: Any) -> _Decorator:
    """`--provider-option KEY=VALUE`, repeatable; the command gets a dictionary, `provider_options`."""
    return click.option(
        "--provider-option",
        "provider_options",
        multiple=True,
        callback=_provider_options,
        metavar="KEY=VALUE",
        **{"help": "Option passed unchanged to the execution provider of ONNX Runtime. Repeatable.", **settings},
    )


def _provider_options(_context: click.Context, _option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    try:
        return parse_provider_options(pairs)
    except ProviderError as error:
        raise click.BadParameter(f"{error}.") from error


def precision_option(*names: str, **settings: Any) -> _Decorator:
    """`--precision NAME`: arithmetic, never storage."""
    return click.option(
        "--precision",
        *names,
        **{
            "type": click.Choice(PRECISIONS),
            "default": "fp32",
            "show_default": True,
            "help": "Precision of the model's arithmetic.",
            **settings,
        },
    )


def threads_option(**settings: Any) -> _Decorator:
    """`--threads N`."""
    return click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        metavar="N",
        **{"help": "Number of CPU threads.  [default: one per core]", **settings},
    )


def profile_option(**settings: Any) -> _Decorator:
    """`--profile NAME`."""
    return click.option(
        "--profile",
        type=click.Choice(PROFILE_NAMES),
        **{"help": "Preprocessing that the weights were trained with.  [default: samri]", **settings},
    )


def overwrite_option(help: str) -> _Decorator:
    """`--overwrite`, with what it replaces."""
    return click.option("--overwrite", is_flag=True, help=help)


def json_option(help: str) -> _Decorator:
    """`--json`, with what it prints; the command gets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=help)
