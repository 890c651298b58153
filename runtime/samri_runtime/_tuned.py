"""The settings that `samri-bench --tune` found fastest for a bundle on this machine.

One small JSON file in the user's configuration folder holds them. An entry counts only for the bundle, machine and ONNX
Runtime that it was measured with; an outdated one is ignored, with a note.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samri.bundle import Bundle
from samri.errors import OutputError, ProviderError, SamriError, printable
from samri.locking import exclusive
from samri.manifest import PRECISIONS, Precision
from samri.opening import open_regular, read_json
from samri.process import usable_cores
from samri.staging import staged_file
from samri_runtime.machine import processor, user_folder
from samri_runtime.providers import PROVIDERS, Provider
from samri_runtime.providers._opening import probe_provider
from samri_runtime.providers._wheels import installed_wheels

_VERSION = 1
_LIMIT = 1_000_000
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Tuned:
    """The best settings for a bundle here.

    Attributes:
        provider: Never `auto`.
        precision: Precision of the graphs.
        threads: CPU threads; None for one per core.
        options: Passed to the provider.
        mean_dice: Mean Dice of its masks with those of fp32 on the CPU.
    """

    provider: Provider
    precision: Precision
    threads: int | None
    options: Mapping[str, str]
    mean_dice: float

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        options = "".join(f", {printable(key, 60)}={printable(value, 60)}" for key, value in self.options.items())
        return f"{self.provider}, {self.precision}{threads}{options}"


def tuned_file() -> Path:
    """Where the settings are kept: `tuned.json` in the user's configuration folder (`SAMRI_CONFIG_DIR`)."""
    return user_folder("config") / "tuned.json"


def load_tuned(bundle: Bundle) -> tuple[Tuned | None, list[str]]:
    """The fastest settings for a bundle, or None; and notes for the user on them, or on why they are ignored."""
    try:
        path = tuned_file()
        path.stat()
    except (OSError, RuntimeError):  # Nothing was tuned here, or there is no home.
        return None, []
    try:
        entry = _read(path)["tuned"].get(_key(bundle))
    except _UnusableError as error:
        return None, [f"the tuned settings were ignored: {error}"]
    if entry is None:
        return None, []
    name = printable(bundle.manifest.name, 100)
    tuned = _tuned(entry)
    if tuned is None:
        return None, [
            f"the settings tuned for {name} in {path} are invalid and were ignored: run samri-bench --tune again"
        ]
    if entry["wheels"] != _wheels():
        then, now = printable(", ".join(entry["wheels"]), 200), ", ".join(_wheels())
        return None, [
            f"the settings tuned for {name} are for {then}, not for {now}, and were ignored: "
            "run samri-bench --tune again"
        ]
    try:
        probe_provider(tuned.provider)
    except ProviderError as error:
        return None, [f"{error}; the settings tuned for {name} were ignored"]
    return tuned, [f"tuned for this machine: {tuned} (samri-bench --tune; {path})"]


def check_can_save() -> None:
    """Check before the measurement that its result can be saved.

    Raises:
        OutputError: The folder can't be created or isn't writable, or in place of the file there is a link or a folder.
    """
    with _config_errors():
        path = tuned_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
    _refuse_foreign(path)


def save_tuned(bundle: Bundle, tuned: Tuned, *, progress: Callable[[str], None] = lambda line: None) -> Path:
    """Save settings for later runs, replacing earlier ones for the same bundle and machine; returns the file.

    Other entries are preserved, including those that another process writes at the same time. A damaged file is
    renamed, and `progress` is called with its new name.

    Raises:
        OutputError: The file can't be written, or isn't one that this program wrote.
    """
    check_can_save()
    path = tuned_file()
    entry = {"model": bundle.manifest.name, "wheels": _wheels(), **asdict(tuned)}
    busy = f"another process has been writing {path} for {_PATIENCE_S:g} s: try again"
    with exclusive(path.with_suffix(".lock"), busy, wait=_PATIENCE_S):
        _refuse_foreign(path)
        try:
            values: dict[str, Any] = _read(path) if path.exists() else {"version": _VERSION, "tuned": {}}
            values["tuned"][_key(bundle)] = entry
            text = json.dumps(values, indent=2)
        except (_UnusableError, ValueError, RecursionError):
            progress(f"{path} was damaged or of another version: it is now {_set_aside(path)}")
            text = json.dumps({"version": _VERSION, "tuned": {_key(bundle): entry}}, indent=2)
        with staged_file(path) as staged:
            staged.write_text(text + "\n", encoding="utf-8")
    return path


class _UnusableError(SamriError):
    """The file of settings is damaged or of another version."""


def _read(path: Path) -> dict[str, Any]:
    remedy = "run samri-bench --tune again, or delete it"
    values = read_json(path, error=_UnusableError, remedy=remedy, limit=_LIMIT)
    if not isinstance(values, dict) or values.get("version") != _VERSION or not isinstance(values.get("tuned"), dict):
        raise _UnusableError(f"{path} is damaged: {remedy}")
    return values


def _refuse_foreign(path: Path) -> None:
    if path.is_symlink():
        raise OutputError(f"{path} is a symbolic link, which is not followed: remove it, or set SAMRI_CONFIG_DIR")
    if path.exists():
        open_regular(path, error=OutputError).close()


def _set_aside(path: Path) -> Path:
    """Rename a file to an unused name; the caller holds the lock."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"tuned.damaged-{number}.json")):
        number += 1
    with _config_errors():
        path.rename(aside)
    return aside


@contextlib.contextmanager
def _config_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"cannot keep the tuned settings: {error}: set SAMRI_CONFIG_DIR to a folder you own"
        ) from error


def _tuned(entry: Any) -> Tuned | None:
    """The settings in an entry, or None if any part of it isn't as `save_tuned` writes it."""
    if not isinstance(entry, dict):
        return None
    provider = next((name for name in PROVIDERS if name == entry.get("provider") and name != "auto"), None)
    precision = next((name for name in PRECISIONS if name == entry.get("precision")), None)
    threads: Any = entry.get("threads")
    dice: Any = entry.get("mean_dice")
    options: Any = entry.get("options")
    if provider is None or precision is None or not _is_number(dice, 0, 1) or not _is_texts(options):
        return None
    if threads is not None and not (_is_number(threads, 1, 1024) and isinstance(threads, int)):
        return None
    wheels = entry.get("wheels")
    if not isinstance(wheels, list) or not all(isinstance(wheel, str) for wheel in wheels):
        return None
    return Tuned(provider, precision, threads, options, float(dice))


def _is_number(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_texts(value: Any) -> bool:
    """Whether these can be a provider's options: at most 100 short texts by name."""
    return (
        isinstance(value, dict)
        and len(value) <= 100
        and all(isinstance(text, str) and len(text) <= 1000 for pair in value.items() for text in pair)
    )


def _key(bundle: Bundle) -> str:
    """A hash of the bundle and the machine: many machines may share a home folder."""
    # Not from the driver: querying it would initialize CUDA, after which a process can't fork.
    gpus = sorted(device.name for device in Path("/dev").glob("nvidia[0-9]*"))
    here = [bundle.sha256, platform.system(), processor(), usable_cores(), gpus]
    return hashlib.sha256(json.dumps(here).encode()).hexdigest()[:32]


def _wheels() -> list[str]:
    return [str(wheel) for wheel in installed_wheels()]
