"""Where a measurement was made: without this, a figure says nothing."""

from __future__ import annotations

import datetime
from typing import Any

from samri.bundle import Bundle
from samri.errors import printable
from samri.process import usable_cores
from samri_runtime.machine import machine
from samri_runtime.providers import load_onnxruntime
from samri_runtime.providers._wheels import installed_wheels


def environment(bundle: Bundle) -> dict[str, Any]:
    """Machine, wheels and model, as plain JSON values; nothing that names a user or a folder."""
    manifest = bundle.manifest
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": {**machine(), "usable_cores": usable_cores()},
        "onnxruntime": load_onnxruntime().__version__,
        "wheels": [str(wheel) for wheel in installed_wheels()],
        "model": {
            "name": manifest.name,
            "backbone": manifest.backbone,
            "image_size": manifest.image_size,
            "sha256": bundle.sha256,
        },
    }


def environment_lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    here, model = found["machine"], found["model"]
    name, backbone = printable(model["name"], 200), printable(model["backbone"], 200)
    gpus = f"; GPUs {', '.join(here['nvidia']['gpus'])}" if here["nvidia"]["gpus"] else ""
    return [
        f"{name}: {backbone} at {model['image_size']}, manifest {model['sha256'][:16]}",
        f"{here['processor']}, {here['usable_cores']} of {here['cores']} cores{gpus}; {here['system']}",
        f"samri {here['samri']}, Python {here['python']}, numpy {here['numpy']}, {', '.join(found['wheels'])}; "
        f"{found['date']}",
    ]
