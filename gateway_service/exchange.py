"""One generation over HTTP: it holds a place, is cancelled when its client leaves, and waits for its reader.

Nothing is sent before the first event, so that whatever fails earlier has a status of its own. A stream that fails
later says so in a last event, and has no `[DONE]`.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway_service.answers import HttpAnswer, Kind, served_headers
from gateway_service.callers import ENDED
from gateway_service.errors import ApiError, ParamOf, StoppingError, api_error
from gateway_service.translation import WantedAnswer
from hotslot.contract.generation import GenerationEvent
from hotslot.errors import HotslotError, InternalError, StreamStalledError
from hotslot.ids import TenantId
from shared.server.stream_places import Stream, StreamPlaces

log = structlog.get_logger(__name__)

PromptEvents = AsyncGenerator[GenerationEvent, None]
EVENTS_AHEAD = 8
"""Events of one prompt that may wait for the reader; the worker waits beyond it."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Places and patience that the generations of one gateway share."""

    places: StreamPlaces
    stall_s: float


class GenerationResponse(Response):
    """The response to a request to generate, which is what runs it."""

    def __init__(
        self,
        exchange: Exchange,
        tenant: TenantId,
        kind: Kind,
        wanted: WantedAnswer,
        streams: Sequence[PromptEvents],
        request_id: str,
        param_of: ParamOf,
    ) -> None:
        """`streams` has one for each prompt, none of them begun."""
        super().__init__()
        self._exchange = exchange
        self._tenant = tenant
        self._wanted = wanted
        self._streams = streams
        self._answer = HttpAnswer(kind, wanted, request_id)
        self._param_of = param_of
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError before anything was sent."""
        held = [Stream(self._exchange.stall_s) for _ in self._streams]
        stream, places = held[0], self._exchange.places
        try:
            for place in held:
                places.take(place, self._tenant, asyncio.get_running_loop().time())
            async with _until_gone(receive), aclosing(_merged(self._streams)) as events:
                if self._wanted.is_stream:
                    await self._stream(scope, stream, events, send)
                else:
                    await self._whole(scope, stream, events, send)
        except ClientGoneError:
            scope["state"]["ended"] = "client left"
        except StreamStalledError:
            # Its reader takes nothing, not even an end in order.
            scope["state"]["ended"] = "reader stalled"
            scope["state"]["transport"].abort()
        except HotslotError as exc:
            raise _told(exc, self._param_of) from exc
        except asyncio.CancelledError:
            # By the server alone: at the end of its grace, or when the caller may no longer call.
            await self._end_early(scope, send)
        finally:
            for place in held:
                places.leave(place)

    async def _whole(self, scope: Scope, stream: Stream, events: "_Numbered", send: Send) -> None:
        async for prompt, event in events:
            for _ in self._answer.add(prompt, event):
                pass
        self._check_complete()
        scope["state"]["usage"] = self._answer.usage()
        body = _json(self._answer.whole())
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self._served(scope)}
        self._begun = True
        await stream.write(send(_start(headers)))
        await stream.write(send({"type": "http.response.body", "body": body}), body)

    async def _stream(self, scope: Scope, stream: Stream, events: "_Numbered", send: Send) -> None:
        try:
            async for prompt, event in events:
                chunks = b"".join(_sse(chunk) for chunk in self._answer.add(prompt, event))
                if not self._begun:
                    headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
                    # Proxies that collect responses would hold a stream back.
                    headers |= {"x-accel-buffering": "no", **self._served(scope)}
                    self._begun = True
                    await stream.write(send(_start(headers)))
                if chunks:
                    await stream.write(send(_part(chunks)), chunks)
            self._check_complete()
            scope["state"]["usage"] = self._answer.usage()
            last = _sse(self._answer.last_chunk()) if self._wanted.include_usage else b""
            await stream.write(send(_part(last + b"data: [DONE]\n\n", more=False)))
        except HotslotError as exc:
            if not self._begun or isinstance(exc, StreamStalledError):
                raise
            error = _told(exc, self._param_of)
            scope["state"]["ended"] = error.code
            await stream.write(send(_part(_sse(error.body()), more=False)))

    async def _end_early(self, scope: Scope, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        refused = scope["state"].get(ENDED)
        told = api_error(refused) if refused is not None else StoppingError()
        scope["state"]["ended"] = told.code
        if not self._begun:
            raise told
        await send(_part(_sse(told.body()), more=False))

    def _check_complete(self) -> None:
        if not self._answer.is_complete:
            raise InternalError("the worker ended the stream before the generation was finished")

    def _served(self, scope: Scope) -> dict[str, str]:
        started = next(iter(self._answer.started.values()))
        scope["state"]["served"] = started
        return served_headers(started)


class ClientGoneError(Exception):
    """A client that closed its connection."""


_Numbered = AsyncGenerator[tuple[int, GenerationEvent], None]


@asynccontextmanager
async def _until_gone(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client leaves, and raise ClientGoneError. The request's body has been read."""
    loop = asyncio.get_running_loop()
    timeout = asyncio.timeout(None)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        timeout.reschedule(loop.time())

    try:
        async with timeout:
            watcher = asyncio.create_task(watch())
            try:
                yield
            finally:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher
    except TimeoutError as exc:
        if not timeout.expired():
            raise
        raise ClientGoneError from exc


async def _merged(streams: Sequence[PromptEvents]) -> _Numbered:
    """The events of several generations as they come, with the number of each; the first failure ends all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, GenerationEvent] | Exception | None] = asyncio.Queue(EVENTS_AHEAD)

    async def pump(index: int, stream: PromptEvents) -> None:
        try:
            async with aclosing(stream) as events:
                async for event in events:
                    await queue.put((index, event))
            await queue.put(None)
        except Exception as exc:  # noqa: BLE001 (raised again by what reads the queue)
            await queue.put(exc)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _told(error: HotslotError, param_of: ParamOf) -> ApiError:
    """The error as the client gets it; what it does not get is logged."""
    told = api_error(error, param_of)
    if told.status >= 500:
        log.warning("generation_failed", code=told.code, why=error.message)
    return told


def _start(headers: dict[str, str]) -> Message:
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()],
    }


def _part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _sse(document: dict[str, Any]) -> bytes:
    return b"data: " + _json(document) + b"\n\n"


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
