"""Streams of messages to a server that may refuse them in the middle, with the server's own status as the outcome."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

import grpc.aio

Req = TypeVar("Req")
Res = TypeVar("Res")

# grpc.aio puts this in the place of the server's status when a write fails because the stream has ended.
LOST_STATUS = "Internal error from Core"
REFUSAL_S = 0.3
"""Longest way of a server's refusal, as far as it is worth waiting for before bytes are sent."""
STATUS_S = 5.0
"""The same for a stream that has failed: on a busy machine the status comes late, and nothing else says why."""
LOOK_EVERY_S = 0.01


async def send_all(call: grpc.aio.StreamUnaryCall[Req, Res], messages: AsyncGenerator[Req, None]) -> Res:
    """Send all messages and return the answer; the call has ended afterwards.

    Raises grpc.aio.AioRpcError, with the server's status where it came, and what the messages raise.
    """
    try:
        async with aclosing(messages):
            async for message in messages:
                await call.write(message)
        await call.done_writing()
        return await call
    except asyncio.InvalidStateError:
        # The server ended the call while messages were sent: its status says why.
        return await call
    except grpc.aio.AioRpcError as exc:
        if exc.details() == LOST_STATUS and await _has_status(call):
            return await call
        raise
    finally:
        call.cancel()


async def _has_status(call: grpc.aio.StreamUnaryCall[Any, Any]) -> bool:
    """Tell whether the server's own status comes for a call whose write failed: it replaces that of gRPC until then."""
    for _ in range(round(STATUS_S / LOOK_EVERY_S)):
        if await call.details() != LOST_STATUS:
            return True
        await asyncio.sleep(LOOK_EVERY_S)
    return False
