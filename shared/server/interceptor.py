"""The server interceptor that turns raised errors into statuses, counts every call and tells its end.

Handlers raise `HotslotError`s and hold no try/except. Whatever else they raise is our own bug: the caller gets
INTERNAL with an incident id, the log gets the traceback under the same id, and nothing else leaks. Only callers cancel:
a call that the server cannot finish ends as UNAVAILABLE. A call whose deadline passed before it came here is not begun,
nor is one whose request cannot be decoded or is beyond its bounds (`bounds.py`). A stream whose caller neither takes
nor sends anything for long is ended; what the handler held is free before its caller hears of that.
"""

import asyncio
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import grpc
import structlog

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import HotslotError, RequestDeadlineError, StreamStalledError, UnavailableError
from hotslot.ids import TenantId
from hotslot.rpc.message_sizes import MAX_MESSAGE_BYTES
from hotslot.rpc.metadata import single_values
from hotslot.rpc.status import row_for
from hotslot.rpc.tenant import PARTY_KEY, SETTLED, tenant_of
from shared.audit.audit_log import AuditLog
from shared.audit.watched_call import watched
from shared.identity.authenticator import Authenticator
from shared.identity.callers import CALLER
from shared.identity.parties import PARTY, party_of
from shared.metrics.calls import ServerCalls
from shared.quotas.gate import QuotaGate, held_kind
from shared.server.call_log import CallObserver, CallRecord, log_call
from shared.server.call_messages import Sizes, decoded, drive
from shared.server.connection_bounds import Pace, check_metadata
from shared.server.counters import Counters
from shared.server.failed_calls import abort, as_error
from shared.server.limited_decoding import limited
from shared.server.paced_calls import PacedCalls
from shared.server.standard_calls import STANDARD_SERVICES, StandardCalls
from shared.server.stream_places import STALL_S, Stream, StreamLimit, StreamPlaces
from shared.server.traced_calls import TracedCall
from shared.server.wire_scan import Refused, decoder_of

log = structlog.get_logger(__name__)

STOPS = "the server stops, and the call took longer than it waits for calls"


