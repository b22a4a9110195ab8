"""Methods of stubs over our channels: the defaults of every call, and the channel that is open when it is made."""

from collections.abc import Sequence
from typing import Any, Protocol

import grpc

from hotslot.rpc.attempts import MessageSizes, counting
from hotslot.rpc.traced_calls import begin_call_span, end_with
from hotslot.trace_context import TRACEPARENT, TRACESTATE, TraceContext
from hotslot.tracing import NO_SPAN, context_to_carry

Metadata = Sequence[tuple[str, str | bytes]]


class CallHearer(Protocol):
    """Hears of calls; must neither block nor raise."""

    def begun(self, endpoint: str, method: str, call: Any, sizes: MessageSizes) -> None:
        """A call began, over a channel to an endpoint; `call` is gRPC's for asyncio, and has its sizes at its end."""


class DefaultsChannel(Protocol):
    """A channel of `hotslot.rpc.channel`."""

    def current(self) -> Any:
        """The channel that new calls go over."""

    def defaults(self) -> Metadata:
        """Metadata of every call."""

    @property
    def hearer(self) -> CallHearer | None:
        """Object that hears of its calls."""

    @property
    def endpoint(self) -> str:
        """Endpoint that it is for."""


class StubMethod:
    """A method of a stub, with the defaults filled in. All of grpc's call shapes take the same keywords."""

    def __init__(self, channel: DefaultsChannel, kind: str, made_by: tuple[Any, Any], timeout_s: float | None) -> None:
        self._channel = channel
        self._kind = kind
        self._made_by = made_by
        self._timeout_s = timeout_s
        self._opened: Any = None
        self._inner: Any = None

    def __call__(self, *args: Any, timeout: float | None = None, metadata: Any = None, **rest: Any) -> Any:
        method = self._bound()
        # Calls for threads do not tell of their end.
        is_async = isinstance(self._opened, grpc.aio.Channel)
        span = begin_call_span(self._channel.endpoint, self._made_by[0][0]) if is_async else NO_SPAN
        carried = span.context or context_to_carry()
        sizes = MessageSizes()
        if self._channel.hearer is not None:
            given, named = counting(self._made_by, sizes)
            method = getattr(self._opened, self._kind)(*given, **named)
        call = method(*args, timeout=self._deadline(timeout), metadata=self._merge(metadata, carried), **rest)
        end_with(call, span)
        if self._channel.hearer is not None:
            self._channel.hearer.begun(self._channel.endpoint, self._made_by[0][0], call, sizes)
        return call

    def with_call(self, *args: Any, timeout: float | None = None, metadata: Any = None, **rest: Any) -> Any:
        """Blocking stubs only."""
        return self._bound().with_call(*args, timeout=self._deadline(timeout), metadata=self._merge(metadata), **rest)

    def future(self, *args: Any, timeout: float | None = None, metadata: Any = None, **rest: Any) -> Any:
        """Blocking stubs only."""
        return self._bound().future(*args, timeout=self._deadline(timeout), metadata=self._merge(metadata), **rest)

    def _bound(self) -> Any:
        """The method of the channel that is open now."""
        opened = self._channel.current()
        if opened is not self._opened:
            args, kwargs = self._made_by
            self._opened, self._inner = opened, getattr(opened, self._kind)(*args, **kwargs)
        return self._inner

    def _deadline(self, timeout_s: float | None) -> float | None:
        return self._timeout_s if timeout_s is None else timeout_s

    def _merge(self, metadata: Any, trace: TraceContext | None = None) -> tuple[tuple[str, str | bytes], ...]:
        """Merge a call's metadata with the defaults; the call's own wins, and its trace over all."""
        own = tuple(metadata or ())
        keys = {key for key, _ in own}
        merged = (*(pair for pair in self._channel.defaults() if pair[0] not in keys), *own)
        if trace is None:
            return merged
        return (*(pair for pair in merged if pair[0] not in (TRACEPARENT, TRACESTATE)), *trace.metadata)
