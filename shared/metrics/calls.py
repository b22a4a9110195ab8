"""Numbers of calls, by gRPC's proposal A66 (https://github.com/grpc/proposal/blob/master/A66-otel-stats.md)."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from hotslot.rpc.attempts import TOLD_KEY, MessageSizes, previous_attempts
from shared.metrics.numbers import BoundedLabels, Measured, Spreads, Tally
from shared.server.counters import BOUND_REFUSALS, CUT_OFF, QUOTA_REFUSALS, Counters

MAX_TARGETS = 100
REFUSALS = {
    QUOTA_REFUSALS: "hotslot_quota_refusals_total",
    BOUND_REFUSALS: "hotslot_bound_refusals_total",
    CUT_OFF: "hotslot_streams_cut_off_total",
}
"""Metrics of the counters of what was refused."""


def method_label(method: str) -> str:
    """Name of a method as A66 has it: without the first slash."""
    return method.removeprefix("/")


class ServerCalls:
    """Calls of one server."""

    def __init__(self, refused: Counters) -> None:
        """`refused` counts what the server's bounds and quotas refuse."""
        self._refused = refused
        self._started = Tally("grpc_server_call_started_total")
        self._durations = Spreads("grpc_server_call_duration_seconds")
        self._sent = Spreads("grpc_server_call_sent_total_compressed_message_size_bytes")
        self._received = Spreads("grpc_server_call_rcvd_total_compressed_message_size_bytes")
        self._errors = Tally("hotslot_call_errors_total")
        self.num_running = 0

    def started(self, method: str) -> None:
        """A call began."""
        self.num_running += 1
        self._started.add(method_label(method))

    def ended(self, method: str, code: str, reason: str, duration_s: float, sent: int, received: int) -> None:
        """A call ended, after so many bytes either way."""
        self.num_running -= 1
        labels = (method_label(method), code)
        self._durations.add(duration_s, *labels)
        self._sent.add(sent, *labels)
        self._received.add(received, *labels)
        if reason:
            self._errors.add(labels[0], reason)

    def readings(self) -> Iterator[Measured]:
        """Values now."""
        yield Measured("hotslot_calls_running", self.num_running)
        for (name, label), count in self._refused.snapshot().items():
            yield Measured(REFUSALS[name], count, (label,))
        for numbers in (self._started, self._durations, self._sent, self._received, self._errors):
            yield from numbers.readings()


class ClientCalls:
    """Calls of one process to other services, as its channels tell of them. Belongs to one event loop."""

    def __init__(self) -> None:
        self._durations = Spreads("grpc_client_call_duration_seconds")
        self._attempts = Tally("grpc_client_attempt_started_total")
        self._attempt_durations = Spreads("grpc_client_attempt_duration_seconds")
        self._sent = Spreads("grpc_client_attempt_sent_total_compressed_message_size_bytes")
        self._received = Spreads("grpc_client_attempt_rcvd_total_compressed_message_size_bytes")
        self._targets = BoundedLabels(MAX_TARGETS)
        self._ending: set[asyncio.Task[None]] = set()

    def begun(self, endpoint: str, method: str, call: Any, sizes: MessageSizes) -> None:
        """Hear of a call."""
        began_s = time.monotonic()
        self._attempts.add(method_label(method), *self._targets(endpoint))
        call.add_done_callback(lambda done: self._ended(endpoint, method, done, time.monotonic() - began_s, sizes))

    def readings(self) -> Iterator[Measured]:
        """Values now."""
        for numbers in (self._durations, self._attempts, self._attempt_durations, self._sent, self._received):
            yield from numbers.readings()

    def _ended(self, endpoint: str, method: str, call: Any, duration_s: float, sizes: MessageSizes) -> None:
        ending = asyncio.get_running_loop().create_task(self._count(endpoint, method, call, duration_s, sizes))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _count(self, endpoint: str, method: str, call: Any, duration_s: float, sizes: MessageSizes) -> None:
        # Of a call that has ended, status and trailing metadata are there.
        code = await call.code()
        called = (method_label(method), *self._targets(endpoint))
        labels = (*called, code.name)
        repeated = previous_attempts(await call.trailing_metadata(), TOLD_KEY)
        if repeated:
            self._attempts.add(*called, by=repeated)
        self._durations.add(duration_s, *labels)
        self._attempt_durations.add(duration_s, *labels)
        self._sent.add(sizes.sent, *labels)
        self._received.add(sizes.received, *labels)
