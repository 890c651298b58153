"""Packages of the `train` extra that a command needs: asked for before the work begins, not after."""

from __future__ import annotations

import importlib

from samri.errors import MissingDependencyError


def require_packages(doing: str, *modules: str) -> None:
    """Import modules, or say what is missing.

    Args:
        doing: What needs them, as the message begins: "evaluating".
        modules: Import names.

    Raises:
        MissingDependencyError: One can't be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingDependencyError(f"{doing} needs {module} ({error}): pip install 'samri[train]'") from error
