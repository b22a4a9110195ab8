"""A real store that each test may write to."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import adapter
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.store import StoreClient, open_store
from tests.support.store_process import StoreForks, store_forks


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoreClient]:
    """A store of this test alone, that knows the tiny base model."""
    async with open_store(tmp_path / "data", import_roots=[str(tmp_path / "imports")]) as client:
        await client.register()
        yield client


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub with one repository."""
    with fake_hub() as server:
        server.repositories["acme/bot"] = {**adapter().files(), "README.md": b"# hello", "adapter_model.bin": b"\x80"}
        yield server


@pytest.fixture(scope="session")
def forks() -> Iterator[StoreForks]:
    """Starts stores as processes of their own."""
    with store_forks() as parent:
        yield parent
