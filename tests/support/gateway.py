"""A gateway in this process, before an echo worker and a real store, with clients of it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI

from gateway_service.app import RunningGateway, running_gateway
from gateway_service.settings import GatewaySettings
from shared.quotas.gate import QuotaGate
from tests.support.checkpoints import adapter
from tests.support.echo_model import EchoModel, echo_model
from tests.support.echo_worker import ADDRESS, RunningWorker, run_worker
from tests.support.store import StoreClient, open_store
from worker_service.adapters.known_reference import ReferenceLimits

REFERENCES = ReferenceLimits(staleness_s=0.05, patience_s=0.5, swap_retry_s=0.1)


@dataclass
class Served:
    """Everything that a request goes through."""

    gateway: RunningGateway
    worker: RunningWorker
    store: StoreClient
    digests: dict[str, str]
    stack: AsyncExitStack

    @property
    def url(self) -> str:
        """Address of the gateway."""
        return f"http://{ADDRESS}:{self.gateway.server.port}"

    @property
    def model(self) -> EchoModel:
        """What answers."""
        return self.worker.model

    async def sdk(self, **options: Any) -> AsyncOpenAI:
        """OpenAI's client; it tries once unless the options say otherwise."""
        options = {"max_retries": 0, "timeout": 20.0, **options}
        client = AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", **options)
        return await self.stack.enter_async_context(client)

    async def http(self) -> httpx2.AsyncClient:
        """A plain client."""
        return await self.stack.enter_async_context(httpx2.AsyncClient(base_url=self.url, timeout=60.0))


@asynccontextmanager
async def open_gateway(**settings: Any) -> AsyncIterator[RunningGateway]:
    """A gateway on a free port."""
    defaults = {"gateway_listen": f"{ADDRESS}:0", "grace_s": 1.0, "gateway_lora_updates": True}
    async with running_gateway(GatewaySettings(**{**defaults, **settings})) as gateway:
        yield gateway


@asynccontextmanager
async def served(
    folder: Path, model: EchoModel | None = None, gate: QuotaGate | None = None, **settings: Any
) -> AsyncIterator[Served]:
    """A gateway as its one worker's sidecar; the store has the adapters `bot` and `other`."""
    model = model or echo_model()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(folder / "store"))
        await store.register(model.spec)
        digests = {}
        for seed, name in enumerate(("bot", "other")):
            draft = adapter(seed=seed, spec=model.spec)
            digests[name] = (await store.push(draft, name, base_model=model.spec.digest)).digest
        worker = await stack.enter_async_context(run_worker(model, store.endpoint, references=REFERENCES, gate=gate))
        options: dict[str, Any] = {"gateway_worker": f"{ADDRESS}:{worker.server.port}", "store": store.endpoint}
        gateway = await stack.enter_async_context(open_gateway(**{**options, **settings}))
        yield Served(gateway, worker, store, digests, stack)
