"""The packages of the `io` extra, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from samri.errors import MissingDependencyError

_PACKAGES = {"nibabel": "nibabel", "cv2": "opencv-python-headless"}


def require(module: str) -> Any:
    """Import `nibabel` or `cv2`, or say how to install it.

    Raises:
        MissingDependencyError: The package isn't installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"reading and writing images needs {_PACKAGES[module]} ({error}): pip install 'samri[io]'"
        ) from error
