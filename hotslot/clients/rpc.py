"""One connection to one service: a deadline on every call, errors as `hotslot.errors`, cancellation on close."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeVar, cast

import grpc

from hotslot.clients.home import Home, HomeChannel
from hotslot.codec import mismatch
from hotslot.endpoints import dialled_endpoint
from hotslot.errors import HotslotError, InvalidRequestError, UnavailableError
from hotslot.rpc.channel import ChannelOptions, connect, open_channel
from hotslot.rpc.handshakes import unreached_reason
from hotslot.rpc.sending import LOST_STATUS
from hotslot.rpc.status import from_rpc_error
from hotslot.tracing import span_inside

Req = TypeVar("Req")
Res = TypeVar("Res")

UNARY_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 1e8
"""Three years: gRPC has no end beyond it that it could keep."""
UNREACHABLE = "cannot be reached"


def checked_timeout(timeout_s: object, name: str = "timeout_s") -> float:
    """The seconds that a call may take; raises InvalidRequestError for what is no number of them."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 <= timeout_s <= MAX_TIMEOUT_S:
        raise InvalidRequestError([mismatch(name, timeout_s, f"seconds between 0 and {MAX_TIMEOUT_S:g}")])
    return timeout_s


def check_endpoint(endpoint: object) -> None:
    """Raise InvalidRequestError for what is no text."""
    if not isinstance(endpoint, str):
        raise InvalidRequestError([mismatch("endpoint", endpoint, "host:port as a string")])


class _UnreachableError(UnavailableError):
    """Failure that gRPC itself reports, in contrast to a server that answers UNAVAILABLE with a reason."""


class Connection:
    """A channel with the name of what is at its other end, for messages that say where a call failed.

    Opened by the first call; raises InvalidEndpointError at once, and what `Home.enter` does with every call.
    """

    def __init__(
        self,
        peer: str,
        endpoint: str,
        options: ChannelOptions,
        unavailable: type[UnavailableError] = UnavailableError,
    ) -> None:
        check_endpoint(endpoint)
        self.endpoint = str(dialled_endpoint(endpoint))
        self._home = Home(f"the client of the {peer} at {endpoint}")
        self._channel = HomeChannel(self._home, lambda: open_channel(endpoint, options))
        # It has what stubs use of one.
        self.channel = cast(grpc.aio.Channel, self._channel)
        self._peer = peer
        self._proxy = ", through the proxy that the environment names" if options.use_proxy else ""
        self._uses_tls = options.security.uses_tls
        self._unavailable = unavailable

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Req, Res],
        request: Req,
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> Res:
        """Call a method with one answer."""
        timeout_s = checked_timeout(timeout_s)
        try:
            return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as exc:
            raise self.error_from(exc) from exc
        except asyncio.CancelledError as exc:
            raise self._home.error_of(exc) from exc

    async def pages(self, method: Any, request: Any) -> AsyncGenerator[Any, None]:
        """Call a method that lists, for one page after the other, as they are asked for."""
        while True:
            page = await self.unary(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[Req, Res], request: Req, timeout_s: float
    ) -> AsyncGenerator[Res, None]:
        """Call a method that streams; closing the iterator cancels the call."""
        call = method(request, timeout=checked_timeout(timeout_s))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as exc:
            raise self.error_from(exc) from exc
        except asyncio.CancelledError as exc:
            raise self._home.error_of(exc) from exc
        finally:
            call.cancel()

    async def connect(self, timeout_s: float) -> None:
        """Wait until the connection stands; raises UnavailableError when it fails or takes too long."""
        try:
            with span_inside("hotslot.connect", {"server.address": self.endpoint}):
                await connect(self._channel.opened(), timeout_s)
        except UnavailableError as exc:
            raise self._unreachable(exc.message) from exc

    def error_from(self, failure: grpc.aio.AioRpcError) -> HotslotError:
        """The error behind a failed call; use as `raise connection.error_from(exc) from exc`."""
        error = from_rpc_error(failure, unavailable=_UnreachableError)
        is_plain = isinstance(error, _UnreachableError)
        if failure.details() == LOST_STATUS or (is_plain and failure.code() is grpc.StatusCode.CANCELLED):
            return self._unavailable(f"the {self._peer} at {self.endpoint} ended the call")
        if is_plain:
            return self._unreachable(unreached_reason(failure.details() or "", uses_tls=self._uses_tls))
        return error

    def _unreachable(self, why: str) -> UnavailableError:
        return self._unavailable(f"the {self._peer} at {self.endpoint} {UNREACHABLE}{self._proxy} ({why})")

    async def close(self) -> None:
        """Close the channel; calls that are under way raise ClientClosedError. Again, or in a child, is harmless."""
        await self._channel.close()
