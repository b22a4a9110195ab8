"""Child processes and `hotslot up`: nothing is left running, however it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from hotslot import BlockingWorkerClient
from hotslot.local.child_processes import free_port
from hotslot.local.children import Child, ChildFailedError, ChildSpec, stop_all
from hotslot.rpc.channel import ChannelOptions
from hotslot.rpc.security import ChannelSecurity
from tests.support.stack import is_running
from tests.support.stubbed_up import STUB, write_stubs

ROOT = Path(__file__).resolve().parents[4]


def stub(tmp_path: Path, name: str = "stub", **settings: str) -> ChildSpec:
    endpoint = f"127.0.0.1:{free_port()}"
    return ChildSpec(name, STUB, endpoint, {"HOTSLOT_LISTEN": endpoint, **settings}, tmp_path / f"{name}.log")


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_child_is_ready_when_its_health_service_says_so_and_ends_in_order(tmp_path: Path) -> None:
    child = Child(stub(tmp_path))
    child.wait_ready(120)
    stop_all([child], grace_s=10)
    assert child.exit_code() == 0


def test_a_child_that_does_not_go_is_made_to(tmp_path: Path) -> None:
    child = Child(stub(tmp_path, HOTSLOT_STUB_STUBBORN="1"))
    child.wait_ready(120)
    stop_all([child], grace_s=0.2)
    assert child.exit_code() == -signal.SIGKILL


def test_a_child_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    child = Child(stub(tmp_path, HOTSLOT_STUB_EXIT="3"))
    with pytest.raises(ChildFailedError, match=r"(?s)stub ended with 3.*the stub ends as it was told"):
        child.wait_ready(120)
    child.kill()


def test_a_child_that_is_never_ready_is_reported(tmp_path: Path) -> None:
    child = Child(stub(tmp_path, HOTSLOT_LISTEN=f"127.0.0.1:{free_port()}"))
    with pytest.raises(ChildFailedError, match=r"not ready after 0\.1 s"):
        child.wait_ready(0.1)
    child.kill()


Up = Callable[..., "tuple[subprocess.Popen[str], dict[str, Any]]"]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Runs `hotslot up --json` with stubs as its services; returns the process and its ready event."""
    write_stubs(tmp_path)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, gateway: bool = False) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        ports = ["--store-port", str(free_port()), "--worker-port", str(free_port())]
        ports += ["--gateway-port", str(free_port())] if gateway else ["--no-gateway"]
        command = [sys.executable, "-m", "hotslot", "up", "--json", "--model", "m", "--data-dir", "data", *ports]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("HOTSLOT_REDIS_URL", None)
        process = subprocess.Popen(
            [*command, *arguments], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_leaves_no_process_behind(up: Up, number: signal.Signals) -> None:
    process, ready = up("--workers", "2")
    assert ready["event"] == "ready"
    assert sorted(ready["pids"]) == ["store", "worker-1", "worker-2"]
    pids = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert pids > set(ready["pids"].values()), "the embedded Valkey is a child too"
    process.send_signal(number)
    assert process.wait(60) == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    until(lambda: not any(is_running(pid) for pid in pids))


def test_up_runs_a_gateway_and_says_where(up: Up) -> None:
    process, ready = up(gateway=True)
    assert sorted(ready["pids"]) == ["gateway", "store", "worker-1"]
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ready["gateway"] + "/health") as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGTERM)
    assert next_event(process) == {"event": "stopped"}
    until(lambda: not is_running(ready["pids"]["gateway"]))


def test_up_gives_up_when_a_child_does_not_live(up: Up) -> None:
    process, ready = up()
    os.kill(ready["pids"]["worker-1"], signal.SIGKILL)
    assert process.wait(60) == 1
    until(lambda: not is_running(ready["pids"]["store"]))


def test_up_starts_its_valkey_again_on_the_same_port_however_often_it_is_killed(up: Up) -> None:
    process, ready = up("--insecure")
    pid = ready["valkey_pid"]
    port = int(ready["redis_url"].rpartition(":")[2])
    for _ in range(3):
        assert ask(port, "SET", "key", "value") == "+OK"
        os.kill(pid, signal.SIGKILL)
        restarted = next_event(process)
        assert (restarted["event"], restarted["name"]) == ("restarted", "valkey")
        assert restarted["pid"] != pid
        pid = restarted["pid"]
        assert ask(port, "GET", "key") == "$-1", "another process answers there"
    process.send_signal(signal.SIGTERM)
    assert next_event(process) == {"event": "stopped"}
    until(lambda: not is_running(pid))


def test_up_waits_longer_each_time_while_its_valkey_cannot_be_started(up: Up) -> None:
    process, ready = up("--insecure")
    port = int(ready["redis_url"].rpartition(":")[2])
    with thief_of(port, process):
        time.sleep(1.5)
        assert process.poll() is None
        assert is_running(ready["pids"]["worker-1"])
    assert next_event(process)["name"] == "valkey"
    assert ask(port, "PING") == "+PONG"


def test_up_tells_of_a_worker_that_is_drained_and_of_its_return(up: Up) -> None:
    process, ready = up("--workers", "2")
    endpoint = ready["workers"][1]
    security = ChannelSecurity(Path(ready["ca_file"]), token_file=Path(ready["token_file"]))
    with BlockingWorkerClient(endpoint, ChannelOptions(security=security)) as worker:
        worker.drain()
        assert next_event(process) == {"event": "drained", "name": "worker-2", "endpoint": endpoint}
        worker.undrain()
        assert next_event(process) == {"event": "undrained", "name": "worker-2", "endpoint": endpoint}


def next_event(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def ask(port: int, *words: str) -> str:
    """The first line of Valkey's answer."""
    request = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request.encode())
        return connection.recv(4096).decode().splitlines()[0]


def thief_of(port: int, process: "subprocess.Popen[str]") -> socket.socket:
    """Take the port of a process's Valkey, which is killed as often as it is back before the thief is there."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for child in psutil.Process(process.pid).children():
            with suppress(psutil.Error):
                if "valkey" in child.name():
                    child.kill()
        thief = socket.socket()
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            thief.bind(("127.0.0.1", port))
            thief.listen()
        except OSError:
            thief.close()
        else:
            return thief
    raise AssertionError("the port was never free")


def test_up_refuses_a_port_that_is_taken(up: Up, tmp_path: Path) -> None:
    _, ready = up()
    port = ready["store"].rpartition(":")[2]
    second = subprocess.run(
        [sys.executable, "-m", "hotslot", "up", "--model", "m", "--store-port", port, "--data-dir", "other"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"port {port} is taken" in second.stderr
