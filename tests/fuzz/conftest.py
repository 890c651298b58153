"""What all fuzz tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

# Random inputs in processes that are killed: too slow for `make test-fast`.
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def fuzz_seed(request: pytest.FixtureRequest) -> int:
    """What decides all inputs."""
    return int(request.config.getoption("fuzz_seed"))
