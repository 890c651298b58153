"""The extras of SAMRI: which are installed, and what the others lack, from the metadata of installed packages."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from samri_runtime.providers._wheels import Wheel, replace_line

# "onnxruntime-gpu[cuda]>=1.22; sys_platform == 'linux' and extra == 'gpu'"
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_PLATFORM = re.compile(r"sys_platform\s*==\s*['\"](\w+)['\"]")
_LEAST = re.compile(r">=\s*([\d.]+)")
_FOR_DEVELOPERS = {"dev"}
# Packages that install the same import package.
_INSTEAD = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
}


@dataclass(frozen=True)
class Extra:
    """One extra.

    Attributes:
        name: As in `samri[name]`.
        missing: Packages that are not installed or too old, with the required version.
        install: The command that installs it; None where nothing is missing, or it isn't for this system.
        here: Whether it is for this system.
    """

    name: str
    missing: tuple[str, ...]
    install: str | None
    here: bool = True

    def __str__(self) -> str:
        if not self.here:
            return "not for this system"
        return f"lacks {', '.join(self.missing)}: {self.install}" if self.missing else "installed"


def installed_extras(wheels: Sequence[Wheel]) -> tuple[Extra, ...]:
    """SAMRI's extras; none where SAMRI isn't an installed distribution, as in a frozen program."""
    try:
        requirements = importlib.metadata.requires("samri") or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    return extras_of(requirements, wheels)


def extras_of(
    requirements: Iterable[str], wheels: Sequence[Wheel], version_of: Callable[[str], str | None] | None = None
) -> tuple[Extra, ...]:
    """The extras in a distribution's requirements, by name.

    Args:
        requirements: As `importlib.metadata.requires` gives them.
        wheels: The installed wheels of ONNX Runtime, which an extra with another one replaces.
        version_of: Returns the installed version of a package; by default the one on `sys.path`.
    """
    version_of = version_of or _version
    missing: dict[str, list[str]] = {}
    elsewhere: dict[str, bool] = {}
    for text in requirements:
        match = _REQUIREMENT.fullmatch(text)
        extra = _EXTRA.search(match[3] or "") if match else None
        if match is None or extra is None or extra[1] in _FOR_DEVELOPERS:
            continue
        missing.setdefault(extra[1], [])
        system = _PLATFORM.search(match[3])
        if system is not None and system[1] != sys.platform:
            elsewhere.setdefault(extra[1], True)
            continue
        elsewhere[extra[1]] = False
        name, least = match[1], _LEAST.search(match[2])
        if name.lower() != "samri" and not _suffices(name, least[1] if least else "0", version_of):
            missing[extra[1]].append(f"{name}{'>=' + least[1] if least else ''}")
    return tuple(_extra(name, missing[name], not elsewhere.get(name, False), wheels) for name in sorted(missing))


def as_json(extras: Iterable[Extra]) -> Mapping[str, list[str]]:
    """The packages that each extra lacks, by its name; extras for other systems are left out."""
    return {extra.name: list(extra.missing) for extra in extras if extra.here}


def _extra(name: str, missing: Sequence[str], here: bool, wheels: Sequence[Wheel]) -> Extra:
    if not missing or not here:
        return Extra(name, tuple(missing), None, here)
    brings_runtime = any(package.startswith("onnxruntime") for package in missing)
    return Extra(name, tuple(missing), replace_line(wheels if brings_runtime else (), name))


def _suffices(name: str, least: str, version_of: Callable[[str], str | None]) -> bool:
    versions = [version_of(candidate) for candidate in (name, *_INSTEAD.get(name.lower(), ()))]
    return any(version is not None and _numbers(version) >= _numbers(least) for version in versions)


def _numbers(version: str) -> tuple[int, ...]:
    leading = re.match(r"(?:\d+!)?(\d{1,9}(?:\.\d{1,9})*)", version)
    numbers = [int(number) for number in leading[1].split(".")] if leading else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
