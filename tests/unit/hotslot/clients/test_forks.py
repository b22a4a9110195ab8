"""Clients across real forks: they work in the child, or raise a typed error at once, and never hang."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hotslot.rpc.fork_support import VARIABLE
from tests.support.forking_clients import SCENES

SCENE_S = 240.0
SERVERS = """
import sys
from tests.unit.hotslot.conftest import Served
with Served() as served:
    print(*served.endpoints, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def endpoints() -> Iterator[list[str]]:
    """Of servers in a process of their own."""
    command = [sys.executable, "-c", SERVERS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield next(line.split() for line in process.stdout if line.startswith("127.0.0.1:"))
        process.stdin.close()
        process.stdout.read()


@pytest.mark.parametrize("scene", SCENES)
def test_a_fork_is_survived_or_refused_at_once(endpoints: list[str], scene: str) -> None:
    command = [sys.executable, "-m", "tests.support.forking_clients", scene, *endpoints]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SCENE_S)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("set_to", ["", "1"])
def test_the_variable_that_turns_off_grpcs_support_of_forks_is_left_as_it_was(set_to: str) -> None:
    program = "import os, sys, hotslot; print(os.environ.get('GRPC_ENABLE_FORK_SUPPORT'), 'grpc' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | (
        {VARIABLE: set_to} if set_to else {}
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    assert told.stdout.split() == [set_to or "None", "True"]


@pytest.mark.parametrize("end", ["raise AssertionError('a fault')", "sys.exit(3)", "del events", "pass"])
def test_a_process_ends_though_its_client_is_open_and_a_stream_under_way(endpoints: list[str], end: str) -> None:
    program = f"""
import sys
from hotslot import BlockingHotslotClient
client = BlockingHotslotClient(*sys.argv[1:])
events = client.generate("Hi")
next(events)
{end}
"""
    command = [sys.executable, "-c", program, *endpoints]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SCENE_S)
    assert done.returncode == {"r": 1, "s": 3}.get(end[0], 0), done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.count("Traceback") == (1 if "raise" in end else 0)
