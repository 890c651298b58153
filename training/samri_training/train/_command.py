"""`samri-train`: parse, call `train`, print."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click

from samri.errors import SamriError
from samri_runtime.cli import GivenPath, OutputFolder, Stages, command, emit, json_option, say
from samri_training.extras import require_training_packages
from samri_training.train._settings import Settings, described, read_config

_AMP = "samri.amp"


def _options(function: Callable[..., None]) -> Callable[..., None]:
    """An option for each setting, with its type, choices and help."""
    defaults = Settings()
    for name, (kind, setting) in reversed(described().items()):
        flag = f"--{name.replace('_', '-')}"
        default = getattr(defaults, name)
        shown = {True: "on", False: "off"}[default] if kind is bool else default
        # The defaults stand in Settings alone: here None means "not given".
        settings: dict[str, Any] = {
            "help": setting.text + ("" if shown is None else f"  [default: {shown}]"),
            "default": None,
        }
        plain = next((option for option in get_args(kind) if option is not NoneType), kind) if _optional(kind) else kind
        if kind is bool:
            flag = f"{flag}/--no-{flag[2:]}"
        elif name == "labels_per_slice":
            settings |= {"type": _CountOrAll(), "metavar": "N|all"}
        elif get_origin(plain) is Literal:
            settings["type"] = click.Choice(get_args(plain))
        else:
            settings["type"] = _path_type(name) if plain is Path else plain
        if name == "amp":
            settings |= {"is_flag": False, "flag_value": "bf16", "callback": _last_amp}
        function = click.option(flag, name, **settings)(function)
    return function


def _last_amp(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Callback of `--amp` and `--no-amp`: the one that comes last counts, so that it can follow a script's own."""
    if value:
        context.meta[_AMP] = "off" if option.name == "no_amp" else value


def _path_type(name: str) -> click.Path:
    return OutputFolder() if name == "save_dir" else GivenPath()


class _CountOrAll(click.ParamType):  # type: ignore[type-arg]
    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or `all`."""
        return value if value == "all" else click.INT.convert(value, param, ctx)


def _optional(kind: Any) -> bool:
    return NoneType in get_args(kind)


@command("samri-train")
@_options
@click.option("--no-amp", is_flag=True, hidden=True, callback=_last_amp)
@click.option(
    "--config",
    type=GivenPath(),
    metavar="FILE",
    help="YAML file of settings, or one that comes with SAMRI: published, quick or one_dataset.",
)
@click.option(
    "--resume",
    type=GivenPath(),
    metavar="PATH",
    help="Run to resume, with its own settings: its folder or last.pth.",
)
@json_option("Print the outcome as JSON instead of the path of best.pth.")
@click.pass_context
def main(context: click.Context, /, config: Path | None, resume: Path | None, as_json: bool, **options: Any) -> None:
    """Fine-tune SAM's mask decoder on stored embeddings.

    For several GPUs or nodes start it with torchrun. Options override the --config file, which overrides the settings
    of a resumed run, which override the defaults.

    Example: samri-train --embedding-dir embeddings --checkpoint sam_vit_b_01ec64.pth --save-dir run
    """
    del options["no_amp"]
    options["amp"] = context.meta.get(_AMP)
    first = int(os.environ.get("RANK", "0")) == 0
    with Stages() if first else contextlib.nullcontext() as stages:
        if stages is not None:
            stages.begin("loading PyTorch")
        try:
            require_training_packages()
            settings = _settings(config, resume, options)
        except SamriError:
            if first:
                raise
            context.exit(1)  # All processes have the same command line; one line about it is enough.
        from samri_training.train._processes import StoppedWithOthersError
        from samri_training.train._run import train

    try:
        outcome = train(settings, resume=resume, say=say)
    except StoppedWithOthersError:
        context.exit(1)
    if first:
        emit(json.dumps(outcome.to_json()) if as_json else f"{outcome.folder / 'best.pth'}")


def _settings(config: Path | None, resume: Path | None, options: dict[str, Any]) -> Settings:
    values: dict[str, Any] = {}
    if resume is not None:
        from samri_training.train._last import read_last

        last = read_last(resume)
        # Its folder may have been moved since.
        values |= last.settings.to_json() | {"save_dir": str(last.path.parent)}
    if config is not None:
        # Checked by itself first, so that an error names the file.
        read = read_config(config)
        Settings.of(read, str(config))
        values |= {str(name).replace("-", "_"): value for name, value in read.items()}
    named = {name: value for name, value in options.items() if value is not None}
    return Settings.of(values | named, "samri-train")
