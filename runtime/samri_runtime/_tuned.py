"""What `samri-bench --tune` found best for a bundle on this machine, kept for later runs.

One small JSON file in the user's configuration folder. An entry counts only for the very bundle, machine and ONNX
Runtime that it was measured with; a stale one is ignored, and said so.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samri.bundle import Bundle
from samri.errors import OutputError, ProviderError
from samri.manifest import PRECISIONS, Precision
from samri.process import usable_cores
from samri.staging import staged_file
from samri_runtime.providers import PROVIDERS, Provider
from samri_runtime.providers._processor import processor
from samri_runtime.providers._session import prove_once
from samri_runtime.providers._wheels import installed_wheels

_VERSION = 1


@dataclass(frozen=True)
class Tuned:
    """The best settings for a bundle here.

    Attributes:
        provider: Never `auto`.
        precision: Of the graphs.
        threads: Of the CPU; None for one a core.
        options: Passed to the provider.
        mean_dice: Of its masks with those of fp32 on the CPU, when it was measured.
    """

    provider: Provider
    precision: Precision
    threads: int | None
    options: Mapping[str, str]
    mean_dice: float

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        options = "".join(f", {key}={value}" for key, value in self.options.items())
        return f"{self.provider}, {self.precision}{threads}{options}"


def tuned_file() -> Path:
    """Where the settings are kept: `SAMRI_CONFIG_DIR`, else a folder where the system has a user's settings."""
    if chosen := os.environ.get("SAMRI_CONFIG_DIR"):
        folder = Path(chosen).expanduser()
    elif sys.platform == "win32":
        folder = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "samri"
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support" / "samri"
    else:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "samri"
    return folder / "tuned.json"


def recall(bundle: Bundle) -> tuple[Tuned | None, list[str]]:
    """The settings that were measured best for a bundle, and plain lines about them or about why there are none."""
    try:
        path = tuned_file()
        text = path.read_text(encoding="utf-8")
    except (OSError, RuntimeError):  # Nothing was tuned here, or there is no home.
        return None, []
    entries = _entries(text)
    if entries is None:
        return None, [f"{path} is damaged and was ignored: run samri-bench --tune again, or delete it"]
    entry = entries.get(_key(bundle))
    if entry is None:
        return None, []
    tuned = _tuned(entry)
    if tuned is None or entry.get("wheels") != _wheels():
        then, now = ", ".join(map(str, entry.get("wheels") or ["?"])), ", ".join(_wheels())
        return None, [
            f"the settings tuned for {bundle.manifest.name} are for {then}, not for {now}, and were ignored: "
            "run samri-bench --tune again"
        ]
    try:
        prove_once(tuned.provider)
    except ProviderError as error:
        return None, [f"{error}; the settings tuned for {bundle.manifest.name} were ignored"]
    return tuned, [f"tuned for this machine: {tuned} (samri-bench --tune; {path})"]


def remember(bundle: Bundle, tuned: Tuned) -> Path:
    """Keep settings for later runs, in place of earlier ones for the same bundle and machine; the file they are in.

    Raises:
        OutputError: It can't be written.
    """
    try:
        path = tuned_file()
        entries = (_entries(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"cannot keep the tuned settings: {error}: set SAMRI_CONFIG_DIR to a folder of yours"
        ) from error
    entries[_key(bundle)] = {"model": bundle.manifest.name, "wheels": _wheels(), **asdict(tuned)}
    with staged_file(path) as staged:
        staged.write_text(json.dumps({"version": _VERSION, "tuned": entries}, indent=2) + "\n", encoding="utf-8")
    return path


def _entries(text: str) -> dict[str, Any] | None:
    try:
        values = json.loads(text)
    except ValueError:
        return None
    if not isinstance(values, dict) or values.get("version") != _VERSION or not isinstance(values.get("tuned"), dict):
        return None
    return {key: entry for key, entry in values["tuned"].items() if isinstance(entry, dict)}


def _tuned(entry: Mapping[str, Any]) -> Tuned | None:
    provider = next((name for name in PROVIDERS if name == entry.get("provider") and name != "auto"), None)
    precision = next((name for name in PRECISIONS if name == entry.get("precision")), None)
    threads, dice, options = entry.get("threads"), entry.get("mean_dice"), entry.get("options")
    if provider is None or precision is None or not isinstance(dice, int | float) or not isinstance(options, dict):
        return None
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        return None
    return Tuned(provider, precision, threads, {str(key): str(value) for key, value in options.items()}, float(dice))


def _key(bundle: Bundle) -> str:
    """The bundle and the machine, as a hash that names neither: a home folder may be shared by many machines."""
    # Not the driver's own list: asking it would start CUDA in a process that may want to fork.
    gpus = sorted(device.name for device in Path("/dev").glob("nvidia[0-9]*"))
    here = [bundle.sha256, platform.system(), processor(), usable_cores(), gpus]
    return hashlib.sha256(json.dumps(here).encode()).hexdigest()[:32]


def _wheels() -> list[str]:
    return [str(wheel) for wheel in installed_wheels()]
