"""Tests that run programs confined are skipped where nothing can be."""

import pytest

from core.errors import UserError
from core.execution.sandbox import Ended, confinement


@pytest.fixture(scope="session", autouse=True)
def confined() -> Ended:
    try:
        return confinement()
    except UserError as error:
        pytest.skip(str(error))
