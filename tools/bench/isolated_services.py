"""Services that floods are tried on, each a process that knows its callers, and the waits of a quiet tenant."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx2
import psutil

from hotslot.formats.principals import Scope
from hotslot.local.child_processes import free_port
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, adapter_store_pb2_grpc
from hotslot.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from hotslot.rpc.stub_method import Metadata
from tests.support.checkpoints import base_spec
from tests.support.principals import Roster, bearer
from tests.support.waiting import until_async
from tools.bench.floods import KnownClient, request

ROOT = Path(__file__).resolve().parents[2]
STEP_S = 0.01
PATIENCE_S = 20.0
CONCURRENT = 2
"""Requests of the quiet tenant at a time."""

FAULTS = re.compile(r'^\w+_(?:count|total)\{.*(?:grpc_status="INTERNAL"|code="500").*\} ([\d.]+)$', re.MULTILINE)
"""Metrics of calls that ended as a fault of ours."""

AskedOnce = Callable[[], Awaitable[float]]
"""One request of the quiet tenant; the time to its first answer. Raises where there is none."""
REFUSALS = (grpc.aio.AioRpcError, httpx2.HTTPError, TimeoutError)


@dataclass(frozen=True)
class FloodedService:
    """One service that serves a quiet tenant and is flooded."""

    endpoint: str
    metrics: str
    process: psutil.Process
    folder: Path
    ask: AskedOnce

    async def measure(self, for_s: float) -> tuple[list[float], int]:
        """Times to the first answer of a tenant that asks again and again, and how often there was none."""
        times: list[float] = []
        failed = [0]
        until_s = time.perf_counter() + for_s

        async def asking() -> None:
            while time.perf_counter() < until_s:
                try:
                    times.append(await self.ask())
                except REFUSALS:
                    failed[0] += 1
                await asyncio.sleep(0.02)

        await asyncio.gather(*(asking() for _ in range(CONCURRENT)))
        return times, failed[0]

    async def held(self) -> dict[str, int]:
        """Processor time until now, memory, descriptors and disk now, and calls that ended as our own fault."""
        async with httpx2.AsyncClient(timeout=PATIENCE_S) as http:
            text = (await http.get(f"http://{self.metrics}/metrics")).text
        faults = re.findall(
            r'^\w+_(?:count|total)\{.*(?:grpc_status="INTERNAL"|code="5\d\d").*\} ([\d.]+)$', text, re.MULTILINE
        )
        sizes = [path.stat().st_size for path in self.folder.rglob("*") if path.is_file()]
        return {
            "cpu_ms": round(sum(self.process.cpu_times()[:2]) * 1e3),
            "rss_mib": self.process.memory_info().rss >> 20,
            "descriptors": self.process.num_fds(),
            "disk_kib": sum(sizes) >> 10,
            "internal": int(sum(map(float, faults))),
        }


def new_roster(folder: Path) -> Roster:
    """A quiet tenant, a loud one, one principal that may name any tenant, and services."""
    roster = Roster(folder / "principals.json")
    scopes = (Scope.USE, Scope.READ, Scope.PUBLISH)
    roster.add("quiet", scopes, ("quiet",))
    roster.add("loud", scopes, ("loud",))
    roster.add("inventor", scopes, ("*",))
    roster.add("operator", (Scope.OPERATOR,), ("*",))
    for name, scope in (("worker", Scope.WORKER), ("gateway", Scope.GATEWAY)):
        (folder / f"{name}.token").write_text(roster.add(name, (scope,), ("*",)))
    return roster


@asynccontextmanager
async def flooded_services(folder: Path, names: set[str]) -> AsyncIterator[tuple[dict[str, FloodedService], Roster]]:
    """Those services, and the callers that they know."""
    roster = new_roster(folder)
    async with AsyncExitStack() as stack:
        found: dict[str, FloodedService] = {}
        if names & {"worker", "gateway"}:
            found["worker"] = await stack.enter_async_context(_worker(folder, roster))
        if "store" in names:
            found["store"] = await stack.enter_async_context(_store(folder, roster))
        if "gateway" in names:
            found["gateway"] = await stack.enter_async_context(_gateway(folder, roster, found["worker"].endpoint))
        yield found, roster


@asynccontextmanager
async def _worker(folder: Path, roster: Roster) -> AsyncIterator[FloodedService]:
    own = {
        "HOTSLOT_MODEL": f"step {STEP_S}",
        "HOTSLOT_STORE": f"127.0.0.1:{free_port()}",
        "HOTSLOT_FORWARD": "false",
        "HOTSLOT_TOKEN_FILE": str(folder / "worker.token"),
    }
    async with _served("tests.support.echo_process", folder / "worker", "HOTSLOT_LISTEN", roster, own) as service:
        endpoint, metrics, process = service
        async with grpc.aio.insecure_channel(endpoint) as channel:
            stub: Any = pb_grpc.InferenceServiceStub(channel)
            metadata: Metadata = (bearer(roster.tokens["quiet"]),)

            async def ask() -> float:
                began_s = time.perf_counter()
                call = stub.Generate(request(4), metadata=metadata, timeout=PATIENCE_S)
                await call.read()
                took_s = time.perf_counter() - began_s
                while await call.read() is not grpc.aio.EOF:
                    pass
                return took_s

            await _until_answered(ask)
            yield FloodedService(endpoint, metrics, process, folder / "worker", ask)


@asynccontextmanager
async def _store(folder: Path, roster: Roster) -> AsyncIterator[FloodedService]:
    own = {"HOTSLOT_DATA_DIR": str(folder / "store" / "data")}
    async with _served("store_service", folder / "store", "HOTSLOT_LISTEN", roster, own) as service:
        endpoint, metrics, process = service
        async with grpc.aio.insecure_channel(endpoint) as channel:
            stub: Any = adapter_store_pb2_grpc.AdapterStoreServiceStub(channel)
            metadata: Metadata = (bearer(roster.tokens["quiet"]),)

            async def ask() -> float:
                began_s = time.perf_counter()
                await stub.ListAdapters(adapter_store_pb2.ListAdaptersRequest(), metadata=metadata, timeout=PATIENCE_S)
                return time.perf_counter() - began_s

            await _until_answered(ask)
            operator = KnownClient(channel)
            operator.token = roster.tokens["operator"]
            await operator.register(base_spec("acme/many", num_layers=600))
            yield FloodedService(endpoint, metrics, process, folder / "store", ask)


@asynccontextmanager
async def _gateway(folder: Path, roster: Roster, worker: str) -> AsyncIterator[FloodedService]:
    own = {"HOTSLOT_GATEWAY_WORKER": worker, "HOTSLOT_TOKEN_FILE": str(folder / "gateway.token")}
    served = _served("gateway_service", folder / "gateway", "HOTSLOT_GATEWAY_LISTEN", roster, own)
    async with served as (endpoint, metrics, process):
        headers = {"authorization": f"Bearer {roster.tokens['quiet']}"}
        async with httpx2.AsyncClient(base_url=f"http://{endpoint}", headers=headers, timeout=PATIENCE_S) as http:
            models: list[str] = []

            async def ask() -> float:
                if not models:
                    models.append((await http.get("/v1/models")).raise_for_status().json()["data"][0]["id"])
                began_s = time.perf_counter()
                body = {"model": models[0], "prompt": "hello", "max_tokens": 4, "stream": True}
                async with http.stream("POST", "/v1/completions", json=body) as answer:
                    answer.raise_for_status()
                    pieces = answer.aiter_bytes()
                    await anext(pieces)
                    took_s = time.perf_counter() - began_s
                    async for _ in pieces:
                        pass
                return took_s

            await _until_answered(ask)
            yield FloodedService(endpoint, metrics, process, folder / "gateway", ask)


async def _until_answered(ask: AskedOnce) -> None:
    async def answers() -> bool:
        try:
            await ask()
        except REFUSALS:
            return False
        return True

    await until_async(answers, timeout_s=120)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@asynccontextmanager
async def _served(
    module: str, folder: Path, listens: str, roster: Roster, own: Mapping[str, str]
) -> AsyncIterator[tuple[str, str, psutil.Process]]:
    """A process of a service that knows its callers: its endpoint, and that of its metrics."""
    folder = _made(folder)
    endpoint, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOTSLOT_")}
    common = {
        "HOTSLOT_PRINCIPALS_FILE": str(roster.path),
        "HOTSLOT_METRICS_LISTEN": metrics,
        "HOTSLOT_LOG_LEVEL": "error",
        "HOTSLOT_AUDIT_FILE": str(folder / "audit.log"),
    }
    with _process(module, {**inherited, **common, listens: endpoint, **own}) as process:
        yield endpoint, metrics, process


@contextmanager
def _process(module: str, environment: dict[str, str]) -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-m", module], env=environment, cwd=ROOT, stdout=sys.stderr)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()
