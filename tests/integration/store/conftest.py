"""A real store that each test may write to, or two beside each other."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import adapter
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.several_stores import AlternatingClient, SharedPlace, SharedServices, shared_services
from tests.support.store import StoreClient, open_store
from tests.support.store_process import StoreForks, store_forks


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[SharedServices]:
    """A PostgreSQL and an S3 server for stores beside each other."""
    with shared_services() as found:
        yield found


@pytest.fixture(params=["one store", pytest.param("two stores", marks=pytest.mark.slow)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StoreClient]:
    """A store of this test alone, that knows the tiny base model; or two of one catalog, which are called in turn."""
    settings: dict[str, Any] = {"import_roots": [str(tmp_path / "imports")]}
    async with AsyncExitStack() as stack:
        if request.param == "one store":
            client = await stack.enter_async_context(open_store(tmp_path / "data", **settings))
        else:
            place: SharedPlace = request.getfixturevalue("shared_servers").place(tmp_path)
            one = await stack.enter_async_context(place.store("data", **settings))
            two = await stack.enter_async_context(place.store("other", **settings))
            # A call asks for stubs twice.
            turns = cycle((one.channel, one.channel, two.channel, two.channel))
            client = AlternatingClient(one.channel, channels=turns)
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
