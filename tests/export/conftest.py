"""Bundles that several export tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from samri.bundle import Bundle
from samri_export import export_bundle
from tests.support.sessions import made_once


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs `contract_bundle` is slow, for its making takes ten seconds."""
    for item in items:
        if "contract_bundle" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def contract_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Bundle:
    """`checkpoint` as a verified bundle with both of Meta's interfaces. Don't write into it."""

    def export(folder: Path) -> None:
        export_bundle(checkpoint, folder, profile="sam", contracts=("sam", "sam-multi"), verify="quick")

    return Bundle.open(made_once(tmp_path_factory, "contract", export))
