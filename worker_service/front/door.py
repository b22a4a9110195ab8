"""The front door: a request is served here, or sent one hop to a worker that has its adapters and room.

Routing changes speed, never correctness: any worker of the pool can serve any request by pulling its adapters. Until
the first event a worker that fails is passed over for the next; after it, nothing is tried again. A request whose step
failed is tried on one other worker only, since it is likely to break that one's steps too.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from hotslot.errors import (
    AdaptersDisabledError,
    ExhaustedError,
    HotslotError,
    NoWorkersError,
    StepFailedError,
    UnavailableError,
)
from hotslot.ids import Digest, TenantId
from hotslot.references import Reference
from hotslot.rpc.message_sizes import MAX_GENERATE_BYTES
from shared.fleet.records import WorkerRecord
from shared.fleet.replica_policy import DEFAULT_REPLICA_POLICY, ReplicaPolicy
from worker_service.adapters.policy import Selection
from worker_service.adapters.references import ReferenceCache
from worker_service.front.deadline import less_margin
from worker_service.front.generation import new_request_id
from worker_service.front.requests import GenerationEvent, GenerationRequest
from worker_service.front.validation import check
from worker_service.front.worker import Parts, Worker
from worker_service.routing.forwarding import Metadata, Parcel, metadata_to_carry
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
    metadata: Metadata
    is_forwarded: bool
    encode: Callable[[str, Sequence[Selection]], bytes]
    """The request as a message, with this id and these adapters instead of what it says itself; none is the base."""


@dataclass(frozen=True, slots=True)
class _Routed:
    """A call with what routing needs to know of it."""

    call: Call
    selections: tuple[Selection, ...]
    digests: tuple[Digest, ...]
    policy: ReplicaPolicy
    """Of the first adapter, as far as it is known."""


@dataclass(slots=True)
class FrontDoor:
    """The use case behind InferenceService.Generate."""

    worker: Worker

    async def generate(self, call: Call) -> Events:
        """Stream a generation, from wherever it is served. Closing the generator cancels it there.

        Raises what `Generation.generate` does, this worker's refusal when nobody else took the request,
        StepFailedError when a step failed and no other worker answered, and UnavailableError when another worker was
        lost in the middle of its answer.
        """
        router = self.worker.router
        if router is None or call.is_forwarded:
            async with aclosing(self._here(call)) as events:
                async for event in events:
                    yield event
            return
        routed = await self._prepare(self.worker.parts, call)
        refusal: HotslotError | None = None
        failed_step: StepFailedError | None = None
        async with aclosing(self._places(router, routed)) as places:
            async for place, events in places:
                begun = False
                try:
                    async with aclosing(events):
                        async for event in events:
                            begun = True
                            yield event
                    return
                except TRY_ELSEWHERE as exc:
                    if begun or (failed_step is not None and isinstance(exc, StepFailedError)):
                        raise
                    if isinstance(exc, StepFailedError):
                        failed_step = exc
                    # This worker's own reason is the one to tell, when nobody has room.
                    if place is None or refusal is None:
                        refusal = exc
                    log.info("passed_over", worker=place or self.worker.worker_id, why=exc.message)
        # A failed step comes first: no client repeats the request for it, as it would for the others.
        error = failed_step or refusal or self.worker.refusal
        raise error or NoWorkersError("no worker of the pool took the request; try again")

    async def _prepare(self, parts: Parts, call: Call) -> _Routed:
        """Refuse what is wrong, and find out which versions are wanted. Raises the store's errors."""
        request = call.request
        checked = check(request, parts.generation.limits)
        selections = parts.policy.choose(call.tenant, checked.selections, base_only=request.base_only)
        references = parts.provider.references
        digests = [s.reference.digest or await _digest(references, call.tenant, s.reference) for s in selections]
        request = replace(request, request_id=request.request_id or new_request_id())
        first = references.resolve_known(call.tenant, selections[0].reference) if selections else None
        policy = first.policy if first is not None else DEFAULT_REPLICA_POLICY
        return _Routed(replace(call, request=request), selections, tuple(digests), policy)

    async def _places(self, router: Router, routed: _Routed) -> AsyncGenerator[tuple[str | None, Events], None]:
        """Where to try, in order, decided as late as possible: another worker's id, or None for this one."""
        here = self._facts(routed.digests)
        tried = await router.before(routed.digests, here, routed.policy)
        for peer in tried:
            yield peer.info.worker_id, self._there(router, peer, routed)
        if not here.takes_requests:
            return
        yield None, self._here(routed.call)
        tried_ids = [peer.info.worker_id for peer in tried]
        for peer in await router.instead(routed.digests, here, routed.policy, tried_ids):
            yield peer.info.worker_id, self._there(router, peer, routed)

    def _facts(self, digests: Sequence[Digest]) -> Here:
        parts = self.worker.parts
        tiers = parts.provider.tiers
        return Here(
            worker_id=self.worker.worker_id,
            holds_all=all(tiers.holdings.of(digest).is_at_hand for digest in digests),
            in_flight=parts.engine.open_sequences + tiers.num_loading,
            max_sequences=parts.info.max_sequences,
            takes_requests=self.worker.refusal is None,
        )

    async def _here(self, call: Call) -> Events:
        with self.worker.admitted() as parts:
            if call.is_forwarded and call.request.adapters and not parts.policy.is_enabled(call.tenant):
                raise AdaptersDisabledError(f"worker {self.worker.worker_id} has the tenant's adapters disabled")
            async with aclosing(parts.generation.generate(call.tenant, call.request, call.time_remaining())) as events:
                async for event in events:
                    yield event

    async def _there(self, router: Router, peer: WorkerRecord, routed: _Routed) -> Events:
        call = routed.call
        message = call.encode(call.request.request_id, routed.selections)
        if len(message) > MAX_GENERATE_BYTES:
            # Defaults and switches that were settled here make it larger than it came.
            raise UnavailableError("the request is too large to be sent on")
        parcel = Parcel(
            message,
            metadata_to_carry(call.metadata, self.worker.worker_id),
            less_margin(call.time_remaining()),
        )
        async with aclosing(router.forward(peer, parcel)) as messages:
            async for message in messages:
                yield message


async def _digest(references: ReferenceCache, tenant: TenantId, reference: Reference) -> Digest:
    """Digest to find a worker by: an old answer is good enough, and only the first one is waited for."""
    known = references.resolve_known(tenant, reference) or await references.resolve_current(tenant, reference)
    return known.digest
