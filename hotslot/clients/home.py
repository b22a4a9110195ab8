"""Home of a client: the process and the event loop of its first call, outside of which it raises rather than hangs."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import grpc.aio

from hotslot.errors import ClientClosedError, ForkedClientError, WrongLoopError


class Home:
    """Process and event loop that a client lives in: none before its first call, so that it may be made anywhere."""

    def __init__(self, what: str) -> None:
        """`what` begins the messages."""
        self._what = what
        self._place: tuple[int, asyncio.AbstractEventLoop] | None = None
        self.is_closed = False

    def enter(self) -> None:
        """Live here, or be here again.

        Raises ClientClosedError, ForkedClientError in a child process, and WrongLoopError in another event loop.
        """
        if self.is_closed:
            raise ClientClosedError(self._what)
        if self._place is not None and self._place[0] != os.getpid():
            raise ForkedClientError(self._what)
        loop = asyncio.get_running_loop()
        if self._place is None:
            self._place = os.getpid(), loop
        elif self._place[1] is not loop:
            raise WrongLoopError(self._what)

    def leave(self) -> bool:
        """End living anywhere; whether what was opened is to be closed here. Again, or in a child, is harmless.

        Raises WrongLoopError while the loop that the client lives in is another one and goes on.
        """
        was_closed, place = self.is_closed, self._place
        is_here = place is not None and place[0] == os.getpid()
        if place is not None and is_here and place[1] is not asyncio.get_running_loop():
            if not place[1].is_closed() and not was_closed:
                raise WrongLoopError(self._what)
            is_here = False
        self.is_closed = True
        return is_here and not was_closed

    def error_of(self, cancelled: asyncio.CancelledError) -> BaseException:
        """A call's cancellation as its caller is to see it: by closing the client, or by the caller itself."""
        task = asyncio.current_task()
        if self.is_closed and (task is None or not task.cancelling()):
            return ClientClosedError(self._what)
        return cancelled


class HomeChannel:
    """A channel that its first call opens, and that is used at home only."""

    def __init__(self, home: Home, open_channel: Callable[[], grpc.aio.Channel]) -> None:
        self._home = home
        self._open = open_channel
        self._channel: grpc.aio.Channel | None = None

    def opened(self) -> grpc.aio.Channel:
        """The channel itself; raises what `Home.enter` does."""
        self._home.enter()
        if self._channel is None:
            self._channel = self._open()
        return self._channel

    async def close(self) -> None:
        """Close it; calls that are under way are cancelled."""
        if self._home.leave() and self._channel is not None:
            await self._channel.close()

    def unary_unary(self, *args: Any, **kwargs: Any) -> "_Method":
        return _Method(self, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> "_Method":
        return _Method(self, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> "_Method":
        return _Method(self, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> "_Method":
        return _Method(self, "stream_stream", args, kwargs)


class _Method:
    """A method of a stub, bound to the channel by its first call."""

    def __init__(self, channel: HomeChannel, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._channel = channel
        self._made_by = kind, args, kwargs
        self._inner: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        channel = self._channel.opened()
        if self._inner is None:
            kind, own_args, own_kwargs = self._made_by
            self._inner = getattr(channel, kind)(*own_args, **own_kwargs)
        return self._inner(*args, **kwargs)
