"""A gateway as the sidecar of an echo worker, one for each module; its tests share the event loop."""

from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.support.gateway import Served, served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sdk(gateway: Served) -> AsyncOpenAI:
    return await gateway.sdk()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(gateway: Served) -> httpx2.AsyncClient:
    return await gateway.http()
