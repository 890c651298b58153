"""The packages of the `io` extra, imported when they are needed."""

from __future__ import annotations

import sys
from typing import Any, Literal

from samri.errors import MissingDependencyError

_PACKAGES = {"nibabel": "nibabel", "cv2": "opencv-python-headless"}


def require(module: Literal["nibabel", "cv2"]) -> Any:
    """Import `nibabel` or `cv2`, or say how to install it.

    Raises:
        MissingDependencyError: The package isn't installed.
    """
    try:
        # Statements rather than names: programs that freeze an application look for those.
        if module == "nibabel":
            import nibabel

            return nibabel
        import cv2

        return cv2
    except ImportError as error:
        way_out = (
            f"freeze the program again with PyInstaller's --hidden-import {module}"
            if getattr(sys, "frozen", False)
            else "pip install 'samri[io]'"
        )
        raise MissingDependencyError(
            f"reading and writing images needs {_PACKAGES[module]} ({error}): {way_out}"
        ) from error
