"""Child processes and `hotslot up`: nothing is left running, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from client.cli.children import Child, ChildFailedError, ChildSpec, stop_all
from shared.child_processes import free_port
from tests.support.stack import is_running

ROOT = Path(__file__).resolve().parents[3]
STUB = "tests.support.stub_service"


def stub(tmp_path: Path, name: str = "stub", **settings: str) -> ChildSpec:
    endpoint = f"127.0.0.1:{free_port()}"
    return ChildSpec(name, STUB, endpoint, {"HOTSLOT_LISTEN": endpoint, **settings}, tmp_path / f"{name}.log")


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_child_is_ready_when_its_health_service_says_so_and_ends_in_order(tmp_path: Path) -> None:
    child = Child(stub(tmp_path))
    child.wait_ready(20)
    stop_all([child], grace_s=10)
    assert child.exit_code() == 0


def test_a_child_that_does_not_go_is_made_to(tmp_path: Path) -> None:
    child = Child(stub(tmp_path, HOTSLOT_STUB_STUBBORN="1"))
    child.wait_ready(20)
    stop_all([child], grace_s=0.2)
    assert child.exit_code() == -signal.SIGKILL


def test_a_child_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    child = Child(stub(tmp_path, HOTSLOT_STUB_EXIT="3"))
    with pytest.raises(ChildFailedError, match=r"(?s)stub ended with 3.*the stub ends as it was told"):
        child.wait_ready(20)
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
    for name in ("store_service", "worker_service"):
        # `python -m` looks in the current folder first.
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        code = f"import asyncio\nfrom {STUB} import main\nasyncio.run(main())\n"
        (tmp_path / name / "__main__.py").write_text(code)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        ports = ["--store-port", str(free_port()), "--worker-port", str(free_port())]
        command = [sys.executable, "-m", "client", "up", "--json", "--model", "m", "--data-dir", "data", *ports]
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
    assert process.wait(20) == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    until(lambda: not any(is_running(pid) for pid in pids))


def test_up_gives_up_when_a_child_does_not_live(up: Up) -> None:
    process, ready = up()
    os.kill(ready["pids"]["worker-1"], signal.SIGKILL)
    assert process.wait(20) == 1
    until(lambda: not is_running(ready["pids"]["store"]))


def test_up_refuses_a_port_that_is_taken(up: Up, tmp_path: Path) -> None:
    _, ready = up()
    port = ready["store"].rpartition(":")[2]
    second = subprocess.run(
        [sys.executable, "-m", "client", "up", "--model", "m", "--store-port", port, "--data-dir", "data"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"port {port} is taken" in second.stderr
