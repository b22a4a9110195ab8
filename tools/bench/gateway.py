"""Measures what HTTP costs: the same generations over plain gRPC, and through a gateway as the worker's sidecar.

`python -m tools.bench.gateway [--quick]` prints one JSON object. Worker and gateway are processes, the worker around a
model that computes nothing; rounds over gRPC and over HTTP take turns. Both clients read messages and keep their
connections; the HTTP one is a bare socket, so that it is the gateway that is measured.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import psutil

from hotslot.local.child_processes import free_port
from hotslot.local.embedded_valkey import embedded_valkey
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from shared.server.grpc_server import ServerOptions, serve
from tests.support.echo_model import echo_model
from tests.support.echo_worker import Calls, make_request
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until_async
from tools.bench.echo import cpu_s, main, worker

STREAMS = (1, 32)
TOKENS = 200
BASE = echo_model().spec.name
FIRST = b'"finish_reason":null'
DONE = b"data: [DONE]\n\n"


class HttpConnection:
    """A kept connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> "HttpConnection":
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def generate(self, prompt: str, max_tokens: int) -> float:
        """Read a stream to its end; returns the seconds until its first token."""
        body = json.dumps({"model": BASE, "prompt": prompt, "max_tokens": max_tokens, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        began_s = time.perf_counter()
        self._writer.write(head + body)
        await self._reader.readuntil(FIRST)
        first_s = time.perf_counter() - began_s
        # The last chunk of the body, and the empty one that ends it.
        await self._reader.readuntil(DONE + b"\r\n0\r\n\r\n")
        return first_s

    def close(self) -> None:
        """Close it."""
        self._writer.transport.abort()


class HttpGenerations:
    """Generations through the gateway."""

    def __init__(self, connections: list[HttpConnection]) -> None:
        self._connections = connections

    async def first_token_s(self) -> float:
        """Seconds from a request to its first token."""
        return await self._connections[0].generate("hello", 4)

    async def generate(self, streams: int) -> None:
        """As many streams at the same time."""
        await asyncio.gather(*(each.generate("endless", TOKENS) for each in self._connections[:streams]))


class GrpcGenerations:
    """Generations by the worker's own protocol."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def first_token_s(self) -> float:
        """Seconds from a request to its first token."""
        began_s = time.perf_counter()
        request = make_request(base_only=True, stop=pb.StopConditions(max_tokens=4))
        call = self._calls.inference.Generate(request, timeout=30)
        while (await call.read()).WhichOneof("event") != "chunk":
            pass
        seconds = time.perf_counter() - began_s
        while await call.read():
            pass
        return seconds

    async def generate(self, streams: int) -> None:
        """As many streams at the same time."""
        await asyncio.gather(*(self._one() for _ in range(streams)))

    async def _one(self) -> None:
        stop, tokens = pb.StopConditions(max_tokens=TOKENS), 0
        async for message in self._calls.inference.Generate(
            make_request(text="endless", base_only=True, stop=stop), timeout=120
        ):
            tokens += len(message.chunk.token_ids)
        assert tokens == TOKENS, f"{tokens} tokens came"


@asynccontextmanager
async def gateway_of(endpoint: str) -> AsyncIterator[tuple[int, psutil.Process]]:
    """A gateway's process as the sidecar of a worker: its port, once it serves."""
    port = free_port()
    settings = {
        "HOTSLOT_GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "HOTSLOT_GATEWAY_WORKER": endpoint,
        "HOTSLOT_LOG_LEVEL": "error",
        # Connections of later rounds wait for their turn.
        "HOTSLOT_GATEWAY_IDLE_S": "3600",
    }
    command = (sys.executable, "-m", "gateway_service")
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **settings}, stderr=DEVNULL)
    try:

        async def is_ready() -> bool:
            try:
                connection = await HttpConnection.open(port)
                await asyncio.wait_for(connection.generate("hello", 4), 5)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.1)
                return False
            connection.close()
            return True

        await until_async(is_ready, timeout_s=60)
        yield port, psutil.Process(process.pid)
    finally:
        process.kill()
        await process.wait()


async def measure(step_s: float, rounds: int, requests: int) -> dict[str, float]:
    """Both protocols in turns, medians of all rounds."""
    async with AsyncExitStack() as stack:
        redis_url = stack.enter_context(embedded_valkey()).url
        store = await stack.enter_async_context(serve(MemoryStore().services(), ServerOptions(), observers=()))
        listen = f"127.0.0.1:{free_port()}"
        model = f"step {step_s} {max(STREAMS)}"
        calls, _ = await stack.enter_async_context(worker(f"127.0.0.1:{store.port}", redis_url, model, listen))
        port, gateway = await stack.enter_async_context(gateway_of(listen))
        connections = [await HttpConnection.open(port) for _ in range(max(STREAMS))]
        for connection in connections:
            stack.callback(connection.close)
        ways: dict[str, GrpcGenerations | HttpGenerations] = {
            "grpc": GrpcGenerations(calls),
            "http": HttpGenerations(connections),
        }
        first: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(requests):
            for name, way in ways.items():
                first[name].append(await way.first_token_s())
        found = _first_tokens(first)
        began_s = cpu_s(gateway)
        for _ in range(requests):
            await ways["http"].first_token_s()
        found["gateway_cpu_per_request_ms"] = round((cpu_s(gateway) - began_s) / requests * 1e3, 3)
        for streams in STREAMS:
            rates: dict[str, list[float]] = {name: [] for name in ways}
            used_s = 0.0
            for _ in range(rounds):
                for name, way in ways.items():
                    began_s, cpu_began_s = time.perf_counter(), cpu_s(gateway)
                    await way.generate(streams)
                    rates[name].append(streams * TOKENS / (time.perf_counter() - began_s))
                    used_s += cpu_s(gateway) - cpu_began_s
            shares = [http / grpc for http, grpc in zip(rates["http"], rates["grpc"], strict=True)]
            found |= {
                f"grpc_{streams}_tok_s": round(statistics.median(rates["grpc"]), 1),
                f"http_{streams}_tok_s": round(statistics.median(rates["http"]), 1),
                f"http_of_grpc_{streams}": round(statistics.median(shares), 3),
                # What the machine's other work cannot disturb.
                f"gateway_cpu_per_token_{streams}_ms": round(used_s / (rounds * streams * TOKENS) * 1e3, 4),
            }
    return found


def _first_tokens(first: dict[str, list[float]]) -> dict[str, float]:
    more_s = [http - grpc for http, grpc in zip(first["http"], first["grpc"], strict=True)]
    quick_s = {name: statistics.quantiles(values, n=10)[0] for name, values in first.items()}
    return {
        "first_token_grpc_ms": round(statistics.median(first["grpc"]) * 1e3, 3),
        "first_token_http_ms": round(statistics.median(first["http"]) * 1e3, 3),
        "http_more_ms": round(statistics.median(more_s) * 1e3, 3),
        # The quickest tenth says what it costs when nothing else wants the processor.
        "http_more_undisturbed_ms": round((quick_s["http"] - quick_s["grpc"]) * 1e3, 3),
    }


if __name__ == "__main__":
    main(__doc__, measure)
