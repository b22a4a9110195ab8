"""Messages of a call: decoded as they come, encoded as they go, counted both ways."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import grpc

from hotslot.errors import FieldViolation, InvalidRequestError
from shared.audit.watched_call import WatchedCall
from shared.server.connection_bounds import Pace
from shared.server.failed_calls import abort
from shared.server.stream_places import Stream
from shared.server.wire_scan import Refused


@dataclass(slots=True)
class Sizes:
    """Bytes of the messages of one call."""

    sent: int = 0
    received: int = 0


async def only_message(context: Any) -> bytes:
    """The message of a call that has one; ends a call that brings none."""
    message = await context.read()
    if message is grpc.aio.EOF:
        await abort(context, InvalidRequestError([FieldViolation("message", "none came")]))
    return cast(bytes, message)


async def decoded(
    messages: AsyncIterable[Any],
    decode: Callable[[bytes], Any],
    stream: Stream,
    sizes: Sizes,
    seen: WatchedCall | None,
    pace: Pace,
) -> AsyncGenerator[Any]:
    """The messages of a client's stream; raises at the first that is refused, or does not come."""
    coming = aiter(messages)
    while (data := await pace.next(stream.read(anext(coming, None)))) is not None:
        sizes.received += len(cast(bytes, data))
        message = decode(cast(bytes, data))
        if isinstance(message, Refused):
            raise message.error
        if seen is not None and not seen.is_requested:
            await seen.requested(message)
        yield message


async def drive(
    result: Any,
    context: Any,
    stream: Stream,
    encode: Callable[[Any], bytes],
    sizes: Sizes,
    seen: WatchedCall | None = None,
    begun: Callable[[], None] | None = None,
) -> Any:
    """Finish a handler's result, whichever way the handler is written; `begun` hears of a stream's first message.

    A generator's messages are written here and not handed to grpc, so that a cancelled call closes the generator at
    once and in the same task: what its `finally` frees is free when the call is over.
    """
    if isinstance(result, AsyncGenerator):
        async with aclosing(result):
            async for message in result:
                data = encode(message)
                if begun is not None and not sizes.sent:
                    begun()
                sizes.sent += len(data)
                try:
                    await stream.write(context.write(data), data)
                    if seen is not None:
                        seen.answered(message)
                except grpc.aio.InternalError as exc:
                    # The call is over: gRPC fails a write under way before it cancels the handler.
                    raise asyncio.CancelledError from exc
        return None
    if inspect.isawaitable(result):
        answer = await result
        if seen is not None:
            seen.answered(answer)
        data = encode(answer)
        sizes.sent = len(data)
        return data
    raise TypeError("a handler must be `async def`")
