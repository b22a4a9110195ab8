"""The processes of the store's benchmarks: a store, a raw service beside it, and receivers that are told what to do."""

import asyncio
import multiprocessing
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import structlog

from hotslot.pb.hotslot.store.v1 import blob_pb2
from shared.process_tuning import reuse_freed_memory, spare_what_stays, take_turns_often
from tests.support.store import open_store
from tools.bench.loop_monitor import LoopMonitor

CONTEXT = multiprocessing.get_context("spawn")
MIB = 2**20

Connection = Any
"""One end of a multiprocessing pipe."""


class _RawBlobs:
    """A file's bytes from memory, unverified, in chunks of the size that `limit` says: what gRPC alone can do."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[str, int], list[bytes]] = {}

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[blob_pb2.ReadBlobResponse]:
        key = request.digest, request.limit
        if key not in self._chunks:
            data = await asyncio.to_thread(Path(request.digest).read_bytes)
            self._chunks[key] = [data[at : at + request.limit] for at in range(0, len(data), request.limit)]
        offset = 0
        for chunk in self._chunks[key]:
            yield blob_pb2.ReadBlobResponse(data=chunk, offset=offset)
            offset += len(chunk)


def log_errors_only() -> None:
    """To standard error: standard output is the result's alone."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def _serve_raw() -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(
        _RawBlobs().ReadBlob,
        request_deserializer=blob_pb2.ReadBlobRequest.FromString,
        response_serializer=blob_pb2.ReadBlobResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("hotslot.store.v1.BlobService", {"ReadBlob": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


def serve_raw(pipe: Connection, _: None) -> None:
    """The raw service in a process as Python starts it."""

    async def main() -> None:
        server, endpoint = await _serve_raw()
        pipe.send(endpoint)
        await server.wait_for_termination()

    asyncio.run(main())


def serve_stores(pipe: Connection, folders: tuple[tuple[Path, dict[str, Any]], ...]) -> None:
    """Stores, one for each folder with its settings, and the raw service, all in a process set up as the store's is.

    "watch" begins to time the loop's callbacks; "report" ends that and answers what was seen, with the worst of them.
    """
    log_errors_only()
    reuse_freed_memory()
    take_turns_often()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(open_store(folder, **settings)) for folder, settings in folders]
            server, raw = await _serve_raw()
            stack.push_async_callback(server.stop, 0)
            spare_what_stays()
            pipe.send((*(store.endpoint for store in stores), raw))
            monitor: LoopMonitor | None = None
            while asked := await asyncio.to_thread(pipe.recv):
                if asked == "watch":
                    monitor = LoopMonitor()
                    pipe.send(None)
                elif monitor is not None:
                    stalls = monitor.stop()
                    pipe.send((stalls.as_row(), sorted(stalls.worst, reverse=True)[:8]))

    asyncio.run(main())


def receive(pipe: Connection, tuned: bool) -> None:
    """Runs the coroutine functions that it is sent with their arguments, and answers their results."""
    log_errors_only()
    if tuned:
        reuse_freed_memory()
    pipe.send("ready")

    async def main() -> None:
        while True:
            function, arguments = await asyncio.to_thread(pipe.recv)
            pipe.send(await function(*arguments))

    asyncio.run(main())


class Process:
    """A process at the other end of a pipe."""

    def __init__(self, target: Callable[[Connection, Any], None], argument: Any) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=target, args=(theirs, argument), daemon=True)
        self._process.start()
        self.first: Any = self._receive()
        """Message of the process when it was ready."""

    def ask(self, message: Any) -> Any:
        """Send, and wait for the answer."""
        self._pipe.send(message)
        return self._receive()

    def run(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """The result of a coroutine function in a process that runs `receive`."""
        self.send(function, *arguments)
        return self.result()

    def send(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Begin what `run` does; `result` waits for it."""
        self._pipe.send((function, arguments))

    def result(self) -> Any:
        """Result of the function that was sent."""
        return self._receive()

    @property
    def peak_mib(self) -> float:
        """The most memory that it ever had in use."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    @property
    def cpu_s(self) -> float:
        """Processor time that it has used so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def rss_mib(self) -> float:
        """The memory in use now."""
        return float(psutil.Process(self._process.pid).memory_info().rss / MIB)

    def _receive(self) -> Any:
        while not self._pipe.poll(1):
            if not self._process.is_alive():
                raise SystemExit(f"process {self._process.pid} of the benchmark ended early")
        return self._pipe.recv()

    def end(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.join()


@contextmanager
def process(target: Callable[[Connection, Any], None], argument: Any = None) -> Iterator[Process]:
    """A process for as long as the block."""
    started = Process(target, argument)
    try:
        yield started
    finally:
        started.end()
