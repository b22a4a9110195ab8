"""How a worker joins its fleet: known as starting while its model is loaded, ready after that, gone when it leaves.

Joining goes on in the background for as long as it takes: the store hands out the epoch that fences the worker, Redis
keeps its lease, and neither is needed for serving.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import structlog

from hotslot.backoff import Backoff
from hotslot.errors import HotslotError
from shared.coordination.connection import RedisConnection
from shared.coordination.registration import WorkerRegistration
from shared.fleet.records import WorkerInfo, WorkerLoad, WorkerReport, WorkerState
from worker_service.front.worker import ModelInfo

log = structlog.get_logger(__name__)

BACKOFF = Backoff(0.5, 15.0)

T = TypeVar("T")


def starting() -> WorkerReport:
    """What a worker says of itself before its model is loaded."""
    return WorkerReport(WorkerState.STARTING, WorkerLoad(), ())


class Joining:
    """One worker's membership, between `async with` and its end."""

    def __init__(
        self,
        connection: RedisConnection,
        info: WorkerInfo,
        issue_epoch: Callable[[], Awaitable[int]],
        *,
        lease_s: float,
    ) -> None:
        """The epoch of `info` is replaced by the one that is issued."""
        self.observe: Callable[[], WorkerReport] = starting
        """What the worker says of itself; called for every heartbeat, must not block."""
        self._connection = connection
        self._info = info
        self._issue_epoch = issue_epoch
        self._lease_s = lease_s
        self._registration: WorkerRegistration | None = None
        self._joined = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Joining":
        self._task = asyncio.create_task(self._join(), name="join the fleet")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.leave()

    def describe(self, info: WorkerInfo) -> None:
        """Tell the others more of the worker, now that it is known."""
        self._info = replace(info, epoch=self._info.epoch)
        if self._registration is not None:
            self._registration.describe(self._info)

    def nudge(self) -> None:
        """Something changed that others should see soon."""
        if self._registration is not None:
            self._registration.nudge()

    async def leave(self) -> None:
        """Give the lease back, or give up joining; again is harmless."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        registration, self._registration = self._registration, None
        if registration is not None:
            await registration.__aexit__()

    async def until_fenced(self) -> None:
        """Return when this worker must end because a newer start took its place."""
        await self._joined.wait()
        if self._registration is None:
            await asyncio.Event().wait()
        else:
            await self._registration.until_fenced()

    def _report(self) -> WorkerReport:
        return self.observe()

    async def _join(self) -> None:
        epoch = await until_it_works(self._issue_epoch, "no_epoch_yet")
        self._info = replace(self._info, epoch=epoch)
        self._registration = WorkerRegistration(self._connection, self._info, self._report, lease_s=self._lease_s)
        await self._registration.__aenter__()
        self._joined.set()
        log.info("joining", epoch=epoch, endpoint=self._info.endpoint)


def described(info: WorkerInfo, model: ModelInfo) -> WorkerInfo:
    """A worker as others are told of it once its model is loaded."""
    return replace(
        info,
        dtype=model.dtype,
        slot_rank=model.slot_rank,
        num_slots=model.num_slots,
        max_rank=model.max_rank,
        max_sequence_tokens=model.max_sequence_tokens,
        target_modules=",".join(sorted({path.rpartition(".")[2] for path in model.target_modules})),
    )


async def until_it_works(call: Callable[[], Awaitable[T]], event: str) -> T:
    """The answer of somebody who may be away for a while; every failure is logged as `event`."""
    for failures in itertools.count():
        try:
            return await call()
        except HotslotError as exc:
            retry_s = BACKOFF.pause_s(failures)
            log.warning(event, why=exc.message, retry_s=round(retry_s, 3))
            await asyncio.sleep(retry_s)
    raise AssertionError("counting has no end")
