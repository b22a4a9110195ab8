"""The front door: a request is served here, or sent one hop to a worker that has its adapters and room.

Routing changes speed, never correctness: any worker of the pool can serve any request by pulling its adapters. Until
the first event a worker that fails is passed over for the next; after it, nothing is tried again. A request whose step
failed is tried on one other worker only, since it is likely to break that one's steps too.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from hotslot.contract.generation import GenerationEvent, GenerationRequest
from hotslot.errors import (
    AdaptersDisabledError,
    ExhaustedError,
    HotslotError,
    NoWorkersError,
    StepFailedError,
    TenantQuotaError,
    UnavailableError,
)
from hotslot.ids import TenantId
from hotslot.rpc.message_sizes import MAX_GENERATE_BYTES
from hotslot.tracing import inside, span
from shared.call_notes import call_notes
from shared.fleet.records import WorkerRecord
from shared.identity.parties import PARTY
from worker_service.adapters.policy import Selection
from worker_service.front.deadline import less_margin
from worker_service.front.settling import SettledRequest
from worker_service.front.worker import ServingParts, ServingWorker
from worker_service.routing.forwarding import Carried, Parcel, metadata_to_carry
from worker_service.routing.plan import Here
from worker_service.routing.router import Router

log = structlog.get_logger(__name__)

# Errors that another worker may not have: this one is full, leaving, broken, or cannot reach the store.
TRY_ELSEWHERE = (UnavailableError, ExhaustedError, StepFailedError)

Events = AsyncGenerator[GenerationEvent | bytes, None]
"""Events made here, or the serialised messages of another worker."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of Generate."""

    tenant: TenantId
    request: GenerationRequest
    time_remaining: Callable[[], float | None]
    """Seconds until the caller's deadline; None when it has none."""
    metadata: Carried
    is_forwarded: bool
    encode: Callable[[str, Sequence[Selection]], bytes]
    """The request as a message, with this id and these adapters instead of what it says itself; none is the base."""
    as_asked: Callable[[bytes, Sequence[str]], bytes]
    """The first message of an answer, with these references of the served adapters instead of those that it has."""


@dataclass(slots=True)
class FrontDoor:
    """The use case behind InferenceService.Generate."""

    worker: ServingWorker

    async def generate(self, call: Call) -> Events:
        """Stream a generation, from wherever it is served. Closing the generator cancels it there.

        Raises what `Generation.settle` and `generate` do, this worker's refusal when no other took the request,
        StepFailedError when a step failed and no other worker answered, and UnavailableError when another worker was
        lost in the middle of its answer.
        """
        router = self.worker.router
        if router is None or call.is_forwarded:
            with self.worker.admitted() as parts:
                self._refuse_disabled(parts, call)
                settled = await parts.generation.settle(
                    call.tenant, call.request, call.time_remaining(), is_forwarded=call.is_forwarded
                )
                async with aclosing(parts.generation.generate(settled)) as answer:
                    async for told in answer:
                        yield told
            return
        settled = await self.worker.parts.generation.settle(call.tenant, call.request, call.time_remaining())
        refusal: HotslotError | None = None
        failed_step: StepFailedError | None = None
        async with aclosing(self._places(router, call, settled)) as places:
            async for place, events in places:
                begun = False
                try:
                    async with aclosing(events):
                        async for event in events:
                            begun = True
                            yield event
                    return
                except TenantQuotaError:
                    raise  # The same everywhere.
                except TRY_ELSEWHERE as exc:
                    if begun or (failed_step is not None and isinstance(exc, StepFailedError)):
                        raise
                    if isinstance(exc, StepFailedError):
                        failed_step = exc
                    # This worker's own reason is the one to tell, when no worker has room.
                    if place is None or refusal is None:
                        refusal = exc
                    log.info("passed_over", worker=place or self.worker.worker_id, why=exc.message)
        # A failed step comes first: no client repeats the request for it, as it would for the others.
        error = failed_step or refusal or self.worker.refusal
        raise error or NoWorkersError("no worker of the pool took the request; try again")

    async def _places(
        self, router: Router, call: Call, settled: SettledRequest
    ) -> AsyncGenerator[tuple[str | None, Events], None]:
        """Places to try, in order, decided as late as possible: another worker's id, or None for this one."""
        here = self._facts(settled)
        with span("hotslot.route"):
            tried = await router.before(settled.tenant, settled.digests, here, settled.policy)
        router.decisions.add(_decided(here, is_elsewhere=bool(tried)))
        for peer in tried:
            yield peer.info.worker_id, self._there(router, peer, call, settled)
        if not here.takes_requests:
            return
        yield None, self._here(settled)
        tried_ids = [peer.info.worker_id for peer in tried]
        for peer in await router.instead(settled.tenant, settled.digests, here, settled.policy, tried_ids):
            yield peer.info.worker_id, self._there(router, peer, call, settled)

    def _facts(self, settled: SettledRequest) -> Here:
        parts = self.worker.parts
        tiers = parts.provider.tiers
        return Here(
            worker_id=self.worker.worker_id,
            holds_all=all(tiers.is_at_hand(settled.tenant, digest) for digest in settled.digests),
            in_flight=parts.engine.open_sequences + tiers.num_loading,
            max_sequences=parts.info.max_sequences,
            takes_requests=self.worker.refusal is None,
        )

    def _refuse_disabled(self, parts: ServingParts, call: Call) -> None:
        """Leave a request that was forwarded for its adapters to the worker that sent it."""
        if call.is_forwarded and call.request.adapters and not parts.policy.is_enabled(call.tenant):
            raise AdaptersDisabledError(f"worker {self.worker.worker_id} has the tenant's adapters disabled")

    async def _here(self, settled: SettledRequest) -> Events:
        with self.worker.admitted() as parts:
            async with aclosing(parts.generation.generate(settled)) as events:
                async for event in events:
                    yield event

    async def _there(self, router: Router, peer: WorkerRecord, call: Call, settled: SettledRequest) -> Events:
        message = call.encode(settled.request.request_id, settled.carried)
        if len(message) > MAX_GENERATE_BYTES:
            # Defaults and switches that were settled here make it larger than it came.
            raise UnavailableError("the request is too large to be sent on")
        parcel = Parcel(
            message,
            metadata_to_carry(call.metadata, call.tenant, self.worker.worker_id, PARTY.get()),
            less_margin(call.time_remaining()),
        )
        worker_id = peer.info.worker_id
        forwarded = inside("hotslot.forward", {"hotslot.worker.id": worker_id}, router.forward(peer, parcel))
        async with aclosing(forwarded) as messages:
            is_first = True
            async for message in messages:
                call_notes().forwarded_to = worker_id
                yield call.as_asked(message, settled.references) if is_first and settled.chosen else message
                is_first = False


def _decided(here: Here, *, is_elsewhere: bool) -> str:
    """Name of the first place that a request tries, for metrics."""
    if is_elsewhere:
        return "spilled" if here.takes_requests and here.holds_all else "away"
    if not here.takes_requests:
        return "none"
    return "here" if here.holds_all else "cold"
