"""Clients of what the gateway serves from: one worker, or the fleet that the store's placement service knows."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace

from gateway_service.callers import ACTED_FOR
from hotslot import ChannelOptions, GenerationRequest, HotslotClient, WorkerClient
from hotslot.clients.defaults import DEFAULT_STORE
from hotslot.contract.control import WorkerState
from hotslot.contract.generation import GenerationEvent
from hotslot.errors import HotslotError, InvalidRequestError, NotFoundError, NoWorkersError
from hotslot.ids import DEFAULT_TENANT, TenantId
from hotslot.rpc.pool import Pool
from hotslot.rpc.security import NO_SECURITY, ChannelSecurity
from hotslot.rpc.stub_method import CallHearer
from hotslot.rpc.tenant import CHARGED_KEY, PRINCIPAL_KEY, SCOPES_KEY

BASES_TTL_S = 5.0
"""Time for which the base models that workers serve are believed to be the same."""
AWAY_S = 1.0
LOOK_TIMEOUT_S = 3.0
_BETWEEN = "\n"
MAX_IDLE_TENANTS = 64
"""Tenants whose channels stay open while they ask for nothing; the connections below are shared."""
MAX_IDLE_WATCHED = 64
"""Workers whose status was asked for lately and whose channels stay open, for each caller that asked."""


@dataclass(frozen=True, slots=True)
class ServedBase:
    """A base model that some worker serves now."""

    name: str
    digest: str
    max_tokens: int
    """Longest prompt and answer together."""


class Deployment:
    """The clients of one gateway, by tenant. Belongs to one event loop."""

    def __init__(
        self,
        store: str,
        worker: str,
        security: ChannelSecurity = NO_SECURITY,
        hearer: CallHearer | None = None,
        *,
        charges: bool = False,
    ) -> None:
        """`worker` is the one that all requests go to; empty where the fleet's best one is picked.

        A gateway that `charges` tenants for requests says so to the services that it calls.
        """
        self._hearer = hearer
        self._security = security
        self._mark: tuple[tuple[str, str], ...] = ((CHARGED_KEY, "requests"),) if charges else ()
        self.worker = worker
        self.has_store = bool(store)
        self._store = store or DEFAULT_STORE
        self._clients = Pool(self._dial, MAX_IDLE_TENANTS)
        self._watched = Pool(self._dial_watched, MAX_IDLE_WATCHED)
        self._bases: tuple[ServedBase, ...] = ()
        self._looked_s = -math.inf
        self._failure: HotslotError | None = None
        self._looking = asyncio.Lock()

    def _dial(self, caller: str) -> HotslotClient:
        # Requests say themselves which writes they are to see: a gateway keeps nothing between them.
        return HotslotClient(
            self._store,
            self.worker or None,
            route=not self.worker,
            options=self._options(caller),
            reads_own_writes=False,
        )

    @asynccontextmanager
    async def client(self, tenant: TenantId, *, is_own: bool = False) -> AsyncIterator[HotslotClient]:
        """A caller's client, open until the block is left; with `is_own` the gateway's, which acts for no caller."""
        async with self._clients.use(_caller(tenant, is_own=is_own)) as client:
            yield client

    async def generate(
        self, tenant: TenantId, request: GenerationRequest, base_model: str, timeout_s: float
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Stream a generation; closing the iterator cancels it."""
        async with self.client(tenant) as client:
            stream = client.generate(request, base_model=base_model, timeout_s=timeout_s)
            async with aclosing(stream) as events:
                async for event in events:
                    yield event

    async def bases(self) -> tuple[ServedBase, ...]:
        """Base models that are served now; while no worker answers, those that were.

        Raises what a look raises while none is known: for AWAY_S without another look, so that requests do not queue up
        for one that takes its time.
        """
        async with self._looking:
            age_s = time.monotonic() - self._looked_s
            if age_s > (BASES_TTL_S if self._failure is None else AWAY_S):
                self._failure = None
                try:
                    self._bases = await self._look()
                except HotslotError as exc:
                    self._failure = exc
                self._looked_s = time.monotonic()
            if self._failure is not None and not self._bases:
                raise self._failure.with_traceback(None)
        return self._bases

    async def base_named(self, model: str) -> ServedBase | None:
        """The base model of that name or digest."""
        return next((base for base in await self.bases() if model in (base.name, base.digest)), None)

    async def check(self) -> None:
        """Raise what keeps requests from being served."""
        if self.worker:
            await self._base_at(self.worker)
            return
        own = self.client(DEFAULT_TENANT, is_own=True)
        async with own as client, aclosing(client.placement.list_workers()) as workers:
            async for worker in workers:
                if worker.state is WorkerState.READY:
                    return
        raise NoWorkersError("no worker takes requests")

    async def tell_wanted(self, tenant: TenantId, model: str) -> None:
        """Have the store hear of a request for which there is no worker, so that an autoscaler brings one.

        The store knows if the model is an adapter's name; else it is a base model's.
        """
        if self.worker or not self.has_store:
            return
        async with self.client(tenant) as client:
            pick = client.placement.pick_workers
            try:
                await pick([model], timeout_s=LOOK_TIMEOUT_S)
            except (InvalidRequestError, NotFoundError):
                with suppress(HotslotError):
                    await pick(base_model=model, timeout_s=LOOK_TIMEOUT_S)
            except HotslotError:
                pass

    async def endpoints(self) -> list[str]:
        """Endpoints of the workers that there are now."""
        if self.worker:
            return [self.worker]
        async with self.client(DEFAULT_TENANT, is_own=True) as client:
            return [worker.endpoint async for worker in client.placement.list_workers()]

    @asynccontextmanager
    async def worker_at(self, tenant: TenantId, endpoint: str, *, is_own: bool = False) -> AsyncIterator[WorkerClient]:
        """A caller's client of one worker, for a call or two."""
        async with WorkerClient(endpoint, self._worker_options(_caller(tenant, is_own=is_own))) as worker:
            yield worker

    @asynccontextmanager
    async def watched_worker(self, tenant: TenantId, endpoint: str) -> AsyncIterator[WorkerClient]:
        """A caller's client of one worker that it asks again and again."""
        async with self._watched.use(_BETWEEN.join((endpoint, _caller(tenant)))) as worker:
            yield worker

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(self._clients.close(), self._watched.close())

    def _dial_watched(self, watched: str) -> WorkerClient:
        endpoint, caller = watched.split(_BETWEEN, 1)
        return WorkerClient(endpoint, replace(self._worker_options(caller), max_attempts=1))

    def _worker_options(self, caller: str) -> ChannelOptions:
        return replace(self._options(caller), security=self._security.for_workers())

    def _options(self, caller: str) -> ChannelOptions:
        tenant, name, scopes = caller.split(_BETWEEN)
        acting = ((PRINCIPAL_KEY, name), (SCOPES_KEY, scopes)) if name else ()
        metadata = (*self._mark, *acting)
        return ChannelOptions(tenant=TenantId(tenant), metadata=metadata, security=self._security, hearer=self._hearer)

    async def _look(self) -> tuple[ServedBase, ...]:
        if self.worker:
            return (await self._base_at(self.worker),)
        found: dict[str, ServedBase] = {}
        known = {base.digest: base for base in self._bases}
        async with self.client(DEFAULT_TENANT, is_own=True) as client:
            async for worker in client.placement.list_workers():
                digest = worker.base_model_digest
                if digest in found:
                    continue
                base = known.get(digest) or await self._base_at(worker.endpoint)
                found[digest] = replace(base, name=worker.base_model)
        if not found:
            raise NoWorkersError("no worker takes requests")
        return tuple(found.values())

    async def _base_at(self, endpoint: str) -> ServedBase:
        async with self.worker_at(DEFAULT_TENANT, endpoint, is_own=True) as worker:
            await worker.connect(LOOK_TIMEOUT_S)
            info = await worker.model_info()
        return ServedBase(info.base_model, info.base_model_digest, info.max_sequence_tokens)


def _caller(tenant: TenantId, *, is_own: bool = False) -> str:
    """Key of a caller's connections; with `is_own` the gateway's own, which acts for no caller."""
    acted_for = None if is_own else ACTED_FOR.get()
    pairs = dict(acted_for.metadata) if acted_for is not None else {}
    return _BETWEEN.join(map(str, (tenant, pairs.get(PRINCIPAL_KEY, ""), pairs.get(SCOPES_KEY, ""))))
