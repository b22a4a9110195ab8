"""A store in memory and a worker over it."""

from collections.abc import AsyncIterator

import pytest

from shared.server.grpc_server import ServerOptions, serve
from tests.support.echo_model import EchoModel, echo_model
from tests.support.echo_worker import Calls, RunningWorker, run_worker
from tests.support.memory_store import MemoryStore
from worker_service.adapters.known_reference import ReferenceLimits


@pytest.fixture
def model() -> EchoModel:
    return echo_model()


@pytest.fixture
def references() -> ReferenceLimits:
    return ReferenceLimits(staleness_s=0.05, patience_s=0.5, swap_retry_s=0.1)


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def store_endpoint(store: MemoryStore) -> AsyncIterator[str]:
    async with serve(store.services(), ServerOptions(grace_s=0.1), observers=()) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
async def running(model: EchoModel, store_endpoint: str, references: ReferenceLimits) -> AsyncIterator[RunningWorker]:
    async with run_worker(model, store_endpoint, references=references) as running:
        yield running


@pytest.fixture
async def calls(running: RunningWorker) -> Calls:
    return await running.calls()
