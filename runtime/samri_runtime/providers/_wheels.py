"""Which ONNX Runtime wheels are installed, and whether they get along.

`onnxruntime`, `onnxruntime-gpu`, `onnxruntime-openvino` and the like all install the import package `onnxruntime` over
each other: the last one wins, and removing one leaves the others without files. pip doesn't notice.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samri.errors import MissingDependencyError
from samri.process import TELEMETRY_VARIABLES, forbid_telemetry

# Distributions called onnxruntime-* that hold no runtime of their own, for those whose file list is lost.
_COMPANIONS = re.compile(r"onnxruntime-(ep|extensions|genai|tools|easy|transformers)\b")
_FAMILY = re.compile(r"onnxruntime|ort[-_.]", re.IGNORECASE)
_PLUGIN = re.compile(r"onnxruntime-ep-")
_EXTRAS = {
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "onnxruntime-openvino": "openvino",
    "onnxruntime-migraphx": "rocm",
    "onnxruntime-rocm": "rocm",
    "onnxruntime-directml": "directml",
}


@dataclass(frozen=True)
class Wheel:
    """An installed distribution of the ONNX Runtime family.

    Attributes:
        name: Normalised distribution name, such as `onnxruntime-gpu`.
        version: Its version.
        holds_runtime: It installs the import package `onnxruntime`, which only one wheel can.
        shadowed: Its runtime lies in a later folder of the path than another's, which is imported instead.
    """

    name: str
    version: str
    holds_runtime: bool
    shadowed: bool = False

    @property
    def is_plugin(self) -> bool:
        """A provider that is loaded into another wheel's runtime, such as `onnxruntime-ep-openvino`."""
        return _PLUGIN.match(self.name) is not None

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@functools.cache
def installed_wheels() -> tuple[Wheel, ...]:
    """The ONNX Runtime wheels found on `sys.path`, by name; read once."""
    return wheels_on(sys.path)


def wheels_on(path: Sequence[str]) -> tuple[Wheel, ...]:
    """The ONNX Runtime wheels found on `path`, by name."""
    wheels: dict[str, Wheel] = {}
    imported: Path | None = None
    for folder in _metadata_folders(path):
        distribution = importlib.metadata.Distribution.at(folder)
        if "Name" not in distribution.metadata:  # What an interrupted pip left behind.
            continue
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name.startswith(("onnxruntime", "ort-")) and name not in wheels:
            holds_runtime = _holds_runtime(distribution, name)
            if holds_runtime:
                imported = imported or folder.parent
            shadowed = holds_runtime and imported != folder.parent
            wheels[name] = Wheel(name, distribution.version, holds_runtime, shadowed)
    return tuple(wheels[name] for name in sorted(wheels))


def _metadata_folders(path: Sequence[str]) -> Iterator[Path]:
    """Folders of packages whose names begin like the family's, in order of `path`.

    By the folders' names alone: `importlib.metadata.distributions` would have every installed package's metadata parsed
    for its name, a fifth of a second where many are installed.
    """
    for place in path:
        try:
            found = sorted(Path(place).iterdir())
        except OSError:  # Python itself allows what isn't there, and zip files.
            continue
        for folder in found:
            if _FAMILY.match(folder.name) and folder.suffix.lower() in (".dist-info", ".egg-info"):
                yield folder


def conflicting(wheels: Sequence[Wheel]) -> tuple[Wheel, ...]:
    """The wheels that overwrite each other: none, or two and more."""
    runtimes = tuple(wheel for wheel in wheels if wheel.holds_runtime and not wheel.shadowed)
    return runtimes if len(runtimes) > 1 else ()


def conflict_line(wheels: Sequence[Wheel], extra: str | None = None) -> str | None:
    """One line about wheels that overwrite each other and how to mend it, or None.

    Args:
        wheels: What is installed.
        extra: The extra of samri to install instead; by default that of the first wheel that isn't the plain CPU one.
    """
    clash = conflicting(wheels)
    if not clash:
        return None
    if extra is None:
        extra = next((_EXTRAS[wheel.name] for wheel in clash if _EXTRAS.get(wheel.name, "cpu") != "cpu"), "cpu")
    names = " and ".join(str(wheel) for wheel in clash)
    return f"{names} are installed over each other: {replace_line(clash, extra)}"


def replace_line(wheels: Sequence[Wheel], extra: str) -> str:
    """The pip lines that put the wheel of `samri[extra]` in the place of the runtimes and plug-ins in `wheels`."""
    install = f"pip install 'samri[{extra}]'"
    names = " ".join(wheel.name for wheel in wheels if wheel.holds_runtime or wheel.is_plugin)
    return f"run pip uninstall -y {names}, then {install}" if names else f"run {install}"


def load_onnxruntime() -> Any:
    """The module `onnxruntime`, with its telemetry off.

    Raises:
        MissingDependencyError: It isn't installed, or what is installed can't be imported.
    """
    forbid_telemetry()
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise MissingDependencyError(_damaged(str(error))) from error
        raise MissingDependencyError(
            "ONNX Runtime isn't installed: run pip install 'samri[cpu]', or pip install 'samri[gpu]' for NVIDIA GPUs"
        ) from error
    except ImportError as error:
        raise MissingDependencyError(_damaged(str(error))) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise MissingDependencyError(_damaged("its files are gone, as when one of two wheels was uninstalled"))
    if os.environ.get(TELEMETRY_VARIABLES[0]) == "1":
        onnxruntime.disable_telemetry_events()  # On Windows, and where a host had imported onnxruntime before.
    return onnxruntime


def _damaged(reason: str) -> str:
    wheels = installed_wheels()
    mend = conflict_line(wheels) or replace_line(wheels, _extra_of(wheels))
    return f"ONNX Runtime can't be imported ({' '.join(reason.split())}): {mend}"


def _extra_of(wheels: Sequence[Wheel]) -> str:
    return next((_EXTRAS[wheel.name] for wheel in wheels if wheel.name in _EXTRAS), "cpu")


def _holds_runtime(distribution: importlib.metadata.Distribution, name: str) -> bool:
    # Not `distribution.files`, which from Python 3.12 on leaves out files that another wheel's removal took away.
    record = distribution.read_text("RECORD")
    if record is None:
        return _COMPANIONS.match(name) is None
    return any(line.startswith("onnxruntime/__init__.py,") for line in record.splitlines())
