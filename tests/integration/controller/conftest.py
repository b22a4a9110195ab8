"""A controller between a stand-in for the Kubernetes API and a real store, over real sockets."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controller_service.app import Controller, running_controller
from controller_service.settings import ControllerSettings
from hotslot.backoff import Backoff
from hotslot.clients.store import StoreClient as Client
from tests.support.checkpoints import adapter
from tests.support.kubernetes_api_server import ApiServer, api_server
from tests.support.store import StoreClient, open_store
from tests.support.waiting import until

QUICK = Backoff(0.02, 0.1)


@dataclass
class Cluster:
    api: ApiServer
    store: StoreClient
    client: Client
    folder: Path
    stack: AsyncExitStack

    async def controller(self, **settings: Any) -> Controller:
        """One more controller."""
        chosen = {
            "store": self.store.endpoint,
            "kubernetes_url": self.api.url,
            "kubernetes_token_file": self.api.token_file,
            "kubernetes_ca_file": None,
            "kubernetes_namespace": "ml",
            "resync_s": 0.2,
            **settings,
        }
        return await self.stack.enter_async_context(running_controller(ControllerSettings(**chosen), QUICK))

    def source(self, name: str, **made: Any) -> str:
        """The URI of a new checkpoint on the store's machine."""
        adapter(**made).write(self.folder / "imports" / name)
        return f"dir:{self.folder / 'imports' / name}"

    async def until_phase(self, name: str, phase: str) -> dict[str, Any]:
        """The status once it has the phase for the present generation."""

        def is_there() -> bool:
            status = self.api.status(name)
            generation = self.api.resources[name]["metadata"]["generation"]
            return status.get("phase") == phase and status.get("observedGeneration") == generation

        await until(is_there)
        return self.api.status(name)

    async def digest_of(self, reference: str) -> str:
        return (await self.client.resolve(reference)).version.digest


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Cluster]:
    (folder / "imports").mkdir()
    async with (
        AsyncExitStack() as stack,
        api_server(folder) as api,
        open_store(folder / "data", import_roots=[str(folder / "imports")]) as store,
        Client(store.endpoint) as client,
    ):
        await store.register()
        async with stack:
            yield Cluster(api, store, client, folder, stack)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as it:
        yield it
