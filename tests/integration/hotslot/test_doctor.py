"""`hotslot doctor` on a real deployment: all is well, and then each part is broken once and its line says so."""

import json
import os
import re
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from hotslot import BlockingHotslotClient
from hotslot.cli import deployment_checks
from hotslot.cli.app import run
from hotslot.local import machine_checks
from hotslot.local.child_processes import free_port
from hotslot.local.children import Child, ChildSpec
from hotslot.local.embedded_valkey import embedded_valkey
from hotslot.local.health_probe import STORE_SERVICE, WORKER_SERVICE
from hotslot.rpc.server_facts import ServerFacts
from tests.support.stack import Stack

pytestmark = pytest.mark.integration

Found = dict[str, tuple[str, str]]
Doctor = Callable[..., tuple[int, Found]]


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A deployment of this module's own, which its tests break and mend."""
    with Stack(tmp_path_factory.mktemp("sick")) as stack:
        stack.start_store()
        stack.launch_echo_worker().wait_ready(120)
        yield stack


@pytest.fixture(scope="module")
def gateway(sick: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert sick.store is not None
    endpoint = f"127.0.0.1:{free_port()}"
    settings = {"HOTSLOT_GATEWAY_LISTEN": endpoint, "HOTSLOT_STORE": sick.store.spec.endpoint}
    log = tmp_path_factory.mktemp("gateway") / "gateway.log"
    child = Child(ChildSpec("gateway", "gateway_service", endpoint, settings, log, health_path="/health"))
    child.wait_ready(120)
    yield f"http://{endpoint}"
    child.kill()


@pytest.fixture
def doctor(
    sick: Stack, gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Doctor:
    assert sick.store is not None
    for name, value in {
        "HOTSLOT_STORE": sick.store.spec.endpoint,
        "HOTSLOT_WORKER": sick.workers[0].spec.endpoint,
        "HOTSLOT_GATEWAY": gateway,
        "HOTSLOT_DATA_DIR": str(tmp_path / "data"),
        "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }.items():
        monkeypatch.setenv(name, value)

    def examine(*arguments: str) -> tuple[int, Found]:
        capsys.readouterr()
        code = run(["doctor", "--json", *arguments])
        out, err = capsys.readouterr()
        assert err == ""
        document = json.loads(out)
        assert document["ok"] is (code == 0)
        assert all(one["advice"] for one in document["checks"] if one["level"] != "ok"), "each says what to do"
        return code, {one["check"]: (one["level"], one["found"]) for one in document["checks"]}

    return examine


@contextmanager
def another_release(service: str, facts: ServerFacts | None) -> Iterator[str]:
    """A server of another release, as far as a health check sees one."""

    class Facts(health.HealthServicer):
        def Check(self, request: Any, context: Any) -> Any:
            if facts is not None:
                context.set_trailing_metadata(facts.to_metadata())
            return super().Check(request, context)

    servicer = Facts()
    servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def web_server(status: int, body: bytes) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def test_all_is_well_line_by_line(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = doctor()
    assert code == 0
    assert found.pop("hub")[0] == "warn", "there is none here"
    assert {level for level, _ in found.values()} == {"ok"}, found
    assert list(found) == [
        "contexts", "store", "worker", "redis", "fleet", "versions", "clocks", "base models", "gateway", "transport",
        "token", "data folder", "disk", "compiled code", "up",
    ]  # fmt: skip
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "warn") for line in lines)
    assert len(lines) == len(found) + 2, "the hub's, and a second one of transport: the worker's"


def test_who_does_not_answer_and_who_answers_instead_is_said(doctor: Doctor, sick: Stack) -> None:
    assert sick.store is not None
    store, worker = sick.store.spec.endpoint, sick.workers[0].spec.endpoint
    code, found = doctor("--store", f"127.0.0.1:{free_port()}", "--worker", store)
    assert code == 1
    assert found["store"][0] == found["worker"][0] == "fail"
    assert "nothing answers at" in found["store"][1]
    assert found["worker"][1] == f"{store} is a store rather than a worker"
    assert doctor("--store", worker)[1]["store"][1] == f"{worker} is a worker rather than a store"
    with web_server(200, b"hello") as port:
        level, text = doctor("--worker", f"127.0.0.1:{port}")[1]["worker"]
    assert level == "fail"
    assert f"process {os.getpid()} (" in text, "the process that has the port is named"


def test_a_port_that_takes_connections_and_says_nothing_is_not_waited_for(doctor: Doctor) -> None:
    class Silent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            time.sleep(120)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Silent) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        begin_s = time.monotonic()
        level, text = doctor("--worker", f"127.0.0.1:{server.server_address[1]}")[1]["worker"]
        server.shutdown()
    assert (level, "does not answer as a worker within" in text) == ("fail", True)
    assert time.monotonic() - begin_s < 60


def test_a_drained_worker_and_a_fleet_without_a_ready_one_are_warned_of(doctor: Doctor, sick: Stack) -> None:
    endpoint = sick.workers[0].spec.endpoint
    assert run(["drain", "--worker", endpoint]) == 0
    code, found = doctor()
    assert found["worker"][0] == "warn"
    assert "is not ready" in found["worker"][1]
    assert (code, found["gateway"][0]) == (1, "fail"), "it has no worker to call"
    until_sync(lambda: doctor()[1]["fleet"][0] == "warn")
    assert run(["undrain", "--worker", endpoint]) == 0
    until_sync(lambda: doctor()[1]["fleet"][0] == "ok" and doctor()[1]["worker"][0] == "ok")


def test_a_redis_that_is_away_is_a_failure_of_the_deployment(doctor: Doctor, sick: Stack) -> None:
    os.kill(sick.valkey_pid, signal.SIGKILL)
    try:
        code, found = doctor("--redis-url", sick.redis_url)
        assert code == 1
        assert found["redis"][0] == "fail", found["redis"]
        assert "does not answer" in found["redis"][1]
    finally:
        sick.restart_valkey()
    until_sync(lambda: doctor("--redis-url", sick.redis_url)[1].get("fleet", ("", ""))[0] == "ok")
    assert doctor("--redis-url", sick.redis_url)[1]["redis"] == ("ok", f"{sick.redis_url} answers")


def test_a_worker_of_no_fleet_and_a_base_model_that_the_store_lost_are_found(doctor: Doctor, sick: Stack) -> None:
    assert sick.store is not None
    with embedded_valkey() as other:
        lonely = sick.launch_echo_worker(redis_url=other.url)
        try:
            lonely.wait_ready(120)
            level, text = doctor("--worker", lonely.spec.endpoint)[1]["membership"]
            assert (level, "is not in the store's fleet" in text) == ("warn", True)
        finally:
            sick.workers.remove(lonely)
            lonely.kill()
    with BlockingHotslotClient(sick.store.spec.endpoint) as client:
        (base,) = client.store.list_base_models()
        client.store.delete_base_model(base.digest)
        code, found = doctor()
        assert (code, found["base models"][0]) == (1, "fail")
        assert "which the store does not know" in found["base models"][1]
        client.store.register_base_model(base.spec)
    assert doctor()[1]["base models"][0] == "ok"


@pytest.mark.parametrize(("skew_s", "level"), [(30.0, "warn"), (-4000.0, "fail")])
def test_another_release_and_another_clock_are_told(doctor: Doctor, skew_s: float, level: str) -> None:
    with another_release(WORKER_SERVICE, ServerFacts("9.9.9", time.time() + skew_s)) as endpoint:
        code, found = doctor("--worker", endpoint)
    assert found["versions"][0] == "warn"
    assert f"worker {endpoint} has 9.9.9" in found["versions"][1]
    assert found["clocks"][0] == level
    said = re.search(r"is (\d+) s (ahead|behind)", found["clocks"][1])
    assert said is not None
    # The facts were made before the server was asked.
    assert abs(float(said[1]) * (1 if said[2] == "ahead" else -1) - skew_s) < 10
    assert code == 1, "that worker says nothing else"


def test_a_release_that_tells_no_facts_is_an_earlier_one(doctor: Doctor) -> None:
    with another_release(STORE_SERVICE, None) as endpoint:
        assert "has an earlier release" in doctor("--store", endpoint)[1]["versions"][1]


def test_a_gateway_that_is_away_not_ready_or_none_is_a_failure(doctor: Doctor) -> None:
    assert doctor("--gateway", f"http://127.0.0.1:{free_port()}")[1]["gateway"][0] == "fail"
    for status, body, part in (
        (503, b'{"error": {"message": "no worker"}}', "is not ready: 503 no worker"),
        (200, b"<html>", "does not answer as one"),
        (200, b"{}", "is no gateway"),
    ):
        with web_server(status, body) as port:
            level, text = doctor("--gateway", f"http://127.0.0.1:{port}")[1]["gateway"]
        assert (level, part in text) == ("fail", True), text
    with web_server(200, b'{"version": "9.9.9"}') as port:
        assert doctor("--gateway", f"http://127.0.0.1:{port}")[1]["gateway"][0] == "warn"


def test_this_machine_is_checked_where_nothing_runs(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOTSLOT_STORE", "HOTSLOT_WORKER", "HOTSLOT_GATEWAY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("hotslot.cli.options.DEFAULT_STORE", "127.0.0.1:1")
    code, found = doctor("--before-start", "--model", str(tmp_path))
    assert (code, found["model"][0], found["compiler"][0]) == (1, "fail", "ok")
    assert "store" not in found
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("HOTSLOT_CACHE_DIR", "/proc/self")
    monkeypatch.setenv("HOTSLOT_DATA_DIR", "/proc/self")
    monkeypatch.setattr(machine_checks, "TOO_LITTLE_BYTES", 10**18)
    found = doctor("--before-start", "--model", "org/name")[1]
    assert {found[name][0] for name in ("compiler", "model", "data folder", "disk", "compiled code")} == {"fail"}
    assert "no no-such-compiler on PATH" in found["compiler"][1]
    monkeypatch.setattr(machine_checks, "TOO_LITTLE_BYTES", 0)
    monkeypatch.setattr(machine_checks, "LITTLE_BYTES", 10**18)
    assert doctor("--before-start")[1]["disk"][0] == "warn"


def test_contexts_that_others_may_read_are_warned_of(doctor: Doctor, tmp_path: Path) -> None:
    assert run(["context", "set", "a", "--store", "a:1"]) == 0
    assert doctor()[1]["contexts"] == ("ok", "1 known, none is in use")
    (tmp_path / "config/hotslot/contexts.json").chmod(0o644)
    assert doctor()[1]["contexts"][0] == "warn"


def test_every_check_was_seen_with_another_word_than_ok() -> None:
    """A check that is added here needs its line above, where it fails once."""
    text = Path(__file__).read_text()
    named = {check.__name__.removeprefix("check_") for check in deployment_checks.DEPLOYMENT_CHECKS}
    assert named == {"store", "worker", "fleet", "versions", "bases", "gateway"}
    for check in ("store", "worker", "fleet", "versions", "base models", "gateway", "clocks", "membership", "redis"):
        assert f'["{check}"]' in text


def until_sync(met: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
