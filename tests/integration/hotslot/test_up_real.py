"""`hotslot up` with the real services: it serves, heals, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hotslot import AdapterSelection, BlockingHotslotClient, ChatMessage, GenerationRequest, Stop
from hotslot.errors import HotslotError
from hotslot.local.child_processes import free_port
from tests.integration.conftest import DEMO_ADAPTERS
from tests.support.stack import is_running
from tests.support.waiting import until
from worker_service.demo_model import BASE_MODEL

pytestmark = [pytest.mark.integration, pytest.mark.model, pytest.mark.slow, pytest.mark.chaos]

REQUEST = GenerationRequest((ChatMessage("user", "Hi"),), (AdapterSelection("pirate"),), stop=Stop(max_tokens=3))
# A quick start; what a compiled worker does is tested elsewhere.
SETTINGS = {"HOTSLOT_COMPILE": "false", "HOTSLOT_BUCKETS": "1,32", "HOTSLOT_NUM_THREADS": "1"}


@pytest.fixture
def up(tmp_path: Path, model_folder: Path) -> "Iterator[subprocess.Popen[str]]":
    ports = ["--store-port", str(free_port()), "--worker-port", str(free_port())]
    model = ["--model", str(model_folder), "--model-name", BASE_MODEL]
    process = subprocess.Popen(
        [sys.executable, "-m", "hotslot", "up", "--json", "--data-dir", str(tmp_path), *ports, *model],
        env={**os.environ, **SETTINGS},
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def event(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


async def test_up_serves_heals_and_leaves_nothing_behind(up: "subprocess.Popen[str]") -> None:
    ready = event(up)
    pids = {child.pid for child in psutil.Process(up.pid).children(recursive=True)}
    with BlockingHotslotClient(ready["store"], ready["workers"][0]) as hotslot:
        digest = hotslot.store.push(DEMO_ADAPTERS / "pirate", "pirate").version.digest
        before = hotslot.complete(REQUEST)
        assert before.started.adapters[0].digest == digest

        os.kill(ready["pids"]["worker-1"], signal.SIGKILL)
        restarted = event(up)
        assert (restarted["event"], restarted["name"]) == ("restarted", "worker-1")
        pids.add(restarted["pid"])

        def serves_again() -> bool:
            try:
                return hotslot.complete(REQUEST).text == before.text
            except HotslotError:
                return False

        await until(serves_again, timeout_s=200)
    up.send_signal(signal.SIGINT)
    assert event(up) == {"event": "stopped"}
    assert up.wait(60) == 0
    await until(lambda: not any(is_running(pid) for pid in pids))


def test_up_runs_detached_until_down_ends_it_well_before_its_grace_is_over(tmp_path: Path, model_folder: Path) -> None:
    ports = ["--store-port", str(free_port()), "--worker-port", str(free_port()), "--no-gateway"]
    model = ["--model", str(model_folder), "--model-name", BASE_MODEL]
    environment = {**os.environ, **SETTINGS, "HOTSLOT_DATA_DIR": str(tmp_path)}

    def hotslot(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "hotslot", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    started = hotslot("up", "-d", "--json", *ports, *model)
    assert started.returncode == 0, started.stderr
    pid = json.loads(started.stdout)["pid"]
    try:
        children = [child.pid for child in psutil.Process(pid).children(recursive=True)]
        again = hotslot("up", "-d", *ports, *model)
        assert (again.returncode, f"process {pid}" in again.stderr) == (5, True)
        assert hotslot("logs", "store").stdout.count("\n") > 1
        begin_s = time.monotonic()
        assert json.loads(hotslot("stop", "--json").stdout) == {"stopped": pid}
        assert time.monotonic() - begin_s < 15, "nothing ran that had to be waited for"
        # The lock is given back last; the process itself ends a moment later.
        while left := [child for child in (pid, *children) if is_running(child)]:
            assert time.monotonic() - begin_s < 15, left
            time.sleep(0.05)
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGTERM)