def _as_it_is(data: bytes) -> Any:
    return data


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all four call shapes."""

    def __init__(
        self,
        observers: Sequence[CallObserver] = (log_call,),
        *,
        stall_s: float = STALL_S,
        limits: Sequence[StreamLimit] = (),
        max_request_bytes: int = MAX_MESSAGE_BYTES,
        authenticator: Authenticator | None = None,
        audit: AuditLog | None = None,
        quotas: QuotaGate | None = None,
        max_calls_per_s: float = 0.0,
    ) -> None:
        """Without an authenticator each call is believed.

        A stream whose caller takes or sends nothing for `stall_s` is ended; larger requests are refused. Known callers
        may make so many calls a second; 0 is no bound.
        """
        self._max_request_bytes = max_request_bytes
        self._authenticator = authenticator
        self._audit = audit
        self._quotas = quotas
        self._counters = quotas.counters if quotas is not None else Counters()
        self._observers = tuple(observers)
        self._stall_s = stall_s
        self._places = {method: places for places in map(StreamPlaces, limits) for method in places.methods}
        self._decoders: dict[str, Callable[[bytes], Any]] = {}
        self.calls = ServerCalls(self._counters)
        self.paced = PacedCalls(max_calls_per_s, self._counters, authenticator)
        self._standard = StandardCalls(self.paced)
        self._running: set[asyncio.Task[Any]] = set()
        self._ending: dict[asyncio.Task[Any], HotslotError] = {}
        """Errors of calls that this server ends."""

    def end_calls(self) -> None:
        """End every running call as UNAVAILABLE; gRPC's own way to end them would tell callers that they cancelled."""
        for task in self._running:
            self._end(task, UnavailableError(STOPS))

    def _end(self, task: "asyncio.Task[Any]", error: HotslotError) -> None:
        if task not in self._ending:
            self._ending[task] = error
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[grpc.RpcMethodHandler[Any, Any] | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Called by grpc for every call."""
        caller = self.paced.caller(handler_call_details.invocation_metadata)
        if caller is not None and (refusal := self.paced.refusal(caller)) is not None:
            return refusal
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(STANDARD_SERVICES):
            return self._standard.handler(handler, caller)  # type: ignore[no-any-return]
        if handler.response_streaming:
            behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
        else:
            behavior = handler.stream_unary if handler.request_streaming else handler.unary_unary
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )

        decode = self._decoder(method, handler.request_deserializer)
        encode = handler.response_serializer or _as_it_is
        kind = held_kind(method, is_stream=handler.request_streaming or handler.response_streaming)

        async def call(request: Any, context: Any) -> Any:
            if is_quick:
                self.paced.arrived(caller or "")
            return await self._run(method, behavior, request, context, decode, encode, kind)

        is_quick = caller is not None and not handler.response_streaming and self.paced.expect(caller)
        if self.paced.is_bounded and not is_quick:
            # Its message is read once it may be: most of a flood's calls are given up before.
            async def met(messages: Any, context: Any) -> None:
                met_as = await self.paced.meet(context) if caller is None else caller
                request = messages if handler.request_streaming else await self.paced.message(met_as, context)
                self.paced.came(met_as)
                if (answer := await call(request, context)) is not None:
                    await context.write(answer)

            return grpc.stream_stream_rpc_method_handler(met)

        # Nothing is decoded before its sender is known; what is encoded here can be counted.
        return make(call, request_deserializer=None, response_serializer=None)

    def _decoder(self, method: str, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
        if method not in self._decoders:
            self._decoders[method] = limited(decoder_of(method, decode), self._max_request_bytes, self._counters)
        return self._decoders[method]

    async def _tenant(self, method: str, context: Any, call: ExitStack) -> TenantId:
        """The tenant of a call that its caller may make, which ends once it may no longer; its party is known then."""
        check_metadata(context.invocation_metadata() or ())
        if (known := self._authenticator) is None:
            tenant = tenant_of(context)
            PARTY.set(party_of(None, tenant, context.peer()))
            return tenant
        standing, task = await known.standing(method, context), asyncio.current_task()
        assert task is not None
        call.enter_context(known.running.of(partial(known.check, standing), partial(self._end, task)))
        caller = standing.caller
        self.paced.known(context, caller)
        told = single_values(context.invocation_metadata() or (), (PARTY_KEY,)).get(PARTY_KEY)
        PARTY.set(party_of(caller, caller.tenant, context.peer(), told))
        structlog.contextvars.bind_contextvars(principal=caller.name, **({"via": caller.via} if caller.via else {}))
        CALLER.set(caller)
        SETTLED.set(caller.tenant)
        return caller.tenant

    async def _run(
        self,
        method: str,
        behavior: Callable[..., Any],
        request: Any,
        context: Any,
        decode: Callable[[bytes], Any] = _as_it_is,
        encode: Callable[[Any], bytes] = _as_it_is,
        kind: QuotaKind | None = None,
    ) -> Any:
        started = time.perf_counter()
        self.calls.started(method)
        traced, sizes = TracedCall(method, context), Sizes()
        tenant, code, reason = "", grpc.StatusCode.OK, ""
        error: HotslotError | None = None
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        stream, places, held = Stream(self._stall_s, task), self._places.get(method), None
        seen = watched(self._audit, method, context, knows_callers=self._authenticator is not None)
        call = ExitStack()
        try:
            tenant = await self._tenant(method, context, call)
            if seen is not None:
                seen.known(CALLER.get(), tenant)
            structlog.contextvars.bind_contextvars(tenant=tenant)
            if self._quotas is not None:
                metadata = context.invocation_metadata() or ()
                held = await self._quotas.enter(method, tenant, CALLER.get(), metadata, kind)
            left_s = context.time_remaining()
            if left_s is not None and left_s <= 0:
                raise RequestDeadlineError("the deadline passed before the server came to the call; nothing was done")
            if not (is_stream := isinstance(request, AsyncIterable)):
                sizes.received = len(request)
                request = decode(request)
                if isinstance(request, Refused):
                    raise request.error
            if places is not None:
                places.take(stream, tenant, asyncio.get_running_loop().time(), PARTY.get())
            if is_stream:
                request = decoded(request, decode, stream, sizes, seen, Pace(self._stall_s))
            elif seen is not None:
                await seen.requested(request)
            return await drive(behavior(request, context), context, stream, encode, sizes, seen, self.paced.found_room)
        except asyncio.CancelledError:
            if not (task in self._ending or stream.ended_by) or task.uncancel():
                code = grpc.StatusCode.CANCELLED
                raise
            error = stream.ended_by or self._ending[task]
            code, reason = row_for(error).code, row_for(error).reason
        except grpc.aio.AbortError:
            code = context.code() or grpc.StatusCode.UNKNOWN
            raise
        except Exception as exc:  # noqa: BLE001 (no bug of a handler may reach the wire)
            error = as_error(exc, method, context)
            row = row_for(error)
            code, reason = row.code, row.reason
            self._counters.count_refusal(error)
        finally:
            call.close()
            is_given_up = code is grpc.StatusCode.CANCELLED and not sizes.sent
            given_up_after_s = time.perf_counter() - started if is_given_up else None
            self.paced.ended(CALLER.get(), error, given_up_after_s, context)
            self._running.discard(task)
            self._ending.pop(task, None)
            if places is not None:
                places.leave(stream)
            if self._quotas is not None:
                self._quotas.leave(tenant, held)
            record = CallRecord(method, tenant, code, reason, time.perf_counter() - started, traced.notes)
            self.calls.ended(method, code.name, reason, record.duration_s, sizes.sent, sizes.received)
            for observe in self._observers:
                observe(record)
            if seen is not None:
                await seen.ended(code.name, reason, waits=code is not grpc.StatusCode.CANCELLED)
            traced.ended(code, reason, tenant)
        assert error is not None
        is_left_behind = isinstance(error, StreamStalledError) or stream.ended_by is not None
        with places.left_behind(tenant, PARTY.get()) if places is not None and is_left_behind else nullcontext():
            return await abort(context, error)
