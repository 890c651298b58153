"""Packages of the `train` extra: a command imports what it needs before the work begins."""

from __future__ import annotations

import importlib

from samri.errors import MissingDependencyError

# What a whole run needs, the pictures at its end included.
_TRAINING = ("torch", "monai", "segment_anything", "scipy", "yaml", "matplotlib")


def require_training_packages() -> None:
    """Import what `samri-train` needs, before it opens anything.

    Raises:
        MissingDependencyError: A package can't be imported.
    """
    require_packages("training", *_TRAINING)


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
        except (ImportError, OSError) as error:  # OSError: a library of the system that torch needs is missing.
            raise MissingDependencyError(f"{doing} needs {module} ({error}): pip install 'samri[train]'") from error
