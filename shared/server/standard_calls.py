"""Calls of the health and reflection services, which need no token, and of methods that do not exist: at a pace.

Each address has one, as wide as that of a known caller, so that probes of a kubelet and of load balancers never meet
it. It is counted apart from the address's other calls: guesses of tokens do not stop probes. A caller whose token is
known calls at its own pace here, too; its streams and their messages are bounded as an address's.
"""

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from hotslot.errors import FieldViolation, InvalidRequestError, QuotaExceededError
from shared.identity.parties import address_of
from shared.server.failed_calls import abort
from shared.server.paced_calls import PacedCalls

STANDARD_SERVICES = "/grpc."
"""Beginning of the methods of health and reflection: called all the time, and not ours."""
MAX_BYTES = 16 * 2**10
"""Bytes of a message: a name."""
MAX_STREAMS = 1_024
"""Streams of an address, or of a known caller, that run: watches of health, and questions about services."""
STREAMS = "standard_streams"
"""Label of streams that were refused."""


class StandardCalls:
    """Handlers of those calls. Lives on a server's event loop."""

    def __init__(self, paced: PacedCalls) -> None:
        self._paced = paced
        self._streams: Counter[str] = Counter()

    def handler(self, found: Any, known: str | None = None) -> Any:
        """Handler that keeps to the pace; what was found where there is none, and None for no such method.

        A caller who is known, and met already, has the bounds of an address for itself; none where it calls for others.
        """
        if not self._paced.is_bounded or known == "":
            return found

        async def met(_: Any, context: Any) -> None:
            caller = known or f"probe {address_of(context.peer())}"
            if known is None:
                await self._paced.meet_stranger(caller, context)
            if found is None:
                if known is not None:  # clients of later releases ask for what is not here yet
                    self._paced.came(caller)
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            if found.request_streaming or found.response_streaming:
                await self._stream(found, caller, context)
            else:
                request = await _decoded(found, await self._paced.message(caller, context), context)
                self._paced.came(caller)
                await context.write(await found.unary_unary(request, context))

        encode = found.response_serializer if found is not None else None
        return grpc.stream_stream_rpc_method_handler(met, response_serializer=encode)

    async def _stream(self, found: Any, caller: str, context: Any) -> None:
        if self._streams[caller] >= MAX_STREAMS:
            message = f"more than {MAX_STREAMS} streams of health and reflection run from here; end some"
            error = QuotaExceededError(message, subject=STREAMS)
            self._paced.refused(error)
            await abort(context, error)
        self._streams[caller] += 1
        try:
            if found.request_streaming:
                await _answered(found.stream_stream(self._messages(found, caller, context), context), context)
            else:
                request = await _decoded(found, await self._paced.message(caller, context), context)
                self._paced.came(caller)
                await _answered(found.unary_stream(request, context), context)
        finally:
            self._streams[caller] -= 1
            if not self._streams[caller]:
                del self._streams[caller]

    async def _messages(self, found: Any, caller: str, context: Any) -> AsyncIterator[Any]:
        """Messages of a stream, of which each counts as a call does; one too many waits."""
        self._paced.came(caller)
        while (message := await context.read()) is not grpc.aio.EOF:
            yield await _decoded(found, message, context)
            await self._paced.may_go_on(caller)


class PacedProbes(grpc.aio.ServerInterceptor):
    """Interceptor of a server that has health alone."""

    def __init__(self, paced: PacedCalls) -> None:
        self._standard = StandardCalls(paced)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[grpc.RpcMethodHandler[Any, Any] | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Called by grpc for every call."""
        return self._standard.handler(await continuation(handler_call_details))


async def _decoded(found: Any, message: bytes, context: Any) -> Any:
    request, problem = None, f"{len(message):,} bytes, at most {MAX_BYTES:,} are taken"
    if len(message) <= MAX_BYTES:
        try:
            request = found.request_deserializer(message)
        except DecodeError:
            problem = "is not one of this method"
    if request is None:
        await abort(context, InvalidRequestError([FieldViolation("message", problem)]))
    return request


async def _answered(result: Any, context: Any) -> None:
    if inspect.isasyncgen(result):
        async for message in result:
            await context.write(message)
    else:
        await result
