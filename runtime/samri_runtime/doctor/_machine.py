"""What the doctor tells of the machine: versions, processor, NVIDIA GPUs."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from samri import __version__
from samri_runtime.providers._nvidia import nvidia_driver
from samri_runtime.providers._processor import processor


def machine() -> dict[str, Any]:
    """Plain JSON values; nothing that tells one machine or user from another of the same kind."""
    driver = nvidia_driver()
    return {
        "samri": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "nvidia": {"driver": driver.installed, "cuda": driver.cuda_version, "gpus": list(driver.gpus)},
    }
