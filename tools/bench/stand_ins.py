"""Stand-ins for a flooded service: `python -m tools.bench.stand_ins SERVICE/FLOOD OUTCOMES`, which prints its port.

A flood against one costs its attacker as much as a flood against the service itself, while the service is left alone:
so the time that a quiet tenant loses to it is the machine's. A stand-in does no work. It ends what is held, oldest
first, at the pace and with the outcomes with which the service did; OUTCOMES has them, each a second, as JSON.
"""

import asyncio
import json
import sys
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from shared.server.grpc_server import MAX_WAITING_CALLS
from tools.bench.floods import FLOODS, GENERATE, TICK_S, RawCalls
from tools.bench.http_floods import CLOSED, HttpClients

NUM_ROWS, NUM_TOKENS, STEP_S = 4, 480, 0.01
"""Answers that run at a time, their tokens, and the time of each: those of the worker that is flooded."""
BODY_BYTES = 200
MOST_AT_ONCE_S = 0.1
"""Ends that come late are made up for, of so much time at most."""
OK = "OK"


class Ends:
    """Turns of all that is held: each ends with an outcome, in the order in which it came."""

    def __init__(self, per_s: Mapping[str, float]) -> None:
        """Ends of each outcome a second; with none everything is held for ever."""
        self._per_s = {outcome: rate for outcome, rate in per_s.items() if rate > 0}
        self._waiting: deque[asyncio.Future[str]] = deque()
        self._owed: defaultdict[str, float] = defaultdict(float)

    async def turn(self) -> str:
        """Wait for one's end; returns its outcome."""
        mine: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        return await mine

    async def run(self) -> None:
        """End what is due, until cancelled."""
        loop = asyncio.get_running_loop()
        total, due, last_s = sum(self._per_s.values()), 0.0, loop.time()
        while total:
            await asyncio.sleep(TICK_S)
            now_s = loop.time()
            due = min(due + (now_s - last_s) * total, max(1.0, total * MOST_AT_ONCE_S))
            last_s = now_s
            while due >= 1 and self._waiting:
                first = self._waiting.popleft()
                if not first.done():
                    first.set_result(self._next(total))
                    due -= 1

    def _next(self, total: float) -> str:
        for outcome, rate in self._per_s.items():
            self._owed[outcome] += rate / total
        chosen = max(self._per_s, key=lambda outcome: self._owed[outcome])
        self._owed[chosen] -= 1
        return chosen


class Connections:
    """Connections that are read, and closed in their turn."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one."""
        reading = asyncio.create_task(_read_to_the_end(reader))
        turn = asyncio.create_task(self._ends.turn())
        await asyncio.wait((reading, turn), return_when=asyncio.FIRST_COMPLETED)
        reading.cancel()
        turn.cancel()
        await _close(writer)


class HttpAnswers:
    """Connections whose requests are answered in their turn."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                status = await self._ends.turn()
                head = f"HTTP/1.1 {status} so\r\ncontent-length: {BODY_BYTES}\r\n\r\n"
                writer.write(head.encode() + b"x" * BODY_BYTES)
                await writer.drain()
        await _close(writer)


class Calls(grpc.GenericRpcHandler):
    """Calls of any method: some generate, as many as there are rows; the others end in their turn."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._rows = NUM_ROWS

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Handler of a call."""
        is_generation = handler_call_details.method == GENERATE

        async def answer(_: Any, context: Any) -> None:
            reading = asyncio.create_task(_read_all(context))
            try:
                if is_generation and self._rows:
                    await self._generate(context)
                elif (outcome := await self._ends.turn()) == OK:
                    await context.write(b"")
                else:
                    await context.abort(grpc.StatusCode[outcome], "as the service ended such a call")
            finally:
                reading.cancel()

        return grpc.stream_stream_rpc_method_handler(answer)

    async def _generate(self, context: Any) -> None:
        self._rows -= 1
        try:
            for _ in range(NUM_TOKENS):
                await context.write(b"")
                await asyncio.sleep(STEP_S)
        finally:
            self._rows += 1


@asynccontextmanager
async def stand_in(kind: str, per_s: Mapping[str, float]) -> AsyncIterator[int]:
    """A stand-in for the service of a flood, which ends so much a second; its port."""
    service, _, name = kind.partition("/")
    flood = FLOODS[service][name]
    is_raw = isinstance(flood, RawCalls) or (isinstance(flood, HttpClients) and not flood.reads)
    ends = Ends({outcome: rate for outcome, rate in per_s.items() if _is_end(flood, is_raw, outcome)})
    running = asyncio.create_task(ends.run())
    try:
        if is_raw or isinstance(flood, HttpClients):
            serve = Connections(ends) if is_raw else HttpAnswers(ends)
            server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1_024)
            async with server:
                yield server.sockets[0].getsockname()[1]
        else:
            options = [("grpc.server.max_pending_requests", MAX_WAITING_CALLS), ("grpc.so_reuseport", 0)]
            calls = grpc.aio.server(handlers=[Calls(ends)], options=options)
            port = calls.add_insecure_port("127.0.0.1:0")
            await calls.start()
            try:
                yield port
            finally:
                await calls.stop(None)
    finally:
        running.cancel()


def _is_end(flood: object, is_raw: bool, outcome: str) -> bool:
    if is_raw:
        return outcome == CLOSED
    if isinstance(flood, HttpClients):
        return outcome.isdigit()
    return outcome in grpc.StatusCode.__members__


async def _read_to_the_end(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(2**16):
            pass


async def _read_all(context: Any) -> None:
    while await context.read() is not grpc.aio.EOF:
        pass


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _main(kind: str, per_s: Mapping[str, float]) -> None:
    async with stand_in(kind, per_s) as port:
        print(port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], json.loads(sys.argv[2])))
