"""One connection to one service: a deadline on every call, errors as `shared.errors`, cancellation on close."""

from collections.abc import AsyncGenerator
from typing import TypeVar

import grpc

from shared.errors import HotslotError, UnavailableError
from shared.rpc.channel import ChannelOptions, connect, open_channel
from shared.rpc.status import from_rpc_error

Req = TypeVar("Req")
Res = TypeVar("Res")

UNARY_TIMEOUT_S = 30.0
UNREACHABLE = "cannot be reached"
# grpc.aio puts this in the place of the server's status when a write fails because the stream has ended.
LOST_STATUS = "Internal error from Core"


class _UnreachableError(UnavailableError):
    """What gRPC itself reports, in contrast to a server that answers UNAVAILABLE with a reason."""


class Connection:
    """A channel with the name of what is at its other end, for messages that say where a call failed."""

    def __init__(
        self,
        peer: str,
        endpoint: str,
        options: ChannelOptions,
        unavailable: type[UnavailableError] = UnavailableError,
    ) -> None:
        self.endpoint = endpoint
        self.channel: grpc.aio.Channel = open_channel(endpoint, options)
        self._peer = peer
        self._unavailable = unavailable

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Req, Res],
        request: Req,
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> Res:
        """Call a method with one answer."""
        try:
            return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as exc:
            raise self.error_from(exc) from exc

    async def stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[Req, Res], request: Req, timeout_s: float
    ) -> AsyncGenerator[Res, None]:
        """Call a method that streams; closing the iterator cancels the call."""
        call = method(request, timeout=timeout_s)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as exc:
            raise self.error_from(exc) from exc
        finally:
            call.cancel()

    async def connect(self, timeout_s: float) -> None:
        """Wait until the connection stands; raises UnavailableError when it fails or takes too long."""
        try:
            await connect(self.channel, timeout_s)
        except UnavailableError as exc:
            raise self._unreachable(exc.message) from exc

    def error_from(self, failure: grpc.aio.AioRpcError) -> HotslotError:
        """The error behind a failed call; use as `raise connection.error_from(exc) from exc`."""
        error = from_rpc_error(failure, unavailable=_UnreachableError)
        is_plain = isinstance(error, _UnreachableError)
        if failure.details() == LOST_STATUS or (is_plain and failure.code() is grpc.StatusCode.CANCELLED):
            return self._unavailable(f"the {self._peer} at {self.endpoint} ended the call")
        if is_plain:
            return self._unreachable((failure.details() or "no answer").rpartition(": ")[2])
        return error

    def _unreachable(self, why: str) -> UnavailableError:
        return self._unavailable(f"the {self._peer} at {self.endpoint} {UNREACHABLE} ({why})")

    async def close(self) -> None:
        """Close the channel; calls that are under way are cancelled."""
        await self.channel.close()
