"""Looks at what a gateway serves from, in the names of those that its page shows it to.

A fleet is told by the store's placement service in two lists, however large it is, and a bounded number of its workers
is asked for the rest; one worker tells of itself.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

from cachetools import TTLCache

from gateway_service.callers import ACTED_FOR
from gateway_service.deployment import Deployment
from gateway_service.errors import api_error
from gateway_service.live_state import (
    HeldAdapter,
    LiveState,
    live_worker,
    none_ready,
    only_worker,
    placed,
    shown_name,
    store_problems,
)
from hotslot import HotslotClient
from hotslot.contract.control import AdapterTier, WorkerStatus
from hotslot.contract.store_status import StoreStatus
from hotslot.errors import (
    ForbiddenError,
    HotslotError,
    NotImplementedYetError,
    RequestDeadlineError,
    UnauthenticatedError,
)
from hotslot.ids import TenantId
from hotslot.rpc.server_facts import installed_version

LOOK_S = 4.0
"""Longest wait for a list or for a worker's answer."""
MAX_ASKED = 32
"""Workers of a fleet that are asked for their status, at most; of the others there is what their heartbeats tell."""
MAX_WORKERS = 256
MAX_HELD = 2048
"""Placements that are told, at most."""
STATE_TTL_S = 1.0
"""Time for which one look serves all pages of a caller."""
MAX_CALLERS = 256

T = TypeVar("T")
Document = dict[str, Any]


class LiveStates:
    """States by caller; the pages of one caller share a look. Belongs to one event loop."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._looks: TTLCache[tuple[Any, ...], asyncio.Task[Document]] = TTLCache(MAX_CALLERS, STATE_TTL_S)

    async def of(self, tenant: TenantId) -> Document:
        """State as a JSON document; raises ForbiddenError and UnauthenticatedError for callers that may not look."""
        key = (tenant, ACTED_FOR.get())
        look = self._looks.get(key)
        if look is None:
            look = self._looks[key] = asyncio.create_task(self._document(tenant), name="look at the fleet")
            # Its failure is not missed where the page that asked has gone meanwhile.
            look.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(look)

    async def _document(self, tenant: TenantId) -> Document:
        look = _worker_state if self._deployment.worker else _fleet_state
        return asdict(await look(self._deployment, tenant))


async def _fleet_state(deployment: Deployment, tenant: TenantId) -> LiveState:
    async with deployment.client(tenant) as client:
        (workers, away), (placements, unlisted), (store, ill) = await asyncio.gather(
            _asked(_all(client.placement.list_workers())),
            _asked(_all(client.placement.list_placements())),
            _asked(_store_status(deployment, client)),
        )
    workers = sorted(workers or (), key=lambda worker: (worker.base_model, worker.worker_id))
    shown = workers[:MAX_WORKERS]
    statuses = await asyncio.gather(*(_status_at(deployment, tenant, one.endpoint) for one in shown[:MAX_ASKED]))
    asked: list[tuple[WorkerStatus | None, str]] = [*statuses, *((None, "") for _ in shown[MAX_ASKED:])]
    told = tuple(live_worker(worker, *found) for worker, found in zip(shown, asked, strict=True))
    held = [placed(placement) for placement in placements or ()]
    return LiveState(
        "fleet",
        installed_version(),
        _now(),
        problems=tuple(
            filter(None, [away, unlisted if unlisted != away else "", *store_problems(store, ill), none_ready(told)])
        ),
        store_version=store.version if store is not None else "",
        workers=told,
        held=tuple(held[:MAX_HELD]),
        num_workers=len(workers),
        num_held=len(held),
    )


async def _worker_state(deployment: Deployment, tenant: TenantId) -> LiveState:
    async with deployment.client(tenant) as client:
        (info, away), (status, why), (listed, unlisted), (store, ill) = await asyncio.gather(
            _asked(client.worker.model_info()),
            _asked(client.worker.status(timeout_s=LOOK_S)),
            _asked(client.worker.list_adapters()),
            _asked(_store_status(deployment, client)),
        )
    worker = only_worker(info, status, why or away)
    held = tuple(
        HeldAdapter(
            worker.worker_id, shown_name(one.references, one.digest), one.digest, one.tier.value, one.pinned, one.users
        )
        for one in (listed.adapters if listed is not None else ())
        if one.tier is not AdapterTier.UNSPECIFIED
    )
    return LiveState(
        "worker",
        installed_version(),
        _now(),
        problems=tuple(
            filter(None, [unlisted if unlisted != why else "", *store_problems(store, ill), none_ready((worker,))])
        ),
        store_version=store.version if store is not None else "",
        workers=(worker,),
        held=held[:MAX_HELD],
        num_workers=1,
        num_held=len(held),
    )


async def _status_at(deployment: Deployment, tenant: TenantId, endpoint: str) -> tuple[WorkerStatus | None, str]:
    async def ask() -> WorkerStatus:
        async with deployment.watched_worker(tenant, endpoint) as worker:
            return await worker.status(timeout_s=LOOK_S)

    return await _asked(ask())


async def _store_status(deployment: Deployment, client: HotslotClient) -> StoreStatus | None:
    """Status of the store; None where there is no store, or one of an earlier release, which tells none."""
    if not deployment.has_store:
        return None
    with suppress(NotImplementedYetError):
        return await client.store.status()
    return None


async def _all(listed: AsyncGenerator[T, None]) -> list[T]:
    async with aclosing(listed) as items:
        return [item async for item in items]


async def _asked(call: Awaitable[T]) -> tuple[T | None, str]:
    """The answer, or the reason for which there is none. Raises what says that the caller may not ask."""
    try:
        async with asyncio.timeout(LOOK_S):
            return await call, ""
    except (ForbiddenError, UnauthenticatedError):
        raise
    except HotslotError as exc:
        return None, api_error(exc).message
    except TimeoutError:
        return None, api_error(RequestDeadlineError(f"no answer within {LOOK_S:g} s")).message


def _now() -> str:
    return datetime.now(UTC).isoformat()
