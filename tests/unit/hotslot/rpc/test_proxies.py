"""Proxy variables of the environment: no call of ours goes through them, unless a setting says so."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot import BlockingHotslotClient, BlockingStoreClient, ChannelOptions
from hotslot.errors import HotslotError
from hotslot.local.children import Child, ChildSpec
from hotslot.rpc.channel import connect, open_blocking_channel, open_channel
from store_service.sources.hub.folder import HubFolder, HubOptions
from store_service.sources.hub.source import HubSource
from tests.unit.hotslot.conftest import SERVED_REVISION, Served
from worker_service.routing.forwarding import open_peers

ROOT = Path(__file__).resolve().parents[4]
VARIABLES = ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy")


class Proxy:
    """Accepts connections, notes what they ask for, and ends them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                line = connection.recv(4096).split(b"\r\n")[0].decode()
                if line == "END":
                    return
                self.asked.append(line)

    def close(self) -> None:
        with socket.create_connection(self._socket.getsockname()) as last:
            last.sendall(b"END\r\n")
        self._thread.join(60)
        self._socket.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    found = Proxy()
    for name in VARIABLES:
        monkeypatch.setenv(name, found.url)
        monkeypatch.setenv(name.upper(), found.url)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.setenv(name, "")
    yield found
    found.close()


def check(channel: grpc.Channel) -> None:
    with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stub has no methods
        stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=60)


def run(*command: str, **more: str) -> None:
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def is_ready(endpoint: str, log: Path) -> None:
    child = Child(ChildSpec("none", "this", endpoint, {}, log))
    try:
        assert child.is_ready()
    finally:
        child.kill()


async def connect_peer(endpoint: str) -> None:
    peers = open_peers(60.0)
    async with peers.use(endpoint) as channel:
        await connect(channel, 60.0)
    await peers.close()


async def connect_channel(endpoint: str) -> None:
    async with open_channel(endpoint) as channel:
        await connect(channel, 60.0)


def call_client(store: str, worker: str) -> None:
    with BlockingHotslotClient(store, worker) as client:
        assert client.complete("Hi", timeout_s=60.0).text == "Hello, sailor"
        assert client.store.resolve("pirate").revision == SERVED_REVISION


WAYS: dict[str, Callable[[str, str, Path], None]] = {
    "channel": lambda store, _, __: asyncio.run(connect_channel(store)),
    "blocking channel": lambda store, _, __: check(open_blocking_channel(store)),
    "forwarding": lambda _, worker, __: asyncio.run(connect_peer(worker)),
    "client": lambda store, worker, _: call_client(store, worker),
    "command": lambda store, _, __: run(sys.executable, "-m", "hotslot", "ls", HOTSLOT_STORE=store),
    "health check": lambda store, _, __: run(
        sys.executable, str(ROOT / "deploy" / "healthcheck.py"), "--address", store
    ),
    "supervised child": lambda store, _, log: is_ready(store, log / "log"),
}


@pytest.mark.parametrize("way", WAYS)
def test_calls_inside_of_the_network_do_not_go_through_a_proxy(
    served: Served, proxy: Proxy, way: str, tmp_path: Path
) -> None:
    asyncio.run_coroutine_threadsafe(served.set_ready(), served.loop).result(60)
    store, worker = (endpoint.replace("127.0.0.1", "localhost") for endpoint in served.endpoints)
    WAYS[way](store, worker, tmp_path)
    assert proxy.asked == []


def test_downloads_from_the_hub_go_through_the_proxy(proxy: Proxy) -> None:
    options = HubOptions("http://hub.invalid", timeout_s=5.0, num_attempts=1)
    source = HubSource(HubFolder("org/adapter", "main", "", options, 2**20))
    with pytest.raises(HotslotError):
        source.resolve()
    assert proxy.asked[0].startswith("GET http://hub.invalid/")


def test_a_setting_turns_the_proxy_on_and_a_failure_names_it(served: Served, proxy: Proxy) -> None:
    options = ChannelOptions(use_proxy=True, max_attempts=1)
    with (
        BlockingStoreClient(served.endpoints[0], options) as client,
        pytest.raises(HotslotError, match="cannot be reached, through the proxy that the environment names"),
    ):
        client.resolve("pirate")
    assert {line.split()[:2][0] for line in proxy.asked} == {"CONNECT"}
    assert served.endpoints[0] in proxy.asked[0].replace("%3A", ":")


@pytest.mark.parametrize(("value", "code"), [("true", 7), ("0", 0), ("", 0), ("perhaps", 2)])
def test_the_command_takes_the_same_setting_from_the_environment(
    served: Served, proxy: Proxy, value: str, code: int
) -> None:
    command = [sys.executable, "-m", "hotslot", "ls", "--store", served.endpoints[0]]
    environment = {**os.environ, "HOTSLOT_USE_PROXY": value}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    assert bool(proxy.asked) == (code == 7)
    # gRPC's core writes lines of its own.
    said = [line for line in done.stderr.splitlines() if line.startswith("hotslot:")]
    assert len(said) == (1 if code else 0)
    assert "Traceback" not in done.stderr
