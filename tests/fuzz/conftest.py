"""What all fuzz tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def fuzz_seed(request: pytest.FixtureRequest) -> int:
    """What decides all inputs."""
    return int(request.config.getoption("fuzz_seed"))
