"""What the options of `samri-evaluate` ask for: models by name, and settings of one or of all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from samri.manifest import FILE_NAME, PRECISIONS
from samri.preprocessing import PROFILE_NAMES, says_medsam
from samri_runtime.models import locate
from samri_training.evaluate._models import ModelRequest

_T = TypeVar("_T")


def requested_models(
    models: Sequence[str], profiles: Sequence[str], precisions: Sequence[str], bases: Sequence[str]
) -> list[ModelRequest]:
    """Models from `NAME=PATH` or `PATH`, with their settings from `NAME=VALUE` or, for all that can have it, `VALUE`.

    Raises:
        click.UsageError: Two models of one name, or a setting of a model that isn't there or that can't have it.
    """
    requests = [_name_and_path(text) for text in models]
    names = [request.name for request in requests]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"two models are called {name!r}: tell them apart with --model NAME=PATH.")
    checkpoints = [request.name for request in requests if request.is_checkpoint]
    bundles = [request.name for request in requests if not request.is_checkpoint]
    profile = _settings("--profile", profiles, names, checkpoints, lambda text: _choice(text, PROFILE_NAMES))
    precision = _settings("--precision", precisions, names, bundles, lambda text: _choice(text, PRECISIONS))
    base = _settings("--base", bases, names, checkpoints, Path)
    for name in checkpoints:
        path = next(request.path for request in requests if request.name == name)
        if says_medsam(name, path, base.get(name)) and name not in profile:
            raise click.UsageError(
                f"{path} looks like MedSAM, whose preprocessing differs from SAM's: add --profile {name}=medsam "
                "(or samri, if it isn't)."
            )
    return [
        ModelRequest(
            request.name,
            request.path,
            profile.get(request.name),
            precision.get(request.name, "auto"),
            base.get(request.name),
        )
        for request in requests
    ]


def requested_label_names(pairs: Sequence[str]) -> dict[int, str]:
    """Names of labels from `NUMBER=NAME`.

    Raises:
        click.UsageError: Not of that form.
    """
    names = {}
    for pair in pairs:
        number, _, name = (part.strip() for part in pair.partition("="))
        if not (number.isdecimal() and name):
            raise click.UsageError(f"--label-name {pair!r} is not of the form NUMBER=NAME.")
        names[int(number)] = name
    return names


def _name_and_path(text: str) -> ModelRequest:
    name, equals, path = text.partition("=")
    # A path may hold an equals sign of its own.
    if equals and name.strip() and path and not Path(text).exists():
        return ModelRequest(name.strip(), locate(path))
    request = ModelRequest("", locate(text))
    if request.is_checkpoint:
        return ModelRequest(request.path.stem, request.path)
    # Resolved, since `.` has a name too.
    folder = Path(os.path.realpath(request.path))
    return ModelRequest(folder.parent.name if folder.name == FILE_NAME else folder.name, request.path)


def _settings(
    option: str, texts: Sequence[str], names: Sequence[str], able: Sequence[str], read: Callable[[str], _T]
) -> dict[str, _T]:
    """The setting of each model that has one; `able` are the models that can."""
    general: dict[str, _T] = {}
    own: dict[str, _T] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                general = dict.fromkeys(able, read(text))
                continue
            if name not in names:
                raise click.UsageError(f"{option} {text}: no model is called {name!r}, only {', '.join(names)}.")
            if name not in able:
                raise click.UsageError(f"{option} {text}: {name!r} is a {_kind(option)}, which can't be given one.")
            own[name] = read(value)
        except ValueError as error:
            raise click.UsageError(f"{option} {text}: {error}.") from error
    return general | own


def _kind(option: str) -> str:
    return "checkpoint" if option == "--precision" else "bundle"


def _choice(text: str, choices: Sequence[_T]) -> _T:
    for choice in choices:
        if choice == text:
            return choice
    raise ValueError(f"{text!r} is none of {', '.join(str(choice) for choice in choices)}")
