"""`python -m tools.bench.isolation`: what one tenant's floods do to another tenant's time to the first token.

A worker over the echo model, whose steps take 10 ms, and callers with tokens, on loopback, each flood from a process of
its own. `tests/hostile/test_isolation.py` has the short form.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil

from hotslot.formats.principals import Scope
from hotslot.local.child_processes import free_port
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from hotslot.rpc.stub_method import Metadata
from hotslot.rpc.tenant import TENANT_KEY
from tests.support.principals import Roster, bearer
from tests.support.waiting import until_async

ROOT = Path(__file__).resolve().parents[2]
STEP_S = 0.01
FLOODS = ("rows", "tenants", "streams", "cancels")
NUM_ROWS, NUM_TENANTS, NUM_STREAMS, CANCELS_PER_S = 64, 200, 512, 5_000
CONCURRENT = 2
"""Requests of the quiet tenant at a time."""
PATIENCE_S = 20.0


def request(max_tokens: int) -> pb.GenerateRequest:
    """A request for so many tokens of the base model alone."""
    stop = pb.StopConditions(max_tokens=max_tokens, ignore_eos=True)
    return pb.GenerateRequest(text=f"endless {secrets.token_hex(4)}", base_only=True, stop=stop)


async def first_token_s(stub: Any, metadata: Metadata) -> float | None:
    """Time to the first message of a short request, which is read to its end; None where it was refused."""
    began_s = time.perf_counter()
    try:
        call = stub.Generate(request(4), metadata=metadata, timeout=PATIENCE_S)
        await call.read()
        took_s = time.perf_counter() - began_s
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError:
        return None
    return took_s


async def measure(endpoint: str, metadata: Metadata, for_s: float) -> dict[str, float]:
    """Times to the first token of one tenant, who sends one request after the other on a few streams."""
    times: list[float | None] = []
    async with grpc.aio.insecure_channel(endpoint) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        until_s = time.perf_counter() + for_s

        async def ask() -> None:
            while time.perf_counter() < until_s:
                times.append(await first_token_s(stub, metadata))
                await asyncio.sleep(0.02)

        await asyncio.gather(*(ask() for _ in range(CONCURRENT)))
    answered = sorted(took_s for took_s in times if took_s is not None)
    if len(answered) < 2:
        return {"answered": len(answered), "refused": len(times) - len(answered)}
    return {
        "answered": len(answered),
        "refused": len(times) - len(answered),
        "p50_ms": round(statistics.median(answered) * 1e3, 1),
        "p99_ms": round(answered[min(len(answered) - 1, int(0.99 * len(answered)))] * 1e3, 1),
    }


async def flood(kind: str, endpoint: str, token: str) -> None:
    """Harm others as well as one can, until the process is ended; the outcome is counted each second."""
    metadata: Metadata = (bearer(token),)
    outcomes: dict[str, int] = {}
    count = {"rows": NUM_ROWS, "tenants": NUM_TENANTS, "streams": NUM_STREAMS, "cancels": 64}[kind]
    pause_s = count / CANCELS_PER_S

    async with grpc.aio.insecure_channel(endpoint) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)

        async def one(index: int) -> None:
            own = ((TENANT_KEY, f"t{index}"),) if kind == "tenants" else ()
            while True:
                call = stub.Generate(request(480), metadata=(*metadata, *own), timeout=600)
                if kind == "cancels":
                    await asyncio.sleep(pause_s)
                    call.cancel()
                    outcome = "CANCELLED"
                else:
                    with suppress(grpc.aio.AioRpcError):
                        while await call.read() is not grpc.aio.EOF:
                            pass
                    outcome = (await call.code()).name
                    if outcome != "OK":
                        await asyncio.sleep(0.05)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1

        tasks = [asyncio.create_task(one(index)) for index in range(count)]
        while tasks:
            await asyncio.sleep(1.0)
            print(json.dumps(outcomes), flush=True)


@asynccontextmanager
async def echo_worker(folder: Path) -> AsyncIterator[tuple[str, Roster, psutil.Process]]:
    """A worker process that knows its callers: its endpoint, and the callers."""
    roster, port = Roster(folder / "principals.json"), free_port()
    roster.add("quiet", (Scope.USE,), ("quiet",))
    roster.add("loud", (Scope.USE,), ("loud",))
    roster.add("inventor", (Scope.USE,), ("*",))
    environment = {
        **os.environ,
        "HOTSLOT_MODEL": f"step {STEP_S}",
        "HOTSLOT_LISTEN": f"127.0.0.1:{port}",
        "HOTSLOT_STORE": f"127.0.0.1:{free_port()}",
        "HOTSLOT_FORWARD": "false",
        "HOTSLOT_PRINCIPALS_FILE": str(roster.path),
        "HOTSLOT_TOKEN_FILE": str(folder / "worker.token"),
        "HOTSLOT_LOG_LEVEL": "error",
    }
    (folder / "worker.token").write_text(roster.add("worker", (Scope.WORKER,), ("*",)))
    with worker_process(environment) as process:
        endpoint, metadata = f"127.0.0.1:{port}", (bearer(roster.tokens["quiet"]),)
        async with grpc.aio.insecure_channel(endpoint) as channel:
            stub = pb_grpc.InferenceServiceStub(channel)

            async def answers() -> bool:
                return await first_token_s(stub, metadata) is not None

            await until_async(answers, timeout_s=60)
        yield endpoint, roster, process


@contextmanager
def worker_process(environment: dict[str, str]) -> Iterator[psutil.Process]:
    """A worker process until the block is left."""
    command = [sys.executable, "-m", "tests.support.echo_process"]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=sys.stderr)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@contextmanager
def flooding(kind: str, endpoint: str, token: str) -> Iterator[dict[str, int]]:
    """A flood by another process until the block is left; then what became of its requests is known."""
    outcomes: dict[str, int] = {}
    command = [sys.executable, "-m", "tools.bench.isolation", "--flood", kind, "--endpoint", endpoint]
    environment = {**os.environ, "FLOOD_TOKEN": token}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield outcomes
    finally:
        process.kill()
        told, _ = process.communicate()
        outcomes |= json.loads(told.splitlines()[-1]) if told else {}


async def compare(kind: str, for_s: float) -> dict[str, Any]:
    """The quiet tenant before, while and after a flood; with the worker's memory and descriptors."""
    with tempfile.TemporaryDirectory() as folder:
        async with echo_worker(Path(folder)) as (endpoint, roster, worker):
            quiet: Metadata = (bearer(roster.tokens["quiet"]),)
            found: dict[str, Any] = {"before": await measure(endpoint, quiet, for_s / 4)}
            token = roster.tokens["inventor" if kind == "tenants" else "loud"]
            with flooding(kind, endpoint, token) as outcomes:
                await asyncio.sleep(3.0)
                found["while"] = await measure(endpoint, quiet, for_s / 2)
                found["worker"] = {"rss_mib": worker.memory_info().rss >> 20, "descriptors": worker.num_fds()}
            found["flood"] = outcomes
            await asyncio.sleep(1.0)
            found["after"] = await measure(endpoint, quiet, for_s / 4)
    return found


def main() -> None:
    """Print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=FLOODS, nargs="+", default=FLOODS)
    parser.add_argument("--for-s", type=float, default=24.0, help="seconds of measuring for one flood")
    parser.add_argument("--flood", choices=FLOODS, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.flood:
        asyncio.run(flood(arguments.flood, arguments.endpoint, os.environ["FLOOD_TOKEN"]))
        return
    found = {kind: asyncio.run(compare(kind, arguments.for_s)) for kind in arguments.only}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
