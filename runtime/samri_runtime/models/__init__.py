"""Models that come with the package, by name: for first tries, examples and tests, without a download.

`samri-tiny` is a small SAM, trained by this project on slices that were synthesized from label maps. It is a
demonstration and a test fixture, not for clinical use. docs/samri-tiny.md has its figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

from samri.errors import BundleError
from samri.manifest import FILE_NAME

DEFAULT = "samri-tiny"
"""The default model of `samri-run` and `samri.segment`."""

_NAMES = (DEFAULT,)
_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The names of the models that come with the package."""
    return _NAMES


def find(name: str) -> Path:
    """The bundle folder of a model that comes with the package.

    Raises:
        BundleError: There is no model of that name, or this installation lacks its files.
    """
    if name not in _NAMES:
        raise BundleError(f"no model named {name!r} comes with SAMRI, only {', '.join(_NAMES)}")
    folder = _FOLDER / name
    if not (folder / FILE_NAME).is_file():
        remedy = (
            "freeze the program again with PyInstaller's --collect-data samri_runtime"
            if getattr(sys, "frozen", False)
            else "install samri again"
        )
        raise BundleError(f"{folder} is missing, although it comes with SAMRI: {remedy}")
    return folder


def locate(model: str | Path) -> Path:
    """The folder of `model`: a model's name if it is exactly one of `names`, otherwise a path.

    A name always means the model, even where the current folder has a subfolder of that name: `./samri-tiny`, or a
    `Path`, is the subfolder.

    Raises:
        BundleError: This installation lacks the named model's files.
    """
    return find(model) if isinstance(model, str) and model in _NAMES else Path(model)


def notes_on(model: str | Path) -> tuple[str, ...]:
    """Notes for the user on a model that comes with the package; none for other models."""
    if not isinstance(model, str) or model not in _NAMES:
        return ()
    origin = f"the model is {model}, which comes with SAMRI: a demonstration, not for clinical use"
    if (Path(model) / FILE_NAME).is_file():
        return (origin, f"it isn't the model in the folder {model} here: that one is ./{model}")
    return (origin,)


__all__ = ["DEFAULT", "find", "locate", "names", "notes_on"]
