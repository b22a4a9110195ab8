"""A real store that each test may write to."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.store import StoreClient, open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoreClient]:
    """A store of this test alone, that knows the tiny base model."""
    async with open_store(tmp_path / "data", import_roots=[str(tmp_path / "imports")]) as client:
        await client.register()
        yield client
